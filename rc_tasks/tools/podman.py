"""podman: build, inspect, mount and run images in one storage of one node."""

import base64
import contextlib
import hashlib
import json
import os
import re
import signal
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from rc_tasks.errors import CommandError
from rc_tasks.tools import command, registry
from rc_tasks.tools.command import Command
from rc_tasks.tools.podman_versions import OLDEST
from rc_tasks.tools.version import numbers

INSTALL_HINT = "install podman (Debian: apt-get install podman), or ask the site which nodes have it"
# With several stages, the line begins with the number of the stage.
_STEP = re.compile(r"((?:\[\d+/\d+\] )?STEP \d+/\d+):? (.*)")
# podman-run(1): podman itself failed; the command could not be invoked; it is not in the image.
NOT_STARTED = frozenset({125, 126, 127})
# The first words of a step's error about a failed build; the run puts the failed instruction there.
BUILD = "podman build"


class Image(Struct, frozen=True):
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


class Podman(Struct, frozen=True):
    """One podman storage. Empty strings leave the choice to podman's own configuration.

    `through` starts podman in a namespace, see `namespace.entering`.
    """

    root: str = ""
    runroot: str = ""
    driver: str = ""
    options: tuple[str, ...] = ()
    network: str = ""
    isolation: str = ""
    runtime: str = ""
    cgroup_manager: str = ""
    through: tuple[str, ...] = ()

    def command(self, *argv: str) -> Command:
        """Return `podman argv…` on this storage."""
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
        return Command(("podman", *flags, *argv), through=self.through)

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
        directories: Mapping[str, Path] | None = None,
        platform: str = "",
        target: str | None = None,
        secrets: Mapping[str, str] | None = None,
        ssh: Mapping[str, str] | None = None,
        volumes: Iterable[str] = (),
        pulls: bool = False,
        cached: bool = True,
        limits: Mapping[str, int] | None = None,
    ) -> Command:
        """Return `podman build`; `sources` maps the names in COPY --from and RUN --mount to image IDs.

        `directories` maps others of these names to directories.
        No stage may have one of these names: podman would take the image in its place. `secrets` maps
        IDs to `env=VARIABLE` or `src=FILE`. `ssh` maps IDs to the paths of keys, with commas between, or
        of an agent's socket. `pulls`: podman pulls missing images. `cached`: podman may
        use its layer cache. `limits`: those of a RUN (getrlimit(2)).
        """
        argv = [
            "build",
            # The label would hold podman's version, so each upgrade of podman would change the image ID.
            "--identity-label=false",
            # The OCI format has no place for SHELL and HEALTHCHECK and drops them with a warning.
            *("--format", "docker"),
            # An image that is not in `sources` is left to podman on purpose (`pulls`), or is a mistake.
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
        if platform:
            argv += ["--platform", platform]
        if target:
            argv += ["--target", target]
        if not cached:
            argv.append("--no-cache")
        for name, image_id in sorted(sources.items()):
            # Without the ID, podman could take another image of the same name.
            argv += ["--build-context", f"{name}=container-image://{image_id}"]
        for name, directory in sorted((directories or {}).items()):
            argv += ["--build-context", f"{name}={directory}"]
        for key, value in sorted(build_args.items()):
            argv += ["--build-arg", f"{key}={value}"]
        for name, limit in (limits or {}).items():
            # By default podman may set 1024 open files for RUN, or more than root of a container may
            # have.
            argv += ["--ulimit", f"{name}={limit}:{limit}"]
        for secret_id, source in (secrets or {}).items():
            argv += ["--secret", f"id={secret_id},{source}"]
        for ssh_id, paths in (ssh or {}).items():
            # Without a path, `--ssh ID` takes that of the option before it (buildah's parse.go; seen in
            # podman 4.3.1).
            argv += ["--ssh", f"{ssh_id}={paths}"]
        for volume in volumes:
            argv += ["--volume", volume]
        return replace(self.command(*argv, str(context)), cwd=context)

    def info(self) -> tuple[Mapping[str, Any], str]:
        """Return `host` of `podman info`, and the name of the storage driver."""
        done = command.capture(self.command("info", "--format", "json"))
        info = json.loads(done.stdout)
        return info["host"], info["store"]["graphDriverName"]

    def exists(self, image_id: str) -> bool:
        """Return whether this storage holds the image."""
        done = command.capture(self.command("image", "exists", image_id), check=False)
        if done.returncode in (0, 1):
            return done.returncode == 0
        raise command.failure(done.command, done.returncode, done.stderr.splitlines())

    def inspect(self, image: str) -> Image:
        """Return the facts of an image that this storage holds."""
        (record,) = self.inspect_all((image,))
        return record

    def inspect_all(self, images: Iterable[str]) -> tuple[Image, ...]:
        """Return the facts of several images, in the order asked."""
        names = tuple(images)
        if not names:
            return ()
        return parse_inspect(command.capture(self.command("image", "inspect", *names)).stdout)

    def held(self, images: Iterable[str]) -> tuple[str, ...]:
        """Return the IDs of those images, given by whole or short IDs, that this storage holds whole."""
        names = tuple(images)
        if not names:
            return ()
        # podman prints the images that it finds also when others are missing or half-written.
        done = command.capture(
            self.command("image", "inspect", "--format", "{{.Id}}", *names), check=False
        )
        if done.returncode != 0 and not re.search("not known|no such|locating item", done.stderr):
            raise command.failure(done.command, done.returncode, done.stderr.splitlines())
        return tuple(done.stdout.split())

    def lacking(self, image_ids: Iterable[str]) -> tuple[str, ...]:
        """Return the images that this storage does not hold, each once."""
        unique = tuple(dict.fromkeys(image_ids))
        present = set(self.held(unique))
        return tuple(image_id for image_id in unique if image_id not in present)

    def pull_missing(self, reference: str, other_platform: str = "") -> str:
        """Pull an image unless the storage has it. Return its manifest digest, `sha256:…`.

        For `other_platform` it is always pulled: the storage may have the image of this one.
        """
        if other_platform or not self.exists(reference):
            platform = ("--platform", other_platform) if other_platform else ()
            pull = self.command("pull", *platform, reference)
            lines: deque[str] = deque(maxlen=command.TAIL_LINES)
            returncode = command.watch(pull, lines.append)
            if returncode != 0:
                raise registry.not_pulled(reference, returncode, lines)
        done = command.capture(self.command("image", "inspect", "--format", "{{.Digest}}", reference))
        return done.stdout.strip()

    def pull_again(self, reference: str) -> bool:
        """Pull an image again; layers that this storage has are not loaded. Return whether it worked."""
        return command.capture(self.command("pull", "--quiet", reference), check=False).returncode == 0

    def digests(self, reference: str) -> tuple[str, ...]:
        """Return the digests by which an image was pulled (`sha256:…`), those of indexes first.

        Some may have come with another name of the same image.
        """
        template = '{{.Id}} {{.Digest}} {{join .RepoDigests " "}}'
        query = self.command("image", "inspect", "--format", template, reference)
        image_id, *references = command.capture(query).stdout.split()
        digests = dict.fromkeys(reference.rpartition("@")[2] for reference in references)
        return tuple(sorted(digests, key=lambda digest: not self._is_index(image_id, digest)))

    def names(self, image: str) -> tuple[str, ...]:
        """Return the whole references that an image has here."""
        query = self.command("image", "inspect", "--format", '{{join .RepoTags " "}}', image)
        return tuple(command.capture(query).stdout.split())

    def pull_directories(self, directories: Iterable[Path]) -> Command:
        """Return `podman pull` of images in `dir:` form, all at once; they get no names."""
        return self.command("pull", "--quiet", *(f"dir:{directory}" for directory in directories))

    def push_directory(self, image_id: str, directory: Path) -> Command:
        """Return `podman push` of an image into `dir:` form, with all layers uncompressed."""
        return self.command("push", "--quiet", image_id, f"dir:{directory}")

    def config(self, image_id: str) -> bytes | None:
        """Return an image's configuration, byte for byte: its SHA-256 is the image ID.

        Read it cheaply from the file of containers/storage (its images.go). Return None when there is no
        such file, as for images of an additional store.
        """
        texts = self._kept(image_id, f"sha256:{image_id}")
        return next((text for text in texts if hashlib.sha256(text).hexdigest() == image_id), None)

    def triggers(self, image_id: str) -> tuple[str, ...]:
        """Return the ONBUILD triggers of an image, in order, which `podman image inspect` leaves out."""
        config = json.loads(self.config(image_id) or b"{}").get("config") or {}
        return tuple(map(str, config.get("OnBuild") or ()))

    def _is_index(self, image_id: str, digest: str) -> bool:
        # Only an index lists manifests (OCI image-spec, image-index.md).
        return any(b'"manifests"' in text for text in self._kept(image_id, f"manifest-{digest}"))

    def _kept(self, image_id: str, name: str) -> Iterator[bytes]:
        """Yield the data that containers/storage keeps for an image under a name (its images.go)."""
        root = self.root
        if not root:
            info = self.command("info", "--format", "{{.Store.GraphRoot}}")
            root = command.capture(info).stdout.removesuffix("\n")
        others = (option.partition("additionalimagestore=")[2] for option in self.options)
        file = base64.b64encode(name.encode()).decode()
        for place in (root, *filter(None, others)):
            for path in Path(place).glob(f"*-images/{image_id}/={file}"):
                with contextlib.suppress(OSError):
                    yield path.read_bytes()

    def half_written(self) -> str:
        """Return the ID of an image that a killed podman did not finish writing, or an empty string.

        One such image makes `podman images` fail for ever. An image that is being written now looks the
        same.
        """
        done = command.capture(self.command("images", "--quiet"), check=False)
        match = re.search(r'locating item named .* for image with ID "([0-9a-f]{64})"', done.stderr)
        return match[1] if match is not None and done.returncode != 0 else ""

    def remove_image(self, image_id: str) -> None:
        """Delete an image with its names, and the containers that use it; a missing one is fine."""
        command.capture(self.command("image", "rm", "--force", image_id), check=False)

    @contextlib.contextmanager
    def mounted(self, image_id: str, *, name: str) -> Iterator[Path]:
        """Mount an image's writable root file system in a container `name`; delete that at the end.

        A container of that name, left by a killed run, is replaced. Rootless, this works only inside
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

    def layer_directories(self, image: Image) -> dict[str, Path]:
        """Return the directories of an image's layers by diff ID; none if they do not exist.

        Only the overlay driver has them: each holds what its layer adds, and whiteouts.
        """
        query = self.command("image", "inspect", "--format", "{{json .GraphDriver}}", image.id)
        driver = json.loads(command.capture(query).stdout)
        data = driver.get("Data") or {}
        # The uppermost first.
        paths = f"{data.get('UpperDir') or ''}:{data.get('LowerDir') or ''}".removesuffix(":").split(":")
        if driver.get("Name") != "overlay" or len(paths) != len(image.layers):
            return {}
        return dict(zip(image.layers, map(Path, reversed(paths)), strict=True))

    def remove(self, *containers: str) -> None:
        """Unmount and delete containers and their anonymous volumes; a missing one is fine."""
        # A second TERM or Ctrl-C must not stop the cleanup after the first.
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
        query = self.command("container", "ls", "--all", "--quiet", "--filter", f"label={label}")
        if containers := command.capture(query).stdout.split():
            self.remove(*containers)

    def unshare(self, inner: Command) -> Command:
        """Return `inner` in the user namespace in which rootless podman's files can be read."""
        if self.through:
            return replace(inner, through=self.through)
        return inner.wrapped(*self.command("unshare").argv)

    def remove_leftovers(self) -> None:
        """Delete the containers of ended builds and steps, as far as podman lists them."""
        argv = ("container", "ls", "--all", "--external", "--format", "{{.ID}} {{.Names}}")
        # podman 4.3 lists none when another step removes its own at this moment ("container not known").
        listed = command.capture(self.command(*argv), check=False).stdout
        for line in listed.splitlines():
            container, _, name = line.partition(" ")
            if "working-container" in name or name.startswith("rc-"):
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
        user: str = "0:0",
        network: str = "host",
        volumes: Iterable[str] | None = None,
        entrypoint: bool = False,
        writable: bool = True,
        devices: Iterable[str] = (),
        limits: Mapping[str, str] | None = None,
        terminal: bool = False,
        name: str = "",
        limit_s: int = 0,
        own_processes: bool = False,
    ) -> Command:
        """Return `podman run` with standard input passed through; the container is deleted at its end.

        `image` is an ID, a reference, or with `rootfs` a directory. `mounts` are values of --mount. A
        container with a `name` replaces one of that name, left by a killed run. After `limit_s` seconds
        podman ends the container even when we are gone. An empty `user` is that of the image, an empty
        `network` podman's default. `volumes` are values of --volume; with them, those of the image are
        plain directories. A variable that we have with the same value is passed by name only. With
        `own_processes` the container sees only its own processes, from PID 1.
        """
        flags = [
            "run",
            "--rm",
            "--interactive",
            *(("--tty",) if terminal else ()),
            # By default podman holds back Ctrl-P, a key of every shell and editor, until the next key.
            "--detach-keys=",
            # By default podman also writes all output to a file or the journal.
            "--log-driver=none",
            # As in Enroot and the Container Engine, the host's network is used and /dev/shm has no limit
            # of 64 MB. A program with PID 1 would ignore each signal that it does not handle.
            *((f"--network={network}",) if network else ()),
            # containers.conf can change these defaults.
            *(("--pid=private", "--init=false") if own_processes else ("--pid=host",)),
            "--shm-size=0",
            # Health checks use systemd timers, which a job may not use, and nobody reads their result.
            "--no-healthcheck",
            # SELinux lets a container read only those files of the host that are labelled for it.
            "--security-opt=label=disable",
            # Rootless, 0 is the caller, who owns the mounts; USER of the Dockerfile is another user, who
            # without an entry in /etc/passwd would get one here, and another HOME than in a RUN.
            *((f"--user={user}",) if user else ("--passwd=false",)),
        ]
        # podman asks for limits as large as root's, which root of a container may not set.
        flags += [f"--ulimit={name}={value}" for name, value in (limits or {}).items()]
        flags += [f"--mount={mount}" for mount in mounts]
        flags += [f"--device={device}" for device in devices]
        if volumes is not None:
            flags += ["--image-volume=ignore", *(f"--volume={volume}" for volume in volumes)]
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
            # The caller that removes it has already asked its programs to end, so podman need not wait.
            flags += [f"--name={name}", "--replace", "--stop-timeout=0"]
        if limit_s:
            flags.append(f"--timeout={limit_s}")
        if rootfs:
            flags.append("--rootfs")
        return self.command(*flags, image, *argv)


