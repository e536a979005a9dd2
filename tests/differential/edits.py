"""Random edits of a checkout, each as a person or git makes it; they say what they did."""

import io
import os
import random
import re
import shutil
import subprocess
import tarfile
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rc_tasks.model.graph.project import OUR_FILES
from tests.differential import recipes
from tests.differential.recipes import FILES, IGNORED, WORDS, Recipe, Scene
from tests.support.images import BUSYBOX

# What podman's builds on a project need, and what has a form of its own.
_KEPT = frozenset(
    {"Dockerfile", "project.toml", "t.tar", ".dockerignore", ".containerignore", *OUR_FILES}
)
_PROGRAMS = "rootfs/"


@dataclass(frozen=True, slots=True)
class Ground:
    """A checkout that can be edited: its projects, bases first, and what their Dockerfiles may name."""

    root: Path
    places: dict[str, Path]
    scenes: dict[str, Scene]
    aliases: dict[str, str]

    def git(self, *argv: str) -> None:
        """Run git in the checkout."""
        who = ("-c", "user.name=t", "-c", "user.email=t@localhost")
        subprocess.run(("git", *who, *argv), cwd=self.root, check=True, capture_output=True)


def write_project(chance: random.Random, place: Path, scene: Scene) -> None:
    """A project with a random Dockerfile and the files that every project has."""
    for name in FILES:
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        match name:
            case "l":
                path.symlink_to("f")
            case "dl":
                path.symlink_to("d")
            case _:
                path.write_text(f"{place.name} {name}\n")
    (place / "d/y.sh").chmod(0o755)
    (place / "d/empty").mkdir()
    programs = place / "rootfs/bin"
    programs.mkdir(parents=True)
    shutil.copy(BUSYBOX, programs / "busybox")
    for applet in ("sh", "cat"):
        (programs / applet).symlink_to("busybox")
    _write_tar(chance, place)
    if chance.random() < 0.3:
        _write_ignore(chance, place)
    (place / "Dockerfile").write_text(recipes.write(chance, scene).text())


def edit(chance: random.Random, ground: Ground) -> str:
    """Make one edit; returns what it was."""
    # More at the end: what lies at the beginning makes everything be built again.
    names = list(ground.places)
    name = max(chance.choice(names), chance.choice(names), key=names.index)
    weighted: list[tuple[int, Callable[[random.Random, Ground, str], str]]] = [
        (8, change_file),
        (2, change_same_size),
        (3, add_file),
        (2, remove_file),
        (2, rename_file),
        (3, change_mode),
        (1, retarget_symlink),
        (1, change_empty_directory),
        (1, remake_tar),
        (9, change_line),
        (2, rewrite),
        (4, change_base),
        (3, rename_stage),
        (3, change_arguments),
        (1, change_target),
        (2, change_ignored),
        (1, touch),
        (1, edit_and_revert),
        (1, commit),
        (1, stash_and_pop),
        (1, take_back),
        (1, retarget_alias),
    ]
    weights, kinds = zip(*weighted, strict=True)
    (kind,) = chance.choices(kinds, weights)
    return f"{name}: {kind(chance, ground, name)}"


def change_file(chance: random.Random, ground: Ground, name: str) -> str:
    """Append to a file, most often to one that the Dockerfile names."""
    files = _files(ground.places[name])
    text = (ground.places[name] / "Dockerfile").read_text()
    named = [file for file in files if re.search(rf"(?<![\w/]){re.escape(file)}(?![\w/.])", text)]
    file = chance.choice(named if named and chance.random() < 0.6 else files)
    with (ground.places[name] / file).open("a") as out:
        out.write(f"{chance.choice(WORDS)} {chance.randrange(1000)}\n")
    return f"{file} was appended to"


def change_same_size(chance: random.Random, ground: Ground, name: str) -> str:
    """Change a file but not its size, and put its time back."""
    file = chance.choice(_files(ground.places[name]))
    path = ground.places[name] / file
    before = path.stat()
    data = bytearray(path.read_bytes())
    if data:
        data[0] = ord("A") + chance.randrange(26)
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    return f"{file} was changed, with its size and time as before"


