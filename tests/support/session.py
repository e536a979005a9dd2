"""Recorder of the session on the site's home page, with real podman and a real Slurm cluster.

`python -m tests.support.session` writes docs/session.cast (asciicast v2) and its text, docs/session.txt.
"""

import getpass
import json
import os
import re
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path
from random import Random

from tests.support.checkouts import SOURCE, copy_demo
from tests.support.cluster import ACCOUNT, Cluster
from tests.support.storage import remove_storage
from tests.support.terminal import Screen, Terminal

CAST = SOURCE / "docs/session.cast"
TEXT = SOURCE / "docs/session.txt"
COLUMNS, ROWS = 100, 28
# The time to read what a command printed. A longer silence is cut to it.
IDLE_S = 1.5
PROMPT = "$"
COMMANDS = (
    "doit list",
    "doit",
    "sed -i 's/Hello/Good morning/' projects/hello:1.0/hello.sh",
    "doit list",
    "doit why hello",
    "doit build:hello:1.0",
    "doit list",
)
# A host, an address, or an absolute path that is not in the demo's Dockerfiles.
_TRACE = re.compile(
    r"\b[\w-]+\.(?:com|org|net|ch|io|local)\b"
    r"|\b\d+\.\d+\.\d+\.\d+\b"
    r"|(?<![\w.:~/'-])/(?!bin\b|workspace\b)\w[^\s'\"]*"
)


class RecordingScreen(Screen):
    """A screen that keeps what it shows as events of an asciicast: `(seconds, kind, text)`."""

    def __init__(self) -> None:
        super().__init__(COLUMNS, ROWS)
        self.events: list[tuple[float, str, str]] = []
        self._now_s = 0.0
        self._noted_at_s = time.monotonic()

    def feed(self, text: str) -> None:
        """Take what a program writes."""
        self._note("o", text)
        super().feed(text)

    def mark(self, command: str) -> None:
        """Set a marker, to which a viewer can jump."""
        self._note("m", command)

    def _note(self, kind: str, text: str) -> None:
        silent_s = time.monotonic() - self._noted_at_s
        self._noted_at_s += silent_s
        self._now_s += min(silent_s, IDLE_S)
        self.events.append((round(self._now_s, 3), kind, text))


def record(cluster: Cluster, *, patient: bool) -> RecordingScreen:
    """Type the commands in the demo; if `patient`, as a person who reads and hesitates."""
    # podman limits the length of its paths.
    with tempfile.TemporaryDirectory(prefix="rc-") as name:
        checkout, storage = copy_demo(Path(name)), Path(name, "s")
        environ = {
            **cluster.environment,
            "RC_RUNNER": "slurm",
            "RC_SLURM_ACCOUNT": ACCOUNT,
            "RC_PODMAN_STORAGE": f"{storage}/${{SLURMD_NODENAME}}",
            # In containers podman's own choices fail, and the session would show a note about that.
            "RC_PODMAN_ISOLATION": "chroot",
            "RC_PODMAN_RUNTIME": "runc",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": name,
            "LANG": "C.UTF-8",
            "TZ": "UTC",
            "TERM": "xterm-256color",
            "PS1": f"{PROMPT} ",
        }
        # A shell with a line editor writes control sequences that Screen does not know.
        argv = ("env", "-i", *(f"{key}={value}" for key, value in environ.items()), "dash", "-i")
        try:
            with Terminal(argv, checkout, {}, COLUMNS, ROWS) as shell:
                try:
                    return _typed(shell, patient)
                finally:
                    # An interactive shell ignores SIGTERM, which Terminal sends at its end.
                    shell.signal(signal.SIGHUP)
        finally:
            for node in cluster.node_names:
                remove_storage(storage / node)


def _typed(shell: Terminal, patient: bool) -> RecordingScreen:
    shell.screen = screen = RecordingScreen()
    hesitation = Random(0)
    shell.shows(lambda text: text == PROMPT)
    for command in COMMANDS:
        time.sleep(IDLE_S * patient)
        screen.mark(command)
        for end, char in enumerate(command, 1):
            shell.type(char)
            typed = f"{PROMPT} {command[:end]}".rstrip()
            shell.shows(lambda text, typed=typed: text.endswith(typed))
            time.sleep(hesitation.uniform(0.02, 0.09) * patient)
        shell.type("\n")
        shell.shows(lambda text: text.endswith(f"\n{PROMPT}"))
    return screen


def session_text(screen: Screen) -> str:
    """Return what a recording shows, without the prompt at its end."""
    return screen.text.removesuffix(PROMPT)


def traces(text: str) -> list[str]:
    """Return the words that may name a machine or its directories."""
    return _TRACE.findall(text)


def main() -> None:
    """Record the session, unless it names this machine or its user."""
    # munged refuses a socket below a directory that is closed to other users.
    with (
        tempfile.TemporaryDirectory(prefix="slurm-") as name,
        Cluster(Path(name)) as cluster,
    ):
        screen = record(cluster, patient=True)
    output = "".join(text for _, kind, text in screen.events if kind == "o")
    names = traces(output) + re.findall(rf"\b(?:{socket.gethostname()}|{getpass.getuser()})\b", output)
    assert not names, f"the recording names this machine: {names}\n{screen.text}"
    header = {"version": 2, "width": COLUMNS, "height": ROWS, "title": "A session of doit"}
    lines = (json.dumps(line, ensure_ascii=False) for line in (header, *screen.events))
    CAST.write_text("\n".join(lines) + "\n")
    TEXT.write_text(session_text(screen))


if __name__ == "__main__":
    main()
