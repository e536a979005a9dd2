"""Each cell of the table in docs/reference/launchers.md, with the launchers that are there.

podman is everywhere. Enroot is tried where it is on PATH, and Pyxis where RC_TEST_PYXIS names its
spank_pyxis.so besides. A cell is `yes` when a container does what the first column says, `no` when it
does something else, and `refused` when we do not start it, as the launcher cannot do that. Of `?`
nothing is known. What is not `yes` has the number of a note in the document.
"""

import contextlib
import os
import random
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import pytest
from msgspec.structs import replace

from rc_tasks.errors import EdfError
from rc_tasks.model.config.settings import Launcher, Squash
from rc_tasks.steps.container import launch
from rc_tasks.steps.publish import squash
from rc_tasks.tools.podman import Podman
from rc_tasks.tools.slurm_request import StepRequest
from rc_tasks.util import toml_text
from tests.support.cluster import ACCOUNT, Cluster
from tests.support.containers import working_runtime
from tests.support.images import Layer, load
from tests.support.storage import own_storage
from tests.support.tools import require_tools

pytestmark = [pytest.mark.podman, pytest.mark.timeout(300)]

DOCUMENT = Path(__file__).parents[2] / "docs/reference/launchers.md"
PYXIS = os.environ.get("RC_TEST_PYXIS", "")

ODD = "a \"b\" 'c' \\ $HOME * %s ü=;  "
BRACES = "a ${HOME} b"
LINES = "one\ntwo"
CONFIG: dict[str, object] = {
    "Env": [
        "PATH=/bin",
        f"ODD={ODD}",
        'DOUBLE="quoted"',
        "SINGLE='-a' '-b'",
        f"BRACES={BRACES}",
        f"LINES={LINES}",
        "EMPTY=",
        "OVER=image",
        "GONE=image",
    ],
    "WorkingDir": "/image dir",
    "Entrypoint": ["/bin/sh", "-c", 'export ENTERED="in $PWD"; exec "$@"', "entrypoint"],
}
# Every value that a variable can have, made of what formats of lines and shells take for something else.
ALPHABET = "ab \t\"\"''\\\\$${{}}()`*%#=:;,&|<>!~üß"
CHANCE = random.Random(int(os.environ.get("RC_TEST_SEED", "1")))


def value(more: str = "") -> str:
    text = "".join(CHANCE.choices(ALPHABET + more, k=CHANCE.randrange(12)))
    return CHANCE.choice(["{}", "{}", "{}", '"{}"', "'{}'", "${{{}}}"]).format(text)


# Its command is a child.
PARENT = {**CONFIG, "Entrypoint": ["/bin/sh", "-c", '"$@"; exit $?', "entrypoint"]}

JOB = "launchers"
LIMIT_S = 60
# What follows the line that names the image.
PLAIN = 'mounts = ["{data}:/data", "{data}/file:/one-file", "{data}:/read-only:ro"]\n'
EDF = """\
workdir = "/edf dir"
entrypoint = true
writable = false
[env]
ODD = '''a "b" 'c' \\ $HOME * %s ü=;  '''
DOUBLE = '"quoted"'
ESCAPED = "$${{HOME}}"
DEFAULT = "${{NO_SUCH:-default}}"
PATH = "${{PATH}}:/more"
OVER = "edf"
GONE = ""
"""
WRITE = "(echo x > {0}/new) 2>/dev/null && rm {0}/new && printf yes || printf no"
TEMPORARY = """
    for each in /tmp /run /var/lock; do
        test -e $each/tool && printf "%s " $each
        printf '#!/bin/sh\nprintf "ran "' > $each/ours && chmod 700 $each/ours && $each/ours
    done
"""


@dataclass(frozen=True, slots=True)
class Row:
    """A feature with what tries it: an EDF, a script, and what that prints or how it ends."""

    feature: str
    edf: str
    script: str
    expected: str = ""
    # None: any but 0.
    status: int | None = 0
    config: str = "image"
    argv: tuple[str, ...] = ()


def show(*names: str) -> str:
    return "; ".join(f'printf "%s|" "${{{name}-unset}}"' for name in names)


