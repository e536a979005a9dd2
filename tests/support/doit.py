"""Runs doit in a checkout as a person does, and reads what it says."""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support import warm

DOIT = str(Path(sys.executable).with_name("doit"))


def pythons() -> tuple[str, ...]:
    """The names of the Python that runs `doit`, the longest first: a .venv may start it by each."""
    return tuple(sorted(map(str, Path(DOIT).parent.glob("python*")), key=len, reverse=True))


def unstamped(text: str) -> str:
    """What a run has said, without the times at which it said so."""
    return re.sub(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d (?=\w)", "", text, flags=re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Ran:
    """A finished run of doit, its text `unstamped`; `started` lists the steps that ran, in order."""

    status: int
    text: str

    @property
    def started(self) -> list[str]:
        """The steps that were started."""
        return re.findall(r"^start +(\S+)", self.text, re.MULTILINE)


def doit(
    root: Path, *argv: str, environ: Mapping[str, str] | None = None, timeout_s: float = 300
) -> Ran:
    """Run doit with nothing to read; both outputs come in one text."""
    whole = {**os.environ, **(environ or {})}
    if not warm.suits(whole):
        return doit_process(root, *argv, environ=environ, timeout_s=timeout_s)
    status, text = warm.run(argv, root, whole, timeout_s)
    return Ran(status, unstamped(text))


def doit_process(
    root: Path, *argv: str, environ: Mapping[str, str] | None = None, timeout_s: float = 300
) -> Ran:
    """The same as a program that is started, as for a user."""
    done = subprocess.run(
        [DOIT, *argv],
        cwd=root,
        env={**os.environ, **(environ or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    return Ran(done.returncode, unstamped(done.stdout))


def start(root: Path, *argv: str, environ: Mapping[str, str]) -> "subprocess.Popen[str]":
    """Start doit and leave it running; both outputs come through one pipe."""
    return subprocess.Popen(
        [DOIT, *argv],
        cwd=root,
        env={**os.environ, **environ},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
