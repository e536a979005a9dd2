"""Smoke tests with real containers: what passes is published, what does not changes nothing."""

import contextlib
import json
import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from rc_tasks.steps.publish.smoke import _HOME
from rc_tasks.tools import command
from tests.support.checkouts import write_checkout
from tests.support.cluster import ACCOUNT, Cluster
from tests.support.containers import working_runtime
from tests.support.family import Family, published, started
from tests.support.images import BUSYBOX
from tests.support.runs import until
from tests.support.storage import own_storage
from tests.support.tools import require_tools

pytestmark = pytest.mark.podman

FILES = {
    "base/Dockerfile": (
        "FROM scratch\nCOPY busybox /bin/busybox\n"
        'RUN ["/bin/busybox", "--install", "-s", "/bin"]\nENV PATH=/bin MODE=image\nWORKDIR /workspace\n'
    ),
    "projects/child:1/Dockerfile": (
        "FROM base\nRUN echo child > /child\n"
        'ENTRYPOINT ["sh", "-c", "echo entered; exec \\"$@\\"", "x"]\n'
    ),
    "projects/copy:1/Dockerfile": "FROM scratch\nCOPY --from=base /bin/busybox /sh\n",
}
MOUNTS = 'edf.mounts = ["/nowhere/at all:/data"]'
# What a hanging test sleeps: told by this number of seconds from every other process, also from those of
# other runs of these tests on this machine.
NAP = f"54321.{os.getpid()}"


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Family]:
    """Images without smoke tests, published; every test here leaves them as good."""
    require_tools("podman", "skopeo", "mksquashfs", "unsquashfs", "busybox")
    root = write_checkout(tmp_path_factory.mktemp("smoke") / "it's a checkout: ü", FILES, MOUNTS)
    shutil.copy(BUSYBOX, root / "base/busybox")
    temporary = tmp_path_factory.mktemp("temporary files")
    with own_storage() as (podman, environment):
        environment |= {
            "RC_RUNNER": "local",
            "RC_PODMAN_ISOLATION": "chroot",
            "RC_PODMAN_RUNTIME": working_runtime(podman, tmp_path_factory.mktemp("rootfs")),
            "RC_LAUNCHER": "podman",
            "HOME": str(tmp_path_factory.mktemp("home")),
            "TMPDIR": str(temporary),
        }
        made = Family(root, podman, environment)
        made.run()
        yield made
        assert left(made) == []


def left(family: Family) -> list[str]:
    """What a step could have left: files, containers, processes."""
    argv = ("container", "ls", "--all", "--external", "--format", "{{.Names}}")
    containers = command.capture(family.podman.command(*argv)).stdout.split()
    files = [*Path(family.environment["TMPDIR"]).iterdir(), *family.root.glob("**/*.tmp.sqsh")]
    return [*containers, *map(str, files), *processes()]


