"""What `doit doctor` says of a node's tools by their versions: whole texts, with made-up programs."""

import json
import tempfile
from pathlib import Path

import pytest

from rc_tasks.state.checkout import Checkout, open_checkout
from rc_tasks.steps.doctor import check
from rc_tasks.steps.doctor.finding import Finding
from tests.support.checkouts import write_checkout

HELP = "\\t\\tzstd\\n\\t\\tgzip (default)\\n"
GOOD = {"cgroupVersion": "v2", "databaseBackend": "sqlite", "rootlessNetworkCmd": "pasta"}

WRONG = (
    "can silently write wrong content into files where an image has files of zeros only\n"
    "    steps give it -no-sparse, with which it does not; for what you squash by hand, ask for\n"
    "    squashfs-tools 4.7.5 or newer (squashfs-tools#339)\n"
)
FAILS = (
    "; it can fail while it compares files with each other\n"
    '    unless squash.method is "enroot", the step runs it once more without comparing, which makes\n'
    "    the image larger; versions after 4.7.5 do not fail (squashfs-tools#361, #362)\n"
)
MKSQUASHFS = {
    "4.5.1": "ok mksquashfs 4.5.1, compression zstd\n",
    "4.6.1": "ok mksquashfs 4.6.1, compression zstd\n",
    "4.7": f"warning mksquashfs 4.7 {WRONG}ok mksquashfs 4.7, compression zstd{FAILS}",
    "4.7.2": f"warning mksquashfs 4.7.2 {WRONG}ok mksquashfs 4.7.2, compression zstd{FAILS}",
    "4.7.4": f"warning mksquashfs 4.7.4 {WRONG}ok mksquashfs 4.7.4, compression zstd{FAILS}",
    "4.7.5": f"ok mksquashfs 4.7.5, compression zstd{FAILS}",
    "4.7.5-0a1b2c": f"ok mksquashfs 4.7.5-0a1b2c, compression zstd{FAILS}",
    "4.7.6": "ok mksquashfs 4.7.6, compression zstd\n",
    "4.7.10": "ok mksquashfs 4.7.10, compression zstd\n",
    "4.8": "ok mksquashfs 4.8, compression zstd\n",
}

CGROUPS = (
    "warning podman 6 will not start on this node: its control groups are of version 1 or mixed\n"
    "    before podman is upgraded: boot the node with systemd.unified_cgroup_hierarchy=1\n"
)
DATABASE = (
    "warning podman 6 will not read the database of containers in this storage, BoltDB, and fail there\n"
    "    it holds no images. Upgrade to podman 5.8 first, and reboot the node or run there, while no\n"
    "    other podman runs: podman system migrate --migrate-db\n"
)
NETWORK = (
    "warning podman 6 has no slirp4netns, which containers.conf names\n"
    "    install pasta (Debian: passt), and remove default_rootless_network_cmd from containers.conf\n"
)
SETTING = (
    'warning podman 6 has no slirp4netns, and podman.network is "slirp4netns:mtu=9000"\n'
    '    set podman.network to "pasta" or "host"\n'
)
OLD = {"cgroupVersion": "v1", "databaseBackend": "boltdb", "rootlessNetworkCmd": "slirp4netns"}


def program(directory: Path, name: str, script: str) -> None:
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(f"#!/bin/sh\n{script}\n")
    (directory / name).chmod(0o755)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkout:
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    return open_checkout(write_checkout(tmp_path / "checkout", {}), {})


def podman(tmp_path: Path, version: str, host: dict[str, str]) -> None:
    info = json.dumps({"host": host, "store": {"graphDriverName": "overlay"}})
    (tmp_path / "info").write_text(info)
    script = f"""case " $*" in *" --version") echo podman version {version};;
    *" info "*) cat {tmp_path}/info;; *" unshare "*) echo 0 1 1; echo 1 2 3;; *) exit 125;; esac"""
    program(tmp_path / "bin", "podman", script)


