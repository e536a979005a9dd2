"""Data of the report that its script shows on demand: numbers for charts, and lines of text.

500 images have most lines in common, so each image has only the indices of its lines.
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
# Sizes are rounded to this many digits, more than a chart can show.
_DIGITS = 4


def data(overview: Overview, images: Sequence[ImageOverview]) -> dict[str, object]:
    """Return the data as a JSON object; `images` are in the order of the table."""
    lines: dict[str, int] = {}

    def numbers(texts: Iterator[str] | Sequence[str]) -> list[int]:
        return [lines.setdefault(text, len(lines)) for text in texts]

    def details_of(image: ImageOverview) -> dict[str, object]:
        details = {
            "runs": _runs(image.built),
            "edf_path": image.edf,
            "edf": numbers(image.edf_text.split("\n") if image.edf_text else ()),
            "facts": [numbers(map(_line, fact)) for fact in facts(image, overview)],
            "changed": numbers(map(_line, changed(image))),
        }
        return {key: value for key, value in details.items() if value}

    image_details = [details_of(image) for image in images]
    return {"root": str(overview.root), "images": image_details, "lines": list(lines)}


def facts(image: ImageOverview, overview: Overview) -> Iterator[tuple[str, str]]:
    """Yield facts on an image that its row does not show, each with a heading."""
    summary = image.manifest_summary
    if image.builder:
        yield "Built", f"by {image.builder} on {image.node}" if image.node else f"by {image.builder}"
    yield from image.recipe
    if image.instead_of:
        newest = summary.changes.old if summary and summary.changes else None
        known = newest is not None and newest.image_id == image.instead_of
        of = f" of {tables.when(newest.published_at)}" if newest and known else ""
        yield "Rolled back", f"from the build {image.instead_of[:_SHORT_ID]}{of}"
    if summary is not None:
        if summary.distribution:
            yield "System", summary.distribution
        counts = ", ".join(f"{count} {kind}" for kind, count in summary.packages.items())
        yield "Packages", counts or "none were found"
        largest = ", ".join(
            f"{path} {tables.size(size_bytes)}"
            for path, size_bytes in summary.sizes_bytes[:_DIRECTORIES]
        )
        if largest:
            yield "Largest", largest
    for test in image.smoke:
        how = f"{tables.duration(test.duration_s)}, {test.launcher}"
        yield "Smoke test", f"{shlex.join(test.argv)} passed ({how})"
    bases = [base for base in overview.bases if image.name in (*base.images, *base.dependents)]
    for base in bases[:_BASES]:
        name, pin = bases_text.words(base)
        yield (
            "Registry base",
            ", ".join(filter(None, (f"{name}: {pin}", pinned(base, overview.made_at)))),
        )
    if len(bases) > _BASES:
        yield "Registry base", f"and {len(bases) - _BASES} more"


def pinned(base: RegistryBase, now: datetime) -> str:
    """Return the date of a pin and its age; empty where it is unknown."""
    if base.pin is None or not base.pin.pinned_at:
        return ""
    return f"{base.pin.pinned_at[:10]}, {bases_text.age(base.pin.pinned_at, now)} ago"


def changed(image: ImageOverview) -> Iterator[str]:
    """Yield the names of the last two builds, and a line for each difference."""
    if image.manifest_summary is not None and image.manifest_summary.changes is not None:
        yield diff_text.between(image.manifest_summary.changes)
        yield from diff_text.differences(image.manifest_summary.changes, _MOST)


def _line(text: str) -> str:
    line = tables.printable(text)
    return line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]}…"


def _runs(built: Sequence[ImageRun]) -> list[object]:
    """Return columns: start times, seconds of podman and of enroot, sizes, their unit, failed runs.

    Start times are minutes in local time: the first since 1970, the others since the run before. Sizes
    are in units of the given number of bytes. Failed runs are indices.
    """
    if not built:
        return []
    minutes = [_minute(run.began) for run in built]
    sizes = [run.size_bytes for run in built]
    unit = 10 ** max(0, len(str(max((abs(size) for size in sizes if size), default=0))) - _DIGITS)
    return [
        [minutes[0], *(now - before for before, now in pairwise(minutes))],
        *(
            [_rounded(dict(run.durations_s).get(step)) for run in built]
            for step in (Step.PODMAN, Step.ENROOT)
        ),
        [round(size / unit) if size is not None else None for size in sizes],
        unit,
        [number for number, run in enumerate(built) if run.failed],
    ]


def _minute(time: datetime) -> int:
    local = time.astimezone()
    offset = local.utcoffset()
    return round((local.timestamp() + (offset.total_seconds() if offset else 0)) / 60)


def _rounded(duration_s: float | None) -> float | None:
    if duration_s is None:
        return None
    return round(duration_s, 1) if duration_s < 10 else round(duration_s)
