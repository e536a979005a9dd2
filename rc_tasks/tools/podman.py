"""podman: building, inspecting and mounting images in one storage of one node."""

import base64
import contextlib
import hashlib
import json
import os
import re
import signal
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rc_tasks.errors import CommandError
from rc_tasks.tools import command, registry
from rc_tasks.tools.command import Command
from rc_tasks.tools.podman_versions import OLDEST
from rc_tasks.tools.version import numbers

INSTALL_HINT = "install podman (Debian: apt-get install podman), or ask the site which nodes have it"
# Where there are several stages, the line begins with the number of the stage.
_STEP = re.compile(r"((?:\[\d+/\d+\] )?STEP \d+/\d+):? (.*)")
# podman-run(1): podman itself failed; the command could not be invoked; it is not in the image.
NOT_STARTED = frozenset({125, 126, 127})


@dataclass(frozen=True, slots=True)
class Image:
    """An image's facts, from `podman image inspect`.

    `id` is the image ID, 64 hex digits without prefix; `layers` are diff IDs (`sha256:…`), lowest
    first. `env` holds `KEY=value` strings.
    """

    id: str
    architecture: str
    size_bytes: int
    env: tuple[str, ...]
    labels: Mapping[str, str]
    entrypoint: tuple[str, ...]
    cmd: tuple[str, ...]
    workdir: str
    volumes: tuple[str, ...]
    layers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Podman:
    """One podman storage. Empty strings leave the choice to podman's own configuration."""

    root: str = ""
    runroot: str = ""
    driver: str = ""
    options: tuple[str, ...] = ()
    network: str = ""
    isolation: str = ""
    runtime: str = ""
    cgroup_manager: str = ""

    def command(self, *argv: str) -> Command:
        """`podman argv…` on this storage."""
        flags: list[str] = []
        for flag, value in (
            ("--root", self.root),
            ("--runroot", self.runroot),
            ("--storage-driver", self.driver),
            # A job has no systemd session; logind reaps a podman that uses the cgroups of one.
            ("--cgroup-manager", self.cgroup_manager),
            ("--runtime", self.runtime),
        ):
            if value:
                flags += [flag, value]
        for option in self.options:
            flags += ["--storage-opt", option]
        return Command(("podman", *flags, *argv))

    def storage_reference(self, image_id: str) -> str:
        """The image as skopeo names it inside this storage (containers-transports(5))."""
        if not self.root:
            return f"containers-storage:@{image_id}"
        options = ":" + ",".join(self.options) if self.options else ""
        return f"containers-storage:[{self.driver}@{self.root}+{self.runroot}{options}]@{image_id}"

    def build(
        self,
        context: Path,
        dockerfile: Path,
        *,
        tag: str,
        iidfile: Path,
        ignorefile: Path,
        sources: Mapping[str, str],
        build_args: Mapping[str, str],
        target: str | None = None,
        secrets: Mapping[str, str] | None = None,
        volumes: Iterable[str] = (),
        pulls: bool = False,
        cached: bool = True,
        limits: Mapping[str, int] | None = None,
    ) -> Command:
        """`podman build`. `sources` maps the names in COPY --from and RUN --mount to image IDs.

        No stage may bear one of these names: podman would take the image in its place.
        `secrets` maps IDs to `env=VARIABLE` or `src=FILE`. `pulls`: podman pulls the images that it does
        not have. `cached`: it may answer from its layer cache. `limits`: those of a RUN (getrlimit(2)).
        """
        argv = [
            "build",
            # The label would name podman's version, and so change the image ID with every upgrade.
            "--identity-label=false",
            # The OCI format has no place for SHELL and HEALTHCHECK and drops them with a warning.
            *("--format", "docker"),
            # What is not given as a base below was left to podman on purpose, or is a mistake.
            f"--pull={'missing' if pulls else 'never'}",
            *(("--tag", tag) if tag else ()),
            *("--iidfile", str(iidfile)),
            *("--file", str(dockerfile)),
            *("--ignorefile", str(ignorefile)),
        ]
        if self.network:
            argv += ["--network", self.network]
        if self.isolation:
            argv += ["--isolation", self.isolation]
        if target:
            argv += ["--target", target]
        if not cached:
            argv.append("--no-cache")
        for name, image_id in sorted(sources.items()):
            # By ID, so that a same-named image from elsewhere can never slip in.
            argv += ["--build-context", f"{name}=container-image://{image_id}"]
        for key, value in sorted(build_args.items()):
            argv += ["--build-arg", f"{key}={value}"]
        for name, limit in (limits or {}).items():
            # By itself podman may give RUN 1024 open files, or more than root of a container has.
            argv += ["--ulimit", f"{name}={limit}:{limit}"]
        for secret_id, source in (secrets or {}).items():
            argv += ["--secret", f"id={secret_id},{source}"]
        for volume in volumes:
            argv += ["--volume", volume]
        return replace(self.command(*argv, str(context)), cwd=context)

    def info(self) -> tuple[Mapping[str, Any], str]:
        """What `podman info` prints of this host, and the name of the storage driver."""
        done = command.capture(self.command("info", "--format", "json"))
        found = json.loads(done.stdout)
        return found["host"], found["store"]["graphDriverName"]

    def exists(self, image_id: str) -> bool:
        """Whether this storage holds the image."""
        done = command.capture(self.command("image", "exists", image_id), check=False)
        if done.returncode in (0, 1):
            return done.returncode == 0
        raise command.failure(done.command, done.returncode, done.stderr.splitlines())

    def inspect(self, image: str) -> Image:
        """The facts of an image that this storage holds."""
        (found,) = self.inspect_all((image,))
        return found

    def inspect_all(self, images: Iterable[str]) -> tuple[Image, ...]:
        """The facts of several images, in the order asked."""
        wanted = tuple(images)
        if not wanted:
            return ()
        return parse_inspect(command.capture(self.command("image", "inspect", *wanted)).stdout)

    def held(self, images: Iterable[str]) -> tuple[str, ...]:
        """The IDs of those images, given by whole or short IDs, that this storage holds whole."""
        wanted = tuple(images)
        if not wanted:
            return ()
        # It prints those that it finds also when others are missing or half-written.
        done = command.capture(
            self.command("image", "inspect", "--format", "{{.Id}}", *wanted), check=False
        )
        if done.returncode != 0 and not re.search("not known|no such|locating item", done.stderr):
            raise command.failure(done.command, done.returncode, done.stderr.splitlines())
        return tuple(done.stdout.split())

    def lacking(self, image_ids: Iterable[str]) -> tuple[str, ...]:
        """Those of the images, each once, that this storage does not hold."""
        wanted = tuple(dict.fromkeys(image_ids))
        held = set(self.held(wanted))
        return tuple(image_id for image_id in wanted if image_id not in held)

    def pull_missing(self, reference: str) -> str:
        """Pull an image unless the storage has it; returns its manifest digest, `sha256:…`."""
        if not self.exists(reference):
            wanted = self.command("pull", reference)
            lines: deque[str] = deque(maxlen=command.TAIL_LINES)
            returncode = command.watch(wanted, lines.append)
            if returncode != 0:
                raise registry.not_pulled(reference, returncode, lines)
        done = command.capture(self.command("image", "inspect", "--format", "{{.Digest}}", reference))
        return done.stdout.strip()

    def pull_again(self, reference: str) -> bool:
        """Ask the registry for an image that may be here; layers that are here are not loaded again."""
        return command.capture(self.command("pull", "--quiet", reference), check=False).returncode == 0

    def digests(self, reference: str) -> tuple[str, ...]:
        """The digests that an image has been pulled by, `sha256:…`, those of indexes before its own.

        They may have come with another name of the same image.
        """
        shown = '{{.Id}} {{.Digest}} {{join .RepoDigests " "}}'
        wanted = self.command("image", "inspect", "--format", shown, reference)
        image_id, *found = command.capture(wanted).stdout.split()
        digests = dict.fromkeys(each.rpartition("@")[2] for each in found)
        return tuple(sorted(digests, key=lambda digest: not self._is_index(image_id, digest)))

    def names(self, image: str) -> tuple[str, ...]:
        """The whole references that an image has here."""
        wanted = self.command("image", "inspect", "--format", '{{join .RepoTags " "}}', image)
        return tuple(command.capture(wanted).stdout.split())

    def pull_directories(self, directories: Iterable[Path]) -> Command:
        """`podman pull` of images in `dir:` form, all at once; they get no names here."""
        return self.command("pull", "--quiet", *(f"dir:{directory}" for directory in directories))

    def push_directory(self, image_id: str, directory: Path) -> Command:
        """`podman push` of an image into `dir:` form: all layers, uncompressed as in the storage."""
        return self.command("push", "--quiet", image_id, f"dir:{directory}")

    def config(self, image_id: str) -> bytes | None:
        """An image's configuration, byte for byte: its SHA-256 is the image ID.

        It is read where containers/storage keeps it (its images.go), at no cost; None when it is not
        found there, as with images of an additional store.
        """
        found = self._kept(image_id, f"sha256:{image_id}")
        return next((text for text in found if hashlib.sha256(text).hexdigest() == image_id), None)

    def triggers(self, image_id: str) -> tuple[str, ...]:
        """The ONBUILD triggers of an image, in order, which `podman image inspect` leaves out."""
        config = json.loads(self.config(image_id) or b"{}").get("config") or {}
        return tuple(map(str, config.get("OnBuild") or ()))

    def _is_index(self, image_id: str, digest: str) -> bool:
        # An index, and nothing else that is pulled, lists manifests (OCI image-spec, image-index.md).
        return any(b'"manifests"' in text for text in self._kept(image_id, f"manifest-{digest}"))

    def _kept(self, image_id: str, name: str) -> Iterator[bytes]:
        """What containers/storage keeps of an image under a name (its images.go)."""
        root = self.root
        if not root:
            info = self.command("info", "--format", "{{.Store.GraphRoot}}")
            root = command.capture(info).stdout.removesuffix("\n")
        file = base64.b64encode(name.encode()).decode()
        for path in Path(root).glob(f"*-images/{image_id}/={file}"):
            with contextlib.suppress(OSError):
                yield path.read_bytes()

    def half_written(self) -> str:
        """The ID of an image that a killed podman did not finish writing, or an empty string.

        One suffices for `podman images` to fail for ever. An image that is being written just now
        looks the same.
        """
        done = command.capture(self.command("images", "--quiet"), check=False)
        found = re.search(r'locating item named .* for image with ID "([0-9a-f]{64})"', done.stderr)
        return found[1] if found is not None and done.returncode != 0 else ""

    def remove_image(self, image_id: str) -> None:
        """Delete an image with its names, and the containers that use it; a missing one is fine."""
        command.capture(self.command("image", "rm", "--force", image_id), check=False)

    @contextlib.contextmanager
    def mounted(self, image_id: str, *, name: str) -> Iterator[Path]:
        """An image's root file system, writable and thrown away at the end, in a container `name`.

        A container of that name which a killed run left is replaced. Rootless this works only inside
        `podman unshare`.
        """
        try:
            # /bin/true is never run: without a command, podman refuses images that have no CMD.
            argv = ("--name", name, "--replace", "--pull=never", "--network=none", image_id, "/bin/true")
            command.capture(self.command("container", "create", *argv))
            done = command.capture(self.command("container", "mount", name))
            yield Path(done.stdout.removesuffix("\n"))
        finally:
            self.remove(name)

    def remove(self, *containers: str) -> None:
        """Unmount and delete containers and their anonymous volumes; a missing one is fine."""
        # A second TERM or Ctrl-C must not stop the cleaning up after the first.
        previous = signal.pthread_sigmask(
            signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        )
        try:
            done = command.capture(
                self.command("container", "rm", "--force", "--volumes", *containers), check=False
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, previous)
        if done.returncode != 0 and "no such container" not in done.stderr:
            raise command.failure(done.command, done.returncode, done.stderr.splitlines())

    def remove_labelled(self, label: str) -> None:
        """Delete the containers with a label (`key=value`)."""
        listed = self.command("container", "ls", "--all", "--quiet", "--filter", f"label={label}")
        if found := command.capture(listed).stdout.split():
            self.remove(*found)

    def unshare(self, inner: Command) -> Command:
        """`inner` in the user namespace in which rootless podman's files can be read."""
        return inner.wrapped(*self.command("unshare").argv)

    def remove_working_containers(self) -> None:
        """Delete the containers in which ended builds were working, as far as podman lists them."""
        argv = ("container", "ls", "--all", "--external", "--format", "{{.ID}} {{.Names}}")
        # podman 4.3 lists none when another step removes its own at this moment ("container not known").
        listed = command.capture(self.command(*argv), check=False).stdout
        for line in listed.splitlines():
            container, _, name = line.partition(" ")
            if "working-container" in name:
                self.remove(container)

    def run(
        self,
        image: str,
        argv: Iterable[str],
        *,
        rootfs: bool = False,
        mounts: Iterable[str] = (),
        env: Mapping[str, str] | None = None,
        unset: Iterable[str] = (),
        workdir: str = "",
        entrypoint: bool = False,
        writable: bool = True,
        devices: Iterable[str] = (),
        limits: Mapping[str, str] | None = None,
        terminal: bool = False,
        name: str = "",
        limit_s: int = 0,
        own_processes: bool = False,
    ) -> Command:
        """`podman run` for a person: standard input is theirs, and nothing is left when it ends.

        `image` is an ID, a reference, or with `rootfs` a directory. `mounts` are values of --mount.
        A container with a `name` takes the place of one that a killed run left; `limit_s` ends one even
        when we cannot. A variable that we have with the same value is handed on by its name. With
        `own_processes` the container sees no others, and its first one is number 1.
        """
        flags = [
            "run",
            "--rm",
            "--interactive",
            *(("--tty",) if terminal else ()),
            # Ctrl-P is a key of every shell and editor, and podman would wait for another one after it.
            "--detach-keys=",
            # All output would be written to a file or the journal as well.
            "--log-driver=none",
            # As in Enroot and the Container Engine: one network, and /dev/shm has no limit of 64 MB. A
            # program with PID 1 would ignore each signal that it does not handle.
            "--network=host",
            # Whatever containers.conf says.
            *(("--pid=private", "--init=false") if own_processes else ("--pid=host",)),
            "--shm-size=0",
            # Its timers are systemd's, which a job may not use, and nobody asks for the result.
            "--no-healthcheck",
            # SELinux lets a container read nothing of the host that was not labelled for it.
            "--security-opt=label=disable",
            # Without root this is the caller, whoever USER in the Dockerfile names: mounts are theirs.
            "--user=0:0",
        ]
        # As large as root's may be, podman asks for more, which root of a container must not have.
        flags += [f"--ulimit={name}={value}" for name, value in (limits or {}).items()]
        flags += [f"--mount={mount}" for mount in mounts]
        flags += [f"--device={device}" for device in devices]
        flags += [f"--unsetenv={name}" for name in unset]
        flags += [
            f"--env={name}" if os.environ.get(name) == value else f"--env={name}={value}"
            for name, value in (env or {}).items()
        ]
        if workdir:
            flags.append(f"--workdir={workdir}")
        if not entrypoint:
            flags.append("--entrypoint=")
        if not writable:
            flags.append("--read-only")
        if name:
            # Whoever removes it has asked its programs to end already.
            flags += [f"--name={name}", "--replace", "--stop-timeout=0"]
        if limit_s:
            flags.append(f"--timeout={limit_s}")
        if rootfs:
            flags.append("--rootfs")
        return self.command(*flags, image, *argv)


