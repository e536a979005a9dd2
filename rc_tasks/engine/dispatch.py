"""Runs each step where it belongs: as a Slurm job step, or here where there is no Slurm."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from doit.exceptions import TaskFailed

from rc_tasks.engine.order import Order
from rc_tasks.engine.places import ClosedError, Place, Places
from rc_tasks.engine.session import Session
from rc_tasks.engine.verdict import Verdict, verdict
from rc_tasks.errors import RcError
from rc_tasks.model.settings import Runner, Slurm
from rc_tasks.state import locks
from rc_tasks.state.files import refused
from rc_tasks.state.records import Failure, Step, edition
from rc_tasks.tools import command, slurm
from rc_tasks.tools.command import Command
from rc_tasks.tools.slurm import StepRequest

# Longer than what a step gives its own tools: it has to clean up after them.
STEP_GRACE_S = 2 * command.GRACE_S
# How often the lock of an image that others build is looked at.
_LOCK_POLL_S = 1.0


class NotTried(TaskFailed):
    """doit's result of a step that was not started, as the run is ending."""


@dataclass(frozen=True, slots=True)
class _Tried:
    """One try of a step. `verdict` is None when it did its work; `inputs` are those it began with."""

    verdict: Verdict | None
    took_s: float = 0.0
    inputs: Mapping[str, str] | None = None
    log: Path | None = None


class Dispatcher:
    """Runs the steps of one run of doit; called from as many threads as there are ready steps."""

    def __init__(self, session: Session, order: Order, at_once: int, *, keep_going: bool) -> None:
        """`at_once`: see `Places`. Without `keep_going`, nothing is started after a failure."""
        self._session = session
        self._order = order
        self._keep_going = keep_going
        self._places = Places(
            session.checkout,
            runner(session.checkout.settings.runner),
            at_once,
            self._tell,
        )
        self._ended = threading.Event()
        # An image that is made again may be asked for by several steps, and by doit itself.
        self._busy: dict[str, threading.Lock] = {}

    def run(self, step: Step, name: str) -> TaskFailed | None:
        """doit's action of a step: None when it succeeded, else the failure with its whole text."""
        try:
            failed = self._until_done(step, name)
        except ClosedError:
            return NotTried("the run was ending")
        if failed is not None and not self._keep_going:
            self._places.close()
        return failed

    def end(self) -> None:
        """End what runs, and give back the allocation; steps that wait are not tried."""
        self._ended.set()
        self._places.close()
        command.end_all(STEP_GRACE_S)
        self._places.release()

    def _tell(self, kind: str, text: str) -> None:
        # Asked for each time: whoever shows the run comes after us.
        self._session.tell(kind, text)

    def _until_done(self, step: Step, name: str) -> TaskFailed | None:
        """Do a step unless another thread does it first."""
        records = self._session.checkout.records
        seen = records.get(step, name)
        with self._busy.setdefault(f"{step}:{name}", threading.Lock()):
            if records.get(step, name) != seen and self._fresh(step, name):
                return None
            return self._do(step, name)

    def _do(self, step: Step, name: str) -> TaskFailed | None:
        tell, task = self._tell, f"{step}:{name}"
        checkout = self._session.checkout
        settings = checkout.graph.resolve(name).recipe.slurm.apply(checkout.settings.slurm)
        lost, needed = 0, set[str]()
        while True:
            if self._waited(task, name) and self._made_meanwhile(step, name):
                return None
            tried = self._try(step, name, settings)
            found = tried.verdict
            if found is None:
                return None
            first = found.text.partition("\n")[0]
            if found.locked:
                if self._made_meanwhile(step, name):
                    return None
                continue
            if found.needs and found.needs not in needed:
                needed.add(found.needs)
                tell("again", f"podman:{found.needs}  {first}")
                failed = self._again(found.needs)
                if failed is not None:
                    return failed
            elif found.elsewhere and lost < settings.retries:
                lost += 1
                tell("retry", f"{task}  {first} (try {lost + 1} of {settings.retries + 1})")
            else:
                return self._failed(step, name, tried)

    def _again(self, name: str) -> TaskFailed | None:
        """Make an image again that was made and is lost, and publish it if it became another one."""
        for step in (Step.PODMAN, Step.ENROOT):
            if step is Step.PODMAN or not self._fresh(step, name):
                failed = self._until_done(step, name)
                if failed is not None:
                    return failed
                self._tell("done", f"{step}:{name}  {self._session.remarks.get(f'{step}:{name}', '')}")
        return None

    def _waited(self, task: str, name: str) -> bool:
        """Wait for whoever else is building the image; whether there was anybody."""
        lock, told = self._session.checkout.lock(name), None
        while (other := locks.holder(lock)) is not None:
            if (other.step, other.pid) != told:
                told = other.step, other.pid
                self._tell("wait", f"{task}  {_at_work(other)}")
            if self._ended.wait(_LOCK_POLL_S) or self._places.closed:
                raise ClosedError
        return told is not None

    def _made_meanwhile(self, step: Step, name: str) -> bool:
        """Whether another run has done the step, so that nothing is left to do."""
        self._session.judge.done(step, name)
        fresh = self._fresh(step, name)
        if fresh:
            self._session.remarks[f"{step}:{name}"] = "by another run"
        return fresh

    def _fresh(self, step: Step, name: str) -> bool:
        try:
            return self._session.judge.step(step, name).fresh
        except RcError:
            return False  # the step itself will say what is wrong

    def _try(self, step: Step, name: str, settings: Slurm) -> _Tried:
        task = f"{step}:{name}"
        wanted = self._order.wanted(self._session.checkout, step, name)
        try:
            place = self._places.take(wanted, settings, self._order.last_s.get(task))
        except RcError as error:
            return _Tried(Verdict(str(error)))
        try:
            self._tell("start", f"{task}  {reason(self._session, step, name) or 'asked for'}")
            tried = self._run(step, name, place)
            if tried.verdict is not None:
                if self._ended.is_set():
                    raise ClosedError
                if tried.verdict.elsewhere:
                    self._places.lose(place)
        finally:
            self._places.leave(place)
        return tried

    def _run(self, step: Step, name: str, place: Place) -> _Tried:
        session, task, started = self._session, f"{step}:{name}", time.monotonic()
        checkout, records = session.checkout, session.checkout.records
        log = _new_log(checkout.logs(step, name))
        # Taken before the step starts: what failed is what was there then.
        inputs: dict[str, str] = {}
        try:
            before, version = records.get(step, name), records.version(step, name)
            inputs = session.judge.inputs(step, name)
            # Whether another run does the step in between, it sees when it has its image's lock.
            wanted, request = step_command(checkout.root, place, str(step), name, edition(before))
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("wb") as output:
                output.write(f"$ {wanted}\n".encode())
                returncode = command.stream(wanted, output, grace_s=STEP_GRACE_S)
            session.judge.done(step, name)
            # The record is the proof, not the status: srun 22.05 returns 0 when the node fails.
            after = records.get(step, name)
            took_s = time.monotonic() - started
            if returncode == 0 and after and records.version(step, name) != version:
                remark = f"{took_s:.1f} s{f' on {place.node}' if place.node else ''}"
                if before and before.facts and before.facts == after.facts:
                    remark += " to the same image as before"
                session.remarks[task] = remark
                return _Tried(None)
            found = verdict(returncode, log, request)
            if found.locked:
                log.unlink()
        except RcError as error:
            found = Verdict(str(error))
        except OSError as error:
            told = refused(error, log)
            if told is None:
                raise
            found = Verdict(str(told))
        finally:
            session.judge.done(step, name)
        return _Tried(found, time.monotonic() - started, inputs, log)

    def _failed(self, step: Step, name: str, tried: _Tried) -> TaskFailed:
        checkout = self._session.checkout
        text = tried.verdict.text if tried.verdict else ""
        text = text.removeprefix(f"{checkout.root}/")
        shown = checkout.shown(tried.log) if tried.log is not None and tried.log.exists() else ""
        if tried.inputs is not None:
            message = text.partition("\n")[0]
            failed_at = datetime.now(UTC).isoformat(timespec="seconds")
            # Where nothing can be written, the text itself says so.
            with contextlib.suppress(RcError):
                checkout.records.put_failure(
                    step, name, Failure(tried.inputs, failed_at, message, shown)
                )
        return TaskFailed(f"{text}\n  log:  {shown} (after {tried.took_s:.1f} s)" if shown else text)


