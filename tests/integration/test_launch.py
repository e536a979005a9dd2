"""A real image started from an EDF: in podman, by its ID and from its file, and in Enroot."""

import json
import os
import pty
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from msgspec.structs import replace

from rc_tasks.errors import ArtifactError, CommandError
from rc_tasks.model.config.settings import Launcher, Squash
from rc_tasks.model.edf import chain
from rc_tasks.squashfs.superblock import Compressor
from rc_tasks.state.checkout import Checkout
from rc_tasks.state.store.layers import SquashedLayers
from rc_tasks.state.store.store import Store
from rc_tasks.steps.container import launch, rootfs
from rc_tasks.steps.save.image import save
from rc_tasks.tools import command, slurm, squashfs
from rc_tasks.tools.command import Command
from rc_tasks.tools.podman import Podman
from rc_tasks.tools.slurm_request import StepRequest
from tests.support.cluster import ACCOUNT, Cluster
from tests.support.images import Layer, load
from tests.support.storage import own_storage
from tests.support.tools import refuse, require_tools

pytestmark = pytest.mark.podman

# What Enroot would read otherwise from the lines of /etc/environment.
ODD = {
    "QUOTED": '"quoted"',
    "OPTIONS": "'-a' '-b'",
    "SPACED": '"x" ',
    "ONE_QUOTE": '"',
    "DOLLARS": "$HOME $$ `id` $(id)",
    "REFERENCE": "${TOKEN}/${HOME:-x}/$${TOKEN}",
    "BACKSLASHES": "a\\b\\",
    "LINES": "one\nPATH=/evil\n# x\n\n'${TOKEN}'",
    "EMPTY": "",
    "EQUALS": "a=b=",
    "SPACES": "  x  ",
    "UTF": "é",
}
CONFIG: dict[str, object] = {
    "Entrypoint": ["/bin/sh", "-c", 'echo "entrypoint in $(pwd)"; exec "$@"', "entrypoint"],
    "Cmd": ["echo", "never"],
    "Env": ["PATH=/bin", "KEPT=of the image", "CHANGED=of the image", "GONE=of the image"],
    "WorkingDir": "/image/work dir",
}
REPORT = """\
echo "arguments: $*"
echo "in $(pwd)"
echo "KEPT=$KEPT CHANGED=$CHANGED GONE=${GONE-unset} PATH=$PATH QUOTED=$QUOTED OLDPWD=${OLDPWD-unset}"
printf "TOKEN=%s\\n" "$TOKEN"
cat "/mnt, x/file"
cat
(echo changed > "/mnt, x/file") 2>/dev/null || echo read-only mount
(echo changed > /etc/new) 2>/dev/null || echo read-only root
exit 7
"""
EDF = """\
base_environment = "./base.toml"
image = "{image}"
mounts = ["./my data:/mnt, x:ro"]
entrypoint = {entrypoint}
writable = {writable}
{workdir}
[env]
CHANGED = "it's \\"the\\" EDF's"
GONE = ""
PATH = "${{PATH}}:/more"
TOKEN = "${{TOKEN:-}}"
QUOTED = "\\"quoted\\""
"""
TOKEN = 'hf_"$(x)" \'\\ %s'


@dataclass(frozen=True, slots=True)
class Place:
    """A directory with an image in podman's storage and as a file, and data to mount."""

    directory: Path
    podman: Podman
    image_id: str
    file: Path

    def edf(
        self, *, entrypoint: bool = False, writable: bool = True, workdir: str = "", image: str = ""
    ) -> chain.ResolvedEdf:
        text = EDF.format(
            image=image or self.file,
            entrypoint=str(entrypoint).lower(),
            writable=str(writable).lower(),
            workdir=f'workdir = "{workdir}"' if workdir else "",
        )
        (self.directory / "e.toml").write_text(text)
        return launch.resolve("./e.toml", environ=os.environ, cwd=self.directory)


