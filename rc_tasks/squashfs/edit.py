"""Edits of a tree's metadata: dropped paths, modes, owners and extended attributes."""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from os import fsdecode, fsencode

from msgspec import Struct
from msgspec.structs import replace

from rc_tasks.squashfs.superblock import SquashfsError
from rc_tasks.squashfs.tree import NO_XATTRS, Directory, Kind, Node, Trail, Xattrs, shown

# Attributes in which overlayfs and fuse-overlayfs keep their own records.
OVERLAY_PREFIXES = (b"trusted.overlay.", b"user.overlay.", b"user.fuseoverlayfs.")


class IdRange(Struct, frozen=True):
    """`count` IDs from `layer` on become those from `image` on, as in a line of /proc/PID/uid_map."""

    image: int
    layer: int
    count: int


class Edit(Struct, frozen=True):
    """What to change in a merged tree; by default nothing.

    `drop`: shell patterns of paths from the root, such as `dev/*`; `*` does not match `/`, but a leading
    dot. `owner_reads`: `chmod -R u+rX`. `owner_writes_depth`: `chmod u+w` for directories that are less
    deep than this; the root has depth 0. `uids` and `gids`: ranges of which each owner must be in one;
    empty keeps the owners. `all_root`: 0 owns everything. `xattrs`: False drops them all; overlay's own
    are always dropped.
    """

    drop: tuple[str, ...] = ()
    owner_reads: bool = False
    owner_writes_depth: int = 0
    uids: tuple[IdRange, ...] = ()
    gids: tuple[IdRange, ...] = ()
    all_root: bool = False
    xattrs: bool = True


NO_EDIT = Edit()


class _Ids(dict[int, int]):
    """New IDs by old ones, each searched for once."""

    def __init__(self, ranges: tuple[IdRange, ...], all_root: bool) -> None:
        super().__init__()
        self._ranges = ranges
        self._all_root = all_root

    def __missing__(self, number: int) -> int:
        if self._all_root:
            new = 0
        elif not self._ranges:
            new = number
        else:
            new = next(
                (
                    one.image + number - one.layer
                    for one in self._ranges
                    if 0 <= number - one.layer < one.count
                ),
                -1,
            )
        self[number] = new
        return new


class _Editor:
    def __init__(self, edit: Edit) -> None:
        self._edit = edit
        self._uids = _Ids(edit.uids, edit.all_root)
        self._gids = _Ids(edit.gids, edit.all_root)
        self._xattrs: dict[int, Xattrs] = {id(NO_XATTRS): NO_XATTRS}
        # Names of one inode must get one new inode.
        self._changed: dict[Node, Node] = {}

    def node(self, node: Node, depth: int, trail: Trail) -> Node:
        """Return the node as it should be, which is the same one when nothing changes."""
        uid, gid = self._uids[node.uid], self._gids[node.gid]
        if uid < 0 or gid < 0:
            owner = f"user {node.uid}" if uid < 0 else f"group {node.gid}"
            raise SquashfsError(
                f"{shown(trail)} belongs to {owner}, which is in no range of owners",
                hint="name the ranges of /etc/subuid and /etc/subgid with which the layers were made",
            )
        mode = node.mode
        edit = self._edit
        kind = node.kind
        if edit.owner_reads and kind is not Kind.SYMLINK:
            mode |= 0o500 if kind is Kind.DIRECTORY or mode & 0o111 else 0o400
        if kind is Kind.DIRECTORY and depth < edit.owner_writes_depth:
            mode |= 0o200
        xattrs = node.xattrs
        if xattrs:
            xattrs = self._clean(xattrs)
        if mode == node.mode and uid == node.uid and gid == node.gid and xattrs is node.xattrs:
            return node
        changed = self._changed.get(node)
        if changed is None:
            changed = self._changed[node] = replace(node, mode=mode, uid=uid, gid=gid, xattrs=xattrs)
        return changed

    def _clean(self, xattrs: Xattrs) -> Xattrs:
        clean = self._xattrs.get(id(xattrs))
        if clean is None:
            kept = {
                name: value for name, value in xattrs.items() if not name.startswith(OVERLAY_PREFIXES)
            }
            clean = NO_XATTRS if not kept or not self._edit.xattrs else kept
            clean = xattrs if clean == xattrs else clean
            self._xattrs[id(xattrs)] = clean
        return clean


def edited(root: Directory, edit: Edit) -> Directory:
    """Apply an edit to a tree, whose directories change. Raise SquashfsError for unknown owners."""
    for pattern in edit.drop:
        _drop(root, pattern)
    editor = _Editor(edit)
    new_root = editor.node(root, 0, None)
    stack: list[tuple[dict[bytes, Node], int, Trail]] = [(root.children, 1, None)]
    while stack:
        children, depth, trail = stack.pop()
        for name, node in children.items():
            new = editor.node(node, depth, (trail, name))
            if new is not node:
                # Replacing the value of a key does not disturb the loop.
                children[name] = new
            if isinstance(new, Directory):
                stack.append((new.children, depth + 1, (trail, name)))
    return new_root if isinstance(new_root, Directory) else root


def _drop(root: Directory, pattern: str) -> None:
    *parents, last = pattern.strip("/").split("/")
    directories = [root]
    for part in parents:
        directories = [
            node
            for directory in directories
            for name in _matching(directory, part)
            if isinstance(node := directory.children[name], Directory)
        ]
    for directory in directories:
        for name in _matching(directory, last):
            del directory.children[name]


def _matching(directory: Directory, pattern: str) -> Iterable[bytes]:
    if not any(character in pattern for character in "*?["):
        name = fsencode(pattern)
        return [name] if name in directory.children else []
    return [name for name in directory.children if fnmatchcase(fsdecode(name), pattern)]
