"""What an image's ENTRYPOINT does with the command that it is given, and what an EDF says of it."""

from collections.abc import Sequence
from enum import StrEnum

from rc_tasks.model.readable import listed

# Of more images than these, only the number is told.
_MOST_NAMED = 5


class Behaviour(StrEnum):
    """What an ENTRYPOINT did when the podman step started it once.

    Pyxis gives an ENTRYPOINT a command of its own and waits for that process to stop
    (pyxis_slurmstepd.c), so it starts only one that becomes its command. CSCS's Container Engine does
    as Pyxis does.
    """

    NOT_TRIED = ""
    BECOMES = "becomes its command"
    STARTS = "starts its command as a child"
    IGNORES = "ends without its command"
    UNKNOWN = "could not be tried"

    @property
    def excluded(self) -> bool:
        """Whether a container that begins with it cannot be started by Pyxis."""
        return self in {Behaviour.STARTS, Behaviour.IGNORES}


def note(behaviour: Behaviour, names: Sequence[str]) -> str:
    """What is told once of `edf.entrypoint = "auto"` in the images `names`, at least one of them."""
    who = listed(names, _MOST_NAMED)
    its = "its" if len(names) == 1 else "their"
    says = "says" if len(names) == 1 else "say"
    if behaviour is Behaviour.BECOMES:
        return (
            f"{who}: {its} env.toml {says} entrypoint = true, so a job begins with {its} ENTRYPOINT;\n"
            f"`entrypoint = false` under [edf] in {its} project.toml turns that off"
        )
    if behaviour is Behaviour.UNKNOWN:
        return (
            f"{who}: {its} env.toml {says} entrypoint = true, but {its} ENTRYPOINT could not be tried\n"
            "where it was built, and Pyxis and the Container Engine start only one that ends in\n"
            f'`exec "$@"`: try `doit local {names[0]} -- true`, or write `entrypoint = false` under\n'
            f"[edf] in {its} project.toml"
        )
    return (
        f"{who}: {its} env.toml {says} entrypoint = false, as {its} ENTRYPOINT {behaviour},\n"
        "and Pyxis and the Container Engine start only one that becomes its command. End its script\n"
        f'with `exec "$@"`, or write `entrypoint = true` under [edf] in {its} project.toml if neither\n'
        "of them starts the image"
    )
