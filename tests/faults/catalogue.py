"""Every injection of the suite: what is broken, when, and what may be done again because of it."""

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from rc_tasks.state.disk.processes import space
from rc_tasks.state.records.records import Step
from tests.faults.ground import BASE, CHILD, IMAGES, Ended, Ground, Place, Run
from tests.faults.injected import largest_layer, overwrite
from tests.faults.plan import LOST_VARIABLE, MOUNT_PHASES, PHASES, Action, Injection, Phase
from tests.support.storage import remove_storage

# Longer than Slurm's clients wait for its controller by themselves.
_AWAY_S = 15.0
# Who waits for a hanging tool loses patience.
_PATIENCE_S = 1.5


class Ends(StrEnum):
    """How a run has to end: with status 0, with another one, or as it happens."""

    WELL = "well"
    BADLY = "badly"
    EITHER = "either"


@dataclass(frozen=True, slots=True)
class Case:
    """One injection. `run` lets it happen and returns the run that it hit.

    `again` are finished steps that have to be done again, as the fault destroyed what they made.
    `ends`: what the run that was hit has to say of itself. `place`: where the steps run.
    """

    fault: str
    moment: str
    image: str
    run: Callable[[Ground], Ended]
    again: frozenset[str] = frozenset()
    ends: Ends = Ends.EITHER
    place: Place = Place.HOST

    @property
    def name(self) -> str:
        """What the case is called."""
        return f"{self.fault}, {self.moment}, {self.image}"


def cases() -> Iterator[Case]:
    """All injections, each once."""
    yield from _in_steps()
    yield from _on_mounted_layers()
    yield from _tools()
    yield from _damaged_images()
    yield from _damaged_layers()
    yield from _damaged_records()
    yield from _damaged_state()
    yield from _clock()
    yield from _two_runs()
    yield from _stopped_holders()
    yield from _moving_trees()
    yield from _dead_nodes()
    yield from _slurmstepd()
    yield from _controller()


def _in_steps() -> Iterator[Case]:
    apart = {Action.STOP, Action.WAIT, Action.KILL_SLURMSTEPD, Action.MOVE_TREE}
    apart |= {Action.DAMAGE_LAYER, Action.REMOVE_LAYER}
    # tests/integration/test_user_faults.py: root mounts with loop devices.
    apart |= {Action.KILL_FUSE}
    alone = [action for action in Action if action not in apart]
    for action, (step, phases), image in itertools.product(alone, PHASES.items(), IMAGES):
        for phase in phases:
            if _makes_sense(action, phase):
                yield Case(str(action), f"{step} {phase}", image, _injected(step, image, phase, action))


def _on_mounted_layers() -> Iterator[Case]:
    """Steps that end while layers are mounted, on a node that had nothing before."""
    actions = (Action.KILL_STEP, Action.TERM_STEP, Action.KILL_TOOL, Action.KILL_RUN, Action.FULL_DISK)
    for action, (step, phases) in itertools.product(actions, PHASES.items()):
        if step not in MOUNT_PHASES:
            continue
        for phase in (*phases, *MOUNT_PHASES[step]):
            if _makes_sense(action, phase):
                run = _on_an_empty_node(_injected(step, CHILD, phase, action))
                moment = f"{step} {phase}"
                yield Case(f"{action}, mounted layers", moment, CHILD, run, place=Place.MOUNTING)


def _makes_sense(action: Action, phase: Phase) -> bool:
    if action is Action.KILL_TOOL:
        return phase is Phase.DURING
    # A process loses its rights thread by thread: only the one that acts can be hit.
    return action is not Action.NO_PERMISSION or phase not in {Phase.DURING, Phase.COPY}


def _injection(ground: Ground, step: str, image: str, phase: Phase, action: Action) -> Injection:
    done = ground.scratch / f"{ground.number}.done"
    return Injection(step, image, phase, action, str(ground.root), str(ground.filler), str(done))


