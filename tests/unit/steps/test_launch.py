"""What each launcher is asked for one EDF with everything in it, and what they cannot express."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from rc_tasks.commands.cli import interactive
from rc_tasks.errors import EdfError, SlurmError, ToolNotFoundError
from rc_tasks.model.config.settings import Launcher
from rc_tasks.model.edf import chain
from rc_tasks.model.edf.chain import ResolvedEdf
from rc_tasks.state.checkout import open_checkout
from rc_tasks.state.edf.user_edf import UserEdf
from rc_tasks.steps.container import launch
from rc_tasks.steps.container.launch import PodmanImage
from rc_tasks.tools import command, enroot, sacctmgr
from rc_tasks.tools.command import Command
from rc_tasks.tools.podman import Podman
from rc_tasks.tools.slurm_request import StepRequest
from tests.support.checkouts import write_checkout

IMAGE = "/imgs/projects/reasoning:2025.1/image.sqsh"
EVERYTHING = f"""\
image = "{IMAGE}"
workdir = "/home/ann/my work"
entrypoint = true
writable = true
mounts = ["/capstor", "/data/x:/data:ro+rprivate"]
devices = ["nvidia.com/gpu=all"]

[env]
MODE = "it's \\"quoted\\""
PATH = "/x/bin"
HF_TOKEN = ""

[annotations]
com.hooks.cxi.enabled = "true"
"""
REQUEST = StepRequest(
    "reasoning:2025.1", account="a-demo", partition="debug", time_limit_min=90, extra=("--mem=8G",)
)
ARGV = ("python", "-c", "print('a b')")
SRUN = (
    "srun",
    "--nodes=1",
    "--ntasks=1",
    "--export=ALL",
    "--job-name=reasoning:2025.1",
    "--mem=8G",
    "--account=a-demo",
    "--partition=debug",
    "--time=90",
    "--pty",
)


@pytest.fixture(autouse=True)
def login_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell that is in no job, wherever the tests themselves run."""
    for name in os.environ:
        if name.startswith("SLURM"):
            monkeypatch.delenv(name)


Resolve = Callable[[str], ResolvedEdf]


@pytest.fixture
def resolve(tmp_path: Path) -> Resolve:
    def resolved(text: str) -> ResolvedEdf:
        (tmp_path / "e.toml").write_text(text)
        return chain.resolve("./e.toml", environ={}, cwd=tmp_path)

    return resolved


def test_container_engine_reads_the_edf_itself(resolve: Resolve) -> None:
    wanted = launch.command(
        Launcher.CE, "reasoning:2025.1", resolve(EVERYTHING), ARGV, REQUEST, interactive=True
    )
    assert wanted.argv == (*SRUN, "--environment=reasoning:2025.1", *ARGV)
    assert not wanted.env


def test_pyxis_gets_options(resolve: Resolve) -> None:
    wanted = launch.command(Launcher.PYXIS, "x", resolve(EVERYTHING), ARGV, REQUEST)
    assert wanted.argv == (
        *SRUN,
        f"--container-image={IMAGE}",
        "--container-mounts=/capstor:/capstor,/data/x:/data:ro+rprivate",
        "--container-workdir=/home/ann/my work",
        "--container-entrypoint",
        "--container-writable",
        "--container-env=HF_TOKEN,MODE",
        # srun itself must still be found, and a variable can be unset only inside.
        *("env", "-u", "HF_TOKEN", "PATH=/x/bin"),
        *ARGV,
    )
    assert wanted.env == {"MODE": 'it\'s "quoted"', "HF_TOKEN": ""}


def test_pyxis_is_told_the_defaults_too(resolve: Resolve) -> None:
    plain = resolve('image = "nvcr.io#nvidia/cuda:12"\nwritable = false')
    wanted = launch.command(Launcher.PYXIS, "x", plain, ("id",), REQUEST, interactive=False)
    assert wanted.argv == (
        *SRUN[:-1],
        "--container-image=nvcr.io#nvidia/cuda:12",
        "--no-container-entrypoint",
        "--container-readonly",
        "id",
    )


