"""Words that are shown otherwise in the output of a program: secrets, and what podman was given."""

import re
from collections.abc import Mapping


class Replacing:
    """Replaces words, such as secrets, in a text that comes in pieces; an empty piece is its end."""

    def __init__(self, shown: Mapping[bytes, bytes]) -> None:
        """`shown` has what is to stand in place of each word."""
        self._shown = shown
        # The longest first: a secret may begin as another one does.
        self._values = sorted(shown, key=len, reverse=True)
        self._found = re.compile(b"|".join(map(re.escape, self._values)))
        self._held = b""

    def __call__(self, piece: bytes) -> bytes:
        """What may be shown now; the end of a piece waits where a word may have begun in it."""
        if not self._values:
            return piece
        text = self._held + piece
        cut = self._decided(text) if piece else len(text)
        self._held = text[cut:]
        return self._found.sub(lambda found: self._shown[found[0]], text[:cut])

    def _decided(self, text: bytes) -> int:
        """Where that begins of which only the next piece tells whether it is a word, and which one."""
        cut = self._begun(text, 0)
        for found in self._found.finditer(text):
            if found.start() >= cut:
                break
            if found.end() > cut:
                cut = self._begun(text, found.end())
        return cut

    def _begun(self, text: bytes, start: int) -> int:
        """Where the longest part of a word that ends the text begins, at `start` or later."""
        first = max(start, len(text) - len(self._values[0]) + 1)
        return next((at for at in range(first, len(text)) if self._goes_on(text[at:])), len(text))

    def _goes_on(self, text: bytes) -> bool:
        return any(len(value) > len(text) and value.startswith(text) for value in self._values)
