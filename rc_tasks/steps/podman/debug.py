"""`python -m rc_tasks.steps.podman.debug [OPTION…] CHECKOUT NAME [CMD…]`: a failed instruction again.

Starts CMD or a shell in the image in which the failed instruction of a build ran, as that instruction
had it. `--secrets` also mounts its build secrets. `--alone` says that the job has no other step, so that
podman's images are removed from the node at the end.
"""

import contextlib
import os
import shlex
import signal
import sys
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from rc_tasks.errors import RcError
from rc_tasks.model.config.settings import Launcher
from rc_tasks.model.graph.graph import ImageNode
from rc_tasks.state.checkout import Checkout, open_checkout
from rc_tasks.state.store.catalogue import FailedInstruction
from rc_tasks.steps.container import failure, launch
from rc_tasks.steps.node import mounted_images
from rc_tasks.steps.node import node as nodes
from rc_tasks.steps.podman import secrets as build_secrets
from rc_tasks.steps.podman.failed_run import DEFAULT_SHELL, FailedRun, ImageConfig
from rc_tasks.steps.podman.run_mounts import MountedContext, run_mounts, secret_ids
from rc_tasks.tools import command, interrupt, podman
from rc_tasks.tools.podman import Podman
from rc_tasks.util.text import printable

# Places in the container. The shell reads and writes its history in ours.
_CONTEXT = "/context"
_OURS = "/run/doit"
_HISTORY = "history"
_AGAIN = "again"
_SCRIPT = "heredoc"
_SHORT_ID = 12
_MOST_LINES = 20
# Shells that a person can use. Other programs of SHELL, such as `conda run`, need a command.
_SHELLS = frozenset({"ash", "bash", "dash", "ksh", "zsh"})
# podman-run(1): podman itself failed; the program is not in the image.
_NOT_STARTED = 125
_NO_PROGRAM = 127


class _Start(Struct, frozen=True):
    """The failed instruction of an image, and the image that it ran in."""

    node: ImageNode
    failed: FailedInstruction
    run: FailedRun
    config: ImageConfig

    @property
    def commands(self) -> tuple[str, ...]:
        return self.run.commands(self.config.shell, f"{_OURS}/{_SCRIPT}")


def run(checkout: Checkout, name: str, argv: tuple[str, ...], *, with_secrets: bool, alone: bool) -> int:
    """Start the container and wait for its end; return the exit status of `argv`, or podman's own."""
    start = _find(checkout, name)
    try:
        with (
            # Standard output belongs to the program in the container.
            contextlib.redirect_stdout(sys.stderr),
            nodes.prepared(checkout.settings.podman),
            mounted_images.available(checkout) as engine,
            launch.private_directory("debug", engine) as scratch,
        ):
            if not launch.load_image(start.failed.image_id, engine, checkout):
                raise _gone(start.node)
            return _interact(checkout, engine, start, scratch, argv, with_secrets=with_secrets)
    finally:
        if alone:
            nodes.clear(checkout.settings.podman)


def _find(checkout: Checkout, name: str) -> _Start:
    node = checkout.graph.resolve(name)
    failed = checkout.store.catalogue.failed_instruction(node.project.name)
    image = mounted_images.stored_image(checkout, failed.image_id) if failed is not None else None
    if failed is None or image is None:
        raise _gone(node)
    config = ImageConfig.parse(image.config)
    where = node.project.shown_dockerfile
    return _Start(
        node, failed, FailedRun.parse(failed, where, checkout.machine(node.project), config.env), config
    )


def _gone(node: ImageNode) -> RcError:
    name = node.project.name
    return RcError(
        f"the layers of the failed build of {name} are no longer whole in the store",
        hint=f"`doit build:{name}` makes them again; `doit verify --all` names what is damaged",
    )


def _interact(
    checkout: Checkout,
    engine: Podman,
    start: _Start,
    scratch: Path,
    argv: tuple[str, ...],
    *,
    with_secrets: bool,
) -> int:
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    flags = start.run.flags
    project = start.node.project
    context = _context(start.node, project.context, scratch)
    directories = project.recipe.named if project.recipe else {}
    named = {
        name: _context(start.node, project.root / named_context.directory, scratch)
        for name, named_context in directories.items()
    }
    secrets = _secret_files(start.node, secret_ids(flags), scratch) if with_secrets else None
    mounts = run_mounts(flags, context, start.config.workdir, secrets, named)
    for line in (*_description(start), *(f"  {printable(note)}" for note in mounts.notes)):
        print(line)
    if start.commands:
        up = "" if argv else "Up in the shell, or "
        print(f"to run the command as the build did: {up}{_OURS}/{_AGAIN}")
    # Everybody on a node may read the arguments of a process, so podman gets these by name.
    os.environ.update(mounts.env)
    variables = {k: v for k, v in start.run.arguments.items() if k not in start.config.env}
    lines: list[str] = []
    status = command.interact(
        engine.run(
            start.failed.image_id,
            argv or _shell(start.config),
            mounts=(
                *context.mounts(_CONTEXT),
                podman.bind(_our_files(start, scratch), _OURS),
                *mounts.values,
            ),
            env={**variables, **mounts.env, "HISTFILE": f"{_OURS}/{_HISTORY}"},
            user="",
            network=_network(engine, flags),
            volumes=checkout.settings.podman.volumes,
            limits=launch.limits(),
            terminal=terminal,
            # By this name the next step on the node removes what a killed one has left.
            name=f"rc-debug-{os.getpid()}",
        ),
        lines.append,
    )
    if (error := failure.runtime_error(status, lines)) is not None:
        print(error)
    elif terminal and (hint := failure.launcher_hint(Launcher.PODMAN, status, lines)):
        print(f"next: {hint}")
    elif not argv and status == _NO_PROGRAM:
        print(f"next: without a shell, start a program: doit debug {start.node.project.name} -- CMD")
    return status