CONFIGURATION = r'''rm -f -- "${BASH_SOURCE[0]}"
mounts() {
printf '%s\n' '/capstor /capstor none x-create=auto,rbind'
printf '%s\n' '/data/x /data none x-create=auto,rbind,ro,rprivate'
}
environ() {
printf '%s\n' HF_TOKEN=
printf '%s\n' 'MODE=""it'"'"'s "quoted"""'
printf '%s\n' 'PATH=""/x/bin""'
}
hooks() {
sed -i '/^HF_TOKEN=/d' "${ENROOT_ENVIRON}"
local etc=$(realpath "${ENROOT_ROOTFS}/etc") root=$(realpath "${ENROOT_ROOTFS}")
[[ $etc/ == "$root"/* ]] || common::err '/etc of the image is a symlink that leads out of it'
rm -f "${ENROOT_ROOTFS}/etc/rc.local"
printf %s 'cd -- '"'"'/home/ann/my work'"'"' && unset OLDPWD || exit 1
' > "${ENROOT_ROOTFS}/etc/rc.local"
}
'''


def test_enroot_gets_a_configuration(resolve: Resolve) -> None:
    wanted = launch.command(Launcher.ENROOT, "x", resolve(EVERYTHING), ARGV, None)
    assert wanted.argv[:2] == ("sh", "-c")
    assert 'exec enroot start --conf "$conf" "$@"' in wanted.argv[2]
    assert wanted.argv[3:] == ("sh", CONFIGURATION, "--rw", IMAGE, *ARGV)
    assert not wanted.env


def test_enroot_runs_in_a_job_where_there_is_slurm(resolve: Resolve) -> None:
    plain = resolve(f'image = "{IMAGE}"\nwritable = false\n[env]\nENROOT_MOUNT_HOME = "y"')
    alone = launch.command(Launcher.ENROOT, "x", plain, ARGV, None)
    assert launch.command(Launcher.ENROOT, "x", plain, ARGV, REQUEST).argv == (*SRUN, *alone.argv)
    assert "--rw" not in alone.argv
    # For Enroot's own hooks: it takes such variables out of the container.
    assert alone.env == {"ENROOT_MOUNT_HOME": "y"}
    assert "ENROOT_MOUNT_HOME" not in alone.argv[4]
    assert 'exec "$@"' in alone.argv[4]


@pytest.mark.parametrize(
    ("workdir", "entrypoint", "expected"),
    [
        ("/w d", False, "cd -- '/w d' && unset OLDPWD || exit 1\nexec \"$@\"\n"),
        ("/it's", True, "cd -- '/it'\"'\"'s' && unset OLDPWD || exit 1\n"),
        ("", False, 'exec "$@"\n'),
        ("", True, ""),
    ],
)
def test_what_etc_rc_sources(workdir: str, entrypoint: bool, expected: str) -> None:
    assert enroot.rc_local(workdir, entrypoint=entrypoint) == expected


