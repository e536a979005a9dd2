"""`doit manifest NAME`: what is inside a published image; of a file image.sqsh, where it comes from."""

import json
import re
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from rc_tasks.commands.cli.command import images
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
        "Packages of dpkg, apk, rpm, conda and Python, as they were found when the image was published."
        " For the path of an image.sqsh: its commit, bases, builder and tools, read from its /etc/rc."
    )
    add_names(parser, "NAME|FILE.sqsh")
    add_json(parser)
    add_flag(parser, "--cyclonedx", help="print a CycloneDX bill of materials (JSON, version 1.6)")


def run(args: Namespace) -> int:
    """Show what is inside an image."""
    opened = session()
    argument = one_name(args, "manifest TASK | PATH.sqsh")
    if argument.endswith(".sqsh") or "/" in argument:
        return _show_file(opened, Path(argument), args)
    return _show(present(opened, one_image(opened, argument)), args)


def one_image(opened: Session, argument: str) -> str:
    """The only image that an argument means; raises RcError when it means several."""
    found = images(opened, [argument])
    if len(found) > 1:
        raise RcError(f"{argument} means {len(found)} images", hint=f"choose one: {', '.join(found)}")
    if found[0] in opened.checkout.graph.broken:
        raise opened.checkout.graph.broken[found[0]]
    return found[0]


def present(opened: Session, name: str) -> Manifest:
    """The manifest of the published image. Raises RcError."""
    found = manifests.builds(opened.checkout, name)
    if found and found[0].present:
        return found[0].manifest
    image_id = manifests.present_id(opened.checkout, name)
    if not image_id:
        raise RcError(f"{name} was not published yet", hint=f"doit build:{name}")
    raise RcError(
        f"no manifest of {name} ({image_id[:_SHORT_ID]}) is kept: it is older than manifests are",
        hint="the next build makes one; to squash the image again now:\n"
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
    for number, ((kind, place), found) in enumerate(groups(contents.packages).items()):
        where = (
            ""
            if kind in (PackageKind.DPKG, PackageKind.APK, PackageKind.RPM) and place == "/"
            else f" in {place}"
        )
        _line("packages" if number == 0 else "", f"{len(found)} {kind}{where}")
    if not contents.packages:
        _line("packages", "none were found")
    largest = sorted(contents.sizes_bytes.items(), key=lambda each: -each[1])
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


def _show_file(opened: Session, path: Path, args: Namespace) -> int:
    told = provenance(squashfs.read_text(path, "/etc/rc"))
    known = re.fullmatch(r"(\S+) \(([0-9a-f]{64})\)", next(iter(told.get("image", ())), ""))
    if args.json:
        json.dump(told, sys.stdout, indent=2)
        sys.stdout.write("\n")
        return 0
    if args.cyclonedx:
        found = _kept(opened, *known.groups()) if known is not None else None
        if found is None:
            raise RcError(
                "no manifest of this image is kept in this checkout",
                where=path,
                hint="ask in the checkout in which it was built: doit manifest NAME --cyclonedx",
            )
        return _show(found.manifest, args)
    if "image" not in told:
        print('not published by this tool, or with squash = "enroot": labels are all that is known')
    for key, values in told.items():
        for value in values:
            _line(key, value)
    kept = _kept(opened, *known.groups()) if known is not None else None
    if kept is not None:
        name, short = kept.manifest.name, kept.manifest.image_id[:_SHORT_ID]
        what = f"manifest {name}" if kept.present else f"diff {name} {short}"
        print(f"\nits packages: doit {what}")
    return 0


def _kept(opened: Session, name: str, image_id: str) -> Build | None:
    # The file may be anybody's, and so the name in it.
    if name not in opened.checkout.graph.images:
        return None
    found = manifests.builds(opened.checkout, name)
    return next((each for each in found if each.manifest.image_id == image_id), None)


def provenance(rc: str) -> dict[str, list[str]]:
    """What the comments at the beginning of an /etc/rc say: ours end in a colon, labels do not."""
    told: dict[str, list[str]] = {}
    for line in rc.splitlines():
        if not line.startswith("# "):
            break
        key, _, value = line[2:].partition(" ")
        told.setdefault(key.removesuffix(":"), []).append(value)
    return told


def _line(key: str, text: str) -> None:
    print(f"{tables.printable(key):11} {tables.printable(text)}".rstrip())
