"""Settings: four places, one value, every problem at once."""

from pathlib import Path

import pytest

from rc_tasks.errors import SettingsError
from rc_tasks.model.config import settings
from rc_tasks.model.config.settings import (
    Compression,
    Entrypoint,
    Isolation,
    Runner,
    Settings,
    SquashMethod,
)


class Places:
    """A checkout and a home directory in which a test writes settings."""

    def __init__(self, base: Path) -> None:
        self.root, self.home = base / "check out", base / "höme"
        self.root.mkdir()
        (self.home / ".config").mkdir(parents=True)

    def load(
        self, pyproject: str | bytes | None = None, user: str | None = None, **environ: str
    ) -> Settings:
        if pyproject is not None:
            data = pyproject.encode() if isinstance(pyproject, str) else pyproject
            (self.root / "pyproject.toml").write_bytes(data)
        if user is not None:
            (self.home / ".config/rc_tasks.toml").write_text(user)
        return settings.load(self.root, environ, self.home)


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(tmp_path)


def test_without_any_source_every_setting_has_its_default(places: Places) -> None:
    found = places.load()
    assert found == Settings()
    assert {row.origin for row in found.rows()} == {"default"}
    assert (found.runner, found.podman.network, found.squash.block_size_bytes) == (
        Runner.AUTO,
        "host",
        131072,
    )


def test_the_later_place_wins_key_by_key_and_is_named_as_origin(places: Places) -> None:
    found = places.load(
        '[tool.rc_tasks]\nrunner = "slurm"\nslurm.account = "a06"\nslurm.cpus = 2\n'
        'edf.annotations.com.hooks.cxi.enabled = "false"\n',
        '[slurm]\naccount = "mine"\npartition = "debug"\n[edf.annotations]\nmy.own = "1"\n',
        RC_SLURM_PARTITION="normal",
    )
    assert (found.runner, found.slurm.account) == (Runner.SLURM, "mine")
    assert (found.slurm.cpus, found.slurm.partition) == (2, "normal")
    assert found.edf.annotations == {"com.hooks.cxi.enabled": "false", "my.own": "1"}
    assert {key: found.origins[key] for key in ("runner", "slurm.account", "slurm.partition")} == {
        "runner": "pyproject.toml",
        "slurm.account": "~/.config/rc_tasks.toml",
        "slurm.partition": "RC_SLURM_PARTITION",
    }
    rows = {row.key: row for row in found.rows()}
    assert rows["slurm.partition"].value == '"normal"'
    assert rows["edf.annotations.my.own"].origin == "~/.config/rc_tasks.toml"
    assert rows["slurm.extra"].origin == "default"


def test_the_file_of_one_clone_wins_over_that_of_its_user(places: Places) -> None:
    (places.root / "rc_tasks.toml").write_text('podman.runtime = "runc"\nslurm.cpus = 3\n')
    found = places.load(None, "[slurm]\ncpus = 2\nnodes = 4\n", RC_PODMAN_RUNTIME="crun")
    assert (found.slurm.cpus, found.slurm.nodes, found.podman.runtime) == (3, 4, "crun")
    assert found.origins["slurm.cpus"] == "rc_tasks.toml"


def test_xdg_config_home_moves_the_users_file(places: Places, tmp_path: Path) -> None:
    (tmp_path / "rc_tasks.toml").write_text('runner = "local"')
    found = places.load(XDG_CONFIG_HOME=str(tmp_path))
    assert found.origins == {"runner": str(tmp_path / "rc_tasks.toml")}
    assert places.load(XDG_CONFIG_HOME="not/absolute").runner is Runner.AUTO


def value_at(found: Settings, key: str) -> object:
    value: object = found
    for part in key.split("."):
        value = getattr(value, part)
    return value


