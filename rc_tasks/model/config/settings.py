"""The settings: one frozen value read from four places, each key with its origin and its help.

A later place wins: `[tool.rc_tasks]` in the checkout's pyproject.toml, the user's rc_tasks.toml, that of
the checkout, which git ignores, then variables `RC_…`. A new setting is one line in one of the classes
below.
"""

import re
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from msgspec import Struct, field
from msgspec.structs import replace

from rc_tasks.errors import SettingsError
from rc_tasks.model.config import sources
from rc_tasks.model.edf import schema
from rc_tasks.model.machine import parse_machine
from rc_tasks.util import toml_schema, toml_text
from rc_tasks.util.toml_schema import Key, Leaf, Overrides, Problem, each_of, whole, wrong

DEFAULT = "default"
# The settings of one user, and those of one clone.
LOCAL_FILE = "rc_tasks.toml"
# Variables of the test suite; any other RC_ variable that names no setting is reported as a typo.
RESERVED = frozenset({"RC_REQUIRE_TOOLS"})

# squashfs: blocks are powers of two from 4 KiB to 1 MiB.
BLOCK_SIZES_BYTES = tuple(2**power for power in range(12, 21))

# sbatch(1), --signal.
_MOST_SIGNAL_S = 65535
# Days are limited, as datetime cannot hold dates before year 1.
_MOST_DAYS = 36500


class Runner(StrEnum):
    """Where steps run; `auto` means Slurm where there is Slurm."""

    AUTO = "auto"
    SLURM = "slurm"
    LOCAL = "local"


class Launcher(StrEnum):
    """The program that starts interactive containers; `auto` is the first that is installed."""

    AUTO = "auto"
    CE = "ce"
    PYXIS = "pyxis"
    ENROOT = "enroot"
    PODMAN = "podman"


class SquashMethod(StrEnum):
    """How an image becomes a SquashFS file.

    `merge`: mksquashfs on new layers, and all layers merged. `direct`: mksquashfs on the mounted image.
    `enroot`: `enroot import`.
    """

    MERGE = "merge"
    DIRECT = "direct"
    ENROOT = "enroot"


class MountMode(StrEnum):
    """Where squashed layers are mounted for a build, instead of being loaded into podman's storage.

    `auto`: in the storage that each job has of its own.
    """

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


class Compression(StrEnum):
    """The compressor of mksquashfs; `auto` is zstd where mksquashfs has it, else one that it has."""

    AUTO = "auto"
    ZSTD = "zstd"
    LZ4 = "lz4"
    LZO = "lzo"
    GZIP = "gzip"
    XZ = "xz"


# mksquashfs -Xcompression-level; lz4 and xz have no levels.
HIGHEST_LEVEL = {
    Compression.AUTO: 22,
    Compression.ZSTD: 22,
    Compression.LZ4: 0,
    Compression.LZO: 9,
    Compression.GZIP: 9,
    Compression.XZ: 0,
}


class Isolation(StrEnum):
    """podman build --isolation; empty is podman's own choice."""

    DEFAULT = ""
    OCI = "oci"
    ROOTLESS = "rootless"
    CHROOT = "chroot"


class Entrypoint(StrEnum):
    """When the EDF runs the image's ENTRYPOINT; `auto`: if our Dockerfile sets it and it starts."""

    AUTO = "auto"
    TRUE = "true"
    FALSE = "false"