def told(checkout: Checkout, begins: str) -> str:
    """The findings that begin so, as `doit doctor` shows them."""
    found = [each for each in check.findings(checkout) if each.what.startswith(begins)]
    return "".join(map(shown, found))


def shown(finding: Finding) -> str:
    hint = "".join(f"    {line}\n" for line in finding.hint.splitlines())
    return f"{finding.level} {finding.what}\n{hint}"


@pytest.mark.parametrize("version", MKSQUASHFS)
def test_a_mksquashfs_with_faults_is_told(checkout: Checkout, tmp_path: Path, version: str) -> None:
    podman(tmp_path, "5.8.6", GOOD)
    says = f"mksquashfs version {version} (2026/03/01)"
    script = f"case $1 in -version) echo '{says}';; *) printf '{HELP}';; esac"
    program(tmp_path / "bin", "mksquashfs", script)
    program(tmp_path / "bin", "unsquashfs", "")
    assert told(checkout, "mksquashfs") == MKSQUASHFS[version]


@pytest.mark.parametrize(
    ("version", "host", "expected"),
    [
        pytest.param("5.0.0", {"cgroupVersion": "v1"}, CGROUPS, id="5.0 tells less"),
        pytest.param("5.4.2", OLD, CGROUPS + DATABASE + NETWORK, id="5.4"),
        pytest.param("5.8.6", OLD, CGROUPS + DATABASE + NETWORK, id="5.8"),
        pytest.param("5.8.6", GOOD, "", id="ready"),
        pytest.param("4.3.1", {"cgroupVersion": "v1", "networkBackend": "cni"}, "", id="4.3"),
        pytest.param("4.9.3", OLD, "", id="4.9"),
        # It would not have started.
        pytest.param("6.0.0", OLD, "", id="6.0"),
    ],
)
def test_what_podman_6_drops_is_told_to_who_has_podman_5(
    checkout: Checkout, tmp_path: Path, version: str, host: dict[str, str], expected: str
) -> None:
    podman(tmp_path, version, host)
    assert told(checkout, "podman 6 ") == expected
    assert told(checkout, f"podman {version}").startswith(f"ok podman {version}, storage driver overlay")


def test_the_database_of_a_storage_is_named_by_its_flags(tmp_path: Path, checkout: Checkout) -> None:
    """The command is for the storage in which the steps work, not for the user's own."""
    podman(tmp_path, "5.8.6", GOOD | {"databaseBackend": "boltdb"})
    # podman takes no long path.
    with tempfile.TemporaryDirectory(dir="/tmp") as storage:
        checkout = open_checkout(checkout.root, {"RC_PODMAN_STORAGE": storage})
        text = told(checkout, "podman 6 ")
    assert f"    other podman runs: podman --root {storage}/" in text
    assert text.endswith(" system migrate --migrate-db\n")


def test_slirp4netns_in_the_settings_is_told(checkout: Checkout, tmp_path: Path) -> None:
    podman(tmp_path, "5.8.6", GOOD)
    checkout = open_checkout(checkout.root, {"RC_PODMAN_NETWORK": "slirp4netns:mtu=9000"})
    assert told(checkout, "podman 6 ") == SETTING


def test_a_podman_that_is_too_old_is_a_problem(checkout: Checkout, tmp_path: Path) -> None:
    podman(tmp_path, "4.2.0", {})
    assert told(checkout, "podman 4") == (
        "problem podman 4.2.0 is too old\n    4.3 is the oldest that is known to work\n"
    )


def test_a_stale_cache_of_mounts_frightens_nobody(checkout: Checkout, tmp_path: Path) -> None:
    """Builds see to it, so there is nothing to do."""
    podman(tmp_path, "4.3.1", {"cgroupVersion": "v2"})
    assert (
        told(checkout, "podman") == "ok podman 4.3.1, storage driver overlay in podman's own storage\n"
    )
