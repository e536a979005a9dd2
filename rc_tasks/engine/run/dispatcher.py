"""Runs each step where it belongs: as a Slurm job step, or here where there is no Slurm."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from doit.exceptions import TaskFailed

from rc_tasks.engine.controller import MOST_MISSES, ClosedError
from rc_tasks.engine.events import Event, EventKind
from rc_tasks.engine.pulse import Pulse
from rc_tasks.engine.run.allocator import Place, Places
from rc_tasks.engine.run.diagnosis import Diagnosis, verdict
from rc_tasks.engine.run.step_command import runner, step_command
from rc_tasks.engine.schedule.estimates import Order
from rc_tasks.engine.session import Session
from rc_tasks.errors import NodeError, RcError, SlurmError
from rc_tasks.model.config.settings import Slurm
from rc_tasks.state import history, logs
from rc_tasks.state.disk import locks, reading
from rc_tasks.state.disk.files import refused
from rc_tasks.state.edf.values import entrypoint_is_news
from rc_tasks.state.history import HistoryEntry, Outcome
from rc_tasks.state.records.records import Failure, Step, Task, edition
from rc_tasks.tools import command, git, slurm
from rc_tasks.tools.slurm_request import StepRequest

# Longer than what a step gives its own tools: it has to clean up after them.
STEP_GRACE_S = 2 * command.GRACE_S
# How often the lock of an image that others build is looked at.
_LOCK_POLL_S = 1.0
# Clients of network file systems remember for 60 s at most, by default, what is in a directory.
_LATE_RECORD_S = 75.0
_LATE_POLL_S = 0.5
# How long the threads of a run that ends have to write down what became of their steps.
_LAST_WORDS_S = 5.0


class NotTried(TaskFailed):
    """doit's result of a step that was not started, as the run is ending."""


class StepFailed(TaskFailed):
    """doit's result of a step that failed; `log` is the path of its log, if there is one."""

    def __init__(self, text: str, log: str = "") -> None:
        super().__init__(text)
        self.log = log


@dataclass(frozen=True, slots=True)
class _Tried:
    """One try of a step. `verdict` is None when it did its work; `inputs` are those it began with.

    `entry` is what history will say of it, but for how it ended. `node_lost`: the node failed, be it
    after the work was done.
    """

    verdict: Diagnosis | None
    entry: HistoryEntry
    took_s: float = 0.0
    inputs: Mapping[str, str] | None = None
    log: Path | None = None
    node_lost: bool = False