def bind(source: object, destination: str, *flags: str) -> str:
    """Return the value of --mount for a bind mount of any two paths."""
    paths = (_csv(f"source={source}"), _csv(f"destination={destination}"))
    return ",".join(("type=bind", *paths, *flags))


def tmpfs(destination: str, *flags: str) -> str:
    """Return the value of --mount for an empty file system in memory."""
    return ",".join(("type=tmpfs", _csv(f"destination={destination}"), "notmpcopyup", *flags))


def _csv(text: str) -> str:
    """Return a field of comma-separated values (RFC 4180)."""
    return '"' + text.replace('"', '""') + '"' if re.search(r'[",\r\n]', text) else text


def rootless() -> bool:
    """Return whether podman runs without root here, outside of its user namespace."""
    # containers/storage sets this variable in the namespace of `podman unshare`.
    return os.geteuid() != 0 and "_CONTAINERS_USERNS_CONFIGURED" not in os.environ


def version() -> str:
    """Return podman's version, such as `4.3.1`."""
    command.require("podman", INSTALL_HINT)
    return command.capture(Command(("podman", "--version"))).stdout.split()[-1]


def shares_copies(version: str, other: str) -> bool:
    """Return whether one version of podman reuses cached COPY and ADD layers of the other.

    4.3.1, 5.4.2 and 5.8.6 do not: each writes another digest into the history of the image.
    """
    return numbers(version)[:2] == numbers(other)[:2]


