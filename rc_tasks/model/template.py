"""A text template filled with values."""

from collections.abc import Mapping

from rc_tasks.errors import RcError
from rc_tasks.model import toml_text


def fill(template: str, where: str, values: Mapping[str, object], error: type[RcError]) -> str:
    """The text that a template makes of the values; `where` is the template's path.

    Raises `error` when the template has a mistake or uses an unknown name.
    """
    import jinja2

    environment = jinja2.Environment(  # noqa: S701 - TOML has its own escaping, the filters below
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
        # `{{ }}` and `{% %}` stand in shell code and in Go templates, which may occur in values.
        variable_start_string="<@",
        variable_end_string="@>",
        block_start_string="<%",
        block_end_string="%>",
        comment_start_string="<#",
        comment_end_string="#>",
    )
    environment.filters["toml"] = toml_text.dump
    environment.filters["key"] = lambda dotted: toml_text.dump_key(dotted.split("."))
    try:
        return environment.from_string(template).render(values)
    except Exception as found:  # a template is a program of the user's: anything may come out of it
        line = getattr(found, "lineno", None) or _line(found)
        raise error(
            f"the template cannot be rendered: {found}",
            where=where if line is None else f"{where}:{line}",
            hint=f"names that can be used: {', '.join(values)}; filters: toml, key",
        ) from None


def _line(error: Exception) -> int | None:
    line, frame = None, error.__traceback__
    while frame is not None:
        if frame.tb_frame.f_code.co_filename == "<template>":
            line = frame.tb_lineno
        frame = frame.tb_next
    return line