def _our_files(start: _Start, scratch: Path) -> Path:
    """Write the shell's history, and a program that runs the failed command again."""
    ours = scratch / "ours"
    ours.mkdir()
    commands = start.commands
    # A shell would read a command with line breaks as several.
    lines = (line if "\n" not in line else f"{_OURS}/{_AGAIN}" for line in commands)
    (ours / _HISTORY).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    if start.run.script_text:
        (ours / _SCRIPT).write_text(start.run.script_text, encoding="utf-8")
    if commands:
        (ours / _AGAIN).write_text(f"#!/bin/sh\nexec {commands[-1]}\n", encoding="utf-8")
    # USER of the Dockerfile may be another one, whose shell writes its history at its end. Other users
    # of the node cannot enter the directory above.
    for path in (ours, *ours.iterdir()):
        path.chmod(0o777)
    return ours


def _context(node: ImageNode, path: Path, scratch: Path) -> MountedContext:
    """Return the build context at `path`, with the files of build secrets in it hidden."""
    project = node.project
    directory = Path(os.path.realpath(path))
    empty = scratch / "empty"
    empty.touch(0o444)
    files = (
        Path(os.path.realpath(project.source / os.path.expanduser(secret.file)))
        for secret in node.options.secrets
        if secret.file
    )
    hidden = (file for file in files if file.is_relative_to(directory) and file.is_file())
    return MountedContext(directory, tuple(str(file.relative_to(directory)) for file in hidden), empty)


def _secret_files(node: ImageNode, ids: frozenset[str], scratch: Path) -> dict[str, Path]:
    """Write the build secrets with these IDs to private files; return the files by ID."""
    declared = tuple(secret for secret in node.options.secrets if secret.id in ids)
    secrets = build_secrets.find(replace(node, options=replace(node.options, secrets=declared)))
    files = {}
    for number, secret in enumerate(declared):
        files[secret.id] = path = scratch / f"secret.{number}"
        path.touch(0o600)
        path.write_bytes(
            os.fsencode(os.environ[secret.variable])
            if secret.variable
            else secrets.files[secret.id].read_bytes()
        )
    return files


def _description(start: _Start) -> list[str]:
    """Return the failed instruction as written, and what it has in its container."""
    project, failed, config = start.node.project, start.failed, start.config
    where = f"{project.shown_dockerfile}:{failed.line}"
    lines = [f"{where}: an ONBUILD of the base failed:" if failed.trigger else f"{where} failed:"]
    lines += [f"  | {printable(line.expandtabs())}" for line in start.run.lines[:_MOST_LINES]]
    if (more := len(start.run.lines) - _MOST_LINES) > 0:
        lines.append(f"  | … and {more} more lines")
    with contextlib.suppress(OSError):
        if project.dockerfile.read_bytes().decode(errors="replace") != failed.dockerfile:
            lines.append(f"{project.shown_dockerfile} has changed since; this is how it was")
    facts = [f"image {failed.image_id[:_SHORT_ID]} in {config.workdir}"]
    facts += [f"as {config.user}"] if config.user else []
    facts += [f"with SHELL {shlex.join(config.shell)}"] if config.shell != DEFAULT_SHELL else []
    context = project.shown_input("") or "the checkout"
    return [*lines, printable(" ".join(facts)), f"{_CONTEXT} is {context}, read-only"]


def _shell(config: ImageConfig) -> tuple[str, ...]:
    program = config.shell[0]
    return (program,) if os.path.basename(program) in _SHELLS else launch.SHELL


def _network(engine: Podman, flags: tuple[str, ...]) -> str:
    """Return the network of a RUN with these flags: that of the host with chroot isolation."""
    named = dict(flag.partition("=")[::2] for flag in flags).get("--network", "default")
    if named != "default":
        return named
    isolation = engine.isolation or os.environ.get("BUILDAH_ISOLATION", "")
    return "host" if isolation == "chroot" else engine.network


def main(argv: list[str]) -> int:
    """Return the exit status: that of CMD, or podman's 125 when it could not be started."""
    # Before and after the container, the cleanup has to run: secrets would stay on the node.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt.raise_each)
    options = {word for word in argv[:2] if word in {"--secrets", "--alone"}}
    root, name, *words = argv[len(options) :]
    try:
        with interrupt.recognized():
            return run(
                open_checkout(Path(root)),
                name,
                tuple(words),
                with_secrets="--secrets" in options,
                alone="--alone" in options,
            )
    except RcError as error:
        print(error, file=sys.stderr, flush=True)
        return _NOT_STARTED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        return 130


if __name__ == "__main__":
    exit_status = main(sys.argv[1:])
    interrupt.stop_handling(signal.SIG_IGN)
    sys.exit(exit_status)
