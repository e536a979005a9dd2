"""A stand-in for NVIDIA's PyTorch image under its own name, for machines that cannot pull it.

    python -m tests.support.ngc DIR

makes it in DIR to play with: a small root file system of this machine's Debian or Ubuntu, with
Python, git, a compiler and PyTorch, and, as in NVIDIA's image, a pip that installs for everybody
and a constraint file. It is kept as DIR/ngc.tar, so that a second storage gets it at once.

`NGC_TORCH` is what pip is asked for; where a plain torch brings gigabytes of CUDA, name a CPU build.
"""

import argparse
import ast
import configparser
import os
import platform
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from rc_tasks.tools import command
from rc_tasks.tools.command import Command
from rc_tasks.tools.podman import Podman
from tests.support.containers import ulimits

IMAGE = "nvcr.io/nvidia/pytorch:25.01-py3"
TORCH = os.environ.get("NGC_TORCH", "torch==2.13.0")
PACKAGES = ("build-essential", "ca-certificates", "git", "python3-dev", "python3-pip")
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")

# `rm`: NVIDIA's image has no such marker either, and a pip of its own: since Debian 13, Debian's cannot
# be upgraded, as it has no list of its files. `pip list`: its constraint file names every package.
CONTAINERFILE = """\
FROM scratch
ADD rootfs.tar /
ARG TORCH
RUN rm -f /usr/lib/python3*/EXTERNALLY-MANAGED
RUN pip install --no-cache-dir --ignore-installed pip setuptools && pip install --no-cache-dir $TORCH
RUN mkdir /etc/pip \\
    && pip list --format=freeze --exclude pip --exclude setuptools > /etc/pip/constraint.txt
ENV PIP_CONSTRAINT=/etc/pip/constraint.txt
WORKDIR /workspace
CMD ["/bin/bash"]
"""


def make(directory: Path, podman: Podman) -> str:
    """Put the stand-in into a podman storage and return its name; `directory` keeps it for the next one.

    Raises CommandError when a tool fails, and ToolNotFoundError when mmdebstrap is missing.
    """
    archive = directory / "ngc.tar"
    if not archive.exists():
        _make_archive(archive, podman)
    _run(podman.command("load", "--quiet", "--input", str(archive)), directory)
    return IMAGE


def host_volumes(directory: Path) -> tuple[str, ...]:
    """`SRC:DST:ro` of what lets pip and apt in a build reach what they reach on this machine.

    That is pip's whole configuration, environment included, as one file that is written to
    `directory`, the local directories that it names, and the certificates. Nothing of it has to
    go into a build's arguments or environment, so that it is no part of an image's identity.
    """
    options = _pip_options()
    parser = configparser.RawConfigParser()
    parser["global"] = options
    written = directory / "pip.conf"
    with written.open("w", encoding="utf-8") as file:
        parser.write(file)
    bundles = (os.environ.get(name, "") for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"))
    certificates = next((path for path in bundles if Path(path).is_file()), str(CERTIFICATES))
    volumes = {"/etc/pip.conf": str(written)}
    volumes |= {path: path for path in sorted(set(_local_paths(options)))}
    volumes[str(CERTIFICATES)] = certificates
    return tuple(f"{source}:{target}:ro" for target, source in volumes.items() if Path(source).exists())


def _make_archive(archive: Path, podman: Podman) -> None:
    command.require("mmdebstrap", "apt-get install mmdebstrap")
    directory = archive.parent
    directory.mkdir(parents=True, exist_ok=True)
    rootfs = directory / "rootfs.tar"
    containerfile = directory / "Containerfile"
    containerfile.write_text(CONTAINERFILE, encoding="utf-8")
    _run(
        Command(
            (
                "mmdebstrap",
                "--variant=apt",
                f"--include={','.join(PACKAGES)}",
                *(f"--aptopt={line}" for line in _apt_options()),
                platform.freedesktop_os_release()["VERSION_CODENAME"],
                str(rootfs),
                *_apt_sources(),
            )
        ),
        directory,
    )
    _run(
        podman.command(
            "build",
            *("--format", "docker"),
            *("--tag", IMAGE),
            *("--file", str(containerfile)),
            # Neither asks for anything that a container in a container could refuse.
            *("--isolation", "chroot"),
            *("--network", "host"),
            *ulimits(),
            *("--build-arg", f"TORCH={TORCH}"),
            *(f"--volume={volume}" for volume in host_volumes(directory)),
            str(directory),
        ),
        directory,
    )
    # Saved, not exported: every storage that loads it gets the same image ID.
    part = archive.with_suffix(".part")
    part.unlink(missing_ok=True)
    _run(podman.command("save", "--quiet", "--output", str(part), IMAGE), directory)
    part.rename(archive)
    rootfs.unlink()


def _run(wanted: Command, directory: Path) -> None:
    path = directory / "ngc.log"
    with path.open("ab") as log:
        returncode = command.stream(wanted, log)
    if returncode != 0:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        raise command.failure(wanted, returncode, lines, hint=f"the whole output is in {path}")


def _apt_sources() -> tuple[str, ...]:
    sources = Path("/etc/apt/sources.list.d")
    found = [Path("/etc/apt/sources.list"), *sources.glob("*.list"), *sources.glob("*.sources")]
    return tuple(str(path) for path in sorted(found) if path.is_file())


def _apt_options() -> tuple[str, ...]:
    """How apt on this machine reaches its sources (proxy, dates), as lines of apt.conf(5)."""
    lines = command.capture(Command(("apt-config", "dump"))).stdout.splitlines()
    wanted = ("Acquire::http", "Acquire::Check-")
    return tuple(line for line in lines if line.startswith(wanted) and '""' not in line)


def _pip_options() -> dict[str, str]:
    """pip's settings for all its commands; those from its environment outrank its files."""
    listed = command.capture(Command((sys.executable, "-m", "pip", "config", "list"))).stdout
    found: dict[str, dict[str, str]] = {"global": {}, ":env:": {}}
    for line in listed.splitlines():
        key, _, value = line.partition("=")
        section, _, option = key.partition(".")
        if section in found:
            found[section][option] = str(ast.literal_eval(value))
    return found["global"] | found[":env:"]


def _local_paths(options: dict[str, str]) -> Iterator[str]:
    for option in ("cert", "constraint", "find-links", "index-url", "extra-index-url"):
        for word in options.get(option, "").split():
            path = Path(urlsplit(word).path)
            if urlsplit(word).scheme in ("", "file") and path.is_absolute():
                # The files of a `simple` index lie beside it, or anywhere below its parent.
                yield str(path.parent if path.name == "simple" else path)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.support.ngc")
    parser.add_argument("directory", metavar="DIR", type=Path)
    directory = parser.parse_args().directory.resolve()
    podman = Podman(root=str(directory / "storage"), runroot=str(directory / "run"))
    print(f"{make(directory, podman)} is in the storage. To build on it:")
    volumes = (f"--volume={volume}" for volume in host_volumes(directory))
    flags = ("--format", "docker", "--isolation", "chroot", "--network", "host", *volumes)
    print(shlex.join(podman.command("build", *flags).argv), "...")


if __name__ == "__main__":
    main()
