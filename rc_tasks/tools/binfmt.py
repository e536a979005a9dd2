"""Emulation of other machines by the kernel's binfmt_misc and qemu-user."""

from pathlib import Path

_REGISTERED = Path("/proc/sys/fs/binfmt_misc")


def emulates(machine: str) -> bool:
    """Return whether programs of a machine (uname -m) run here, also in containers.

    An interpreter with the flag F was opened when it was registered (kernel, admin-guide/binfmt-misc);
    one without it would have to be in each image.
    """
    try:
        text = (_REGISTERED / f"qemu-{machine}").read_text()
    except OSError:
        return False
    flags = next((line for line in text.splitlines() if line.startswith("flags:")), "")
    return text.startswith("enabled") and "F" in flags.removeprefix("flags:")
