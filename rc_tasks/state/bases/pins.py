"""The file bases.lock of a checkout, which steps on several nodes and people write."""

from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct

from rc_tasks.errors import PinError
from rc_tasks.model.graph.pin import LOCK, Pin, parse, with_pin
from rc_tasks.model.graph.project import DOCKERFILES
from rc_tasks.state.disk.files import refused, sweep_temporaries, write_atomically
from rc_tasks.state.disk.locks import held
from rc_tasks.state.records.inputs import CACHE, PIN
from rc_tasks.util import toml_text
from rc_tasks.util.safe_read import read_bytes


class Pins(Struct, frozen=True):
    """The pins of a checkout; a process that writes them holds the file `lock`."""

    file: Path
    lock: Path

    def read(self) -> dict[str, Pin]:
        """Return every pin by reference; none when there is no file. Raise PinError."""
        return parse(self._text())

    def first(self, reference: str, pin: Pin) -> Pin:
        """Pin a base unless it is pinned; return the pin that counts, which may be another step's.

        Raise RcError when the file is broken or cannot be written.
        """
        with held(self.lock, f"writing {LOCK}", wait=True):
            text = self._text()
            existing = parse(text).get(reference)
            if existing is None:
                self._write(with_pin(text, reference, pin))
        return existing or pin

    def move(self, pins: Mapping[str, Pin]) -> None:
        """Write these pins, all of them or none. Raise RcError as `first` does."""
        with held(self.lock, f"writing {LOCK}", wait=True):
            text = self._text()
            parse(text)
            for reference, pin in sorted(pins.items()):
                text = with_pin(text, reference, pin)
            self._write(text)

    def _write(self, text: str) -> None:
        sweep_temporaries(self.file.parent, self.file.name)
        write_atomically(self.file, text)

    def _text(self) -> str:
        try:
            return toml_text.decode(read_bytes(self.file), LOCK, PinError)
        except FileNotFoundError:
            return ""
        except OSError as error:
            raise refused(error, self.file) or error from None


def comparable(
    recorded: Mapping[str, str], now: Mapping[str, str], pins: Mapping[str, Pin]
) -> dict[str, str]:
    """Return recorded inputs so that only real changes differ from the inputs `now`.

    - A base that was pinned after the record was written counts as built from its first pin.
    - A pin that was removed counts as unchanged.
    - What podman's cache overlooks counts as unchanged when the Dockerfile has changed, which is a cause
      of its own.
    """
    parts = {
        part: value
        for part, value in recorded.items()
        if not part.startswith((PIN, CACHE)) or part in now
    }
    rewritten = any(recorded.get(name) != now.get(name) for name in DOCKERFILES)
    for part, value in now.items():
        if part in parts:
            continue
        if part.startswith(PIN):
            pin = pins.get(part.removeprefix(PIN))
            parts[part] = pin.previous if pin is not None and pin.previous else value
        elif part.startswith(CACHE) and rewritten:
            parts[part] = value
    return parts
