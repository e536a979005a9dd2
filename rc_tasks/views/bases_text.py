"""Text for registry bases and their pins."""

from datetime import UTC, datetime

from rc_tasks.state.bases.registry_bases import BaseKind, RegistryBase

_SHORT = 12


def words(base: RegistryBase) -> tuple[str, str]:
    """Return the name of a base, and the digest that builds take or the reason for none."""
    pin = _short(base.digest) if base.digest else str(base.kind)
    if base.kind is BaseKind.IN_DOCKERFILE:
        pin += f" ({base.kind})"
    return base.reference.partition("@")[0], pin


def _short(digest: str) -> str:
    return digest.removeprefix("sha256:")[:_SHORT]


def age(iso: str, now: datetime | None = None) -> str:
    """Return the age of a time for people; empty for an empty time."""
    if not iso:
        return ""
    age_s = max(0.0, ((now or datetime.now(UTC)) - datetime.fromisoformat(iso)).total_seconds())
    for unit, length_s in (("days", 86400), ("h", 3600)):
        if age_s >= 2 * length_s:
            return f"{age_s / length_s:.0f} {unit}"
    return f"{age_s / 60:.0f} min"
