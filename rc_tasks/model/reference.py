"""Image references of Dockerfiles, and the rule for project names."""

import re
from collections.abc import Iterable
from typing import Self

from msgspec import Struct

from rc_tasks.errors import DockerfileError

TAG_LENGTH = 128
# difflib's own cutoff for close matches.
_CLOSE = 0.6

# The grammar of the OCI distribution specification, "Pulling manifests".
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_TAG = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
_HOST = r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*)"
_NAME = re.compile(rf"{_COMPONENT}(?::{_TAG})?")
_REGISTRY = re.compile(rf"(?:{_HOST}|\[[0-9a-fA-F:]+\])(?::[0-9]+)?")
_REFERENCE = re.compile(
    rf"(?P<repository>{_COMPONENT}(?:/{_COMPONENT})*)(?::(?P<tag>{_TAG}))?"
    r"(?:@(?P<digest>[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}))?"
)


class ImageReference(Struct, frozen=True):
    """An image reference; parts that are not written are None, and nothing is filled in."""

    registry: str | None
    repository: str
    tag: str | None
    digest: str | None

    @classmethod
    def parse(cls, text: str, *, where: object = None) -> Self:
        """Parse a reference. Raise DockerfileError at `where` when it is malformed."""
        first, slash, rest = text.partition("/")
        # Docker's rule: without a dot, a colon or "localhost" the first part belongs to the repository.
        has_registry = slash and ("." in first or ":" in first or first == "localhost")
        if has_registry and not _REGISTRY.fullmatch(first):
            raise _malformed(text, f"{first!r} is not a host name", where)
        match = _REFERENCE.fullmatch(rest if has_registry else text)
        if match is None:
            raise _malformed(text, _problem(text), where)
        return cls(first if has_registry else None, match["repository"], match["tag"], match["digest"])

    def __str__(self) -> str:
        registry = f"{self.registry}/" if self.registry else ""
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{registry}{self.repository}{tag}{digest}"


def familiar(reference: str) -> str:
    """Return a reference as Docker shows it: without Docker's own registry, `library` and `:latest`."""
    name = reference.removeprefix("index.docker.io/").removeprefix("docker.io/")
    official = name.removeprefix("library/")
    return (name if "/" in official else official).removesuffix(":latest")


def own_digest(reference: str) -> str | None:
    """Return the digest in a reference, or None."""
    return reference.partition("@")[2] or None


def version_problem(version: str) -> str | None:
    """Return why a string cannot be the version in a project name, as the rest of a sentence."""
    return name_problem(f"name:{version}")


def name_problem(name: str) -> str | None:
    """Return why a string cannot be a project name, as the rest of a sentence; None if it can."""
    if _NAME.fullmatch(name):
        return None
    repository, colon, tag = name.partition(":")
    odd = next((c for c in name if not (c.isascii() and c.isalnum()) and c not in "._-:"), "")
    separators = "needs a letter or digit at both ends and between separators, before the tag"
    problems = (
        (not name, "is empty"),
        (name.startswith("-"), "starts with a dash, as an option does"),
        (bool(odd), f"contains {_CHARACTERS.get(odd, repr(odd))}"),
        (":" in tag, "contains more than one colon"),
        (repository != repository.lower(), "has capital letters before the tag"),
        (not re.fullmatch(_COMPONENT, repository), separators),
        (bool(colon) and not tag, "ends in a colon without a tag"),
        (len(tag) > TAG_LENGTH, f"has a tag of {len(tag)} characters, and {TAG_LENGTH} are allowed"),
        (True, "has a tag that starts with a dot or a dash"),
    )
    return next(problem for wrong, problem in problems if wrong)


_CHARACTERS = {
    " ": "a space",
    "\n": "a line break",
    "\t": "a tab",
    "/": "a slash",
    "=": "an equals sign",
    "'": "a quote",
    '"': "a quote",
    "`": "a quote",
    "\\": "a backslash",
    "*": "an asterisk",
}


def near(name: str, candidates: Iterable[str], n: int = 3) -> tuple[str, ...]:
    """Return the candidates that somebody who wrote `name` may have meant, nearest first."""
    import difflib

    folded = name.casefold()
    matcher = difflib.SequenceMatcher(None, b=folded)
    scored: list[tuple[bool, float, str]] = []
    for candidate in dict.fromkeys(candidates):
        other = candidate.casefold()
        # Too many names begin with one or two letters for a suggestion.
        begins = len(folded) >= 3 and other.startswith(folded)
        matcher.set_seq1(other)
        # These upper bounds of the ratio drop most names in a tenth of its time.
        if begins or (matcher.real_quick_ratio() >= _CLOSE and matcher.quick_ratio() >= _CLOSE):
            ratio = matcher.ratio()
            if begins or ratio >= _CLOSE:
                scored.append((not begins, -ratio, candidate))
    return tuple(candidate for _, _, candidate in sorted(scored)[:n])


def _problem(text: str) -> str:
    if not text:
        return "it is empty"
    if "//" in text or text.startswith("/") or text.endswith("/"):
        return "a part between slashes is empty"
    path = text.rpartition("/")[2]
    repository = text[: len(text) - len(path)] + re.split("[:@]", path)[0]
    if repository != repository.lower():
        return "capital letters are allowed only in the tag"
    return "the form is [REGISTRY/]NAME[:TAG][@DIGEST]"


def _malformed(text: str, problem: str, where: object) -> DockerfileError:
    return DockerfileError(
        f"{text!r} is not an image reference: {problem}",
        where=where,
        hint="write the name of a project, or a reference such as docker.io/library/debian:12",
    )
