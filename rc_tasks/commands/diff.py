"""`doit diff NAME [OLD] [NEW]`: what is different between two builds of an image, in words."""

import json
import re
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rc_tasks.commands.cli.parser import UsageError, add_flag, add_json, add_names
from rc_tasks.commands.manifest import one_image, present
from rc_tasks.engine.session import session
from rc_tasks.errors import RcError
from rc_tasks.model.manifest.diff import Changes, compared
from rc_tasks.model.manifest.manifest import Manifest
from rc_tasks.state.published import manifests
from rc_tasks.state.published.manifests import Build
from rc_tasks.views import tables
from rc_tasks.views.diff_text import _SHORT_ID, lines

_SHORTEST_ID = 4
_AGO = re.compile(r"-(\d+)")
_DATE = re.compile(r"\d{4}-\d\d(-\d\d)?([ T]\d\d(:\d\d)?)?")
# A cell of rich's for a line of a diff, by its first character.
_COLOURS = {"+": "green", "-": "red", "@": "cyan"}


def arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.description = (
        "OLD and NEW name builds by the beginning of their image ID, by a date such as 2026-11-22, or by"
        " their place: -1 is the one before the present one. Without them the present build is compared"
        " with the one before it; with OLD alone, with that. `doit diff NAME --list` shows the builds."
    )
    add_names(parser, "NAME [OLD] [NEW]")
    add_json(parser)
    add_flag(parser, "--list", help="show the builds that can be compared")


def run(args: Namespace) -> int:
    """Compare two builds of an image."""
    opened = session()
    names: list[str] = args.names
    if not 1 <= len(names) <= 3:
        what = "which image?" if not names else "an image and at most two builds are wanted"
        raise UsageError(f"{what}", hint="doit diff NAME [OLD] [NEW]")
    name = one_image(opened, names[0])
    builds = manifests.builds(opened.checkout, name)
    if args.list:
        _list(builds)
        return 0
    new = chosen(builds, names[2]) if len(names) == 3 else present(opened, name)
    old = chosen(builds, names[1]) if len(names) > 1 else _previous(builds, name)
    changes = compared(old, new)
    if args.json:
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
        found = [each for each in builds if tables.when(each.manifest.published_at).startswith(wanted)]
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
        f"{argument!r} {what}",
        quote=tuple(" ".join(row).rstrip() for row in _columns(builds)),
        hint="choose one by the beginning of its image ID, its date, or its place such as -1",
    )


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
    tables.table(("", "IMAGE", "PUBLISHED", "SIZE", "COMMIT", ""), rows, right=frozenset({"SIZE"}))


def _columns(builds: tuple[Build, ...]) -> Iterator[tuple[str, ...]]:
    number = 0 if builds and builds[0].present else 1
    for build in builds:
        origin = build.manifest.origin
        commit = origin.commit[:_SHORT_ID] if origin is not None else ""
        yield (
            f"-{number}" if number else "now",
            build.manifest.image_id[:_SHORT_ID],
            tables.when(build.manifest.published_at),
            tables.size(build.manifest.size_bytes),
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
            print(tables.printable(line))
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    in_dockerfile = False
    for line in found:
        in_dockerfile = line == "Dockerfile" or (in_dockerfile and line.startswith("  "))
        style = _COLOURS.get(line[2:3], "") if in_dockerfile else ""
        console.print(Text(tables.printable(line), style=style), soft_wrap=True)
