"""Inputs of an env.toml: the settings, the template, and the facts of the built image."""

from rc_tasks.errors import EdfError
from rc_tasks.model.config.settings import Entrypoint
from rc_tasks.model.edf.entrypoint import Behaviour
from rc_tasks.model.edf.schema import EdfValues
from rc_tasks.model.graph.graph import ImageNode
from rc_tasks.model.graph.project import ARTIFACT
from rc_tasks.state.checkout import TEMPLATE, Checkout
from rc_tasks.state.records.digests import text_digest
from rc_tasks.state.records.records import Facts


def edf_values(checkout: Checkout, node: ImageNode, facts: Facts) -> EdfValues:
    """Return the values of the env.toml template."""
    edf = node.options.edf.apply(checkout.settings.edf)
    entrypoint = {
        Entrypoint.TRUE: True,
        Entrypoint.FALSE: False,
        # ENTRYPOINTs of vendors' images may not suit every start. Those set here are run, except those
        # that the Container Engine cannot start.
        Entrypoint.AUTO: facts.sets_entrypoint and facts.entrypoint is not Behaviour.CHILD,
    }[edf.entrypoint]
    return EdfValues(
        name=node.project.name,
        image=f"{checkout.images_root}/{node.project.path}/{ARTIFACT}",
        mounts=edf.mounts,
        workdir=edf.workdir or facts.workdir or "/",
        entrypoint=entrypoint,
        writable=edf.writable,
        annotations=edf.annotations,
        env=edf.env,
    )


def entrypoint_is_news(checkout: Checkout, name: str, facts: Facts, earlier: Facts | None) -> bool:
    """Return whether to report what a build with `facts` found out about the image's ENTRYPOINT.

    `earlier` are the previous facts. An ENTRYPOINT that every launcher can start is reported only once.
    """
    behaviour = facts.entrypoint
    if behaviour is Behaviour.NOT_TRIED or (behaviour is Behaviour.BECOMES and earlier is not None):
        return False
    edf = checkout.graph.images[name].options.edf.apply(checkout.settings.edf)
    return edf.entrypoint is Entrypoint.AUTO and (earlier is None or earlier.entrypoint is not behaviour)


def edf_inputs(checkout: Checkout, node: ImageNode, facts: Facts) -> dict[str, str]:
    """Return the inputs of the env step, by part. Raise EdfError when the template cannot be read."""
    try:
        template = checkout.output_digests.content(f"{checkout.root}/{TEMPLATE}")
    except OSError as error:
        raise EdfError(
            f"the template of every env.toml cannot be read: {error.strerror}",
            where=TEMPLATE,
            hint=f"`git checkout -- {TEMPLATE}` brings it back",
        ) from None
    return {
        "template": template,
        "values": text_digest(repr(edf_values(checkout, node, facts))),
    }
