"""Diagnosis of a failed `podman build`: its node, a RUN's environment, or the Dockerfile."""

import re
from collections.abc import Sequence

from rc_tasks.errors import CommandError
from rc_tasks.model.graph.project import Project
from rc_tasks.tools import command, failures, podman
from rc_tasks.tools.failures import FailureCause, node_name

# How many of the last lines are read.
LINES = 50

# The lines of buildah and the runtime among those of a RUN (buildah's run_common.go and chroot).
_RUNTIME_LINE = re.compile(
    r"error running container: |error chdir|process failed to start with error"
    r"|subprocess exited |exec \S+: exec format error"
)
# The lines of podman too. Any program may print such lines: they are podman's unless a RUN ended by
# itself.
_PODMAN_LINE = re.compile(rf"Error: |time=\"|{_RUNTIME_LINE.pattern}")
# The parts of lines of podman that quote the Dockerfile.
_DOCKERFILES = (
    r'building at STEP ".*": (?=(while running runtime: )?exit status \d+$)',
    r'building at STEP ".*?": ',
    r"creating container for \[.*\]: ",
    r"for step \{.*\}: ",
)
_EXIT_STATUS = re.compile(r"(?:^|: )(?:while running runtime: )?exit status \d+$")

_NETWORK = FailureCause(
    r"could(n't| not) resolve (host|proxy|')|temporary failure (in name resolution|resolving)"
    r"|bad address|name or service not known|no such host|network is unreachable|no route to host"
    r"|dial tcp|failed to establish a new connection|connection (refused|reset|timed out)|proxyconnect"
    r"|certificate verify failed|self.signed certificate|x509:",
    "a host on the network could not be reached",
    "see whether that node reaches it (`curl -I URL`), with the proxy (https_proxy) and the\n"
    "certificates of the site, and whether its name is right",
)
_MACHINE = FailureCause(
    r"exec format error",
    "a file is for another machine, or is not a program",
    "a base for another machine (FROM --platform) runs only where the site has set up qemu with\n"
    "binfmt_misc; a script needs a first line such as #!/bin/sh",
)
_RUNTIME = FailureCause(
    r"error running container: |did not get container (create|start) message",
    "the container could not be started",
    "the last lines above are those of crun or runc: `doit doctor` tries a RUN on that node, and names\n"
    "the settings with which it works",
)

# Errors of buildah and the runtimes that only a mistake in a Dockerfile causes.
_MISTAKES = re.compile(
    r"copier: stat: .*no such file or directory|no items matching glob|no source files"
    r"|unknown instruction|requires (at least|exactly)|must have at least|only supports the|unknown flag"
    r"|flag provided but not defined|invalid mount type|invalid reference format|unknown user error"
    r"|unable to find user|(secret|ssh) required but|ssh should have syntax|parse error"
    r"|no stage or image found|syntax error"
    r"|executable file .*not found in \$PATH|exec: .*: (stat .*)?no such file or directory"
    r"|fork/exec \S+: no such file or directory|: not a directory|can't find .* in this image",
    re.IGNORECASE,
)
# Those of them that stop a runtime which can start other containers.
_MISTAKES_IN_RUN = re.compile(
    r"executable file .*not found|exec: .*: (stat .*)?no such file or directory|chdir", re.IGNORECASE
)


def explain(
    returncode: int, lines: Sequence[str], project: Project, *, debuggable: bool = False
) -> CommandError:
    """Return the error of a `podman build` that ended with `returncode` after printing `lines`.

    `debuggable`: `doit debug` can start the image in which the failed instruction ran.
    """
    podman_lines, run_lines = _split_output(lines)
    last = podman_lines[-1] if podman_lines else ""
    # When buildah reports an exit status, the command was started, or its runtime failed.
    by_itself = _report_exit_status(podman_lines) or last.startswith("subprocess exited")
    status = 1 if by_itself else returncode
    cause = failures.find(podman_lines, (*failures.PODMAN, *failures.LIMITS), status)
    if cause is not None:
        return cause.error(podman.BUILD)
    what, where = f"{podman.BUILD} {command.ending(returncode)}", project.shown_dockerfile
    correct = f"correct it and run `doit build:{project.name}`: it resumes there"
    if debuggable:
        correct += f";\n`doit debug {project.name}` starts a shell where it failed"
    not_started = any(re.search(_RUNTIME.pattern, line) for line in podman_lines)
    if any((_MISTAKES_IN_RUN if not_started else _MISTAKES).search(line) for line in podman_lines):
        return CommandError(what, where=where, hint=correct)
    if not_started:
        return _RUNTIME.error(podman.BUILD)
    if by_itself:
        # The RUN's output only suggests a cause: it may be about anything.
        probable = failures.find(podman_lines, (_MACHINE, failures.KILLED)) or failures.find(
            run_lines, (*failures.LIMITS, _NETWORK), returncode
        )
        if probable is None:
            return CommandError(what, where=where, hint=correct)
        otherwise = f"if it is the Dockerfile, {correct}"
        return CommandError(
            what,
            where=where,
            hint=f"on {node_name()}, {probable.what}, by the lines above:\n"
            f"{probable.hint};\n{otherwise}",
        )
    if probable := failures.find(podman_lines, (_NETWORK, _MACHINE)):
        return probable.error(podman.BUILD)
    return CommandError(
        what,
        where=where,
        hint="the last lines above are podman's: they may tell whether the Dockerfile or the\n"
        f"node is at fault. `doit build:{project.name}` tries again, and resumes there",
    )


def _split_output(lines: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split lines into those of podman and its runtime, without the Dockerfile's text, and a RUN's."""
    steps = [number for number, line in enumerate(lines) if re.match(r"(\[\d+/\d+\] )?STEP ", line)]
    last = lines[steps[-1] + 1 :] if steps else lines
    # An error of several lines continues to the end.
    ends = [number for number, line in enumerate(last) if line.startswith("Error: ")]
    end = ends[-1] if ends else len(last)
    podman_line = _RUNTIME_LINE if _report_exit_status(last[end:]) else _PODMAN_LINE
    podman_lines = [line for line in last[:end] if podman_line.match(line)] + list(last[end:])
    run_lines = [line for line in last[:end] if not podman_line.match(line)]
    for pattern in _DOCKERFILES:
        podman_lines = [re.sub(pattern, "STEP: ", line) for line in podman_lines]
    return podman_lines, run_lines


def _report_exit_status(lines: Sequence[str]) -> bool:
    return any(_EXIT_STATUS.search(line) for line in lines)
