"""Lexer for words of a Dockerfile: quotes, escapes, variables and heredoc markers.

The rules are BuildKit's, frontend/dockerfile/shell/lex.go and parser/parser.go.
"""

import re
from collections.abc import Callable

from msgspec import Struct


class ExpandedText(Struct, frozen=True):
    """A text with its variables replaced; `unset` names the variables without a value."""

    text: str
    unset: tuple[str, ...] = ()


class Heredoc(Struct, frozen=True):
    """`<<DELIMITER`, or `<<-DELIMITER`, whose end may be indented by tabs."""

    delimiter: str
    indented: bool


class WordError(ValueError):
    """A word that the rules forbid; the text says why."""


def expand(word: str, escape: str, lookup: Callable[[str], ExpandedText | None]) -> ExpandedText:
    """Return a word with its variables replaced and its quotes removed. Raise WordError.

    `lookup` returns the value of a variable, or None when it is not set.
    """
    if not any(special in word for special in ("$", "'", '"', escape)):
        return ExpandedText(word)
    try:
        return _WordReader(word, escape, lookup).until("")
    except RecursionError:
        raise WordError("its variables are nested too deeply") from None


def split_words(value: str, escape: str) -> list[str]:
    """Return the words of a value, with their quotes and escapes kept."""
    if not any(special in value for special in ("'", '"', escape)):
        return value.split()
    words, word, quote = [], "", ""
    at = 0
    while at < len(value):
        character = value[at]
        at += 1
        if character.isspace() and not quote:
            if word:
                words.append(word)
            word = ""
            continue
        if character == escape and quote != "'":
            character += value[at : at + 1]
            at += 1
        elif character == quote:
            quote = ""
        elif character in "'\"" and not quote:
            quote = character
        word += character
    return [*words, word] if word else words


def heredocs(line: str) -> tuple[Heredoc, ...]:
    """Return the heredocs that a logical line of RUN, COPY or ADD opens, in order."""
    if "<<" not in line:
        return ()
    reader = _WordReader(line, "\\", None)
    try:
        reader.until("")
    except WordError:
        # Shell text need not follow these rules; a line that cannot be parsed opens no heredoc.
        return ()
    opened = []
    for word in reader.words():
        match = _HEREDOC.fullmatch(word)
        if match is None:
            continue
        # Quotes around the delimiter are removed; a variable in it is never replaced.
        delimiter = _WordReader(match[2], "\\", lambda name: ExpandedText(f"${name}"))
        delimiter.until("")
        if len(delimiter.words()) == 1:
            opened.append(Heredoc(delimiter.words()[0], indented=bool(match[1])))
    return tuple(opened)


_HEREDOC = re.compile(r"\d*<<(-?)\s*([^<]+)")


class _WordReader:
    """Reads a text once, from left to right; without `lookup` it keeps everything as written."""

    def __init__(
        self, text: str, escape: str, lookup: Callable[[str], ExpandedText | None] | None
    ) -> None:
        self.text = text
        self.at = 0
        self.escape = escape
        self.lookup = lookup
        # str.split would also split at quoted and escaped spaces, so `words` splits these pieces.
        self.pieces: list[tuple[str, bool]] = []

    def peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def next(self) -> str:
        character = self.peek()
        self.at += 1
        return character

    def words(self) -> list[str]:
        words, word = [], ""
        for piece, quoted in self.pieces:
            if quoted:
                word += piece
                continue
            for character in piece:
                if not character.isspace():
                    word += character
                elif word:
                    words.append(word)
                    word = ""
        return [*words, word] if word else words

    def until(self, stop: str) -> ExpandedText:
        """Read the value up to the character `stop` and skip that; an empty `stop` means the end."""
        raw = self.lookup is None
        text: list[str] = []
        unset: tuple[str, ...] = ()
        while character := self.peek():
            if character == stop:
                self.at += 1
                return ExpandedText("".join(text), unset)
            quoted = True
            if character == "$":
                value = self.variable()
                unset += value.unset
                piece, quoted = value.text, False
            elif character == "'":
                piece = self.single_quoted()
            elif character == '"':
                value = self.double_quoted()
                unset += value.unset
                piece = value.text
            elif raw and self.text.startswith("<<", self.at):
                # Blanks between << and its delimiter do not separate them.
                start = self.at
                self.at += 2
                while self.peek() and self.peek() in "\t\r ":
                    self.at += 1
                piece = self.text[start : self.at]
            elif character == self.escape:
                self.at += 1
                piece = (character if raw else "") + self.next()
            else:
                self.at += 1
                piece, quoted = character, False
            text.append(piece)
            if not stop:
                self.pieces.append((piece, quoted))
        if stop:
            raise WordError(f"{stop} is missing")
        return ExpandedText("".join(text), unset)

    def single_quoted(self) -> str:
        start = self.at
        end = self.text.find("'", start + 1)
        if end < 0:
            raise WordError("the closing ' is missing")
        self.at = end + 1
        return self.text[start : self.at] if self.lookup is None else self.text[start + 1 : end]

    def double_quoted(self) -> ExpandedText:
        raw = self.lookup is None
        self.at += 1
        text = ['"'] if raw else []
        unset: tuple[str, ...] = ()
        while character := self.peek():
            if character == "$":
                value = self.variable()
                text.append(value.text)
                unset += value.unset
                continue
            self.at += 1
            if character == '"':
                return ExpandedText("".join([*text, '"'] if raw else text), unset)
            if character == self.escape:
                if raw:
                    text.append(character)
                # Before any other character the escape means itself, as in a shell.
                if self.peek() and self.peek() in ('"', "$", self.escape):
                    character = self.next()
                elif raw:
                    continue
            text.append(character)
        raise WordError('the closing " is missing')

    def variable(self) -> ExpandedText:
        start = self.at
        self.at += 1
        if self.peek() != "{":
            name = self.name()
            if not name:
                return ExpandedText("$")
            return self.plain(name, start)
        self.at += 1
        name = self.name()
        if not name:
            raise WordError(f"{self.text[start:]} is not a substitution")
        operator = self.next()
        if operator == "}":
            return self.plain(name, start)
        if operator == ":":
            operator += self.next()
        if operator not in ("-", ":-", "+", ":+", "?", ":?"):
            raise WordError(
                f"{self.text[start:]} is not a substitution that can be used here"
                if operator
                else "} is missing"
            )
        word = self.until("}")
        if self.lookup is None:
            return ExpandedText(self.text[start : self.at])
        value = self.lookup(name)
        if value is None or (operator.startswith(":") and not value.text):
            if operator.endswith("?"):
                raise WordError(f"{name}: {word.text or 'a value is required'}")
            return word if operator.endswith("-") else ExpandedText("")
        return word if operator.endswith("+") else value

    def plain(self, name: str, start: int) -> ExpandedText:
        if self.lookup is None:
            return ExpandedText(self.text[start : self.at])
        value = self.lookup(name)
        return ExpandedText("", (name,)) if value is None else value

    def name(self) -> str:
        match = _VARIABLE.match(self.text, self.at)
        if match is None:
            return ""
        self.at = match.end()
        return match[0]


# Numbers and the shell's special parameters are names too; they never have a value here.
_VARIABLE = re.compile(r"\d+|[@*#?$!-]|[^\W\d]\w*")
