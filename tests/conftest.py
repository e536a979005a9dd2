"""What every test gets: a home of its own, and tools that are there."""

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from rc_tasks.tools.podman import Podman
from tests.support import cluster as slurm
from tests.support.soak import EXAMPLES
from tests.support.storage import own_storage
from tests.support.tools import REQUIRED, require_tools

# What a test with such a mark needs; further programs are asked for with `require_tools`.
TOOLS = {
    "podman": ("podman", "skopeo", "mksquashfs", "unsquashfs"),
    "slurm": ("slurmctld", "slurmd", "srun", "munged"),
}
# The marks of the longest tests, the longest first. Tests with Slurm mostly wait, and tests with podman
# compute: with the same rank, they run at the same time and share the CPUs.
LONGEST = (("slow",), ("slurm", "podman"))
# What would lead a test to the developer's checkout, job or images.
FOREIGN = (
    "RC_",
    "SLURM",
    "SALLOC",
    "SBATCH",
    "DOIT_",
    "CONTAINERS_",
    "STORAGE_",
    "GIT_DIR",
    "GIT_WORK",
    "GIT_INDEX",
)


def pytest_configure(config: pytest.Config) -> None:
    """Give programs what they have at a user's hands, whatever started the tests."""
    # Under nohup or in a shell's background they would ignore these.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    # It takes minutes to compile for each of a thousand programs anew.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    # It hides what is still in a buffer when a program ends.
    os.environ.pop("PYTHONUNBUFFERED", None)
    # The same inputs at every run: what fails for somebody fails for all.
    hypothesis.settings.register_profile(
        "same",
        derandomize=True,
        deadline=None,
        database=None,
        max_examples=EXAMPLES if soaking(config) else 30,
        phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate),
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    hypothesis.settings.load_profile("same")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int | None:
    """Start three processes for two CPUs, unless pytest-xdist's own variable sets another number.

    Many tests wait: for Slurm, for time limits and for processes that end.
    """
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None
    return (3 * len(os.sched_getaffinity(0)) + 1) // 2


def soaking(config: pytest.Config) -> bool:
    """Whether the tests marked `soak` are asked for."""
    return "soak" in config.option.markexpr.replace("not soak", "")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the soak unless it is asked for; with xdist, begin with what takes longest."""
    if soaking(config):
        for item in items:
            if hypothesis.is_hypothesis_test(getattr(item, "obj", None)):
                item.add_marker("soak")
    else:
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("soak")])
        items[:] = [item for item in items if not item.get_closest_marker("soak")]
    if hasattr(config, "workerinput"):
        # Whole files are given out in this order, and a long one must not be the last.
        ranks: dict[Path, int] = {}
        for item in items:
            ranks[item.path] = min(rank(item), ranks.get(item.path, rank(item)))
        items.sort(key=lambda item: ranks[item.path])


def rank(item: pytest.Item) -> int:
    """0 for what takes longest."""
    own = {mark.name for mark in item.iter_markers()}
    return next((n for n, marks in enumerate(LONGEST) if own.intersection(marks)), len(LONGEST))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Ask for the tools of a test's marks, before any of its fixtures."""
    for mark, tools in TOOLS.items():
        if item.get_closest_marker(mark):
            require_tools(*tools)


@pytest.fixture(autouse=True)
def own_environment(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty home and none of the developer's settings; pip alone keeps its index and cache."""
    for name, value in pip_environment(Path.home()).items():
        monkeypatch.setenv(name, value)
    for name in os.environ:
        if name.startswith(FOREIGN) and name != REQUIRED:
            monkeypatch.delenv(name)
    for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
    # Works everywhere: in a container, without cgroups, as any user. The demo's test, like a user,
    # takes what podman chooses.
    monkeypatch.setenv("BUILDAH_ISOLATION", "chroot")
    # Where cgroups are of the old kind, podman 5 begins the output of every container with a warning.
    monkeypatch.setenv("PODMAN_IGNORE_CGROUPSV1_WARNING", "1")


@pytest.fixture
def podman_storage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Podman]:
    """A podman storage of the test's own, which a plain `podman` uses too; nothing of it stays."""
    require_tools("podman")
    with own_storage() as (podman, environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        yield podman


@pytest.fixture(scope="session")
def cluster() -> Iterator[slurm.Cluster]:
    """A Slurm cluster of this process, started when the first test asks for it."""
    require_tools(*slurm.TOOLS)
    # Not pytest's own directory: its path may be too long for a Unix socket.
    with tempfile.TemporaryDirectory(prefix="slurm-") as name, slurm.Cluster(Path(name)) as running:
        yield running


def pip_environment(home: Path) -> dict[str, str]:
    """The variables that make pip in another home use the same index and the same downloads."""
    config = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    found = {"PIP_CACHE_DIR": str(cache / "pip")}
    for path in (config / "pip" / "pip.conf", home / ".pip" / "pip.conf"):
        if path.is_file():
            found["PIP_CONFIG_FILE"] = str(path)
    return {name: os.environ.get(name, value) for name, value in found.items()}
