"""Whose overlayfs shows what a layer deletes: the values of `readers`."""

from enum import StrEnum


class Readers(StrEnum):
    """Whose overlayfs shows what a layer deletes; merging reads every form.

    `users` are ordinary users, who mount overlays with the option userxattr. A layer for nobody has
    deletions of fuse-overlayfs or of tar archives, or some for root and some for users.
    """

    EVERYBODY = "everybody"
    ROOT = "root"
    USERS = "users"
    NOBODY = "nobody"
