"""Where podman keeps its images on a node, and what is refused there."""

import os
from pathlib import Path

import pytest

from rc_tasks.errors import SettingsError
from rc_tasks.model.settings import PodmanSettings
from rc_tasks.steps import node
from tests.support.tools import require_tools


@pytest.fixture(autouse=True)
def podman_is_there() -> None:
    require_tools("podman")


def test_outside_slurm_podmans_own_storage_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    found = node.storage(PodmanSettings())
    assert (found.root, found.driver, found.cgroup_manager) == ("", "", "")


def test_variables_are_those_of_the_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLURMD_NODENAME", "node1")
    monkeypatch.setattr(node, "_LONGEST_RUNROOT", 500)
    found = node.storage(PodmanSettings(storage=f"{tmp_path}/${{SLURMD_NODENAME}}"))
    assert found.root == f"{tmp_path}/node1/root"
    assert (tmp_path / "node1").stat().st_mode & 0o777 == 0o700
    with pytest.raises(SettingsError, match="the variable NOSUCH is not set on this node"):
        node.storage(PodmanSettings(storage="/tmp/${NOSUCH}"))


def test_a_path_that_podman_would_refuse_is_refused_first() -> None:
    with pytest.raises(SettingsError, match="podman wants at most 50 characters"):
        node.storage(PodmanSettings(storage=f"/tmp/rc-test-{'x' * 40}"))
    os.rmdir(f"/tmp/rc-test-{'x' * 40}")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a directory away")
def test_what_somebody_else_could_have_put_there_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node, "_LONGEST_RUNROOT", 500)
    planted = tmp_path / "images"
    planted.mkdir()
    os.chown(planted, 65534, 65534)
    with pytest.raises(SettingsError, match="belongs to somebody else"):
        node.storage(PodmanSettings(storage=str(planted)))