def failed_instruction(lines: list[str]) -> str:
    """Return the instruction that a failed `podman build` names; empty when it names none."""
    for line in reversed(lines):
        match = re.search(r'building at STEP "(.*?)": ', line)
        if match is not None:
            return match[1]
    return ""


def current_step(line: str) -> str:
    """Return the step that a line of `podman build` starts, `STEP 4/9 RUN pip install x`, or empty."""
    match = _STEP.match(line)
    if match is not None:
        return f"{match[1]} {match[2]}"
    # After COMMIT podman writes the image, which takes a while.
    return line if line.startswith("COMMIT ") else ""


def parse_inspect(text: str) -> tuple[Image, ...]:
    """Return the images in the JSON of `podman image inspect`."""
    try:
        return tuple(_parse_image(record) for record in json.loads(text))
    except (ValueError, KeyError, TypeError) as error:
        raise CommandError(
            f"podman image inspect printed something unexpected ({error!r})",
            quote=tuple(text.splitlines()[:5]),
            hint=f"`podman --version` tells the version; {OLDEST} and newer are known to work",
        ) from None


def parse_config(image_id: str, config: bytes, size_bytes: int) -> Image:
    """Return the facts of an image from its configuration (OCI image-spec, config.md).

    Raise CommandError for something else.
    """
    try:
        document = json.loads(config)
        layers = document["rootfs"]["diff_ids"]
        return _image(image_id, document["architecture"], size_bytes, document.get("config"), layers)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CommandError(
            f"the configuration of image {image_id[:12]} cannot be read ({error!r})",
            hint="`doit verify --all` names what is damaged",
        ) from None


def _parse_image(record: dict[str, Any]) -> Image:
    return _image(
        record["Id"].removeprefix("sha256:"),
        record["Architecture"],
        record["Size"],
        record.get("Config"),
        record["RootFS"]["Layers"],
    )


def _image(
    image_id: str,
    architecture: str,
    size_bytes: int,
    settings: dict[str, Any] | None,
    layers: list[str] | None,
) -> Image:
    config = settings or {}
    entrypoint = tuple(config.get("Entrypoint") or ())
    return Image(
        id=image_id,
        architecture=architecture,
        size_bytes=size_bytes,
        env=tuple(config.get("Env") or ()),
        labels=dict(config.get("Labels") or {}),
        # ENTRYPOINT [""] resets that of a base: podman and Docker start such an image without one.
        entrypoint=() if entrypoint == ("",) else entrypoint,
        cmd=tuple(config.get("Cmd") or ()),
        workdir=config.get("WorkingDir") or "",
        volumes=tuple(sorted(config.get("Volumes") or {})),
        layers=tuple(layers or ()),
    )
