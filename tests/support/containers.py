"""Containers that start on this machine."""

import os
import subprocess
from pathlib import Path

from msgspec.structs import replace

from rc_tasks.steps.container import launch
from rc_tasks.tools.podman import Podman
from tests.support.images import BUSYBOX
from tests.support.tools import refuse


def ulimits() -> tuple[str, ...]:
    """What podman 5 needs to build as root of a container: by itself it asks for too much."""
    return tuple(f"--ulimit={name}={value}" for name, value in launch.limits().items())


def working_runtime(podman: Podman, scratch: Path, *before: str) -> str:
    """The first OCI runtime that works here: on old or mixed cgroups crun does not.

    `scratch` is an empty directory; `before` is what makes podman run as somebody else.
    """
    program = scratch / "bin/sh"
    program.parent.mkdir(parents=True)
    program.write_bytes(BUSYBOX.read_bytes())
    program.chmod(0o755)
    said = ""
    for runtime in ("", "runc"):
        engine = replace(podman, runtime=runtime)
        wanted = engine.run(str(scratch), ("sh", "-c", "exit 0"), rootfs=True, limits=launch.limits())
        done = subprocess.run(
            (*before, *wanted.argv), check=False, capture_output=True, text=True, env=os.environ
        )
        if done.returncode == 0:
            return runtime
        said += done.stderr
    refuse(f"podman starts no containers here: {said}")
    raise AssertionError
