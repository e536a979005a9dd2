"""Smoke tests: run in the image's SquashFS file, started as its users will start it.

The EDF of the tests names the file and extends the one that the env step writes. It gives the tests an
empty home, so that they test the image and not the ~/.local of its builder. The ENTRYPOINT runs where
the EDF says so.
"""

import contextlib
import functools
import hashlib
import os
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct, field

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

# The home directory inside the container.
_HOME = "/rc_smoke_home"
# The log gets this much of the beginning and this much of the end of a test's output.
_HEAD_BYTES = 1 << 20
_TAIL_BYTES = 1 << 14
# How long a line of the output may be in the log, and in the run's error.
_WIDTH = 1000
_QUOTE_WIDTH = 160
# The hint for a test that ran and failed.
_CORRECT = "correct the image or the test"
# podman's limit is longer than ours by this much, so that ours comes first.
_SPARE_S = 60
# Variables of this step that name directories which a container does not have.
_OURS = frozenset({"TMPDIR", "XDG_RUNTIME_DIR"})


def run(
    checkout: Checkout,
    node: ImageNode,
    facts: Facts,
    image: Path,
    tests: tuple[SmokeTest, ...],
) -> tuple[Passed, ...]:
    """Run the tests in a SquashFS file, one after the other; leave none of their processes running.

    Raise ArtifactError for the first that fails, ToolNotFoundError when nothing can start a container
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
            # Name the project's env.toml, which has the same lines: this file is removed.
            where = str(error.where).replace(str(private / EDF), node.project.shown(EDF))
            raise error.with_where(where) from None
        name, unpacked = _container(node), None
        if launcher is Launcher.PODMAN:
            started = launch.podman_image(resolved, engine, checkout, from_file=True)
            unpacked = held.enter_context(started)
            # A process that hangs in a container outlives the podman that was ended.
            held.push(lambda error, *_: engine.remove(name) if error else None)
        request = request_for(f"smoke:{node.project.name}", launcher)
        passed = []
        for number, test in enumerate(tests, 1):
            print(f"smoke test {number} of {len(tests)} ({launcher}): {test.line}", flush=True)
            invocation = launch.command(
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
            around = surroundings(invocation, launcher, private)
            attempt = functools.partial(_try, around, test, launcher, request, node)
            duration_s = _run(attempt, test, node)
            print(f"passed in {duration_s:.1f} s", flush=True)
            passed.append(Passed(test.argv, launcher, round(duration_s, 3)))
    return tuple(passed)


def choose(checkout: Checkout) -> Launcher:
    """Return the launcher of the tests' containers on this node. Raise ToolNotFoundError."""
    try:
        launcher, _ = launch.choose(checkout.settings.launcher, through_slurm=_on_node_of_job())
    except ToolNotFoundError as error:
        hint = f"{error.hint}\n" if error.hint else ""
        raise ToolNotFoundError(
            f"smoke tests cannot run on this node: {error.what}",
            where=error.where,
            hint=f"{hint}nothing is published untested, unless `smoke = []` in its project.toml says so",
        ) from None
    return launcher


def _on_node_of_job() -> bool:
    # Under salloc this may be the login node, whose local files srun's nodes do not have.
    return slurm.job_id() is not None and "SLURMD_NODENAME" in os.environ


def request_for(name: str, launcher: Launcher) -> StepRequest | None:
    """Return the srun request that starts the container on this node, inside our own step, or None."""
    if launcher not in {Launcher.CE, Launcher.PYXIS}:
        return None
    here = f"--nodelist={nodes.this_node().name}"
    return StepRequest(name, extra=(here, "--input=none"))


def surroundings(invocation: Command, launcher: Launcher, private: Path) -> Command:
    """Return the launcher's command as a step runs it; `private` is a directory of the step."""
    if launcher in {Launcher.CE, Launcher.PYXIS}:
        # Both pass our variables on to the container.
        return Command(invocation.argv, invocation.cwd, invocation.env, invocation.unset | _OURS)
    if launcher is Launcher.ENROOT and "XDG_RUNTIME_DIR" not in os.environ:
        # Its default lies in /run, where users may not write.
        return Command(
            invocation.argv,
            invocation.cwd,
            {**invocation.env, "XDG_RUNTIME_DIR": str(private)},
            invocation.unset,
        )
    return invocation


