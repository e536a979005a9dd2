"""SquashFS 4.0: read images, merge layers, and write the result without compressing file data again.

    layers = [read_layer(path) for path in paths]       # the lowest layer first
    write(merge(layers), target, made_at=0)

The format is described by Linux (`fs/squashfs/squashfs_fs.h`, `Documentation/filesystems/squashfs.rst`)
and by squashfs-tools (`squashfs_fs.h`, `mksquashfs.c`, `xattr.c`). docs/reference/squashfs.md explains
what is read and written.
"""
