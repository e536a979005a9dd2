"""`doit diff NAME [OLD] [NEW]`: what is different between two builds of an image, in words."""

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from doit.exceptions import InvalidCommand

from rc_tasks.commands import show
from rc_tasks.commands.arguments import options_first
from rc_tasks.commands.base import CheckoutCommand
from rc_tasks.commands.list import OPT_JSON
from rc_tasks.commands.manifest import one_image, present
from rc_tasks.engine.session import Session
from rc_tasks.errors import RcError
from rc_tasks.model.changes import Changes, How, PackageChange, Values, compared
from rc_tasks.model.manifest import Kind, Manifest
from rc_tasks.state import manifests
from rc_tasks.state.manifests import Build

_SHORT_ID = 12
_SHORTEST_ID = 4
_MOST_FILES = 10
_AGO = re.compile(r"[-~](\d+)")
_DATE = re.compile(r"\d{4}-\d\d(-\d\d)?([ T]\d\d(:\d\d)?)?")
# A cell of rich's for a line of a diff, by its first character.
_COLOURS = {"+": "green", "-": "red", "@": "cyan"}


class Diff(CheckoutCommand):
    """Compares two builds of an image."""

    doc_purpose = "tell what a rebuild changed: packages, size, bases, Dockerfile"
    doc_usage = "TASK [OLD] [NEW]"
    doc_description = (
        "OLD and NEW name builds by the beginning of their image ID, by a date such as 2026-11-22, or by"
        " their place: -1 is the one before the present one. Without them the present build is compared"
        " with the one before it; with OLD alone, with that. `doit diff NAME --list` shows the builds."
    )
    cmd_options = (
        OPT_JSON,
        {
            "name": "list",
            "long": "list",
            "type": bool,
            "default": False,
            "help": "show the builds that can be compared",
        },
    )

    def parse_execute(self, in_args: list[str]) -> Any:
        """Options may also follow the names, and -1 is none."""
        words = [_AGO.sub(r"~\1", word) if _AGO.fullmatch(word) else word for word in in_args]
        return super().parse_execute(options_first(self.cmdparser, words))

    def show(self, opened: Session, options: dict[str, Any], names: list[str]) -> int:
        if not 1 <= len(names) <= 3:
            what = "which image?" if not names else "an image and at most two builds are wanted"
            raise InvalidCommand(f"{what}\n  next: doit diff NAME [OLD] [NEW]")
        name = one_image(opened, names[0])
        builds = manifests.builds(opened.checkout, name)
        if options["list"]:
            _list(builds)
            return 0
        new = chosen(builds, names[2]) if len(names) == 3 else present(opened, name)
        old = chosen(builds, names[1]) if len(names) > 1 else _previous(builds, name)
        changes = compared(old, new)
        if options["json"]:
            json.dump(_json(changes), sys.stdout, indent=2)
            sys.stdout.write("\n")
        else:
            _print(lines(changes))
        return 0


def chosen(builds: tuple[Build, ...], argument: str) -> Manifest:
    """The build that an argument means. Raises RcError with the builds that there are."""
    ago = _AGO.fullmatch(argument)
    if ago is not None:
        number = int(ago[1]) if len(ago[1]) < 9 else len(builds)
        # Without a present one among them, the first is the newest of the past.
        at = number if builds and builds[0].present else number - 1
        found = [builds[at]] if 0 <= at < len(builds) else []
    elif _DATE.fullmatch(argument):
        wanted = argument.replace("T", " ")
        found = [each for each in builds if show.when(each.manifest.published_at).startswith(wanted)]
        # Of several on that day the last one stood at its end.
        found = sorted(found, key=lambda each: each.manifest.published_at)[-1:]
    else:
        prefix = argument.removeprefix("sha256:").lower()
        found = [each for each in builds if each.manifest.image_id.startswith(prefix)]
        found = found if len(prefix) >= _SHORTEST_ID else []
    if len(found) == 1:
        return found[0].manifest
    what = "means several builds" if found else "is none of the builds that are kept"
    raise RcError(
        f"{argument.replace('~', '-')!r} {what}",
        quote=tuple(" ".join(row).rstrip() for row in _columns(builds)),
        hint="choose one by the beginning of its image ID, its date, or its place such as -1",
    )


def lines(changes: Changes) -> Iterator[str]:
    """What is different, for people; lines of the Dockerfile's diff stand behind two blanks."""
    old, new = changes.old, changes.new
    yield f"{new.name}: {between(changes)}"
    if old.image_id == new.image_id:
        yield "it is the same image"
        return
    yield from differences(changes)


def between(changes: Changes) -> str:
    """Which builds are compared."""
    return f"{_build(changes.old)} → {_build(changes.new)}"


def differences(changes: Changes, most: int | None = None) -> Iterator[str]:
    """What is different; at most so many packages, and lines of the Dockerfile."""
    old, new = changes.old, changes.new
    told = list(_recipe(changes, most))
    if not changes.from_origins:
        yield "recipe      not known: one of them was built before Dockerfiles were kept"
    elif not told:
        yield "recipe      as before"
    yield from told
    yield f"size        image.sqsh {_sizes(old.size_bytes, new.size_bytes)}"
    yield f"            unpacked {_sizes(old.image_size_bytes, new.image_size_bytes)}"
    grown = [f"{path} {_grown(size)}" for path, size in changes.directories_bytes.items()]
    if grown:
        yield f"            {', '.join(grown[:5])}{', …' if len(grown) > 5 else ''}"
    counts = Counter(change.how for change in changes.packages)
    summary = ", ".join(f"{counts[how]} {how}" for how in How if counts[how])
    yield f"packages    {summary or 'the same'}"
    yield from _packages(changes.packages, most)


