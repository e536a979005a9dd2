"""Update the generated values of env.toml, and keep the user's edits.

The file itself records the generated values, as a fresh clone has no other record: comment lines
`# generated: KEY=HASH …` hold the hash of each generated value. A user has changed a value with another
hash, and has deleted a key without a value. `image` is always generated.
"""

import hashlib
import json
import re
import tomllib
from collections.abc import Mapping
from urllib.parse import quote, unquote

from msgspec import Struct

from rc_tasks.errors import EdfError
from rc_tasks.model.edf import schema
from rc_tasks.util import toml_text
from rc_tasks.util.toml_text import KeyPath

PREFIX = "# generated:"
EXPLANATION = (
    "# The values listed here follow the recipe, the settings and templates/env.toml.j2. A value that",
    "# you change or delete is yours and stays as you leave it. Only `image` is always kept current.",
)
WIDTH = 105

_RECORD = re.compile(rf"^[ \t]*{PREFIX}((?: [^\s=]+=[0-9a-f]{{8}})+)[ \t]*(?:\n|\Z)", re.MULTILINE)

# The hashes of the generated values by key; more than one where git merged two records.
Record = dict[str, frozenset[str]]


class EdfValue(Struct, frozen=True):
    """A value of an EDF with its key path."""

    path: KeyPath
    value: object

    @property
    def hash(self) -> str:
        """The first 8 hex digits of the SHA-256 of the value's canonical JSON."""
        # `default` is for dates, which TOML has and JSON has not.
        canonical = json.dumps(self.value, ensure_ascii=False, separators=(",", ":"), default=str)
        return hashlib.sha256(canonical.encode()).hexdigest()[:8]


def merge(
    existing: str | None,
    rendered: str,
    where: str,
    *,
    always: frozenset[str] = frozenset({"image"}),
    explanation: tuple[str, ...] = EXPLANATION,
) -> str:
    """Return the env.toml to publish: `existing` with the generated values of `rendered`.

    Raise EdfError when `existing` is not a valid EDF, or when a generated key conflicts with a user's
    edit; `where` is the path of env.toml. The keys in `always` override a user's edits. `explanation` is
    written at the head of a file that has no record yet.
    """
    generated_values = _values(rendered)
    if existing is None or _is_untouched(existing):
        everything = {key: frozenset({value.hash}) for key, value in generated_values.items()}
        return _with_record(rendered, everything, explanation)
    schema.check(existing, where)
    text = existing.removeprefix("\ufeff").replace("\r\n", "\n")
    present, old = _values(text), _read_record(text)
    changes: dict[KeyPath, object] = {}
    record: Record = {}
    for key, value in generated_values.items():
        generated = old.get(key, frozenset())
        is_new = key not in present and not generated
        is_ours = key in always or (key in present and present[key].hash in generated)
        if is_new or is_ours:
            if key not in present or present[key].value != value.value:
                changes[present.get(key, value).path] = value.value
            record[key] = frozenset({value.hash})
        elif generated:
            record[key] = generated
    for key, generated in old.items():
        if key in generated_values:
            continue
        if key in present and (key in always or present[key].hash in generated):
            changes[present[key].path] = None
        else:
            record[key] = generated

    if changes:
        text = _with_values(text, changes, where)
    merged = _with_record(text, record, explanation)
    # The hashes are compared, as NaN is not equal to itself.
    if _hashes(merged) != _hashes(text):
        raise EdfError(
            f"a value of several lines holds a line that reads like our `{PREFIX} …`",
            where=where,
            hint="reword that line; the file is as it was",
        )
    return merged.replace("\n", "\r\n") if "\r\n" in existing else merged


def generated_keys(text: str) -> frozenset[str]:
    """Return the keys in the record of an EDF."""
    return frozenset(_read_record(text.replace("\r\n", "\n")))


def _is_untouched(existing: str) -> bool:
    """Return whether a file is empty, or extends a base's EDF and has no edits of a user."""
    text = existing.removeprefix("\ufeff").replace("\r\n", "\n")
    if not text.strip():
        return True
    record = _read_record(text)
    if "base_environment" not in record:
        return False
    comments = [line for line in text.splitlines() if "#" in line]
    try:
        values = _values(text)
    except tomllib.TOMLDecodeError:
        return False
    return (
        all(line.startswith(PREFIX) or line in EXPLANATION for line in comments)
        and values.keys() == record.keys()
        and all(value.hash in record[key] for key, value in values.items())
    )


def _values(text: str) -> dict[str, EdfValue]:
    leaves = toml_text.flat(tomllib.loads(text))
    return {".".join(path): EdfValue(path, value) for path, value in leaves}


def _hashes(text: str) -> dict[str, str]:
    return {key: value.hash for key, value in _values(text).items()}


def _with_values(text: str, values: Mapping[KeyPath, object], where: str) -> str:
    """Return the text with the values set, or removed where they are None."""
    from rc_tasks.util import toml_edit  # tomlkit: 24 ms

    changed = text
    for path, value in values.items():
        edited = toml_edit.with_value(changed, path, value)
        if edited is None:
            line = toml_text.line_of(text, path)
            raise EdfError(
                f"{'.'.join(path)} is generated and cannot be written: something stands in its way, or "
                "the tables are in an order that cannot be kept",
                where=where if line is None else f"{where}:{line}",
                hint="write annotations as plain dotted keys under one [annotations] table, or stop\n"
                "generating this key (settings or project.toml); the file is as it was",
            )
        changed = edited
    return changed


def _read_record(text: str) -> Record:
    record: Record = {}
    for line in _RECORD.findall(text):
        for pair in line.split():
            key, _, value_hash = pair.rpartition("=")
            record[unquote(key)] = record.get(unquote(key), frozenset()) | {value_hash}
    return record


def _with_record(text: str, record: Record, explanation: tuple[str, ...]) -> str:
    """Return the text with its record replaced, or with a new record at the head."""
    lines: list[str] = []
    for key, hashes in record.items():
        for value_hash in sorted(hashes):
            pair = f" {quote(key, safe='._-')}={value_hash}"
            if not lines or len(lines[-1]) + len(pair) > WIDTH:
                lines.append(PREFIX)
            lines[-1] += pair
    if old := _RECORD.search(text):
        block = "".join(f"{line}\n" for line in lines)
        return text[: old.start()] + block + _RECORD.sub("", text[old.start() :])
    return "".join(f"{line}\n" for line in (*explanation, *lines, "")) + text if lines else text
