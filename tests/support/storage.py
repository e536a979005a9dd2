"""A podman storage that a test may fill: the developer's own is never touched, and nothing stays."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from msgspec.structs import replace

from rc_tasks.tools import command, podman
from rc_tasks.tools.command import Command, Completed
from rc_tasks.tools.podman import Podman

# containers-storage.conf(5)
CONF = """\
[storage]
driver = "{driver}"
graphroot = "{root}"
runroot = "{runroot}"
"""
# An ordinary user's podman 4 does not look at graphroot. podman 5.8 warns of both, in each output.
CONF_ROOTLESS = 'rootless_storage_path = "{root}"\n'
# podman keeps a mount of the overlay directory onto itself, and a killed test those of its containers.
REMOVE = """\
awk -v base="$1/" 'index($5, base) == 1 { print $5 }' /proc/self/mountinfo | sort -r |
    xargs -r -d '\\n' umount --lazy
rm -rf "$1"
"""


def remove_storage(directory: Path) -> None:
    """Unmount and delete a storage that a test gave to podman by itself, as root."""
    command.capture(Command(("sh", "-c", REMOVE, "sh", str(directory))))


@contextlib.contextmanager
def own_storage() -> Iterator[tuple[Podman, dict[str, str]]]:
    """A storage, and the environment with which a plain `podman` or `skopeo` uses it too."""
    # podman wants the path of a runroot to be 50 characters at most; pytest's own are longer.
    base = Path(tempfile.mkdtemp(prefix="rc-")).resolve()
    # Rootless, the runroot of storage.conf counts for nothing: it is here, whatever that says.
    made = Podman(root=str(base / "root"), runroot=str(base / "containers"))
    conf = base / "storage.conf"
    environment = {"CONTAINERS_STORAGE_CONF": str(conf)}
    text = CONF
    if podman.rootless():
        environment["XDG_RUNTIME_DIR"] = str(base)
        text += CONF_ROOTLESS

    def run(wanted: Command, *, check: bool = True) -> Completed:
        return command.capture(replace(wanted, env=environment), check=check)

    try:
        # overlay is what people have; on top of another overlay, and rootless on old kernels, it fails.
        for driver in ("overlay", "vfs"):
            conf.write_text(text.format(driver=driver, root=made.root, runroot=made.runroot))
            made = replace(made, driver=driver)
            if run(Command(("podman", "info")), check=False).returncode == 0:
                break
        yield made, environment
    finally:
        run(made.command("rm", "--all", "--force", "--volumes", "--time=0"), check=False)
        remove = Command(("sh", "-c", REMOVE, "sh", made.root))
        if podman.rootless():
            # Files belong to subordinate IDs, and mounts are in a namespace that a process keeps.
            run(made.unshare(remove))
            run(made.command("system", "migrate"))
        else:
            run(remove)
        shutil.rmtree(base)
