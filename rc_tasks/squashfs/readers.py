"""Who can mount a layer as it is: root and users have different attributes for deletions."""

from rc_tasks.squashfs.merge import DELETED, is_opaque, is_whiteout
from rc_tasks.squashfs.reader_kinds import Readers
from rc_tasks.squashfs.tree import CharacterDevice, Directory, Layer, Node, walk

_ROOT = b"trusted.overlay."
_USERS = b"user.overlay."


def readers(layer: Layer) -> Readers:
    """Return who can mount a layer; a character device 0:0 is a deletion for everybody."""
    forms = {_form(b"", layer.root)}
    forms |= {_form(path.rpartition(b"/")[2], node) for path, node in walk(layer.root)}
    forms.discard(Readers.EVERYBODY)
    if len(forms) > 1:
        return Readers.NOBODY
    return forms.pop() if forms else Readers.EVERYBODY


def _form(name: bytes, node: Node) -> Readers:
    """Return who sees a deletion of this node; everybody sees what deletes nothing."""
    if name.startswith(DELETED):
        return Readers.NOBODY
    opaque = isinstance(node, Directory) and is_opaque(node)
    if isinstance(node, CharacterDevice) or not (opaque or is_whiteout(node)):
        return Readers.EVERYBODY
    says = {key for key in node.xattrs if key.endswith((b"opaque", b"whiteout"))}
    for prefix, who in ((_ROOT, Readers.ROOT), (_USERS, Readers.USERS)):
        if says and all(key.startswith(prefix) for key in says):
            return who
    return Readers.NOBODY
