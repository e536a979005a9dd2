"""Where podman keeps its images on a node and with which driver, and what is refused there."""

import contextlib
import errno
import os
import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from rc_tasks.errors import RcError, SettingsError
from rc_tasks.model.config.settings import PodmanSettings
from rc_tasks.state.checkout import open_checkout
from rc_tasks.state.disk.processes import space
from rc_tasks.steps.doctor import check
from rc_tasks.steps.node import node, podman_storage
from rc_tasks.tools import podman
from rc_tasks.tools.podman import Podman
from tests.support.checkouts import write_checkout
from tests.support.tools import require_tools


@pytest.fixture(autouse=True)
def podman_is_there() -> None:
    require_tools("podman")


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What stands for /dev/shm/USER/rc_tasks, in job 42."""
    monkeypatch.setattr(podman_storage, "_automatic", lambda _user, job: tmp_path / "me/rc_tasks" / job)
    monkeypatch.setattr(podman_storage, "_LONGEST_RUNROOT", 500)
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    return tmp_path / "me/rc_tasks"


def squeue(directory: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """A squeue that answers with what a shell script prints."""
    directory.mkdir()
    program = directory / "squeue"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")


def test_outside_slurm_podmans_own_storage_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    found = node.storage(PodmanSettings())
    assert (found.root, found.driver, found.cgroup_manager) == ("", "", "")


@pytest.mark.parametrize(
    ("user", "job", "place"),
    [
        ("mmueller", "1234567", "/dev/shm/mmueller/rc_tasks/1234567"),
        ("a-user-of-20-charact", "1234567", "/dev/shm/a-user-of-20-charact/rc_tasks/1234567"),
        ("a-user-of-21-characte", "1234567", f"/dev/shm/{os.getuid()}/rc_tasks/1234567"),
    ],
)
def test_each_job_has_a_directory_that_is_short_enough(
    user: str, job: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("USER", user)
    monkeypatch.setenv("SLURM_JOB_ID", job)
    assert podman_storage.of_this_job(PodmanSettings()) == Path(place)
    assert len(f"{place}/run") <= 50
    assert podman_storage.of_this_job(PodmanSettings(storage="/tmp/mine")) is None
    assert podman_storage.of_this_job(PodmanSettings(storage="")) is None


def test_in_a_job_it_is_a_directory_of_ours_alone(memory: Path) -> None:
    found = node.storage(PodmanSettings())
    assert (found.root, found.driver, found.cgroup_manager) == (
        f"{memory}/42/root",
        "overlay",
        "cgroupfs",
    )
    for made in (memory.parent, memory, memory / "42"):
        assert made.stat().st_mode & 0o777 == 0o700


def test_variables_are_those_of_the_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLURMD_NODENAME", "node1")
    monkeypatch.setattr(podman_storage, "_LONGEST_RUNROOT", 500)
    found = node.storage(PodmanSettings(storage=f"{tmp_path}/${{SLURMD_NODENAME}}"))
    assert found.root == f"{tmp_path}/node1/root"
    assert (tmp_path / "node1").stat().st_mode & 0o777 == 0o700
    with pytest.raises(SettingsError, match="the variable NOSUCH is not set on this node"):
        node.storage(PodmanSettings(storage="/tmp/${NOSUCH}"))


def test_a_path_that_podman_would_refuse_is_refused_first() -> None:
    with pytest.raises(SettingsError, match="podman wants at most 50 characters"):
        node.storage(PodmanSettings(storage=f"/tmp/rc-test-{'x' * 40}"))


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a directory away")
@pytest.mark.parametrize("where", ["a setting", "above a setting", "user", "rc_tasks", "job", "link"])
def test_what_somebody_else_could_have_put_there_is_refused(
    where: str, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = {"user": memory.parent, "rc_tasks": memory}.get(where, memory / "42")
    planted.parent.mkdir(parents=True, exist_ok=True)
    if where == "above a setting":
        # As /dev/shm/${USER}/images, when somebody else made /dev/shm/${USER} first.
        planted.parent.chmod(0o1777)
    if where == "link":
        planted.symlink_to("/usr")
    else:
        planted.mkdir()
        os.chown(planted, 65534, 65534)
    settings = {
        "a setting": PodmanSettings(storage=str(planted)),
        "above a setting": PodmanSettings(storage=f"{planted}/images"),
    }.get(where, PodmanSettings())
    with pytest.raises(SettingsError, match="belongs to somebody else"):
        node.storage(settings)


@pytest.mark.parametrize("setting", ["auto", "{memory}/42/images"])
@pytest.mark.parametrize(("mode", "refused"), [(0o777, True), (0o1777, False), (0o775, False)], ids=str)
def test_a_place_that_everybody_could_exchange_is_refused(
    setting: str, mode: int, refused: bool, memory: Path
) -> None:
    memory.mkdir(parents=True)
    memory.chmod(mode)
    settings = PodmanSettings(storage=setting.format(memory=memory))
    if not refused:
        assert node.storage(settings).root
        return
    with pytest.raises(SettingsError) as told:
        node.storage(settings)
    assert f"everybody may write to {memory}, and so put another directory in place" in str(told.value)
    assert f"chmod o-w {memory}" in str(told.value)


@pytest.mark.parametrize(
    ("answer", "gone"),
    [
        ("echo 42; echo 43", ["41", "44"]),
        ("echo 42; echo 410; echo 4", ["41", "43", "44"]),
        ("", []),
        ("echo 43", []),
        ("echo 42; exit 1", []),
        ("echo slurm_load_jobs error >&2; exit 1", []),
    ],
    ids=["one runs", "other numbers", "no answer", "without ours", "half an answer", "no controller"],
)
def test_only_storages_of_jobs_that_have_ended_are_dead(
    answer: str, gone: list[str], memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("41", "42", "43", "44", "44.old", "notes"):
        (memory / name).mkdir(parents=True)
    (memory / "45").symlink_to(memory / "notes")
    (memory / "46").touch()
    squeue(memory / "bin", monkeypatch, answer)
    assert sorted(each.name for each in podman_storage.dead(PodmanSettings())) == gone
    assert podman_storage.dead(PodmanSettings(storage=str(memory / "42"))) == []
    monkeypatch.delenv("SLURM_JOB_ID")
    assert podman_storage.dead(PodmanSettings()) == []


def test_slurm_is_not_asked_where_nothing_lies(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (memory / "42").mkdir(parents=True)
    squeue(memory.parent / "bin", monkeypatch, f"touch '{memory}/asked'")
    assert podman_storage.dead(PodmanSettings()) == []
    assert not (memory / "asked").exists()


PLAIN, NEWER, OLDER = "fuse-overlayfs", "fuse-overlayfs-1.13", "fuse-overlayfs-1.9"


@pytest.mark.parametrize(
    ("lacking", "programs", "fuse", "settings", "wanted"),
    [
        ("", (PLAIN,), True, {}, ("overlay", "")),
        ("no xattr", (PLAIN, NEWER), True, {}, ("overlay", PLAIN)),
        ("no xattr", (OLDER, NEWER, "fuse-overlayfs-debug"), True, {}, ("overlay", NEWER)),
        ("no xattr", (), True, {}, ("vfs", "")),
        ("no xattr", (PLAIN,), False, {}, ("vfs", "")),
        ("no xattr", (), True, {"driver": "btrfs"}, ("btrfs", "")),
        ("no xattr", (), True, {"options": ("overlay.mount_program=/x/mine",)}, ("overlay", "mine")),
    ],
    ids=["kernel", "plain name", "newest", "none", "no /dev/fuse", "another driver", "a setting"],
)
def test_fuse_overlayfs_is_found_where_it_is_needed(
    lacking: str,
    programs: tuple[str, ...],
    fuse: bool,
    settings: dict[str, str],
    wanted: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bins = [tmp_path / "a bin", tmp_path / "other"]
    for number, program in enumerate(programs):
        path = bins[number % 2] / program
        path.parent.mkdir(exist_ok=True)
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join(map(str, bins)))
    monkeypatch.setattr(podman_storage, "_unprivileged", lambda: True)
    monkeypatch.setattr(podman_storage, "_lacking", lambda _storage: lacking)
    monkeypatch.setattr(podman_storage, "_FUSE", tmp_path if fuse else tmp_path / "nosuch")
    found = podman_storage.driver(PodmanSettings(**settings), tmp_path)
    assert (found.name, "".join(found.options).rpartition("/")[2]) == wanted
    assert bool(found.warning) == (wanted[0] == "vfs")


@pytest.mark.parametrize(
    ("release", "xattr", "why"),
    [
        ("5.3.18-150300.59.93_11-cray", True, "Linux 5.3.18-150300.59.93_11-cray has no overlay"),
        ("5.11.0", True, ""),
        ("6.4.0-cray", False, "has no extended attributes"),
        ("10.0-rc1", True, ""),
    ],
)
def test_what_the_kernel_cannot_is_said(
    release: str, xattr: bool, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def setxattr(*_: object) -> None:
        if not xattr:
            raise OSError(95, "Operation not supported")

    names = list(os.uname())
    names[2] = release
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(names))
    monkeypatch.setattr(os, "setxattr", setxattr)
    monkeypatch.setattr(os, "removexattr", setxattr)
    said = podman_storage._lacking(tmp_path)
    assert why in said and bool(said) == bool(why)


def test_the_passwords_of_podman_login_are_found_in_the_jobs_runtime_directory(
    memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = memory.parent.parent / "session"
    passwords = session / "containers/auth.json"
    passwords.parent.mkdir(parents=True)
    passwords.write_text("{}")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(session))
    monkeypatch.setattr(podman_storage, "rootless", lambda: True)
    for _ in range(2):
        node.storage(PodmanSettings())
        made = Path(os.environ["XDG_RUNTIME_DIR"])
        assert made == memory / "42/xdg" and made.stat().st_mode & 0o777 == 0o700
        assert (made / "containers/auth.json").samefile(passwords)
    monkeypatch.delenv("SLURM_JOB_ID")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(session))
    node.storage(PodmanSettings())
    assert os.environ["XDG_RUNTIME_DIR"] == str(session)


def test_a_step_has_its_temporary_files_and_clears_those_of_killed_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    here = f".rc_tasks.{os.uname().nodename}"
    kept = {
        f"{here}+{space()}.{os.getppid()}.alive",
        f"{here}+0123456789ab.4194305.of-another-namespace",
        f"{here}.4194305.of-an-older-version",
        ".rc_tasks.other.node.4194305.new",
        ".rc_tasks.notes",
    }
    old = {
        f"{here}+0123456789ab.4194305.old",
        f"{here}+0123456789ab.{os.getppid()}.old",
        f"{here}.4194305.old",
        ".rc_tasks.other.node.4194305.old",
    }
    gone = {f"{here}+{space()}.4194305.dead", *old}
    for name in kept | gone:
        (tmp_path / name / "layer").mkdir(parents=True)
    # Nodes may share it, and cannot see which processes of one another run.
    for name in old:
        os.utime(tmp_path / name, (0, 0))
    with node.prepared(PodmanSettings()):
        mine = Path(os.environ["TMPDIR"])
        assert mine.parent == tmp_path and mine.stat().st_mode & 0o777 == 0o700
        left = {each.name for each in tmp_path.iterdir()} - {mine.name}
        assert left == kept
    assert os.environ["TMPDIR"] == str(tmp_path)
    assert not mine.exists()


def test_temporary_files_that_have_no_place_here_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", "/no/such")
    monkeypatch.setenv("SLURMD_NODENAME", "nid001")
    told = "TMPDIR names /no/such, which is not on nid001"
    with (
        pytest.raises(RcError, match=f"^{told}\n  next: unset TMPDIR, or "),
        node.prepared(PodmanSettings()),
    ):
        pass
    found = list(check.findings(open_checkout(write_checkout(tmp_path / "imgs", {}), {})))
    assert [each.what for each in found if "TMPDIR" in each.what] == [told]
    # The last one that is looked for.
    assert found[-1].what.startswith("python ")


def test_the_check_tries_whether_locks_and_hard_links_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told() -> list[str]:
        found = check.findings(open_checkout(root, {}))
        return [
            f"{each.level}: {each.what}"
            for each in found
            if "locks work" in each.what or "no lock" in each.what
        ]

    root = write_checkout(tmp_path / "imgs", {})
    assert told() == ["ok: locks work in .rc/locks, with hard links"]

    def link(source: object, destination: object) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(os, "link", link)
    assert told() == [
        "warning: the file system of the checkout has no hard links: locks work without them, and an"
        " image that is kept for `doit rollback` is a copy, which takes time and space"
    ]
    assert list((root / ".rc/locks").iterdir()) == []
    (root / ".rc/locks").rmdir()
    (root / ".rc/locks").write_text("in the way")
    assert told() == ["problem: no lock can be taken: something else is in this place: File exists"]


@pytest.mark.skipif(os.getuid() != 0, reason="only root may mount")
def test_mounts_are_found_whatever_their_name(tmp_path: Path) -> None:
    import subprocess

    odd = tmp_path / "a mount:\\ of\nßome kind" / "below"
    odd.mkdir(parents=True)
    if subprocess.run(("mount", "-t", "tmpfs", "none", odd), check=False).returncode != 0:
        pytest.skip("mounting is not allowed here")
    try:
        assert podman_storage.mounts_below(odd.parent) == [odd]
        assert podman_storage.mounts_below(odd) == []
    finally:
        subprocess.run(("umount", odd), check=True)


@pytest.mark.parametrize(
    ("version", "other", "shares"),
    [
        ("4.3.1", "4.3.1", True),
        ("5.8.6", "5.8.4", True),
        ("5.4.2", "5.8.6", False),
        ("4.3.1", "5.3.1", False),
        ("6.0.0-rc1", "6.0.1", True),
    ],
)
def test_versions_of_podman_that_share_what_copy_made(version: str, other: str, shares: bool) -> None:
    assert podman.shares_copies(version, other) is shares


@pytest.mark.parametrize(
    ("hard", "asked"), [(4000, 4000), (1 << 40, 32768), (resource.RLIM_INFINITY, 32768)]
)
def test_no_more_processes_are_asked_for_than_root_of_a_container_may_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hard: int, asked: int
) -> None:
    most = tmp_path / "pid_max"
    most.write_text("32768\n")
    monkeypatch.setattr(node, "_PID_MAX", most)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1000, hard))
    limits = {"nofile": node.open_files(), "nproc": node.processes()}
    built = Podman().build(
        tmp_path,
        tmp_path / "Dockerfile",
        tag="",
        iidfile=tmp_path / "id",
        ignorefile=tmp_path / "ignore",
        sources={},
        build_args={},
        limits=limits,
    )
    assert f"nproc={asked}:{asked}" in built.argv
    assert built.argv[built.argv.index(f"nproc={asked}:{asked}") - 1] == "--ulimit"


def test_a_step_begins_though_podman_cannot_list_what_others_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As podman 4.3 does when another step removes its container at that moment."""
    program = tmp_path / "bin/podman"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'Error: container not known' >&2\nexit 125\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    # podman takes no long path.
    with tempfile.TemporaryDirectory(dir="/tmp") as storage:
        with node.prepared(PodmanSettings(storage=storage)) as engine, node.cleared(engine):
            begun = True
        assert begun


def test_an_interrupted_step_removes_its_containers_unless_others_use_the_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, calls = tmp_path / "bin/podman", tmp_path / "calls"
    program.parent.mkdir()
    names = "1 working-container 2 rc-squash-ab 3 of-somebody"
    program.write_text(
        f"#!/bin/sh\ncase \"$*\" in *' ls '*) printf '%s %s\\n' {names};;"
        f' *) echo "$*" >> {calls};; esac\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")

    def removed() -> list[str]:
        text = calls.read_text() if calls.exists() else ""
        calls.unlink(missing_ok=True)
        return [line.split()[-1] for line in text.splitlines() if "container rm" in line]

    @contextlib.contextmanager
    def using() -> Iterator[None]:
        with node.prepared(settings) as engine, node.cleared(engine):
            yield

    with tempfile.TemporaryDirectory(dir="/tmp") as storage:
        settings = PodmanSettings(storage=storage)
        with pytest.raises(KeyboardInterrupt), using():
            assert removed() == ["1", "2"]
            raise KeyboardInterrupt
        assert removed() == ["1", "2"]
        with using():
            removed()
            with pytest.raises(KeyboardInterrupt), using():
                raise KeyboardInterrupt
            assert removed() == []