def _injected(step: str, image: str, phase: Phase, action: Action) -> Callable[[Ground], Ended]:
    def run(ground: Ground) -> Ended:
        ground.change(image, large=phase is Phase.DURING)
        wanted = _injection(ground, step, image, phase, action)
        ended = ground.run(injection=wanted)
        ground.lift()
        if not Path(wanted.done).exists():
            raise RuntimeError(f"the moment did not come: {ended.text}")
        return ended

    return run


def _tools() -> Iterator[Case]:
    """Tools that are slow, hang, or lie."""
    halved = 'cut() { truncate -s -1000000 "$1"; }\n'
    real = {"podman": "build", "mksquashfs": "-noappend"}
    behaviours = {
        "slow tool": 'sleep 1\nexec {real} "$@"',
        "hanging tool": "exec sleep 1234.5",
        "exit 0 with no output": "exit 0",
        "exit 1 with a good file": '{real} "$@"\nexit 1',
        "killed after a good file": '{real} "$@"\nkill -9 $$',
        "half a file, exit 0": halved
        + '{real} "$@"\nfor each; do case $each in *sqsh*) cut "$each"; esac; done',
    }
    for (fault, script), (tool, word), image in itertools.product(
        behaviours.items(), real.items(), IMAGES
    ):
        if fault.startswith("half") and tool == "podman":
            continue
        yield Case(
            fault,
            tool,
            image,
            _with_tool(fault, tool, word, script, image),
            ends=Ends.WELL if fault == "slow tool" else Ends.BADLY,
        )


def _with_tool(fault: str, tool: str, word: str, script: str, image: str) -> Callable[[Ground], Ended]:
    def run(ground: Ground) -> Ended:
        ground.change(image)
        real = shutil.which(tool)
        programs = ground.scratch / f"{ground.number}.bin"
        programs.mkdir()
        shim = programs / tool
        told = script.replace("{real}", str(real))
        shim.write_text(
            f'#!/bin/sh\ncase " $* " in *" {word} "*) ;; *) exec {real} "$@" ;; esac\n{told}\n'
        )
        shim.chmod(0o755)
        running = ground.start(PATH=f"{programs}:{os.environ['PATH']}")
        if fault != "hanging tool":
            ended = running.end()
        else:
            running.started(f"{'podman' if tool == 'podman' else 'enroot'}:{image}")
            time.sleep(_PATIENCE_S)
            ended = running.end(signal.SIGINT)
        ground.settle()
        return ended

    return run


