"""Jinja templates of texts and of HTML pages."""

import shlex
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from rc_tasks.errors import RcError
from rc_tasks.util import toml_text

if TYPE_CHECKING:
    import jinja2


def fill(template: str, where: str, values: Mapping[str, object], error: type[RcError]) -> str:
    """Render a text template with the values; `where` is the template's path.

    Raise `error` when the template has a mistake or uses an unknown name.
    """
    import jinja2

    environment = jinja2.Environment(  # noqa: S701 - TOML and shell escape in their own ways, see the filters
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
        # Values may hold shell code and Go templates, which use `{{ }}` and `{% %}`.
        variable_start_string="<@",
        variable_end_string="@>",
        block_start_string="<%",
        block_end_string="%>",
        comment_start_string="<#",
        comment_end_string="#>",
    )
    environment.filters["toml"] = toml_text.dump
    environment.filters["sh"] = shlex.quote
    environment.filters["key"] = lambda dotted: toml_text.dump_key(dotted.split("."))
    return _rendered(environment, template, where, values, ("toml", "key", "sh"), error)


def fill_page(
    template: str,
    where: str,
    values: Mapping[str, object],
    filters: Mapping[str, Callable[..., object]],
    error: type[RcError],
) -> str:
    """Render an HTML template, which escapes the values; otherwise as `fill`."""
    import jinja2

    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(filters)
    return _rendered(environment, template, where, values, tuple(filters), error)


def _rendered(
    environment: "jinja2.Environment",
    template: str,
    where: str,
    values: Mapping[str, object],
    filters: tuple[str, ...],
    error: type[RcError],
) -> str:
    try:
        return environment.from_string(template).render(values)
    except Exception as problem:  # a template is a program of the user and may raise anything
        line = getattr(problem, "lineno", None) or _line(problem)
        raise error(
            f"the template cannot be rendered: {problem}",
            where=where if line is None else f"{where}:{line}",
            hint=f"names that can be used: {', '.join(values)}; filters: {', '.join(filters)}",
        ) from None


def _line(error: Exception) -> int | None:
    line, frame = None, error.__traceback__
    while frame is not None:
        if frame.tb_frame.f_code.co_filename == "<template>":
            line = frame.tb_lineno
        frame = frame.tb_next
    return line
