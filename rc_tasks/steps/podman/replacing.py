"""Filter that replaces words in a program's output: secrets, and texts of the rewritten Dockerfile."""

import re
from collections.abc import Mapping


class Replacing:
    """Replaces words, such as secrets, in a text that comes in pieces; an empty piece ends the text."""

    def __init__(self, shown: Mapping[bytes, bytes]) -> None:
        """Take the replacement of each word from `shown`."""
        self._shown = shown
        # Match the longest first: a secret may be the beginning of another one.
        self._values = sorted(shown, key=len, reverse=True)
        self._found = re.compile(b"|".join(map(re.escape, self._values)))
        self._held = b""

    def __call__(self, piece: bytes) -> bytes:
        """Return the text that may be shown now, without an end that may be the beginning of a word."""
        if not self._values:
            return piece
        text = self._held + piece
        cut = self._decided(text) if piece else len(text)
        self._held = text[cut:]
        return self._found.sub(lambda match: self._shown[match[0]], text[:cut])

    def _decided(self, text: bytes) -> int:
        """Return where the end begins that may be a word, depending on the next piece."""
        cut = self._begun(text, 0)
        for match in self._found.finditer(text):
            if match.start() >= cut:
                break
            if match.end() > cut:
                cut = self._begun(text, match.end())
        return cut

    def _begun(self, text: bytes, start: int) -> int:
        """Return where the longest beginning of a word that ends the text is, at `start` or later."""
        first = max(start, len(text) - len(self._values[0]) + 1)
        return next((at for at in range(first, len(text)) if self._goes_on(text[at:])), len(text))

    def _goes_on(self, text: bytes) -> bool:
        return any(len(value) > len(text) and value.startswith(text) for value in self._values)