ARGUMENTS = ("a  b", "it's", '"', "$HOME", "", "x\ny", "*")
# Neighbours with the same EDF share a container where nothing ends it.
ROWS = (
    Row("image variable with quotes, backslashes, `$HOME`", PLAIN, show("ODD", "EMPTY"), f"{ODD}||"),
    Row("image variable wholly in quotes", PLAIN, show("DOUBLE", "SINGLE"), "\"quoted\"|'-a' '-b'|"),
    Row("image variable with `${NAME}`", PLAIN, show("BRACES"), f"{BRACES}|"),
    Row("image variable of several lines", PLAIN, show("LINES"), f"{LINES}|"),
    Row("the image's WORKDIR", PLAIN, 'printf %s "$PWD"', "/image dir"),
    Row("`OLDPWD` is not set", PLAIN, show("OLDPWD"), "unset|"),
    Row("no ENTRYPOINT with `entrypoint = false`", PLAIN, show("ENTERED"), "unset|"),
    Row("mounts of directories and files", PLAIN, "cat /data/file /one-file", "mounted\nmounted\n"),
    Row("read-only mounts", PLAIN, WRITE.format("/read-only") + ";" + WRITE.format("/data"), "noyes"),
    Row("writable root", PLAIN, WRITE.format(""), "yes"),
    Row("`/tmp`, `/run`, `/var/lock` are empty", PLAIN, TEMPORARY, "ran ran ran "),
    Row("standard input", PLAIN, "cat", "from standard input\n"),
    Row(
        "arguments with spaces, quotes, line breaks",
        PLAIN,
        'printf "[%s]" "$@"',
        f"[{']['.join(ARGUMENTS)}]",
    ),
    Row("the host's variables are not there", PLAIN, show("FROM_HOST"), "unset|"),
    Row(
        "`[env]` with quotes, `$HOME`, `$${NAME}`, `${NAME:-x}`",
        EDF,
        show("ODD", "ESCAPED", "DEFAULT"),
        f"{ODD}|${{HOME}}|default|",
    ),
    Row("`[env]` wholly in quotes", EDF, show("DOUBLE"), '"quoted"|'),
    Row("`[env]` in place of the image's, or added to it", EDF, show("OVER", "PATH"), "edf|/bin:/more|"),
    Row("`[env]` that is empty: not set", EDF, show("GONE"), "unset|"),
    Row("`workdir`", EDF, 'printf %s "$PWD"', "/edf dir"),
    Row('ENTRYPOINT that ends in `exec "$@"`', EDF, 'test "$ENTERED" && printf yes', "yes"),
    Row("… it begins in `workdir`", EDF, show("ENTERED"), "in /edf dir|"),
    Row("read-only root", EDF, WRITE.format(""), "no"),
    Row("`/tmp`, `/run`, `/var/lock` can be written all the same", EDF, TEMPORARY, "ran ran ran "),
    Row("`[env]` of several lines", '[env]\nMORE = "one\\ntwo"\n', show("MORE"), f"{LINES}|"),
    Row(
        "mount to a path with white space", 'mounts = ["{data}:/a b"]\n', "cat '/a b/file'", "mounted\n"
    ),
    Row(
        'mount to a path with `,`, `"` or `$`',
        'mounts = ["{data}:/a,\\"$"]\n',
        "cat '/a,\"$/file'",
        "mounted\n",
    ),
    Row("exit status of the command", "", "exit 7", status=7),
    Row("command that is not found: 127", "", "", status=127, argv=("/no/such",)),
    Row("command that may not be executed: 126", "", "", status=126, argv=("/etc/rc.local",)),
    Row("TERM ends the command: 143", "", "kill -TERM $$; echo survived", status=143),
    Row("SEGV ends it: 139", "", "kill -SEGV $$; echo survived", status=139),
    Row(
        "`workdir` that is not there is an error", 'workdir = "/no such"\n', "printf never", status=None
    ),
    Row(
        "ENTRYPOINT that starts its command as a child",
        "entrypoint = true\n",
        "printf yes",
        "yes",
        config="parent",
    ),
)


