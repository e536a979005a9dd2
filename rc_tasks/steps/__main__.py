"""Entry point of the steps: `python -m rc_tasks.steps podman|enroot|env NAME [EDITION [FILE]]`.

EDITION is that of the record which the caller has seen; FILE is where the step writes how it ended.

It works in the checkout around the current directory. `check` checks this node instead. `clear` removes
podman's images of this job from this node. `fit` finds the podman settings that work on this host, and
writes them into the checkout's rc_tasks.toml. `squash NAME FILE CONTENTS UMASK` is the part of the
enroot step that runs in podman's namespace.
"""

import contextlib
import json
import os
import signal
import sys
from pathlib import Path

from rc_tasks.errors import ProjectError, RcError, missing_package
from rc_tasks.model.graph.project import Project
from rc_tasks.state.adoption.ownership import require_own
from rc_tasks.state.checkout import Checkout, find_root, open_checkout
from rc_tasks.state.disk.files import refused, sweep_temporaries, with_careful_umask
from rc_tasks.state.disk.locks import LockedError, held
from rc_tasks.state.records.records import Step, Task, record_digest
from rc_tasks.steps.error_report import ErrorReport, ReportedError
from rc_tasks.steps.node import mounted_images
from rc_tasks.steps.node import node as nodes
from rc_tasks.tools import binfmt, command, interrupt


def run(checkout: Checkout, task: Task, seen: str = "") -> None:
    """Run one step while holding the image's lock.

    `seen` is the `record_digest` of the record that the caller knows. Raise LockedError when the record
    has another digest, as another process has done the step, and RcError when the step fails.
    """
    require_own(checkout)
    node = checkout.graph.resolve(task.name)
    project = node.project
    # Replace an alias by its image.
    task = Task(task.step, project.name)
    if checkout.machine(project) != checkout.architecture:
        _require_emulation(checkout, project)
    if project.recipe is not None:
        # That of a matrix's image comes with the first build.
        with contextlib.suppress(OSError):
            project.directory.mkdir(exist_ok=True)
    if not os.access(project.directory, os.W_OK):
        # Check it before an hour of building is lost.
        raise ProjectError(
            "you may not write here, so nothing could be published",
            where=f"{project.path}/",
            hint="work in a clone of your own, or ask its owner (`ls -ld`) for the right to write",
        )
    with held(checkout.lock(project.name), str(task)):
        checkout.moves.require_settled(project.name)
        if seen and seen != record_digest(checkout.records.get(*task)):
            raise LockedError(f"another process has just done {task}")
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


def _require_emulation(checkout: Checkout, project: Project) -> None:
    """Raise ProjectError on a node that cannot run the programs of an image's machine."""
    if not binfmt.emulates(project.machine):
        raise ProjectError(
            f"{project.name} is for {project.machine}, and this node is {checkout.architecture}",
            where=nodes.this_node().name,
            hint=f"name nodes of {project.machine} in the settings: arch.{project.machine}.partition,\n"
            "or install qemu-user-static here, which emulates them slowly",
        )
    print(f"note: this node is {checkout.architecture} and emulates {project.machine}", flush=True)


def main(argv: list[str]) -> int:
    """Return the exit status: 0 done, 1 failed and reported, 2 wrong arguments, 130 interrupted."""
    is_squash = argv[:1] == ["squash"] and len(argv) == 5
    has_no_name = argv in (["check"], ["clear"], ["fit"])
    if not (is_squash or has_no_name or (len(argv) in {2, 3, 4} and argv[0] in set(Step))):
        print(
            "usage: python -m rc_tasks.steps podman|enroot|env NAME, or check, clear or fit",
            file=sys.stderr,
        )
        return 2
    # A job that is cancelled or runs out of time gets TERM: clean up as after Ctrl-C.
    interrupt.raise_once({signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    command.end_with_parent()
    # podman gives its children the umask 022, with which no other member could write to the store.
    with_careful_umask(int(argv[4], 8) if is_squash else None)
    try:
        _perform(argv)
    except ReportedError as error:
        if error.report is not None:
            _leave(error.report, argv)
        return error.status
    except RcError as error:
        return _failed(error, argv)
    except (OSError, ModuleNotFoundError) as error:
        reported = refused(error) if isinstance(error, OSError) else missing_package(error)
        if reported is None:
            raise
        return _failed(reported, argv)
    except KeyboardInterrupt:
        # The caller reports the reason: Slurm's message is in the same log.
        print("interrupted", file=sys.stderr, flush=True)
        return 130
    return 0


@interrupt.recognized()
def _perform(argv: list[str]) -> None:
    checkout = open_checkout(find_root(Path.cwd()))
    if argv == ["check"]:
        from rc_tasks.steps.doctor.check import print_findings

        print_findings(checkout)
        return
    if argv == ["fit"]:
        from rc_tasks.steps.doctor.trial import write_settings

        write_settings(checkout)
        return
    if argv == ["clear"]:
        nodes.clear(checkout.settings.podman)
        return
    if argv[0] == "squash":
        from rc_tasks.model.manifest.manifest import document
        from rc_tasks.steps.publish.publish import squash_into

        contents = squash_into(checkout, checkout.graph.images[argv[1]], Path(argv[2]))
        Path(argv[3]).write_text(json.dumps(document(contents)), encoding="utf-8")
        return
    task, seen = Task(Step(argv[0]), argv[1]), "".join(argv[2:3])
    if task.step is Step.ENV:
        nodes.sweep()
        run(checkout, task, seen)
        return
    with nodes.prepared(checkout.settings.podman), mounted_images.available(checkout):
        run(checkout, task, seen)


def _failed(error: RcError, argv: list[str]) -> int:
    sys.stdout.flush()
    print(error, file=sys.stderr, flush=True)
    _leave(ErrorReport.of(error), argv)
    return 1


def _leave(report: ErrorReport, argv: list[str]) -> None:
    # A full disk must not hide the message, which is in the log.
    with contextlib.suppress(RcError):
        for path in argv[3:4]:
            report.write(Path(path))


if __name__ == "__main__":
    exit_status = main(sys.argv[1:])
    interrupt.stop_handling(signal.SIG_IGN)
    sys.exit(exit_status)
