"""Where the steps of a run go: slots on this host, or on the nodes of an allocation.

On a login node the allocation is taken when the first step needs it, and given back at the end.
"""

import contextlib
import os
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from rc_tasks.engine.events import Event, Kind
from rc_tasks.engine.schedule import Slots, Wanted
from rc_tasks.errors import SlurmError
from rc_tasks.model.settings import Runner, Slurm
from rc_tasks.state import locks, reading
from rc_tasks.state.checkout import Checkout
from rc_tasks.tools import slurm
from rc_tasks.tools.slurm import StepRequest

# Without `slurm.cpus`, this many steps share what the allocation has of a node.
_STEPS_A_NODE = 4
# What became of an allocation that is worth another one: any other end was somebody's wish.
_WORTH_ANOTHER = {
    "RUNNING": "has no time or node left",
    "TIMEOUT": "ran out of time",
    "PREEMPTED": "had to make room for another job",
    "NODE_FAIL": "lost its node",
    "BOOT_FAIL": "lost its node",
    # Slurm forgets jobs some minutes after their end (MinJobAge).
    "": "is over",
}
# When a step ends, doit needs a moment to name those that it made ready: the next one is chosen after.
_SETTLE_S = 0.02
# How often a job that is ending is asked how it ended.
_ENDING_POLL_S = 0.5

Tell = Callable[[Event], None]


class ClosedError(Exception):
    """The run is ending: nothing is started any more."""


@dataclass(frozen=True, slots=True)
class Place:
    """Room for one step. `node` and `job_id` are empty on this host."""

    task: str
    settings: Slurm
    node: str = ""
    job_id: str = ""
    cpus: int = 0


@dataclass(slots=True, eq=False)
class _Waiting:
    """A step that waits; `place` or `error` is what it gets."""

    wanted: Wanted
    settings: Slurm
    expected_s: float | None
    place: Place | None = None
    error: BaseException | None = None
    answered: threading.Event = field(default_factory=threading.Event)


@dataclass(slots=True)
class _Pool:
    """The slots of one allocation, or of this host; `slots` is None until they are known."""

    waiting: dict[str, _Waiting] = field(default_factory=dict)
    slots: Slots | None = None
    granted: slurm.Granted | None = None
    allocation: slurm.Allocation | None = None
    asking: bool = False
    settling: bool = False
    over: bool = False
    refused: BaseException | None = None
    limit_s: float | None = None
    deadline_s: float | None = None
    held: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @property
    def ours(self) -> bool:
        """Whether it is an allocation that we took."""
        return self.allocation is not None

    @property
    def left_s(self) -> float | None:
        """How long steps may still run in it."""
        return None if self.deadline_s is None else self.deadline_s - time.monotonic()

    def answer(
        self, task: str, *, place: Place | None = None, error: BaseException | None = None
    ) -> None:
        """End the waiting of a step."""
        waiting = self.waiting.pop(task)
        waiting.place, waiting.error = place, error
        waiting.answered.set()


