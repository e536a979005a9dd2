"""Whatever is written in a file that we read: a value or the documented error, never a traceback."""

import json
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from rc_tasks.engine.nightly.summary import load_begun
from rc_tasks.errors import DockerfileError, EdfError, PinError, RcError, SettingsError
from rc_tasks.model.config import project_toml
from rc_tasks.model.config.settings import load as load_settings
from rc_tasks.model.dockerfile import parser
from rc_tasks.model.dockerfile.instructions import encode, instructions
from rc_tasks.model.dockerfile.rewrite import rewrite
from rc_tasks.model.edf import merge, schema
from rc_tasks.model.edf.schema import EdfValues
from rc_tasks.model.graph import pin
from rc_tasks.model.graph.pin import Pin
from rc_tasks.model.manifest import manifest
from rc_tasks.model.reference import ImageReference, name_problem, near
from rc_tasks.state.disk import locks
from rc_tasks.state.disk.locks import Holder
from rc_tasks.state.history import HistoryEntry
from rc_tasks.state.records import records
from rc_tasks.state.records.records import Artifact, Facts, Passed, Record, Records, Step
from rc_tasks.state.store.catalogue import Catalogue
from rc_tasks.steps.podman.replacer import Replacer
from rc_tasks.util import toml_text
from rc_tasks.util.json_decode import parse
from rc_tasks.util.text import log_line, printable
from tests.support.checkouts import TEMPLATES

TRICKS = (
    *("$(touch x)", "`id`", "; rm -rf /", "%s%n{0}", "'", '"', '"""', "\\", "<script>", "&amp;"),
    *("\x1b[2J", "\x1b]0;title\x07", "\x9b31m", "\x00", "\x7f", "\u202e", "\ufeff", "\u2028", "é"),
    *("]", "[a]", "=", "#", "\n", "\r", "\r\n", "\t", "${", "$", ":", "@", ",", "{{ x }}", "<@ x @>"),
    *("FROM ", "AS ", "--mount=", "from=", "<<EOF", "9" * 5000, "\u0661", "²"),
)
TEXT = st.lists(st.one_of(st.text(max_size=8), st.sampled_from(TRICKS)), max_size=8).map("".join)
SENSIBLE = TEXT.filter(
    lambda text: "\0" not in text and not any("\ud800" <= c <= "\udfff" for c in text)
)
DEEP = b"[" * 5000


def as_bytes(text: str) -> bytes:
    return text.encode(errors="surrogatepass")


DATA = st.one_of(st.binary(max_size=60), TEXT.map(as_bytes))
JSON = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), TEXT, st.sampled_from([10**400, -1, "1"])
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=3)),
    max_leaves=8,
)

# Dockerfiles

WORDS = ("FROM", "ARG", "RUN", "COPY", "ADD", "ENV", "ONBUILD", "ENTRYPOINT", "#", "# escape=`", "from")
LINE = st.builds(
    lambda word, rest: f"{word} {rest}",
    st.one_of(st.sampled_from(WORDS), TEXT),
    st.one_of(
        TEXT,
        st.sampled_from(
            ("a AS b", "--platform=$A b", "A=${B:-c}", "--from=0 a b", f"--from={'9' * 5000} a /")
        ),
        st.builds(lambda text: f"--mount=type=bind,from={text} true", TEXT),
        st.builds(lambda text: f"--from={text} a /", TEXT),
    ),
)


def read_dockerfile(data: bytes, target: str | None = None) -> parser.Dockerfile:
    return parser.parse(
        data, where="Dockerfile", build_args={"A": "x"}, architecture="x86_64", target=target
    )


@given(st.lists(LINE, max_size=8).map(lambda lines: as_bytes("\n".join(lines))) | DATA, st.none() | TEXT)
@example(b"FROM a\nCOPY --from=" + b"9" * 5000 + b" / /\n", None)
@example("FROM a\nCOPY --from=\u0663 / /\n".encode(), None)
@example(b"FROM " + b"${A:-" * 2000, None)
@example(b"FROM a\nRUN [" + b"[" * 5000, None)
@example(b"FROM a\nCOPY --from=7 a b\nFROM a\n# \xe9\nRUN x \\\n# \xff\n y\nFROM a", "1")
def test_any_dockerfile(data: bytes, target: str | None) -> None:
    with only(DockerfileError):
        parsed = read_dockerfile(data, target)
        source = instructions(data, where="Dockerfile")
        given = rewrite(
            data,
            source,
            parsed,
            architecture="x86_64",
            ids={},
            build_args={"A": "x"},
            context_digest=lambda name, path: name + path,
            stages={},
            labels={"title": "hello"},
        )
        # podman reads a line more, with the labels, and the same needed stages.
        assert encode(given.text).count(b"\n") == data.count(b"\n") + 1
        rewritten = instructions(encode(given.text), where="Dockerfile").instructions
        assert [each.value for each in rewritten if each.name == "LABEL"][-1] == '"title"="hello"'
        again = read_dockerfile(encode(given.text), target)
        assert again.needed == parsed.needed