def processes() -> list[str]:
    """What runs in the containers of our tests; the dead are there until somebody collects them."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            argv = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if argv[-2:-1] == [NAP]:
                found.append(" ".join(argv))
    return found


def smoke(family: Family, *commands: tuple[str, ...], name: str = "base", **more: object) -> None:
    lines = [f"smoke = {json.dumps(commands)}", *(f"{key} = {value}" for key, value in more.items())]
    (family.directory(name) / "project.toml").write_text("\n".join(lines))


def log(family: Family, name: str = "base") -> str:
    return (family.root / f".rc/logs/{name}/enroot/latest.log").read_text()


def told(family: Family, name: str) -> list[list[str]]:
    found = json.loads((family.directory(name) / "image.json").read_text())["smoke"]
    assert all(each["launcher"] == "podman" and each["duration_s"] > 0 for each in found)
    return [each["command"] for each in found]


def test_what_passes_is_published_and_written_down(family: Family) -> None:
    before = {name: published(family.artifact(name)) for name in ("base", "child:1")}
    script = 'pwd; echo "$HOME $MODE $(id -u)"; ls -A "$HOME"; echo x > "$HOME/y" && cat "$HOME/y"'
    smoke(family, ("sh", "-c", script))
    assert family.plan() == {f"enroot:{name}": True for name in before} | {
        f"env:{name}": False for name in before
    }
    assert "enroot  smoke tests changed: nothing → sh -c 'pwd; " in family.doit("why", "child:1")
    changed = {f"enroot:{name}": "smoke tests changed" for name in before}
    assert family.run() == changed
    # It is the same image: tested, not squashed again.
    assert {name: published(family.artifact(name)) for name in before} == before
    for name in before:
        assert told(family, name) == [["sh", "-c", script]]
    said = ["  | /workspace", f"  | {_HOME} image 0", "  | x"]
    assert [line for line in log(family).splitlines() if line.startswith("  |")] == said
    assert "not on this node, so not mounted: /nowhere/at all:/data" in log(family)
    assert [line for line in log(family, "child:1").splitlines() if line.startswith("  |")] == [
        "  | entered",
        *said,
    ]
    assert family.run() == {}

    # A new image is squashed, tested, and only then put in place.
    family.edit("base/Dockerfile", "MODE=image", "MODE=new")
    assert family.run()["enroot:base"] == "the image was rebuilt"
    assert f"  | {_HOME} new 0" in log(family) and f"  | {_HOME} new 0" in log(family, "child:1")
    assert told(family, "child:1") == [["sh", "-c", script]]
    assert published(family.artifact("base")) != before["base"]
    assert family.run() == {}
    assert left(family) == []


CASES = [
    pytest.param(
        ("sh", "-c", "echo one; echo two >&2; exit 3"),
        "failed with exit status 3",
        "one\ntwo",
        id="status",
    ),
    # PID 1 of a container is ended by no signal of its own.
    pytest.param(("sh", "-c", "sh -c 'kill -9 $$'; exit $?"), "was ended by SIGKILL", "", id="signal"),
    pytest.param(("no such program",), "failed with exit status 127", "no such program", id="not there"),
    pytest.param(
        ("sh", "-c", f"sleep {NAP} & setsid sleep {NAP} & (while :; do echo noise; done) & exit 4"),
        "failed with exit status 4",
        "",
        id="leaves processes",
    ),
    pytest.param(
        (
            *("sh", "-c"),
            f"trap '' TERM INT HUP; (trap '' TERM; exec sleep {NAP}) & echo hangs; "
            f"while :; do sleep {NAP}; done",
        ),
        "did not end within 1 s",
        "hangs",
        id="hangs and ignores TERM",
    ),
    pytest.param(
        ("sh", "-c", "head -c 100000 /dev/urandom; printf '\\033]0;x\\007\\n'; exit 5"),
        "failed with exit status 5",
        "",
        id="garbage",
    ),
    pytest.param(
        ("sh", "-c", "echo == locked; echo == needs base; echo srun: x DUE TO TIME LIMIT; exit 6"),
        "failed with exit status 6",
        "== needs base",
        id="speaks as we do",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("argv", "how", "said"), CASES)
def test_what_fails_changes_nothing_and_is_told(
    family: Family, argv: tuple[str, ...], how: str, said: str
) -> None:
    record = family.records()["enroot:base"]
    slow = "did not end" in how
    smoke(family, argv, **({"smoke_timeout_s": 1} if slow else {}))
    output = family.doit("enroot:base", status=1)
    smoke(family)
    assert f"FAILED  enroot:base  base/project.toml: smoke test {how}: " in output
    assert all(each in output for each in said.splitlines())
    assert ("smoke_timeout_s" in output) is slow
    assert re.search(r"log:  .rc/logs/base/enroot/\S+\.log", output)
    assert all(char.isprintable() for char in output.replace("\n", ""))
    assert family.records()["enroot:base"] == record
    assert left(family) == []


def test_passes_with_two_launchers_stand_side_by_side(family: Family) -> None:
    smoke(family, ("true",))
    family.run("build:base")
    before = published(family.artifact("base"))
    record = family.root / ".rc/state/enroot:base.json"
    record.write_text(record.read_text().replace('"launcher": "podman"', '"launcher": "enroot"'))
    reason = "smoke tests passed with enroot, not with podman"
    assert family.run("build:base") == {"enroot:base": reason}
    passed = json.loads((family.directory("base") / "image.json").read_text())["smoke"]
    assert {each["launcher"] for each in passed if each["command"] == ["true"]} == {"enroot", "podman"}
    assert family.run("build:base") == {}
    assert family.states(RC_LAUNCHER="enroot")["base"] == "fresh"
    assert published(family.artifact("base")) == before
    smoke(family)


def test_a_new_image_that_fails_leaves_the_old_one_in_place(family: Family) -> None:
    before, record = published(family.artifact("base")), family.records()["enroot:base"]
    image_json = (family.directory("base") / "image.json").read_bytes()
    smoke(family, ("true",), ("sh", "-c", "echo no; exit 3"))
    family.edit("base/Dockerfile", "WORKDIR", "LABEL a=b\nWORKDIR")
    output = family.doit("enroot:base", status=1)
    assert started(output)["enroot:base"] == "the image was rebuilt, smoke tests changed"
    assert "next: correct the image or the test, and run `doit build:base`;\n" in output
    assert "  the image that was there before stays\n" in output
    assert published(family.artifact("base")) == before
    assert family.records()["enroot:base"] == record
    assert (family.directory("base") / "image.json").read_bytes() == image_json
    assert family.states()["base"] == "failed"
    assert "smoke test 2 of 2 (podman): sh -c 'echo no; exit 3'\n  | no\n" in log(family)
    assert left(family) == []
    smoke(family)
    family.edit("base/Dockerfile", "LABEL a=b\n", "")
    family.run()


def test_a_flood_is_cut(family: Family) -> None:
    smoke(family, ("sh", "-c", "echo first; head -c 200000000 /dev/zero; echo; echo last"))
    assert "enroot:base" in family.run("enroot:base")
    text = log(family)
    assert "  | first\n" in text and "  | last\n" in text
    assert re.search(r"  … 19\d{7} bytes left out\n", text)
    assert len(text) < 8_000_000
    smoke(family)
    assert family.run() == {}


def test_without_its_launcher_nothing_is_published_untested(family: Family) -> None:
    before = published(family.artifact("base"))
    smoke(family, ("true",))
    output = family.doit("build:base", status=1, RC_LAUNCHER="ce")
    assert "smoke tests cannot run on this node: srun has no option --environment" in output
    assert 'next: `launcher` is "ce" in the settings: "auto" takes what there is' in output
    assert "nothing is published untested, unless `smoke = []`" in output
    assert published(family.artifact("base")) == before
    doctor = family.doit("doctor", status=1, RC_LAUNCHER="ce")
    assert "problem  smoke tests cannot run on this node" in doctor
    assert "smoke tests of 2 images: podman" in family.doit("doctor")
    smoke(family)


@pytest.mark.parametrize("victim", ["run", "step", "podman"])
def test_a_kill_leaves_the_old_image_and_the_next_run_clears_up(family: Family, victim: str) -> None:
    before = published(family.artifact("base"))
    # Without its podman the container goes on until then.
    smoke(family, ("sh", "-c", f"trap '' TERM; sleep {NAP}; :"), smoke_timeout_s=10)
    family.edit("base/Dockerfile", "WORKDIR", f"LABEL killed={victim}\nWORKDIR")
    with family.start("enroot:base") as run:
        until(processes)
        try:
            for pid in [run.pid] if victim == "run" else pids(family, victim):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            output, _ = run.communicate(timeout=120)
        finally:
            run.kill()
    assert "Traceback" not in output
    assert published(family.artifact("base")) == before
    smoke(family, ("true",))
    assert "enroot:base" in family.run()
    assert published(family.artifact("base")) != before
    smoke(family)
    assert family.run() == {}
    until(lambda: left(family) == [], lambda: str(left(family)))


def pids(family: Family, victim: str) -> list[int]:
    """The process of the step, or those of podman."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            argv = (entry / "cmdline").read_text(errors="replace").split("\0")
            ours = os.readlink(entry / "cwd") == str(family.root)
            step = ours and "rc_tasks.steps" in argv
            podman = argv[0] == "podman" and "run" in argv and family.podman.root in argv
            if step if victim == "step" else podman:
                found.append(int(entry.name))
    return found


