"""Bad input is told in our words: what, where, what next. Nothing that was there is lost.

A case is a directory of tests/cases: what is laid over a checkout of the image `good`, the lines that
are typed there (`command`), and all that they print (`expected.txt`). With a file `built`, `good` looks
built. Cases that no directory can hold stand here, and their texts in tests/golden/bad_input. After a
text was changed,

    UPDATE_GOLDEN=1 pytest tests/integration/test_bad_input.py

writes them all anew, to be read as a diff.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import pty
import pwd
import re
import shlex
import shutil
import socket
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from rc_tasks.state.checkout import open_checkout
from rc_tasks.state.disk.locks import held
from tests.support import warm
from tests.support.checkouts import digest_cache, pretend_built, write_checkout
from tests.support.cluster import Cluster
from tests.support.doit import unstamped
from tests.support.storage import own_storage
from tests.support.tools import limited, require_tools

DIRECTORIES = sorted(path.parent for path in (Path(__file__).parents[1] / "cases").glob("*/command"))
# What is no part of the checkout.
ABOUT = ("command", "built", "expected.txt")
GOLDEN = Path(__file__).parents[1] / "golden" / "bad_input"
UPDATE = os.environ.get("UPDATE_GOLDEN") == "1"
DOIT = str(Path(sys.executable).with_name("doit"))
BUSYBOX = "/bin/busybox"
TIMEOUT_S = 300.0

GOOD = {"projects/good/Dockerfile": "FROM scratch\nCOPY data /\n", "projects/good/data": "data\n"}
# A base in which RUN works; `write` adds busybox itself.
INSTALL = 'COPY busybox /bin/\nRUN ["/bin/busybox", "--install", "-s", "/bin"]\n'
BASE = {"base/Dockerfile": f"FROM scratch\n{INSTALL}"}

WRONG_TYPES = {"schema": 1, "task": "podman:good", "inputs": 5, "duration_s": "x"} | dict.fromkeys(
    ("started_at", "ended_at", "node", "job_id", "facts", "artifact"), ""
)


@dataclass(frozen=True, slots=True)
class Case:
    """A checkout, and command lines with the exit status that each must have.

    `built` names the images that look built before; `prepare` does what files alone cannot.
    """

    id: str
    files: Mapping[str, str]
    commands: Mapping[str, int]
    settings: str = ""
    built: tuple[str, ...] = ()
    prepare: Callable[[Path], None] | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    cwd: str = "."


def project(text: str, **files: str) -> dict[str, str]:
    """A checkout of `good` and of a project `x` with this Dockerfile."""
    return {**GOOD, "projects/x/Dockerfile": text, **{f"projects/x/{k}": v for k, v in files.items()}}


def directory(name: str) -> dict[str, str]:
    """A checkout of `good` and of a project directory of this name."""
    return {**GOOD, f"projects/{name}/Dockerfile": "FROM scratch\n"}


def put(path: str, content: str | bytes) -> Callable[[Path], None]:
    """Writes a file behind the back of the tool."""

    def prepare(root: Path) -> None:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content.encode() if isinstance(content, str) else content)

    return prepare


def rewritten(steps: Mapping[str, Mapping[str, object]]) -> Callable[[Path], None]:
    """Writes other values into the records of `good`."""

    def prepare(root: Path) -> None:
        for step, values in steps.items():
            path = root / f".rc/state/{step}:good.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return prepare


def in_place(path: str) -> Callable[[Path], None]:
    """Puts a directory in the place of a file."""

    def prepare(root: Path) -> None:
        (root / path).unlink()
        (root / path).mkdir()

    return prepare


def fifo(path: str) -> Callable[[Path], None]:
    return lambda root: os.mkfifo(root / path)


CASES = (
    # Dockerfiles
    Case(
        "dockerfile-fifo",
        {**GOOD, "projects/x/a": ""},
        {"build:x": 1},
        prepare=fifo("projects/x/Dockerfile"),
    ),
    Case(
        "fifo-in-context",
        project("FROM scratch\nCOPY . /\n"),
        {"build:x": 1, "list": 0},
        prepare=fifo("projects/x/pipe"),
    ),
    Case(
        "link-latin1",
        project("FROM scratch\nCOPY . /\n"),
        {"list": 0},
        prepare=lambda root: os.symlink(os.fsdecode(b"\xe9/data"), root / "projects/x/link"),
    ),
    # names
    Case(
        "name-odd-argument",
        GOOD,
        {
            "'build:go od'": 3,
            "'build:go\"od'": 3,
            "build:go=od": 3,
            "'build:go\nod'": 3,
            "-good": 3,
            "''": 3,
            "why -- -good": 3,
            "list 'go\nod'": 3,
        },
    ),
    Case(
        "name-odd-directory",
        {
            **GOOD,
            **directory("a b"),
            **directory("a=b"),
            **directory("a\nb"),
            **directory("-a"),
            **directory('a"b'),
            **directory("Ab"),
        },
        {"--continue": 1, "list": 0, "plan": 0},
        built=("good",),
    ),
    Case("outside", GOOD, {"": 3, "list": 3, "build:good": 3, "info good": 3}, cwd=".."),
    # Programs that read the tests would follow it.
    Case(
        "alias-outside",
        {**GOOD, "projects/latest": "-> /usr/lib"},
        {"build:latest": 1, "list": 0},
    ),
    # settings
    Case("pyproject-broken-below", GOOD, {"list": 3}, settings="runner = slurm\n", cwd="projects/good"),
    Case("variable-unknown", GOOD, {"list": 3}, env={"RC_SLURM_PARTITON": "debug"}),
    # what is kept in .rc
    Case(
        "record-corrupted",
        GOOD,
        {"list": 0, "why good": 0},
        built=("good",),
        prepare=put(".rc/state/podman:good.json", '{"schema": 1, "task'),
    ),
    Case(
        "record-not-a-record",
        GOOD,
        {"list": 0},
        built=("good",),
        prepare=put(".rc/state/podman:good.json", "[1, 2]"),
    ),
    Case(
        "record-wrong-types",
        GOOD,
        {"list": 0, "plan": 0},
        built=("good",),
        prepare=put(
            ".rc/state/podman:good.json",
            json.dumps(WRONG_TYPES),
        ),
    ),
    Case(
        "record-wrong-values",
        GOOD,
        {"list": 0, "verify good": 3, "rollback good --list": 3},
        built=("good",),
        prepare=rewritten({"podman": {"ended_at": "yesterday"}, "enroot": {"inputs": {"image": 5}}}),
    ),
    Case(
        "digests-corrupted",
        GOOD,
        {"list": 0},
        built=("good",),
        prepare=put(digest_cache("projects/good"), "{]"),
    ),
    Case(
        "digests-wrong-types",
        GOOD,
        {"list": 0},
        built=("good",),
        prepare=put(
            digest_cache("projects/good"),
            '{"content data": 7, "content Dockerfile": [1]}',
        ),
    ),
    Case(
        "digests-not-utf8",
        GOOD,
        {"list": 0},
        built=("good",),
        prepare=put(digest_cache("projects/good"), b'{"\xff'),
    ),
    # templates/env.toml.j2 and env.toml: the env step alone runs, without podman
    Case(
        "template-missing",
        GOOD,
        {"list": 0, "why good": 0, "env:good": 1, "build:good": 1, "plan": 0},
        built=("good",),
        prepare=lambda root: (root / "templates/env.toml.j2").unlink(),
    ),
    Case(
        "env-toml-directory",
        GOOD,
        {"env:good": 1, "list": 0},
        built=("good",),
        prepare=in_place("projects/good/env.toml"),
    ),
    # things in the place of others
    Case("rc-is-a-file", GOOD, {"build:good": 1, "list": 0}, prepare=put(".rc", "")),
    Case("projects-is-a-file", {"projects": ""}, {"list": 3, "": 3}),
    Case(
        "templates-missing",
        GOOD,
        {"env:good": 1},
        built=("good",),
        prepare=lambda root: shutil.rmtree(root / "templates"),
    ),
    Case("no-projects", {}, {"list": 0, "": 0, "plan": 0, "build:x": 3}),
    Case(
        "file-name-not-utf8",
        GOOD,
        {"list": 0, "why good": 0},
        built=("good",),
        prepare=lambda root: (root / "projects/good" / os.fsdecode(b"\xff")).touch(),
    ),
    Case(
        "directory-name-not-utf8",
        GOOD,
        {"list": 0, "--continue": 1},
        built=("good",),
        prepare=lambda root: (root / "projects" / os.fsdecode(b"\xff")).mkdir(),
    ),
    Case(
        "locale-without-arrows",
        {
            "projects/x/Dockerfile": "FROM y\n",
            "projects/y/Dockerfile": "FROM x\n",
            "projects/größe/Dockerfile": "FROM scratch\n",
        },
        {"build:x": 1, "list": 0},
        env={"PYTHONIOENCODING": "ascii"},
    ),
    # tools
    Case("podman-missing", GOOD, {"build:good": 1}, without=("podman",)),
    Case(
        "srun-missing",
        GOOD,
        {"build:good": 1},
        settings="runner = 'slurm'\n",
        env={"RC_RUNNER": "slurm"},
        without=("srun", "salloc", "sinfo", "scontrol"),
    ),
)

PODMAN_CASES = (
    Case(
        "copy-source-missing",
        {**GOOD, **project("FROM scratch\nCOPY entrypont.sh /\n", **{"entrypoint.sh": "#!/bin/sh\n"})},
        {"--continue": 1, "list x": 0, "why x": 0},
    ),
    Case(
        "run-fails",
        {
            **BASE,
            "projects/x/Dockerfile": "FROM base\nRUN (echo collecting; echo no torhc; exit 3) >&2\n",
        },
        {"build:x": 1, "list": 0, "build:x ": 1},
    ),
    Case("base-nearly-named-build", {**BASE, "projects/x/Dockerfile": "FROM bsae\n"}, {"build:x": 1}),
    Case("mksquashfs-missing", GOOD, {"build:good": 1}, without=("mksquashfs",)),
    Case(
        "enroot-missing",
        GOOD,
        {"build:good": 1},
        settings='squash.method = "enroot"\n',
        without=("enroot",),
    ),
)


@dataclass(slots=True)
class Runner:
    """Runs doit in a checkout as a person would, and notes what that printed."""

    root: Path
    environment: dict[str, str]
    cwd: Path
    argv: tuple[str, ...] = ()
    transcript: str = ""

    def __call__(self, line: str, status: int | None = None) -> str:
        """The output of `doit LINE`, without what differs from run to run."""
        # Results and warnings come in their order, as on a terminal.
        environ = os.environ | {"PYTHONUNBUFFERED": "1"} | self.environment
        argv = tuple(shlex.split(line))
        if self.argv or not warm.suits(environ):
            done = subprocess.run(
                (*self.argv, DOIT, *argv),
                cwd=self.cwd,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )
            ended, text = done.returncode, done.stdout
        else:
            ended, text = warm.run(argv, self.cwd, environ, TIMEOUT_S)
        shown = normalised(text, self.root)
        self.transcript += f"$ doit {line}".rstrip() + f"\n{shown}[exit {ended}]\n\n"
        assert "Traceback" not in text, text
        assert status in {None, ended}, self.transcript
        return shown


def normalised(text: str, root: Path) -> str:
    """A text without temporary paths, times, durations, sizes, hosts and image IDs."""
    text = (
        unstamped(text).replace(os.path.realpath(root), "CHECKOUT").replace(str(root.parent), "PARENT")
    )
    text = re.sub(r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d\.\d{3}Z\.\d+\.log", "START.log", text)
    text = re.sub(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d\+00:00)?", "TIME", text)
    # chroot isolation says it anywhere among the lines of the RUN, and says it twice.
    text = re.sub(r" *\| subprocess exited with status \d+\n", "", text)
    # podman 4 makes an instruction of each label, podman 5 one of all.
    text = re.sub(r"\bSTEP (\d+)/\d+", r"STEP \1/N", text)
    # mksquashfs 4.7 says it in a line more.
    text = re.sub(
        r"\| (Failed to write to output filesystem)\n *\| FATAL ERROR: .*", r"| FATAL ERROR: \1", text
    )
    # On a busy machine the next step is told to start before the failure that made room for it.
    text = re.sub(
        r"^(start +(\S+) .*\n)(FAILED  (?!\2 ).*\n(?: .*\n)*)", r"\3\1", text, flags=re.MULTILINE
    )
    text = re.sub(r"\b\d+\.\d+ s\b", "N s", text)
    text = re.sub(r"\b[0-9a-f]{12}(?:[0-9a-f]{52})?\b", "ID", text)
    text = re.sub(r"\bprocess \d+", "process PID", text)
    text = text.replace(f"(owner {pwd.getpwuid(os.geteuid()).pw_name}, ", "(owner USER, ")
    text = re.sub(r"time=\"[^\"]+\"|put-blob\d+", "TIME", text)
    text = re.sub(r"\bjob \d+", "job ID", text)
    text = re.sub(r"/tmp/rc_tasks\.\w+", "SCRATCH", text)
    return re.sub(rf"\b{re.escape(socket.gethostname())}\b", "HOST", text)


def write(root: Path, case: Case) -> None:
    write_checkout(root, case.files, case.settings)
    for base in root.glob("**/Dockerfile"):
        if base.is_file() and "COPY busybox" in base.read_text(errors="replace"):
            shutil.copy(BUSYBOX, base.parent)
    if case.built:
        pretend_built(root, case.built)
    if case.prepare:
        case.prepare(root)


def kept(root: Path) -> dict[str, str]:
    """What must not be lost: images, EDFs, records and sources, by path."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file() and not path.is_relative_to(root / ".rc/cache")
    }


