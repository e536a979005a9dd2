"""`doit list`: every image with its state and the reason."""

import contextlib
import json
import os
import sys
from collections.abc import Mapping
from typing import Any

from doit.cmd_list import List as DoitList
from doit.task import Task

from rc_tasks.commands.at_root import AtRoot, checked, unknown
from rc_tasks.commands.cli.command import OPT_JSON, CheckoutCommand, images
from rc_tasks.engine.session import Session
from rc_tasks.model.graph.project import ARTIFACT
from rc_tasks.state.records.records import Step
from rc_tasks.state.records.status import ImageStatus, briefly
from rc_tasks.views import tables


class List(AtRoot, DoitList):
    """doit's `list` with our own table when none of doit's options is given."""

    doc_purpose = "show all images: state, reason, size"
    doc_usage = "[TASK ...]"
    doc_description = "States: fresh, stale, missing, failed, building. `doit why NAME` tells more."
    cmd_options = (*DoitList.cmd_options, OPT_JSON)

    def execute(self, params: Any, args: list[str]) -> int:
        """Show our table, or doit's list of tasks when one of doit's options asks for it."""
        doits = {option["name"] for option in DoitList.cmd_options}
        if doits & set(params._non_default_keys):
            return super().execute(params, args)
        return _Table(config=self.config, bin_name=self.bin_name).execute(params, args)

    def _execute(
        self,
        subtasks: bool = False,
        quiet: bool = True,
        status: bool = False,
        private: bool = False,
        list_deps: bool = False,
        template: str | None = None,
        sort: str = "name",
        pos_args: Any = None,
    ) -> Any:
        if not subtasks:
            checked(self, pos_args)
        return super()._execute(subtasks, quiet, status, private, list_deps, template, sort, pos_args)

    @staticmethod
    def _list_filtered(
        tasks: Mapping[str, Task], names: list[str], include_subtasks: bool
    ) -> list[Task]:
        """With `--all`, a name stands for all tasks below it: so asks shell completion."""
        if not include_subtasks:
            found: list[Task] = DoitList._list_filtered(tasks, names, include_subtasks)
            return found
        below = {name: [key for key in tasks if f"{key}:".startswith(f"{name}:")] for name in names}
        for name, keys in below.items():
            if not keys:
                raise unknown(name, list(tasks))
        return [tasks[key] for key in dict.fromkeys(key for keys in below.values() for key in keys)]


class _Table(CheckoutCommand):
    def show(self, opened: Session, options: dict[str, Any], names: list[str]) -> int:
        statuses = [opened.judge.image(name) for name in images(opened, names)]
        aliases = opened.checkout.graph.aliases_of()
        if options["json"]:
            json.dump([as_json(opened, status, aliases) for status in statuses], sys.stdout, indent=2)
            sys.stdout.write("\n")
            return 0
        rows = [_row(opened, status, aliases) for status in statuses]
        headings = ("IMAGE", "STATE", "SIZE", "BUILT", "ALIASES", "REASON")
        if rows:
            styles = [tables.STYLES[status.state] for status in statuses]
            tables.table(headings, rows, styles=styles, right=frozenset({"SIZE"}))
        else:
            print("there are no images yet: a directory with a Dockerfile under projects/ makes one")
        if not names:
            for problem in opened.checkout.graph.problems:
                sys.stderr.write(f"{problem}\n")
        return 0


def as_json(opened: Session, status: ImageStatus, aliases: Mapping[str, list[str]]) -> dict[str, Any]:
    """An image for programs; the keys are part of the contract with people's scripts."""
    checkout, name = opened.checkout, status.name
    node = checkout.graph.images.get(name)
    podman, enroot = (
        (checkout.records.get(Step.PODMAN, name), checkout.records.get(Step.ENROOT, name))
        if node
        else (None, None)
    )
    published = f"{node.project.base}/{ARTIFACT}" if node else ""
    size_bytes = None
    # An adopted image may lie where we may not look.
    with contextlib.suppress(OSError):
        size_bytes = os.stat(published).st_size
    return {
        "name": name,
        "directory": node.project.path if node else None,
        "state": status.state,
        "reasons": list(status.reasons),
        "image_id": podman.facts.image_id if podman and podman.facts else None,
        "image": published if size_bytes is not None else None,
        "size_bytes": size_bytes,
        "built_at": enroot.ended_at if enroot else None,
        "adopted_from": (enroot.adopted_from or None) if enroot else None,
        "rolled_back": opened.judge.rolled_back(name),
        "frozen": node.recipe.frozen if node else False,
        "bases": [*node.bases, *node.remote] if node else [],
        "aliases": aliases.get(name, []),
        "log": status.failure.log if status.failure else None,
    }


def _row(opened: Session, status: ImageStatus, aliases: Mapping[str, list[str]]) -> tuple[str, ...]:
    found = as_json(opened, status, aliases)
    return (
        status.name,
        status.state,
        tables.size(found["size_bytes"]),
        tables.when(found["built_at"]),
        ", ".join(found["aliases"]),
        briefly(status.name, status.reasons) if status.reasons else "",
    )
