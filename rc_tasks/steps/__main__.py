"""A step of an image: `python -m rc_tasks.steps podman|enroot|env NAME [EDITION [FILE]]`.

EDITION is that of the record which the caller has seen, and FILE where to write how the step ended.

`python -m rc_tasks.steps check` checks this node instead, and `clear` removes what this job has of
podman's images on it. `squash NAME FILE CONTENTS` is the part of the enroot step that needs podman's
namespace.
"""

import contextlib
import json
import os
import signal
import sys
from pathlib import Path

from rc_tasks.errors import ProjectError, RcError
from rc_tasks.state.adoption.ownership import require_own
from rc_tasks.state.checkout import Checkout, find_root, open_checkout
from rc_tasks.state.disk.files import refused, sweep_temporaries, with_careful_umask
from rc_tasks.state.disk.locks import LockedError, held
from rc_tasks.state.records.records import Step, Task, edition
from rc_tasks.steps.node import node as nodes
from rc_tasks.steps.outcome import ReportedError, StepEnding
from rc_tasks.tools import command, interrupt


def run(checkout: Checkout, task: Task, seen: str = "") -> None:
    """Carry out one step while holding the image's lock.

    `seen` is the `edition` of the record that the caller knows: when there is another one by now,
    somebody else has done the step, and LockedError is raised.
    """
    require_own(checkout)
    node = checkout.graph.resolve(task.name)
    project = node.project
    # An alias means the image that it leads to.
    task = Task(task.step, project.name)
    if not os.access(project.directory, os.W_OK):
        # Better now than after an hour of building.
        raise ProjectError(
            "you may not write here, so nothing could be published",
            where=f"{project.path}/",
            hint="work in a clone of your own, or ask its owner (`ls -ld`) for the right to write",
        )
    with held(checkout.lock(project.name), str(task)):
        if seen and seen != edition(checkout.records.get(*task)):
            raise LockedError(f"{task} was done by somebody else just now")
        for file in (project.image_json, project.edf, *checkout.records.files(*task)):
            sweep_temporaries(file.parent, file.name)
        match task.step:
            case Step.PODMAN:
                from rc_tasks.steps.podman.build import build

                build(checkout, node)
            case Step.ENROOT:
                from rc_tasks.steps.publish.publish import publish

                publish(checkout, node)
            case Step.ENV:
                from rc_tasks.steps.publish.env_toml import write_environment

                write_environment(checkout, node)
    checkout.remember()


def main(argv: list[str]) -> int:
    """The exit status: 0 done, 1 failed and said why, 2 wrong arguments."""
    inner = argv[:1] == ["squash"] and len(argv) == 4
    alone = argv in (["check"], ["clear"])
    if not (inner or alone or (len(argv) in {2, 3, 4} and argv[0] in set(Step))):
        print(
            "usage: python -m rc_tasks.steps podman|enroot|env NAME, or check, or clear", file=sys.stderr
        )
        return 2
    # A job that is cancelled or runs out of time gets TERM: leave as with Ctrl-C, with all cleaned up.
    interrupt.raise_once({signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    command.end_with_parent()
    with_careful_umask()
    try:
        checkout = open_checkout(find_root(Path.cwd()))
        if argv == ["check"]:
            from rc_tasks.steps.doctor.check import print_findings

            print_findings(checkout)
            return 0
        if argv == ["clear"]:
            nodes.clear(checkout.settings.podman)
            return 0
        if inner:
            from rc_tasks.model.manifest.manifest import document
            from rc_tasks.steps.publish.publish import squash_into

            contents = squash_into(checkout, checkout.graph.images[argv[1]], Path(argv[2]))
            Path(argv[3]).write_text(json.dumps(document(contents)), encoding="utf-8")
            return 0
        task, seen = Task(Step(argv[0]), argv[1]), "".join(argv[2:3])
        if task.step is Step.ENV:
            nodes.sweep()
            run(checkout, task, seen)
            return 0
        with nodes.prepared(checkout.settings.podman):
            run(checkout, task, seen)
    except ReportedError as error:
        if error.ending is not None:
            _leave(error.ending, argv)
        return error.status
    except RcError as error:
        return _failed(error, argv)
    except OSError as error:
        told = refused(error)
        if told is None:
            raise
        return _failed(told, argv)
    except KeyboardInterrupt:
        # Who did it is for the caller to say: Slurm's words stand in the same log.
        print("interrupted", file=sys.stderr, flush=True)
        return 130
    return 0


def _failed(error: RcError, argv: list[str]) -> int:
    sys.stdout.flush()
    print(error, file=sys.stderr, flush=True)
    _leave(StepEnding.of(error), argv)
    return 1


def _leave(ending: StepEnding, argv: list[str]) -> None:
    # A full disk must not hide the message, which is in the log.
    with contextlib.suppress(RcError):
        for path in argv[3:4]:
            ending.write(Path(path))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
