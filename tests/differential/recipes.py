"""Random Dockerfiles: each form in which an instruction names a file, a stage, a project or a base."""

import random
import re
from dataclasses import dataclass, field

WORDS = ("one", "two", "three", "four")
# What every project has at first; edits remove and add.
FILES = ("f", "g.txt", "h.txt", "notes.md", "d/x", "d/y.sh", "d/deep/z", "l", "dl", "x.log")
DIRECTORIES = ("d", "d/", "d/deep", ".")
GLOBS = ("*.txt", "d/*", "[fg]*", "*.*", "d/*.sh")
IGNORED = (
    "*.log",
    "d/x",
    "**/z",
    "d/*\n!d/x",
    "d\n!d/y.sh",
    "*\n!rootfs\n!f\n!d\n!*.txt\n!t.tar",
    "# a comment",
    "notes.md",
    "Dockerfile\n.dockerignore\n.containerignore",
)
# What a stage or an image has that our lines have made.
_MADE = "/m/[a-z][0-9]* /m/text"
_SHELL = "COPY rootfs/ /"


@dataclass(frozen=True, slots=True)
class Scene:
    """What the Dockerfile of one project may name.

    `bases` are references to the projects below it, `registry` those of a registry; `names` are words
    that may be given to stages, the names of projects among them.
    """

    bases: tuple[str, ...]
    registry: tuple[str, ...]
    names: tuple[str, ...]
    files: tuple[str, ...] = FILES


@dataclass(slots=True)
class Recipe:
    """A Dockerfile as lines; `head` is what stands above the first FROM, each stage begins with FROM."""

    head: list[str] = field(default_factory=list)
    stages: list[list[str]] = field(default_factory=list)

    @classmethod
    def parse(cls, text: str) -> "Recipe":
        """Take a Dockerfile of one-line instructions apart."""
        recipe = cls()
        for line in filter(None, text.splitlines()):
            if line.startswith("FROM "):
                recipe.stages.append([line])
            else:
                (recipe.stages[-1] if recipe.stages else recipe.head).append(line)
        return recipe

    def text(self) -> str:
        """The Dockerfile."""
        return "".join(
            f"{line}\n" for line in (*self.head, *(x for stage in self.stages for x in stage))
        )

    def names(self, before: int) -> list[str]:
        """The names of the stages above one, by which it can use them."""
        found = [re.search(r" AS (\S+)$", stage[0]) for stage in self.stages[:before]]
        return [match[1] for match in found if match is not None]


def write(chance: random.Random, scene: Scene) -> Recipe:
    """A whole Dockerfile of one to four stages; the last one has a shell."""
    recipe = Recipe()
    count = chance.choice((1, 1, 2, 2, 3, 4))
    for index in range(count):
        origin = source(chance, scene, recipe, index)
        named = f" AS {stage_name(chance, scene, recipe, index)}"
        last = index == count - 1
        recipe.stages.append(
            [f"FROM {origin}" + (named if chance.random() < (0.3 if last else 0.8) else "")]
        )
        stage = recipe.stages[-1]
        if origin == "scratch":
            if last or chance.random() < 0.5:
                stage.append(_SHELL)
            else:
                stage.append("COPY f /p0")
                continue
        stage.append(f"RUN echo {chance.choice(WORDS)} > /p{chance.randrange(3)}")
        for _ in range(chance.choice((1, 2, 2, 3, 4))):
            stage += lines(chance, scene, recipe, index)
        if last and chance.random() < 0.2:
            stage += [f"ONBUILD {line}" for line in trigger(chance, scene)]
    return recipe


def source(chance: random.Random, scene: Scene, recipe: Recipe, index: int) -> str:
    """Return what stands after FROM: a project, a stage, a registry's image or scratch."""
    stages = recipe.names(index)
    if stages and chance.random() < 0.3:
        return chance.choice(stages)
    roll = chance.random()
    if scene.bases and roll < 0.75:
        name = chance.choice(scene.bases)
    elif roll < 0.88:
        name = chance.choice(scene.registry)
    else:
        return "scratch"
    if chance.random() < 0.35:
        variable = f"BASE{chance.randrange(10)}"
        if any(line.startswith(f"ARG {variable}=") for line in recipe.head):
            return f"${{{variable}}}"
        repository, colon, tag = name.rpartition(":")
        if colon and chance.random() < 0.6:
            recipe.head.append(f"ARG {variable}={tag}")
            return f"{repository}:${{{variable}}}"
        recipe.head.append(f"ARG {variable}={name}")
        return f"${{{variable}}}" if chance.random() < 0.7 else f"${variable}"
    return name


def stage_name(chance: random.Random, scene: Scene, recipe: Recipe, index: int) -> str:
    """A name for a stage that no other stage has, often the name of a project."""
    taken = set(recipe.names(len(recipe.stages)))
    names = [name for name in (*scene.names, *scene.names, f"s{index}") if name not in taken]
    return chance.choice(names or [f"t{index}"])