def _recipe(changes: Changes, most: int | None) -> Iterator[str]:
    for base, values in changes.bases.items():
        yield f"base        {base}: {_values(values, 'no base')}"
    if changes.target is not None:
        yield f"target      {_values(changes.target, 'the last stage')}"
    for key, values in changes.build_args.items():
        yield f"build arg   {key}: {_values(values, 'unset')}"
    files = [f"{path} {how}" for path, how in changes.files.items()]
    for number, text in enumerate(files[:_MOST_FILES]):
        yield f"{'context' if number == 0 else '':12}{text}"
    if len(files) > _MOST_FILES:
        yield f"{'':12}and {len(files) - _MOST_FILES} more files"
    if changes.dockerfile:
        yield "Dockerfile"
        for line in changes.dockerfile[:most]:
            yield f"  {line}"
        yield from _more(changes.dockerfile, most)


def _packages(changes: tuple[PackageChange, ...], most: int | None) -> Iterator[str]:
    by_place: dict[tuple[Kind, str], list[PackageChange]] = {}
    for change in changes:
        by_place.setdefault((change.package.kind, change.package.place), []).append(change)
    room = max(1, most // max(1, len(by_place))) if most is not None else None
    for (kind, place), found in list(by_place.items())[:most]:
        yield ""
        yield f"{kind}{'' if place == '/' else f' in {place}'}"
        ways = list(How)
        shown = sorted(found, key=lambda change: ways.index(change.how))[:room]
        width = max(len(change.package.name) for change in shown)
        for change in shown:
            yield f"  {change.how:10}  {change.package.name.ljust(width)}  {_versions(change)}"
        yield from _more(found, room)
    yield from _more(list(by_place), most, " places")


def _more(all_of_them: Sequence[object], most: int | None, what: str = "") -> Iterator[str]:
    if most is not None and len(all_of_them) > most:
        yield f"  … and {len(all_of_them) - most} more{what}"


def _versions(change: PackageChange) -> str:
    old, new = change.old, change.new
    if old is None or new is None:
        return change.package.version
    if old.version != new.version:
        return f"{old.version} → {new.version}"
    keys = ("architecture", "build", "channel")
    more = [Values(getattr(old, key), getattr(new, key)) for key in keys]
    told = ", ".join(_values(each, "nothing") for each in more if each.old != each.new)
    return f"{new.version} ({told})"


def _build(manifest: Manifest) -> str:
    return f"{manifest.image_id[:_SHORT_ID]} of {show.when(manifest.published_at)}"


def _values(values: Values, nothing: str) -> str:
    return f"{_short(values.old) or nothing} → {_short(values.new) or nothing}"


def _short(value: str) -> str:
    digest = value.removeprefix("sha256:")
    if re.fullmatch(r"[0-9a-f]{64}", digest):
        return value[: len(value) - len(digest) + _SHORT_ID]
    return value


def _sizes(old: int, new: int) -> str:
    if old == new:
        return f"{show.size(new)}, as before"
    return f"{show.size(old)} → {show.size(new)} ({_grown(new - old)})"


def _grown(size_bytes: int) -> str:
    return f"{'+' if size_bytes >= 0 else '-'}{show.size(abs(size_bytes))}"


def _previous(builds: tuple[Build, ...], name: str) -> Manifest:
    others = [each for each in builds if not each.present]
    if not others:
        raise RcError(
            f"no other build of {name} is kept to compare with",
            hint="the next rebuild can be compared with the present build",
        )
    return others[0].manifest


def _list(builds: tuple[Build, ...]) -> None:
    if not builds:
        print("no build is kept: the next one is")
        return
    rows = list(_columns(builds))
    show.table(("", "IMAGE", "PUBLISHED", "SIZE", "COMMIT", ""), rows, right=frozenset({"SIZE"}))


def _columns(builds: tuple[Build, ...]) -> Iterator[tuple[str, ...]]:
    number = 0 if builds and builds[0].present else 1
    for build in builds:
        origin = build.manifest.origin
        commit = origin.commit[:_SHORT_ID] if origin is not None else ""
        yield (
            f"-{number}" if number else "now",
            build.manifest.image_id[:_SHORT_ID],
            show.when(build.manifest.published_at),
            show.size(build.manifest.size_bytes),
            commit + (" with changes" if commit and origin is not None and origin.dirty else ""),
            f"in {build.adopted_from}" if build.adopted_from else "",
        )
        number += 1


def _json(changes: Changes) -> dict[str, Any]:
    def told(manifest: Manifest) -> dict[str, Any]:
        return {
            "image_id": manifest.image_id,
            "published_at": manifest.published_at,
            "size_bytes": manifest.size_bytes,
            "image_size_bytes": manifest.image_size_bytes,
        }

    found = asdict(changes)
    return {**found, "name": changes.new.name, "old": told(changes.old), "new": told(changes.new)}


def _print(found: Iterator[str]) -> None:
    if not sys.stdout.isatty():
        for line in found:
            print(show.printable(line))
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    in_dockerfile = False
    for line in found:
        in_dockerfile = line == "Dockerfile" or (in_dockerfile and line.startswith("  "))
        style = _COLOURS.get(line[2:3], "") if in_dockerfile else ""
        console.print(Text(show.printable(line), style=style), soft_wrap=True)
