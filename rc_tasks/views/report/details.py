"""What the report's program shows of an image on demand: numbers for its charts, and lines of text.

500 images have most lines in common, so each has only the numbers of its lines.
"""

import shlex
from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import pairwise

from rc_tasks.state.bases.registry_bases import RegistryBase
from rc_tasks.state.records.records import Step
from rc_tasks.views import bases_text, diff_text, tables
from rc_tasks.views.report.overview import ImageOverview, ImageRun, Overview

_MOST = 12
_DIRECTORIES = 4
_BASES = 8
_LONGEST_LINE = 200
_SHORT_ID = 12
# What is left of a size in bytes: more than a chart can show.
_DIGITS = 4


def data(shown: Overview, images: Sequence[ImageOverview]) -> dict[str, object]:
    """A JSON object; `images` are in the order of the table."""
    lines: dict[str, int] = {}

    def numbers(texts: Iterator[str] | Sequence[str]) -> list[int]:
        return [lines.setdefault(text, len(lines)) for text in texts]

    def told(image: ImageOverview) -> dict[str, object]:
        found = {
            "runs": _runs(image.built),
            "edf": numbers(image.edf_text.split("\n") if image.edf_text else ()),
            "facts": [numbers(map(_line, fact)) for fact in facts(image, shown)],
            "changed": numbers(map(_line, changed(image))),
        }
        return {key: value for key, value in found.items() if value}

    told_images = [told(image) for image in images]
    return {"root": str(shown.root), "images": told_images, "lines": list(lines)}


def facts(image: ImageOverview, shown: Overview) -> Iterator[tuple[str, str]]:
    """What there is to say of an image beside its row: what it is, and in which words."""
    inside = image.inside
    if image.instead_of:
        newest = inside.changes.old if inside and inside.changes else None
        known = newest is not None and newest.image_id == image.instead_of
        of = f" of {tables.when(newest.published_at)}" if newest and known else ""
        yield "Rolled back", f"from the build {image.instead_of[:_SHORT_ID]}{of}"
    if inside is not None:
        if inside.distribution:
            yield "System", inside.distribution
        counts = ", ".join(f"{count} {kind}" for kind, count in inside.packages.items())
        yield "Packages", counts or "none were found"
        largest = ", ".join(
            f"{path} {tables.size(size_bytes)}" for path, size_bytes in inside.sizes_bytes[:_DIRECTORIES]
        )
        if largest:
            yield "Largest", largest
    for test in image.smoke:
        how = f"{tables.duration(test.duration_s)}, {test.launcher}"
        yield "Smoke test", f"{shlex.join(test.argv)} passed ({how})"
    found = [base for base in shown.bases if image.name in (*base.images, *base.above)]
    for base in found[:_BASES]:
        name, pin = bases_text.words(base)
        yield "Registry base", ", ".join(filter(None, (f"{name}: {pin}", pinned(base, shown.made_at))))
    if len(found) > _BASES:
        yield "Registry base", f"and {len(found) - _BASES} more"


def pinned(base: RegistryBase, now: datetime) -> str:
    """When a base was pinned, and how long ago that is; empty where it is not known."""
    if base.pin is None or not base.pin.pinned_at:
        return ""
    return f"{base.pin.pinned_at[:10]}, {bases_text.age(base.pin.pinned_at, now)} ago"


def changed(image: ImageOverview) -> Iterator[str]:
    """What is different from the build before: which two they are, and a line for each difference."""
    if image.inside is not None and image.inside.changes is not None:
        yield diff_text.between(image.inside.changes)
        yield from diff_text.differences(image.inside.changes, _MOST)


def _line(text: str) -> str:
    shown = tables.printable(text)
    return shown if len(shown) <= _LONGEST_LINE else f"{shown[:_LONGEST_LINE]}…"


def _runs(built: Sequence[ImageRun]) -> list[object]:
    """Columns: minutes between the runs as our own clock shows them, the first since 1970; seconds of
    podman and enroot; sizes, and the bytes that they are counted in; which runs failed."""
    if not built:
        return []
    minutes = [_minute(each.began) for each in built]
    sizes = [each.size_bytes for each in built]
    unit = 10 ** max(0, len(str(max((abs(size) for size in sizes if size), default=0))) - _DIGITS)
    return [
        [minutes[0], *(now - before for before, now in pairwise(minutes))],
        *(
            [_rounded(dict(each.durations_s).get(step)) for each in built]
            for step in (Step.PODMAN, Step.ENROOT)
        ),
        [round(size / unit) if size is not None else None for size in sizes],
        unit,
        [number for number, each in enumerate(built) if each.failed],
    ]


def _minute(time: datetime) -> int:
    local = time.astimezone()
    offset = local.utcoffset()
    return round((local.timestamp() + (offset.total_seconds() if offset else 0)) / 60)


def _rounded(duration_s: float | None) -> float | None:
    if duration_s is None:
        return None
    return round(duration_s, 1) if duration_s < 10 else round(duration_s)
