"""Trial of podman on a node: one RUN, and the start of one container, as steps do them."""

import contextlib
import functools
import os
import re
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from rc_tasks.errors import RcError
from rc_tasks.model.config.settings import LOCAL_FILE, Isolation, Launcher, Runner
from rc_tasks.model.graph import smoke
from rc_tasks.squashfs.superblock import Compressor
from rc_tasks.state.checkout import Checkout
from rc_tasks.state.disk.files import write_atomically
from rc_tasks.steps.container import launch, rootfs
from rc_tasks.steps.doctor.finding import Finding, Level
from rc_tasks.steps.node import node as nodes
from rc_tasks.steps.publish import smoke as smoke_tests
from rc_tasks.tools import command, failures, slurm, squashfs
from rc_tasks.tools.command import Command
from rc_tasks.tools.podman import Image, Podman

# A trial takes half a second; a hanging file system must not stop the other checks.
_LIMIT_S = 60.0
# The OCI runtimes that podman knows and distributions have (containers.conf(5)).
_RUNTIMES = ("crun", "runc")
# Programs that distributions link statically, with arguments for which they exit with 0. Debian's
# ldconfig is a program, Ubuntu's is a script around ldconfig.real; catatonit comes with podman.
_PROGRAMS = {
    "busybox": "true",
    "ldconfig": "--version",
    "ldconfig.real": "--version",
    "catatonit": "--version",
}
_PLACES = ("/bin", "/usr/bin", "/sbin", "/usr/sbin", "/usr/libexec/podman", "/usr/libexec/catatonit")
_PT_INTERP = 3
_HEADER = "# Settings of this clone alone; ./bootstrap.sh writes what podman needs on this machine.\n"

NOT_TRIED = "no RUN and no container was tried: this node has no statically linked program"


class StaticProgram(Struct, frozen=True):
    """A program that runs in an image without any other file; with `argument` it exits with 0."""

    path: Path
    argument: str

    @property
    def argv(self) -> tuple[str, str]:
        """Its command in an image that has it at the top."""
        return f"/{self.path.name}", self.argument


class Trial(Struct, frozen=True):
    """A directory that holds one static program: a build context, and a root file system."""

    directory: Path
    program: StaticProgram
    volumes: tuple[str, ...] = ()

    def run_error(self, engine: Podman) -> str:
        """Return why a RUN fails, in one line of the tool, or an empty string when it works."""
        with tempfile.TemporaryDirectory(dir=self.directory.parent) as scratch:
            iidfile, ignorefile, dockerfile = (Path(scratch, name) for name in ("iid", "ignore", "file"))
            ignorefile.touch()
            copied, argument = self.program.argv
            dockerfile.write_text(
                f'FROM scratch\nCOPY {copied[1:]} /\nRUN ["{copied}", "{argument}"]\n', encoding="utf-8"
            )
            invocation = engine.build(
                self.directory,
                dockerfile,
                tag="",
                iidfile=iidfile,
                ignorefile=ignorefile,
                sources={},
                build_args={},
                volumes=self.volumes,
                cached=False,
                limits={"nofile": nodes.open_files(), "nproc": nodes.processes()},
            )
            # After a failure, podman would keep the layer of the COPY.
            error = _error(replace(invocation, env={"BUILDAH_LAYERS": "false"}))
            if not error:
                engine.remove_image(iidfile.read_text(encoding="ascii").strip())
            return error

    def start_error(self, engine: Podman) -> str:
        """Return why podman starts no container, in one line, or an empty string when it does."""
        return _error(
            engine.run(str(self.directory), self.program.argv, rootfs=True, limits=launch.limits())
        )


class Fit(Struct, frozen=True):
    """How podman is to be set up on this node, and what then still fails."""

    isolation: str
    runtime: str
    run_error: str
    start_error: str

    def settings(self, engine: Podman) -> dict[str, str]:
        """Return the settings that differ from those of `engine`, by their keys in [podman]."""
        pairs = {"isolation": self.isolation, "runtime": self.runtime}
        return {key: value for key, value in pairs.items() if value != getattr(engine, key)}