def compare(path: Path, transcript: str) -> None:
    """The file holds this transcript."""
    if UPDATE:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(transcript)
    assert transcript == path.read_text(), f"see {path}; UPDATE_GOLDEN=1 writes it anew"


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """A PATH with every program of this machine but the named ones."""

    def path_without(*names: str) -> str:
        place = tmp_path_factory.mktemp("bin")
        for folder in os.environ["PATH"].split(os.pathsep):
            for program in Path(folder).glob("*"):
                link = place / program.name
                if program.name not in names and not link.is_symlink():
                    link.symlink_to(program)
        return str(place)

    return path_without


def check(case: Case, root: Path, tools: Callable[..., str], more: Mapping[str, str]) -> None:
    write(root, case)
    before = kept(root)
    environment = {"RC_RUNNER": "local", **more, **case.env}
    if case.without:
        environment["PATH"] = tools(*case.without)
    doit = Runner(root, environment, root / case.cwd)
    for line, status in case.commands.items():
        doit(line, status)
    after = kept(root)
    assert {path: after.get(path) for path in before} == before
    compare(GOLDEN / f"{case.id}.txt", doit.transcript)


@pytest.mark.parametrize("case", DIRECTORIES, ids=lambda case: case.name)
def test_bad_input_is_told(case: Path, tmp_path: Path) -> None:
    root = write_checkout(tmp_path / "checkout", GOOD)
    if (case / "built").exists():
        pretend_built(root)
    shutil.copytree(case, root, symlinks=True, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*ABOUT))
    before = kept(root)
    doit = Runner(root, {"RC_RUNNER": "local"}, root)
    for line in (case / "command").read_text().splitlines():
        doit(line.removeprefix("doit").strip())
    after = kept(root)
    assert {path: after.get(path) for path in before} == before
    compare(case / "expected.txt", doit.transcript)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_input_that_no_directory_can_hold_is_told(
    case: Case, tmp_path: Path, tools: Callable[..., str]
) -> None:
    check(case, tmp_path / "checkout", tools, {})