def add_file(chance: random.Random, ground: Ground, name: str) -> str:
    """A new file, of a name that a glob may take."""
    file = chance.choice(("n{}", "n{}.txt", "d/n{}", "d/n{}.sh", "d/deep/n{}", "x{}.log", "new/n{}"))
    file = file.format(chance.randrange(5))
    path = ground.places[name] / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{chance.choice(WORDS)}\n")
    path.chmod(chance.choice((0o644, 0o644, 0o755)))
    return f"{file} was written"


def remove_file(chance: random.Random, ground: Ground, name: str) -> str:
    """Remove a file, seldom one that the Dockerfile names."""
    file = _spare(chance, ground.places[name])
    (ground.places[name] / file).unlink()
    return f"{file} was removed"


def rename_file(chance: random.Random, ground: Ground, name: str) -> str:
    """Move a file to another name."""
    file = _spare(chance, ground.places[name])
    other = chance.choice(("d/moved", "moved.txt", "moved"))
    path = ground.places[name] / other
    path.parent.mkdir(parents=True, exist_ok=True)
    (ground.places[name] / file).rename(path)
    return f"{file} was renamed to {other}"


def change_mode(chance: random.Random, ground: Ground, name: str) -> str:
    """Make a program of a file, or no program: the one bit that git knows."""
    file = chance.choice(_files(ground.places[name]))
    path = ground.places[name] / file
    path.chmod(0o644 if path.stat().st_mode & 0o100 else 0o755)
    return f"the executable bit of {file} was turned"


def retarget_symlink(chance: random.Random, ground: Ground, name: str) -> str:
    """Let a symlink lead elsewhere, or nowhere."""
    path = ground.places[name] / "l"
    target = chance.choice(("f", "g.txt", "d/x", "nowhere"))
    path.unlink(missing_ok=True)
    path.symlink_to(target)
    return f"l leads to {target}"


def change_empty_directory(chance: random.Random, ground: Ground, name: str) -> str:
    """An empty directory comes or goes."""
    path = ground.places[name] / chance.choice(("d/empty", "d/deep/empty"))
    if path.is_dir():
        path.rmdir()
        return f"{path.name} was removed"
    path.mkdir(parents=True)
    return f"{path.name} was made"


def remake_tar(chance: random.Random, ground: Ground, name: str) -> str:
    """Other files in the archive."""
    _write_tar(chance, ground.places[name])
    return "t.tar was made again"


def change_line(chance: random.Random, ground: Ground, name: str) -> str:
    """Put an instruction in, take one out, or exchange one."""
    path = ground.places[name] / "Dockerfile"
    recipe = Recipe.parse(path.read_text())
    index = chance.randrange(len(recipe.stages))
    stage = recipe.stages[index]
    # The first lines make the shell and the file that others take.
    at = chance.randint(min(3, len(stage)), len(stage))
    how = chance.choice(("add", "add", "remove", "exchange", "swap"))
    if how in ("remove", "exchange") and at < len(stage):
        del stage[at]
    if how in ("add", "exchange"):
        new = recipes.lines(chance, _now(ground, name), recipe, index)
        if index == len(recipe.stages) - 1 and chance.random() < 0.1:
            new = [f"ONBUILD {line}" for line in recipes.trigger(chance, ground.scenes[name])]
        stage[at:at] = new
    if how == "swap" and at + 1 < len(stage):
        stage[at], stage[at + 1] = stage[at + 1], stage[at]
    path.write_text(recipe.text())
    return f"{how} at line {at} of stage {index}"


def rewrite(chance: random.Random, ground: Ground, name: str) -> str:
    """Write the whole Dockerfile again."""
    place = ground.places[name]
    (place / "Dockerfile").write_text(recipes.write(chance, _now(ground, name)).text())
    (place / "project.toml").unlink(missing_ok=True)
    return "another Dockerfile"


def change_base(chance: random.Random, ground: Ground, name: str) -> str:
    """Build a stage on something else."""
    path = ground.places[name] / "Dockerfile"
    recipe = Recipe.parse(path.read_text())
    index = chance.randrange(len(recipe.stages))
    stage = recipe.stages[index]
    origin = recipes.source(chance, ground.scenes[name], recipe, index)
    if origin == "scratch" and "COPY rootfs/ /" not in stage:
        stage.insert(1, "COPY rootfs/ /")
    stage[0] = re.sub(r"^FROM \S+", lambda _: f"FROM {origin}", stage[0])
    path.write_text(recipe.text())
    return f"stage {index} is {stage[0]}"


