"""Inputs of an env.toml: the settings, the template, and the facts of the built image."""

from rc_tasks.errors import EdfError
from rc_tasks.model.config.settings import Entrypoint
from rc_tasks.model.edf.entrypoint import Behaviour
from rc_tasks.model.edf.schema import EdfValues
from rc_tasks.model.graph.graph import ImageNode
from rc_tasks.model.graph.project import ARTIFACT, EDF
from rc_tasks.model.machine import VARIABLE, image_name, without_machine
from rc_tasks.state.checkout import TEMPLATE, Checkout
from rc_tasks.state.records.digests import text_digest
from rc_tasks.state.records.records import Facts
from rc_tasks.util import toml_text

# The part of the EDF for all machines.
COMMON = "common"


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


def common_edf(checkout: Checkout, node: ImageNode) -> str:
    """Return the values of the EDF for all machines: it extends that of the machine it is read on.

    `${NAME:-VALUE}` in any key is replaced when a job starts (cscs-docs, EDF reference). Without the
    variable it is the first machine of `arch`.
    """
    name = without_machine(node.project.path, node.project.machine)
    image = image_name(name, f"${{{VARIABLE}:-{node.options.arch[0]}}}")
    return f"base_environment = {toml_text.dump(f'{checkout.images_root}/{image}/{EDF}')}\n"


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
    inputs = {
        "template": template,
        "values": text_digest(repr(edf_values(checkout, node, facts))),
    }
    if node.project.machine:
        inputs[COMMON] = text_digest(common_edf(checkout, node))
    return inputs