class Places:
    """Gives the steps of a run their places; called from as many threads as there are ready steps."""

    def __init__(self, checkout: Checkout, where: Runner, at_once: int, tell: Tell) -> None:
        """`at_once` bounds the steps that run at the same time; 0: what the places can hold."""
        self._checkout = checkout
        self._where = where
        self._at_once = at_once
        self._tell = tell
        self._turn = threading.Lock()
        self._pools: dict[Slurm, _Pool] = {}
        self.closed = False

    def take(self, wanted: Wanted, settings: Slurm, expected_s: float | None) -> Place:
        """Wait for a place. Raises SlurmError when there can be none, ClosedError at the run's end.

        A step that took `expected_s` last time is not started where less time is left.
        """
        waiting = _Waiting(wanted, settings, expected_s)
        with self._turn:
            pool = self._pool(settings)
            pool.waiting[wanted.task] = waiting
            self._serve(pool)
        waiting.answered.wait()
        if waiting.place is None:
            raise waiting.error or ClosedError
        return waiting.place

    def leave(self, place: Place) -> None:
        """The step has ended."""
        with self._turn:
            pool = self._pool(place.settings)
            if pool.slots is not None:
                pool.slots.drop(place.task)
            self._serve_all()

    def lose(self, place: Place) -> None:
        """The step's node, or its whole allocation, has failed; ask this before it leaves."""
        state, _ = slurm.state(place.job_id)
        with self._turn:
            pool = self._pool(place.settings)
            if pool.granted is None or pool.granted.job_id != place.job_id or pool.slots is None:
                return
            if state not in {"RUNNING", ""}:
                pool.over = True
            # The last node of somebody else's allocation is all that there is to try again on.
            elif pool.ours or len(pool.slots.nodes) > 1:
                pool.slots.lose(place.node)
                pool.over = not pool.slots.nodes

    def close(self) -> None:
        """Start nothing any more; steps that wait are told so."""
        with self._turn:
            self.closed = True
            self._serve_all()

    def release(self) -> None:
        """Give back what was taken, ending what still runs there."""
        self.close()
        for pool in list(self._pools.values()):
            if pool.allocation is not None:
                pool.allocation.release()
            pool.held.close()

    def _serve_all(self) -> None:
        """With `at_once`, what ends in one allocation makes room in another."""
        for pool in self._pools.values():
            self._serve(pool)

    def _serve(self, pool: _Pool) -> None:
        """Answer those that wait as far as possible now; called after every change, with the lock."""
        ended = ClosedError() if self.closed else pool.refused
        if ended is not None:
            for task in list(pool.waiting):
                pool.answer(task, error=ended)
        if pool.waiting and not pool.asking and not pool.settling:
            pool.settling = True
            timer = threading.Timer(_SETTLE_S, self._settled, (pool,))
            timer.daemon = True
            timer.start()

    def _settled(self, pool: _Pool) -> None:
        with self._turn:
            pool.settling = False
            if pool.waiting and not pool.asking and not self.closed:
                self._give_out(pool)

    @property
    def _full(self) -> bool:
        # What is asked for is for a step as well.
        taken = sum(
            pool.asking + (pool.slots.running if pool.slots is not None else 0)
            for pool in self._pools.values()
        )
        return bool(self._at_once) and taken >= self._at_once

    def _give_out(self, pool: _Pool) -> None:
        if self._full:
            return
        if pool.slots is not None and not self._over(pool):
            self._place(pool, pool.slots)
        if pool.waiting and not self._full and (pool.slots is None or not pool.slots.running):
            # Nothing may start in the old one now.
            pool.over = pool.asking = True
            settings = next(iter(pool.waiting.values())).settings
            threading.Thread(target=self._ask, args=(settings, pool), daemon=True).start()

    def _place(self, pool: _Pool, slots: Slots) -> None:
        job_id = pool.granted.job_id if pool.granted is not None else ""
        for task, waiting in list(pool.waiting.items()):
            try:
                late = self._too_late(task, pool, waiting.expected_s)
            except SlurmError as error:
                pool.answer(task, error=error)
                late = True
            if late:
                slots.drop(task)
            else:
                slots.want(replace(waiting.wanted, cpus=_share(pool, waiting.settings)))
        while not self._full and (found := slots.place()) is not None:
            wanted, node = found
            settings = pool.waiting[wanted.task].settings
            place = Place(wanted.task, settings, node, job_id, wanted.cpus if job_id else 0)
            pool.answer(wanted.task, place=place)

    def _over(self, pool: _Pool) -> bool:
        if pool.allocation is not None and pool.allocation.ended:
            pool.over = True
        return pool.over

    def _too_late(self, task: str, pool: _Pool, expected_s: float | None) -> bool:
        """Whether too little time is left for the step. Raises SlurmError when there never is enough."""
        left_s = pool.left_s
        if left_s is None or expected_s is None or expected_s <= left_s or pool.granted is None:
            return False
        if not pool.ours:
            raise SlurmError(
                f"{task} was not started: job {pool.granted.job_id} ends in {_told(left_s)}, and last"
                f" time it took {_told(expected_s)}",
                hint="run `doit` again in a job with more time: finished steps are kept",
            )
        if pool.limit_s is not None and expected_s > pool.limit_s:
            # A second has passed since it was granted, and limits are whole minutes.
            limit = _told(60 * round(pool.limit_s / 60))
            raise SlurmError(
                f"{task} was not started: the allocation is for {limit}, and last time it took"
                f" {_told(expected_s)}",
                hint="raise `slurm.time_limit_min`, up to what the partition allows:\n"
                f"`sinfo --format='%P %l'`; `doit forget {task}` lets it be tried all the same",
            )
        return True

    def _pool(self, settings: Slurm) -> _Pool:
        # What does not concern the allocation itself makes no difference.
        key = replace(settings, cpus=0, retries=0)
        if self._where is Runner.LOCAL or slurm.job_id() is not None:
            key = Slurm()
        return self._pools.setdefault(key, _Pool())

    def _ask(self, settings: Slurm, pool: _Pool) -> None:
        """Find out what there is, or take an allocation; runs in a thread of its own."""
        try:
            if self._where is Runner.LOCAL:
                pool.slots, pool.over = Slots({"": self._at_once or 1}), False
            elif slurm.job_id() is not None:
                self._enter(pool, slurm.around_us())
            else:
                self._take(settings, pool)
        except BaseException as error:  # the steps that wait raise it
            pool.refused = error
            pool.held.close()
        finally:
            with self._turn:
                pool.asking = False
                if pool.waiting and pool.refused is None and not self.closed:
                    # At once, or with `at_once` another one would be asked for meanwhile.
                    self._give_out(pool)
                self._serve_all()

    def _take(self, settings: Slurm, pool: _Pool) -> None:
        if pool.allocation is not None and pool.granted is not None:
            self._again(pool.granted.job_id, pool)
        name = f"rc_tasks.{secrets.token_hex(4)}"
        # Where the next run finds it, should this one be killed.
        pool.held.enter_context(locks.held(self._checkout.allocations / f"{name}.json", "allocation"))
        request = StepRequest(
            "this run",
            account=settings.account,
            partition=settings.partition,
            time_limit_min=settings.time_limit_min,
            cpus=settings.cpus * max(1, -(-self._at_once // settings.nodes)),
            extra=settings.extra,
        )
        began = time.monotonic()
        with self._turn:
            # Or `release` would not see it.
            if self.closed:
                raise ClosedError
            pool.allocation = slurm.Allocation(request, settings.nodes, name)
        granted = pool.allocation.wait(self._queued)
        self._enter(pool, granted)
        waited = f" after {_told(time.monotonic() - began)}" if time.monotonic() - began > 2 else ""
        until = (
            time.strftime("%H:%M", time.localtime(time.time() + pool.limit_s)) if pool.limit_s else ""
        )
        nodes = ", ".join(granted.cpus)
        told = f"job {granted.job_id}: {nodes}{f', until {until}' if until else ''}{waited}"
        self._tell(Event(Kind.GRANTED, words=told))

    def _again(self, job_id: str, pool: _Pool) -> None:
        """Let go of an allocation for another one. Raises SlurmError when it was ended on purpose."""
        while (state := slurm.state(job_id)[0]) == "COMPLETING" and not self.closed:
            time.sleep(_ENDING_POLL_S)
        if pool.allocation is not None:
            pool.allocation.release()
        pool.held.close()
        if state not in _WORTH_ANOTHER:
            raise SlurmError(
                f"job {job_id}, the allocation of this run, was cancelled",
                hint="run `doit` again: finished steps are kept",
            )
        told = f"job {job_id} {_WORTH_ANOTHER[state]}: asking for another one"
        self._tell(Event(Kind.AGAIN, words=told))

    def _enter(self, pool: _Pool, granted: slurm.Granted) -> None:
        limit_s = slurm.time_left_s(granted.job_id)
        with self._turn:
            pool.granted = granted
            pool.limit_s = limit_s
            pool.deadline_s = None if limit_s is None else time.monotonic() + limit_s
            pool.over = False
            pool.slots = Slots(granted.cpus)

    def _queued(self, job_id: str) -> None:
        reason = slurm.state(job_id)[1].removeprefix("None")
        told = f"job {job_id} waits for its nodes{f' ({reason})' if reason else ''}"
        self._tell(Event(Kind.QUEUE, words=told))


def release_abandoned(checkout: Checkout) -> list[str]:
    """Give back the allocations of runs of ours that were killed; returns their job IDs."""
    found: list[str] = []
    with contextlib.suppress(FileNotFoundError):
        for file in reading.names(checkout.allocations):
            path = checkout.allocations / file
            if not file.endswith(".json") or file.startswith("."):
                continue
            if path.stat().st_uid == os.getuid() and locks.abandoned(path):
                found += slurm.cancel(path.stem)
                path.unlink(missing_ok=True)
    return found


def _share(pool: _Pool, settings: Slurm) -> int:
    """The CPUs of a step; on this host, `-n` alone counts."""
    if pool.granted is None:
        return 1
    return settings.cpus or max(1, min(pool.granted.cpus.values(), default=1) // _STEPS_A_NODE)


def _told(seconds: float) -> str:
    """A length of time for people."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"