def _damaged_images() -> Iterator[Case]:
    def shorter(path: Path) -> None:
        os.truncate(path, path.stat().st_size // 2)

    def empty(path: Path) -> None:
        os.truncate(path, 0)

    def other(path: Path) -> None:
        path.write_bytes(os.urandom(path.stat().st_size))

    def gone(path: Path) -> None:
        path.unlink()

    def head(path: Path) -> None:
        with path.open("r+b") as file:
            file.write(b"\0" * 4096)

    damages = {"truncated": shorter, "emptied": empty, "overwritten": other, "gone": gone, "head": head}
    for (moment, damage), image in itertools.product(damages.items(), IMAGES):
        task = f"enroot:{image}"
        yield Case(
            "damaged image.sqsh",
            moment,
            image,
            _damaged(lambda ground, image=image: ground.artifact(image), damage),
            frozenset({task}),
            Ends.WELL,
        )


def _damaged_layers() -> Iterator[Case]:
    """Files of the layer that all images share, between two runs and while it is copied."""

    def record(path: Path) -> Path:
        return path.with_name("layer.json")

    damages: dict[str, Callable[[Path], object]] = {
        "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
        "one block overwritten": overwrite,
        "gone": Path.unlink,
        "record gone": lambda path: record(path).unlink(),
        "record truncated": lambda path: os.truncate(record(path), 20),
    }
    for (moment, damage), image in itertools.product(damages.items(), IMAGES):
        run = _damaged_then_changed(lambda ground: largest_layer(ground.root), damage, image)
        yield Case("damaged layer", moment, image, run, ends=Ends.WELL)
    for action, image in itertools.product((Action.DAMAGE_LAYER, Action.REMOVE_LAYER), IMAGES):
        run = _injected("enroot", image, Phase.COPY, action)
        yield Case(str(action), f"enroot {Phase.COPY}", image, run, ends=Ends.WELL)


def _damaged_records() -> Iterator[Case]:
    def write(text: str) -> Callable[[Path], object]:
        return lambda path: path.write_text(text)

    def foreign(path: Path) -> None:
        found = json.loads(path.read_text())
        path.write_text(json.dumps(found | {"task": "podman:somebody else's"}))

    def later(path: Path) -> None:
        found = json.loads(path.read_text())
        path.write_text(json.dumps(found | {"schema": 99}))

    def directory(path: Path) -> None:
        path.unlink()
        path.mkdir()

    damages = {
        "empty": write(""),
        "half": lambda path: os.truncate(path, path.stat().st_size // 2),
        "garbage": lambda path: path.write_bytes(os.urandom(300)) and None,
        "endless nesting": write("[" * 100_000),
        "another task's": foreign,
        "of a later version": later,
        "gone": lambda path: path.unlink(),
        "a directory": directory,
    }
    for (moment, damage), step, image in itertools.product(damages.items(), Step, IMAGES):
        # What is built on it has the same image under it as before: podman answers from its cache.
        again = {f"{step}:{image}"}
        if step is Step.PODMAN:
            again |= {f"podman:{each}" for each in IMAGES}
        yield Case(
            "damaged record",
            f"{step}: {moment}",
            image,
            _damaged(
                lambda ground, step=step, image=image: ground.record_path(step, image),
                damage,
                removes=moment == "a directory",
            ),
            frozenset(again),
        )


def _damaged_state() -> Iterator[Case]:
    """Everything else below .rc, and image.json and env.toml."""

    def garbage(path: Path) -> None:
        path.write_bytes(b'{"schema": "\xff')

    def blob(ground: Ground) -> Path:
        """The largest blob of the store: the layer that all images share."""
        return max(
            (ground.root / ".rc/store/blobs/sha256").iterdir(), key=lambda path: path.stat().st_size
        )

    def inside(path: Path) -> None:
        os.chmod(path, 0o644)
        with path.open("r+b") as file:
            file.seek(1000)
            file.write(b"damage")

    for image in IMAGES:
        yield Case(
            "damaged image.json",
            "garbage",
            image,
            _damaged(lambda ground, image=image: ground.directory(image) / "image.json", garbage),
            frozenset({f"enroot:{image}"}),
        )
        yield Case(
            "damaged env.toml",
            "gone",
            image,
            _damaged(lambda ground, image=image: ground.directory(image) / "env.toml", Path.unlink),
            frozenset({f"env:{image}"}),
        )
    for pattern in ("store/cache/*.json", "history/*.jsonl", "cache/*", "manifests/*/*.json"):
        yield Case("damaged notes", pattern, "all", _all_damaged(pattern, garbage), ends=Ends.WELL)
    yield Case(
        "damaged blob",
        "empty node, base rebuilt",
        CHILD,
        _on_an_empty_node(_damaged_then_changed(blob, inside, CHILD)),
        frozenset({f"podman:{BASE}", f"podman:{CHILD}", f"enroot:{BASE}"}),
    )
    yield Case(
        "lock of a dead process",
        "before the run",
        CHILD,
        _left_lock(json.dumps(_dead_holder())),
    )


def _dead_holder() -> dict[str, object]:
    gone = subprocess.Popen(("true",))
    gone.wait()
    return {
        "step": f"podman:{CHILD}",
        "user": "somebody",
        "node": os.uname().nodename,
        "pid": gone.pid,
        "job_id": "",
        "since": "2026-01-02T03:04:05+00:00",
        "space": space(),
    }


def _damaged(
    where: Callable[[Ground], Path], damage: Callable[[Path], object], *, removes: bool = False
) -> Callable[[Ground], Ended]:
    def run(ground: Ground) -> Ended:
        path = where(ground)
        damage(path)
        ended = ground.run()
        if removes and path.is_dir():
            # It is in the way, which the run has to say.
            path.rmdir()
        return ended

    return run


def _all_damaged(pattern: str, damage: Callable[[Path], None]) -> Callable[[Ground], Ended]:
    def run(ground: Ground) -> Ended:
        found = list((ground.root / ".rc").glob(pattern))
        if not found:
            raise RuntimeError(f"no file .rc/{pattern}")
        for path in found:
            damage(path)
        ground.change(CHILD)
        return ground.run()

    return run


def _damaged_then_changed(
    where: Callable[[Ground], Path], damage: Callable[[Path], object], image: str
) -> Callable[[Ground], Ended]:
    def run(ground: Ground) -> Ended:
        damage(where(ground))
        ground.change(image)
        return ground.run()

    return run


def _on_an_empty_node(run: Callable[[Ground], Ended]) -> Callable[[Ground], Ended]:
    def emptied(ground: Ground) -> Ended:
        storage = Path(ground.podman.root).parent
        remove_storage(storage)
        storage.mkdir()
        return run(ground)

    return emptied


def _left_lock(text: str) -> Callable[[Ground], Ended]:
    def run(ground: Ground) -> Ended:
        ground.change(CHILD)
        (ground.root / f".rc/locks/{CHILD}.json").write_text(text)
        return ground.run()

    return run


def _clock() -> Iterator[Case]:
    """The clock of the host goes back, or forth, between two runs or in one."""
    for moment, image in itertools.product(("-2d", "+2d", "-10y"), IMAGES):

        def run(ground: Ground, moment: str = moment, image: str = image) -> Ended:
            library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
            if library is None:
                raise RuntimeError("faketime is not installed")
            ground.change(image)
            return ground.run(LD_PRELOAD=str(library), FAKETIME=moment, FAKETIME_DONT_FAKE_MONOTONIC="1")

        yield Case("clock", moment, image, run, ends=Ends.WELL)


def _two_runs() -> Iterator[Case]:
    for image, gap_s in itertools.product(IMAGES, (0.0, 0.5, 1.0)):

        def run(ground: Ground, image: str = image, gap_s: float = gap_s) -> Ended:
            ground.change(image)
            first = ground.start()
            time.sleep(gap_s)
            second = ground.start()
            one, two = first.end(), second.end()
            ground.settle()
            twice = sorted(one.done & two.done)
            told = f"\nby both: {twice}" if twice else ""
            return Ended(one.status or two.status or bool(twice), one.text + two.text + told)

        yield Case("two runs at once", f"{gap_s:g} s apart", image, run, ends=Ends.WELL)


def _stopped_holders() -> Iterator[Case]:
    """A step is stopped until another run has taken its lock and published newer content; it goes on."""
    lost = {LOST_VARIABLE: "3"}
    for (step, phases), image in itertools.product(PHASES.items(), IMAGES):
        for phase in phases:

            def run(ground: Ground, step: str = step, phase: Phase = phase, image: str = image) -> Ended:
                ground.change(image, large=phase is Phase.DURING)
                wanted = _injection(ground, step, image, phase, Action.STOP)
                older = ground.start(injection=wanted, **lost)
                process = _stopped(Path(wanted.done), older)
                try:
                    ground.change(image)
                    newer = ground.start(**lost).end()
                finally:
                    os.kill(process, signal.SIGCONT)
                ended = older.end()
                ground.settle()
                # What the newer run has published, and nothing else.
                ground.before = dict(ground.marks)
                return Ended(newer.status or ended.status, newer.text + ended.text)

            yield Case(str(Action.STOP), f"{step} {phase}", image, run, ends=Ends.WELL)


def _moving_trees() -> Iterator[Case]:
    """A file changes while podman reads it, and is as before when the step ends."""
    # What was made of it may be wrong.
    again = frozenset(f"{step}:{image}" for step in ("podman", "enroot") for image in IMAGES)
    for phase in (Phase.BEFORE, Phase.DURING):
        run = _injected("podman", BASE, phase, Action.MOVE_TREE)
        yield Case(str(Action.MOVE_TREE), f"podman {phase}", BASE, run, again, Ends.WELL)


def _stopped(done: Path, running: Run) -> int:
    """Wait until the step has stopped itself; its process ID."""
    while running.process.poll() is None:
        with contextlib.suppress(OSError, ValueError):
            process = int(done.read_text())
            if Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "T":
                return process
        time.sleep(0.02)
    raise RuntimeError(f"the moment did not come: {running.text}")


def _dead_nodes() -> Iterator[Case]:
    """The node of a step dies; the step is tried again on another one, in the same run."""
    for (step, phases), image in itertools.product(PHASES.items(), IMAGES):
        for phase in phases:
            if phase is Phase.DURING:
                continue  # a step that waits beside its tool would go on when it has ended

            def run(ground: Ground, step: str = step, phase: Phase = phase, image: str = image) -> Ended:
                cluster = ground.cluster
                assert cluster is not None
                ground.change(image)
                wanted = _injection(ground, step, image, phase, Action.WAIT)
                running = ground.start(injection=wanted)
                while not Path(wanted.done).exists() and running.process.poll() is None:
                    time.sleep(0.05)
                listed = cluster.client("squeue", "--steps", "--noheader", "--format=%j %N")
                nodes = dict(line.split() for line in listed.stdout.splitlines() if ":" in line)
                node = nodes.get(f"{step}:{image}")
                if node is None:
                    raise RuntimeError(f"no node has the step: {listed}; {running.text}")
                cluster.kill_node(node)
                ended = running.end()
                cluster.revive()
                cluster.wait_ready()
                ground.settle()
                return ended

            yield Case("dead node", f"{step} {phase}", image, run, ends=Ends.WELL, place=Place.CLUSTER)


def _slurmstepd() -> Iterator[Case]:
    """srun waits for ever, while the step fails for want of its output, or ends well."""
    for step, phases in PHASES.items():
        for phase in phases:
            # Each takes the minute after which the step counts as lost.
            if phase in {Phase.BEFORE, Phase.BEFORE_RENAME, Phase.AFTER_RECORD}:
                action = Action.KILL_SLURMSTEPD
                run = _injected(step, CHILD, phase, action)
                yield Case(
                    str(action), f"{step} {phase}", CHILD, run, ends=Ends.WELL, place=Place.CLUSTER
                )


def _controller() -> Iterator[Case]:
    """Slurm's controller restarts, hangs, or loses its state, before a run or in it."""

    def restarts(ground: Ground) -> None:
        assert ground.cluster is not None
        ground.cluster.stop_controller()
        time.sleep(_AWAY_S)
        ground.cluster.start_controller()

    def hangs(ground: Ground) -> None:
        assert ground.cluster is not None
        with ground.cluster.frozen_controller():
            time.sleep(_AWAY_S)

    def forgets(ground: Ground) -> None:
        assert ground.cluster is not None
        ground.cluster.stop_controller()
        ground.cluster.start_controller(forgetful=True)

    faults = {
        "controller restarts": restarts,
        "controller hangs": hangs,
        "controller loses its state": forgets,
    }
    moments = ("before the run", *(f"{step}:{image}" for step in PHASES for image in IMAGES))
    for (fault, happen), moment in itertools.product(faults.items(), moments):

        def run(
            ground: Ground, happen: Callable[[Ground], None] = happen, moment: str = moment
        ) -> Ended:
            ground.change(BASE)
            if moment == "before the run":
                with ThreadPoolExecutor() as threads:
                    fault = threads.submit(happen, ground)
                    time.sleep(1)
                    running = ground.start()
                    fault.result()
            else:
                running = ground.start()
                running.started(moment)
                happen(ground)
            ended = running.end()
            ground.settle()
            return ended

        yield Case(fault, moment, "all", run, ends=Ends.WELL, place=Place.CLUSTER)
