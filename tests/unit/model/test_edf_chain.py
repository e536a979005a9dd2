"""EDFs with bases, variables and paths: the documented rules of the Container Engine, as a table."""

import os
import random
from pathlib import Path

import pytest

from rc_tasks.errors import EdfError
from rc_tasks.model.edf import chain
from rc_tasks.model.edf.chain import ResolvedEdf, search_name

HOST = {"USER": "ann", "SCRATCH": "/scratch/ann", "EMPTY": "", "NODE": "nid1", "COLON": "/a:b"}


class Place:
    """A home with EDFs, and the directory that we are in."""

    def __init__(self, directory: Path) -> None:
        self.home = directory / "home"
        self.cwd = directory / "work dir"
        self.environ = {**HOST, "HOME": str(self.home)}
        self.cwd.mkdir()
        (self.home / ".edf").mkdir(parents=True)

    def write(self, path: str, text: str) -> Path:
        """`~/…` is the home, anything else is relative to the current directory."""
        file = self.home / path[2:] if path.startswith("~/") else self.cwd / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        return file

    def resolve(self, reference: str, **image: str) -> ResolvedEdf:
        return chain.resolve(
            reference, environ=self.environ, cwd=self.cwd, image_environ=lambda _: image
        )

    def fail(self, reference: str) -> str:
        with pytest.raises(EdfError) as caught:
            self.resolve(reference)
        return str(caught.value)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def summary(found: ResolvedEdf) -> dict[str, object]:
    """All that an EDF says and that is not its default."""
    told: dict[str, object] = {
        "image": found.image,
        "workdir": found.workdir,
        "entrypoint": found.entrypoint,
        "writable": found.writable,
        "mounts": [
            ":".join((each.source, each.destination, *filter(None, ["+".join(each.flags)])))
            for each in found.mounts
        ],
        "env": dict(found.env),
        "unset": list(found.unset),
        "annotations": dict(found.annotations),
        "devices": list(found.devices),
    }
    default = dict.fromkeys(told, "") | {"entrypoint": False, "writable": True}
    return {key: value for key, value in told.items() if value not in ([], {}, default[key])}


