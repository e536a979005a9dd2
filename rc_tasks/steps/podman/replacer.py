"""Filter that replaces words in a program's output: secrets, and texts of the rewritten Dockerfile."""

import re
from collections.abc import Mapping


class Replacer:
    """Replaces words, such as secrets, in a text that comes in pieces; an empty piece ends the text."""

    def __init__(self, replacements: Mapping[bytes, bytes]) -> None:
        """Take the replacement of each word from `replacements`."""
        self._replacements = replacements
        # Match the longest first: a secret may be the beginning of another one.
        self._words = sorted(replacements, key=len, reverse=True)
        self._pattern = re.compile(b"|".join(map(re.escape, self._words)))
        # The end of the text so far that may be the beginning of a word.
        self._pending = b""

    def __call__(self, piece: bytes) -> bytes:
        """Return the text that may be shown now, without an end that may be the beginning of a word."""
        if not self._words:
            return piece
        text = self._pending + piece
        end = self._safe_end(text) if piece else len(text)
        self._pending = text[end:]
        return self._pattern.sub(lambda match: self._replacements[match[0]], text[:end])

    def _safe_end(self, text: bytes) -> int:
        """Return where the end of a text begins that may be a word, depending on the next piece."""
        end = self._partial_word(text, 0)
        for match in self._pattern.finditer(text):
            if match.start() >= end:
                break
            if match.end() > end:
                end = self._partial_word(text, match.end())
        return end

    def _partial_word(self, text: bytes, start: int) -> int:
        """Return where the longest beginning of a word that ends the text is, at `start` or later."""
        first = max(start, len(text) - len(self._words[0]) + 1)
        return next((at for at in range(first, len(text)) if self._begins_word(text[at:])), len(text))

    def _begins_word(self, text: bytes) -> bool:
        return any(len(word) > len(text) and word.startswith(text) for word in self._words)