SRUN = """\
#!/bin/sh
# Slurm with something that starts containers: says what it was asked for, and runs it right here.
if [ "$1" = --help ]; then printf '  --environment=x\\n  --container-image=x\\n'; exit; fi
[ "$1" != --version ] || exit 0
printf '%s\\n' "$@" > "$SAID/argv"
env > "$SAID/env"
for each; do case $each in --environment=*) cat "${each#*=}" > "$SAID/edf";; esac; done
edf=$(sed -n 's/^base_environment = "\\(.*\\)"/\\1/p' "$SAID/edf") && cat "$edf" > "$SAID/users"
while case $1 in -*) true;; *) false;; esac; do shift; done
exec "$@"
"""


@pytest.mark.parametrize("launcher", ["ce", "pyxis"])
def test_the_container_engine_and_pyxis_start_them_inside_of_our_step(
    family: Family, tmp_path: Path, launcher: str
) -> None:
    said = tmp_path / "said"
    said.mkdir()
    srun = tmp_path / "bin/srun"
    srun.parent.mkdir()
    srun.write_text(SRUN)
    srun.chmod(0o755)
    # What Pyxis cannot mount is told in other tests.
    (plain := tmp_path / "plain").mkdir()
    smoke(family, ("sh", "-c", "echo in the container; exit 3"))
    output = family.doit(
        "enroot:base",
        status=1,
        PATH=f"{srun.parent}:{os.environ['PATH']}",
        SAID=str(said),
        RC_LAUNCHER=launcher,
        RC_PODMAN_STORAGE="",
        TMPDIR=str(plain),
        SLURM_JOB_ID="4711",
        SLURM_STEP_ID="3",
        SLURMD_NODENAME="node7",
        SLURM_CPU_BIND="mask_cpu:0x1",
    )
    assert "smoke test failed with exit status 3: sh -c 'echo in the container; exit 3'" in output
    assert "          | in the container" in output
    argv = (said / "argv").read_text().splitlines()
    assert argv[:3] == ["--nodes=1", "--ntasks=1", "--export=ALL"]
    assert {"--job-name=smoke:base", "--nodelist=node7", "--input=none", "--overlap"} <= set(argv)
    variables = (said / "env").read_text()
    assert "SLURM_JOB_ID=4711" in variables
    assert not re.search(
        "^(SLURM_CPU_BIND|SLURM_STEP_ID|TMPDIR|XDG_RUNTIME_DIR)=", variables, re.MULTILINE
    )
    image = str(family.artifact("base"))
    if launcher == "ce":
        edf = (said / "edf").read_text()
        assert f'image = "{image}"' in edf and f'env.HOME = "{_HOME}"' in edf
        users = (said / "users").read_text()
        assert 'workdir = "/workspace"' in users and "/nowhere" not in users
        assert argv[-3:-1] == ["sh", "-c"]
    else:
        assert f"--container-image={image}" in argv
        assert "--container-workdir=/workspace" in argv
        assert any(re.fullmatch(f"--container-mounts=/.*/home:{_HOME}", each) for each in argv)
    smoke(family)
    assert left(family) == []


