"""What a run prints: one line when a step starts and when it ends, and a summary that says it all."""

import threading
import time
from collections.abc import Mapping
from typing import TextIO

from doit.exceptions import BaseFail, UnmetDependency
from doit.task import Task

from rc_tasks.engine.backend import step_of
from rc_tasks.engine.session import session
from rc_tasks.engine.tasks import Fresh
from rc_tasks.state.records import Step


class Reporter:
    """doit's reporter interface; called from several threads under `-n`."""

    desc = "a line for each step, and a summary"

    def __init__(self, outstream: TextIO, options: Mapping[str, object] | None = None) -> None:
        self._out = outstream
        self._lock = threading.Lock()
        self._started: dict[str, float] = {}
        self._images: dict[str, str] = {}
        self._failed: list[tuple[str, str]] = []
        self._skipped: list[str] = []

    def initialize(self, tasks: Mapping[str, Task], selected_tasks: list[str]) -> None:
        """Called once, before anything is judged."""

    def get_status(self, task: Task) -> None:
        """A task is about to be judged."""

    def execute_task(self, task: Task) -> None:
        """A step starts."""
        if task.actions:
            self._started[task.name] = time.monotonic()
            fresh = next((asked for asked, *_ in task.uptodate if isinstance(asked, Fresh)), None)
            reason = fresh.reason() if fresh is not None else ""
            if step_of(task.name) is not None:
                self._write(f"start   {task.name}", reason or "asked for")

    def add_success(self, task: Task) -> None:
        """A step ended well."""
        found = step_of(task.name)
        if found is not None:
            self._images.setdefault(
                found[1], "built" if found[0] is not Step.ENV else "env.toml written"
            )
            if found[0] is not Step.ENV:
                self._images[found[1]] = "built"
            remark = session().remarks.get(task.name, "")
            self._write(f"done    {task.name}", " ".join(filter(None, (self._took(task), remark))))

    def add_failure(self, task: Task, fail: BaseFail) -> None:
        """A step failed, or could not be tried."""
        if isinstance(fail, UnmetDependency):
            # Of the group `build` and of groups of versions there is nothing more to say.
            kind, _, name = task.name.partition(":")
            if kind == "build" and task.has_subtask:
                self._skipped.append(name)
            return
        text = fail.get_msg().strip()
        shown = task.name.removeprefix("_")
        # The images of a cycle share one error.
        same = next((name for name, told in self._failed if told == text), None)
        self._failed.append((shown, text))
        if shown == task.name:
            self._images[task.name.partition(":")[2]] = "failed"
        self._write(f"FAILED  {shown}", f"as {same}" if same else text.replace("\n", "\n        "))

    def skip_uptodate(self, task: Task) -> None:
        """A step has nothing to do."""
        found = step_of(task.name)
        if found is not None:
            self._images.setdefault(found[1], "fresh")

    def skip_ignore(self, task: Task) -> None:
        """`doit ignore` said to leave it out."""
        self._write(f"ignored {task.name}", f"doit forget {task.name} takes it up again")

    def cleanup_error(self, exception: BaseFail) -> None:
        """A teardown failed."""
        self._write("FAILED  cleaning up", exception.get_msg())

    def runtime_error(self, msg: str) -> None:
        """doit itself cannot go on."""
        self._failed.append(("doit", msg))

    def teardown_task(self, task: Task) -> None:
        """A teardown starts."""

    def complete_run(self) -> None:
        """The run has ended: say what was done, what was not, and where to look."""
        for name, text in self._failed:
            if name == "doit":
                self._out.write(f"ERROR: {text}\n")
        states = list(self._images.values())
        parts = [
            f"{count} {words}"
            for words in ("built", "env.toml written", "fresh")
            if (count := states.count(words))
        ]
        failed = [name for name, _ in self._failed]
        if failed:
            parts.append(f"failed: {', '.join(failed)}")
        skipped = [name for name in self._skipped if self._images.get(name) != "failed"]
        if skipped:
            parts.append(f"not tried because of that: {', '.join(skipped)}")
        if parts:
            count = len(states) + len(skipped)
            counted = f"{count} image{'' if count == 1 else 's'}: " if count else ""
            self._out.write(f"{counted}{'; '.join(parts)}\n")
        elif not self._failed:
            self._out.write("nothing to do\n")
        self._out.flush()

    def _took(self, task: Task) -> str:
        return f"{time.monotonic() - self._started.get(task.name, time.monotonic()):.1f} s"

    def _write(self, what: str, more: str) -> None:
        with self._lock:
            self._out.write(f"{what}  {more}\n")
            self._out.flush()
