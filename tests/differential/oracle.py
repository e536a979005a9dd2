"""Clean builds of a copy of a checkout: plain podman, bases first, no cache, no named contexts."""

import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rc_tasks.errors import RcError
from rc_tasks.model.dockerfile import parser
from rc_tasks.model.graph import context
from rc_tasks.model.graph.project import OUR_FILES
from rc_tasks.tools.podman import Podman
from tests.differential import trees
from tests.differential.recipes import Recipe
from tests.differential.trees import Entry
from tests.support.containers import ulimits

_ENDS = 30
# The kernel may still use a page of runc's copy of itself in memory when runc seals that copy.
RUNC_FAILED = "sealing memfd copy: Device or resource busy"


@dataclass(frozen=True, slots=True)
class Built:
    """What a clean build gave: an image with its tree and configuration, or the words of its failure."""

    image_id: str = ""
    tree: Mapping[str, Entry] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    failure: str = ""


@dataclass(slots=True)
class Oracle:
    """A storage of its own, and what was built there, by a digest of all that can matter to it.

    `order` has the projects, bases first.
    """

    directory: Path
    environment: Mapping[str, str]
    order: tuple[str, ...]
    built: dict[str, Built] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    builds: int = 0

    def podman(self, *argv: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        """Run podman on the oracle's storage."""
        place = ("--root", f"{self.directory}/root", "--runroot", f"{self.directory}/run")
        done = subprocess.run(
            ("podman", *place, "--storage-driver", "overlay", *argv),
            env=dict(self.environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if check and done.returncode != 0:
            raise RuntimeError(f"the oracle's podman {argv[0]} failed: {done.stderr}")
        return done

    def results(
        self, places: Mapping[str, Path], aliases: Mapping[str, str], registry: Mapping[str, str]
    ) -> dict[str, Built]:
        """The clean build of each project as its directory is now.

        `aliases` and `places` say what the names stand for, `registry` by which digest each reference
        of a registry is taken.
        """
        keys: dict[str, str] = {}
        found: dict[str, Built] = {}
        for name in self.order:
            text = _text(places[name] / "Dockerfile") + _text(places[name] / "project.toml")
            parts = [f"{each}={keys[each]}" for each in used(text, keys, aliases)]
            parts += [f"{each}={exact}" for each, exact in registry.items() if _repository(each) in text]
            key = keys[name] = _key(places[name], parts)
            if key not in self.built:
                self._take(registry)
                self._tag(found, aliases)
                self.built[key] = self._build(places[name])
            found[name] = self.built[key]
        return found

    def _take(self, registry: Mapping[str, str]) -> None:
        for reference, exact in registry.items():
            if self.tags.get(reference) != exact:
                self.podman("pull", "--quiet", exact)
                self.podman("tag", exact, reference)
                self.tags[reference] = exact

    def _tag(self, found: Mapping[str, Built], aliases: Mapping[str, str]) -> None:
        """Let each name of a project stand for what was built of it, or for nothing."""
        for name in (*found, *aliases):
            built = found.get(aliases.get(name, name), Built())
            if self.tags.get(name, "") == built.image_id:
                continue
            if built.image_id:
                self.podman("tag", built.image_id, f"localhost/{name}")
            else:
                # With one argument, podman removes every name of the image.
                self.podman("untag", *[f"localhost/{name}"] * 2, check=False)
            self.tags[name] = built.image_id

    def _build(self, place: Path) -> Built:
        self.builds += 1
        copy = self.directory / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir()
        # podman shows what an ignore file leaves out to RUN --mount, BuildKit and doit do not.
        context.copy(place, copy, context.listing(place).paths)
        written = self.directory / "Dockerfile"
        shutil.copyfile(place / "Dockerfile", written)
        _name_stages(written)
        recipe = tomllib.loads(_text(place / "project.toml"))
        _name_parents(written, recipe.get("build_args", {}))
        argv = ["build", "--no-cache", "--pull=never", "--format", "docker", "--quiet", *ulimits()]
        argv += ["--file", str(written)]
        if "target" in recipe:
            argv += ["--target", recipe["target"]]
        for key, value in recipe.get("build_args", {}).items():
            argv += ["--build-arg", f"{key}={value}"]
        done = self.podman(*argv, str(copy), check=False)
        if done.returncode != 0:
            # Of thousands of RUNs runc fails one by itself (RUNC_FAILED). What the Dockerfile says fails
            # again.
            done = self.podman(*argv, str(copy), check=False)
        shutil.rmtree(copy)
        if done.returncode != 0:
            return Built(failure="\n".join((done.stdout + done.stderr).splitlines()[-_ENDS:]))
        image_id = done.stdout.split()[-1]
        # `podman image inspect` leaves ONBUILD out.
        config = Podman(root=f"{self.directory}/root").config(image_id)
        if config is None:
            raise RuntimeError(f"the oracle's podman does not show the configuration of {image_id}")
        mounted = self.podman("image", "mount", image_id).stdout.strip()
        try:
            tree = trees.read(Path(mounted))
        finally:
            self.podman("image", "umount", image_id)
        return Built(image_id, tree, json.loads(config)["config"])


def _name_stages(path: Path) -> None:
    """Let RUN --mount name a stage by its name where it is numbered.

    podman 4.3.1 does not build a named stage for `from=NUMBER`, and mounts any image whose ID begins so
    in its place, or fails. What is meant is clear all the same.
    """
    recipe = Recipe.parse(path.read_text())
    for index, stage in enumerate(recipe.stages):
        for number, (first, *_) in enumerate(recipe.stages[:index]):
            if name := first.partition(" AS ")[2]:
                old = re.compile(rf"^RUN --mount=type=bind,from={number},")
                stage[:] = [old.sub(f"RUN --mount=type=bind,from={name},", line) for line in stage]
    path.write_text(recipe.text())


def _name_parents(path: Path, build_args: Mapping[str, str]) -> None:
    """Let FROM name a stage by its name where a variable does, which podman 4.3.1 does not replace."""
    text = path.read_text()
    try:
        parsed = parser.parse(
            text.encode(), where="", build_args=build_args, architecture=os.uname().machine
        )
    except RcError:
        return
    lines = text.split("\n")
    for stage in parsed.stages:
        if stage.parent is not None:
            words = lines[stage.line - 1].split()
            words[1] = parsed.stages[stage.parent].name
            lines[stage.line - 1] = " ".join(words)
    path.write_text("\n".join(lines))


def _repository(reference: str) -> str:
    return reference.rpartition(":")[0] or reference


def used(text: str, below: Iterable[str], aliases: Mapping[str, str]) -> list[str]:
    """The projects below one that its files name: more of them than it uses, never fewer."""
    words = set(re.findall(r"[a-z0-9][a-z0-9_.-]*", text))
    named = words | {
        _repository(target) for alias, target in aliases.items() if _repository(alias) in words
    }
    # A variable may give the version.
    return [name for name in below if _repository(name) in named]


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _key(place: Path, bases: Iterable[str]) -> str:
    """A digest of a project's directory and recipe, and of the bases that it may use."""
    digest = hashlib.sha256(repr(sorted(bases)).encode())
    ours = shutil.ignore_patterns(*(name for name in OUR_FILES if name != "project.toml"))
    for folder, directories, files in os.walk(place):
        directories.sort()
        left_out = ours(folder, [*directories, *files]) if Path(folder) == place else set()
        for name in sorted({*directories, *files} - left_out):
            path = os.path.join(folder, name)
            status = os.lstat(path)
            digest.update(repr((path[len(str(place)) :], status.st_mode)).encode())
            if stat.S_ISLNK(status.st_mode):
                digest.update(os.readlink(path).encode())
            elif stat.S_ISREG(status.st_mode):
                digest.update(hashlib.sha256(Path(path).read_bytes()).digest())
    return digest.hexdigest()