# Each rule of the EDF reference and of the search path with an example of ours: the EDF, what becomes
# of it. @ stands for the current directory.
BASES = {
    "site": 'image = "quay.io#team/base:1"\nmounts = ["/opt:/opt"]\nworkdir = "/site"\n'
    'writable = false\n[env]\nA = "site"\nB = "site"\n[annotations]\ncom.hooks.cxi.enabled = "true"\n',
    "python": 'base_environment = "site"\nmounts = ["/py:/py"]\nentrypoint = true\n'
    '[env]\nB = "python"\n',
    "extra": 'image = "team/extra:2"\nmounts = ["/extra:/extra"]\n[env]\nC = "extra"\n',
    "team:2025.1": 'image = "team/colon"\n',
    "sub/dir": 'image = "team/sub"\n',
}
DOCUMENTED = {
    # base_environment
    "one-base": (
        'base_environment = "extra"',
        {"image": "team/extra:2", "mounts": ["/extra:/extra"], "env": {"C": "extra"}},
    ),
    "bases-in-order": (
        'base_environment = ["python", "extra"]',
        {
            "image": "team/extra:2",
            "workdir": "/site",
            "entrypoint": True,
            "writable": False,
            "mounts": ["/opt:/opt", "/py:/py", "/extra:/extra"],
            "env": {"A": "site", "B": "python", "C": "extra"},
            "annotations": {"com.hooks.cxi.enabled": "true"},
        },
    ),
    "own-values-last": (
        'base_environment = ["site"]\nimage = "a/b"\nwritable = true\nworkdir = "/mine"\n'
        'mounts = ["/mine:/mine"]\nenv = { A = "mine", D = "mine" }\n'
        '[annotations.com.hooks]\ncxi.enabled = "false"\nssh.enabled = "true"',
        {
            "image": "a/b",
            "workdir": "/mine",
            "mounts": ["/opt:/opt", "/mine:/mine"],
            "env": {"A": "mine", "B": "site", "D": "mine"},
            "annotations": {"com.hooks.cxi.enabled": "false", "com.hooks.ssh.enabled": "true"},
        },
    ),
    "empty-image-overrides": (
        'base_environment = "extra"\nimage = ""',
        {"mounts": ["/extra:/extra"], "env": {"C": "extra"}},
    ),
    "base-by-relative-path": ('base_environment = "./bases/rel.toml"', {"image": "rel/rel"}),
    "base-by-variable": (
        'base_environment = "${NAME_OF_BASE:-extra}"\nimage = "x/y"\n[env]\nC = ""',
        {"image": "x/y", "mounts": ["/extra:/extra"], "unset": ["C"]},
    ),
    "base-with-colon": ('base_environment = "team:2025.1"', {"image": "team/colon"}),
    "base-in-subdirectory": ('base_environment = "sub/dir"', {"image": "team/sub"}),
    # image
    "image-of-docker-hub": ('image = "library/debian:12"', {"image": "library/debian:12"}),
    "image-of-registry": (
        'image = "ann@nvcr.io#nvidia/cuda:12"',
        {"image": "ann@nvcr.io#nvidia/cuda:12"},
    ),
    "image-file": ('image = "${SCRATCH}/i.sqsh"', {"image": "/scratch/ann/i.sqsh"}),
    "image-file-relative": ('image = "./i m.sqsh"', {"image": "@/i m.sqsh"}),
    "image-file-above": ('image = "../i.sqsh"', {"image": "@/../i.sqsh"}),
    # workdir, entrypoint, writable
    "workdir": ('workdir = "/home/${USER}/x"', {"workdir": "/home/ann/x"}),
    "workdir-relative": ('workdir = "./x"', {"workdir": "@/x"}),
    "entrypoint": ("entrypoint = true", {"entrypoint": True}),
    "read-only": ("writable = false", {"writable": False}),
    # mounts
    "mount": ('mounts = ["/a:/b"]', {"mounts": ["/a:/b"]}),
    "mount-bare": ('mounts = ["/capstor"]', {"mounts": ["/capstor:/capstor"]}),
    "mount-variables": (
        'mounts = ["${SCRATCH}:${SCRATCH}", "/s/${USER}:/s/${USER}"]',
        {"mounts": ["/scratch/ann:/scratch/ann", "/s/ann:/s/ann"]},
    ),
    "mount-flags": ('mounts = ["/a:/b:ro+private"]', {"mounts": ["/a:/b:ro+private"]}),
    "mount-squashfs": ('mounts = ["./d.sqsh:/d:sqsh"]', {"mounts": ["@/d.sqsh:/d:sqsh"]}),
    "mount-of-odd-names": ('mounts = ["/a b,ü:/\\"q\\""]', {"mounts": ['/a b,ü:/"q"']}),
    "mount-variable-with-colon": ('mounts = ["${COLON}:/x"]', {"mounts": ["/a:b:/x"]}),
    "mount-optional-part": ('mounts = ["/a${EMPTY}/${NONE:-}b:/x"]', {"mounts": ["/a/b:/x"]}),
    "mount-twice": (
        'base_environment = "site"\nmounts = ["/other:/opt/"]\nimage="x/y"\nworkdir="/"\n'
        'env = { A = "", B = "" }\nwritable=true\nannotations={}',
        {
            "image": "x/y",
            "workdir": "/",
            "mounts": ["/other:/opt"],
            "unset": ["A", "B"],
            "annotations": {"com.hooks.cxi.enabled": "true"},
        },
    ),
    # env and variables
    "env": ('[env]\nRUN = "production"\nN = "1"', {"env": {"RUN": "production", "N": "1"}}),
    "env-of-host": ('[env]\nN = "${NODE}-${USER}"', {"env": {"N": "nid1-ann"}}),
    "env-of-image-first": ('[env]\nPATH = "${PATH}:/x"', {"env": {"PATH": "/image/bin:/x"}}),
    "env-not-of-env": (
        '[env]\nUSER = "bob"\nHOST_USER = "${USER}"',
        {"env": {"USER": "bob", "HOST_USER": "ann"}},
    ),
    "env-empty-unsets": ('[env]\nX = ""\nY = "${NONE:-}"', {"unset": ["X", "Y"]}),
    "undefined-may-be-empty": ('workdir = "/w${NONE:-}"', {"workdir": "/w"}),
    "defined-and-empty": ('workdir = "/w${EMPTY}"', {"workdir": "/w"}),
    "dollars-keep-the-text": (
        '[env]\nA = "$${USER} $USER $$ ${USER}"',
        {"env": {"A": "${USER} $USER $$ ann"}},
    ),
    "expanded-once": ('[env]\nA = "$${${USER}}"', {"env": {"A": "${ann}"}}),
    "annotation": (
        '[annotations.com.hooks.ssh]\nauthorize_ssh_key = "/k/${USER}"\nenabled = "true"',
        {"annotations": {"com.hooks.ssh.authorize_ssh_key": "/k/ann", "com.hooks.ssh.enabled": "true"}},
    ),
    "devices": ('devices = ["nvidia.com/gpu=all"]', {"devices": ["nvidia.com/gpu=all"]}),
}


