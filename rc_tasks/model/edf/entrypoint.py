"""Behaviour of an image's ENTRYPOINT, and the note on `edf.entrypoint = "auto"`."""

from collections.abc import Sequence
from enum import StrEnum

from rc_tasks.util.text import listed

# A note names this many images and counts the others.
_MOST_NAMED = 5


class Behaviour(StrEnum):
    """What an ENTRYPOINT did when the podman step started it once.

    Pyxis gives an ENTRYPOINT a command of its own and waits for that process to stop
    (pyxis_slurmstepd.c). So Pyxis, and CSCS's Container Engine as well, can start only an ENTRYPOINT
    that becomes its command. A failure here proves nothing: the ENTRYPOINT may start its command on
    another node, with a GPU or a licence.
    """

    NOT_TRIED = ""
    BECOMES = "becomes"
    CHILD = "child"
    ENDED = "ended"
    UNKNOWN = "unknown"

    @classmethod
    def _missing_(cls, _: object) -> "Behaviour":
        # A later version may know more.
        return cls.NOT_TRIED

    @property
    def words(self) -> str:
        """The rest of a sentence that begins with `the image's ENTRYPOINT`."""
        return _WORDS[self]


_WORDS = {
    Behaviour.NOT_TRIED: "was not tried",
    Behaviour.BECOMES: "becomes the command that it is given",
    Behaviour.CHILD: "starts the command that it is given as a child",
    Behaviour.ENDED: "did not start the command that it was given",
    Behaviour.UNKNOWN: "could not be started",
}


def note(behaviour: Behaviour, names: Sequence[str]) -> str:
    """Return the note on `edf.entrypoint = "auto"` for the images `names`, at least one of them."""
    its = "its" if len(names) == 1 else "their"
    means = f'{listed(names, _MOST_NAMED)}: edf.entrypoint = "auto" means'
    if behaviour is Behaviour.BECOMES:
        return (
            f"{means} true here: jobs begin with {its} ENTRYPOINT;\n"
            f"`entrypoint = false` under [edf] in {its} project.toml turns that off"
        )
    entry = f"{its} ENTRYPOINT {behaviour.words}"
    needs = 'Pyxis and the Container Engine start only one that becomes its command, as by `exec "$@"`.'
    if behaviour is Behaviour.CHILD:
        return (
            f"{means} false here,\nas {entry}.\n{needs}\n"
            f"`entrypoint = true` under [edf] in {its} project.toml is for all other launchers"
        )
    # A runtime that could not start the ENTRYPOINT would fail again; the log has podman's message.
    tries = (
        f"`doit log {names[0]} podman` shows why"
        if behaviour is Behaviour.UNKNOWN
        else f"`doit local {names[0]} -- true` tries it"
    )
    return (
        f"{means} true here,\nthough {entry} where it was built.\n{needs}\n"
        f"{tries}; `entrypoint = false` under [edf] in {its}\nproject.toml turns it off"
    )