@pytest.mark.parametrize(
    ("line", "key", "expected"),
    [
        ('squash.method = "enroot"', "squash.method", SquashMethod.ENROOT),
        ('squash.compression = "lz4"', "squash.compression", Compression.LZ4),
        ("store.enabled = false", "store.enabled", False),
        ("slurm.time_limit_min = 90", "slurm.time_limit_min", 90),
        ('slurm.time_limit_min = "90"', "slurm.time_limit_min", 90),
        ('slurm.time_limit_min = "90:01"', "slurm.time_limit_min", 91),
        ('slurm.time_limit_min = "12:00:00"', "slurm.time_limit_min", 720),
        ('slurm.time_limit_min = "1-06"', "slurm.time_limit_min", 1800),
        ('slurm.time_limit_min = "1-06:30"', "slurm.time_limit_min", 1830),
        ('slurm.time_limit_min = "1-06:30:30"', "slurm.time_limit_min", 1831),
        ("edf.entrypoint = true", "edf.entrypoint", Entrypoint.TRUE),
        ('edf.entrypoint = "false"', "edf.entrypoint", Entrypoint.FALSE),
        ('edf.mounts = ["/a b", "${SCRATCH}"]', "edf.mounts", ("/a b:/a b", "${SCRATCH}:${SCRATCH}")),
        ('edf.mounts = ["${A:-/x}:/y:ro+private"]', "edf.mounts", ("${A:-/x}:/y:ro+private",)),
        ('edf.env.A = "it\'s \\"ü\\"\\n"', "edf.env", {"A": 'it\'s "ü"\n'}),
        ('[tool.rc_tasks.edf.annotations.a]\n"b.c" = "1"', "edf.annotations", {"a.b.c": "1"}),
        ('podman.isolation = "chroot"', "podman.isolation", Isolation.CHROOT),
        ('podman.volumes = ["/etc/apt:/etc/apt:ro"]', "podman.volumes", ("/etc/apt:/etc/apt:ro",)),
        ('podman.storage = "${TMPDIR}/p"', "podman.storage", "${TMPDIR}/p"),
        ('slurm.extra = ["--qos=debug", "-w n1"]', "slurm.extra", ("--qos=debug", "-w n1")),
    ],
)
def test_value_in_a_file(places: Places, line: str, key: str, expected: object) -> None:
    assert value_at(places.load(f"[tool.rc_tasks]\n{line}\n"), key) == expected


@pytest.mark.parametrize(
    ("name", "word", "key", "expected"),
    [
        ("RC_RUNNER", "local", "runner", Runner.LOCAL),
        ("RC_IMAGES_ROOT", "/a b:c", "images_root", "/a b:c"),
        ("RC_SLURM_TIME_LIMIT_MIN", "2:00:00", "slurm.time_limit_min", 120),
        ("RC_SLURM_CPUS", "3", "slurm.cpus", 3),
        ("RC_SLURM_EXTRA", "--comment='a b' -v", "slurm.extra", ("--comment=a b", "-v")),
        ("RC_SLURM_EXTRA", '["--comment=a b"]', "slurm.extra", ("--comment=a b",)),
        ("RC_SLURM_EXTRA", "", "slurm.extra", ()),
        ("RC_SQUASH_METHOD", "enroot", "squash.method", SquashMethod.ENROOT),
        ("RC_STORE_ENABLED", "0", "store.enabled", False),
        ("RC_EDF_WRITABLE", "False", "edf.writable", False),
        ("RC_EDF_ENTRYPOINT", "true", "edf.entrypoint", Entrypoint.TRUE),
        ("RC_EDF_MOUNTS", "'/a b' /c:/d", "edf.mounts", ("/a b:/a b", "/c:/d")),
        ("RC_PODMAN_STORAGE", "", "podman.storage", ""),
    ],
)
def test_value_in_a_variable(places: Places, name: str, word: str, key: str, expected: object) -> None:
    found = places.load(**{name: word})
    assert value_at(found, key) == expected
    assert set(found.origins.values()) == {name}