@pytest.fixture(scope="module")
def storage() -> Iterator[Mapping[str, str]]:
    """The environment that gives podman a storage of this module's own."""
    require_tools("podman", "busybox")
    with own_storage() as (_, environment):
        yield environment


@pytest.mark.podman
@pytest.mark.parametrize("case", PODMAN_CASES, ids=lambda case: case.id)
def test_a_failing_step_is_told(
    case: Case, tmp_path: Path, tools: Callable[..., str], storage: Mapping[str, str]
) -> None:
    check(case, tmp_path / "checkout", tools, storage)


ON_STATE = ("list", "why good", "plan", "", "verify --all", "history", "doctor", "gc", "store", "report")
# What is not allowed, by path: image and records of `good` are there, and its env.toml is stale.
FORBIDDEN = {
    "forbidden-project": ({"projects/good": 0o555}, {"env:good": 1, "list": 0}),
    "forbidden-project-build": ({"projects/x": 0o555}, {"build:x": 1}),
    "forbidden-state": ({".rc": 0o555, ".rc/state": 0o555}, {"env:good": 1, "list": 0, "plan": 0}),
    "forbidden-locks": ({".rc/locks": 0o555}, {"env:good": 1}),
    "unreadable-project": ({"projects/x": 0o000}, {"build:x": 1, "list": 0, "why x": 0}),
    "unreadable-folder": ({"projects/x/folder": 0o000}, {"build:x": 1, "list": 0, "why x": 0}),
    "unreadable-file": ({"projects/x/data": 0o000}, {"build:x": 1, "list": 0}),
    "unreadable-dockerfile": ({"projects/x/Dockerfile": 0o000}, {"build:x": 1, "list": 0}),
    "unreadable-projects": ({"projects": 0o000}, {"build:x": 3, "list": 3}),
    "unreadable-pyproject": ({"pyproject.toml": 0o000}, {"list": 3}),
    "unreadable-template": ({"templates/env.toml.j2": 0o000}, {"env:good": 1}),
    "unreadable-edf": ({"projects/good/env.toml": 0o000}, {"env:good": 1, "list": 0}),
    "unreadable-state": ({".rc": 0o000}, dict.fromkeys(ON_STATE, 3)),
    "unreadable-records": ({".rc/state": 0o000}, dict.fromkeys(ON_STATE, 3) | {"history": 0}),
    "unreadable-record": (
        {".rc/state/podman:good.json": 0o000},
        dict.fromkeys(("list", "build:good", "verify --all", "gc", "doctor"), 3),
    ),
    "unreadable-store": ({".rc/store": 0o000}, dict.fromkeys(("list", "verify --all", "gc"), 3)),
    "unreadable-image": ({"projects/good/image.sqsh": 0o000}, {"verify good": 3}),
}


