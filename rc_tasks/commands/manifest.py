"""`doit manifest NAME`: contents of a published image, or the origin of an image.sqsh."""

import json
import re
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from rc_tasks.commands.cli.command import images, not_published
from rc_tasks.commands.cli.parser import add_flag, add_json, add_names, one_name
from rc_tasks.engine.session import Session, session
from rc_tasks.errors import RcError
from rc_tasks.model.manifest.manifest import Manifest, Origin, PackageKind, document, groups
from rc_tasks.state.published import manifests
from rc_tasks.state.published.manifests import Build
from rc_tasks.tools import squashfs
from rc_tasks.views import tables

_SHORT_ID = 12
_MOST_DIRECTORIES = 8
_MOST_UNREAD = 5


def arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.description = (
        "It shows the packages of dpkg, apk, rpm, conda and Python that the image had when it was"
        " published. For the path of an image.sqsh, it shows the commit, bases, builder and tools from"
        " /etc/rc in the image."
    )
    add_names(parser, "NAME|FILE.sqsh")
    add_json(parser)
    add_flag(parser, "--cyclonedx", help="print a CycloneDX bill of materials (JSON, version 1.6)")


def run(args: Namespace) -> int:
    """Show what is inside an image."""
    current = session()
    argument = one_name(args, "manifest NAME | FILE.sqsh")
    if argument.endswith(".sqsh") or ("/" in argument and not Path(argument).is_dir()):
        return _show_file(current, Path(argument), args)
    return _show(present(current, one_image(current, argument)), args)


def one_image(current: Session, argument: str) -> str:
    """Return the only image that an argument means. Raise RcError when it means several."""
    name, *others = images(current, [argument])
    if others:
        raise RcError(
            f"{argument} means {1 + len(others)} images",
            hint=f"choose one: {', '.join([name, *others])}",
        )
    if name in current.checkout.graph.broken:
        raise current.checkout.graph.broken[name]
    return name


def present(current: Session, name: str) -> Manifest:
    """Return the manifest of the published image. Raise RcError when there is none."""
    builds = manifests.builds(current.checkout, name)
    if builds and builds[0].present:
        return builds[0].manifest
    image_id = manifests.present_id(current.checkout, name)
    if not image_id:
        raise not_published(name)
    raise RcError(
        f"no manifest of {name} ({image_id[:_SHORT_ID]}) is kept: an older version published it",
        hint="the next build writes one; to squash the image again now:\n"
        f"doit forget enroot:{name} && doit build:{name}",
    )


def _show(manifest: Manifest, args: Namespace) -> int:
    if args.cyclonedx:
        from rc_tasks.views.cyclonedx import bill

        print(bill(manifest))
    elif args.json:
        json.dump(document(manifest), sys.stdout, indent=2)
        sys.stdout.write("\n")
    else:
        rows = [
            (package.name, package.version, package.kind, package.place)
            for package in manifest.contents.packages
        ]
        if rows:
            tables.table(("PACKAGE", "VERSION", "KIND", "WHERE"), rows)
            print()
        _summary(manifest)
    return 0


def _summary(manifest: Manifest) -> None:
    contents = manifest.contents
    _line("image", f"{manifest.name} ({manifest.image_id[:_SHORT_ID]}), {manifest.architecture}")
    _line("published", tables.when(manifest.published_at))
    _line(
        "size", f"{tables.size(manifest.size_bytes)}, unpacked {tables.size(manifest.image_size_bytes)}"
    )
    if contents.distribution.title:
        _line("system", contents.distribution.title)
    for key, text in _origin(manifest.origin):
        _line(key, text)
    for number, ((kind, place), packages) in enumerate(groups(contents.packages).items()):
        where = (
            ""
            if kind in (PackageKind.DPKG, PackageKind.APK, PackageKind.RPM) and place == "/"
            else f" in {place}"
        )
        _line("packages" if number == 0 else "", f"{len(packages)} {kind}{where}")
    if not contents.packages:
        _line("packages", "none were found")
    largest = sorted(contents.sizes_bytes.items(), key=lambda item: -item[1])
    for number, (path, size_bytes) in enumerate(largest[:_MOST_DIRECTORIES]):
        _line("directories" if number == 0 else "", f"{tables.size(size_bytes):>8}  {path}")
    for number, unread in enumerate(contents.unread[:_MOST_UNREAD]):
        _line("not read" if number == 0 else "", f"{unread.path}: {unread.why}")
    if len(contents.unread) > _MOST_UNREAD:
        _line("", f"and {len(contents.unread) - _MOST_UNREAD} more: --json shows them")


def _origin(origin: Origin | None) -> list[tuple[str, str]]:
    if origin is None:
        return []
    lines = [("built", f"{tables.when(origin.built_at)} by {origin.builder} on {origin.node}")]
    if origin.commit:
        lines.append(("commit", origin.commit + (" with changes" if origin.dirty else "")))
    for base, digest in origin.bases.items():
        lines.append(("base", f"{base} ({digest or 'digest not known'})"))
    lines += [("build arg", f"{key}={value}") for key, value in origin.build_args.items()]
    return lines


def _show_file(current: Session, path: Path, args: Namespace) -> int:
    origin = provenance(squashfs.read_text(path, "/etc/rc"))
    known = re.fullmatch(r"(\S+) \(([0-9a-f]{64})\)", next(iter(origin.get("image", ())), ""))
    if args.json:
        json.dump(origin, sys.stdout, indent=2)
        sys.stdout.write("\n")
        return 0
    kept = _kept(current, *known.groups()) if known is not None else None
    if args.cyclonedx:
        if kept is None:
            raise RcError(
                "no manifest of this image is kept in this checkout",
                where=path,
                hint="run this in the checkout that built it: doit manifest NAME --cyclonedx",
            )
        return _show(kept.manifest, args)
    if "image" not in origin:
        print('only labels are known: another tool made this file, or squash = "enroot"')
    for key, values in origin.items():
        for value in values:
            _line(key, value)
    if kept is not None:
        name, short = kept.manifest.name, kept.manifest.image_id[:_SHORT_ID]
        what = f"manifest {name}" if kept.present else f"diff {name} {short}"
        print(f"\nits packages: doit {what}")
    return 0


def _kept(current: Session, name: str, image_id: str) -> Build | None:
    # Anybody may have written the file and the name in it.
    if name not in current.checkout.graph.images:
        return None
    builds = manifests.builds(current.checkout, name)
    return next((build for build in builds if build.manifest.image_id == image_id), None)


def provenance(rc: str) -> dict[str, list[str]]:
    """Return the values of the comments at the beginning of an /etc/rc, by key.

    Keys of this program end in a colon there, labels do not.
    """
    origin: dict[str, list[str]] = {}
    for line in rc.splitlines():
        if not line.startswith("# "):
            break
        key, _, value = line[2:].partition(" ")
        origin.setdefault(key.removesuffix(":"), []).append(value)
    return origin


def _line(key: str, text: str) -> None:
    print(f"{tables.printable(key):11} {tables.printable(text)}".rstrip())
