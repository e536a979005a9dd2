"""Variables in build arguments: `${settings.KEY}`, `${git.branch}` and `${git.remote}`.

Every other `${…}` stays as it is, as the Dockerfile may mean it.
"""

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from msgspec.structs import replace

from rc_tasks.errors import RcError, SettingsError
from rc_tasks.model.config import project_toml
from rc_tasks.model.config.project_toml import ProjectOptions
from rc_tasks.model.config.settings import Settings
from rc_tasks.util import toml_schema
from rc_tasks.util.toml_schema import Problem

GIT_FACTS = ("branch", "remote")
# Facts that differ from commit to commit, by the names that other tools have for them.
_OF_A_COMMIT = frozenset(
    {"commit", "date", "describe", "dirty", "hash", "head", "rev", "revision", "sha", "tag", "time"}
)
_VARIABLE = re.compile(r"\$\{(settings|git)\.([^{}]*)\}")

# Returns the value of one of GIT_FACTS; raises RcError.
GitFact = Callable[[str], str]


class _UnknownError(Exception):
    """A variable without a value; the arguments say what is wrong, and what to do."""


def with_values(
    options: ProjectOptions, file: Path, where: str, settings: Settings, git_fact: GitFact
) -> ProjectOptions:
    """Return options with the values of the variables in their build arguments.

    `where` is the path of `file`, the project.toml, as errors show it. `git_fact` is called only for a
    variable that needs it. Raise one SettingsError for all problems.
    """
    if not any("${" in value for value in options.build_args.values()):
        return options
    problems: list[Problem] = []
    setting_values: dict[str, object] = {}

    def value_of(match: re.Match[str], name: str) -> str:
        try:
            if match[1] == "git":
                return _git_value(match[2], git_fact)
            if not setting_values:
                setting_values.update((key, value) for key, value, _ in settings.items())
            return _setting_value(match[2], setting_values)
        except _UnknownError as error:
            what, hint = error.args
            place = project_toml.place(file, where, ("build_args", name))
            problems.append(Problem(place, f"build_args.{name}: {match[0]} {what}", hint))
            return ""

    build_args = {
        name: _VARIABLE.sub(partial(value_of, name=name), text)
        for name, text in options.build_args.items()
    }
    if problems:
        raise toml_schema.failure(SettingsError, problems, where)
    return replace(options, build_args=build_args)


def _setting_value(key: str, known: Mapping[str, object]) -> str:
    if key not in known:
        meant = toml_schema.nearest(key, known)
        hint = f"did you mean ${{settings.{meant}}}?" if meant else "`doit settings` lists all"
        raise _UnknownError("is not a setting", hint)
    value = known[key]
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str | int):
        raise _UnknownError("is a list or a table", "name a text, a number or a boolean")
    return str(value)


def _git_value(fact: str, git_fact: GitFact) -> str:
    if fact in GIT_FACTS:
        try:
            return git_fact(fact)
        except RcError as error:
            raise _UnknownError(f"has no value: {error.what}", error.hint) from None
    if fact in _OF_A_COMMIT:
        raise _UnknownError(
            "would build the image again at each commit",
            "name a file that changes when the image has to: COPY VERSION /;"
            " image.json has the commit of each build",
        )
    meant = toml_schema.nearest(fact, GIT_FACTS)
    names = " and ".join(f"${{git.{name}}}" for name in GIT_FACTS)
    raise _UnknownError(
        "is not a git fact", f"did you mean ${{git.{meant}}}?" if meant else f"there are {names}"
    )
