"""Runs of doit that are watched while they go on, and images whose RUN waits for the test."""

import contextlib
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rc_tasks.state.records.records import Record, Records, Step
from tests.support.doit import DOIT, unstamped

# How long something may take that needs no more than a busy machine's time.
PATIENCE_S = 60.0
# How long a person waits for the prompt after Ctrl-C: 1 s. It is more on a busy machine, but less than
# the 10 s that a tool gets to end by itself.
PROMPT_S = 8.0


def until(happened: Callable[[], object], what: Callable[[], str] = str) -> None:
    """Wait for a condition; fails with what is known then."""
    deadline = time.monotonic() + PATIENCE_S
    while not happened():
        assert time.monotonic() < deadline, f"this did not happen in time\n{what()}"
        time.sleep(0.05)


@dataclass(slots=True)
class Running:
    """A run of doit whose output goes to a file."""

    process: "subprocess.Popen[bytes]"
    output: Path

    @property
    def text(self) -> str:
        """What it has said so far, unstamped."""
        return unstamped(self.output.read_text())

    def says(self, pattern: str) -> re.Match[str]:
        """Wait for a line that matches as a whole; fails when the run ends without it."""
        found: list[re.Match[str]] = []

        def said() -> bool:
            ended = self.process.poll() is not None
            found.extend(re.finditer(f"^{pattern}$", self.text, re.MULTILINE))
            assert found or not ended, self.text
            return bool(found)

        until(said, lambda: self.text)
        return found[0]

    def end(self, status: int | None = 0) -> str:
        """Wait for its end, with an exit status (None: any failure) and no traceback; the output."""
        self.process.wait(3 * PATIENCE_S)
        text = self.text
        assert "Traceback" not in text, text
        if status is None:
            assert self.process.returncode > 0, text
        else:
            assert self.process.returncode == status, text
        return text


@dataclass(frozen=True, slots=True)
class Site:
    """A checkout, and a directory `signs` that is `/signs` in every RUN."""

    root: Path
    signs: Path
    environ: Mapping[str, str]

    @contextlib.contextmanager
    def running(self, *argv: str, prefix: tuple[str, ...] = (), **variables: str) -> Iterator[Running]:
        """`doit argv…` behind a command such as salloc; killed when the test fails meanwhile."""
        output = self.signs / f"{time.monotonic_ns()}.out"
        with output.open("wb") as file:
            process = subprocess.Popen(
                (*prefix, DOIT, *argv),
                cwd=self.root,
                env={**os.environ, **self.environ, **variables},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        try:
            yield Running(process, output)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(PATIENCE_S)

    def run(
        self,
        *argv: str,
        status: int | None = 0,
        prefix: tuple[str, ...] = (),
        **variables: str,
    ) -> str:
        """The output of a whole run."""
        with self.running(*argv, prefix=prefix, **variables) as run:
            return run.end(status)

    def image(self, name: str, script: str, base: str = "base") -> None:
        """An image that runs a script; it differs each time."""
        path = self.root / "projects" / name / "Dockerfile"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"FROM {base}\nRUN : {time.monotonic_ns()}; {script}\n")

    def waiting(self, name: str, base: str = "base") -> None:
        """An image whose RUN says that it has begun and waits for `go`."""
        mark = name.partition(":")[0]
        wait = f"echo > /signs/{mark}; until [ -e /signs/go ]; do sleep 0.1; done; echo {mark} > /made"
        self.image(name, wait, base)

    def begun(self, name: str) -> bool:
        """Whether the RUN of a waiting image has begun."""
        return (self.signs / name.partition(":")[0]).exists()

    def go(self) -> None:
        """Let the RUNs that wait go on."""
        (self.signs / "go").touch()

    def record(self, name: str, step: Step = Step.PODMAN) -> Record:
        """A step's record as it is now."""
        found = Records(self.root / ".rc/state").get(step, name)
        assert found is not None
        return found

    def logs(self, name: str, step: Step = Step.PODMAN) -> list[Path]:
        """The logs of a step."""
        return sorted((self.root / ".rc/logs" / name / step).glob("2*.log"))


def lines(text: str, *kinds: str) -> list[str]:
    """The lines of a run of these kinds, such as `granted`."""
    return [line for line in text.splitlines() if line.partition(" ")[0] in kinds]