def trigger(chance: random.Random, scene: Scene) -> list[str]:
    """An instruction for ONBUILD."""
    number = chance.randrange(100)
    word = chance.choice(WORDS)
    kinds = [
        f"RUN echo {word} > /b{number}",
        f"COPY f /b{number}",
        f"ENV ONBUILD{number}={word}",
        f"RUN --mount=type=bind,source=f,target=/m cat /m > /b{number}",
    ]
    if scene.bases:
        kinds += [f"COPY --from={chance.choice(scene.bases)} /p* /b{number}/"] * 2
    return [chance.choice(kinds)]


def lines(chance: random.Random, scene: Scene, recipe: Recipe, index: int) -> list[str]:
    """An instruction, with the ARG that it needs above it."""
    number = chance.randrange(100)
    word = chance.choice(WORDS)
    kinds = (
        "copy",
        "copy",
        "from",
        "from",
        "mount",
        "mount",
        "mount_from",
        "mount_from",
        "other",
        "run",
    )
    match chance.choice(kinds):
        case "copy":
            return _copy(chance, scene, number)
        case "from":
            origin, paths = _origin(chance, scene, recipe, index)
            return [f"COPY --from={origin} {chance.choice(paths)} /c{number}/"]
        case "mount":
            path = chance.choice(tuple(f for f in (*scene.files, *DIRECTORIES) if f not in ("dl", "l")))
            return [f"RUN --mount=type=bind,source={path},target=/m {_show('/m', number)}"]
        case "mount_from":
            origin, _ = _origin(chance, scene, recipe, index)
            return [f"RUN --mount=type=bind,from={origin},target=/m {_show(_MADE, number)}"]
        case "run":
            return [f"RUN echo {word} > /r{number}"]
        case _:
            return chance.choice(_others(number, word, chance))


def _copy(chance: random.Random, scene: Scene, number: int) -> list[str]:
    flag = chance.choice(("", "", "", "--chmod=755 "))
    path = chance.choice(scene.files)
    forms = [
        [f"COPY {flag}{path} /c{number}"],
        [f'COPY ["{path}", "/c{number}"]'],
        [f"COPY {chance.choice(DIRECTORIES)} /c{number}/"],
        [f"COPY {chance.choice(GLOBS)} /c{number}/"],
        [f"ARG WHICH{number}={path}", f"COPY ${{WHICH{number}}} /c{number}"],
        [f"ADD t.tar /a{number}/"],
        [f"ADD {path} /a{number}"],
    ]
    return chance.choice(forms)


def _origin(
    chance: random.Random, scene: Scene, recipe: Recipe, index: int
) -> tuple[str, tuple[str, ...]]:
    """What from= names, and what it has in any case."""
    origins: list[str] = [*recipe.names(index), *map(str, range(index))] * 2
    # A stage that bears the name and is not finished: podman takes the project, doit refuses it.
    unfinished = {name for stage in recipe.stages[index:] if (name := stage[0].partition(" AS ")[2])}
    origins += [base for base in scene.bases if base not in unfinished or chance.random() < 0.05]
    if not origins or chance.random() < 0.1:
        return chance.choice(scene.registry), ("/text",)
    return chance.choice(origins), ("/p*", "/p*", "/[a-z][0-9]*")


def _show(places: str, number: int) -> str:
    """Write down what is mounted: names, contents and the executable bit."""
    return (
        f"{{ busybox find {places} -type f -exec busybox md5sum {{}} +;"
        f" busybox find {places} -perm -100; }} 2>&- | busybox sort > /m{number}"
    )


def _others(number: int, word: str, chance: random.Random) -> tuple[list[str], ...]:
    return (
        [f"ARG V{number % 10}={word}", f"RUN echo $V{number % 10} > /v{number}"],
        [f"ARG V{number % 10}", f'RUN echo "<$V{number % 10}>" > /v{number}'],
        [f"ENV E{number}={word}"],
        [f"ENV E1={word}", f"RUN echo $E1 > /e{number}"],
        [f"RUN --mount=type=cache,target=/k echo {word} > /k/k; cat /k/k > /k{number}"],
        [f"RUN --mount=type=tmpfs,target=/k echo {word} > /k/k; cat /k/k > /k{number}"],
        [f"RUN busybox mkdir -p /z{number}/empty"],
        [f"RUN busybox ln -s {word} /y{number}"],
        ["RUN busybox rm -rf /p1 /c1* /m*"],
        [
            f"RUN echo {word} > /x{number};"
            f" busybox chmod {chance.choice(('755', '700', '4755'))} /x{number}"
        ],
        [f"WORKDIR /w{number % 10}"],
        [f'CMD ["{word}", "{number}"]'],
        [f'ENTRYPOINT ["/bin/sh", "-c", "{word}"]'],
        [f"LABEL l{number}={word}"],
        [f"VOLUME /volume{number % 10}"],
        ["USER 0:0"],
    )