def best_fit(trial: Trial, engine: Podman) -> Fit:
    """Return the first way in which both trials succeed, else the first with a RUN, else the present.

    An OCI runtime comes before the chroot isolation, which starts no containers.
    """
    others = [name for name in _RUNTIMES if name != engine.runtime and command.which(name) is not None]
    ways = [(engine.isolation, engine.runtime)]
    ways += [(Isolation.DEFAULT, runtime) for runtime in others]
    ways += [(Isolation.CHROOT, runtime) for runtime in (engine.runtime, *others)]
    fits = []
    for isolation, runtime in dict.fromkeys(ways):
        tried = replace(engine, isolation=isolation, runtime=runtime)
        fits.append(Fit(isolation, runtime, trial.run_error(tried), trial.start_error(tried)))
        if not fits[-1].run_error and not fits[-1].start_error:
            break
    # min() keeps the first of equals.
    return min(fits, key=lambda fit: (bool(fit.run_error), bool(fit.start_error)))


@contextlib.contextmanager
def prepared(volumes: tuple[str, ...] = ()) -> Iterator[Trial | None]:
    """Provide a trial, or None where no program is linked statically; leave nothing behind."""
    program = static_program()
    if program is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="rc_tasks.doctor.", dir=nodes.temporary_files()) as scratch:
        directory = Path(scratch, "root")
        directory.mkdir()
        shutil.copy(program.path, directory / program.path.name)
        yield Trial(directory, program, volumes)


def findings(checkout: Checkout) -> Iterator[Finding]:
    """Try a RUN and the start of a container, and yield how they ended."""
    try:
        engine = nodes.storage(checkout.settings.podman)
        nodes.temporary_files()
    except RcError:
        return  # other checks report it
    try:
        with prepared(checkout.settings.podman.volumes) as trial:
            if trial is None:
                yield Finding(Level.WARNING, NOT_TRIED, "install busybox-static, and run it again")
                return
            # The search takes several builds, and both trials may need its result.
            fit = functools.cache(lambda: best_fit(trial, engine))
            yield from _run(trial, engine, fit)
            yield from _start(trial, engine, checkout, fit)
    except (RcError, OSError) as error:
        yield Finding(Level.PROBLEM, f"no RUN could be tried: {error}")


def write_settings(checkout: Checkout) -> None:
    """Write what podman needs on this host into the checkout's own settings, if it needs anything.

    Do nothing where steps run through Slurm: their nodes may differ. Raise RcError when no RUN works.
    """
    if checkout.settings.runner is not Runner.LOCAL and slurm.configured():
        return
    engine = nodes.storage(checkout.settings.podman)
    with prepared(checkout.settings.podman.volumes) as trial:
        if trial is None:
            return
        fit = best_fit(trial, engine)
    if fit.run_error:
        raise RcError(
            f"podman cannot carry out a RUN here: {fit.run_error}", hint=_advice(fit.run_error)
        )
    if settings := fit.settings(engine):
        _write(checkout.root / LOCAL_FILE, settings)
        print(f"podman works here with {_shown(settings)}: written into {checkout.root / LOCAL_FILE}")
    if fit.start_error:
        print(f"podman starts no containers here: {fit.start_error}")


def static_program() -> StaticProgram | None:
    """Return a statically linked program of this host, or None."""
    for name, argument in _PROGRAMS.items():
        for place in (*os.get_exec_path(), *_PLACES):
            path = Path(place, name)
            if os.access(path, os.X_OK) and _is_static(path):
                return StaticProgram(path, argument)
    return None


def _is_static(path: Path) -> bool:
    """Return whether a file is an ELF program of 64 bits that asks for no other program (elf(5))."""
    try:
        content = path.read_bytes()
        if content[:5] != b"\x7fELF\x02":
            return False
        order = "<" if content[5] == 1 else ">"
        (table,) = struct.unpack_from(f"{order}Q", content, 32)
        size, count = struct.unpack_from(f"{order}HH", content, 54)
        kinds = [struct.unpack_from(f"{order}I", content, table + size * at)[0] for at in range(count)]
    except (OSError, struct.error):
        return False
    return _PT_INTERP not in kinds