# The podman that starts an image, the image's ID there, and its file.
Image = tuple[Podman, str, Path]
Config = Mapping[str, object]


@pytest.fixture(scope="module")
def storage() -> Iterator[tuple[Podman, dict[str, str]]]:
    """A podman storage of this file, and the variables that select it."""
    require_tools("podman")
    with own_storage() as made:
        yield made


@pytest.fixture(scope="module")
def image(
    storage: tuple[Podman, dict[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Config], Image]:
    """Make the image of a configuration, once for all tests."""
    podman, _ = storage
    made: dict[str, Image] = {}

    def image_of(config: Config) -> Image:
        key = json.dumps(config)
        if key not in made:
            made[key] = make_image(podman, tmp_path_factory.mktemp("image"), config)
        return made[key]

    return image_of


def make_image(podman: Podman, directory: Path, config: Config) -> Image:
    layer = Layer().busybox().directory("etc").directory("image").directory("image/work dir")
    layer.directory("tmp").directory("proc").directory("sys").directory("dev").directory("var")
    layer.directory("edf work").directory("sbin").directory("run").symlink("var/run", "/run")
    layer.directory("run/lock").symlink("var/lock", "/run/lock")
    for hidden in ("tmp/tool", "run/tool", "run/lock/tool"):
        layer.file(hidden, b"of the image\n")
    # As seen from the container: from outside it leads elsewhere.
    layer.symlink("etc/environment", "../../image/environment")
    image_id = load(podman, directory / "layout", config, layer)
    file = directory / "image.sqsh"
    with podman.mounted(image_id, name="rc-launch") as root:
        rootfs.prepare(root, podman.inspect(image_id), ())
        made = squashfs.mksquashfs(
            root,
            file,
            compression=Compressor.GZIP,
            level=1,
            block_size_bytes=131072,
            processors=1,
            memory_bytes=64 << 20,
        )
        command.capture(made)
    return running(podman, image_id), image_id, file


@pytest.fixture
def place(
    request: pytest.FixtureRequest,
    storage: tuple[Podman, dict[str, str]],
    image: Callable[[Config], Image],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Place:
    _, environment = storage
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TOKEN", TOKEN)
    directory = tmp_path / "it's here: a, b"
    directory.mkdir()
    (directory / "base.toml").write_text('mounts = ["/usr:/base-usr:ro"]\nworkdir = ""\n')
    (directory / "my data").mkdir()
    (directory / "my data" / "file").write_text("mounted\n")
    podman, image_id, file = image({**CONFIG, **getattr(request, "param", {})})
    return Place(directory, podman, image_id, Path(shutil.copy(file, directory)))


def running(podman: Podman, image_id: str) -> Podman:
    """podman with the first OCI runtime that works here; on old or mixed cgroups crun does not."""
    said = ""
    for runtime in ("", "runc"):
        engine = replace(podman, runtime=runtime)
        argv = engine.run(image_id, ("sh", "-c", "exit 0"), limits=launch.limits()).argv
        done = subprocess.run(argv, check=False, capture_output=True, text=True)
        if done.returncode == 0:
            return engine
        said += done.stderr
    refuse(f"podman starts no containers here: {said}")
    raise AssertionError


# Starts what an EDF says, with arguments and the text of its standard input.
Start = Callable[..., subprocess.CompletedProcess[str]]
INPUT = "from standard input\n"


def in_podman(place: Place, *, by_id: bool) -> Start:
    def start(
        edf: chain.ResolvedEdf, argv: tuple[str, ...], text: str = ""
    ) -> subprocess.CompletedProcess[str]:
        record = place.file.with_name("image.json")
        record.unlink(missing_ok=True)
        if by_id:
            record.write_text(f'{{"image_id": "{place.image_id}"}}')
        with launch.podman_image(edf, place.podman, None) as image:
            assert image.rootfs is not by_id
            wanted = launch.command(
                Launcher.PODMAN,
                "e",
                edf,
                argv,
                None,
                interactive=False,
                engine=place.podman,
                image=image,
            )
            return run(wanted, text)

    return start


def in_enroot(
    edf: chain.ResolvedEdf, argv: tuple[str, ...], text: str = ""
) -> subprocess.CompletedProcess[str]:
    return run(launch.command(Launcher.ENROOT, "e", edf, argv, None, interactive=False), text)


def run(wanted: Command, text: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command with a text as its standard input.

    Only a program that reads it gets one: when conmon ends with input that the container did not read,
    the kernel resets the connection, and podman drops what the container has printed (libpod's
    redirectResponseToOutputStreams).
    """
    return subprocess.run(
        wanted.argv,
        env=wanted.environment(),
        input=text,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(params=["podman-image", "podman-file", "enroot"])
def start(
    request: pytest.FixtureRequest, place: Place, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Start]:
    if request.param != "enroot":
        temporary = place.directory / "temporary"
        temporary.mkdir()
        monkeypatch.setenv("TMPDIR", str(temporary))
        yield in_podman(place, by_id=request.param == "podman-image")
        assert not list(temporary.iterdir())
        return
    if shutil.which("enroot") is None:
        pytest.skip("no enroot on PATH")
    plain = place.directory.parent / "image.sqsh"
    shutil.copy(place.file, plain)
    (place.directory.parent / "data").symlink_to(place.directory / "my data")
    # Its default lies in /run, where users may not write.
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(place.directory.parent))

    def started(
        edf: chain.ResolvedEdf, argv: tuple[str, ...], text: str = ""
    ) -> subprocess.CompletedProcess[str]:
        # It mounts no paths with white space.
        mounts = tuple(
            replace(each, source=str(place.directory.parent / "data"), destination="/mnt,x")
            if each.destination == "/mnt, x"
            else each
            for each in edf.mounts
        )
        words = tuple(word.replace("/mnt, x", "/mnt,x") for word in argv)
        return in_enroot(replace(edf, image=str(plain), mounts=mounts), words, text)

    yield started


def test_mounts_variables_directory_status_and_input(place: Place, start: Start) -> None:
    done = start(place.edf(), ("sh", "-c", REPORT, "sh", "a b", "it's"), INPUT)
    assert done.stdout.splitlines() == [
        "arguments: a b it's",
        "in /image/work dir",
        "KEPT=of the image CHANGED=it's \"the\" EDF's GONE=unset PATH=/bin:/more"
        ' QUOTED="quoted" OLDPWD=unset',
        f"TOKEN={TOKEN}",
        "mounted",
        "from standard input",
        "read-only mount",
    ], done.stderr
    assert done.returncode == 7
    assert (place.directory / "my data" / "file").read_text() == "mounted\n"


def test_entrypoint_workdir_and_read_only_root(place: Place, start: Start) -> None:
    edf = place.edf(entrypoint=True, writable=False, workdir="/edf work")
    done = start(edf, ("sh", "-c", REPORT, "sh"), INPUT)
    assert done.stdout.splitlines() == [
        "entrypoint in /edf work",
        "arguments: ",
        "in /edf work",
        "KEPT=of the image CHANGED=it's \"the\" EDF's GONE=unset PATH=/bin:/more"
        ' QUOTED="quoted" OLDPWD=unset',
        f"TOKEN={TOKEN}",
        "mounted",
        "from standard input",
        "read-only mount",
        "read-only root",
    ], done.stderr
    assert done.returncode == 7


@pytest.mark.parametrize(
    "place",
    [{"Env": ["PATH=/bin", "CHANGED=a\nb", "GONE=a\nb", *(f"{n}={v}" for n, v in ODD.items())]}],
    indirect=True,
    ids=["odd"],
)
def test_variables_of_the_image_arrive_whole(place: Place, start: Start) -> None:
    names = (*ODD, "PATH", "CHANGED", "GONE")
    script = "".join(f'printf "%s\\1" "${{{name}-unset}}"; ' for name in names)
    # The EDF has its own, in quotes as well.
    edf = place.edf()
    edf = replace(edf, env={key: value for key, value in edf.env.items() if key != "QUOTED"})
    done = start(edf, ("sh", "-c", script))
    assert dict(zip(names, done.stdout.split("\1"), strict=False)) == {
        **ODD,
        "PATH": "/bin:/more",
        "CHANGED": "it's \"the\" EDF's",
        "GONE": "unset",
    }, done.stderr


@pytest.mark.parametrize("place", [{"Entrypoint": [""]}, {"Entrypoint": []}], indirect=True, ids=str)
@pytest.mark.parametrize("entrypoint", [True, False], ids=["on", "off"])
def test_an_empty_entrypoint_is_none(place: Place, start: Start, entrypoint: bool) -> None:
    done = start(place.edf(entrypoint=entrypoint), ("sh", "-c", 'echo "$@"', "sh", "a  b"))
    assert (done.stdout, done.returncode) == ("a  b\n", 0), done.stderr


def test_temporary_directories_of_the_image_are_hidden(place: Place, start: Start) -> None:
    script = """
        for each in /tmp /run /var/lock; do
            cat $each/tool 2>/dev/null && echo $each
            printf '#!/bin/sh\necho ran\n' > $each/ours && busybox chmod 700 $each/ours && $each/ours
        done
    """
    done = start(place.edf(), ("sh", "-c", script))
    assert done.stdout == "ran\n" * 3, done.stderr
    assert done.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGSEGV], ids=lambda n: n.name)
def test_a_program_dies_of_a_signal_that_it_does_not_handle(
    place: Place, start: Start, number: signal.Signals
) -> None:
    done = start(place.edf(), ("sh", "-c", f"kill -{number.value} $$; echo survived"))
    assert (done.stdout, done.returncode) in {("", 128 + number), ("", -number)}, done.stderr


def test_a_workdir_that_is_not_there_is_told(place: Place, start: Start) -> None:
    done = start(place.edf(workdir="/no such"), ("echo", "never"))
    assert done.returncode != 0
    assert "/no such" in done.stderr
    assert not done.stdout


def test_a_shell_at_a_terminal(place: Place) -> None:
    with launch.podman_image(place.edf(), place.podman, None) as image:
        wanted = launch.command(
            Launcher.PODMAN, "e", place.edf(), launch.SHELL, None, engine=place.podman, image=image
        )
        ours, theirs = pty.openpty()
        with subprocess.Popen(
            wanted.argv, env=wanted.environment(), stdin=theirs, stdout=theirs, start_new_session=True
        ) as process:
            os.close(theirs)
            os.write(ours, b"test -t 0 && test -t 1 && echo at a $((40 + 2)) terminal; exit 5\n")
            seen = b""
            while True:
                try:
                    data = os.read(ours, 4096)
                except OSError:  # the other end is closed
                    break
                seen += data
                if not data:
                    break
            assert process.wait() == 5
        os.close(ours)
    assert b"at a 42 terminal" in seen


def test_an_image_that_podman_lost_comes_from_the_store(place: Place, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    save(place.podman, place.podman.inspect(place.image_id), SquashedLayers(store), Squash())
    place.podman.remove_image(place.image_id)
    place.file.with_name("image.json").write_text(f'{{"image_id": "{place.image_id}"}}')
    edf = place.edf()
    with launch.podman_image(edf, place.podman, cast(Checkout, SimpleNamespace(store=store))) as image:
        assert image.name == place.image_id
        wanted = launch.command(
            Launcher.PODMAN,
            "e",
            edf,
            ("sh", "-c", "pwd"),
            None,
            interactive=False,
            engine=place.podman,
            image=image,
        )
        assert run(wanted).stdout == "/image/work dir\n"


@pytest.mark.slurm
def test_a_job_has_our_standard_input_and_variables(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    inner = Command(
        ("sh", "-c", 'cat; echo "$MODE on $SLURM_JOB_NUM_NODES"; exit 7'), env={"MODE": "a, b"}
    )
    done = run(slurm.attached(inner, StepRequest("launch", account=ACCOUNT), terminal=False), INPUT)
    assert done.stdout == "from standard input\na, b on 1\n", done.stderr
    assert done.returncode == 7


def obstructed(tmp_path: Path, spoil: Callable[[Path], object]) -> chain.ResolvedEdf:
    """The EDF of a SquashFS file with something in the way."""
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    spoil(root)
    require_tools("mksquashfs")
    argv = ("mksquashfs", root, tmp_path / "i.sqsh", "-quiet", "-no-progress")
    subprocess.run(argv, check=True, capture_output=True)
    (tmp_path / "e.toml").write_text(f'image = "{tmp_path}/i.sqsh"\n')
    return launch.resolve("./e.toml", environ={}, cwd=tmp_path)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        # runc 1.1 as root would make stdin, stdout and more in that directory of the host.
        (lambda root: (root / "dev").symlink_to("/var/tmp"), "/dev is not a directory"),
        # The container's shell would wait for ever.
        (lambda root: os.mkfifo(root / "etc/rc"), "/etc/rc is not a regular file"),
        # The shell would run nothing, and say that all went well.
        (lambda root: (root / "etc/rc").mkdir(), "/etc/rc is not a regular file"),
        # podman itself would wait for ever.
        (lambda root: os.mkfifo(root / "etc/passwd"), "/etc/passwd is not a regular file"),
    ],
    ids=["dev", "pipe", "directory", "passwd"],
)
def test_a_file_that_harms_its_starter_is_refused(
    tmp_path: Path,
    podman_storage: Podman,
    spoil: Callable[[Path], object],
    said: str,
) -> None:
    edf = obstructed(tmp_path, spoil)
    with (
        pytest.raises(ArtifactError, match=said),
        launch.podman_image(edf, podman_storage, None, from_file=True),
    ):
        pass


def test_variables_that_no_process_can_have(tmp_path: Path, podman_storage: Podman) -> None:
    lines = "GOOD=1\nNUL=a\0b\nBIG=" + "x" * 10_000_000 + "\n"
    edf = obstructed(tmp_path, lambda root: (root / "etc/environment").write_text(lines))
    with launch.podman_image(edf, podman_storage, None, from_file=True) as image:
        assert set(image.env) == {"GOOD", "BIG"}
        wanted = launch.command(
            Launcher.PODMAN, "e", edf, ("true",), None, engine=podman_storage, image=image
        )
        with pytest.raises(CommandError, match="Argument list too long") as error:
            command.pour(wanted, lambda _: None, timeout_s=60)
    assert len(str(error.value)) < 2000


@pytest.mark.parametrize(
    ("links", "expected"),
    [
        pytest.param({"etc/environment": "../real/etc/environment"}, {"A": "1"}, id="relative"),
        pytest.param({"etc/environment": "/real/etc/environment"}, {"A": "1"}, id="absolute"),
        pytest.param({"etc": "/real/etc"}, {"A": "1"}, id="directory"),
        pytest.param({"etc": "/a", "a": "../../../b", "b": "real/etc"}, {"A": "1"}, id="by three"),
        pytest.param({"etc": "/etc"}, {}, id="loop"),
        pytest.param({"etc": "/usr"}, {}, id="nowhere"),
    ],
)
def test_variables_are_found_through_symlinks_of_the_image(
    tmp_path: Path, links: dict[str, str], expected: dict[str, str]
) -> None:
    def spoil(root: Path) -> None:
        (root / "real/etc").mkdir(parents=True)
        (root / "real/etc/environment").write_text("A=1\n")
        for name, target in links.items():
            if name == "etc":
                (root / name).rmdir()
            (root / name).symlink_to(target)

    assert launch.image_environ(obstructed(tmp_path, spoil).image) == expected