def rename_stage(chance: random.Random, ground: Ground, name: str) -> str:
    """Give a stage another name, also where it is used, or only there."""
    path = ground.places[name] / "Dockerfile"
    recipe = Recipe.parse(path.read_text())
    index = chance.randrange(len(recipe.stages))
    match = re.search(r" AS (\S+)$", recipe.stages[index][0])
    new = recipes.stage_name(chance, ground.scenes[name], recipe, index)
    if match is None:
        recipe.stages[index][0] += f" AS {new}"
        path.write_text(recipe.text())
        return f"stage {index} is called {new}"
    recipe.stages[index][0] = recipe.stages[index][0].removesuffix(match[1]) + new
    text = recipe.text()
    if chance.random() < 0.7:
        text = re.sub(rf"(from=|FROM ){re.escape(match[1])}(?=[ ,\n])", rf"\g<1>{new}", text)
    path.write_text(text)
    return f"stage {match[1]} is called {new}"


def change_arguments(chance: random.Random, ground: Ground, name: str) -> str:
    """Set or unset a build argument, or change the default of one."""
    place = ground.places[name]
    text = (place / "Dockerfile").read_text()
    heads = re.findall(r"^ARG (BASE\d+)=(\S+)$", text, re.MULTILINE)
    scene = ground.scenes[name]
    tags = [each.rpartition(":") for each in (*scene.bases, *scene.registry)]
    if heads and chance.random() < 0.5:
        variable, value = chance.choice(heads)
        # A tag stays one of the same repository.
        written = re.search(rf"^FROM (\S+):\$\{{{variable}\}}", text, re.MULTILINE)
        new = chance.choice(
            [tag for repository, _, tag in tags if repository == written[1]] or [value]
            if written
            else [*scene.bases, *scene.registry]
        )
        if chance.random() < 0.5:
            (place / "Dockerfile").write_text(
                text.replace(f"ARG {variable}={value}\n", f"ARG {variable}={new}\n")
            )
            return f"the default of {variable} is {new}"
        return _set_recipe(place, "build_args", variable, new)
    variable = f"V{chance.randrange(10)}"
    used = re.findall(r"^ARG (V\d)", text, re.MULTILINE)
    return _set_recipe(place, "build_args", chance.choice([*used, variable]), chance.choice(WORDS))


def change_target(chance: random.Random, ground: Ground, name: str) -> str:
    """Stop at another stage."""
    place = ground.places[name]
    recipe = Recipe.parse((place / "Dockerfile").read_text())
    names = recipe.names(len(recipe.stages))
    if not names or "target" in _read_recipe(place):
        (place / "project.toml").unlink(missing_ok=True)
        return "project.toml is gone"
    return _set_recipe(place, "target", "", chance.choice(names))


def change_ignored(chance: random.Random, ground: Ground, name: str) -> str:
    """Other patterns, in either file, or none."""
    place = ground.places[name]
    for each in (".dockerignore", ".containerignore"):
        if (place / each).exists() and chance.random() < 0.5:
            kept = (place / each).read_text().splitlines()
            if kept:
                del kept[chance.randrange(len(kept))]
            (place / each).write_text("".join(f"{line}\n" for line in kept))
            return f"a line of {each} was removed"
    return _write_ignore(chance, place)


def touch(chance: random.Random, ground: Ground, name: str) -> str:
    """New times for every file, and nothing else."""
    for path in ground.places[name].rglob("*"):
        if not path.is_symlink():
            os.utime(path)
    return "everything was touched"


def edit_and_revert(chance: random.Random, ground: Ground, name: str) -> str:
    """Another text, and the text of before."""
    file = chance.choice(_files(ground.places[name]))
    path = ground.places[name] / file
    before = path.read_bytes()
    path.write_bytes(b"meanwhile\n")
    path.write_bytes(before)
    return f"{file} was changed and changed back"


