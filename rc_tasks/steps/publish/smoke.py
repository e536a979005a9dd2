"""Runs an image's smoke tests in its SquashFS file, started as its users will start it.

The EDF is the one that the env step writes, laid under a second one that names the file and gives the
tests an empty home: the image is tested, not what its builder has in ~/.local. The ENTRYPOINT runs where
the EDF says so.
"""

import contextlib
import functools
import hashlib
import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from rc_tasks.errors import (
    ArtifactError,
    CommandError,
    EdfError,
    RcError,
    ToolNotFoundError,
    UnreachableError,
)
from rc_tasks.model.config.settings import Launcher
from rc_tasks.model.edf import schema
from rc_tasks.model.graph.graph import ImageNode
from rc_tasks.model.graph.project import EDF
from rc_tasks.model.graph.smoke import SmokeTest
from rc_tasks.state.checkout import Checkout
from rc_tasks.state.records.records import Facts, Passed
from rc_tasks.steps.container import failure, launch
from rc_tasks.steps.node import node as nodes
from rc_tasks.steps.publish import env_toml
from rc_tasks.tools import command, slurm, slurm_words
from rc_tasks.tools.command import Command
from rc_tasks.tools.slurm_request import StepRequest
from rc_tasks.util import toml_text
from rc_tasks.util.text import log_line

# The home directory inside of the container.
_HOME = "/rc_smoke_home"
# Of what a test prints, the log gets this much of the beginning and this much of the end.
_HEAD_BYTES = 1 << 20
_TAIL_BYTES = 1 << 14
# How long a line of it may be in the log, and in what the run shows.
_WIDTH = 1000
_QUOTE_WIDTH = 160
# What to do when a test ran, and failed.
_CORRECT = "correct the image or the test"
# What podman is given beyond our own limit, which is to come first.
_SPARE_S = 60
# Set by us for this step alone, they name directories that a container does not have.
_OURS = frozenset({"TMPDIR", "XDG_RUNTIME_DIR"})


def run(
    checkout: Checkout,
    node: ImageNode,
    facts: Facts,
    image: Path,
    tests: tuple[SmokeTest, ...],
) -> tuple[Passed, ...]:
    """Run the tests in a SquashFS file, one after the other; nothing of them is left running.

    Raises ArtifactError for the first that fails, ToolNotFoundError when nothing can start a container
    here, and EdfError.
    """
    if not tests:
        return ()
    launcher = choose(checkout)
    engine = nodes.storage(checkout.settings.podman)
    with launch.private_directory("smoke", engine) as private, contextlib.ExitStack() as held:
        home = private / "home"
        home.mkdir()
        reference = _write_edfs(checkout, node, facts, image, private)
        try:
            resolved = launch.resolve(str(reference), environ=os.environ, cwd=Path.cwd())
        except EdfError as error:
            # That file goes with us; the one that people can mend has the same lines.
            where = str(error.where).replace(str(private / EDF), node.project.shown(EDF))
            raise error.with_where(where) from None
        name, unpacked = _container(node), None
        if launcher is Launcher.PODMAN:
            opened = launch.podman_image(resolved, engine, checkout, from_file=True)
            unpacked = held.enter_context(opened)
            # What hangs in a container outlives the podman that was ended.
            held.push(lambda error, *_: engine.remove(name) if error else None)
        request = _request(node, launcher)
        passed = []
        for number, test in enumerate(tests, 1):
            print(f"smoke test {number} of {len(tests)} ({launcher}): {test.line}", flush=True)
            wanted = launch.command(
                launcher,
                str(reference),
                resolved,
                test.argv,
                request,
                interactive=False,
                engine=engine,
                image=unpacked,
                name=name,
                limit_s=test.timeout_s + _SPARE_S,
            )
            around = _surroundings(wanted, launcher, private)
            attempt = functools.partial(_try, around, test, launcher, request, node)
            duration_s = _run(attempt, test, node)
            print(f"passed in {duration_s:.1f} s", flush=True)
            passed.append(Passed(test.argv, launcher, round(duration_s, 3)))
    return tuple(passed)


def choose(checkout: Checkout) -> Launcher:
    """What starts the tests' containers on this node. Raises ToolNotFoundError."""
    try:
        found, _ = launch.choose(checkout.settings.launcher, through_slurm=_on_node_of_job())
    except ToolNotFoundError as error:
        hint = f"{error.hint}\n" if error.hint else ""
        raise ToolNotFoundError(
            f"smoke tests cannot run on this node: {error.what}",
            where=error.where,
            hint=f"{hint}nothing is published untested, unless `smoke = []` in its project.toml says so",
        ) from None
    return found


def _on_node_of_job() -> bool:
    # Under salloc we may still be on the login node, whose files srun's nodes do not have.
    return slurm.job_id() is not None and "SLURMD_NODENAME" in os.environ


def _request(node: ImageNode, launcher: Launcher) -> StepRequest | None:
    """What srun is asked for: to start the container on this node, inside of our own step."""
    if launcher not in {Launcher.CE, Launcher.PYXIS}:
        return None
    here = f"--nodelist={nodes.this_node().name}"
    return StepRequest(f"smoke:{node.project.name}", extra=(here, "--input=none"))


def _surroundings(wanted: Command, launcher: Launcher, private: Path) -> Command:
    if launcher in {Launcher.CE, Launcher.PYXIS}:
        # They hand our variables on to the container.
        return Command(wanted.argv, wanted.cwd, wanted.env, wanted.unset | _OURS)
    if launcher is Launcher.ENROOT and "XDG_RUNTIME_DIR" not in os.environ:
        # Its default lies in /run, where users may not write.
        return Command(
            wanted.argv, wanted.cwd, {**wanted.env, "XDG_RUNTIME_DIR": str(private)}, wanted.unset
        )
    return wanted