NAME = st.from_regex(r"[a-z][a-z0-9]{0,5}(?::[a-z0-9][a-z0-9.]{0,3})?", fullmatch=True)
STAGES = st.lists(
    st.tuples(NAME, st.lists(SENSIBLE.filter(lambda text: "\n" not in text), max_size=3), st.booleans()),
    min_size=1,
    max_size=5,
)


@given(STAGES)
def test_stages_of_a_dockerfile(stages: list[tuple[str, list[str], bool]]) -> None:
    lines = []
    for number, (base, values, entrypoint) in enumerate(stages):
        lines.append(f"FROM registry.example/{base} AS s{number}")
        # In the form of a list anything is written without a meaning of its own.
        lines += [f"RUN {json.dumps(['echo', value])}" for value in values]
        lines += ['ENTRYPOINT ["/run"]'] if entrypoint else []
        lines += [f"COPY --from=s{number - 1} /a /b"] if number else []
    found = read_dockerfile("\n".join(lines).encode())
    assert [stage.name for stage in found.stages] == [f"s{number}" for number in range(len(stages))]
    assert [stage.sets_entrypoint for stage in found.stages] == [each[2] for each in stages]
    assert [base.name for base in found.bases] == [f"registry.example/{each[0]}" for each in stages]
    assert found.needed == frozenset(range(len(stages)))


# References and words


@given(TEXT)
def test_reference(text: str) -> None:
    assert isinstance(name_problem(text), str | None)
    near(text, ("reasoning:2025.1", text))
    with only(DockerfileError):
        assert str(ImageReference.parse(text)) == text


@given(st.one_of(TEXT, st.text()))
def test_what_is_shown_commands_no_terminal(text: str) -> None:
    assert printable(text).isprintable()
    assert log_line(as_bytes(text)).isprintable()
    assert printable(printable(text)) == printable(text)


@given(DATA)
def test_any_line_of_a_log(data: bytes) -> None:
    assert log_line(data).isprintable()


# Secrets that begin, hold and overlap one another.
SECRETS = st.lists(st.text("ab\n.(é", min_size=1, max_size=6).map(str.encode), max_size=4)


@given(SECRETS, st.lists(st.text("ab\n.(éc", max_size=6).map(str.encode)))
@example([b"hf_user00", b"hf_user00:ThePassword1"], [b"hf_user00:Th", b"ePassword1\n"])
@example([b"aab", b"abb"], [b"aa", b"bb"])
def test_masked_however_it_comes_in_pieces(values: list[bytes], pieces: list[bytes]) -> None:
    whole = Replacer(dict.fromkeys(values, b"***"))
    wanted = whole(b"".join(pieces)) + whole(b"")
    mask = Replacer(dict.fromkeys(values, b"***"))
    shown = b"".join(map(mask, filter(None, pieces))) + mask(b"")
    assert shown == wanted
    assert not any(value in shown for value in values)


# TOML: EDFs, settings, project.toml, bases.lock

EDF_VALUES = st.builds(
    EdfValues,
    name=NAME,
    image=SENSIBLE.map("/official/".__add__),
    mounts=st.lists(st.sampled_from(("/a:/b", "/é x", "/$HOME:/h:ro", "/c")), unique=True).map(tuple),
    workdir=SENSIBLE,
    entrypoint=st.booleans(),
    writable=st.booleans(),
    annotations=st.dictionaries(
        st.sampled_from(("com.hooks.a.enabled", "com.hooks.a.variant", "other", "x y.z", "é")), SENSIBLE
    ),
    env=st.dictionaries(st.sampled_from(("A", "B_2")), SENSIBLE),
)
TEMPLATE = (TEMPLATES / "env.toml.j2").read_text()


def render(values: EdfValues) -> str:
    return schema.render(TEMPLATE, "env.toml.j2", values)


@given(EDF_VALUES)
def test_edf_reads_back_as_it_was_written(values: EdfValues) -> None:
    found = schema.loads(merge.merge(None, render(values), "env.toml"), "env.toml")
    assert found.image == str(values.image)
    assert (found.mounts, found.workdir) == (values.mounts, values.workdir)
    assert (found.entrypoint, found.writable) == (values.entrypoint, values.writable)
    assert dict(found.env) == dict(values.env)
    assert dict(found.annotations) == dict(values.annotations)