def _write_edfs(checkout: Checkout, node: ImageNode, facts: Facts, image: Path, private: Path) -> Path:
    """Write the EDF that users will get, and that of the tests, which extends it; return the latter."""
    _, text = env_toml.texts(checkout, node, facts)
    users_edf = private / EDF
    users_edf.write_text(_without_missing_mounts(text, node), encoding="utf-8")
    tests_edf = private / "smoke.toml"
    lines = {
        "base_environment": str(users_edf),
        "image": str(image),
        "mounts": [f"{private / 'home'}:{_HOME}"],
        "env.HOME": _HOME,
    }
    tests_edf.write_text(
        "".join(f"{key} = {toml_text.dump(value)}\n" for key, value in lines.items()), encoding="utf-8"
    )
    schema.check(tests_edf.read_text(encoding="utf-8"), "the EDF of the smoke tests")
    return tests_edf


def _without_missing_mounts(text: str, node: ImageNode) -> str:
    """Return the EDF without mounts that this node lacks, such as a site's file systems on a laptop."""
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
    """Return how long the test took, by `_try`. Raise ArtifactError when it fails."""
    try:
        return slurm.patiently(attempt, functools.partial(print, flush=True))
    except UnreachableError as error:
        raise _not_run(test, node, error) from None


def _try(
    invocation: Command,
    test: SmokeTest,
    launcher: Launcher,
    request: StepRequest | None,
    node: ImageNode,
) -> float:
    """Return how long the test took. Raise ArtifactError, or UnreachableError without Slurm's answer."""
    output = _Said()
    started_s = time.monotonic()
    try:
        # An interrupted test has nothing to save, and the person waits for the prompt. But srun needs
        # time to end the container: after KILL it would leave it running.
        grace_s = 0.0 if request is None else command.GRACE_S
        status = command.pour(invocation, output.add, timeout_s=test.timeout_s, grace_s=grace_s)
    except (CommandError, ToolNotFoundError) as error:
        raise _not_run(test, node, error) from None
    finally:
        output.end()
    if status == 0:
        return time.monotonic() - started_s
    last = tuple(output.last)
    if status is None:
        longer = f"{_CORRECT}, or give it longer with smoke_timeout_s"
        raise _failed(test, node, f"did not end within {test.timeout_s} s", last, longer)
    slurm_error = slurm_words.explain(status, last, request) if request is not None else None
    if isinstance(slurm_error, UnreachableError):
        raise slurm_error
    if request is not None and launch.refused_entrypoint(last):
        how = "could not be started: the image's ENTRYPOINT does not run it"
        raise _failed(test, node, how, last, launch.ENTRYPOINT_HINT)
    if slurm_error is not None:
        raise _not_run(test, node, slurm_error.with_quote(last))
    hint = failure.hint(launcher, status, last)
    raise _failed(test, node, command.ending(status), last, hint or _CORRECT)


def _not_run(test: SmokeTest, node: ImageNode, error: RcError) -> RcError:
    """Return the error of a test that could not start."""
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


class _Said(Struct):
    """Copies a test's output to the log: the beginning as it comes, then the end.

    Each line is marked, so that it cannot be mistaken for one of ours or of Slurm.
    """

    last: deque[str] = field(default_factory=lambda: deque(maxlen=command.TAIL_LINES))
    _rest: bytes = b""
    _told_bytes: int = 0
    _left_out_bytes: int = 0

    def add(self, chunk: bytes) -> None:
        """Take the next chunk of the output."""
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
        """Print the rest at the end of the output."""
        if self._left_out_bytes:
            print(f"  … {self._left_out_bytes} bytes left out", flush=True)
        self._tell(self._rest.split(b"\n") if self._rest else [])
        self._rest = b""

    def _tell(self, lines: list[bytes]) -> None:
        for line in lines:
            shown = _cut(log_line(line), _WIDTH)
            self.last.append(_cut(shown, _QUOTE_WIDTH))
            print(f"  | {shown}".rstrip())
        # Flush once: `doit log --follow` waits for the lines.
        print(end="", flush=True)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[:width]}…"


def _container(node: ImageNode) -> str:
    # The name is the same each time, so that the next test removes the container of a killed one. The
    # image's lock keeps others away.
    return "rc-smoke-" + hashlib.sha256(os.fsencode(node.project.directory)).hexdigest()[:16]