def test_variables_of_the_test_suite_and_of_others_are_left_alone(places: Places) -> None:
    assert places.load(RC_REQUIRE_TOOLS="1", RCFILE="x", HOME="/x") == Settings()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("runer = 1", "pyproject.toml:3: runer is not a known key\n  next: did you mean runner?"),
        ("slurm.cpuz = 1", "slurm.cpuz is not a known key\n  next: did you mean slurm.cpus?"),
        ('partition = "x"', "partition is not a known key\n  next: did you mean slurm.partition?"),
        ("zzz = 1", "zzz is not a known key\n  next: known here: arch, debug, edf,"),
        ('runner = "slrm"', 'runner: expected "auto", "slurm" or "local", found "slrm"'),
        ("slurm = 3", "slurm: expected a table, found 3"),
        (
            "store = false",
            "store: expected a table, found false\n"
            "  next: set one of its keys: store.enabled, store.mount, store.previous,"
            " store.previous_days",
        ),
        ('slurm.cpus = "2"', 'slurm.cpus: expected a whole number of at least 0, found "2"'),
        ("slurm.cpus = -1", "slurm.cpus: expected a whole number of at least 0, found -1"),
        ("slurm.cpus = true", "expected a whole number of at least 0, found true"),
        ("slurm.time_limit_min = -1", 'expected minutes, or a time such as "12:00:00"'),
        ('slurm.time_limit_min = "1h"', 'or "1-06:00", found "1h"'),
        ('slurm.extra = "--qos=x"', 'slurm.extra: expected a list of strings, found "--qos=x"'),
        ('slurm.extra = ["--qos", "x"]', "expected an option that begins with -"),
        ("slurm.account = ['a']", 'slurm.account: expected a string, found ["a"]'),
        ('slurm.account = "a\\u0000b"', "expected a string of UTF-8 without NUL"),
        ('images_root = "imgs"', "expected an absolute path, or an empty string"),
        ('podman.isolation = "vm"', 'expected "", "oci", "rootless" or "chroot"'),
        ('podman.volumes = ["/a"]', "expected a volume SRC:DST[:OPTIONS] of absolute paths"),
        ('podman.storage = "here"', 'expected "auto", an absolute path, or an empty string'),
        ('squash.method = "zip"', 'squash.method: expected "merge", "direct" or "enroot", found "zip"'),
        ("squash.level = 23", "expected a whole number from 0 to 22, found 23"),
        ('squash = {compression = "gzip", level = 10}', "gzip has levels up to 9, found 10"),
        ('squash = {compression = "xz", level = 1}', "xz has no levels, found 1"),
        ("squash.block_size_bytes = 5000", "expected a power of two from 4096 to 1048576"),
        ('store.enabled = "no"', 'store.enabled: expected true or false, found "no"'),
        ('edf.mounts = ["data:/data"]', "expected a mount SRC:DST of absolute paths"),
        ('edf.mounts = ["/p/r:1/d:/d"]', "a path that holds a colon can be mounted through a symlink"),
        ('edf.mounts = ["/a:/b:ro:x"]', "expected a mount such as /scratch:/scratch"),
        ("edf.annotations.a.b = true", 'a.b: expected a string, found true; write "true"'),
        ('edf.env."A=B" = "1"', '"A=B" cannot be the name of an environment variable'),
    ],
)
def test_mistake_in_a_file(places: Places, line: str, message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        places.load(f"# mine\n[tool.rc_tasks]\n{line}\n")
    assert message in str(caught.value)
    assert "pyproject.toml" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "word", "message"),
    [
        ("RC_RUNER", "local", "RC_RUNER: no setting has this variable\n  next: did you mean RC_RUNNER?"),
        (
            "RC_STORE",
            "0",
            "RC_STORE: no setting has this variable\n"
            "  next: did you mean RC_STORE_ENABLED or RC_STORE_MOUNT or RC_STORE_PREVIOUS or"
            " RC_STORE_PREVIOUS_DAYS?",
        ),
        ("RC_FOO_BAR", "", "no setting has this variable\n  next: `doit settings`"),
        (
            "RC_RUNNER",
            "",
            'RC_RUNNER: runner: expected "auto", "slurm" or "local", found ""\n'
            "  next: set another value, or unset this variable",
        ),
        ("RC_SLURM_CPUS", "two", 'expected a whole number of at least 0, found "two"'),
        ("RC_STORE_ENABLED", "yes", 'store.enabled: expected true or false, found "yes"'),
        ("RC_EDF_ANNOTATIONS_X", "1", "edf.annotations is a table and cannot be set from the"),
        ("RC_SLURM_EXTRA", "'--a", "slurm.extra: not shell words: No closing quotation"),
        ("RC_SLURM_EXTRA", "[--a", "expected a TOML array or shell words"),
        ("RC_SLURM_ACCOUNT", "\udcff", "expected a string of UTF-8 without NUL"),
    ],
)
def test_mistake_in_a_variable(places: Places, name: str, word: str, message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        places.load(**{name: word})
    assert message in str(caught.value)


def test_all_problems_of_all_places_are_told_at_once(places: Places) -> None:
    with pytest.raises(SettingsError) as caught:
        places.load(
            "[tool.rc_tasks]\nrunner = 1\nslurm.cpuz = 2\n", "[edf\n", RC_SLURM_CPUS="many", RC_X="1"
        )
    assert str(caught.value) == (
        "5 problems in the settings\n"
        '  | pyproject.toml:2: runner: expected "auto", "slurm" or "local", found 1\n'
        "  | pyproject.toml:3: slurm.cpuz is not a known key (did you mean slurm.cpus?)\n"
        "  | ~/.config/rc_tasks.toml:1: not valid TOML: Expected ']' at the end of a table declaration,"
        " column 5 (correct this line; strings need quotes, and a key may be given only once)\n"
        '  | RC_SLURM_CPUS: slurm.cpus: expected a whole number of at least 0, found "many"'
        " (set another value, or unset this variable)\n"
        "  | RC_X: no setting has this variable (`doit settings` lists all; unset this one)\n"
        "  next: correct the places named above"
    )


@pytest.mark.parametrize(
    ("data", "where", "what"),
    [
        (b'[tool.rc_tasks]\nrunner = "a\n', "pyproject.toml:2", "not valid TOML: Illegal character"),
        (b"[tool.rc_tasks]\nrunner = ", "pyproject.toml:2", "not valid TOML: Invalid value"),
        (b"a = 1\na = 2\n", "pyproject.toml:2", "Cannot overwrite a value"),
        (b"a = 1\nb = '\xff'\n", "pyproject.toml:2", "not UTF-8 (byte 0xff)"),
        (b"tool = 1\n", "pyproject.toml", "tool: expected a table, found 1"),
        (b"[tool]\nrc_tasks = 1\n", "pyproject.toml", "tool.rc_tasks: expected a table, found 1"),
        (b"a = " + b"[" * 5000, "pyproject.toml", "the TOML is nested too deeply"),
    ],
    ids=["string", "no-value", "duplicate", "latin-1", "tool", "rc_tasks", "deep"],
)
def test_broken_file(places: Places, data: bytes, where: str, what: str) -> None:
    with pytest.raises(SettingsError) as caught:
        places.load(data)
    assert caught.value.where == where
    assert what in caught.value.what


def test_byte_order_mark_and_crlf_are_fine(places: Places) -> None:
    found = places.load(b'\xef\xbb\xbf[tool.rc_tasks]\r\nrunner = "local"\r\n')
    assert found.runner is Runner.LOCAL


def test_unreadable_file_is_told(places: Places) -> None:
    (places.root / "pyproject.toml").mkdir()
    with pytest.raises(SettingsError, match="cannot be read: Is a directory"):
        places.load()


def test_the_reference_names_every_setting_its_variable_and_its_help() -> None:
    table = settings.reference_markdown().splitlines()
    assert '| `slurm.partition` | `""` | `RC_SLURM_PARTITION` | partition; empty: the cluster\'s' in (
        "\n".join(table)
    )
    keys = [line.split("`")[1] for line in table[2:]]
    assert keys == [row.key for row in Settings().rows()]
    assert all(row.help for row in Settings().rows())