class Dispatcher:
    """Runs the steps of one run of doit; called from as many threads as there are ready steps."""

    def __init__(self, session: Session, order: Order, at_once: int, *, keep_going: bool) -> None:
        """`at_once`: see `Places`. Without `keep_going`, nothing is started after a failure."""
        self._session = session
        self._order = order
        self._keep_going = keep_going
        self._history = history.RunHistory(session.checkout.history)
        self._places = Places(
            session.checkout,
            runner(session.checkout.settings.runner),
            at_once,
            self._tell,
        )
        self._ended = threading.Event()
        self._at_work = 0
        self._left = threading.Condition()
        # An image that is made again may be asked for by several steps, and by doit itself.
        self._busy: dict[Task, threading.Lock] = {}

    def run(self, task: Task) -> TaskFailed | None:
        """doit's action of a step: None when it succeeded, else the failure with its whole text."""
        with self._left:
            self._at_work += 1
        try:
            failed = self._until_done(task)
        except ClosedError:
            return NotTried("the run was ending")
        except OSError as error:
            # The state cannot be read; what goes wrong in the step itself is reported by `_run`.
            told = refused(error)
            if told is None:
                raise
            failed = TaskFailed(str(told))
        finally:
            with self._left:
                self._at_work -= 1
                self._left.notify_all()
        if failed is not None and not self._keep_going:
            self._places.close()
        return failed

    def end(self) -> tuple[str, ...]:
        """End what runs, and give back the allocation; steps that wait are not tried.

        Returns the jobs that may run on, as Slurm did not confirm their end.
        """
        self._ended.set()
        self._places.close()
        command.end_all(STEP_GRACE_S)
        with self._left:
            # After Ctrl-C doit does not wait for them.
            self._left.wait_for(lambda: not self._at_work, _LAST_WORDS_S)
        left = self._places.release()
        history.trim(self._history.directory, self._session.checkout.settings.history.days)
        return left

    def _tell(self, event: Event) -> None:
        # Asked for each time: whoever shows the run comes after us.
        self._session.tell(event)

    def _until_done(self, task: Task) -> TaskFailed | None:
        """Do a step unless another thread does it first."""
        records = self._session.checkout.records
        seen = records.get(*task)
        with self._busy.setdefault(task, threading.Lock()):
            if records.get(*task) != seen and self._fresh(task):
                return None
            return self._do(task)

    def _do(self, task: Task) -> TaskFailed | None:
        checkout = self._session.checkout
        settings = checkout.graph.resolve(task.name).recipe.slurm.apply(checkout.settings.slurm)
        lost, missed, needed = 0, 0, set[str]()
        locked, ready_s = False, time.monotonic()
        while True:
            if self._waited(task, locked=locked) and self._made_meanwhile(task):
                return None
            began_s = time.monotonic()
            tried = self._try(task, settings, ready_s)
            found = tried.verdict
            if found is None:
                self._note(tried, Outcome.DONE)
                return None
            first = found.text.partition("\n")[0]
            locked = found.locked
            if locked:
                if found.lost:
                    self._note(tried, Outcome.RETRIED)
                    self._tell(Event(EventKind.RETRY, task, first))
                if self._made_meanwhile(task):
                    return None
                continue
            if found.needs and found.needs not in needed:
                needed.add(found.needs)
                self._note(tried, Outcome.RETRIED)
                self._tell(Event(EventKind.AGAIN, Task(Step.PODMAN, found.needs), first))
                failed = self._again(found.needs)
                if failed is not None:
                    return failed
            elif found.unreachable and missed < MOST_MISSES:
                # The step has not begun: nothing was tried.
                try:
                    missed += not self._controller_back(tried, settings, began_s)
                except SlurmError as error:
                    tried = replace(tried, verdict=Diagnosis(str(error)))
                    self._note(tried, Outcome.FAILED)
                    return self._failed(task, tried)
                self._note(tried, Outcome.RETRIED)
            elif found.elsewhere and lost < settings.retries:
                lost += 1
                self._note(tried, Outcome.RETRIED)
                told = f"{first} (try {lost + 1} of {settings.retries + 1})"
                self._tell(Event(EventKind.RETRY, task, told))
            else:
                self._note(tried, Outcome.FAILED)
                return self._failed(task, tried)
            ready_s = time.monotonic()

    def _controller_back(self, tried: _Tried, settings: Slurm, began_s: float) -> bool:
        """Wait for Slurm's controller, which a try has missed; whether it was absent at all.

        Raises SlurmError when the allocation ends first.
        """
        text = tried.verdict.text if tried.verdict is not None else ""
        why = next((line[4:] for line in text.splitlines() if line.startswith("  | ")), "")
        try:
            return self._places.await_controller(settings, began_s, why)
        except ClosedError:
            self._note(tried, Outcome.INTERRUPTED)
            raise

    def _again(self, name: str) -> TaskFailed | None:
        """Make an image again that was made and is lost, and publish it if it became another one."""
        for task in (Task(Step.PODMAN, name), Task(Step.ENROOT, name)):
            if task.step is Step.PODMAN or not self._fresh(task):
                failed = self._until_done(task)
                if failed is not None:
                    return failed
                self._tell(Event(EventKind.DONE, task, self._session.remarks.get(task, "")))
        return None

    def _waited(self, task: Task, *, locked: bool) -> bool:
        """Wait while somebody else builds the image; return whether anybody did.

        `locked`: the step has just found somebody there, so a holder that only seems gone is watched.
        """
        lock, told = self._session.checkout.lock(task.name), None
        look = locks.living_holder if locked else locks.holder
        while (other := look(lock)) is not None:
            if other != told:
                told = other
                self._tell(Event(EventKind.WAIT, task, _at_work(other)))
            if self._ended.wait(_LOCK_POLL_S) or self._places.closed:
                raise ClosedError
        return told is not None

    def _made_meanwhile(self, task: Task) -> bool:
        """Whether another run has done the step, so that nothing is left to do."""
        self._session.judge.done(*task)
        fresh = self._fresh(task)
        if fresh:
            self._session.remarks[task] = "by another run"
        return fresh

    def _fresh(self, task: Task) -> bool:
        try:
            return self._session.judge.step(*task).fresh
        except RcError:
            return False  # the step itself will say what is wrong

    def _try(self, task: Task, settings: Slurm, ready_s: float) -> _Tried:
        checkout = self._session.checkout
        wanted, last_s = self._order.wanted(checkout, task), self._order.last_s.get(task)
        self._tell(Event(EventKind.READY, task))
        try:
            try:
                place = self._places.take(wanted, settings, last_s)
            except RcError as error:
                return _Tried(Diagnosis(str(error)), self._entry(task, ready_s))
            try:
                entry = self._entry(task, ready_s, place)
                log = logs.new(checkout.logs(*task))
                self._tell(Event(EventKind.START, task, entry.reason, place.node, log, last_s))
                tried = self._run(task, place, entry, log)
                if tried.verdict is not None and self._ended.is_set():
                    self._note(tried, Outcome.INTERRUPTED)
                    raise ClosedError
                if tried.node_lost:
                    self._places.lose(place)
                elif tried.verdict is not None and tried.verdict.final and not self._keep_going:
                    # Before the place is free for another one.
                    self._places.close()
            finally:
                self._places.leave(place)
        finally:
            self._tell(Event(EventKind.LEFT, task))
        return tried

    def _entry(self, task: Task, ready_s: float, place: Place | None = None) -> HistoryEntry:
        """What history says of a step that starts now, or cannot (no `place`)."""
        return HistoryEntry(
            run=self._history.id,
            image=task.name,
            step=task.step,
            outcome=Outcome.FAILED,
            started_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
            duration_s=0.0,
            queued_s=round(time.monotonic() - ready_s, 3),
            node=(place.node or os.uname().nodename) if place is not None else "",
            job_id=(place.job_id if place is not None else "") or slurm.job_id() or "",
            image_id_before=history.image_id(self._session.checkout.records.get(*task)),
            reason=reason(self._session, task) or "asked for",
        )

    def _note(self, tried: _Tried, outcome: Outcome) -> None:
        """Write a try down in history."""
        checkout, entry = self._session.checkout, tried.entry
        if outcome is Outcome.DONE:
            entry = entry.made(checkout.records.get(*entry.task))
        elif outcome is not Outcome.INTERRUPTED:
            commit = git.commit(checkout.graph.images[entry.image].project.directory)
            if commit is not None:
                entry = replace(entry, commit=commit.id, dirty=commit.dirty)
        shown = checkout.shown(tried.log) if tried.log is not None and tried.log.exists() else ""
        self._history.append(
            replace(
                entry,
                outcome=outcome,
                duration_s=round(tried.took_s, 3),
                log=shown,
                error=tried.verdict.text.partition("\n")[0] if tried.verdict is not None else "",
            )
        )

    def _run(self, task: Task, place: Place, entry: HistoryEntry, log: Path) -> _Tried:
        session, started = self._session, time.monotonic()
        checkout, records = session.checkout, session.checkout.records
        # Taken before the step starts: what failed is what was there then.
        inputs: dict[str, str] = {}
        version = records.version(*task)

        def done() -> bool:
            return records.version(*task) not in {None, version}

        pulse = Pulse(checkout.lock(task.name), place.job_id, str(task), done)
        try:
            before = records.get(*task)
            inputs = session.judge.inputs(*task)
            # Whether another run does the step in between, it sees when it has its image's lock.
            wanted, request = step_command(
                checkout.root, place, *map(str, task), edition(before), str(logs.ending(log))
            )
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("wb") as output:
                logs.point(log.with_name(logs.LATEST), log)
                output.write(f"$ {wanted}\n".encode())
                # Only srun outlives its command.
                hopeless = pulse.lost if place.job_id else None
                returncode = command.stream(wanted, output, grace_s=STEP_GRACE_S, hopeless=hopeless)
            if returncode == 0 and place.job_id and not done():
                self._wait_for_record(done, log, request)
            session.judge.done(*task)
            # The record is the proof, not the status: srun 22.05 returns 0 when the node fails, and a
            # step that has written it may be killed before it ends.
            after = records.get(*task)
            took_s = time.monotonic() - started
            written = after is not None and records.version(*task) != version
            found = verdict(returncode, log, request) if returncode or not written else None
            if pulse.ended:
                found = Diagnosis(_lost(place), elsewhere=True)
            # Unless somebody else has written it.
            if written and not (found and found.locked):
                remark = f"{took_s:.1f} s{f' on {place.node}' if place.node else ''}"
                facts = after.facts if after else None
                earlier = before.facts if before else None
                if facts and earlier and facts.image_id == earlier.image_id:
                    remark += " to the same image as before"
                session.remarks[task] = remark
                if facts and entrypoint_is_news(checkout, task.name, facts, earlier):
                    session.entrypoints[task.name] = facts.entrypoint
                lost = found is not None and found.elsewhere
                return _Tried(None, entry, took_s, inputs, log, lost)
            if found and found.locked and not found.lost:
                logs.remove(log)
        except RcError as error:
            found = Diagnosis(str(error))
        except OSError as error:
            told = refused(error, log)
            if told is None:
                raise
            found = Diagnosis(str(told))
        finally:
            session.judge.done(*task)
            logs.settle(log.parent, checkout.settings.logs)
        took_s = time.monotonic() - started
        return _Tried(found, entry, took_s, inputs, log, bool(found and found.elsewhere))

    def _wait_for_record(self, done: Callable[[], bool], log: Path, request: StepRequest | None) -> None:
        """Wait until this node sees what a step that ended well wrote on another one.

        A network file system may answer from memory that the record is missing or old, for a minute.
        """
        if not verdict(0, log, request).unexplained:
            return
        until_s = time.monotonic() + _LATE_RECORD_S
        while not done() and time.monotonic() < until_s:
            # NFS asks its server again when a directory is opened.
            reading.names(self._session.checkout.records.directory)
            if self._ended.wait(_LATE_POLL_S):
                return

    def _failed(self, task: Task, tried: _Tried) -> TaskFailed:
        checkout = self._session.checkout
        text = tried.verdict.text if tried.verdict else ""
        text = text.removeprefix(f"{checkout.root}/")
        shown = ""
        if tried.log is not None and tried.log.exists():
            shown = checkout.shown(tried.log)
            logs.point(tried.log.with_name(logs.FAILED), tried.log)
        if tried.inputs is not None:
            message = text.partition("\n")[0]
            failed_at = datetime.now(UTC).isoformat(timespec="seconds")
            # Where nothing can be written, the text itself says so.
            with contextlib.suppress(RcError):
                failure = Failure(tried.inputs, failed_at, message, shown)
                checkout.records.put_failure(*task, failure)
        if shown:
            text += f"\n  log:  {shown} (after {tried.took_s:.1f} s)"
            # Most words on what to do next name the command already.
            if "`doit" not in text:
                text += f"\n  run:  doit build:{task.name}"
        return StepFailed(text, shown)


def _lost(place: Place) -> str:
    """What is said of a step whose srun was ended, as it waited for nothing."""
    return str(
        NodeError(
            f"the step is gone from {place.node}, and srun did not notice",
            hint="its slurmstepd may have been killed, see `sinfo --list-reasons`. Run `doit` again:\n"
            "finished steps are kept",
        )
    )


def reason(session: Session, task: Task) -> str:
    """Why a step runs, in words; empty when nothing is stale."""
    try:
        causes = session.judge.step(*task).causes
    except RcError:
        return "its inputs cannot be read"  # the step itself will say what is wrong
    certain = [cause.words for cause in causes if not cause.upstream]
    return ", ".join(dict.fromkeys(certain or [cause.words for cause in causes]))


def _at_work(other: locks.Holder) -> str:
    """Who builds an image now, in words."""
    since = other.since
    with contextlib.suppress(ValueError):
        since = f"{datetime.fromisoformat(since).astimezone():%d %b %H:%M}"
    where = f"{other.node}, job {other.job_id}" if other.job_id else f"{other.node}, process {other.pid}"
    return f"{other.user} is at {other.step} since {since} ({where})"
