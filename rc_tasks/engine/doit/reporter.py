"""doit reporter: reports the events of a run, and prints a summary at its end."""

import contextlib
import os
import threading
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, TextIO

from doit.exceptions import BaseFail, UnmetDependency
from doit.task import Task as DoitTask
from msgspec import Struct

from rc_tasks.engine.doit.selection import reach
from rc_tasks.engine.events import Event, EventKind
from rc_tasks.engine.run.dispatcher import NotTried, StepFailed
from rc_tasks.engine.schedule.estimates import ignored_for
from rc_tasks.engine.schedule.ignored import how_to_undo, marked
from rc_tasks.engine.session import report_without_display, session
from rc_tasks.model.edf.entrypoint import Behaviour, note
from rc_tasks.state.records.records import Step, Task
from rc_tasks.util.text import listed, printable

if TYPE_CHECKING:
    from rc_tasks.engine.progress.plain import Display

# Of more images than these, only the number is printed.
_MOST_NAMED = 20
# The prefix of groups.
_BUILD = "build:"


class FailedTask(Struct, frozen=True):
    """A failed task and its image; `log` may be empty.

    `same` names an earlier task that failed with the same text, or is empty.
    """

    task: str
    image: str
    text: str
    log: str
    same: str


class Reporter:
    """doit's reporter interface: counts results, and passes events to a display."""

    desc = "a line for each step, and a summary"

    def __init__(self, outstream: TextIO, options: Mapping[str, object] | None = None) -> None:
        self._out = outstream
        self._display: Display | None = None
        # It must be reentrant: a signal handler may need it while its own thread holds it.
        self._begins = threading.RLock()
        self._closed = False
        self._tasks: Mapping[str, DoitTask] = {}
        self._selected: list[str] = []
        # The result of each image, and the steps that have ended or will not run.
        self._images: dict[str, str] = {}
        self._settled: set[Task] = set()
        self._failed: list[FailedTask] = []
        self._skipped: list[str] = []
        self._broken: list[str] = []
        self._ending = self._interrupted = False
        self._last: EventKind | None = None

    def initialize(self, tasks: Mapping[str, DoitTask], selected_tasks: list[str]) -> None:
        """Take the tasks of the run; doit calls this once, before any task runs."""
        current = session()
        current.tell = self._tell
        self._tasks, self._selected = tasks, selected_tasks
        self._images = dict.fromkeys(current.fresh, "fresh")

    def get_status(self, task: DoitTask) -> None:
        """Ignore that doit is about to judge a task."""

    def execute_task(self, task: DoitTask) -> None:
        """Ignore that a step is ready: the dispatcher reports its start."""

    def add_success(self, task: DoitTask) -> None:
        """Count a step that succeeded."""
        task_done = Task.parse(task.name)
        if task_done is not None:
            if task_done.step is not Step.ENV:
                self._images[task_done.name] = "built"
            elif self._images.get(task_done.name) != "built":
                self._images[task_done.name] = "env.toml written"
            self._settled.add(task_done)
            self._tell(Event(EventKind.DONE, task_done, session().remarks.get(task_done, "")))

    def add_failure(self, task: DoitTask, fail: BaseFail) -> None:
        """Count a step that failed or could not start."""
        if isinstance(fail, NotTried):
            self._ending = True
            return
        if isinstance(fail, UnmetDependency):
            # The group `build` and groups of versions add nothing to the summary.
            untried = Task.parse(task.name)
            if untried is not None:
                self._skipped.append(untried.name)
                self._settle(untried)
            elif task.name.startswith(_BUILD) and task.has_subtask:
                self._skipped.append(task.name.removeprefix(_BUILD))
            return
        text = fail.get_msg().strip()
        task_name = task.name.removeprefix("_")
        step = Task.parse(task.name)
        # The images of a cycle share one error.
        same = next((failure.task for failure in self._failed if failure.text == text), "")
        log = fail.log if isinstance(fail, StepFailed) else ""
        image = step.name if step is not None else task_name.removeprefix(_BUILD)
        self._failed.append(FailedTask(task_name, image, text, log, same))
        if task_name == task.name:
            self._images[image] = "failed"
        if step is not None:
            self._settled.add(step)
        self._tell(Event(EventKind.FAILED, step, f"as {same}" if same else text, about=task_name))

    def skip_uptodate(self, task: DoitTask) -> None:
        """Count a step that has nothing to do."""
        fresh = Task.parse(task.name)
        if fresh is not None:
            self._images.setdefault(fresh.name, "fresh")
            self._settle(fresh)

    def skip_ignore(self, task: DoitTask) -> None:
        """Report a task that `doit ignore` leaves out."""
        step = Task.parse(task.name)
        if step is None:
            words = f"`doit ignore --undo {task.name}` ends that"
            self._tell(Event(EventKind.IGNORED, None, words, about=task.name))
            return
        self._settle(step)
        if self._images.get(step.name) == "ignored" or (
            step.step is Step.ENV and self._images.get(step.name) == "built"
        ):
            return
        self._images[step.name] = "ignored"
        expected = session().expected
        checkout = session().checkout
        tasks = marked(checkout)
        reason = ignored_for(expected.before, tasks).get(step, step) if expected else step
        because = f"because {reason} is; " if reason != step else ""
        words = f"{because}{how_to_undo(checkout, reason)}"
        self._tell(Event(EventKind.IGNORED, step, words))

    def cleanup_error(self, exception: BaseFail) -> None:
        """Report a teardown that failed."""
        self._tell(Event(EventKind.FAILED, words=exception.get_msg(), about="cleaning up"))

    def runtime_error(self, msg: str) -> None:
        """Keep an error of doit itself for the summary."""
        self._broken.append(msg)

    def teardown_task(self, task: DoitTask) -> None:
        """Ignore that a teardown starts."""

    def complete_run(self) -> None:
        """Print the summary at the end of the run."""
        if self._close():
            for line in self._summary():
                self._print(line)

    def _summary(self) -> Iterator[str]:
        yield from (f"ERROR: {text}" for text in self._broken)
        untried = self._untried()
        # A single failure need not be printed again when it is the last line above.
        again = len(self._failed) > 1 or (bool(self._failed) and self._last is not EventKind.FAILED)
        if again:
            yield "failed:"
            for first in self._failed:
                if not first.same:
                    group = [
                        failure for failure in self._failed if first.task in (failure.task, failure.same)
                    ]
                    waiting = [name for failure in group for name in untried.get(failure.task, [])]
                    yield from _again(group, waiting)
        unfinished = {name for names in untried.values() for name in names}
        states = [state for name, state in self._images.items() if name not in unfinished]
        parts = [
            f"{count} {words}"
            for words in ("built", "env.toml written", "fresh", "ignored")
            if (count := states.count(words))
        ]
        if again:
            parts.append(f"{len(self._failed)} failed")
        elif self._failed:
            parts.append(f"failed: {self._failed[0].task}")
        others = untried.pop("", [])
        waiting = [name for names in untried.values() for name in names]
        if waiting:
            names = f"{len(waiting)}" if again else listed(waiting, _MOST_NAMED)
            parts.append(f"not tried because of that: {names}")
        if others and self._interrupted:
            parts.append(f"{len(others)} not finished")
        elif others:
            parts.append(f"{len(others)} not started: --continue goes on with them")
        if parts:
            count = len(states) + len(waiting) + len(others)
            counted = f"{count} image{'' if count == 1 else 's'}: " if count else ""
            yield f"{counted}{'; '.join(parts)}"
        elif not self._broken and not self._ending:
            yield "nothing to do"
        yield from self._notes()
        if not self._failed and not self._broken and not self._ending:
            yield from self._next()

    def _notes(self) -> Iterator[str]:
        """Yield notes on what the images' ENTRYPOINTs do."""
        for behaviour in Behaviour:
            behaviours = session().entrypoints.items()
            names = sorted(name for name, found_behaviour in behaviours if found_behaviour is behaviour)
            if names:
                yield from f"note: {note(behaviour, names)}".splitlines()

    def _untried(self) -> dict[str, list[str]]:
        """Return the unfinished images by the failed task that they wait for; "" stands for no task."""
        by_task: dict[str, list[str]] = {}
        if not self._failed and not self._ending:
            return by_task
        graph = session().checkout.graph
        failed = {failure.image: failure.task for failure in self._failed}
        # Include images with some steps done: they may still have to be published.
        names = dict.fromkeys(task.name for task in self._left())
        for name in [*names, *self._skipped]:
            if name in failed or name not in graph.images:
                continue
            below = {base for parent in graph.with_bases([name]) for base in graph.images[parent].bases}
            task = next((task for image, task in failed.items() if image in below), "")
            if name not in by_task.setdefault(task, []):
                by_task[task].append(name)
        return by_task

    def _left(self) -> list[Task]:
        """Return the selected steps that have not ended yet, bases first."""
        expected = session().expected
        stale = expected.stale_s if expected is not None else {}
        reached = reach(self._tasks, self._selected) if stale else {}
        return [task for task in stale if str(task) in reached and task not in self._settled]

    def _next(self) -> Iterator[str]:
        """Suggest `doit local` after a build of a single image."""
        arguments = session().arguments
        if len(arguments) == 1 and arguments[0].startswith(_BUILD):
            name = arguments[0].removeprefix(_BUILD)
            if self._images.get(session().checkout.graph.aliases.get(name, name)) == "built":
                yield f"next: doit local {name}"

    def _settle(self, task: Task) -> None:
        self._settled.add(task)
        if self._display is not None:
            self._tell(Event(EventKind.SETTLED, task))

    def _tell(self, event: Event) -> None:
        if event.kind is EventKind.OVER:
            self._close()
            return
        if event.kind.printed:
            self._last = event.kind
        if event.kind is EventKind.INTERRUPTED:
            self._ending = self._interrupted = True
        elif self._display is None and not self._closed:
            # Steps become ready in several threads.
            with self._begins:
                if self._display is None:
                    self._display = self._begin()
        if self._display is None or self._closed:
            report_without_display(event)
        else:
            self._display.tell(event)

    def _begin(self) -> "Display":
        # Imported here, because a run without steps starts faster without a display.
        from rc_tasks.engine.progress.plain import Plain

        display: Display
        streams = session().streams
        if self._out.isatty() and os.environ.get("TERM", "") not in {"", "dumb"}:
            from rc_tasks.engine.progress.live import Live

            display = Live(self._out, self._left(), session().expected, streams=streams)
        else:
            display = Plain(self._out, streams=streams)
        display.start()
        return display

    def _close(self) -> bool:
        """Close the display; return whether its output could be written."""
        if self._closed or self._display is None:
            self._closed = True
            return True
        self._closed = True
        return self._display.close()

    def _print(self, line: str) -> None:
        # The terminal may be closed: the run must still end cleanly.
        with contextlib.suppress(OSError):
            self._out.write(f"{printable(line)}\n")
            self._out.flush()


def _again(failed: list[FailedTask], untried: list[str]) -> Iterator[str]:
    """Yield the lines of a failure in the summary: error, log, command, and the images that wait."""
    first = failed[0]
    what = first.text.partition("\n")[0]
    tasks = listed([failure.task for failure in failed], _MOST_NAMED)
    yield f"  {tasks}  {what}"
    if first.log:
        yield f"    log:  {first.log}"
        yield f"    run:  doit build:{first.image}"
    if untried:
        yield f"    not tried because of it: {listed(untried, _MOST_NAMED)}"
