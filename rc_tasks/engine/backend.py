"""doit's database, as a view of our records: what the steps wrote down is what doit remembers.

doit itself writes only at its exit, so a job's time limit would forget every finished build, and two
runs would overwrite each other. Here nothing is written by doit but `ignore`.
"""

import functools
import os
from pathlib import Path
from typing import Any

from doit.dependency import FileChangedChecker

from rc_tasks.engine.session import session
from rc_tasks.model.graph.project import Project
from rc_tasks.state.disk import reading
from rc_tasks.state.disk.files import write_atomically
from rc_tasks.state.records.inputs import CONTEXT, is_file, part_of
from rc_tasks.state.records.records import Record, Records, Task

_IGNORED = ".ignore"


class RecordsDB:
    """The interface that `doit.dependency.Dependency` wants of a backend."""

    desc = "the records that the steps of an image leave in .rc/state"

    def __init__(self, name: str, codec: object, *, module_name: str | None = None) -> None:
        self.name = name

    def get(self, task_id: str, dependency: str) -> Any:
        """A value that doit believes it has saved."""
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
                files = (part.removeprefix(CONTEXT) for part in record.inputs if is_file(part))
                return [f"{project.path}/{file}" for file in files]
            case _:
                path = dependency.removeprefix(f"{project.path}/")
                return record.inputs.get(part_of(path, project.dockerfile_name))

    def set(self, task_id: str, dependency: str, value: object) -> None:
        """Only `ignore:` is doit's own to save; all else was written by the step when it ended."""
        if dependency == "ignore:":
            write_atomically(self._ignored(task_id), "")

    def in_(self, task_id: str) -> bool:
        """Whether the task has ever ended well."""
        return self._record(task_id) is not None

    def remove(self, task_id: str) -> None:
        """`doit forget`."""
        self._ignored(task_id).unlink(missing_ok=True)
        task = Task.parse(task_id)
        if task is not None:
            self._records.forget(*task)

    def remove_all(self) -> None:
        """`doit forget --all`."""
        for name in reading.names(self._records.directory):
            if ":" in name:
                self.remove(name.rpartition(".")[0])

    def dump(self) -> None:
        """Nothing is left to write at exit."""

    @functools.cached_property
    def _ignored_tasks(self) -> frozenset[str]:
        found = reading.names(self._records.directory)
        return frozenset(name.removesuffix(_IGNORED) for name in found if name.endswith(_IGNORED))

    @property
    def _records(self) -> Records:
        return session().checkout.records

    def _record(self, task_id: str) -> Record | None:
        task = Task.parse(task_id)
        return session().judge.remembered(*task) if task is not None else None

    def _ignored(self, task_id: str) -> Path:
        return self._records.directory / f"{task_id}{_IGNORED}"


class ContentChecker(FileChangedChecker):
    """doit's question whether a file changed, answered by what the judge just read of it."""

    def check_modified(self, file_path: str, file_stat: None, state: str) -> bool:
        """Whether a file of a build context is not what was recorded."""
        return session().judge.modified(file_path, state)

    def get_state(self, dep: str, current_state: str | None) -> None:
        """Nothing to save: the step recorded the file as it was *before* it was read."""

    def info(self, file_path: str) -> None:
        """Nothing to ask: the judge has asked it."""

    def exists(self, file_path: str) -> bool:
        """Whether a target is there."""
        return os.path.exists(file_path)


def _project(task: Task) -> Project:
    return session().checkout.graph.images[task.name].project