def step_command(
    root: Path, place: Place, action: str, *arguments: str
) -> tuple[Command, StepRequest | None]:
    """`python -m rc_tasks.steps action arguments…` in its place, and what is asked of Slurm for it."""
    inner = Command((sys.executable, "-m", "rc_tasks.steps", action, *arguments), cwd=root)
    if not place.job_id:
        return inner, None
    request = StepRequest(
        job_name=":".join((action, *arguments[:1])),
        time_limit_min=place.settings.time_limit_min,
        cpus=place.cpus,
        node=place.node,
        # Of an allocation of ours they are part already.
        extra=place.settings.extra if slurm.job_id() is not None else (),
    )
    return slurm.srun(inner, request, allocation=None if slurm.job_id() else place.job_id), request


def runner(wanted: Runner) -> Runner:
    """Where steps run: nothing heavy ever runs on a login node of a cluster unless it is asked for."""
    if wanted is Runner.AUTO:
        return Runner.SLURM if slurm.configured() else Runner.LOCAL
    return wanted


def reason(session: Session, step: Step, name: str) -> str:
    """Why a step runs, in words; empty when nothing is stale."""
    try:
        causes = session.judge.step(step, name).causes
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


def _new_log(directory: Path) -> Path:
    start = datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%S.%f")[:-3] + "Z"
    return directory / f"{start}.{os.getpid()}.log"