@dataclass(frozen=True, slots=True)
class Place:
    """Images as SquashFS files, data to mount, and what starts containers."""

    directory: Path
    engine: Podman

    def cells(self, launcher: Launcher) -> list[str]:
        """What each row comes to with a launcher."""
        found = []
        for (edf, config, alone), group in groupby(ROWS, lambda row: (row.edf, row.config, _alone(row))):
            rows = list(group)
            if alone:
                found += [self._cell(launcher, row) for row in rows]
            else:
                found += self._together(launcher, edf, config, rows)
        return found

    def _cell(self, launcher: Launcher, row: Row) -> str:
        argv = row.argv or ("sh", "-c", row.script)
        done = self.start(launcher, row.edf, row.config, argv)
        if done is None:
            return "refused"
        status = 128 - done.returncode if done.returncode < 0 else done.returncode
        print(f"{launcher}: {row.feature}: {status}, {done.stdout!r}, {done.stderr!r}")
        good = status != 0 if row.status is None else status == row.status
        return "yes" if good and done.stdout == row.expected else "no"

    def _together(self, launcher: Launcher, edf: str, config: str, rows: list[Row]) -> list[str]:
        script = "; printf '\\036'; ".join(f"({row.script})" for row in rows)
        done = self.start(launcher, edf, config, ("sh", "-c", script, "sh", *ARGUMENTS))
        if done is None:
            return ["refused"] * len(rows)
        parts = done.stdout.split("\x1e")
        if len(parts) != len(rows):
            assert len(rows) == 1 or launcher is not Launcher.PODMAN, done.stderr
            return ["no"] * len(rows)
        for part, row in zip(parts, rows, strict=True):
            if part != row.expected:
                print(f"{launcher}: {row.feature}: {part!r}")
        said = [part == row.expected for part, row in zip(parts, rows, strict=True)]
        return ["yes" if good else "no" for good in said]

    def start(
        self, launcher: Launcher, edf: str, config: str, argv: tuple[str, ...]
    ) -> subprocess.CompletedProcess[str] | None:
        """What a command printed in a container; None when the launcher is not given it."""
        path = self.directory / "e.toml"
        text = edf.format(data=self.directory / "data")
        path.write_text(f'image = "{self.directory}/{config}.sqsh"\n{text}', encoding="utf-8")
        resolved = launch.resolve(str(path), environ=os.environ, cwd=self.directory)
        request = StepRequest(JOB, account=ACCOUNT) if launcher is Launcher.PYXIS else None
        try:
            with contextlib.ExitStack() as held:
                image = None
                if launcher is Launcher.PODMAN:
                    opened = launch.podman_image(resolved, self.engine, None, from_file=True)
                    image = held.enter_context(opened)
                wanted = launch.command(
                    launcher,
                    str(path),
                    resolved,
                    argv,
                    request,
                    interactive=False,
                    engine=self.engine,
                    image=image,
                )
                return subprocess.run(
                    wanted.argv,
                    env=wanted.environment(),
                    input="from standard input\n",
                    capture_output=True,
                    text=True,
                    check=False,
                    timeout=LIMIT_S,
                )
        except EdfError:
            return None
        except subprocess.TimeoutExpired:
            assert launcher is Launcher.PYXIS
            subprocess.run(("scancel", f"--jobname={JOB}"), check=True)
            return subprocess.CompletedProcess(argv, 1, "", "it was ended after a minute")


