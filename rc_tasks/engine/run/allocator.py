"""Allocator of slots for steps, on this host, or on the nodes of an allocation.

On a login node a run requests the allocation when the first step needs it, and releases it at the end.
"""

import contextlib
import json
import os
import secrets
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from msgspec import Struct, field
from msgspec.structs import replace

from rc_tasks.engine.controller import MOST_MISSES, ClosedError, Controller
from rc_tasks.engine.events import Event, EventKind
from rc_tasks.engine.schedule.scheduler import ReadyStep, Scheduler
from rc_tasks.errors import RcError, SlurmError, UnreachableError
from rc_tasks.model.config.settings import Runner, Slurm
from rc_tasks.state.checkout import Checkout
from rc_tasks.state.disk import locks, reading
from rc_tasks.state.disk.files import write_atomically
from rc_tasks.state.records.records import Task
from rc_tasks.tools import slurm
from rc_tasks.tools.slurm_request import StepRequest

# Without `slurm.cpus`, this many steps share what the allocation has of a node.
_STEPS_A_NODE = 4
# States of an allocation after which another one is requested: any other end was on purpose.
_WORTH_ANOTHER = {
    "RUNNING": "has no time or node left",
    "TIMEOUT": "ran out of time",
    "PREEMPTED": "had to make room for another job",
    "NODE_FAIL": "lost its node",
    "BOOT_FAIL": "lost its node",
    # Slurm forgets jobs some minutes after their end (MinJobAge).
    "": "is over",
}
# When a step ends, doit needs this long to start the steps that became ready; choose the next one then.
_SETTLE_S = 0.02
# The suffix of the note on an allocation that may still run, as its release was not confirmed.
_LEFT = ".left"
# How often Slurm is asked for the state of a job that is ending.
_ENDING_POLL_S = 0.5

Tell = Callable[[Event], None]
_T = TypeVar("_T")


class Slot(Struct, frozen=True):
    """Room for one step. `node` and `job_id` are empty on this host."""

    task: Task
    settings: Slurm
    node: str = ""
    job_id: str = ""
    cpus: int = 0


class _Waiting(Struct, eq=False):
    """A step that waits for `slot` or `error`."""

    step: ReadyStep[Task]
    settings: Slurm
    expected_s: float | None
    slot: Slot | None = None
    error: BaseException | None = None
    answered: threading.Event = field(default_factory=threading.Event)


class _SlotPool(Struct):
    """The slots of one allocation, or of this host; `scheduler` is None until they are known."""

    waiting: dict[Task, _Waiting] = field(default_factory=dict)
    scheduler: Scheduler[Task] | None = None
    granted: slurm.Granted | None = None
    allocation: slurm.Allocation | None = None
    name: str = ""
    asking: bool = False
    settling: bool = False
    over: bool = False
    refused: BaseException | None = None
    limit_s: float | None = None
    deadline_s: float | None = None
    held: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @property
    def ours(self) -> bool:
        """Whether it is an allocation that this run requested."""
        return self.allocation is not None

    @property
    def left_s(self) -> float | None:
        """How long steps may still run in it; None without a limit."""
        return None if self.deadline_s is None else self.deadline_s - time.monotonic()

    def answer(
        self, task: Task, *, slot: Slot | None = None, error: BaseException | None = None
    ) -> None:
        """End the waiting of a step."""
        waiting = self.waiting.pop(task)
        waiting.slot, waiting.error = slot, error
        waiting.answered.set()