def minutes(raw: object) -> int:
    """Parse a time limit into whole minutes, rounded up, from minutes or from one of Slurm's forms.

    The forms are those of sbatch(1), --time: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S.
    """
    expected = 'minutes, or a time such as "12:00:00" or "1-06:00"'
    if not isinstance(raw, str):
        try:
            return whole()(raw)
        except ValueError:
            raise wrong(expected, raw) from None
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", raw.strip(), re.ASCII)
    if match is None:
        raise wrong(expected, raw)
    days, *parts = (None if part is None else int(part) for part in match.groups())
    first, second, third = parts
    if days is not None or third is not None:
        hours, mins, seconds = first or 0, second or 0, third or 0
    else:
        hours, mins, seconds = 0, first or 0, second or 0
    return (days or 0) * 1440 + hours * 60 + mins + -(-seconds // 60)


def _absolute_or_empty(raw: object) -> str:
    if (path := toml_schema.text(raw)) and not path.startswith("/"):
        raise wrong("an absolute path, or an empty string for this checkout", raw)
    return path


def _owner(raw: object) -> str:
    if not re.fullmatch(r"@?[^@\s:/]+", toml_schema.text(raw)):
        raise wrong("the name of a user, or @ and the name of a group", raw)
    return str(raw)


def _label(raw: object) -> str:
    if not toml_schema.text(raw).isprintable():
        raise wrong("one line of text", raw)
    return str(raw)


def _time_of_day(raw: object) -> str:
    if not re.fullmatch(r"([01]?\d|2[0-3]):[0-5]\d", toml_schema.text(raw), re.ASCII):
        raise wrong('a time of day such as "02:00"', raw)
    return str(raw)


def _storage(raw: object) -> str:
    if (path := toml_schema.text(raw)) not in {"", "auto"} and not path.startswith(("/", "${")):
        raise wrong('"auto", an absolute path, or an empty string', raw)
    return path


def _option(raw: object) -> str:
    if not re.match(r"-[^-\s]|--[^\s=]", toml_schema.text(raw)):
        raise wrong("an option that begins with -, its value joined to it as in --qos=debug", raw)
    return str(raw)


def _volume(raw: object) -> str:
    source, *rest = toml_schema.text(raw).split(":")
    if not source.startswith("/") or len(rest) not in {1, 2} or not rest[0].startswith("/"):
        raise wrong("a volume SRC:DST[:OPTIONS] of absolute paths", raw)
    return str(raw)


def _block_size(raw: object) -> int:
    size_bytes = whole()(raw)
    if size_bytes not in BLOCK_SIZES_BYTES:
        raise wrong("a power of two from 4096 to 1048576", raw)
    return size_bytes


class Slurm(Struct, frozen=True):
    """Options of job steps and allocations."""

    account: Annotated[str, Key("account; empty: the user's default one")] = ""
    partition: Annotated[str, Key("partition; empty: the cluster's default one")] = ""
    nodes: Annotated[int, Key("nodes of the allocation that a run takes", whole(1))] = 1
    time_limit_min: Annotated[
        int, Key('of that allocation: minutes, or "12:00:00"; 0: the partition\'s default', minutes)
    ] = 0
    cpus: Annotated[
        int, Key("CPUs of a step; 0: whole nodes are taken, and a step gets a quarter of one")
    ] = 0
    extra: Annotated[
        tuple[str, ...], Key("more options for salloc; inside an allocation, for srun", each_of(_option))
    ] = ()
    retries: Annotated[int, Key("how often a step is tried again when its node fails")] = 2


def _arch(raw: object) -> dict[str, Mapping[str, object]]:
    if not isinstance(raw, dict):
        raise wrong('a table for each machine, such as { x86_64 = { partition = "mi300" } }', raw)
    tables: dict[str, Mapping[str, object]] = {}
    for name, table in raw.items():
        parse_machine(name)
        if not isinstance(table, dict):
            raise wrong(f"a table with keys of slurm for {name}", table)
        values, problems = toml_schema.read(Slurm, table, lambda _path: "")
        if problems:
            raise ValueError(f"{name}: {problems[0].what}")
        tables[name] = {path[0]: value for path, value in values.items()}
    return tables


class Debug(Struct, frozen=True):
    """The interactive job of `doit remote` and `doit local`."""

    account: Annotated[str, Key("account of the interactive job; empty: slurm.account")] = ""
    partition: Annotated[str, Key("partition of the interactive job; empty: slurm.partition")] = ""
    time_limit_min: Annotated[
        int, Key('of the interactive job: minutes, or "00:30:00"; 0: the partition\'s default', minutes)
    ] = 0
    extra: Annotated[tuple[str, ...], Key("more options for its srun", each_of(_option))] = ()
    workdir: Annotated[
        str, Key("where it begins; empty: ~/scratch, else $SCRATCH, else the home directory")
    ] = ""


class NightlySettings(Struct, frozen=True):
    """The batch job of `doit nightly`."""

    account: Annotated[str, Key("account of the nightly job; empty: slurm.account")] = ""
    partition: Annotated[str, Key("partition of the nightly job; empty: slurm.partition")] = ""
    nodes: Annotated[int, Key("nodes of the nightly job; 0: slurm.nodes")] = 0
    time_limit_min: Annotated[
        int, Key('of the nightly job: minutes, or "08:00:00"; 0: slurm.time_limit_min', minutes)
    ] = 0
    extra: Annotated[tuple[str, ...], Key("more options for its sbatch", each_of(_option))] = ()
    signal_s: Annotated[
        int,
        Key("seconds before the time limit at which the run begins to end", whole(1, _MOST_SIGNAL_S)),
    ] = 300
    resubmit: Annotated[
        bool, Key("a job that runs out of time with work left is followed by one more")
    ] = True
    pull: Annotated[bool, Key("git pull --ff-only before the run")] = False
    allow_dirty: Annotated[
        bool, Key("run also in a checkout with local changes, or diverged from its upstream")
    ] = False
    at: Annotated[str, Key("the time of day in `doit nightly --cron`", _time_of_day)] = "02:00"
    mail_type: Annotated[str, Key("when Slurm sends mail, as in END,FAIL; empty: never")] = ""
    mail_user: Annotated[str, Key("to whom; empty: who submits")] = ""
    hook: Annotated[
        tuple[str, ...],
        Key("a command and its arguments; at the end it gets the summary as JSON on standard input"),
    ] = ()
    report: Annotated[str, Key("where the report is written; empty: nowhere")] = ".rc/report.html"


class PodmanSettings(Struct, frozen=True):
    """Where podman keeps its images and how it runs a Dockerfile's commands."""

    storage: Annotated[
        str,
        Key(
            "directory of podman's images on a node, ${VAR} expanded there; auto: podman's own outside "
            "Slurm, /dev/shm/$USER/rc_tasks/JOB in a job; empty: podman's own everywhere",
            _storage,
        ),
    ] = "auto"
    driver: Annotated[str, Key("storage driver; empty: podman's choice")] = ""
    options: Annotated[tuple[str, ...], Key("storage options")] = ()
    network: Annotated[str, Key("network of RUN commands")] = "host"
    isolation: Annotated[Isolation, Key("isolation of RUN; empty: podman's choice")] = Isolation.DEFAULT
    runtime: Annotated[str, Key("OCI runtime; empty: podman's choice")] = ""
    cgroup_manager: Annotated[str, Key("cgroupfs or systemd; empty: podman's choice")] = ""
    volumes: Annotated[
        tuple[str, ...], Key("SRC:DST[:OPTIONS], mounted into every RUN", each_of(_volume))
    ] = ()


class Squash(Struct, frozen=True):
    """How image.sqsh is made."""

    method: Annotated[
        SquashMethod, Key("squash new layers alone, or (direct) the whole image, or enroot import")
    ] = SquashMethod.MERGE
    compression: Annotated[Compression, Key("auto: zstd where mksquashfs has it")] = Compression.AUTO
    level: Annotated[int, Key("compression level; 0: a fast one", whole(0, 22))] = 0
    block_size_bytes: Annotated[int, Key("block size, a power of two", _block_size)] = 131072
    processors: Annotated[int, Key("threads; 0: the CPUs of the step")] = 0


class StoreSettings(Struct, frozen=True):
    """The image store on the shared file system."""

    enabled: Annotated[bool, Key("keep every image in .rc/store, for other nodes and later jobs")] = True
    mount: Annotated[
        MountMode,
        Key("mount the layers of bases on nodes instead of loading them; auto: in a job's own storage"),
    ] = MountMode.AUTO
    previous: Annotated[
        int, Key("how many previous image.sqsh of an image are kept for `doit rollback`")
    ] = 2
    previous_days: Annotated[
        int,
        Key(
            "days that an image.sqsh stays after another replaced it: longer than jobs may run",
            whole(0, _MOST_DAYS),
        ),
    ] = 2


class Logs(Struct, frozen=True):
    """How long the logs of a step are kept; its newest log and that of its newest failure always are."""

    keep: Annotated[int, Key("how many logs of a step are kept", whole(1))] = 20
    days: Annotated[int, Key("days after which a log is removed", whole(1, _MOST_DAYS))] = 30


class HistorySettings(Struct, frozen=True):
    """How long `doit history` remembers."""

    days: Annotated[
        int, Key("days after which what a run did is no longer in `doit history`", whole(1, _MOST_DAYS))
    ] = 90


class EdfSettings(Struct, frozen=True):
    """Values for every env.toml."""

    mounts: Annotated[
        tuple[str, ...],
        Key("SRC:DST[:FLAGS], or a path to mount under its own name", each_of(schema.mount)),
    ] = ()
    workdir: Annotated[str, Key("first directory; empty: the image's WORKDIR, else /")] = ""
    entrypoint: Annotated[
        Entrypoint,
        Key("auto: true when a Dockerfile of ours sets an ENTRYPOINT that becomes its command"),
    ] = Entrypoint.AUTO
    writable: Annotated[bool, Key("the root file system may be written")] = True
    annotations: Annotated[
        Mapping[str, str], Key("options of the Container Engine's hooks", schema.annotations)
    ] = {}
    env: Annotated[Mapping[str, str], Key("environment variables", schema.variables)] = {}


class SettingRow(Struct, frozen=True):
    """One line of `doit settings`; `value` is TOML."""

    key: str
    value: str
    origin: str
    help: str


class Settings(Struct, frozen=True):
    """All settings. `origins` maps each dotted key to the file or variable that set it."""

    images_root: Annotated[
        str, Key("the official checkout; empty: this checkout itself", _absolute_or_empty)
    ] = ""
    images_owners: Annotated[
        tuple[str, ...],
        Key(
            "whose official images a clone adopts, beside root's and your own: users, and @groups that "
            "may write there",
            each_of(_owner),
        ),
    ] = ()
    source: Annotated[
        str, Key("URL of this repository, for the label org.opencontainers.image.source", _label)
    ] = ""
    top_projects: Annotated[
        bool, Key("directories with a Dockerfile beside projects/ are projects, too")
    ] = True
    runner: Annotated[Runner, Key("where steps run; auto: through Slurm where there is Slurm")] = (
        Runner.AUTO
    )
    launcher: Annotated[
        Launcher,
        Key(
            "what starts containers: ce (CSCS Container Engine), pyxis, enroot or podman; auto: the "
            "first of these that is there"
        ),
    ] = Launcher.AUTO
    slurm: Slurm = Slurm()
    arch: Annotated[
        Mapping[str, Mapping[str, object]],
        Key("keys of slurm for images of a machine, such as arch.x86_64.partition", _arch),
    ] = field(default_factory=dict)
    debug: Debug = Debug()
    nightly: NightlySettings = NightlySettings()
    podman: PodmanSettings = PodmanSettings()
    squash: Squash = Squash()
    store: StoreSettings = StoreSettings()
    logs: Logs = Logs()
    history: HistorySettings = HistorySettings()
    edf: EdfSettings = EdfSettings()
    origins: Mapping[str, str] = field(default_factory=dict)

    def slurm_for(self, machine: str) -> Slurm:
        """Return the options of Slurm for a machine; empty for the one that steps run on anyway."""
        overrides: Overrides[Slurm] = Overrides(self.arch.get(machine, {}))
        return overrides.apply(self.slurm)

    def items(self) -> Iterator[tuple[str, object, Leaf]]:
        """Yield every setting, and each entry of a free table: dotted key, value and leaf."""
        for path, leaf in toml_schema.leaves(Settings).items():
            value: object = self
            for part in path:
                value = getattr(value, part)
            free = value if leaf.is_table and isinstance(value, dict) and value else {None: value}
            for key, item in free.items():
                yield ".".join(path if key is None else (*path, key)), item, leaf

    def rows(self) -> list[SettingRow]:
        """Return every setting with its value and origin, as `doit settings` shows it."""
        return [
            SettingRow(name, toml_text.dump(value), self.origins.get(name, DEFAULT), leaf.help)
            for name, value, leaf in self.items()
        ]


def files(root: Path, environ: Mapping[str, str], home: Path) -> tuple[Path, Path, Path]:
    """Return the files of the settings, later ones override: the checkout's, the user's, the clone's."""
    config = environ.get("XDG_CONFIG_HOME", "")
    # The XDG base directory specification says to ignore a relative path.
    user = (Path(config) if config.startswith("/") else home / ".config") / LOCAL_FILE
    return root / "pyproject.toml", user, root / LOCAL_FILE


def load(root: Path, environ: Mapping[str, str], home: Path) -> Settings:
    """Return the settings of a checkout for one user. Raise one SettingsError for all problems."""
    shared, user, local = files(root, environ, home)
    shown_path = f"~/{user.relative_to(home)}" if user.is_relative_to(home) else str(user)
    source = sources.from_file(Settings, shared, shared.name, ("tool", "rc_tasks"))
    source |= sources.from_file(Settings, user, shown_path)
    source |= sources.from_file(Settings, local, LOCAL_FILE)
    source |= sources.from_environment(Settings, environ, "RC", RESERVED)

    settings = toml_schema.build(Settings, source.values)
    squash = settings.squash
    highest = HIGHEST_LEVEL[squash.compression]
    problems = list(source.problems)
    if squash.level > highest:
        limit = f"has levels up to {highest}" if highest else "has no levels"
        where = source.origins["squash", "level"]
        problems.append(
            Problem(where, f"squash.level: {squash.compression} {limit}, found {squash.level}")
        )
    if problems:
        raise toml_schema.failure(SettingsError, problems, "the settings")
    return replace(settings, origins={".".join(path): origin for path, origin in source.origins.items()})


def reference_markdown() -> str:
    """Return the table of all settings in docs/reference/settings.md."""
    lines = ["| key | default | variable | meaning |", "|---|---|---|---|"]
    for path, leaf in toml_schema.leaves(Settings).items():
        name = "" if leaf.is_table else f"`{sources.variable('RC', path)}`"
        default = toml_text.dump(leaf.default)
        lines.append(f"| `{toml_schema.name(path)}` | `{default}` | {name} | {leaf.help} |")
    return "\n".join(lines) + "\n"