def test_enroots_configuration_is_bash(resolve: Resolve, tmp_path: Path) -> None:
    odd = resolve(f'image = "{IMAGE}"\nmounts = ["/a,$(x)`\'\\":/c"]\n[env]\nA = "$(x) \\\\ \'"')
    text = launch.command(Launcher.ENROOT, "x", odd, ARGV, None).argv[4]
    script = tmp_path / "conf"
    script.write_text(text)
    ran = subprocess.run(
        ["bash", "-euc", 'source "$1"; mounts; environ', "bash", str(script)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.splitlines() == [
        "/a,$(x)`'\" /c none x-create=auto,rbind",
        'A=""$(x) \\ \'""',
    ]
    # It takes itself away, as nobody else can after `exec`.
    assert not script.exists()


@pytest.mark.parametrize(
    ("etc", "status"), [("usr/etc", 0), ("../elsewhere", 1)], ids=["inside", "outside"]
)
def test_enroot_writes_into_the_image_alone(
    resolve: Resolve, tmp_path: Path, etc: str, status: int
) -> None:
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    (root / "usr/etc").mkdir(parents=True)
    elsewhere.mkdir()
    (root / "etc").symlink_to(etc)
    text = launch.command(Launcher.ENROOT, "x", resolve(f'image = "{IMAGE}"'), ARGV, None).argv[4]
    (tmp_path / "conf").write_text(text)
    ran = subprocess.run(
        ["bash", "-euc", 'common::err() { echo "$1"; exit 1; }; source "$1"; hooks', "bash", "conf"],
        cwd=tmp_path,
        env={**os.environ, "ENROOT_ROOTFS": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    said = "/etc of the image is a symlink that leads out of it\n" if status else ""
    assert (ran.stdout, ran.returncode) == (said, status), ran.stderr
    assert (root / "usr/etc/rc.local").exists() is not bool(status)
    assert not list(elsewhere.iterdir())


@pytest.mark.parametrize("launcher", [Launcher.PYXIS, Launcher.ENROOT, Launcher.PODMAN])
def test_a_token_of_the_host_stands_in_no_argument(
    launcher: Launcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = 'hf_ "$(x)" \'\\ %s'
    monkeypatch.setenv("HF_TOKEN", token)
    (tmp_path / "e.toml").write_text(f'image = "{IMAGE}"\nenv.HF_TOKEN = "${{HF_TOKEN:-}}"\n')
    edf = chain.resolve("./e.toml", environ=os.environ, cwd=tmp_path)
    argv = launch.command(launcher, "x", edf, ARGV, REQUEST).argv
    assert not any("hf_" in word for word in argv)
    if launcher is Launcher.PODMAN:
        assert "--env=HF_TOKEN" in argv
    if launcher is Launcher.ENROOT:
        (tmp_path / "conf").write_text(next(word for word in argv if "environ()" in word))
        ran = ("bash", "-euc", 'source "$1"; environ', "bash", str(tmp_path / "conf"))
        said = subprocess.run(ran, capture_output=True, text=True, check=True).stdout
        assert said == f'HF_TOKEN=""{token}""\n'


def test_the_job_is_told_without_the_values_of_variables(
    resolve: Resolve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: list[Command] = []
    monkeypatch.setattr(command, "interact", lambda wanted, *_: given.append(wanted) or 0)
    mine = UserEdf.read(tmp_path, "x", project="x", force=False)
    entry = interactive.InteractiveJob(
        mine, "/w", tmp_path, Launcher.PYXIS, REQUEST, ARGV, printed=False
    )
    edf = resolve(f'image = "{IMAGE}"\nenv.AUTHORIZATION = "Bearer hf_1"\n')
    monkeypatch.setenv("HOME", str(tmp_path))
    assert entry.start(edf) == 0
    assert given[0].env == {"AUTHORIZATION": "Bearer hf_1"}
    said = capsys.readouterr().err
    assert said.startswith("$ env AUTHORIZATION='…' srun ") and "hf_1" not in said


def test_an_account_in_the_environment_is_one_that_was_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sacctmgr, "accounts", lambda: ("a", "b"))
    checkout = open_checkout(write_checkout(tmp_path / "imgs", {}), {})
    with pytest.raises(SlurmError, match="the job needs an account"):
        interactive.job_request(checkout, "x", "local")
    monkeypatch.setenv("SLURM_ACCOUNT", "a")
    assert interactive.job_request(checkout, "x", "local").account == ""


def test_podman_gets_an_image_by_id(resolve: Resolve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "limits", lambda: {"nofile": "1024:4096"})
    wanted = launch.command(
        Launcher.PODMAN,
        "x",
        resolve(EVERYTHING),
        ARGV,
        None,
        engine=Podman(root="/r"),
        image=PodmanImage("a" * 64),
    )
    assert wanted.argv == (
        *("podman", "--root", "/r", "run", "--rm", "--interactive", "--tty"),
        *("--detach-keys=", "--log-driver=none", "--network=host", "--pid=host", "--shm-size=0"),
        *("--no-healthcheck", "--security-opt=label=disable", "--user=0:0"),
        "--ulimit=nofile=1024:4096",
        *(f"--mount=type=tmpfs,destination={path},notmpcopyup,exec" for path in ("/tmp", "/run")),
        "--mount=type=tmpfs,destination=/var/lock,notmpcopyup,exec",
        "--mount=type=bind,source=/capstor,destination=/capstor",
        "--mount=type=bind,source=/data/x,destination=/data,ro,rprivate",
        "--device=nvidia.com/gpu=all",
        "--unsetenv=HF_TOKEN",
        '--env=MODE=it\'s "quoted"',
        "--env=PATH=/x/bin",
        "--workdir=/home/ann/my work",
        "a" * 64,
        *ARGV,
    )


def test_podman_starts_a_directory_as_enroot_does(resolve: Resolve) -> None:
    image = PodmanImage("/t/root", rootfs=True, env={"A": "1", "B": "2"}, rc_local=Path("/t/rc.local"))
    edf = resolve(f'image = "{IMAGE}"\nwritable = false\n[env]\nA = ""\nB = "3"')
    argv = launch.command(Launcher.PODMAN, "x", edf, ARGV, None, interactive=False, image=image).argv
    assert "--tty" not in argv
    assert argv[argv.index("--unsetenv=A") :] == (
        "--unsetenv=A",
        "--env=B=3",
        "--entrypoint=",
        "--read-only",
        "--rootfs",
        "/t/root",
        "/bin/sh",
        "/etc/rc",
        *ARGV,
    )
    assert "--mount=type=bind,source=/t/rc.local,destination=/etc/rc.local,ro" in argv


PATHS = {
    "space": ("/a b", "source=/a b,"),
    "comma": ("/a,b", '"source=/a,b",'),
    "quotes": ('/it\'s \\"a\\"', '"source=/it\'s ""a""",'),
    "dollar": ("/a$(b)", "source=/a$(b),"),
    "colon": ("${COLON}", "source=/a:b,"),
    "tab": ("/a\\tb", "source=/a\tb,"),
}


@pytest.mark.parametrize(("path", "expected"), PATHS.values(), ids=PATHS)
def test_odd_paths_arrive_or_are_refused(tmp_path: Path, path: str, expected: str) -> None:
    (tmp_path / "e.toml").write_text(f'image = "{IMAGE}"\nmounts = ["{path}:/x"]\n')
    edf = chain.resolve("./e.toml", environ={"COLON": "/a:b"}, cwd=tmp_path)
    argv = launch.command(Launcher.PODMAN, "x", edf, ARGV, None).argv
    assert f"--mount=type=bind,{expected}destination=/x" in argv
    with pytest.raises(EdfError, match=r"(?s)e\.toml:2: Pyxis cannot mount .*next: "):
        launch.command(Launcher.PYXIS, "x", edf, ARGV, REQUEST)


REFUSED = {
    "no-image": ("", Launcher.PYXIS, "the EDF names no image"),
    "no-image-enroot": ("", Launcher.ENROOT, "the EDF names no image"),
    "no-image-podman": ("", Launcher.PODMAN, "the EDF names no image"),
    "squashfs-pyxis": (
        'image = "/i"\nmounts = ["/d.sqsh:/d:sqsh"]',
        Launcher.PYXIS,
        "e.toml:2: only the Container Engine can mount a SquashFS file (/d.sqsh)",
    ),
    "squashfs-podman": (
        'image = "/i"\nmounts = ["/d.sqsh:/d:sqsh"]',
        Launcher.PODMAN,
        "e.toml:2: only the Container Engine",
    ),
    "registry-enroot": ('image = "a/b:1"', Launcher.ENROOT, "e.toml:1: Enroot starts files"),
    "quote-enroot": ('image = "/it\'s"', Launcher.ENROOT, "e.toml:1: Enroot cannot start /it's"),
    "lines-enroot": (
        'image = "/i"\n[env]\nA = "1\\n2"',
        Launcher.ENROOT,
        "e.toml:3: env.A: Enroot takes variables of one line only",
    ),
    "space-enroot": (
        'image = "/i"\nmounts = ["/a:/b c"]',
        Launcher.ENROOT,
        "e.toml:2: Enroot cannot mount /b c: it holds ' '",
    ),
    "flag-podman": (
        'image = "/i"\nmounts = ["/a:/b:noatime"]',
        Launcher.PODMAN,
        "e.toml:2: podman cannot mount with the flag noatime",
    ),
}


@pytest.mark.parametrize(("text", "launcher", "expected"), REFUSED.values(), ids=REFUSED)
def test_what_a_launcher_cannot_express(
    resolve: Resolve, text: str, launcher: Launcher, expected: str
) -> None:
    with pytest.raises(EdfError) as caught:
        launch.command(launcher, "x", resolve(text), ARGV, REQUEST)
    assert expected in str(caught.value)
    assert "  next: " in str(caught.value)


@pytest.mark.parametrize("launcher", [Launcher.CE, Launcher.PYXIS])
def test_srun_is_needed_for_what_is_sruns(resolve: Resolve, launcher: Launcher) -> None:
    with pytest.raises(ToolNotFoundError, match="nothing runs through Slurm here"):
        launch.command(launcher, "x", resolve(EVERYTHING), ARGV, None)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ("debian:12", "docker.io/debian:12"),
        ("library/debian:12", "docker.io/library/debian:12"),
        ("docker.io#library/debian", "docker.io/library/debian"),
        ("ann@nvcr.io#nvidia/cuda:12", "nvcr.io/nvidia/cuda:12"),
        ("nvcr.io/nvidia/cuda:12", "nvcr.io/nvidia/cuda:12"),
        ("localhost:5000/a", "localhost:5000/a"),
    ],
)
def test_references_in_podmans_form(image: str, expected: str) -> None:
    assert launch.podman_reference(image) == expected


# The help of srun 22.05 has the word elsewhere.
HELP = "      --export=env_vars|NONE  environment variables passed to launcher with\n"
CE_HELP = f"{HELP}      --environment=<edf>     [edf] the environment definition file\n"
PYXIS_HELP = f"{HELP}      --container-image=[USER@][REGISTRY#]IMAGE[:TAG]|PATH\n"


@pytest.mark.parametrize(
    ("help_text", "tools", "through_slurm", "expected"),
    [
        (CE_HELP + PYXIS_HELP, ("enroot", "podman"), True, Launcher.CE),
        (PYXIS_HELP, ("enroot", "podman"), True, Launcher.PYXIS),
        (HELP, ("enroot", "podman"), True, Launcher.ENROOT),
        (CE_HELP, ("enroot", "podman"), False, Launcher.ENROOT),
        (CE_HELP, ("podman",), False, Launcher.PODMAN),
        (HELP, (), True, None),
    ],
    ids=["ce", "pyxis", "enroot", "enroot-as-nothing-runs-through-slurm", "podman", "nothing"],
)
def test_auto_takes_the_first_that_is_there(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    help_text: str,
    tools: tuple[str, ...],
    through_slurm: bool,
    expected: Launcher | None,
) -> None:
    (tmp_path / "help").write_text(help_text)
    (tmp_path / "sh").symlink_to("/bin/sh")
    for tool in ("srun", *tools):
        (tmp_path / tool).write_text(f"#!/bin/sh\nexec /bin/cat {tmp_path}/help\n")
        (tmp_path / tool).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    if expected is None:
        with pytest.raises(ToolNotFoundError, match="nothing that starts containers"):
            launch.choose(Launcher.AUTO, through_slurm=through_slurm)
        return
    found, reason = launch.choose(Launcher.AUTO, through_slurm=through_slurm)
    assert found is expected
    assert reason
    assert launch.choose(expected, through_slurm=through_slurm)[1] == (
        f'launcher = "{expected}" in the settings'
    )
    if expected is not Launcher.CE:
        with pytest.raises(ToolNotFoundError, match="srun has no option --environment"):
            launch.choose(Launcher.CE, through_slurm=through_slurm)