def _run(trial: Trial, engine: Podman, find_fit: Callable[[], Fit]) -> Iterator[Finding]:
    error = trial.run_error(engine)
    if not error:
        yield Finding(Level.OK, "a RUN works")
        return
    fit = find_fit()
    hint = _advice(error) if fit.run_error else _cure(fit.settings(engine))
    yield Finding(Level.PROBLEM, f"no RUN works: {error}", hint)


def _start(
    trial: Trial, engine: Podman, checkout: Checkout, find_fit: Callable[[], Fit]
) -> Iterator[Finding]:
    try:
        launcher = smoke_tests.choose(checkout)
    except RcError:
        return  # other checks report it
    hint = ""
    if launcher is Launcher.PODMAN:
        error = trial.start_error(engine)
        if error:
            fit = find_fit()
            hint = _advice(error) if fit.start_error else _cure(fit.settings(engine))
    elif trial.program.path.name != "busybox":
        # Enroot starts every container by a shell script in the image.
        yield Finding(Level.WARNING, f"no container was tried with {launcher}: it needs busybox-static")
        return
    else:
        error = _launched(trial, launcher)
        hint = _advice(error)
    if not error:
        yield Finding(Level.OK, f"a container starts with {launcher}")
        return
    tested = any(smoke.smoke_tests(checkout.graph, node) for node in checkout.graph.images.values())
    level = Level.PROBLEM if tested else Level.WARNING
    yield Finding(level, f"no container starts with {launcher}: {error}", hint)


def _launched(trial: Trial, launcher: Launcher) -> str:
    """Return why a launcher does not start an image made of busybox, or an empty string."""
    root, private = trial.directory, trial.directory.parent
    (root / "bin").mkdir()
    (root / "busybox").rename(root / "bin/busybox")
    for applet in ("sh", "true"):
        (root / "bin" / applet).symlink_to("busybox")
    for name in ("dev", "proc", "sys", "etc", "tmp", "run", "var"):
        (root / name).mkdir()
    image = Image("", "", 0, ("PATH=/bin",), {}, (), (), "", (), ())
    rootfs.prepare(root, image, ())
    file, edf = private / "image.sqsh", private / "doctor.toml"
    command.capture(
        squashfs.mksquashfs(
            root,
            file,
            compression=Compressor.GZIP,
            level=1,
            block_size_bytes=131072,
            processors=1,
            memory_bytes=64 << 20,
        )
    )
    edf.write_text(f'image = "{file}"\n', encoding="utf-8")
    request = smoke_tests.request_for("doctor", launcher)
    resolved = launch.resolve(str(edf), environ=os.environ, cwd=private)
    started = launch.command(launcher, str(edf), resolved, ("true",), request, interactive=False)
    return _error(smoke_tests.surroundings(started, launcher, private))


def _error(invocation: Command) -> str:
    """Run a command; return the line in which it says why it failed, or an empty string."""
    try:
        done = command.capture(invocation, timeout_s=_LIMIT_S, check=False)
    except RcError as error:
        return error.what
    if done.returncode == 0:
        return ""
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    own = [line for line in lines if line.startswith("error running container: ")]
    line = (own or lines or [command.ending(done.returncode)])[-1]
    return re.sub(r"creating container for \[.*?\]: ", "creating container: ", line)


def _cure(settings: dict[str, str]) -> str:
    own = " (`./bootstrap.sh setup` does)" if slurm.job_id() is None else ""
    return (
        f"it works with {_shown(settings)}: write that below [tool.rc_tasks] in pyproject.toml\n"
        f"for every clone, or into {LOCAL_FILE} for this one{own}"
    )


def _advice(error: str) -> str:
    cause = failures.find([error], (*failures.PODMAN, *failures.LIMITS))
    return cause.hint if cause is not None else "show this to the site, with `podman info`"


def _shown(settings: dict[str, str]) -> str:
    return " and ".join(f'podman.{key} = "{value}"' for key, value in settings.items())


def _write(path: Path, settings: dict[str, str]) -> None:
    from rc_tasks.util import toml_edit  # tomlkit: 24 ms

    text = path.read_text(encoding="utf-8") if path.exists() else _HEADER
    for key, value in settings.items():
        changed = toml_edit.with_value(text, ("podman", key), value)
        if changed is None:
            raise RcError("cannot be changed here", where=path, hint=f"write {_shown(settings)}")
        text = changed
    write_atomically(path, text)
