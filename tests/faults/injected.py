"""What runs inside a step under test: it waits for its moment, without a line in the program itself.

Python tells an audit hook of every file that is opened or renamed and every process that is started
(PEP 578), before it happens: those are the moments.
"""

import atexit
import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from tests.faults.plan import (
    INTO_MOUNT_S,
    INTO_TOOL_S,
    MOVING,
    VARIABLE,
    Action,
    Injection,
    Phase,
    parse,
)

_TOOLS = {"podman": "build", "enroot": "mksquashfs"}
_PUBLISHED = {"enroot": "image.sqsh", "env": "env.toml"}


def arm(step: str, image: str) -> None:
    """Wait for the injection's moment if it is meant for this step."""
    wanted = parse(os.environ[VARIABLE])
    if (wanted.step, wanted.image) == (step, image) and not os.path.exists(wanted.done):
        hook = _Hook(wanted)
        sys.addaudithook(hook.see)
        # Nothing at all may come after the record.
        atexit.register(hook.last)


class _Hook:
    """Looks at the events until the moment has come."""

    def __init__(self, wanted: Injection) -> None:
        self._wanted = wanted
        self._over = False
        self._next = False
        self._tool_ran = False
        self._merging = False

    def see(self, event: str, arguments: tuple[object, ...]) -> None:
        """Called by Python before each thing that it does."""
        if self._over or event not in {"open", "os.rename", "os.link", "subprocess.Popen"}:
            return
        if self._next:
            self._strike()
            return
        words = [os.fsdecode(each) for each in _flat(arguments) if isinstance(each, str | bytes)]
        if self._comes(event, words):
            match self._wanted.phase:
                case Phase.AFTER_LAYER | Phase.AFTER_RENAME | Phase.AFTER_RECORD:
                    # What this event announces is done when the next one comes.
                    self._next = True
                case Phase.DURING | Phase.MOUNTING:
                    self._over = True
                    into_s = INTO_TOOL_S if self._wanted.phase is Phase.DURING else INTO_MOUNT_S
                    threading.Timer(into_s, self._act).start()
                case _:
                    self._strike()

    def last(self) -> None:
        """Called when the step's process ends by itself."""
        if self._next and not self._over:
            # Python would print where we were interrupted, and this is no place of the step's.
            with contextlib.suppress(KeyboardInterrupt):
                self._strike()

    def _comes(self, event: str, words: list[str]) -> bool:
        step, phase = self._wanted.step, self._wanted.phase
        tool = event == "subprocess.Popen" and _TOOLS.get(step) in {Path(word).name for word in words}
        self._tool_ran |= tool
        # A descriptor that is opened has no name.
        opened = words[0] if event == "open" and words else ""
        self._merging |= opened.endswith(".tmp.sqsh")
        match phase:
            case Phase.START:
                return event == "os.link" and any("/.rc/locks/" in word for word in words)
            case Phase.BEFORE:
                return tool
            case Phase.DURING:
                # What is squashed first, for Enroot, is done in no time.
                return tool and not any(word.endswith("/written.sqsh") for word in words)
            case Phase.BEFORE_MOUNT | Phase.MOUNTING:
                return event == "subprocess.Popen" and any(
                    "mount -t squashfs" in word or word.endswith(("/squashfuse", "/squashfuse_ll"))
                    for word in words
                )
            case Phase.BEFORE_UNMOUNT:
                return event == "subprocess.Popen" and {"umount", "--recursive"} <= set(words)
            case Phase.STORE:
                return event == "os.rename" and "/.rc/store/" in words[1]
            case Phase.BEFORE_LAYER | Phase.AFTER_LAYER:
                return event == "os.rename" and "/.rc/store/layers/" in words[1]
            case Phase.COPY:
                return self._merging and opened.endswith("/layer.sqsh")
            case Phase.AFTER_WRITE:
                # The first look at what mksquashfs has written.
                return self._tool_ran and event == "subprocess.Popen" and "unsquashfs" in " ".join(words)
            case Phase.BEFORE_RENAME | Phase.AFTER_RENAME:
                return event == "os.rename" and Path(words[1]).name == _PUBLISHED[step]
            case _:
                return event == "os.rename" and words[1].endswith(
                    f"/.rc/state/{step}:{self._wanted.image}.json"
                )

    def _strike(self) -> None:
        self._over = True
        self._act()

    def _act(self) -> None:
        wanted = self._wanted
        Path(wanted.done).write_text(str(os.getpid()))
        match wanted.action:
            case Action.KILL_STEP:
                os.kill(os.getpid(), signal.SIGKILL)
            case Action.TERM_STEP:
                os.kill(os.getpid(), signal.SIGTERM)
                # Not before it is noticed: Python acts upon it between two of its own instructions.
                time.sleep(0)
            case Action.KILL_TOOL:
                for pid in _below(os.getpid()):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            case Action.KILL_FUSE:
                for pid in _below(os.getpid()):
                    with contextlib.suppress(OSError):
                        if b"squashfuse" in Path("/proc", str(pid), "cmdline").read_bytes():
                            os.kill(pid, signal.SIGKILL)
            case Action.KILL_RUN | Action.TERM_RUN:
                number = signal.SIGKILL if wanted.action is Action.KILL_RUN else signal.SIGTERM
                os.kill(int(os.environ["TEST_RUN"]), number)
                # The step goes on until somebody ends it.
            case Action.STOP:
                os.kill(os.getpid(), signal.SIGSTOP)
            case Action.KILL_SLURMSTEPD:
                os.kill(_slurmstepd(), signal.SIGKILL)
            case Action.MOVE_TREE:
                _move(Path(wanted.checkout, MOVING))
            case Action.DAMAGE_LAYER:
                overwrite(largest_layer(Path(wanted.checkout)))
            case Action.REMOVE_LAYER:
                shutil.rmtree(largest_layer(Path(wanted.checkout)).parent)
            case Action.WAIT:
                time.sleep(60)
            case Action.FULL_DISK:
                fill(Path(wanted.filler))
            case Action.READ_ONLY:
                # A second mount of the same files: the first cannot become so while a log is written.
                root = wanted.checkout
                subprocess.run(("mount", "--bind", root, root), check=True)
                subprocess.run(("mount", "-o", "remount,bind,ro", root), check=True)
            case Action.NO_PERMISSION:
                lose_permission(Path(wanted.checkout))