@pytest.mark.parametrize(("text", "expected"), DOCUMENTED.values(), ids=DOCUMENTED)
def test_documented_rules(place: Place, text: str, expected: dict[str, object]) -> None:
    for name, base in BASES.items():
        place.write(f"~/.edf/{name}.toml", base)
    place.write("bases/rel.toml", 'image = "rel/rel"')
    place.write("~/.edf/mine.toml", text)
    found = summary(place.resolve("mine", PATH="/image/bin"))

    def placed(value: object) -> object:
        if isinstance(value, list):
            return [placed(each) for each in value]
        if not isinstance(value, str) or not value.startswith("@"):
            return value
        path, colon, rest = value.partition(":")
        return os.path.normpath(f"{place.cwd}{path[1:]}") + colon + rest

    assert found == {key: placed(value) for key, value in expected.items()}


def test_three_ways_to_name_an_edf(place: Place) -> None:
    file = place.write("edfs/a b.toml", 'image = "x/y"')
    place.write("~/.edf/team:2025.1.toml", 'image = "x/z"')
    assert place.resolve(str(file)).path == file
    assert place.resolve("./edfs/a b.toml").path == file
    assert place.resolve("team:2025.1").image == "x/z"


def test_edf_path_is_searched_in_order_instead_of_the_home(place: Place) -> None:
    place.write("~/.edf/name.toml", 'image = "x/home"')
    place.write("one/only.toml", 'image = "x/one"')
    place.write("two/only.toml", 'image = "x/two"')
    place.environ["EDF_PATH"] = f"{place.cwd}/none:{place.cwd}/one::{place.cwd}/two"
    assert place.resolve("only").image == "x/one"
    assert "there is no name.toml in none, one, two" in place.fail("name")


def test_relative_paths_are_those_of_the_caller(place: Place) -> None:
    place.write("deep/er/e.toml", 'base_environment = "./base.toml"\nimage = "./i.sqsh"')
    place.write("base.toml", 'mounts = ["./data:/data"]')
    found = place.resolve("./deep/er/e.toml")
    assert found.image == f"{place.cwd}/i.sqsh"
    assert found.mounts[0].source == f"{place.cwd}/data"


def test_values_know_their_lines(place: Place) -> None:
    place.write("~/.edf/base.toml", 'image = "x/y"\nmounts = [\n  "/a:/a",\n\n  \'/b:/b\', # two\n]\n')
    place.write("~/.edf/top.toml", 'base_environment = "base"\n\n[env]\nA = "1"\n')
    found = place.resolve("top")
    assert [mount.where for mount in found.mounts] == ["~/.edf/base.toml:3", "~/.edf/base.toml:5"]
    assert found.where("image") == "~/.edf/base.toml:1"
    assert found.where("env", "A") == "~/.edf/top.toml:4"
    assert found.where("workdir").endswith("/.edf/top.toml")