def _write_edfs(checkout: Checkout, node: ImageNode, facts: Facts, image: Path, private: Path) -> Path:
    """Write the EDF that users will get, and the one of the tests on top of it; returns that one."""
    _, text = env_toml.texts(checkout, node, facts)
    users = private / EDF
    users.write_text(_without_missing_mounts(text, node), encoding="utf-8")
    ours = private / "smoke.toml"
    lines = {
        "base_environment": str(users),
        "image": str(image),
        "mounts": [f"{private / 'home'}:{_HOME}"],
        "env.HOME": _HOME,
    }
    ours.write_text(
        "".join(f"{key} = {toml_text.dump(value)}\n" for key, value in lines.items()), encoding="utf-8"
    )
    schema.check(ours.read_text(encoding="utf-8"), "the EDF of the smoke tests")
    return ours


def _without_missing_mounts(text: str, node: ImageNode) -> str:
    """The EDF without what this machine does not have, such as a site's file systems on a laptop."""
    mounts = schema.loads(text, node.project.shown(EDF)).mounts
    missing = [
        mount
        for mount in mounts
        if mount.startswith("/") and "${" not in mount and not os.path.exists(mount.partition(":")[0])
    ]
    if not missing:
        return text
    from rc_tasks.util import toml_edit  # tomlkit: 24 ms

    print(f"not on this node, so not mounted: {', '.join(missing)}", flush=True)
    kept = [mount for mount in mounts if mount not in missing]
    return toml_edit.with_value(text, ("mounts",), kept) or text


def _run(attempt: Callable[[], float], test: SmokeTest, node: ImageNode) -> float:
    """How long the test took, by `_try`. Raises ArtifactError when it fails."""
    try:
        return slurm.patiently(attempt, functools.partial(print, flush=True))
    except UnreachableError as error:
        raise _not_run(test, node, error) from None


def _try(
    wanted: Command,
    test: SmokeTest,
    launcher: Launcher,
    request: StepRequest | None,
    node: ImageNode,
) -> float:
    """How long the test took. Raises ArtifactError, and UnreachableError when Slurm did not answer."""
    said = _Said()
    started_s = time.monotonic()
    try:
        status = command.pour(wanted, said.add, timeout_s=test.timeout_s)
    except (CommandError, ToolNotFoundError) as error:
        raise _not_run(test, node, error) from None
    finally:
        said.end()
    if status == 0:
        return time.monotonic() - started_s
    last = tuple(said.last)
    if status is None:
        longer = f"{_CORRECT}, or give it longer with smoke_timeout_s"
        raise _failed(test, node, f"did not end within {test.timeout_s} s", last, longer)
    refused = slurm_words.explain(status, last, request) if request is not None else None
    if isinstance(refused, UnreachableError):
        raise refused
    if request is not None and launch.refused_entrypoint(last):
        how = "could not be started: the image's ENTRYPOINT does not run it"
        raise _failed(test, node, how, last, launch.ENTRYPOINT_HINT)
    if refused is not None:
        raise _not_run(test, node, refused.with_quote(last))
    hint = failure.hint(launcher, status, last)
    raise _failed(test, node, command.ending(status), last, hint or _CORRECT)


def _not_run(test: SmokeTest, node: ImageNode, error: RcError) -> RcError:
    """What failed is not the test, but what was to start it."""
    hint = error.hint or "the lines above are those of what starts containers: `doit doctor` checks it"
    return _failed(test, node, f"could not run: {error.what}", error.quote, hint)


def _failed(test: SmokeTest, node: ImageNode, how: str, quote: tuple[str, ...], hint: str) -> RcError:
    there = os.path.exists(node.project.artifact)
    kept = "the image that was there before stays" if there else "nothing was published"
    return ArtifactError(
        f"smoke test {how}: {test}",
        where=test.where,
        quote=quote,
        hint=f"{hint}, and run `doit build:{node.project.name}`;\n{kept}",
    )


@dataclass(slots=True)
class _Said:
    """What a test prints, passed on to the log: its beginning as it comes, then its end.

    Each line is marked as the test's own, so that none can be taken for ours or Slurm's.
    """

    last: deque[str] = field(default_factory=lambda: deque(maxlen=command.TAIL_LINES))
    _rest: bytes = b""
    _told_bytes: int = 0
    _left_out_bytes: int = 0

    def add(self, chunk: bytes) -> None:
        """Take some more of it."""
        if self._told_bytes > _HEAD_BYTES:
            whole = self._rest + chunk
            self._rest = whole[-_TAIL_BYTES:]
            self._left_out_bytes += len(whole) - len(self._rest)
            return
        self._told_bytes += len(chunk)
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        if len(self._rest) > _TAIL_BYTES:
            lines, self._rest = [*lines, self._rest], b""
        self._tell(lines)

    def end(self) -> None:
        """It was the last."""
        if self._left_out_bytes:
            print(f"  … {self._left_out_bytes} bytes left out", flush=True)
        self._tell(self._rest.split(b"\n") if self._rest else [])
        self._rest = b""

    def _tell(self, lines: list[bytes]) -> None:
        for line in lines:
            shown = _cut(log_line(line), _WIDTH)
            self.last.append(_cut(shown, _QUOTE_WIDTH))
            print(f"  | {shown}".rstrip())
        # Whoever follows the log waits for it.
        print(end="", flush=True)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[:width]}…"


def _container(node: ImageNode) -> str:
    # The same each time, so that the next test removes what a killed one left: the image's lock is held.
    return "rc-smoke-" + hashlib.sha256(os.fsencode(node.project.directory)).hexdigest()[:16]