def commit(chance: random.Random, ground: Ground, name: str) -> str:
    """Commit everything."""
    ground.git("add", "--all")
    ground.git("commit", "--quiet", "--allow-empty", "--message=more")
    return "everything was committed"


def stash_and_pop(chance: random.Random, ground: Ground, name: str) -> str:
    """What was changed goes and comes back."""
    ground.git("stash", "--quiet")
    subprocess.run(("git", "stash", "pop", "--quiet"), cwd=ground.root, check=False, capture_output=True)
    return "git stash, git stash pop"


def take_back(chance: random.Random, ground: Ground, name: str) -> str:
    """The whole checkout as it was committed."""
    ground.git("reset", "--quiet", "--hard")
    for alias in ground.aliases:
        ground.aliases[alias] = (ground.root / "projects" / alias).readlink().name
    return "git reset --hard"


def retarget_alias(chance: random.Random, ground: Ground, name: str) -> str:
    """An alias stands for another project that is below all who may use it."""
    if not ground.aliases:
        return "there is no alias"
    alias = chance.choice(list(ground.aliases))
    users = [user for user, scene in ground.scenes.items() if alias in scene.bases]
    names = list(ground.places)
    below = names[: names.index(users[0])] if users else names
    path = ground.root / "projects" / alias
    path.unlink()
    target = chance.choice(below)
    path.symlink_to(os.path.relpath(ground.places[target], path.parent))
    ground.aliases[alias] = target
    return f"alias {alias} leads to {target}"


def _now(ground: Ground, name: str) -> Scene:
    """The scene with the files that the project has now."""
    scene = ground.scenes[name]
    return Scene(scene.bases, scene.registry, scene.names, tuple(_files(ground.places[name])))


def _files(place: Path) -> list[str]:
    """The regular files that edits may change, relative to the project."""
    found = []
    for path in sorted(place.rglob("*")):
        file = path.relative_to(place).as_posix()
        kept = file in _KEPT or file.startswith((_PROGRAMS, "."))
        if not kept and path.is_file() and not path.is_symlink():
            found.append(file)
    return found or _again(place)


def _again(place: Path) -> list[str]:
    (place / "f").write_text("again\n")
    return ["f"]


def _spare(chance: random.Random, place: Path) -> str:
    """A file, most often one that the Dockerfile does not need by its name."""
    files = _files(place)
    text = (place / "Dockerfile").read_text()
    spare = [file for file in files if file not in text and file != "f"]
    return chance.choice(spare if spare and chance.random() < 0.9 else files)


def _write_tar(chance: random.Random, place: Path) -> None:
    with tarfile.open(place / "t.tar", "w") as archive:
        for number in range(chance.randint(1, 3)):
            data = f"{chance.choice(WORDS)}\n".encode()
            info = tarfile.TarInfo(f"in/{number}")
            info.size, info.mtime = len(data), 1
            info.mode = chance.choice((0o644, 0o755))
            archive.addfile(info, io.BytesIO(data))


def _write_ignore(chance: random.Random, place: Path) -> str:
    name = chance.choice((".dockerignore", ".dockerignore", ".containerignore"))
    patterns = chance.sample(IGNORED, chance.randint(1, 2))
    (place / name).write_text("".join(f"{pattern}\n" for pattern in patterns))
    return f"{name} has {patterns}"


def _read_recipe(place: Path) -> dict[str, object]:
    path = place / "project.toml"
    return tomllib.loads(path.read_text()) if path.exists() else {}


def _set_recipe(place: Path, table: str, key: str, value: str) -> str:
    found = _read_recipe(place)
    if key:
        inner = found.setdefault(table, {})
        assert isinstance(inner, dict)
        inner[key] = value
    else:
        found[table] = value
    lines = [f'target = "{found["target"]}"'] if "target" in found else []
    arguments = found.get("build_args", {})
    assert isinstance(arguments, dict)
    if arguments:
        lines += ["[build_args]", *(f'{name} = "{text}"' for name, text in sorted(arguments.items()))]
    (place / "project.toml").write_text("".join(f"{line}\n" for line in lines))
    return f"project.toml: {table} {key} = {value}"
