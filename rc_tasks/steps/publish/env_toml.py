"""env step: writes env.toml, the EDF beside the image, and keeps what people changed in it."""

from pathlib import Path

from rc_tasks.errors import EdfError
from rc_tasks.model.edf import merge, schema
from rc_tasks.model.graph.graph import ImageNode
from rc_tasks.model.graph.project import EDF
from rc_tasks.state.checkout import TEMPLATE, Checkout
from rc_tasks.state.disk.files import write_atomically
from rc_tasks.state.edf.values import common_edf, edf_inputs, edf_values
from rc_tasks.state.records.digests import text_digest
from rc_tasks.state.records.records import Facts, Step
from rc_tasks.steps.node import node as nodes
from rc_tasks.util.safe_read import read_text

_COMMON = (
    "# It extends the EDF of the image for the machine that IMAGE_MACHINE names, as `uname -m` does;",
    "# without that variable, of the first one in `arch`. What you add here counts on all of them.",
)


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
    if node.project.machine:
        _write_common(checkout, node)
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


def _write_common(checkout: Checkout, node: ImageNode) -> None:
    """Write or update the EDF for all machines; what people changed in it stays.

    It may have been the EDF of the project before that got `arch`. Raise EdfError.
    """
    where = node.project.shown_common_edf
    path = checkout.root / where
    existing = _existing(path, where)
    merged = merge.merge(
        existing,
        common_edf(checkout, node),
        where,
        always=frozenset({"base_environment", "image"}),
        explanation=_COMMON,
    )
    schema.check(merged, where)
    if merged != existing:
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, merged)
        print(f"{where} written", flush=True)


def texts(checkout: Checkout, node: ImageNode, facts: Facts) -> tuple[str | None, str]:
    """Return a project's env.toml as it is (None when missing), and as it has to be.

    Raise EdfError.
    """
    where = node.project.shown(EDF)
    values = edf_values(checkout, node, facts)
    rendered = schema.render(read_text(checkout.template), TEMPLATE, values)
    existing = _existing(node.project.edf, where)
    merged = merge.merge(existing, rendered, where)
    schema.check(merged, where)
    return existing, merged


def _existing(path: Path, where: str) -> str | None:
    try:
        return read_text(path)
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise EdfError(
            f"is not UTF-8 text: byte {error.start} is invalid", where=where, hint="save it as UTF-8"
        ) from None
