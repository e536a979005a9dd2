"""Text of a project.toml that a command writes."""

import os
from collections.abc import Mapping

from rc_tasks.util import toml_text


def rendered(values: Mapping[str, object]) -> str:
    """Return the lines of a project.toml: its plain keys, then each table after an empty line."""
    lines: list[str] = []
    tables: list[str] = []
    for key, value in values.items():
        if isinstance(value, dict):
            tables += ["", f"[{key}]"]
            tables += [
                f"{toml_text.dump_key((name,))} = {toml_text.dump(item)}" for name, item in value.items()
            ]
        else:
            lines.append(f"{key} = {toml_text.dump(value)}")
    return "\n".join((*lines, *tables, ""))


def path_from(directory: str, path: str) -> str:
    """Return a path of the checkout relative to a project, such as `../../docker` or `./data`."""
    relative = os.path.relpath(path, directory)
    return relative if relative.startswith("..") else f"./{relative}".removesuffix("/.")
