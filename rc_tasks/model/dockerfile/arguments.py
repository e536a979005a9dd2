"""Values of the variables that ARG sets, as one instruction of a Dockerfile gets them."""

from collections.abc import Mapping, Sequence

from msgspec import Struct, field

from rc_tasks.model.dockerfile.expansion import ExpandedText, WordError, expand, split_words
from rc_tasks.model.dockerfile.instructions import Instruction
from rc_tasks.model.dockerfile.parser import Stage, platform_arguments

# In words of an instruction podman uses this escape, whatever `# escape=` says (4.3.1 to 5.8.6).
_ESCAPE = "\\"


def arguments_at(
    line: int,
    instructions: Sequence[Instruction],
    stages: Sequence[Stage],
    *,
    build_args: Mapping[str, str],
    architecture: str,
    env: Mapping[str, str],
    inherits: bool,
) -> dict[str, str]:
    """Return the variables that ARG has set above a line of a Dockerfile, by their names.

    `instructions` and `stages` are those of the Dockerfile. `env` are the variables of the image that
    the instruction runs in: a default value may name them, and the value is that of the last ENV.
    `inherits`: a stage begins with the arguments of the stage that it is built on.
    """
    platform = platform_arguments(architecture, build_args)
    heading = _Scope(build_args, platform, platform)
    scopes: list[_Scope] = []
    for instruction in instructions:
        if instruction.line >= line:
            break
        if instruction.name == "FROM":
            parent = stages[len(scopes)].parent
            scopes.append(_Scope(build_args, platform | heading.values, env))
            if parent is not None:
                scopes[-1].env.update(scopes[parent].env)
                if inherits:
                    scopes[-1].values.update(scopes[parent].values)
        elif instruction.name == "ARG":
            (scopes[-1] if scopes else heading).read_arg(instruction.value)
        elif instruction.name == "ENV" and scopes:
            scopes[-1].read_env(instruction.value)
    return scopes[-1].values if scopes else {}


class _Scope(Struct):
    """The arguments of a stage so far in `values`, and the variables that its ENVs have set in `env`.

    `outer` has the values of arguments that are declared without a default, `base` the variables of the
    image.
    """

    build_args: Mapping[str, str]
    outer: Mapping[str, str]
    base: Mapping[str, str]
    values: dict[str, str] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)

    def read_arg(self, value: str) -> None:
        for word in split_words(value, _ESCAPE):
            name, has_default, default = word.partition("=")
            if name in self.build_args:
                self.values[name] = self.build_args[name]
            elif has_default:
                self.values[name] = self.expanded(default)
            elif name not in self.values and name in self.outer:
                self.values[name] = self.outer[name]

    def read_env(self, value: str) -> None:
        words = split_words(value, _ESCAPE)
        if words and "=" not in words[0]:
            # The old form, ENV NAME VALUE.
            name, *rest = value.split(None, 1)
            words = [f"{name}={''.join(rest)}"]
        new = {name: self.expanded(text) for name, _, text in (word.partition("=") for word in words)}
        self.env.update(new)

    def expanded(self, text: str) -> str:
        try:
            return expand(text, _ESCAPE, self.lookup).text
        except WordError:
            # podman has accepted it, so its rules differ.
            return text

    def lookup(self, name: str) -> ExpandedText | None:
        for place in (self.env, {**self.values, **self.base}):
            if name in place:
                return ExpandedText(place[name])
        return None
