"""Dispatcher of steps: runs each as a Slurm job step, or on this host without Slurm, and retries it."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from doit.exceptions import TaskFailed
from msgspec import Struct
from msgspec.structs import replace

from rc_tasks.engine.controller import MOST_MISSES, ClosedError
from rc_tasks.engine.events import Event, EventKind
from rc_tasks.engine.outline import reason
from rc_tasks.engine.run.allocator import Allocator, Slot
from rc_tasks.engine.run.diagnosis import Diagnosis, diagnose
from rc_tasks.engine.run.step_command import step_command
from rc_tasks.engine.runner import runner
from rc_tasks.engine.schedule.estimates import Order
from rc_tasks.engine.session import Session
from rc_tasks.engine.srun_watch import SrunWatch
from rc_tasks.errors import NodeError, RcError, SlurmError
from rc_tasks.model.config.settings import Slurm
from rc_tasks.state import history, logs
from rc_tasks.state.disk import locks, reading
from rc_tasks.state.disk.files import refused
from rc_tasks.state.edf.values import entrypoint_is_news
from rc_tasks.state.history import HistoryEntry, Outcome
from rc_tasks.state.records.records import Failure, Step, Task, record_digest
from rc_tasks.tools import command, git, slurm
from rc_tasks.tools.command import Command
from rc_tasks.tools.slurm_request import StepRequest

# A step needs longer than the grace that it gives its own tools: it cleans up after them.
STEP_GRACE_S = 2 * command.GRACE_S
# How often the lock of an image that another process builds is read.
_LOCK_POLL_S = 1.0
# Clients of network file systems cache the content of a directory for 60 s at most, by default.
_LATE_RECORD_S = 75.0
_LATE_POLL_S = 0.5
# How long the threads of a run that ends have to write the history of their steps.
_LAST_WORDS_S = 5.0


class NotTried(TaskFailed):
    """doit's result for a step that was not started, because the run is ending."""


class StepFailed(TaskFailed):
    """doit's result for a step that failed; `log` is the path of its log, or empty."""

    def __init__(self, text: str, log: str = "") -> None:
        super().__init__(text)
        self.log = log


class _Attempt(Struct, frozen=True):
    """One attempt at a step. `diagnosis` is None when it succeeded; `inputs` are those at its start.

    `entry` is its history entry without the outcome. `node_failed`: the node failed, perhaps after the
    step had succeeded.
    """

    diagnosis: Diagnosis | None
    entry: HistoryEntry
    took_s: float = 0.0
    inputs: Mapping[str, str] | None = None
    log: Path | None = None
    node_failed: bool = False