def _alone(row: Row) -> bool:
    return row.status != 0 or bool(row.argv)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Two images with odd settings, in a directory whose path every launcher takes."""
    require_tools("podman", "mksquashfs", "unsquashfs", "busybox")
    directory = tmp_path_factory.mktemp("launchers")
    with own_storage() as (podman, _):
        (directory / "data").mkdir()
        (directory / "data/file").write_text("mounted\n")
        layer = Layer().busybox()
        for each in ("chmod", "rm"):
            layer.symlink(f"bin/{each}", "busybox")
        for each in (
            "etc",
            "image dir",
            "edf dir",
            "tmp",
            "run",
            "run/lock",
            "var",
            "dev",
            "proc",
            "sys",
        ):
            layer.directory(each)
        layer.symlink("var/lock", "/run/lock").symlink("var/run", "/run")
        for each in ("tmp/tool", "run/tool", "run/lock/tool"):
            layer.file(each)
        for each, config in {"image": CONFIG, "parent": PARENT, "random": RANDOM}.items():
            image_id = load(podman, directory / f"layout-{each}", config, layer)
            image = podman.inspect(image_id)
            squash.squash(
                podman, image, directory / f"{each}.sqsh", settings=Squash(), provenance=(), log=None
            )
        runtime = working_runtime(podman, directory / "rootfs")
        yield Place(directory, replace(podman, runtime=runtime))


@pytest.fixture
def launcher(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, place: Place
) -> Iterator[Launcher]:
    wanted = Launcher(request.param)
    if wanted is not Launcher.PODMAN and shutil.which("enroot") is None:
        pytest.skip("no enroot on PATH")
    # Its default lies in /run, where users may not write.
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(place.directory))
    monkeypatch.setenv("FROM_HOST", "host")
    if wanted is not Launcher.PYXIS:
        yield wanted
        return
    if not PYXIS:
        pytest.skip("RC_TEST_PYXIS names no spank_pyxis.so")
    with tempfile.TemporaryDirectory(prefix="rc-pyxis-") as name:
        # For munged.
        Path(name).chmod(0o755)
        plugin = f"required {PYXIS} runtime_path={name}/pyxis\n"
        with Cluster(Path(name) / "slurm", nodes=1, plugins=plugin) as cluster:
            for key, value in cluster.environment.items():
                monkeypatch.setenv(key, value)
            yield wanted


def documented(launcher: Launcher) -> dict[str, str]:
    """The cells of a launcher in the document, by feature."""
    lines = re.findall(r"^\| .*$", DOCUMENT.read_text(encoding="utf-8"), re.M)
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    heads = [head.lower() for head in rows[0]]
    return {row[0]: row[heads.index(launcher)] for row in rows[1:]}


RANDOM = {**CONFIG, "Env": ["PATH=/bin", *(f"IMAGE_{i}=" + value("\n") for i in range(100))]}
REPORT = """
    printf "%s\\036" "$PWD" "$@"
    cat /mounted/* /proc/self/environ
    exit {status}
"""


def report(edf: str, place: Place, launcher: Launcher, argv: tuple[str, ...], status: int) -> list[str]:
    script = REPORT.format(status=status)
    done = place.start(launcher, edf, "random", ("sh", "-c", script, "sh", *argv))
    assert done is not None
    told = done.stdout.partition("\x1e\x1e")
    ours = sorted(each for each in told[2].split("\0") if each.startswith(("IMAGE_", "EDF_")))
    return [told[0], *ours, f"exit status {done.returncode}"]


@pytest.mark.parametrize("launcher", ["enroot", "pyxis"], indirect=True)
def test_random_containers_are_the_same_as_with_podman(place: Place, launcher: Launcher) -> None:
    for _ in range(5):
        # `${NAME}` is for an EDF itself to replace.
        values = {f"EDF_{i}": value().replace("${", "$(") for i in range(40)}
        # In place of the image's, and empty: not set.
        values |= {f"IMAGE_{CHANCE.randrange(100)}": CHANCE.choice(["", "edf"]) for _ in range(20)}
        file = place.directory / f"data/{CHANCE.choice(['a', 'ü', 'a@b', 'a+b', 'x=y'])}"
        file.write_text(value("\n") + "\0")
        lines = [
            f'mounts = ["{file}:/mounted/file:ro"]',
            f"entrypoint = {CHANCE.choice(['true', 'false'])}",
        ]
        lines += ["[env]", *(f"{key} = {toml_text.dump(text)}" for key, text in values.items())]
        edf = "\n".join(lines).replace("{", "{{").replace("}", "}}")
        argv = (*(value("\n") for _ in range(CHANCE.randrange(6))), "")
        status = CHANCE.randrange(100)
        said = {each: report(edf, place, each, argv, status) for each in (Launcher.PODMAN, launcher)}
        assert said[launcher] == said[Launcher.PODMAN]
        assert len(said[launcher]) > 100, said


@pytest.mark.parametrize("launcher", ["podman", "enroot", "pyxis"], indirect=True)
def test_the_table_says_what_the_launchers_do(place: Place, launcher: Launcher) -> None:
    found = dict(zip((row.feature for row in ROWS), place.cells(launcher), strict=True))
    told = {feature: re.sub(r" \(\d+\)$", "", cell) for feature, cell in documented(launcher).items()}
    assert found == {feature: told.get(feature) for feature in found}


def test_every_difference_has_its_note() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    notes = set(re.findall(r"^(\d+)\. ", text, re.M))
    for launcher in (Launcher.PODMAN, Launcher.ENROOT, Launcher.PYXIS, Launcher.CE):
        for feature, cell in documented(launcher).items():
            number = re.fullmatch(r"yes|(?:no|refused|\?) \((\d+)\)", cell)
            assert number, (launcher, feature, cell)
            assert number[1] is None or number[1] in notes
