"""One random checkout, edited and built step by step, and compared with clean builds after each step."""

import contextlib
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rc_tasks.model.graph.pin import LOCK, Pin
from rc_tasks.state.checkout import open_checkout
from tests.differential import edits, trees
from tests.differential.edits import Ground
from tests.differential.oracle import RUNC_FAILED, Built, Oracle, used
from tests.differential.recipes import WORDS, Scene
from tests.support.checkouts import SOURCE, write_checkout
from tests.support.doit import DOIT, unstamped
from tests.support.registry import Registry, serving
from tests.support.storage import remove_storage
from tests.support.tools import which

NAMES = ("b", "base", "lib", "tools:1", "app:2025.1", "x_y:0.1")
REPOSITORIES = ("reg/one:1", "reg/one:2", "reg/two:1")
# Of two storages, as of two nodes.
NODES = ("a", "b")
_GONE_S = 60.0
_RUN_S = 600.0
_LINES = 12
_FORM = re.compile(r"(?:ONBUILD )?[A-Z]+(?: --(?:mount=type=\w+(?:,\w+)?|from|chmod))?")
# What would lead doit to the developer's checkout, job or images.
_FOREIGN = ("RC_", "SLURM", "SALLOC", "SBATCH", "DOIT_", "CONTAINERS_", "STORAGE_", "GIT_", "XDG_")
# podman, with something that happens to the checkout while it builds a project.
_SHIM = """\
#!/bin/sh
for last; do :; done
build=
for word; do [ "$word" = build ] && build=1; done
place=$(cat {hooks}/place 2>/dev/null)
if [ -z "$build" ] || [ "$last" != "$place" -a "$PWD" != "$place" ] ||
    ! mv {hooks}/before {hooks}/before.ran 2>/dev/null; then
    exec {podman} "$@"
fi
sh {hooks}/before.ran >/dev/null 2>&1
{podman} "$@"
status=$?
sh {hooks}/after >/dev/null 2>&1
exit $status
"""


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A published image that is wrong, or one that should be there; `kind` is the likely instruction."""

    kind: str
    project: str
    report: str


@dataclass(slots=True)
class Counts:
    """What was seen in all steps."""

    steps: int = 0
    compared: int = 0
    oracle_builds: int = 0
    runs: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    failed_in_both: int = 0
    mismatches: Counter[str] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)

    def add(self, other: "Counts") -> None:
        """Add what another world has seen."""
        self.steps += other.steps
        self.compared += other.compared
        self.oracle_builds += other.oracle_builds
        self.failed_in_both += other.failed_in_both
        for name in ("runs", "refused", "mismatches", "seconds"):
            getattr(self, name).update(getattr(other, name))


@dataclass(slots=True)
class World:
    """A checkout with its nodes and its oracle. Its steps depend on the seed alone."""

    seed: int
    ground: Ground
    oracle: Oracle
    registry: Registry
    scratch: Path
    memory: Path
    environment: dict[str, str]
    chance: random.Random
    counts: Counts = field(default_factory=Counts)
    node: str = NODES[0]
    how: str = ""
    number: int = 0
    done: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    digests: dict[str, str] = field(default_factory=dict)
    known: dict[tuple[int, int], Mapping[str, trees.Entry]] = field(default_factory=dict)
    reported: set[tuple[str, object]] = field(default_factory=set)

    @property
    def root(self) -> Path:
        """The checkout."""
        return self.ground.root

    def step(self) -> list[Mismatch]:
        """Edit, build and compare once; returns what is wrong."""
        self.number += 1
        self.counts.steps += 1
        self.done = []
        chance = self.chance
        if self.number > 1:
            self._edit(chance)
            self._change_node(chance)
        hows = (
            chance.choices(("plain", "edited", "killed"), (70, 18, 12)) if self.number > 1 else ["plain"]
        )
        self.how = hows[0]
        self.counts.runs[self.how] += 1
        began = time.monotonic()
        match self.how:
            case "plain":
                ended = self._doit()
            case "edited":
                ended = self._edited(chance)
            case _:
                ended = self._killed(chance)
        self.counts.seconds["doit"] += round((time.monotonic() - began) * 1000)
        return self._compare(ended)

    def _edit(self, chance: random.Random) -> None:
        # A broken recipe would hold up all that is built on it.
        for name in self.broken:
            if chance.random() < 0.7:
                self.done.append(f"{name}: {edits.rewrite(chance, self.ground, name)}")
        for _ in range(chance.choice((1, 1, 1, 2, 3))):
            self.done.append(edits.edit(chance, self.ground))
        if chance.random() < 0.06:
            reference = chance.choice(REPOSITORIES)
            self._fill(reference, f"{chance.choice(WORDS)} {chance.randrange(100)}")
            self.done.append(f"{reference} moved in the registry")
            if chance.random() < 0.5:
                self.done.append(f"doit bases --update {reference}")
                self._run("bases", "--update", f"{self.registry}/{reference}")

    def _change_node(self, chance: random.Random) -> None:
        roll = chance.random()
        if roll < 0.12:
            self.node = chance.choice(NODES)
            self.done.append(f"the node is {self.node}")
        elif roll < 0.20:
            remove_storage(self.memory / self.node)
            self.done.append(f"node {self.node} was emptied")
        elif roll < 0.26:
            reference, other = chance.sample(REPOSITORIES, 2)
            self._podman("tag", f"{self.registry}/{other}", f"{self.registry}/{reference}")
            self.done.append(f"{reference} is called {other} on node {self.node}, where it has it")
        elif roll < 0.32:
            name = chance.choice(list(self.ground.places))
            self._podman("tag", f"{self.registry}/{REPOSITORIES[0]}", f"localhost/{name}")
            self.done.append(f"another image is called localhost/{name} on node {self.node}")

    def _podman(self, *argv: str) -> None:
        place = self.memory / self.node
        if place.exists():
            where = (
                "--root",
                f"{place}/root",
                "--runroot",
                f"{place}/run",
                "--storage-driver",
                "overlay",
            )
            subprocess.run(
                ("podman", *where, *argv), env=self.environment, check=False, capture_output=True
            )

    def _fill(self, reference: str, text: str) -> None:
        repository, _, tag = reference.rpartition(":")
        digest = self.registry.image(repository, tag, f"{text}\n")
        self.digests[f"{self.registry}/{reference}"] = digest

    def _doit(self) -> str:
        done = self._run("--continue")
        self.done.append(f"doit: exit {done.returncode}")
        return done.stdout

    def _run(self, *argv: str, **more: str) -> "subprocess.CompletedProcess[str]":
        environment = self.environment | {"RC_PODMAN_STORAGE": str(self.memory / self.node)} | more
        return subprocess.run(
            (DOIT, *argv),
            cwd=self.root,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_RUN_S,
            check=False,
        )

    def _edited(self, chance: random.Random) -> str:
        """doit, with an edit while podman builds a project; most of them are taken back then."""
        name = chance.choice(list(self.ground.places))
        place = self.ground.places[name]
        self.done.append(f"{name}: {edits.change_file(chance, self.ground, name)}")
        before, after = _hooks(chance, self.ground, place)
        hooks = self.scratch / "hooks"
        shutil.rmtree(hooks, ignore_errors=True)
        hooks.mkdir()
        (hooks / "place").write_text(str(place))
        (hooks / "before").write_text(f"cd {shlex.quote(str(place))}\n{before}\n")
        (hooks / "after").write_text(f"cd {shlex.quote(str(place))}\n{after}\n")
        done = self._run("--continue", PATH=f"{self.scratch}/bin:{self.environment['PATH']}")
        ran = "while" if (hooks / "before.ran").exists() else "(not at all)"
        self.done.append(f"{before!r}, then {after!r} {ran} podman built {name}; exit {done.returncode}")
        return done.stdout

    def _killed(self, chance: random.Random) -> str:
        """doit, ended by a signal soon after a step began."""
        number = chance.choice((signal.SIGTERM, signal.SIGKILL))
        wait_s = chance.uniform(0, 1.5)
        output = self.scratch / "killed.out"
        environment = self.environment | {"RC_PODMAN_STORAGE": str(self.memory / self.node)}
        with output.open("wb") as out:
            process = subprocess.Popen(
                (DOIT, "--continue"),
                cwd=self.root,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + _RUN_S
        while process.poll() is None and "start   " not in output.read_text(errors="replace"):
            time.sleep(0.02)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(wait_s)
        process.send_signal(number)
        process.wait(max(1.0, deadline - time.monotonic()))
        deadline = time.monotonic() + _GONE_S
        while self._processes() and time.monotonic() < deadline:
            time.sleep(0.05)
        self.done.append(f"doit, and {number.name} {wait_s:.2f} s after its first step began")
        return unstamped(output.read_text(errors="replace"))

    def _processes(self) -> bool:
        """Whether anything still runs for this checkout."""
        places = (str(self.root), str(self.memory))
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with contextlib.suppress(OSError):
                    words = (
                        (entry / "cmdline").read_bytes().decode(errors="replace"),
                        os.readlink(entry / "cwd"),
                    )
                    if words[0] and any(place in word for place in places for word in words):
                        return True
        return False

    def _compare(self, ended: str) -> list[Mismatch]:
        began = time.monotonic()
        listed = subprocess.run(
            (DOIT, "list", "--json"),
            cwd=self.root,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        try:
            images = {image["name"]: image for image in json.loads(listed.stdout)}
        except ValueError:
            return [Mismatch("list", "", f"doit list --json said {listed.stdout}{listed.stderr}")]
        self.counts.seconds["list"] += round((time.monotonic() - began) * 1000)
        began = time.monotonic()
        builds = self.oracle.builds
        clean = self.oracle.results(self.ground.places, self.ground.aliases, self._pinned())
        self.counts.oracle_builds += self.oracle.builds - builds
        self.counts.seconds["oracle"] += round((time.monotonic() - began) * 1000)
        self.broken = [
            name
            for name, built in clean.items()
            if built.failure and not any(clean[base].failure for base in self._below(name))
        ]
        broken = {name: str(error) for name, error in open_checkout(self.root, {}).graph.broken.items()}
        # What doit refuses does not depend on the node.
        self.broken += [name for name in broken if name in clean and name not in self.broken]
        wrong: list[Mismatch] = []
        not_fresh: set[str] = set()
        for name, built in clean.items():
            state = images[name]["state"] if name in images else "missing"
            if state != "fresh":
                not_fresh.add(name)
                wrong += self._not_fresh(name, built, state, broken, not_fresh, ended)
            elif built.failure and not any(clean[base].failure for base in self._below(name)):
                wrong += self._once(
                    name, "podman refuses", f"plain podman build failed:\n{built.failure}"
                )
            elif not built.failure:
                wrong += self._differences(name, built, images[name])
        for mismatch in wrong:
            self.counts.mismatches[mismatch.kind] += 1
        return wrong

    def _pinned(self) -> dict[str, str]:
        """Each reference of the registry with the digest that the checkout takes it by."""
        path = self.root / LOCK
        pins = tomllib.loads(path.read_text()) if path.exists() else {}
        return {
            reference: Pin(pins.get(reference, {}).get("digest", digest)).exact(reference)
            for reference, digest in self.digests.items()
        }

    def _not_fresh(
        self,
        name: str,
        built: Built,
        state: str,
        broken: Mapping[str, str],
        not_fresh: set[str],
        ended: str,
    ) -> list[Mismatch]:
        """Judge an image that is not fresh: refused in words, not built by podman either, or a fault."""
        if name in broken:
            if not built.failure:
                self.counts.refused[_without_names(broken[name])] += 1
            return []
        if built.failure:
            self.counts.failed_in_both += 1
            return []
        if self.how != "plain" or RUNC_FAILED in ended:
            return []
        node = open_checkout(self.root, {}).graph.images.get(name)
        if node is not None and not_fresh & set(node.bases):
            return []
        said = "\n".join(ended.splitlines()[-40:])
        refused = re.search(r"^(?:.*): (.*(?:ONBUILD|trigger|leaves out).*)$", said, re.MULTILINE)
        if refused is not None:
            self.counts.refused[_without_names(refused[1])] += 1
            return []
        self.broken.append(name)
        text = (self.ground.places[name] / "Dockerfile").read_text()
        if (name, text) in self.reported:
            return []
        self.reported.add((name, text))
        return [Mismatch(f"not built ({state})", name, self._report(name, said.splitlines()))]

    def _differences(self, name: str, built: Built, listed: Mapping[str, Any]) -> list[Mismatch]:
        image = self.ground.places[name] / "image.sqsh"
        status = image.stat()
        key = (status.st_ino, status.st_mtime_ns)
        if key not in self.known:
            self.known[key] = trees.published(image, self.memory / "unsquashed")
        self.counts.compared += 1
        found = trees.differences(self.known[key], trees.expected(built.tree, built.config))
        config = self.root / ".rc/store/blobs/sha256" / str(listed["image_id"])
        if config.exists():
            mine = trees.configured(json.loads(config.read_bytes())["config"])
            wanted = trees.configured(built.config)
            found += [
                f"configuration, {part}: published {mine.get(part)}; clean build {wanted.get(part)}"
                for part in sorted({*mine, *wanted})
                if mine.get(part) != wanted.get(part)
            ]
        if not found:
            return []
        shown = [*found[:_LINES], *([f"… {len(found) - _LINES} more"] if len(found) > _LINES else [])]
        return self._once(name, self._cause(name, found), "\n".join(shown))

    def _cause(self, name: str, found: list[str]) -> str:
        """The instruction that makes the first path that differs, as far as its name shows it."""
        path = re.match(r"/\w+", found[0])
        if path is None:
            return found[0].partition(":")[0]
        for place in (name, *self._below(name)):
            for line in (self.ground.places[place] / "Dockerfile").read_text().splitlines():
                form = _FORM.match(line)
                if form is not None and re.search(rf"{path[0]}\b", line):
                    number = " a number" if re.search(r"from=\d+[ ,]", line) else ""
                    return form[0] + number + ("" if place == name else ", of a base")
        return path[0]

    def _once(self, name: str, kind: str, text: str) -> list[Mismatch]:
        """The mismatch, unless the same published file was reported before."""
        image = self.ground.places[name] / "image.sqsh"
        status = image.stat()
        key = (name, (status.st_ino, status.st_mtime_ns))
        if key in self.reported:
            return []
        self.reported.add(key)
        if self.how == "edited":
            kind = f"edited meanwhile: {kind}"
        return [Mismatch(kind, name, self._report(name, text.splitlines()))]

    def _below(self, name: str) -> list[str]:
        """The projects that one may be made of, the nearest first."""
        found: set[str] = set()
        todo = [name]
        order = list(self.ground.places)
        while todo:
            each = todo.pop()
            text = (self.ground.places[each] / "Dockerfile").read_text()
            more = used(text, order[: order.index(each)], self.ground.aliases)
            todo += set(more) - found
            found.update(more)
        return sorted(found, key=order.index, reverse=True)

    def _report(self, name: str, lines: list[str]) -> str:
        shown = [f"seed {self.seed}, step {self.number}, project {name}"]
        shown += [f"  {each}" for each in self.done]
        shown += [f"    {_short(line)}" for line in lines]
        for each in (name, *self._below(name)):
            for file in ("Dockerfile", "project.toml", ".dockerignore", ".containerignore"):
                path = self.ground.places[each] / file
                if path.exists():
                    shown.append(f"  {path.relative_to(self.root)}:")
                    shown += [f"    | {_short(line)}" for line in path.read_text().splitlines()]
        aliases = ", ".join(f"{alias} is {target}" for alias, target in self.ground.aliases.items())
        shown += [f"  aliases: {aliases}"] if aliases else []
        shown.append(f"  again: python -m tests.differential --seed {self.seed} --steps {self.number}")
        return "\n".join(shown)


def _hooks(chance: random.Random, ground: Ground, place: Path) -> tuple[str, str]:
    """What happens as podman begins with a project, and when it has ended, as shell."""
    files = [path for path in ("f", "g.txt", "d/x") if (place / path).is_file()] or ["Dockerfile"]
    file = chance.choice(files)
    git = f"git -C {shlex.quote(str(ground.root))}"
    return chance.choice(
        (
            (f"cp -p {file} ../.saved; echo hook > {file}", f"cp -p ../.saved {file}; rm ../.saved"),
            (f"mv {file} ../.saved; echo hook > {file}", f"mv ../.saved {file}"),
            (f"mv {file} ../.saved", f"mv ../.saved {file}"),
            (f"echo hook >> {file}", ":"),
            (":", f"echo hook >> {file}"),
            ("echo hook > d/hook.txt; echo > hook.txt", "rm d/hook.txt hook.txt"),
            (f"chmod a+x {file}", f"chmod a-x {file}"),
            (
                "cp -p Dockerfile ../.saved; echo 'RUN echo hook > /p9' >> Dockerfile",
                "cp -p ../.saved Dockerfile; rm ../.saved",
            ),
            (f"{git} stash --quiet", f"{git} stash pop --quiet"),
        )
    )


def _short(line: str) -> str:
    """A line without what every mount is shown by."""
    return re.sub(r"\{ busybox find (\S+(?: /m/text)?) -type f .*?\| busybox sort", r"SHOW \1", line)


def _without_names(text: str) -> str:
    text = re.sub(r"\S*:\d+: ", "", text.splitlines()[0])
    return re.sub(r"\b\w*[:.]?\d[\w.]*|'[^']*'", "…", text)


@contextlib.contextmanager
def world(seed: int) -> Iterator[World]:
    """A new random checkout with a registry, two nodes and an oracle; nothing of it stays."""
    chance = random.Random(seed)
    with contextlib.ExitStack() as stack:
        # podman wants the path of a runroot to be short, and everything is quicker in memory.
        place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        memory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rcd-", dir=place)))
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rc-differential-")))
        stack.callback(remove_storage, memory)
        registry = stack.enter_context(serving(scratch / "registry"))
        for each in ("home", "tmp", "bin"):
            (scratch / each).mkdir()
        shim = scratch / "bin/podman"
        shim.write_text(_SHIM.format(hooks=shlex.quote(f"{scratch}/hooks"), podman=which("podman")))
        shim.chmod(0o755)
        kept = {key: value for key, value in os.environ.items() if not key.startswith(_FOREIGN)}
        environment = kept | {
            **registry.environ(scratch),
            "RC_RUNNER": "local",
            "RC_PODMAN_ISOLATION": "chroot",
            "BUILDAH_ISOLATION": "chroot",
            "RC_PODMAN_DRIVER": "overlay",
            "HOME": str(scratch / "home"),
            "TMPDIR": str(scratch / "tmp"),
        }
        ground = _ground(chance, scratch / "checkout", registry)
        (memory / "oracle").mkdir()
        oracle = Oracle(memory / "oracle", environment, tuple(ground.places))
        made = World(seed, ground, oracle, registry, scratch, memory, environment, chance)
        for reference in REPOSITORIES:
            made._fill(reference, reference)
        yield made


def _ground(chance: random.Random, root: Path, registry: Registry) -> Ground:
    """Two to six projects in a git repository."""
    write_checkout(root, {}, 'images_root = "/official"')
    shutil.copy(SOURCE / ".gitignore", root)
    with (root / ".gitignore").open("a") as ignored:
        # So that git never changes what doit has written.
        ignored.write(f"env.toml\n{LOCK}\n")
    names = chance.sample(NAMES, chance.randint(2, 6))
    references = tuple(f"{registry}/{each}" for each in REPOSITORIES)
    places = {
        name: root / ("projects" if ":" in name or chance.random() < 0.5 else "") / name
        for name in names
    }
    (root / "projects").mkdir()
    aliases: dict[str, str] = {}
    for name in names:
        if chance.random() < 0.4:
            aliases[f"{name.partition(':')[0]}-alias:latest"] = name
    ground = Ground(root, places, {}, aliases)
    below: list[str] = []
    for name, place in places.items():
        words = [each.partition(":")[0] for each in (*(n for n in names if n in below), name)]
        ground.scenes[name] = Scene(tuple(below), references, tuple(words))
        edits.write_project(chance, place, ground.scenes[name])
        below.append(name)
        if ":" not in name:
            below.append(chance.choice((f"localhost/{name}", f"{name}:latest")))
        below += [alias for alias, target in aliases.items() if target == name]
    for alias, target in aliases.items():
        (root / "projects" / alias).symlink_to(os.path.relpath(places[target], root / "projects"))
    ground.git("init", "--quiet")
    edits.commit(chance, ground, names[0])
    return ground