class Dispatcher:
    """Runs the steps of one run of doit; called from as many threads as there are ready steps."""

    def __init__(self, session: Session, order: Order, at_once: int, *, keep_going: bool) -> None:
        """Take `at_once` as `Allocator` does. Without `keep_going`, nothing starts after a failure."""
        self._session = session
        self._order = order
        self._keep_going = keep_going
        self._history = history.RunHistory(session.checkout.history)
        self._allocator = Allocator(
            session.checkout,
            runner(session.checkout.settings.runner),
            at_once,
            self._tell,
        )
        self._ended = threading.Event()
        self._active = 0
        self._idle = threading.Condition()
        # Several steps, and doit itself, may ask for an image that has to be built again.
        self._busy: dict[Task, threading.Lock] = {}

    def run(self, task: Task) -> TaskFailed | None:
        """Run a step as its doit action; return None when it succeeded, else the failure.

        The text of the failure is complete. Raise OSError that no user can fix.
        """
        with self._idle:
            self._active += 1
        try:
            failed = self._run_once(task)
        except ClosedError:
            return NotTried("the run was ending")
        except OSError as error:
            # The state cannot be read; `_run_process` reports the errors of the step itself.
            reported = refused(error)
            if reported is None:
                raise
            failed = TaskFailed(str(reported))
        finally:
            with self._idle:
                self._active -= 1
                self._idle.notify_all()
        if failed is not None and not self._keep_going:
            self._allocator.close()
        return failed

    def end(self) -> tuple[str, ...]:
        """End running steps and release the allocation; waiting steps do not start.

        Return the IDs of jobs that may still run, as Slurm did not confirm their end.
        """
        self._ended.set()
        self._allocator.close()
        command.end_all(STEP_GRACE_S)
        with self._idle:
            # After Ctrl-C doit does not wait for its threads.
            self._idle.wait_for(lambda: not self._active, _LAST_WORDS_S)
        unconfirmed = self._allocator.release()
        history.trim(self._history.directory, self._session.checkout.settings.history.days)
        return unconfirmed

    def _tell(self, event: Event) -> None:
        # Look it up each time: the reporter sets it after this object is made.
        self._session.tell(event)

    def _run_once(self, task: Task) -> TaskFailed | None:
        """Run a step unless another thread runs it first."""
        records = self._session.checkout.records
        seen = records.get(*task)
        with self._busy.setdefault(task, threading.Lock()):
            if records.get(*task) != seen and self._fresh(task):
                return None
            return self._run_with_retries(task)

    def _run_with_retries(self, task: Task) -> TaskFailed | None:
        """Attempt a step until it succeeds or no other attempt would help."""
        checkout = self._session.checkout
        node = checkout.graph.resolve(task.name)
        settings = node.options.slurm.apply(checkout.settings.slurm_for(node.project.machine))
        node_failures, missed, needed = 0, 0, set[str]()
        locked, ready_s = False, time.monotonic()
        while True:
            if self._wait_for_builder(task, locked=locked) and self._done_meanwhile(task):
                return None
            began_s = time.monotonic()
            attempt = self._attempt_in_slot(task, settings, ready_s)
            diagnosis = attempt.diagnosis
            if diagnosis is None:
                self._note(attempt, Outcome.DONE)
                return None
            first = diagnosis.text.partition("\n")[0]
            locked = diagnosis.locked
            if locked:
                if diagnosis.lost_lock:
                    self._note(attempt, Outcome.RETRIED)
                    self._tell(Event(EventKind.RETRY, task, first))
                if self._done_meanwhile(task):
                    return None
                continue
            if diagnosis.needs and diagnosis.needs not in needed:
                needed.add(diagnosis.needs)
                self._note(attempt, Outcome.RETRIED)
                self._tell(Event(EventKind.AGAIN, Task(Step.PODMAN, diagnosis.needs), first))
                failed = self._rebuild(diagnosis.needs)
                if failed is not None:
                    return failed
            elif diagnosis.unreachable and missed < MOST_MISSES:
                # The step has not begun, so this does not count as a retry.
                try:
                    missed += not self._controller_back(attempt, settings, began_s)
                except SlurmError as error:
                    attempt = replace(attempt, diagnosis=Diagnosis(str(error)))
                    self._note(attempt, Outcome.FAILED)
                    return self._failed(task, attempt)
                self._note(attempt, Outcome.RETRIED)
            elif diagnosis.elsewhere and node_failures < settings.retries:
                node_failures += 1
                self._note(attempt, Outcome.RETRIED)
                retry = f"{first} (try {node_failures + 1} of {settings.retries + 1})"
                self._tell(Event(EventKind.RETRY, task, retry))
            else:
                self._note(attempt, Outcome.FAILED)
                return self._failed(task, attempt)
            ready_s = time.monotonic()

    def _controller_back(self, attempt: _Attempt, settings: Slurm, began_s: float) -> bool:
        """Wait for Slurm's controller after an attempt missed it; return whether it was absent.

        Raise SlurmError when the allocation ends first.
        """
        text = attempt.diagnosis.text if attempt.diagnosis is not None else ""
        why = next((line[4:] for line in text.splitlines() if line.startswith("  | ")), "")
        try:
            return self._allocator.await_controller(settings, began_s, why)
        except ClosedError:
            self._note(attempt, Outcome.INTERRUPTED)
            raise

    def _rebuild(self, name: str) -> TaskFailed | None:
        """Rebuild an image that has gone since its build, and publish it if its ID changed."""
        for task in (Task(Step.PODMAN, name), Task(Step.ENROOT, name)):
            if task.step is Step.PODMAN or not self._fresh(task):
                failed = self._run_once(task)
                if failed is not None:
                    return failed
                self._tell(Event(EventKind.DONE, task, self._session.remarks.get(task, "")))
        return None

    def _wait_for_builder(self, task: Task, *, locked: bool) -> bool:
        """Wait while another process builds the image; return whether one did.

        `locked`: the step has just found the lock held, so a holder that only seems dead is watched.
        """
        lock, reported = self._session.checkout.lock(task.name), None
        look = locks.living_holder if locked else locks.holder
        while (other := look(lock)) is not None:
            if other != reported:
                reported = other
                self._tell(Event(EventKind.WAIT, task, _describe(other)))
            if self._ended.wait(_LOCK_POLL_S) or self._allocator.closed:
                raise ClosedError
        return reported is not None

    def _done_meanwhile(self, task: Task) -> bool:
        """Return whether another run has done the step, so that nothing is left to do."""
        self._session.judge.step_has_run(*task)
        fresh = self._fresh(task)
        if fresh:
            self._session.remarks[task] = "by another run"
        return fresh

    def _fresh(self, task: Task) -> bool:
        try:
            return self._session.judge.step(*task).fresh
        except RcError:
            return False  # the step itself will report the error

    def _attempt_in_slot(self, task: Task, settings: Slurm, ready_s: float) -> _Attempt:
        """Wait for a slot, and run a step in it."""
        checkout = self._session.checkout
        ready, last_s = self._order.ready_step(checkout, task), self._order.last_s.get(task)
        self._tell(Event(EventKind.READY, task))
        try:
            try:
                slot = self._allocator.take(ready, settings, last_s)
            except RcError as error:
                return _Attempt(Diagnosis(str(error)), self._entry(task, ready_s))
            try:
                entry = self._entry(task, ready_s, slot)
                log = logs.new(checkout.logs(*task))
                self._tell(Event(EventKind.START, task, entry.reason, slot.node, log, last_s))
                attempt = self._run_process(task, slot, entry, log)
                if attempt.diagnosis is not None and self._ended.is_set():
                    self._note(attempt, Outcome.INTERRUPTED)
                    raise ClosedError
                if attempt.node_failed:
                    self._allocator.drop_node(slot)
                elif attempt.diagnosis is not None and attempt.diagnosis.final and not self._keep_going:
                    # Close before the slot is free, or another step would start in it.
                    self._allocator.close()
            finally:
                self._allocator.free(slot)
        finally:
            self._tell(Event(EventKind.LEFT, task))
        return attempt

    def _entry(self, task: Task, ready_s: float, slot: Slot | None = None) -> HistoryEntry:
        """Return the history entry of a step that starts now, or cannot start (no `slot`)."""
        return HistoryEntry(
            run=self._history.id,
            image=task.name,
            step=task.step,
            outcome=Outcome.FAILED,
            started_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
            duration_s=0.0,
            queued_s=round(time.monotonic() - ready_s, 3),
            node=(slot.node or os.uname().nodename) if slot is not None else "",
            job_id=(slot.job_id if slot is not None else "") or slurm.job_id() or "",
            image_id_before=history.image_id(self._session.checkout.records.get(*task)),
            reason=reason(self._session, task) or "asked for",
        )

    def _note(self, attempt: _Attempt, outcome: Outcome) -> None:
        """Append an attempt to the history."""
        checkout, entry = self._session.checkout, attempt.entry
        if outcome is Outcome.DONE:
            entry = entry.made(checkout.records.get(*entry.task))
        elif outcome is not Outcome.INTERRUPTED:
            commit = git.commit(*checkout.graph.images[entry.image].project.sources)
            if commit is not None:
                entry = replace(entry, commit=commit.id, dirty=commit.dirty)
        log = checkout.shown(attempt.log) if attempt.log is not None and attempt.log.exists() else ""
        self._history.append(
            replace(
                entry,
                outcome=outcome,
                duration_s=round(attempt.took_s, 3),
                log=log,
                error=attempt.diagnosis.text.partition("\n")[0] if attempt.diagnosis is not None else "",
            )
        )

    def _run_process(self, task: Task, slot: Slot, entry: HistoryEntry, log: Path) -> _Attempt:
        """Run the process of a step, and diagnose its failure."""
        session, started = self._session, time.monotonic()
        checkout, records = session.checkout, session.checkout.records
        # Read the inputs before the step starts: a failure belongs to the files as they were then.
        inputs: dict[str, str] = {}
        version = records.version(*task)

        def done() -> bool:
            return records.version(*task) not in {None, version}

        watch = SrunWatch(checkout.lock(task.name), slot.job_id, str(task), done)
        try:
            before = records.get(*task)
            inputs = session.judge.inputs(*task)
            # The digest lets the step notice, once it has the lock, that another run has done it.
            invocation, request = step_command(
                checkout.root, slot, *map(str, task), record_digest(before), str(logs.error_report(log))
            )
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("wb") as output:
                logs.point(log.with_name(logs.LATEST), log)
                output.write(f"$ {_repeatable_command(checkout.root, slot, task)}\n".encode())
                # Only srun can outlive its command.
                hopeless = watch.srun_hangs if slot.job_id else None
                returncode = command.stream(invocation, output, grace_s=STEP_GRACE_S, hopeless=hopeless)
            if returncode == 0 and slot.job_id and not done():
                self._wait_for_record(done, log, request)
            session.judge.step_has_run(*task)
            # The record proves success, the exit status does not: srun 22.05 returns 0 when the node
            # fails, and a step that has written its record may be killed before it ends.
            after = records.get(*task)
            took_s = time.monotonic() - started
            written = after is not None and records.version(*task) != version
            diagnosis = diagnose(returncode, log, request) if returncode or not written else None
            if watch.hung:
                diagnosis = Diagnosis(_gone(slot), elsewhere=True)
            # When the image was locked, another process has written the record.
            if written and not (diagnosis and diagnosis.locked):
                remark = f"{took_s:.1f} s{f' on {slot.node}' if slot.node else ''}"
                facts = after.facts if after else None
                earlier = before.facts if before else None
                if facts and earlier and facts.image_id == earlier.image_id:
                    remark += " to the same image as before"
                session.remarks[task] = remark
                if facts and entrypoint_is_news(checkout, task.name, facts, earlier):
                    session.entrypoints[task.name] = facts.entrypoint
                return _Attempt(
                    None, entry, took_s, inputs, log, node_failed=bool(diagnosis and diagnosis.elsewhere)
                )
            if diagnosis and diagnosis.locked and not diagnosis.lost_lock:
                logs.remove(log)
        except RcError as error:
            diagnosis = Diagnosis(str(error))
        except OSError as error:
            reported = refused(error, log)
            if reported is None:
                raise
            diagnosis = Diagnosis(str(reported))
        finally:
            session.judge.step_has_run(*task)
            logs.settle(log.parent, checkout.settings.logs)
        took_s = time.monotonic() - started
        return _Attempt(diagnosis, entry, took_s, inputs, log, bool(diagnosis and diagnosis.elsewhere))

    def _wait_for_record(self, done: Callable[[], bool], log: Path, request: StepRequest | None) -> None:
        """Wait until this node sees the record that a successful step wrote on another node.

        A network file system may answer from its cache, for a minute, that the record is missing or old.
        """
        if not diagnose(0, log, request).unexplained:
            return
        until_s = time.monotonic() + _LATE_RECORD_S
        while not done() and time.monotonic() < until_s:
            # NFS asks its server again when a directory is opened.
            reading.names(self._session.checkout.records.directory)
            if self._ended.wait(_LATE_POLL_S):
                return

    def _failed(self, task: Task, attempt: _Attempt) -> TaskFailed:
        checkout = self._session.checkout
        text = attempt.diagnosis.text if attempt.diagnosis else ""
        text = text.removeprefix(f"{checkout.root}/")
        log_path = ""
        if attempt.log is not None and attempt.log.exists():
            log_path = checkout.shown(attempt.log)
            logs.point(attempt.log.with_name(logs.FAILED), attempt.log)
        if attempt.inputs is not None:
            message = text.partition("\n")[0]
            failed_at = datetime.now(UTC).isoformat(timespec="seconds")
            # Where nothing can be written, the text of the failure says so.
            with contextlib.suppress(RcError):
                failure = Failure(attempt.inputs, failed_at, message, log_path)
                checkout.records.put_failure(*task, failure)
        if log_path:
            text += f"\n  log:  {log_path} (after {attempt.took_s:.1f} s)"
            # Most hints name the command already.
            if "`doit" not in text:
                text += f"\n  run:  doit build:{task.name}"
        return StepFailed(text, log_path)


def _repeatable_command(root: Path, slot: Slot, task: Task) -> Command:
    """Return the command of a step, to be run again.

    It lacks the digest of the record, by which a second run would find the step done.
    """
    invocation, _ = step_command(root, slot, *map(str, task))
    return invocation


def _gone(slot: Slot) -> str:
    """Return the error of a step that has gone while its srun still waited."""
    return str(
        NodeError(
            f"the step is gone from {slot.node}, and srun did not notice",
            hint="its slurmstepd may have been killed, see `sinfo --list-reasons`. Run `doit` again:\n"
            "finished steps are kept",
        )
    )


def _describe(other: locks.Holder) -> str:
    """Describe the process that builds an image."""
    since = other.since
    with contextlib.suppress(ValueError):
        since = f"{datetime.fromisoformat(since).astimezone():%d %b %H:%M}"
    where = f"{other.node}, job {other.job_id}" if other.job_id else f"{other.node}, process {other.pid}"
    return f"{other.user} has been running {other.step} since {since} ({where})"
