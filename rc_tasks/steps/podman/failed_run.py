"""The failed instruction of a build, with all that a container needs to run it again."""

import json
import re
import shlex
from collections.abc import Mapping
from typing import Self

from msgspec import Struct

from rc_tasks.model.dockerfile import parser
from rc_tasks.model.dockerfile.arguments import arguments_at
from rc_tasks.model.dockerfile.instructions import (
    Instruction,
    encode,
    exec_form,
    heredocs_of,
    instructions,
    written_lines,
)
from rc_tasks.state.store.catalogue import FailedInstruction
from rc_tasks.tools import podman_versions

DEFAULT_SHELL = ("/bin/sh", "-c")


class ImageConfig(Struct, frozen=True):
    """What an image says about the instruction that follows it. `shell` is that of RUN."""

    env: Mapping[str, str]
    user: str
    workdir: str
    shell: tuple[str, ...]

    @classmethod
    def parse(cls, config: bytes) -> Self:
        """Parse the configuration of an image in Docker's form."""
        values = json.loads(config).get("config") or {}
        pairs = (variable.partition("=") for variable in values.get("Env") or ())
        return cls(
            {name: value for name, _, value in pairs},
            values.get("User") or "",
            values.get("WorkingDir") or "/",
            tuple(values.get("Shell") or DEFAULT_SHELL),
        )


class FailedRun(Struct, frozen=True):
    """A failed instruction: its `lines` as written, and the variables that ARG has set for it.

    `instruction` is a part of the Dockerfile, or an ONBUILD trigger of the base.
    """

    instruction: Instruction
    lines: tuple[str, ...]
    arguments: Mapping[str, str]

    @classmethod
    def parse(
        cls, failed: FailedInstruction, where: str, architecture: str, env: Mapping[str, str]
    ) -> Self:
        """Parse the Dockerfile as it was when the build failed; `env` are the variables of the image."""
        text = encode(failed.dockerfile)
        source = instructions(text, where=where).instructions
        dockerfile = parser.parse(
            text, where=where, build_args=failed.build_args, architecture=architecture
        )
        arguments = arguments_at(
            failed.line,
            source,
            dockerfile.stages,
            build_args=failed.build_args,
            architecture=architecture,
            env=env,
            inherits=podman_versions.at_least(failed.podman, podman_versions.ARGUMENTS_INHERITED_SINCE),
        )
        if failed.trigger:
            (trigger,) = instructions(encode(failed.trigger), where=where).instructions
            return cls(trigger, (failed.trigger,), arguments)
        (instruction,) = (one for one in source if one.line == failed.line)
        return cls(instruction, written_lines(failed.dockerfile, instruction), arguments)

    @property
    def flags(self) -> tuple[str, ...]:
        """The flags of a RUN; other instructions run nothing."""
        return self.instruction.flags if self.instruction.name == "RUN" else ()

    def commands(self, shell: tuple[str, ...], script: str) -> tuple[str, ...]:
        """Return what a person types to run the command of a RUN; the last is as the build runs it.

        `shell` is that of the image, and `script` the path of a file with `script_text`.
        """
        value = self.instruction.value
        if self.instruction.name != "RUN":
            return ()
        if (argv := exec_form(value)) is not None:
            return (shlex.join(argv),)
        if self.script_text.startswith("#!"):
            return (script,)
        if self.script_text:
            # Without the option -c the shell reads a file; it may be the last letter of several.
            options = (re.sub(r"^(-\w*)c$", r"\1", word) for word in shell)
            return (shlex.join((*(word for word in options if word != "-"), script)),)
        return (value, shlex.join((*shell, value)))

    @property
    def script_text(self) -> str:
        """The command of a RUN with heredocs, which no single line can hold; else empty."""
        heredocs = heredocs_of(self.instruction)
        if self.instruction.name != "RUN" or not heredocs:
            return ""
        texts = self.lines[self.instruction.last_line - self.instruction.line + 1 :]
        if len(heredocs) == 1 and len(self.instruction.value.split()) == 1:
            # The heredoc is the script; its last line is the delimiter.
            texts = tuple(line.lstrip("\t") if heredocs[0].indented else line for line in texts[:-1])
            return "\n".join((*texts, ""))
        return "\n".join((self.instruction.value, *texts, ""))