class Allocator:
    """Gives the steps of a run their slots; called from as many threads as there are ready steps."""

    def __init__(self, checkout: Checkout, where: Runner, at_once: int, tell: Tell) -> None:
        """Run at most `at_once` steps at the same time; 0 means as many as there is room for."""
        self._checkout = checkout
        self._where = where
        self._at_once = at_once
        self._tell = tell
        self._turn = threading.Lock()
        self._pools: dict[Slurm, _SlotPool] = {}
        self._closing = threading.Event()
        self._controller = Controller(tell, self._closing)
        self._unreleased: dict[str, None] = {}

    @property
    def closed(self) -> bool:
        """Whether the run is ending."""
        return self._closing.is_set()

    def take(self, step: ReadyStep[Task], settings: Slurm, expected_s: float | None) -> Slot:
        """Wait for a slot. Raise SlurmError when there can be none, ClosedError at the run's end.

        A step that took `expected_s` last time does not start where less time is left.
        """
        waiting = _Waiting(step, settings, expected_s)
        with self._turn:
            pool = self._pool(settings)
            pool.waiting[step.task] = waiting
            self._serve(pool)
        waiting.answered.wait()
        if waiting.slot is None:
            raise waiting.error or ClosedError
        return waiting.slot

    def free(self, slot: Slot) -> None:
        """Free the slot of a step that has ended."""
        with self._turn:
            pool = self._pool(slot.settings)
            if pool.scheduler is not None:
                pool.scheduler.drop(slot.task)
            self._serve_all()

    def drop_node(self, slot: Slot) -> None:
        """Note that the step's node or whole allocation has failed; call this before `free`."""
        state = ""
        with contextlib.suppress(UnreachableError):
            state, _ = slurm.state(slot.job_id)
        with self._turn:
            pool = self._pool(slot.settings)
            if pool.granted is None or pool.granted.job_id != slot.job_id or pool.scheduler is None:
                return
            if state not in {"RUNNING", ""}:
                pool.over = True
            # Keep the last node of an allocation that is not ours: no other node can retry the step.
            elif pool.ours or len(pool.scheduler.nodes) > 1:
                pool.scheduler.drop_node(slot.node)
                pool.over = not pool.scheduler.nodes

    def await_controller(self, settings: Slurm, since_s: float, why: str) -> bool:
        """Wait for Slurm's controller, which did not answer a step; return whether it was absent.

        `since_s` is the start of the step (monotonic clock). Raise SlurmError when the allocation ends
        before the controller is back, and ClosedError at the run's end.
        """
        with self._turn:
            pool = self._pool(settings)
        try:
            return self._await(pool, since_s, why)
        finally:
            with self._turn:
                self._serve_all()

    def _await(self, pool: _SlotPool, since_s: float, why: str) -> bool:
        granted = pool.granted
        deadline_s = pool.deadline_s if granted is not None else time.monotonic() + slurm.PATIENCE_S
        nodes = granted.cpus if granted is not None else ()
        return self._controller.wait(since_s, deadline_s, nodes=nodes, why=why)

    def close(self) -> None:
        """Start no more steps; those that wait get ClosedError."""
        with self._turn:
            self._closing.set()
            self._serve_all()

    def release(self) -> tuple[str, ...]:
        """Release all allocations, ending their steps; return the IDs of jobs that may still run."""
        self.close()
        for pool in list(self._pools.values()):
            self._release(pool)
        return tuple(self._unreleased)

    def _release(self, pool: _SlotPool) -> None:
        """Release an allocation. If Slurm does not confirm that, leave a note for the next run."""
        if pool.allocation is not None and not pool.allocation.release():
            job_id = pool.granted.job_id if pool.granted is not None else ""
            if job_id:
                self._unreleased[job_id] = None
            # Where no note can be written, the run still reports the job.
            with contextlib.suppress(RcError):
                path = self._checkout.allocations / f"{pool.name}{_LEFT}"
                write_atomically(path, json.dumps({"job_id": job_id}) + "\n")
        pool.allocation = None
        pool.held.close()

    def _serve_all(self) -> None:
        """Serve all pools: with `at_once`, the end of a step makes room in another allocation."""
        for pool in self._pools.values():
            self._serve(pool)

    def _serve(self, pool: _SlotPool) -> None:
        """Answer waiting steps as far as possible. Call it after every change, with the lock held."""
        ended = ClosedError() if self.closed else pool.refused
        if ended is not None:
            for task in list(pool.waiting):
                pool.answer(task, error=ended)
        if pool.waiting and not pool.asking and not pool.settling:
            pool.settling = True
            timer = threading.Timer(_SETTLE_S, self._settled, (pool,))
            timer.daemon = True
            timer.start()

    def _settled(self, pool: _SlotPool) -> None:
        with self._turn:
            pool.settling = False
            if pool.waiting and not pool.asking and not self.closed:
                self._assign(pool)

    @property
    def _full(self) -> bool:
        # An allocation that is being requested counts as well: a step will run there.
        taken = sum(
            pool.asking + (pool.scheduler.running if pool.scheduler is not None else 0)
            for pool in self._pools.values()
        )
        return bool(self._at_once) and taken >= self._at_once

    def _assign(self, pool: _SlotPool) -> None:
        # Without Slurm's controller no step can start.
        if self._full or self._controller.absent:
            return
        if pool.scheduler is not None and not self._over(pool):
            self._start_waiting(pool, pool.scheduler)
        if pool.waiting and not self._full and (pool.scheduler is None or not pool.scheduler.running):
            # Nothing may start in the old allocation any more.
            pool.over = pool.asking = True
            settings = next(iter(pool.waiting.values())).settings
            threading.Thread(target=self._ask, args=(settings, pool), daemon=True).start()

    def _start_waiting(self, pool: _SlotPool, scheduler: Scheduler[Task]) -> None:
        job_id = pool.granted.job_id if pool.granted is not None else ""
        for task, waiting in list(pool.waiting.items()):
            try:
                late = self._too_late(task, pool, waiting.expected_s)
            except SlurmError as error:
                pool.answer(task, error=error)
                late = True
            if late:
                scheduler.drop(task)
            else:
                scheduler.queue(replace(waiting.step, cpus=_share(pool, waiting.settings)))
        while not self._full and (started := scheduler.start_next()) is not None:
            step, node = started
            settings = pool.waiting[step.task].settings
            slot = Slot(step.task, settings, node, job_id, step.cpus if job_id else 0)
            pool.answer(step.task, slot=slot)

    def _over(self, pool: _SlotPool) -> bool:
        if pool.allocation is not None and pool.allocation.ended:
            pool.over = True
        return pool.over

    def _too_late(self, task: Task, pool: _SlotPool, expected_s: float | None) -> bool:
        """Return whether too little time is left for the step. Raise SlurmError if it can never fit."""
        left_s = pool.left_s
        if left_s is None or expected_s is None or expected_s <= left_s or pool.granted is None:
            return False
        if not pool.ours:
            raise SlurmError(
                f"{task} was not started: job {pool.granted.job_id} ends in {_length(left_s)}, and last"
                f" time it took {_length(expected_s)}",
                hint="run `doit` again in a job with more time: finished steps are kept",
            )
        if pool.limit_s is not None and expected_s > pool.limit_s:
            # Limits are whole minutes, and a second has passed since the allocation was granted.
            limit = _length(60 * round(pool.limit_s / 60))
            raise SlurmError(
                f"{task} was not started: the allocation is for {limit}, and last time it took"
                f" {_length(expected_s)}",
                hint="raise `slurm.time_limit_min`, up to what the partition allows:\n"
                f"`sinfo --format='%P %l'`; `doit forget {task}` lets it be tried all the same",
            )
        return True

    def _pool(self, settings: Slurm) -> _SlotPool:
        # Settings that do not concern the allocation itself share one pool.
        key = replace(settings, cpus=0, retries=0)
        if self._where is Runner.LOCAL or slurm.job_id() is not None:
            key = Slurm()
        return self._pools.setdefault(key, _SlotPool())

    def _ask(self, settings: Slurm, pool: _SlotPool) -> None:
        """Find the slots of this host or job, or request an allocation; runs in its own thread."""
        try:
            if self._where is Runner.LOCAL:
                pool.scheduler, pool.over = Scheduler({"": self._at_once or 1}), False
            elif slurm.job_id() is not None:
                self._enter(pool, self._patiently(slurm.current_allocation, pool))
            else:
                self._take(settings, pool)
        except BaseException as error:  # the waiting steps raise it
            pool.refused = error
            pool.held.close()
        finally:
            with self._turn:
                pool.asking = False
                if pool.waiting and pool.refused is None and not self.closed:
                    # Do it at once, or with `at_once` another allocation would be requested meanwhile.
                    self._assign(pool)
                self._serve_all()

    def _take(self, settings: Slurm, pool: _SlotPool) -> None:
        if pool.allocation is not None and pool.granted is not None:
            self._release_for_another(pool.granted.job_id, pool)
        pool.granted = None
        began, missed = time.monotonic(), 0
        while True:
            # Release them first, or the new allocation would wait in the queue behind them.
            for job_id in release_abandoned(self._checkout):
                self._unreleased.pop(job_id, None)
                self._tell(
                    Event(EventKind.SLURM, words=f"job {job_id} released, left by an earlier run")
                )
            since_s = time.monotonic()
            try:
                granted = self._request(settings, pool)
                break
            except UnreachableError as error:
                self._release(pool)
                if missed >= MOST_MISSES:
                    raise
                missed += not self._await(pool, since_s, error.quote[-1] if error.quote else "")
        self._enter(pool, granted)
        waited = f" after {_length(time.monotonic() - began)}" if time.monotonic() - began > 2 else ""
        until = (
            time.strftime("%H:%M", time.localtime(time.time() + pool.limit_s)) if pool.limit_s else ""
        )
        nodes = ", ".join(granted.cpus)
        granted_text = f"job {granted.job_id}: {nodes}{f', until {until}' if until else ''}{waited}"
        self._tell(Event(EventKind.GRANTED, words=granted_text))

    def _request(self, settings: Slurm, pool: _SlotPool) -> slurm.Granted:
        """Request an allocation, and wait for it."""
        pool.name = f"rc_tasks.{secrets.token_hex(4)}"
        # Should this run be killed, the next one finds the allocation by this note.
        note = self._checkout.allocations / f"{pool.name}.json"
        pool.held.enter_context(locks.held(note, "allocation"))
        request = StepRequest(
            "this run",
            account=settings.account,
            partition=settings.partition,
            time_limit_min=settings.time_limit_min,
            cpus=settings.cpus,
            nodes=settings.nodes,
            steps=max(1, -(-self._at_once // settings.nodes)),
            extra=settings.extra,
            settings_table=self._table(settings),
        )
        with self._turn:
            # Set it under the lock, or `release` would miss it.
            if self.closed:
                raise ClosedError
            pool.allocation = slurm.Allocation(request, settings.nodes, pool.name)
        return pool.allocation.wait(self._queued)

    def _table(self, settings: Slurm) -> str:
        """Return the table of the settings in which a changed key counts for this allocation."""
        ours = self._checkout.settings
        machines = [machine for machine in ours.arch if ours.slurm_for(machine) == settings]
        return f"arch.{machines[0]}" if machines and settings != ours.slurm else "slurm"

    def _release_for_another(self, job_id: str, pool: _SlotPool) -> None:
        """Release an allocation before another one. Raise SlurmError when it was ended on purpose."""
        state, _ = self._patiently(lambda: slurm.state(job_id), pool)
        while state == "COMPLETING" and not self.closed:
            time.sleep(_ENDING_POLL_S)
            state, _ = self._patiently(lambda: slurm.state(job_id), pool)
        self._release(pool)
        if state not in _WORTH_ANOTHER:
            raise SlurmError(
                f"job {job_id}, the allocation of this run, was cancelled",
                hint="run `doit` again: finished steps are kept",
            )
        words = f"job {job_id} {_WORTH_ANOTHER[state]}: asking for another one"
        self._tell(Event(EventKind.AGAIN, words=words))

    def _patiently(self, ask: Callable[[], _T], pool: _SlotPool) -> _T:
        """Return what `ask` returns, once the controller answers."""
        while True:
            since_s = time.monotonic()
            try:
                return ask()
            except UnreachableError as error:
                self._await(pool, since_s, error.quote[-1] if error.quote else "")

    def _enter(self, pool: _SlotPool, granted: slurm.Granted) -> None:
        # Without a node, its steps would wait for ever.
        if not granted.cpus:
            raise SlurmError(
                f"Slurm does not name the nodes of job {granted.job_id}",
                hint="`scontrol show hostnames` has to list them here",
            )
        limit_s = slurm.time_left_s(granted.job_id)
        with self._turn:
            pool.granted = granted
            pool.limit_s = limit_s
            pool.deadline_s = None if limit_s is None else time.monotonic() + limit_s
            pool.over = False
            pool.scheduler = Scheduler(granted.cpus)

    def _queued(self, job_id: str) -> None:
        reason = ""
        with contextlib.suppress(UnreachableError):
            reason = slurm.state(job_id)[1].removeprefix("None")
        words = f"job {job_id} waits for its nodes{f' ({reason})' if reason else ''}"
        self._tell(Event(EventKind.QUEUE, words=words))


def release_abandoned(checkout: Checkout) -> list[str]:
    """Release the allocations that earlier runs of this user have left; return their job IDs.

    A killed run leaves its lock; a run that could not reach Slurm at its end leaves a note. The lock or
    note stays while the allocation cannot be released.
    """
    job_ids: list[str] = []
    with contextlib.suppress(FileNotFoundError):
        for name in sorted(reading.names(checkout.allocations)):
            path = checkout.allocations / name
            if name.startswith(".") or path.stat().st_uid != os.getuid():
                continue
            if path.suffix == _LEFT or (path.suffix == ".json" and locks.abandoned(path)):
                cancelled = slurm.cancel(path.stem)
                if cancelled is not None:
                    job_ids += cancelled
                    path.unlink(missing_ok=True)
    return job_ids


def _share(pool: _SlotPool, settings: Slurm) -> int:
    """Return the CPUs of a step; on this host, only `-n` counts."""
    if pool.granted is None:
        return 1
    return settings.cpus or max(1, min(pool.granted.cpus.values(), default=1) // _STEPS_A_NODE)


def _length(seconds: float) -> str:
    """Format a length of time for people."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"