PYXIS = """\
#!/bin/sh
if [ "$1" = --help ]; then echo '  --container-image=x'; exit; fi
[ "$1" != --version ] || exit 0
echo 'slurmstepd-node7: error: pyxis: container exited too soon' >&2
echo 'srun: error: node7: task 0: Exited with exit code 1' >&2
exit 1
"""


def test_an_entrypoint_that_pyxis_cannot_start(family: Family, tmp_path: Path) -> None:
    srun = tmp_path / "bin/srun"
    srun.parent.mkdir()
    srun.write_text(PYXIS)
    srun.chmod(0o755)
    # What Pyxis cannot mount is told in other tests.
    (plain := tmp_path / "plain").mkdir()
    smoke(family, ("echo", "never started"))
    output = family.doit(
        "enroot:base",
        status=1,
        PATH=f"{srun.parent}:{os.environ['PATH']}",
        RC_LAUNCHER="pyxis",
        RC_PODMAN_STORAGE="",
        TMPDIR=str(plain),
        SLURM_JOB_ID="4711",
        SLURMD_NODENAME="node7",
    )
    smoke(family)
    assert (
        "smoke test could not be started: the image's ENTRYPOINT does not run it: echo 'never started'"
    ) in output
    hint = output[output.index("next: ") : output.index("log:")].splitlines()
    assert [line.strip() for line in hint if line.strip()] == [
        'next: end its script with `exec "$@"`, as Pyxis and the Container Engine start no other one,',
        "or set `entrypoint = false` under [edf] in its project.toml, and run `doit build:base`;",
        "the image that was there before stays",
    ]
    assert left(family) == []


NESTED = """\
#!/bin/bash
# What the Container Engine adds to srun, left out again: the command runs on the node itself.
if [ "$1" = --help ]; then echo '  --environment=x'; exit; fi
for each; do case $each in --environment=*) ;; *) args+=("$each");; esac; done
exec {srun} "${{args[@]}}"
"""


@pytest.mark.slurm
def test_a_step_of_a_job_starts_them_in_a_step_of_its_own(
    family: Family, cluster: Cluster, tmp_path: Path
) -> None:
    srun = tmp_path / "bin/srun"
    srun.parent.mkdir()
    srun.write_text(NESTED.format(srun=shutil.which("srun")))
    srun.chmod(0o755)
    environment = {
        **cluster.environment,
        "PATH": f"{srun.parent}:{os.environ['PATH']}",
        "RC_RUNNER": "slurm",
        "RC_SLURM_ACCOUNT": ACCOUNT,
        "RC_LAUNCHER": "ce",
        "RC_PODMAN_STORAGE": "",
    }
    smoke(family, ("sh", "-c", 'echo "step $SLURM_STEP_ID on $SLURMD_NODENAME"; exit 3'))
    output = family.doit("enroot:base", status=1, **environment)
    assert "smoke test failed with exit status 3" in output
    assert re.search(r"\| step [1-9] on node\d\n", output)
    smoke(family, ("sleep", NAP), smoke_timeout_s=1)
    assert "did not end within 1 s" in family.doit("enroot:base", status=1, **environment)
    until(lambda: not processes())
    smoke(family)