def _move(path: Path) -> None:
    """Let a file hold something else for a second, and be as it was then, its time too."""
    text, status = path.read_bytes(), path.stat()
    path.write_bytes(b"as on another branch\n")

    def back() -> None:
        path.write_bytes(text)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    threading.Timer(1.0, back).start()


def largest_layer(root: Path) -> Path:
    """The file of the layer that all images share."""
    files = (root / ".rc/store/layers").glob("*/layer.sqsh")
    return max(files, key=lambda path: path.stat().st_size)


def overwrite(path: Path) -> None:
    """Overwrite a data block of a squashed layer."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"\0" * 4096)


def fill(path: Path) -> None:
    """Write a file until its file system is full."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12):
            with contextlib.suppress(OSError):
                while file.write(b"\0" * size) == size:
                    pass


def lose_permission(root: Path) -> None:
    """Let the directories of a checkout belong to others, and give up root's right not to mind."""
    for directory, _, _ in os.walk(root):
        os.chown(directory, 65534, 65534)
        os.chmod(directory, 0o755)
    pr_capbset_drop, cap_chown, cap_dac_override, cap_fowner = 24, 0, 1, 3
    libc = ctypes.CDLL(None, use_errno=True)
    lost = (cap_chown, cap_dac_override, cap_fowner)
    for capability in lost:
        libc.prctl(pr_capbset_drop, capability)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # capset(2), version 3, for ourselves
    sets = (ctypes.c_uint32 * 6)()
    libc.capget(header, sets)
    for capability in lost:
        for which in range(3):
            sets[which] &= ~(1 << capability)
    if libc.capset(header, sets) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def _flat(arguments: tuple[object, ...]) -> Iterator[object]:
    for each in arguments:
        if isinstance(each, tuple | list):
            yield from each
        else:
            yield os.fspath(each) if isinstance(each, os.PathLike) else each


def _slurmstepd() -> int:
    """The process above us that is Slurm's."""
    pid = os.getpid()
    while not Path("/proc", str(pid), "cmdline").read_bytes().startswith(b"slurmstepd"):
        pid = int(Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[1])
    return pid


def _below(pid: int) -> list[int]:
    """All processes that descend from one, without the shell that guards them."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                stat = Path("/proc", entry, "stat").read_text(errors="replace")
                parent = int(stat.rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry))
    found, generation = [], [pid]
    while generation:
        generation = [child for each in generation for child in children.get(each, ())]
        found += generation
    return [each for each in found if not _is_guard(each)]


def _is_guard(pid: int) -> bool:
    with contextlib.suppress(OSError):
        argv = Path("/proc", str(pid), "cmdline").read_bytes().split(b"\0")
        return argv[:2] == [b"sh", b"-c"] and b"groups=" in argv[2]
    return False