def test_ten_levels_and_no_more(place: Place) -> None:
    for level in range(11):
        place.write(f"~/.edf/e{level}.toml", f'base_environment = "e{level + 1}"')
    place.write("~/.edf/e10.toml", 'image = "x/y"')
    assert place.resolve("e1").image == "x/y"
    told = place.fail("e0")
    assert "more than 10 levels" in told
    assert told.count("~/.edf/e") == 12  # where, and the whole chain


def test_a_base_that_many_share_is_read_once(place: Place) -> None:
    # 20 ** 9 ways lead to the last.
    for level in range(9):
        place.write(f"~/.edf/e{level}.toml", f"base_environment = {[f'e{level + 1}'] * 20}")
    place.write("~/.edf/e9.toml", 'mounts = ["/a:/a"]')
    assert len(place.resolve("e0").mounts) == 1


# The mistake, by what the file ~/.edf/e.toml holds, and what its error says.
MISTAKES = {
    "undefined": (
        '\nmounts = [\n"/a:/a",\n"${SCRTCH}:/s"]',
        "~/.edf/e.toml:4: mounts: the variable SCRTCH is not defined\n"
        "  next: export SCRTCH, or write ${SCRTCH:-} if it may be missing; $${SCRTCH} keeps the text",
    ),
    "undefined-in-base": ('base_environment = "${NONE}"', "~/.edf/e.toml:1: base_environment: the vari"),
    "undefined-in-env": ('[env]\n\nA = "${NONE}"', "~/.edf/e.toml:3: env.A: the variable NONE"),
    "undefined-in-annotation": (
        '[annotations.com.x]\ny = "${NONE}"',
        "~/.edf/e.toml:2: annotations.com.x.y: the variable NONE",
    ),
    "brace-open": ('workdir = "/${USER"', "~/.edf/e.toml:1: workdir: ${USER is not a variable"),
    "brace-empty": ('image = "${}"', "~/.edf/e.toml:1: image: ${} is not a variable"),
    "brace-shell": ('image = "${USER%x}"', "~/.edf/e.toml:1: image: ${USER%x} is not a variable"),
    "mount-source-empty": (
        'mounts = ["${EMPTY}:/x"]',
        "~/.edf/e.toml:1: mounts: ${EMPTY}:/x becomes :/x, which are not absolute paths",
    ),
    "mount-name": ('mounts = ["data:/x"]', "~/.edf/e.toml:1: mounts: expected a mount SRC:DST"),
    "mount-squashfs-and": ('mounts = ["/a:/x:sqsh+ro"]', "~/.edf/e.toml:1: mounts: sqsh stands beside"),
    "workdir-relative": ('workdir = "x"', "~/.edf/e.toml:1: workdir: expected an absolute path"),
    "base-missing": (
        '\nbase_environment = ["site",\n "comon"]',
        "~/.edf/e.toml:3: there is no comon.toml in ~/.edf\n  next: did you mean common?",
    ),
    "base-file-missing": ('base_environment = "/no/x.toml"', "~/.edf/e.toml:1: there is no /no/x.toml"),
    "base-with-suffix": ('base_environment = "common.toml"', "~/.edf/e.toml:1: 'common.toml' names"),
    "base-empty": ('base_environment = ["site", ""]', "~/.edf/e.toml:1: '' names no EDF"),
    "base-is-a-directory": ('base_environment = "/"', "/: is not a file"),
    "base-of-itself": (
        'base_environment = "e"',
        "~/.edf/e.toml: base_environment leads back to a file of the same chain\n"
        "  | ~/.edf/e.toml\n  |   ~/.edf/e.toml\n",
    ),
    "cycle": (
        'base_environment = "cycle"',
        "~/.edf/e.toml: base_environment leads back to a file of the same chain\n"
        "  | ~/.edf/e.toml\n  |   ~/.edf/cycle.toml\n  |     ~/.edf/e.toml\n",
    ),
    "broken-base": ('base_environment = "broken"', "~/.edf/broken.toml:2: not valid TOML"),
    "wrong-types": (
        "image = 5\nworkdir = true\n[env]\nA = 1",
        "3 problems in ~/.edf/e.toml\n  | ~/.edf/e.toml:1: image: expected a string",
    ),
    "unknown-key": ('imag = "x"', "~/.edf/e.toml:1: imag is not a known key"),
    "not-utf8": ('image = "\udcff"', "~/.edf/e.toml:1: not UTF-8"),
}


