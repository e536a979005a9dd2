"""env step: writes env.toml, the EDF beside the image, and keeps what people changed in it."""

from rc_tasks.errors import EdfError
from rc_tasks.model.edf import merge, schema
from rc_tasks.model.graph.graph import ImageNode
from rc_tasks.model.graph.project import EDF
from rc_tasks.state.checkout import TEMPLATE, Checkout
from rc_tasks.state.disk.files import write_atomically
from rc_tasks.state.edf.values import edf_inputs, edf_values
from rc_tasks.state.records.digests import text_digest
from rc_tasks.state.records.records import Facts, Step
from rc_tasks.steps.node import node as nodes
from rc_tasks.util.safe_read import read_text


def write_environment(checkout: Checkout, node: ImageNode) -> None:
    """Write or update a project's env.toml. Raise EdfError; then the old file stays."""
    name, start = node.project.name, nodes.begin()
    record = checkout.records.get(Step.PODMAN, name)
    if record is None or record.facts is None:
        raise EdfError(f"{name} was not built yet", hint=f"doit build:{name}")
    inputs = edf_inputs(checkout, node, record.facts)
    where = node.project.shown(EDF)
    existing, merged = texts(checkout, node, record.facts)
    if merged != existing:
        write_atomically(node.project.edf, merged)
        print(f"{where} written", flush=True)
    for note in schema.notes(merged, where):
        print(f"warning: {note}", flush=True)
    if text_digest(merged) != text_digest(read_text(node.project.edf)):
        raise EdfError(
            "reads back differently from what was written",
            where=where,
            hint="check free space and quota, then run the same command again",
        )
    inputs[EDF] = text_digest(merged)
    checkout.records.put(Step.ENV, name, nodes.record(start, node.project, inputs))


def texts(checkout: Checkout, node: ImageNode, facts: Facts) -> tuple[str | None, str]:
    """Return a project's env.toml as it is (None when missing), and as it has to be.

    Raise EdfError.
    """
    where = node.project.shown(EDF)
    values = edf_values(checkout, node, facts)
    rendered = schema.render(read_text(checkout.template), TEMPLATE, values)
    try:
        existing = read_text(node.project.edf)
    except FileNotFoundError:
        existing = None
    except UnicodeDecodeError as error:
        raise EdfError(
            f"is not UTF-8 text: byte {error.start} is invalid", where=where, hint="save it as UTF-8"
        ) from None
    merged = merge.merge(existing, rendered, where)
    schema.check(merged, where)
    return existing, merged
