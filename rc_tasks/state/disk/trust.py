"""Trust in file owners: files that untrusted users could have changed are refused."""

import functools
import grp
import os
import pwd
import shlex
import stat
import struct
from collections.abc import Callable

from msgspec import Struct

from rc_tasks.errors import RcError


class NotOfferedError(RcError):
    """The official checkout has no such image for a clone to adopt."""


class AbsentError(NotOfferedError):
    """There is no such image at all, or no official checkout on this host."""


class RefusedError(NotOfferedError):
    """A file of the official checkout is damaged, or another user could have changed it."""


class Trust:
    """Root, the caller, and the owners that the settings name."""

    def __init__(self, owners: tuple[str, ...]) -> None:
        """Trust `owners`: names of users, and of groups with an @ before them."""
        self._owners = owners

    def require(self, path: str, status: os.stat_result) -> None:
        """Raise RefusedError when somebody else owns the path or may write it."""
        if not self.owns(status.st_uid):
            owner = user(status.st_uid)
            raise _refused(
                "belongs to somebody whom images_owners does not name",
                path,
                status,
                f'if you trust {owner}: images_owners = ["{owner}"] in pyproject.toml',
            )
        if status.st_mode & stat.S_IWOTH:
            raise _refused("may be written by everybody", path, status, f"chmod o-w {shlex.quote(path)}")
        if status.st_mode & stat.S_IWGRP and not self.names(status.st_gid):
            name = group(status.st_gid)
            raise _refused(
                f"may be written by the group {name}",
                path,
                status,
                f"chmod g-w {shlex.quote(path)}\n"
                f'or, if you trust all its members: images_owners = ["@{name}"] in pyproject.toml',
            )
        if writer := listed_writers(path, status).untrusted(self.owns, self.names):
            shown, owner = writer
            raise _refused(
                f"may be written by {shown}, through an access control list",
                path,
                status,
                f"setfacl -b {shlex.quote(path)}\n"
                f'or, if you trust {shown}: images_owners = ["{owner}"] in pyproject.toml',
            )

    @functools.cached_property
    def _users(self) -> frozenset[int]:
        names = [name for name in self._owners if not name.startswith("@")]
        return frozenset({0, os.geteuid(), *(uid for uid in map(_uid, names) if uid is not None)})

    @functools.cached_property
    def _groups(self) -> frozenset[int]:
        names = [name[1:] for name in self._owners if name.startswith("@")]
        return frozenset(gid for gid in map(_gid, names) if gid is not None)

    def owns(self, uid: int) -> bool:
        """Return whether a user is one of them."""
        return uid in self._users or not self._groups.isdisjoint(groups_of(uid))

    def names(self, gid: int) -> bool:
        """Return whether the settings name a group."""
        return gid in self._groups


def _refused(what: str, path: str, status: os.stat_result, hint: str) -> RefusedError:
    owner_and_mode = f"owner {user(status.st_uid)}, mode {stat.S_IMODE(status.st_mode):04o}"
    return RefusedError(f"{what} ({owner_and_mode})", where=path, hint=hint)


# A user or group of another site is unknown here, and owns nothing here.
def _uid(name: str) -> int | None:
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        return None


def _gid(name: str) -> int | None:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None


@functools.cache
def groups_of(uid: int) -> frozenset[int]:
    """Return the groups of a user; none of one who is unknown here."""
    try:
        user = pwd.getpwuid(uid)
    except KeyError:
        return frozenset()
    return frozenset(os.getgrouplist(user.pw_name, user.pw_gid))


def user(uid: int) -> str:
    """Return the name of a user, or else the number."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def group(gid: int) -> str:
    """Return the name of a group, or else the number."""
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def is_private(gid: int, uid: int) -> bool:
    """Return whether a group is the one that hosts make for a user alone, with the user's name."""
    try:
        entry = grp.getgrgid(gid)
    except KeyError:
        return False
    return entry.gr_name == user(uid) and set(entry.gr_mem) <= {entry.gr_name}


# acl(5) in an attribute: a version, and for each entry a tag, permissions and an ID
# (linux/posix_acl_xattr.h).
_LIST = "system.posix_acl_access"
_VERSION_BYTES = 4
_ENTRY = struct.Struct("<HHI")
_WRITE = 2
_OF_USER, _OF_GROUP = 0x02, 0x08


class ListedWriters(Struct, frozen=True):
    """User and group IDs that an access control list lets write, besides the owner and the group."""

    users: frozenset[int] = frozenset()
    groups: frozenset[int] = frozenset()

    def untrusted(
        self, trusts_user: Callable[[int], bool], trusts_group: Callable[[int], bool]
    ) -> tuple[str, str] | None:
        """Return one who is not trusted, as a message and as `images_owners` name them."""
        for uid in sorted(self.users):
            if not trusts_user(uid):
                return user(uid), user(uid)
        for gid in sorted(self.groups):
            if not trusts_group(gid):
                return f"the group {group(gid)}", f"@{group(gid)}"
        return None


def listed_writers(path: str | os.PathLike[str], status: os.stat_result) -> ListedWriters:
    """Return who may write a path by its access control list alone; `status` is that of the path."""
    # The group's bits of a mode are then the most that the list gives to anybody.
    if not status.st_mode & stat.S_IWGRP:
        return ListedWriters()
    try:
        entries = os.getxattr(path, _LIST)[_VERSION_BYTES:]
    except OSError:
        return ListedWriters()  # there is none, or the file system has none
    whole = entries[: len(entries) // _ENTRY.size * _ENTRY.size]
    writers = [(tag, number) for tag, rights, number in _ENTRY.iter_unpack(whole) if rights & _WRITE]
    return ListedWriters(
        frozenset(number for tag, number in writers if tag == _OF_USER),
        frozenset(number for tag, number in writers if tag == _OF_GROUP),
    )
