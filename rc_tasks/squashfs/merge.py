"""Merging of layers into the tree that overlayfs would show.

All forms of deletions are read: character devices 0:0 and attributes of overlayfs (Linux'
Documentation/filesystems/overlayfs.rst), files `.wh.NAME` and `.wh..wh..opq` (layer.md of the OCI image
specification, and fuse-overlayfs). The result has none of them.
"""

from collections.abc import Sequence

from rc_tasks.squashfs.edit import NO_EDIT, OVERLAY_PREFIXES, Edit, edited
from rc_tasks.squashfs.options import merged_form
from rc_tasks.squashfs.superblock import SquashfsError
from rc_tasks.squashfs.tree import (
    NO_XATTRS,
    CharacterDevice,
    Directory,
    File,
    Layer,
    LayerFile,
    Node,
    Trail,
    Tree,
    shown,
)

DELETED = b".wh."
_OPAQUE = b".wh..wh..opq"
# Of aufs, as OPAQUE is; other names that begin so have had a meaning for aufs alone.
AUFS = b".wh..wh."
# What these say is not in the layer itself, and a merge without it would be wrong.
_ELSEWHERE = (b"redirect", b"metacopy", b"override_stat")
_PREFIXES = (*OVERLAY_PREFIXES, b"user.containers.", b"security.fuseoverlayfs.")


def merge(layers: Sequence[Layer], edit: Edit = NO_EDIT) -> Tree:
    """Merge layers, the lowest first. The layers do not change.

    A directory of an upper layer gives its mode, owner, times and attributes; all other kinds of nodes
    replace what is below them, and so do opaque directories. Names of one inode of a layer stay links.
    Raise MixedLayersError for different compressors or block sizes, SquashfsError for what a layer does
    not hold itself (redirects and metacopies of overlayfs).
    """
    tree = stack(layers)
    return Tree(tree.form, edited(tree.root, edit))


def stack(layers: Sequence[Layer]) -> Tree:
    """Merge layers as `merge` does, and change nothing, for a caller that changes the tree and edits it.

    Its directories are new ones; other nodes are those of the layers.
    """
    if not layers:
        raise SquashfsError("there are no layers to merge")
    form = merged_form(layers)
    root = Directory(0o755, 0, 0, 0, NO_XATTRS)
    for layer in layers:
        root = _stacked(root, layer)
    return Tree(form, root)


def _stacked(below: Directory, layer: Layer) -> Directory:
    """Return a layer on the directories of `below`, which are changed."""
    root = _over(below, layer.root)
    _require_whole(layer.root, layer.source, None)
    stack: list[tuple[dict[bytes, Node], Directory, Trail]] = [(root.children, layer.root, None)]
    while stack:
        children, above, trail = stack.pop()
        for name, node in _kept(children, above):
            if node.xattrs:
                _require_whole(node, layer.source, (trail, name))
            if isinstance(node, Directory):
                merged = children[name] = _over(children.get(name), node)
                stack.append((merged.children, node, (trail, name)))
            else:
                children[name] = node
    return root


def _over(below: Node | None, above: Directory) -> Directory:
    """Return `above` with the content of what is below it."""
    children = below.children if isinstance(below, Directory) and not is_opaque(above) else {}
    return Directory(above.mode, above.uid, above.gid, above.mtime_s, above.xattrs, children)


def _kept(children: dict[bytes, Node], above: Directory) -> list[tuple[bytes, Node]]:
    """Remove what a directory of a layer deletes below; return the entries that are no deletions."""
    kept = []
    # Deletions hold for lower layers: `.wh.x` beside `x` deletes the one below.
    for name, node in above.children.items():
        if name.startswith(DELETED):
            if not name.startswith(AUFS):
                children.pop(name.removeprefix(DELETED), None)
        elif is_whiteout(node):
            children.pop(name, None)
        else:
            kept.append((name, node))
    return kept


def is_whiteout(node: Node) -> bool:
    """Return whether a node deletes the one of its name below; names `.wh.NAME` are not seen here."""
    if isinstance(node, CharacterDevice):
        return node.device == 0
    # overlayfs on overlayfs, which cannot hold such devices, has empty files with an attribute.
    return (
        bool(node.xattrs)
        and isinstance(node, File)
        and node.size_bytes == 0
        and any(prefix + b"whiteout" in node.xattrs for prefix in OVERLAY_PREFIXES)
    )


def is_opaque(directory: Directory) -> bool:
    """Return whether a directory hides all that is below it."""
    # Its other value, x, announces such empty files.
    return _OPAQUE in directory.children or any(
        directory.xattrs.get(prefix + b"opaque") == b"y" for prefix in OVERLAY_PREFIXES
    )


def _require_whole(node: Node, source: LayerFile, trail: Trail) -> None:
    for prefix in _PREFIXES:
        for name in _ELSEWHERE:
            if prefix + name in node.xattrs:
                raise SquashfsError(
                    f"{shown(trail)} has the attribute {(prefix + name).decode()}: its content, place or"
                    " mode is not in this layer itself",
                    where=source.path,
                    hint="make the layer from the tar of `podman save`, or with metacopy=off and\n"
                    "redirect_dir=off in the mount options of podman's storage.conf",
                )
