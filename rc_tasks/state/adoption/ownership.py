"""Check that only trusted users can write to `.rc`, whose content is trusted and written to."""

import os
import shlex
import stat
from collections.abc import Iterator
from pathlib import Path

from rc_tasks.errors import RcError
from rc_tasks.state.checkout import GENERATED, Checkout
from rc_tasks.state.disk.trust import (
    ListedWriters,
    Trust,
    group,
    groups_of,
    is_private,
    listed_writers,
    user,
)


def require_own(checkout: Checkout) -> None:
    """Raise RcError when others could change `.rc`, or when it links out of the checkout.

    The check covers directories, not single files. It trusts root, the caller, the owner of the
    checkout, members of its group if the group may write, those whom its access control list lets
    write, and the users in `images_owners`. A user's private group counts as that user.
    """
    trust, top = Trust(checkout.settings.images_owners), os.stat(checkout.root)
    members = listed_writers(checkout.root, top)
    for path in _directories(checkout.root / GENERATED):
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            continue
        shown = checkout.shown(path)
        if stat.S_ISLNK(status.st_mode):
            target = os.path.realpath(path)
            if not Path(target).is_relative_to(checkout.root):
                raise RcError(
                    f"leads out of the checkout, to {target}",
                    where=shown,
                    hint=f"remove the link (rm {shlex.quote(shown)}); its target is not touched",
                )
        elif stat.S_ISDIR(status.st_mode):
            _require_directory(path, shown, status, top, members, trust)


def _require_directory(
    path: Path,
    shown: str,
    status: os.stat_result,
    top: os.stat_result,
    members: ListedWriters,
    trust: Trust,
) -> None:
    """Raise RcError when others own the directory or may write to it.

    `top` is the checkout's status, and `members` are those that its access control list lets write.
    """
    by_group = bool(top.st_mode & stat.S_IWGRP)

    def trusts_user(uid: int) -> bool:
        groups = groups_of(uid)
        in_group = (by_group and top.st_gid in groups) or not members.groups.isdisjoint(groups)
        return trust.owns(uid) or uid == top.st_uid or in_group or uid in members.users

    def trusts_group(gid: int) -> bool:
        return (by_group and top.st_gid == gid) or trust.names(gid) or gid in members.groups

    if not trusts_user(status.st_uid):
        name = user(status.st_uid)
        raise RcError(
            f"belongs to {name}, who could have changed it",
            where=shown,
            hint=f"move it away: what is needed is made again\n"
            f'or, if you trust {name}: images_owners = ["{name}"] in pyproject.toml',
        )
    mode = f"mode {stat.S_IMODE(status.st_mode):04o}"
    look = f"ls -lR {GENERATED} shows what is not yours; then chmod -R"
    if status.st_mode & stat.S_IWOTH:
        raise RcError(
            f"may be written by everybody ({mode})", where=shown, hint=f"{look} o-w {GENERATED}"
        )
    if status.st_mode & stat.S_IWGRP and not (
        trusts_group(status.st_gid) or is_private(status.st_gid, status.st_uid)
    ):
        name = group(status.st_gid)
        raise RcError(
            f"may be written by the group {name} ({mode})",
            where=shown,
            hint=f"{look} g-w {GENERATED}\n"
            f'or, if you trust all its members: images_owners = ["@{name}"] in pyproject.toml',
        )
    if writer := listed_writers(path, status).untrusted(trusts_user, trusts_group):
        whom, owner = writer
        raise RcError(
            f"may be written by {whom}, through an access control list",
            where=shown,
            hint=f"getfacl -R {GENERATED} shows the lists; setfacl -R -b {GENERATED} removes them\n"
            f'or, if you trust {whom}: images_owners = ["{owner}"] in pyproject.toml',
        )


def _directories(generated: Path) -> Iterator[Path]:
    yield generated
    for parent in (generated, generated / "store"):
        try:
            yield from (parent / name for name in sorted(os.listdir(parent)))
        except OSError:
            # It may not exist yet. Its users report a directory that cannot be listed.
            continue
