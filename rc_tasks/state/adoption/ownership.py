"""The generated state is believed and written to: nobody else may be able to plant anything in it."""

import os
import shlex
import stat
from collections.abc import Iterator
from pathlib import Path

from rc_tasks.errors import RcError
from rc_tasks.state.checkout import GENERATED, Checkout
from rc_tasks.state.disk.trust import Trust, group, groups_of, is_private, user


def require_own(checkout: Checkout) -> None:
    """Raise RcError when others could have planted something in `.rc`, or when it leads elsewhere.

    Looked at are its directories, and no single file. Trusted are root, the caller, the owner of the
    checkout, those who may write the checkout by its group, and whom `images_owners` names. A user's
    private group is that user.
    """
    trust, top = Trust(checkout.settings.images_owners), os.stat(checkout.root)
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
                    hint=f"remove the link (rm {shlex.quote(shown)}); what it led to is not touched",
                )
        elif stat.S_ISDIR(status.st_mode):
            _require_directory(shown, status, top, trust)


def _require_directory(shown: str, status: os.stat_result, top: os.stat_result, trust: Trust) -> None:
    """Nobody but those may own it or write there; `top` is the status of the checkout's directory."""
    by_group = bool(top.st_mode & stat.S_IWGRP)
    in_group = by_group and top.st_gid in groups_of(status.st_uid)
    if not (trust.owns(status.st_uid) or status.st_uid == top.st_uid or in_group):
        name = user(status.st_uid)
        raise RcError(
            f"belongs to {name}, who could have planted anything there",
            where=shown,
            hint=f"move it away: it is made again as far as it is needed\n"
            f'or, if you trust {name}: images_owners = ["{name}"] in pyproject.toml',
        )
    mode = f"mode {stat.S_IMODE(status.st_mode):04o}"
    look = f"ls -lR {GENERATED} shows what is not yours; then chmod -R"
    if status.st_mode & stat.S_IWOTH:
        raise RcError(
            f"may be written by everybody ({mode})", where=shown, hint=f"{look} o-w {GENERATED}"
        )
    if status.st_mode & stat.S_IWGRP and not (
        (by_group and top.st_gid == status.st_gid)
        or trust.names(status.st_gid)
        or is_private(status.st_gid, status.st_uid)
    ):
        name = group(status.st_gid)
        raise RcError(
            f"may be written by the group {name} ({mode})",
            where=shown,
            hint=f"{look} g-w {GENERATED}\n"
            f'or, if you trust all its members: images_owners = ["@{name}"] in pyproject.toml',
        )


def _directories(generated: Path) -> Iterator[Path]:
    yield generated
    for parent in (generated, generated / "store"):
        try:
            yield from (parent / name for name in sorted(os.listdir(parent)))
        except OSError:
            # Not there yet; what cannot be listed is told where it is used.
            continue