@pytest.mark.parametrize(("text", "expected"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_told_with_their_place(place: Place, text: str, expected: str) -> None:
    place.write("~/.edf/site.toml", BASES["site"])
    place.write("~/.edf/common.toml", BASES["extra"])
    place.write("~/.edf/cycle.toml", 'base_environment = "e"')
    place.write("~/.edf/broken.toml", '\nimage = "x\n')
    (place.home / ".edf" / "e.toml").write_bytes(text.encode(errors="surrogateescape"))
    told = place.fail("e")
    assert told.startswith(expected), told
    # "expected …" says what to write.
    assert "  next: " in told or "expected" in told


def test_the_chain_stands_below_an_error_in_a_base(place: Place) -> None:
    place.write("~/.edf/a.toml", 'base_environment = "b"')
    place.write("~/.edf/b.toml", 'base_environment = "gone"')
    assert place.fail("a") == (
        "~/.edf/b.toml:1: there is no gone.toml in ~/.edf\n"
        "  | ~/.edf/a.toml\n"
        "  |   ~/.edf/b.toml\n"
        "  next: write NAME to search EDF_PATH (~/.edf), else a path that begins with / or ./"
    )


@pytest.mark.parametrize(
    "reference", ["", ".", "..", "./no.toml", "/no/no.toml", "no", "no.toml", "a\0b"]
)
def test_references_to_nothing(place: Place, reference: str) -> None:
    assert "next: " in place.fail(reference)


def test_a_search_path_that_is_none(place: Place) -> None:
    place.environ["EDF_PATH"] = "edfs"
    assert place.fail("x").startswith("EDF_PATH: 'edfs' is not an absolute path")
    del place.environ["EDF_PATH"], place.environ["HOME"]
    assert "set HOME or EDF_PATH" in place.fail("x")


def test_what_is_no_file_is_not_waited_for(place: Place) -> None:
    os.mkfifo(place.cwd / "fifo.toml")
    assert place.fail("./fifo.toml").startswith("fifo.toml: is not a file")
    (place.cwd / "gone.toml").symlink_to("nowhere")
    assert place.fail("./gone.toml").startswith("gone.toml: is not a file")


NAMES = {
    "reasoning:2025.1": "reasoning:2025.1",
    "reasoning_base": "reasoning_base",
    "a-b.c__d:V1.2-rc": "a-b.c__d:V1.2-rc",
    "name.toml": "name.toml_",
    "x:1.toml": "x:1.toml_",
    "a/b c$d": "a_b_c_d",
    ".hidden": "_.hidden",
    "-dash": "_-dash",
    "ü\n": "__",
    "": "_",
}


@pytest.mark.parametrize(("name", "expected"), NAMES.items())
def test_names_for_the_search(place: Place, name: str, expected: str) -> None:
    legal = search_name(name)
    assert legal == expected
    assert search_name(legal) == legal
    file = place.write(f"~/.edf/{legal}.toml", 'image = "x/y"')
    assert place.resolve(legal).path == file


def test_no_text_gives_a_traceback(place: Place) -> None:
    pieces = [
        *("base_environment = ", "image = ", "mounts = ", "workdir = ", "writable = ", "env = "),
        *("[env]", "[annotations]", "[annotations.a]", "[", "]", "{", "}", '"', "'", '"""', "\n", ", "),
        *(
            '"e"',
            '"./e.toml"',
            '"${HOME}"',
            '"${X"',
            '"/a:/b"',
            '":"',
            '"${A:-:}:"',
            '"$${"',
            '"\\u0000"',
        ),
        *("true", "1", "a.b = ", "\\", "#", "\r", "\x00", "é", "1979-05-27", "nan", "=", "."),
    ]
    chosen = random.Random(4)
    for _ in range(500):
        place.write("~/.edf/e.toml", "".join(chosen.choices(pieces, k=chosen.randrange(1, 12))))
        try:
            place.resolve("e")
        except EdfError as error:
            assert error.what, error