def rootless() -> bool:
    """Whether podman runs without root here, outside of its user namespace."""
    # containers/storage sets this in the namespace that `podman unshare` makes.
    return os.geteuid() != 0 and "_CONTAINERS_USERNS_CONFIGURED" not in os.environ


def version() -> str:
    """podman's version, such as `4.3.1`."""
    command.require("podman", INSTALL_HINT)
    return command.capture(Command(("podman", "--version"))).stdout.split()[-1]


def shares_copies(version: str, other: str) -> bool:
    """Whether one version of podman finds in its layer cache what COPY and ADD made in the other.

    4.3.1, 5.4.2 and 5.8.6 do not: each writes another digest into the history of the image.
    """
    return numbers(version)[:2] == numbers(other)[:2]


def failed_instruction(lines: list[str]) -> str:
    """The instruction that a failed `podman build` names in its last words; empty when it names none."""
    for line in reversed(lines):
        found = re.search(r'building at STEP "(.*?)": ', line)
        if found is not None:
            return found[1]
    return ""


def doing(line: str) -> str:
    """What `podman build` says in a line that it is at: `STEP 4/9 RUN pip install x`; else empty."""
    found = _STEP.match(line)
    if found is not None:
        return f"{found[1]} {found[2]}"
    # The image has to be kept then, which takes a while.
    return line if line.startswith("COMMIT ") else ""


def parse_inspect(text: str) -> tuple[Image, ...]:
    """The images in the JSON of `podman image inspect`."""
    try:
        return tuple(_parse_image(found) for found in json.loads(text))
    except (ValueError, KeyError, TypeError) as error:
        raise CommandError(
            f"podman image inspect printed something unexpected ({error!r})",
            quote=tuple(text.splitlines()[:5]),
            hint=f"`podman --version` tells the version; {OLDEST} and newer are known to work",
        ) from None


def _parse_image(found: dict[str, Any]) -> Image:
    config = found.get("Config") or {}
    entrypoint = tuple(config.get("Entrypoint") or ())
    return Image(
        id=found["Id"].removeprefix("sha256:"),
        architecture=found["Architecture"],
        size_bytes=found["Size"],
        env=tuple(config.get("Env") or ()),
        labels=dict(config.get("Labels") or {}),
        # podman and Docker start such an image without one; it resets that of a base.
        entrypoint=() if entrypoint == ("",) else entrypoint,
        cmd=tuple(config.get("Cmd") or ()),
        workdir=config.get("WorkingDir") or "",
        volumes=tuple(sorted(config.get("Volumes") or {})),
        layers=tuple(found["RootFS"]["Layers"] or ()),
    )
