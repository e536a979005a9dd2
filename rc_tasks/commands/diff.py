"""`doit diff NAME [OLD] [NEW]`: differences between two builds of an image."""

import json
import re
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from typing import Any

from msgspec import to_builtins

from rc_tasks.commands.cli.command import not_published
from rc_tasks.commands.cli.parser import UsageError, add_flag, add_json, add_names
from rc_tasks.commands.manifest import one_image, present
from rc_tasks.engine.session import session
from rc_tasks.errors import RcError
from rc_tasks.model.manifest.diff import Changes, compared
from rc_tasks.model.manifest.manifest import Manifest
from rc_tasks.state.published import manifests
from rc_tasks.state.published.manifests import Build
from rc_tasks.views import diff_text, tables
from rc_tasks.views.diff_text import _SHORT_ID

_SHORTEST_ID = 4
_AGO = re.compile(r"-(\d+)")
_DATE = re.compile(r"\d{4}-\d\d(-\d\d)?([ T]\d\d(:\d\d)?)?")
# The rich style of a line of a diff, by its first character.
_COLOURS = {"+": "green", "-": "red", "@": "cyan"}


def arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.description = (
        "OLD and NEW are builds: the beginning of an image ID, a date such as 2026-11-22, or a number"
        " such as -1, the build before the present one. NEW is the present build when it is not given,"
        " and OLD the build before it. `doit diff NAME --list` shows the builds."
    )
    add_names(parser, "NAME [OLD] [NEW]", help="an image, such as reasoning:2025.2, and its builds")
    add_json(parser)
    add_flag(parser, "--list", help="show the builds that can be compared")


def run(args: Namespace) -> int:
    """Compare two builds of an image."""
    current = session()
    names: list[str] = args.names
    if not 1 <= len(names) <= 3:
        what = f"expected an image and at most two builds, not {len(names)} names"
        raise UsageError(what if names else "NAME is missing", hint="doit diff NAME [OLD] [NEW]")
    name = one_image(current, names[0])
    builds = manifests.builds(current.checkout, name)
    if args.list:
        if not builds and not manifests.present_id(current.checkout, name):
            raise not_published(name)
        _list(builds)
        return 0
    new = chosen(builds, names[2]) if len(names) == 3 else present(current, name)
    old = chosen(builds, names[1]) if len(names) > 1 else _previous(builds, name)
    changes = compared(old, new)
    if args.json:
        json.dump(_json(changes), sys.stdout, indent=2)
        sys.stdout.write("\n")
    else:
        _print(diff_text.lines(changes))
    return 0


def chosen(builds: tuple[Build, ...], argument: str) -> Manifest:
    """Return the build that an argument means. Raise RcError, which lists the builds."""
    ago = _AGO.fullmatch(argument)
    if ago is not None:
        number = int(ago[1]) if len(ago[1]) < 9 else len(builds)
        # Without a present build, the first one is the newest earlier build, -1.
        at = number if builds and builds[0].present else number - 1
        matches = [builds[at]] if 0 <= at < len(builds) else []
    elif _DATE.fullmatch(argument):
        date = argument.replace("T", " ")
        matches = [
            build for build in builds if tables.when(build.manifest.published_at).startswith(date)
        ]
        # A date means the last build of that day.
        matches = sorted(matches, key=lambda build: build.manifest.published_at)[-1:]
    else:
        prefix = argument.removeprefix("sha256:").lower()
        matches = [build for build in builds if build.manifest.image_id.startswith(prefix)]
        matches = matches if len(prefix) >= _SHORTEST_ID else []
    if len(matches) == 1:
        return matches[0].manifest
    what = "matches several builds" if matches else "matches no build that is kept"
    raise RcError(
        f"{argument!r} {what}",
        quote=tuple(" ".join(row).rstrip() for row in _columns(builds)),
        hint="choose one by the beginning of its image ID, its date, or its number such as -1",
    )


def _previous(builds: tuple[Build, ...], name: str) -> Manifest:
    previous = next((build for build in builds if not build.present), None)
    if previous is None:
        raise RcError(
            f"no other build of {name} is kept to compare with",
            hint="change and rebuild the image, then run the command again",
        )
    return previous.manifest


def _list(builds: tuple[Build, ...]) -> None:
    if not builds:
        print("no build is kept yet; the next build will be")
        return
    rows = list(_columns(builds))
    tables.table(("N", "IMAGE", "PUBLISHED", "SIZE", "COMMIT", "NOTE"), rows, right=frozenset({"SIZE"}))


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
    def summary(manifest: Manifest) -> dict[str, Any]:
        return {
            "image_id": manifest.image_id,
            "published_at": manifest.published_at,
            "size_bytes": manifest.size_bytes,
            "image_size_bytes": manifest.image_size_bytes,
        }

    return {
        **to_builtins(changes),
        "name": changes.new.name,
        "old": summary(changes.old),
        "new": summary(changes.new),
    }


def _print(lines: Iterator[str]) -> None:
    if not sys.stdout.isatty():
        for line in lines:
            print(tables.printable(line))
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    in_dockerfile = False
    for line in lines:
        in_dockerfile = line == "Dockerfile" or (in_dockerfile and line.startswith("  "))
        style = _COLOURS.get(line[2:3], "") if in_dockerfile else ""
        console.print(Text(tables.printable(line), style=style), soft_wrap=True)
