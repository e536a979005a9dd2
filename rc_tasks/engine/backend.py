"""doit database backend: a view of the records that steps write.

doit itself writes only at its exit, so a job's time limit would forget every finished build, and two
runs would overwrite each other. With this backend doit writes nothing but `ignore`.
"""

import functools
import os
from typing import Any

from doit.dependency import FileChangedChecker

from rc_tasks.engine.schedule.ignored import marked
from rc_tasks.engine.session import session
from rc_tasks.model.graph.project import Project
from rc_tasks.state.disk import reading
from rc_tasks.state.records.inputs import part_at, shown_files
from rc_tasks.state.records.records import Record, Records, Task


class RecordsDB:
    """The interface that `doit.dependency.Dependency` expects of a backend."""

    desc = "the records that the steps of an image leave in .rc/state"

    def __init__(self, name: str, codec: object, *, module_name: str | None = None) -> None:
        self.name = name

    def get(self, task_id: str, dependency: str) -> Any:
        """Return a value that doit believes it has saved."""
        if dependency == "ignore:":
            return "1" if task_id in self._ignored_tasks else None
        task, record = Task.parse(task_id), self._record(task_id)
        if task is None or record is None:
            return None
        project = _project(task)
        match dependency:
            case "checker:":
                return ContentChecker.__name__
            case "_values_:":
                return {}
            case "result:":
                return {"image_id": record.facts.image_id} if record.facts else dict(record.inputs)
            case "deps:":
                return list(shown_files(project, record.inputs).values())
            case _:
                part = part_at(project, dependency)
                value = record.inputs.get(part)
                return None if value is None else (task.name, part, value)

    def set(self, task_id: str, dependency: str, value: object) -> None:
        """Save `ignore:` only; the step wrote everything else when it ended."""
        if dependency == "ignore:":
            self._records.ignore(task_id)

    def in_(self, task_id: str) -> bool:
        """Return whether the task has ever succeeded."""
        return self._record(task_id) is not None

    def remove(self, task_id: str) -> None:
        """Remove the record and the ignore mark of a task, for `doit forget`."""
        self._records.ignore_no_longer(task_id)
        task = Task.parse(task_id)
        if task is not None:
            self._records.forget(*task)

    def remove_all(self) -> None:
        """Remove all records and ignore marks, for `doit forget --all`."""
        for name in reading.names(self._records.directory):
            if ":" in name:
                self.remove(name.rpartition(".")[0])

    def dump(self) -> None:
        """Write nothing at exit: everything was written before."""

    @functools.cached_property
    def _ignored_tasks(self) -> frozenset[str]:
        return marked(session().checkout)

    @property
    def _records(self) -> Records:
        return session().checkout.records

    def _record(self, task_id: str) -> Record | None:
        task = Task.parse(task_id)
        return session().judge.remembered(*task) if task is not None else None


class ContentChecker(FileChangedChecker):
    """A doit file checker that answers with the input values that the judge has just read."""

    def check_modified(self, file_path: str, file_stat: None, state: tuple[str, str, str]) -> bool:
        """Return whether a file of a build context differs from its record, which the backend gave."""
        return session().judge.modified(*state)

    def get_state(self, dep: str, current_state: str | None) -> None:
        """Save nothing: the step recorded the file as it was *before* podman read it."""

    def info(self, file_path: str) -> None:
        """Read nothing: the judge has read the file."""

    def exists(self, file_path: str) -> bool:
        """Return whether a target exists."""
        return os.path.exists(file_path)


def _project(task: Task) -> Project:
    return session().checkout.graph.images[task.name].project
