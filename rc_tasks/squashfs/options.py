"""What layers must share to be merged, and the compressor's options of the merged image.

Source: struct xz_comp_opts and lz4_comp_opts in squashfs-tools' xz_wrapper.h and lz4_wrapper.h.
"""

import struct
from collections.abc import Sequence
from functools import reduce
from operator import and_, or_

from rc_tasks.squashfs.superblock import Compressor, Flag, SquashfsError
from rc_tasks.squashfs.tree import Form, Layer

# Two words: xz's dictionary in bytes and its filters; lz4's version and its flags.
_TWO_WORDS = struct.Struct("<II")
# What is true of the merged image only if it is true of all layers.
_OF_ALL = (
    Flag.PLAIN_INODES
    | Flag.PLAIN_DATA
    | Flag.PLAIN_FRAGMENTS
    | Flag.NO_FRAGMENTS
    | Flag.ALWAYS_FRAGMENTS
    | Flag.DUPLICATES_REMOVED
    | Flag.PLAIN_XATTRS
    | Flag.PLAIN_IDS
)


class MixedLayersError(SquashfsError):
    """Layers have different compressors or block sizes, so that no one image can hold their data."""


def merged_form(layers: Sequence[Layer]) -> Form:
    """Return what the merged image has in common with its layers. Raise MixedLayersError."""
    forms = [layer.source.form for layer in layers]
    if len({(form.compressor, form.block_size_bytes) for form in forms}) > 1:
        raise MixedLayersError(
            "these layers have different compressors or block sizes, so they cannot be merged",
            quote=tuple(
                f"{layer.source.path}: {form.compressor}, blocks of {form.block_size_bytes} bytes"
                for layer, form in zip(layers, forms, strict=True)
            ),
            hint="squash them again with the same -comp and -b",
        )
    flags = reduce(and_, (form.flags for form in forms)) & _OF_ALL
    return Form(forms[0].compressor, forms[0].block_size_bytes, _options(forms), flags)


def _options(forms: Sequence[Form]) -> bytes:
    options = {form.options for form in forms}
    if len(options) == 1:
        return options.pop()
    # Linux reads those of two compressors alone: it needs xz's largest dictionary, which without options
    # is as large as a block, and lz4's version, which all have.
    stated = [_TWO_WORDS.unpack(block) for block in options if len(block) == _TWO_WORDS.size]
    match forms[0].compressor:
        case Compressor.XZ if len(stated) == len(options):
            first = max(dictionary for dictionary, _ in stated)
        case Compressor.LZ4 if len(stated) == len(options):
            first = stated[0][0]
        case _:
            return b""
    return _TWO_WORDS.pack(first, reduce(or_, (second for _, second in stated)))
