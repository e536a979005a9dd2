"""What a run prints: one line when a step starts and when it ends, and a summary that says it all."""

import contextlib
import threading
from collections.abc import Mapping
from typing import TextIO

from doit.exceptions import BaseFail, UnmetDependency
from doit.task import Task

from rc_tasks.engine.backend import step_of
from rc_tasks.engine.dispatch import NotTried
from rc_tasks.engine.session import session
from rc_tasks.state.records import Step


class Reporter:
    """doit's reporter interface; called from several threads under `-n`."""

    desc = "a line for each step, and a summary"

    def __init__(self, outstream: TextIO, options: Mapping[str, object] | None = None) -> None:
        self._out = outstream
        self._lock = threading.Lock()
        self._images: dict[str, str] = {}
        self._failed: list[tuple[str, str]] = []
        self._skipped: list[str] = []
        self._selected: list[str] = []
        self._ending = False

    def initialize(self, tasks: Mapping[str, Task], selected_tasks: list[str]) -> None:
        """Called once, before anything is judged."""
        session().tell = self._tell
        self._selected = selected_tasks

    def get_status(self, task: Task) -> None:
        """A task is about to be judged."""

    def execute_task(self, task: Task) -> None:
        """A step is ready to start: the dispatcher tells when it does."""

    def add_success(self, task: Task) -> None:
        """A step ended well."""
        found = step_of(task.name)
        if found is not None:
            self._images.setdefault(
                found[1], "built" if found[0] is not Step.ENV else "env.toml written"
            )
            if found[0] is not Step.ENV:
                self._images[found[1]] = "built"
            self._write(f"done    {task.name}", session().remarks.get(task.name, ""))

    def add_failure(self, task: Task, fail: BaseFail) -> None:
        """A step failed, or could not be tried."""
        if isinstance(fail, NotTried):
            self._ending = True
            return
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
                self._print(f"ERROR: {text}")
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
            self._print(f"{counted}{'; '.join(parts)}")
        elif not self._failed and not self._ending:
            self._print("nothing to do")
        if not self._failed and not self._ending:
            self._tell_next()

    def _tell_next(self) -> None:
        """What somebody does who has built one image of his own."""
        if len(self._selected) == 1 and self._selected[0].startswith("build:"):
            name = self._selected[0].removeprefix("build:")
            if self._images.get(session().checkout.graph.aliases.get(name, name)) == "built":
                self._print(f"next: doit local {name}")

    def _tell(self, kind: str, text: str) -> None:
        self._print(f"{kind:7} {text}")

    def _write(self, what: str, more: str) -> None:
        self._print(f"{what}  {more}")

    def _print(self, text: str) -> None:
        # Nobody may read it any more, as when a terminal was closed: the run ends as it has to.
        with self._lock, contextlib.suppress(OSError):
            self._out.write(f"{text}\n")
            self._out.flush()
