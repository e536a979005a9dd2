"""What a run says: what happens, as it happens, and a summary that says it all."""

import contextlib
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from doit.exceptions import BaseFail, UnmetDependency
from doit.task import Task as DoitTask

from rc_tasks.engine.doit.selection import reach
from rc_tasks.engine.events import Event, EventKind
from rc_tasks.engine.run.dispatcher import NotTried, StepFailed
from rc_tasks.engine.session import alone, session
from rc_tasks.model.edf.entrypoint import Behaviour, note
from rc_tasks.state.records.records import Step, Task
from rc_tasks.util.text import listed, printable

if TYPE_CHECKING:
    from rc_tasks.engine.progress.plain import Display

# Of more images than these, only the number is told.
_MOST_NAMED = 20
# The names of groups begin with it.
_BUILD = "build:"


@dataclass(frozen=True, slots=True)
class FailedTask:
    """A failed task, and its image.

    `log` may be empty, and `same` names another task that failed with the same text.
    """

    task: str
    image: str
    text: str
    log: str
    same: str


class Reporter:
    """doit's reporter interface: it keeps count, and a display shows."""

    desc = "a line for each step, and a summary"

    def __init__(self, outstream: TextIO, options: Mapping[str, object] | None = None) -> None:
        self._out = outstream
        self._display: Display | None = None
        # An interrupt may come while its own thread holds it.
        self._begins = threading.RLock()
        self._closed = False
        self._tasks: Mapping[str, DoitTask] = {}
        self._selected: list[str] = []
        # What has become of each image, and which steps need not be waited for any more.
        self._images: dict[str, str] = {}
        self._settled: set[Task] = set()
        self._failed: list[FailedTask] = []
        self._skipped: list[str] = []
        self._broken: list[str] = []
        self._ending = self._interrupted = False
        self._last: EventKind | None = None

    def initialize(self, tasks: Mapping[str, DoitTask], selected_tasks: list[str]) -> None:
        """Called once, before any task runs."""
        opened = session()
        opened.tell = self._tell
        self._tasks, self._selected = tasks, selected_tasks
        self._images = dict.fromkeys(opened.fresh, "fresh")

    def get_status(self, task: DoitTask) -> None:
        """A task is about to be judged."""

    def execute_task(self, task: DoitTask) -> None:
        """A step is ready to start: the dispatcher tells when it does."""

    def add_success(self, task: DoitTask) -> None:
        """A step ended well."""
        done = Task.parse(task.name)
        if done is not None:
            if done.step is not Step.ENV:
                self._images[done.name] = "built"
            elif self._images.get(done.name) != "built":
                self._images[done.name] = "env.toml written"
            self._settled.add(done)
            self._tell(Event(EventKind.DONE, done, session().remarks.get(done, "")))

    def add_failure(self, task: DoitTask, fail: BaseFail) -> None:
        """A step failed, or could not be tried."""
        if isinstance(fail, NotTried):
            self._ending = True
            return
        if isinstance(fail, UnmetDependency):
            # Of the group `build` and of groups of versions there is nothing more to say.
            untried = Task.parse(task.name)
            if untried is not None:
                self._skipped.append(untried.name)
                self._settle(untried)
            elif task.name.startswith(_BUILD) and task.has_subtask:
                self._skipped.append(task.name.removeprefix(_BUILD))
            return
        text = fail.get_msg().strip()
        shown = task.name.removeprefix("_")
        step = Task.parse(task.name)
        # The images of a cycle share one error.
        same = next((each.task for each in self._failed if each.text == text), "")
        log = fail.log if isinstance(fail, StepFailed) else ""
        image = step.name if step is not None else shown.removeprefix(_BUILD)
        self._failed.append(FailedTask(shown, image, text, log, same))
        if shown == task.name:
            self._images[image] = "failed"
        if step is not None:
            self._settled.add(step)
        self._tell(Event(EventKind.FAILED, step, f"as {same}" if same else text, about=shown))

    def skip_uptodate(self, task: DoitTask) -> None:
        """A step has nothing to do."""
        fresh = Task.parse(task.name)
        if fresh is not None:
            self._images.setdefault(fresh.name, "fresh")
            self._settle(fresh)

    def skip_ignore(self, task: DoitTask) -> None:
        """`doit ignore` said to leave it out."""
        words = f"doit forget {task.name} takes it up again"
        self._tell(Event(EventKind.IGNORED, Task.parse(task.name), words, about=task.name))

    def cleanup_error(self, exception: BaseFail) -> None:
        """A teardown failed."""
        self._tell(Event(EventKind.FAILED, words=exception.get_msg(), about="cleaning up"))

    def runtime_error(self, msg: str) -> None:
        """doit itself cannot go on."""
        self._broken.append(msg)

    def teardown_task(self, task: DoitTask) -> None:
        """A teardown starts."""

    def complete_run(self) -> None:
        """The run has ended: say what was done, what was not, and where to look."""
        if self._close():
            for line in self._summary():
                self._print(line)

    def _summary(self) -> Iterator[str]:
        yield from (f"ERROR: {text}" for text in self._broken)
        untried = self._untried()
        # The only one need not be told twice when it still stands right above.
        again = len(self._failed) > 1 or (bool(self._failed) and self._last is not EventKind.FAILED)
        if again:
            yield "failed:"
            for first in self._failed:
                if not first.same:
                    those = [each for each in self._failed if first.task in (each.task, each.same)]
                    behind = [name for each in those for name in untried.get(each.task, [])]
                    yield from _again(those, behind)
        unfinished = {name for names in untried.values() for name in names}
        states = [state for name, state in self._images.items() if name not in unfinished]
        parts = [
            f"{count} {words}"
            for words in ("built", "env.toml written", "fresh")
            if (count := states.count(words))
        ]
        if again:
            parts.append(f"{len(self._failed)} failed")
        elif self._failed:
            parts.append(f"failed: {self._failed[0].task}")
        others = untried.pop("", [])
        behind = [name for names in untried.values() for name in names]
        if behind:
            names = f"{len(behind)}" if again else listed(behind, _MOST_NAMED)
            parts.append(f"not tried because of that: {names}")
        if others and self._interrupted:
            parts.append(f"{len(others)} not finished")
        elif others:
            parts.append(f"{len(others)} not started: --continue goes on with them")
        if parts:
            count = len(states) + len(behind) + len(others)
            counted = f"{count} image{'' if count == 1 else 's'}: " if count else ""
            yield f"{counted}{'; '.join(parts)}"
        elif not self._broken and not self._ending:
            yield "nothing to do"
        yield from self._notes()
        if not self._failed and not self._broken and not self._ending:
            yield from self._next()

    def _notes(self) -> Iterator[str]:
        """What was found out of the images' entrypoints."""
        for behaviour in Behaviour:
            found = session().entrypoints.items()
            names = sorted(name for name, each in found if each is behaviour)
            if names:
                yield from f"note: {note(behaviour, names)}".splitlines()

    def _untried(self) -> dict[str, list[str]]:
        """The images that are not finished, by the failed task below them; empty: none is."""
        found: dict[str, list[str]] = {}
        if not self._failed and not self._ending:
            return found
        graph = session().checkout.graph
        failed = {each.image: each.task for each in self._failed}
        # One whose first step is fresh, or was done just now, may still have to be published.
        names = dict.fromkeys(task.name for task in self._left())
        for name in [*names, *self._skipped]:
            if name in failed or name not in graph.images:
                continue
            below = {base for each in graph.above([name]) for base in graph.images[each].bases}
            task = next((task for image, task in failed.items() if image in below), "")
            if name not in found.setdefault(task, []):
                found[task].append(name)
        return found

    def _left(self) -> list[Task]:
        """The steps that the run was to take and has not settled, bases first."""
        expected = session().expected
        stale = expected.stale_s if expected is not None else {}
        wanted = reach(self._tasks, self._selected) if stale else {}
        return [task for task in stale if str(task) in wanted and task not in self._settled]

    def _next(self) -> Iterator[str]:
        """What somebody does who has built one image of his own."""
        asked = session().asked
        if len(asked) == 1 and asked[0].startswith(_BUILD):
            name = asked[0].removeprefix(_BUILD)
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
        if event.kind.told:
            self._last = event.kind
        if event.kind is EventKind.INTERRUPTED:
            self._ending = self._interrupted = True
        elif self._display is None and not self._closed:
            # Steps become ready in several threads.
            with self._begins:
                if self._display is None:
                    self._display = self._begin()
        if self._display is None or self._closed:
            alone(event)
        else:
            self._display.tell(event)

    def _begin(self) -> "Display":
        # What runs nothing starts faster without them.
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
        """End the showing; whether somebody still reads."""
        if self._closed or self._display is None:
            self._closed = True
            return True
        self._closed = True
        return self._display.close()

    def _print(self, line: str) -> None:
        # Nobody may read it any more, as when a terminal was closed: the run ends as it has to.
        with contextlib.suppress(OSError):
            self._out.write(f"{printable(line)}\n")
            self._out.flush()


def _again(failed: list[FailedTask], untried: list[str]) -> Iterator[str]:
    """A failure in the summary: what, where to look, what to run, and what waits for it."""
    first = failed[0]
    what = first.text.partition("\n")[0]
    tasks = listed([each.task for each in failed], _MOST_NAMED)
    yield f"  {tasks}  {what}"
    if first.log:
        yield f"    log:  {first.log}"
        yield f"    run:  doit build:{first.image}"
    if untried:
        yield f"    not tried because of it: {listed(untried, _MOST_NAMED)}"