@settings(max_examples=settings().max_examples // 2)
@given(EDF_VALUES, EDF_VALUES, SENSIBLE)
def test_edf_keeps_what_people_wrote(before: EdfValues, after: EdfValues, comment: str) -> None:
    comment = "".join(char for char in comment if char.isprintable())
    written = merge.merge(None, render(before), "env.toml")
    edited = f"# {comment}\ndevices = [{json.dumps(comment, ensure_ascii=False)}]\n{written}"
    merged = merge.merge(edited, render(after), "env.toml")
    assert f"# {comment}\n" in merged
    found = schema.loads(merged, "env.toml")
    assert found.devices == (comment,)
    wanted = schema.loads(render(after), "env.toml")
    assert replace(found, devices=()) == wanted
    assert merge.merge(merged, render(after), "env.toml") == merged


@given(DATA, EDF_VALUES)
@example(b"x = " + b"9" * 5000, EdfValues("a", "/a"))
@example(b"x = " + DEEP, EdfValues("a", "/a"))
@example(b"[image]\na = 1\n", EdfValues("a", "/a"))
def test_any_env_toml(data: bytes, values: EdfValues) -> None:
    with only(EdfError):
        text = data.decode(errors="replace")
        merged = merge.merge(text, render(values), "env.toml")
        assert schema.loads(merged, "env.toml").image == str(values.image)


SETTING = st.sampled_from(
    ("images_root", "images_owners", "runner", "slurm", "slurm.extra", "podman.options", "squash")
)
RECIPE_KEY = st.sampled_from(
    ("secrets", "ssh", "smoke", "target", "build_args", "smoke_timeout_s", "slurm.nodes", "edf.env")
)
TOML_VALUE = st.one_of(
    DATA.map(lambda data: data.decode(errors="replace")),
    SENSIBLE.map(toml_text.dump),
    st.lists(SENSIBLE, max_size=3).map(toml_text.dump),
    st.sampled_from(
        (
            "9" * 5000,
            "-1",
            "nan",
            "inf",
            "1e400",
            "true",
            "{}",
            "{a = 1}",
            "[[]]",
            "1979-05-27",
            "0x" + "f" * 5000,
        )
    ),
)


def toml(keys: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    pair = st.builds("{} = {}".format, st.one_of(keys, SENSIBLE), TOML_VALUE)
    return st.one_of(TEXT, st.lists(pair, max_size=4).map("\n".join))


@given(
    toml(SETTING),
    st.dictionaries(st.sampled_from(("RC_RUNNER", "RC_SLURM_NODES", "RC_PODMAN_VOLUMES", "RC_X")), TEXT),
)
@example("x = " + "9" * 5000, {})
@example("", {"RC_SLURM_NODES": "9" * 5000})
@example("x = " + "[" * 5000, {})
def test_any_settings(text: str, environ: dict[str, str]) -> None:
    with directory() as root, only(SettingsError):
        (root / "pyproject.toml").write_bytes(as_bytes(f"[tool.rc_tasks]\n{text}"))
        load_settings(root, environ, root).rows()


@given(toml(RECIPE_KEY))
@example("smoke_timeout_s = " + "9" * 5000)
def test_any_project_toml(text: str) -> None:
    with directory() as root, only(SettingsError):
        (root / "project.toml").write_bytes(as_bytes(text))
        project_toml.load(root / "project.toml", "project.toml")


@given(toml(st.sampled_from(('["a:1"]\ndigest', '"b:2"', "digest"))))
@example("x = " + "9" * 5000)
@example('["a:1"]\ndigest = "sha256:' + "0" * 64 + '"\npinned_at = 0001-01-01T00:00:00+23:00\n')
def test_any_lock(text: str) -> None:
    with only(PinError):
        pin.parse(text)


PIN = st.builds(
    Pin,
    digest=st.from_regex(r"sha256:[0-9a-f]{64}", fullmatch=True),
    pinned_at=st.sampled_from(("", "2026-11-22T10:04:00+00:00")),
)


@settings(max_examples=settings().max_examples // 2)
@given(st.dictionaries(NAME, PIN, max_size=5), NAME, PIN)
def test_lock_reads_back_as_it_was_written(pins: dict[str, Pin], name: str, new: Pin) -> None:
    text = ""
    for reference, each in {**pins, name: new}.items():
        text = pin.with_pin(text, reference, each)
    moved = replace(new, digest="sha256:" + "0" * 64, previous=new.digest)
    assert pin.parse(text) == {**pins, name: new}
    assert pin.parse(pin.with_pin(text, name, moved)) == {**pins, name: moved}
    assert list(tomllib.loads(text)) == sorted({**pins, name: new})


# JSON: records, history, locks, manifests

RECORD = Record(
    {"Dockerfile": "0644 x"},
    "2026-01-02T03:04:05+00:00",
    "2026-01-02T03:04:15+00:00",
    10.0,
    "n",
    facts=Facts("f" * 64, "amd64", 1, "/", False),
    artifact=Artifact(1, 2, "s"),
    smoke=(Passed(("true",), "podman", 1.0),),
)
KNOWN: dict[str, object] = json.loads(records.as_text(RECORD, "podman:a:1"))
ENTRY: dict[str, object] = {
    **dict.fromkeys(HistoryEntry.__struct_fields__, ""),
    **{"step": "podman", "outcome": "done", "started_at": "2026-01-02T03:04:05+00:00"},
    **{"duration_s": 1, "queued_s": 0, "size_bytes": 3},
}
HOLDER: dict[str, object] = {
    **dict.fromkeys(Holder.__struct_fields__, "x"),
    **{"pid": 1, "since": "2026-01-02T03:04:05+00:00"},
}


def damaged(whole: dict[str, object]) -> st.SearchStrategy[bytes]:
    """A file with some values that are others, or with anything in it."""
    changes = st.dictionaries(st.sampled_from(sorted(whole)), JSON, min_size=1, max_size=2)
    changed = changes.map(lambda found: json.dumps({**whole, **found}).encode())
    return st.one_of(DATA, JSON.map(lambda found: json.dumps(found).encode()), changed, st.just(DEEP))


@given(damaged(KNOWN))
def test_any_record(data: bytes) -> None:
    found = records.parse(data, "podman:a:1")
    assert found is None or records.record_digest(found)


@given(st.text(max_size=20), st.dictionaries(SENSIBLE, SENSIBLE))
def test_record_reads_back_as_it_was_written(node: str, inputs: dict[str, str]) -> None:
    record = replace(RECORD, node=node, inputs=inputs)
    assert records.parse(records.as_text(record, "x").encode(), "x") == record


@given(damaged({"inputs": {}, "failed_at": "", "message": "", "log": ""}))
def test_any_failure(data: bytes) -> None:
    with directory() as root:
        kept = Records(root)
        (root / "podman:a:1.failed").write_bytes(data)
        found = kept.failure(Step.PODMAN, "a:1")
        assert found is None or isinstance(found.message, str)


@given(damaged(ENTRY))
def test_any_line_of_the_history(data: bytes) -> None:
    found = parse(HistoryEntry, data)
    assert found is None or found.began


@given(damaged(HOLDER))
@example(json.dumps({**HOLDER, "pid": "x"}).encode())
@example(json.dumps({**HOLDER, "pid": 10**400}).encode())
def test_any_lock_file(data: bytes) -> None:
    with directory() as root:
        (root / "a.json").write_bytes(data)
        found = locks.holder(root / "a.json")
        assert found is None or isinstance(found.pid, int)


@pytest.mark.parametrize("read", [manifest.parse_manifest, manifest.parse_origin])
@given(data=damaged({"schema": 1, "name": "a", "contents": {}, "files": {}, "size_bytes": 1}))
def test_any_manifest(read: Callable[[bytes], object], data: bytes) -> None:
    read(data)


@given(damaged({"job_id": "1", "started_at": "2026-01-02T03:04:05+00:00"}))
def test_any_file_of_a_night(data: bytes) -> None:
    with directory() as root:
        (root / "1.json").write_bytes(data)
        load_begun(root / "1.json")


@given(damaged({"images": [{"image_id": "a", "key": "b"}], "failed": []}))
def test_any_file_of_the_store(data: bytes) -> None:
    with directory() as root:
        catalogue = Catalogue(root)
        for file in (root / "cache" / "a.json", catalogue.base_file("a", "x86_64")):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
        catalogue.cache("a")
        catalogue.base("a", "x86_64")


@contextmanager
def only(error: type[RcError]) -> Iterator[None]:
    """The block may end with that error, which can be shown."""
    try:
        yield
    except error as told:
        assert str(told)


@contextmanager
def directory() -> Iterator[Path]:
    """A directory for one example."""
    with tempfile.TemporaryDirectory() as made:
        yield Path(made)
