"""The neutral form of a layer: character devices 0:0 are its only deletions, which every overlay reads.

The attribute of an opaque directory has one name for root, another for users, and fuse-overlayfs has
forms of its own. So a layer with these is right for one of them only.
"""

from rc_tasks.squashfs.edit import NO_EDIT, edited
from rc_tasks.squashfs.merge import AUFS, DELETED, is_opaque, is_whiteout
from rc_tasks.squashfs.tree import NO_XATTRS, CharacterDevice, Directory, Layer, Node, Tree, walk


def is_neutral(layer: Layer) -> bool:
    """Return whether a layer has no other deletions than character devices 0:0."""
    return not is_opaque(layer.root) and not any(
        _is_private(path.rpartition(b"/")[2], node) for path, node in walk(layer.root)
    )


def neutral(layer: Layer, below: Directory) -> Tree:
    """Return a layer in the neutral form; `below` is the root of the merged layers below it.

    An opaque directory gets a device for each name that it hides. overlayfs' own attributes are dropped.
    Neither the layer nor `below` changes.
    """
    root = _copy(layer.root)
    # Directories of the copy, of the layer, and of what is below, and whether all of that is hidden.
    stack: list[tuple[Directory, Directory, Directory | None, bool]] = [(root, layer.root, below, False)]
    while stack:
        copied, original, lower, hidden = stack.pop()
        hidden = hidden or is_opaque(original)
        lower_children = lower.children if lower is not None else {}
        deleted = set(lower_children) if hidden else set()
        for name, node in original.children.items():
            if name.startswith(DELETED):
                deleted |= set() if name.startswith(AUFS) else {name.removeprefix(DELETED)}
            elif is_whiteout(node):
                deleted.add(name)
        for name, node in original.children.items():
            if name.startswith(DELETED) or is_whiteout(node):
                continue
            if isinstance(node, Directory):
                child = copied.children[name] = _copy(node)
                other = lower_children.get(name)
                other = other if isinstance(other, Directory) else None
                stack.append((child, node, other, name in deleted))
            else:
                copied.children[name] = node
        for name in deleted & lower_children.keys():
            copied.children.setdefault(name, CharacterDevice(0, 0, 0, 0, NO_XATTRS, 0))
    return Tree(layer.source.form, edited(root, NO_EDIT))


def _is_private(name: bytes, node: Node) -> bool:
    if isinstance(node, Directory):
        return name.startswith(DELETED) or is_opaque(node)
    return name.startswith(DELETED) or (is_whiteout(node) and not isinstance(node, CharacterDevice))


def _copy(directory: Directory) -> Directory:
    return Directory(
        directory.mode, directory.uid, directory.gid, directory.mtime_s, directory.xattrs, {}
    )