@pytest.mark.parametrize("case", FORBIDDEN)
def test_what_may_not_be_read_or_written_is_told(case: str, tmp_path: Path) -> None:
    root = tmp_path / "checkout"
    files = {"projects/x/data": "", "projects/x/folder/data": "", ".rc/locks/.keep": ""}
    write_checkout(root, project("FROM scratch\nCOPY . /\n") | files)
    pretend_built(root, ["good"])
    template = root / "templates/env.toml.j2"
    template.write_text(template.read_text() + "# one line more\n")
    before = kept(root)
    modes, commands = FORBIDDEN[case]
    doit = Runner(root, {"RC_RUNNER": "local"}, root, limited())
    old = {root / path: (root / path).stat().st_mode for path in modes}
    try:
        for path, mode in modes.items():
            (root / path).chmod(mode)
        for line, status in commands.items():
            doit(line, status)
    finally:
        for changed, mode in old.items():
            changed.chmod(mode)
    after = kept(root)
    assert {path: after.get(path) for path in before} == before
    compare(GOLDEN / f"{case}.txt", doit.transcript)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_the_owner_of_an_unreadable_state_is_named(tmp_path: Path) -> None:
    """An administrator's umask was 077, and a member of the team looks."""
    root = write_checkout(tmp_path / "checkout", GOOD, 'images_owners = ["nobody"]')
    pretend_built(root, ["good"])
    subprocess.run(("chown", "--recursive", "nobody:", root / ".rc"), check=True)
    subprocess.run(("chmod", "--recursive", "go=", root / ".rc"), check=True)
    doit = Runner(root, {"RC_RUNNER": "local"}, root, limited())
    for line in ("list", "verify --all", "doctor", "build:good"):
        doit(line, 3)
    subprocess.run(("chmod", "--recursive", "go+rX", root / ".rc"), check=True)
    doit("list", 0)
    compare(GOLDEN / "unreadable-state-of-another.txt", doit.transcript)


@contextlib.contextmanager
def small_disk(directory: Path, size_mb: int) -> Iterator[None]:
    """A file system of its own that is soon full."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small file system")
    directory.mkdir()
    options = ("-t", "tmpfs", "-o", f"size={size_mb}m", "tmpfs")
    if subprocess.run(("mount", *options, directory), check=False, stderr=subprocess.DEVNULL).returncode:
        pytest.skip("mounting a file system is not allowed here")
    try:
        yield
    finally:
        subprocess.run(("umount", "--lazy", directory), check=True)


def fill(root: Path) -> None:
    """Write until nothing more fits."""
    with contextlib.suppress(OSError), (root / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def test_a_full_disk_is_told_when_an_edf_is_written(tmp_path: Path) -> None:
    root = tmp_path / "checkout"
    with small_disk(root, 2):
        write_checkout(root, GOOD)
        pretend_built(root)
        template = root / "templates/env.toml.j2"
        template.write_text(template.read_text() + "# one line more\n")
        before = kept(root)
        fill(root)
        doit = Runner(root, {"RC_RUNNER": "local"}, root)
        doit("env:good", 1)
        doit("list", 0)
        (root / "filler").unlink()
        assert {path: kept(root).get(path) for path in before} == before
        doit("env:good", 0)
        doit("list", 0)
        compare(GOLDEN / "disk-full-edf.txt", doit.transcript)


@pytest.mark.podman
@pytest.mark.parametrize("store", [True, False], ids=["store", "squash"])
def test_a_full_disk_is_told_when_an_image_is_written(
    store: bool, tmp_path: Path, storage: Mapping[str, str]
) -> None:
    root = tmp_path / "checkout"
    with small_disk(root, 6):
        write_checkout(root, GOOD, f"store.enabled = {str(store).lower()}\n")
        doit = Runner(root, {"RC_RUNNER": "local", **storage}, root)
        doit("build:good", 0)
        before = kept(root)
        # Larger than half of the disk, and not to be compressed.
        (root / "projects/good/data").write_bytes(os.urandom(4 << 20))
        doit("build:good", 1)
        after = kept(root)
        images = [path for path in before if path.endswith((".sqsh", ".toml", "image.json"))]
        assert {path: after[path] for path in images} == {path: before[path] for path in images}
        assert not [path for path in after if ".tmp" in path or ".put." in path]
        doit("list", 0)
        compare(GOLDEN / f"disk-full-{'store' if store else 'squash'}.txt", doit.transcript)


def test_the_list_says_what_is_being_built(tmp_path: Path) -> None:
    root = write_checkout(tmp_path / "checkout", GOOD)
    doit = Runner(root, {"RC_RUNNER": "local"}, root)
    with held(open_checkout(root, {}).lock("good"), "podman:good"):
        doit("list", 0)
    doit("list", 0)
    compare(GOLDEN / "list-while-building.txt", doit.transcript)


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("list", 0),
        ("why x", 0),
        ("settings", 0),
        ("list --all", 141),
        # A run goes on to its own end.
        ("--continue", 1),
        ("-n 2", 1),
    ],
)
def test_a_reader_that_leaves_gets_no_traceback(line: str, status: int, tmp_path: Path) -> None:
    root = write_checkout(tmp_path / "checkout", project(""))
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        (DOIT, *line.split()),
        cwd=root,
        env=os.environ | {"RC_RUNNER": "local"},
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writer)
    assert (done.stderr, done.returncode) == ("", status)


def test_the_list_fits_a_narrow_terminal(tmp_path: Path) -> None:
    files = project("FROM localhost/nothing-of-this-name\n")
    root = write_checkout(tmp_path / "checkout", files | {"projects/latest": "-> good"})
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
    environment = os.environ | {"RC_RUNNER": "local", "TERM": "xterm-256color"}
    environment.pop("COLUMNS", None)
    process = subprocess.Popen(
        (DOIT, "list"), cwd=root, env=environment, stdin=slave, stdout=slave, stderr=slave
    )
    os.close(slave)
    shown = b""
    with contextlib.suppress(OSError):  # what Linux says at the end of a terminal
        while data := os.read(master, 4096):
            shown += data
    os.close(master)
    assert process.wait() == 0
    text = re.sub(r"\x1b\[[0-9;]*m", "", shown.decode()).replace("\r", "")
    assert max(map(len, text.splitlines())) <= 40
    compare(GOLDEN / "narrow-terminal.txt", text)


@pytest.mark.slurm
def test_a_wrong_partition_is_told_in_slurms_words(tmp_path: Path, cluster: Cluster) -> None:
    root = write_checkout(tmp_path / "checkout", GOOD)
    settings = {"RC_RUNNER": "slurm", "RC_SLURM_ACCOUNT": "a-demo", "RC_SLURM_PARTITION": "dbug"}
    doit = Runner(root, {**settings, **cluster.environment}, root)
    doit("build:good", 1)
    doit("list", 0)
    compare(GOLDEN / "wrong-partition.txt", doit.transcript)
