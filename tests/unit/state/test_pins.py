"""bases.lock: what it may say, who may write it, and what it makes stale."""

import json
import os
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from msgspec.structs import replace

from rc_tasks.errors import PinError, RcError
from rc_tasks.model.config.settings import SquashMethod
from rc_tasks.model.graph.pin import LOCK, Pin, parse, with_pin
from rc_tasks.state.bases.pins import Pins
from rc_tasks.state.bases.registry_bases import BaseKind, registry_bases
from rc_tasks.state.checkout import open_checkout
from rc_tasks.state.disk.locks import held
from rc_tasks.state.judge import Judge
from rc_tasks.state.records.records import Failure, Step
from rc_tasks.state.records.status import State
from rc_tasks.steps.doctor import credentials
from rc_tasks.tools.registry import Refusal, RegistryError, refusal
from tests.support.checkouts import pretend_built, write_checkout
from tests.support.doit import doit

A, B, C = (f"sha256:{letter * 64}" for letter in "abc")
AT = "2026-01-02T10:04:00+00:00"
BASE = "nvcr.io/nvidia/pytorch:25.01-py3"
ENTRY = f'["{BASE}"]\ndigest = "{A}"\n'
HOSTILE = (
    "[::1]:5000/a:1",
    "127.0.0.1:5000/x_y/z--a:T.a-g_1",
    "debian",
    "x.example/" + "a/" * 90 + "b:1",
)


@pytest.mark.parametrize("reference", [BASE, *HOSTILE])
def test_a_pin_is_read_as_it_was_written(reference: str) -> None:
    pin = Pin(A, AT, B, "docker.io/library/debian:12")
    text = with_pin(with_pin("", reference, Pin(C)), reference, pin)
    assert parse(text) == {reference: pin}
    assert text.startswith("# ") and "doit bases --update" in text


def test_new_pins_are_sorted_and_comments_stay_with_theirs() -> None:
    text = with_pin("", "m.example/m:1", Pin(A, AT))
    text = text.replace('["m.example', '# because of CUDA\n["m.example')
    for reference in ("z.example/z:1", "a.example/a:1", "n.example/n:1"):
        text = with_pin(text, reference, Pin(B, AT))
    assert [*tomllib.loads(text)] == sorted(parse(text))
    assert '# because of CUDA\n["m.example/m:1"]' in text
    moved = with_pin(text, "m.example/m:1", Pin(C, AT, previous=A))
    assert [line for line in text.splitlines() if line not in moved and A not in line] == []
    assert parse(moved)["m.example/m:1"] == Pin(C, AT, previous=A)


@pytest.mark.parametrize(
    "text",
    [
        f'"{BASE}" = {{ digest = "{A}" }} # inline\n',
        f'"{BASE}".digest = "{A}" # dotted\n',
        f"['{BASE}']\n# no line end\ndigest = '{A}'",
        f'["{BASE}"]\r\ndigest = "{A}" # windows\r\n',
        f'# a comment that says ["zzz"]\n\n["{BASE}"]\ndigest = "{A}"\n\n# the end\n',
    ],
    ids=["inline", "dotted", "no line end", "crlf", "odd comments"],
)
def test_a_pin_that_people_wrote_in_their_way_can_be_moved(text: str) -> None:
    assert parse(text) == {BASE: Pin(A)}
    moved = with_pin(with_pin(text, BASE, Pin(B, AT, previous=A)), "a.example/x:1", Pin(C))
    assert parse(moved) == {BASE: Pin(B, AT, previous=A), "a.example/x:1": Pin(C)}
    comments = [part for part in text.split() if part in ("inline", "dotted", "windows", "end")]
    assert all(comment in moved for comment in comments)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (f"<<<<<<< HEAD\n{ENTRY}=======\n{ENTRY}>>>>>>> theirs\n", 1, "could not merge"),
        (f"{ENTRY}||||||| 1234\n", 3, "could not merge"),
        (ENTRY.replace(A, "sha256:123"), 2, "expected sha256: and 64 hex digits"),
        (ENTRY.replace(A, A.upper()), 2, "expected sha256: and 64 hex digits"),
        (ENTRY.replace(f'"{A}"', "12"), 2, "expected sha256: and 64 hex digits"),
        (f'{ENTRY}previous = "x"\n', 3, "previous: expected"),
        (f'{ENTRY}digset = "x"\n', 3, "digset is not a known key"),
        (f'{ENTRY}pinned_at = "yesterday"\n', 3, "pinned_at: expected a time"),
        (f"{ENTRY}pinned_at = [1]\n", 3, "pinned_at: expected a time"),
        (f"{ENTRY}name = 3\n", 3, "name: expected a reference"),
        (f'{ENTRY}name = "; rm -rf /"\n', 1, "is not an image reference"),
        (f'["{BASE}"]\n', 1, "has no digest"),
        (f'"{BASE}" = "{A}"\n', 1, "expected a table"),
        (f'["Not/A reference"]\ndigest = "{A}"\n', 1, "is not an image reference"),
        (f'["a\\u001b[31m\\n"]\ndigest = "{A}"\n', 1, "is not an image reference"),
        (f'["{BASE}@{A}"]\ndigest = "{A}"\n', 1, "has a digest, and needs no pin"),
        (f"{ENTRY}{ENTRY}", 3, "not valid TOML"),
        ("\0", 1, "not valid TOML"),
    ],
)
def test_what_is_wrong_in_the_file_is_told_with_its_line(text: str, line: int, words: str) -> None:
    with pytest.raises(PinError) as error:
        parse(text)
    assert str(error.value).startswith(f"{LOCK}:{line}: ")
    assert words in str(error.value) and "next: " in str(error.value)
    assert "\x1b" not in str(error.value)


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(PinError) as error:
        parse('["a:1"]\ndigest = "x"\n["b:1"]\ndigest = "y"\n')
    assert f"{LOCK}:2" in str(error.value) and f"{LOCK}:4" in str(error.value)


def pins(tmp_path: Path) -> Pins:
    return Pins(tmp_path / LOCK, tmp_path / ".rc/locks/_bases.json")


def test_steps_at_once_lose_none_of_their_pins(tmp_path: Path) -> None:
    names = [f"r.example/base{number}:1" for number in range(12)]
    with ThreadPoolExecutor(6) as pool:
        got = [*pool.map(lambda name: pins(tmp_path).first(name, Pin(A)), names)]
    assert got == [Pin(A)] * 12
    assert pins(tmp_path).read() == dict.fromkeys(names, Pin(A))


def test_the_first_of_two_pins_of_a_base_counts(tmp_path: Path) -> None:
    assert pins(tmp_path).first(BASE, Pin(A)) == Pin(A)
    assert pins(tmp_path).first(BASE, Pin(B)) == Pin(A)
    assert pins(tmp_path).read() == {BASE: Pin(A)}


def test_a_broken_file_is_never_written_over(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text("<<<<<<< HEAD\n")
    with pytest.raises(PinError):
        pins(tmp_path).first(BASE, Pin(A))
    with pytest.raises(PinError):
        pins(tmp_path).move({BASE: Pin(A)})
    assert (tmp_path / LOCK).read_text() == "<<<<<<< HEAD\n"


def test_what_cannot_be_read_or_written_is_told(tmp_path: Path) -> None:
    (tmp_path / LOCK).mkdir()
    with pytest.raises(RcError, match="something else is in this place"):
        pins(tmp_path).first(BASE, Pin(A))
    with pytest.raises(RcError, match="something else is in this place"):
        pins(tmp_path).read()


def test_whoever_writes_waits_for_the_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ThreadPoolExecutor(1) as pool:
        with held(pins(tmp_path).lock, "writing bases.lock"):
            waiting = pool.submit(pins(tmp_path).first, BASE, Pin(A))
            said = ""
            while "waiting for" not in said:
                assert not waiting.done()
                # Rarely: what is printed while this reads is lost.
                time.sleep(0.2)
                said += capsys.readouterr().out
            assert pins(tmp_path).read() == {}
        assert waiting.result() == Pin(A)
    assert pins(tmp_path).read() == {BASE: Pin(A)}


FILES = {
    "projects/app:1/Dockerfile": "ARG TAG=25.01-py3\nFROM nvcr.io/nvidia/pytorch:$TAG\nRUN true\n",
    "projects/top:1/Dockerfile": "FROM app:1\nRUN true\n",
    "projects/many:1/Dockerfile": (
        f"FROM r.example/unneeded:1 AS unneeded\n"
        f"FROM --platform=linux/s390x r.example/foreign:1 AS far\n"
        f"FROM r.example/own:1@{A} AS own\nFROM debian\nCOPY --from=far /x /x\nCOPY --from=own /y /y\n"
        f"COPY --from=r.example/tools:2 /z /z\n"
    ),
    "projects/alone:1/Dockerfile": "FROM scratch\nCOPY Dockerfile /x\n",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    found = write_checkout(tmp_path / "it's ours", FILES)
    pretend_built(found)
    return found


def states(root: Path) -> dict[str, tuple[State, tuple[str, ...]]]:
    judge = Judge(open_checkout(root, {}))
    found = {name: judge.image(name) for name in ("app:1", "top:1", "many:1", "alone:1")}
    return {name: (status.state, status.reasons) for name, status in found.items()}


def write(root: Path, **found: Pin) -> None:
    pins_of = open_checkout(root, {}).pins
    pins_of.move({"debian" if name == "debian" else BASE: pin for name, pin in found.items()})


FRESH: tuple[State, tuple[str, ...]] = (State.FRESH, ())
WORDS = f"base image {BASE} was pinned to another digest"


def test_records_from_before_pins_stay_fresh_until_a_pin_is_moved(root: Path) -> None:
    write(root, base=Pin(A))
    assert set(states(root).values()) == {FRESH}
    write(root, base=Pin(B, previous=A))
    found = states(root)
    assert found["app:1"] == (State.STALE, (WORDS,))
    assert found["top:1"] == (State.STALE, ("base image app:1 is stale",))
    assert found["many:1"] == found["alone:1"] == FRESH


def test_a_moved_pin_makes_stale_what_stands_on_it_and_no_more(root: Path) -> None:
    write(root, base=Pin(A), debian=Pin(A))
    pretend_built(root)
    write(root, debian=Pin(B, previous=A))
    found = states(root)
    assert found.pop("many:1") == (State.STALE, ("base image debian was pinned to another digest",))
    assert set(found.values()) == {FRESH}
    ran = doit(root, "why", "many:1")
    assert f"was pinned to another digest: {'a' * 12} → {'b' * 12}\n" in ran.text
    write(root, debian=Pin(A, previous=B))
    assert set(states(root).values()) == {FRESH}, "back to what it was built from"


def test_a_pin_that_is_taken_out_makes_nothing_stale(root: Path) -> None:
    write(root, base=Pin(A))
    pretend_built(root)
    (root / LOCK).unlink()
    assert set(states(root).values()) == {FRESH}


def test_a_step_that_pinned_and_failed_has_failed(root: Path) -> None:
    checkout = open_checkout(root, {})
    (root / "projects/app:1/Dockerfile").write_text(f"FROM {BASE}\nRUN false\n")
    checkout = open_checkout(root, {})
    inputs = Judge(checkout).inputs(Step.PODMAN, "app:1")
    checkout.records.put_failure(Step.PODMAN, "app:1", Failure(inputs, AT, "it failed", "log"))
    write(root, base=Pin(A))
    assert states(root)["app:1"][0] is State.FAILED


def test_a_broken_file_concerns_only_images_on_registry_bases(root: Path) -> None:
    (root / LOCK).write_text(f"\n<<<<<<< HEAD\n{ENTRY}")
    found = states(root)
    assert found["alone:1"] == FRESH
    for name in ("app:1", "many:1"):
        state, (reason,) = found[name]
        assert state is State.FAILED and reason.startswith(f"{LOCK}:2: git could not merge")
    for argv in (("list",), ("plan",), ("why", "top:1"), ("list", "--json")):
        ran = doit(root, *argv)
        assert f"{LOCK}:2: git could not merge" in ran.text and "Traceback" not in ran.text, ran.text
    ran = doit(root, "bases")
    assert ran.status == 3 and f"{LOCK}:2: git could not merge" in ran.text, ran.text
    ran = doit(root, "doctor", environ={"RC_RUNNER": "local"})
    assert f"problem  {LOCK}:2" in ran.text, ran.text


def test_which_bases_a_pin_stands_for(root: Path) -> None:
    checkout = open_checkout(root, {})
    assert set(checkout.graph.images["many:1"].pinned) == {"debian", "r.example/tools:2"}
    found = registry_bases(checkout.graph, {"debian": Pin(B), "gone:1": Pin(C)})
    assert {base.reference: (base.kind, base.digest) for base in found} == {
        BASE: (BaseKind.NOT_PINNED, None),
        "debian": (BaseKind.PINNED, B),
        "gone:1": (BaseKind.UNUSED, C),
        "r.example/foreign:1": (BaseKind.FOREIGN, None),
        f"r.example/own:1@{A}": (BaseKind.IN_DOCKERFILE, A),
        "r.example/tools:2": (BaseKind.NOT_PINNED, None),
    }
    (app,) = [base for base in found if base.reference == BASE]
    assert (app.images, app.dependents) == (("app:1",), ("top:1",))
    (own,) = [base for base in found if base.kind is BaseKind.IN_DOCKERFILE]
    assert own.whole == f"r.example/own@{A}"


@pytest.mark.parametrize(
    ("reference", "pin", "exact"),
    [
        ("debian:12", Pin(A), f"debian@{A}"),
        ("debian:12", Pin(A, name="quay.io/x/debian:12"), f"quay.io/x/debian@{A}"),
        ("localhost:5000/a:1", Pin(A), f"localhost:5000/a@{A}"),
    ],
)
def test_what_is_pulled_for_a_pin(reference: str, pin: Pin, exact: str) -> None:
    assert pin.exact(reference) == exact


def test_the_table_of_bases_and_its_json(root: Path) -> None:
    write(root, base=Pin(A, AT), debian=Pin(B))
    ran = doit(root, "bases")
    assert ran.status == 0, ran.text
    rows = {line.split()[0]: line for line in ran.text.splitlines()}
    assert " days  app:1" in rows[BASE] and "aaaaaaaaaaaa " in rows[BASE]
    assert "  aaaaaaaaaaaa (in the Dockerfile)  " in rows["r.example/own:1"]
    assert "r.example/unneeded:1" not in rows
    found = json.loads(doit(root, "bases", "top:1", "--json").text)
    assert [(base["base"], base["digest"], base["built_on"]) for base in found] == [(BASE, A, ["top:1"])]
    assert json.loads(doit(root, "bases", "--json", "alone:1").text) == []
    assert doit(root, "bases", "alone:1").text == "no image of this checkout uses a registry base\n"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("nvcr.io/nvidia/pytorch:25.02-py3",), f"did you mean {BASE}"),
        (("--check", "--update"), "give one of them"),
        (("--chek",), "not recognized"),
    ],
)
def test_wrong_arguments_are_told(root: Path, argv: tuple[str, ...], words: str) -> None:
    ran = doit(root, "bases", *argv)
    assert ran.status == 3 and words in ran.text and "next: " in ran.text, ran.text


def test_without_skopeo_check_and_update_say_what_to_do(root: Path, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/git").symlink_to("/usr/bin/git")
    for option in ("--check", "--update"):
        ran = doit(root, "bases", option, environ={"PATH": str(tmp_path / "bin")})
        assert ran.status == 3 and "skopeo was not found" in ran.text, ran.text
        assert "a machine that has it" in ran.text
    assert not (root / LOCK).exists()


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (
            r"Error parsing image name \"docker://x/denied:1\": dial tcp 1.2.3.4:443: i/o timeout",
            "unreachable",
        ),
        ("dial tcp: lookup nosuch.invalid: no such host", "unresolved"),
        ("reading manifest 1 in x/y: manifest unknown: manifest unknown", "unknown"),
        ("reading manifest 1 in x/y: name unknown: repository name not known to registry", "unknown"),
        ("reading manifest 1 in x/y: unauthorized: authentication required", "unauthorised"),
        ("requested access to the resource is denied", "unauthorised"),
        ("toomanyrequests: You have reached your pull rate limit", "limited"),
        ("received unexpected HTTP status: 503 Service Unavailable", "failing"),
        ("x509: certificate signed by unknown authority", "untrusted"),
        ("http: server gave HTTP response to HTTPS client", "untrusted"),
        ("something new", "other"),
    ],
)
def test_what_a_registry_refuses_is_told_by_kind(text: str, kind: str) -> None:
    assert refusal(text) is Refusal(kind)
    error = RegistryError(Refusal(kind), "debian:12", (text,))
    assert error.hint and ("{" not in error.hint)


def test_credentials_are_told_by_presence_and_mode_and_never_shown(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "a home"
    auth, netrc = home / ".config/containers/auth.json", home / ".config/enroot/.credentials"
    for path in (auth, netrc):
        path.parent.mkdir(parents=True)
    auth.write_text(
        json.dumps({"auths": {"nvcr.io": {"auth": "c2VjcmV0"}, "https://index.docker.io/v1/": {}}})
    )
    netrc.write_text("machine r.example login me password s3cret\n")
    auth.chmod(0o644)
    netrc.chmod(0o600)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    checkout = open_checkout(root, {})
    found = [*credentials.findings(checkout)]
    told = "\n".join(f"{each.level} {each.what} {each.hint}" for each in found)
    assert "credentials for docker.io, nvcr.io" in told and "no credentials for r.example" in told
    assert f"chmod 600 '{auth}'" in told and "mode 0644" in told
    assert str(netrc) not in told
    assert "c2VjcmV0" not in told and "s3cret" not in told
    auth.chmod(0o600)
    settings = replace(
        checkout.settings, squash=replace(checkout.settings.squash, method=SquashMethod.ENROOT)
    )
    netrc.chmod(0o640)
    told = "\n".join(
        f"{each.what} {each.hint}" for each in credentials.findings(replace(checkout, settings=settings))
    )
    assert "credentials for docker.io, nvcr.io, r.example" in told
    assert f"chmod 600 '{netrc}'" in told
    for text in ("[]", '{"auths": 3}', "\0", '{"auths": {"nvcr.io": null}, "credHelpers": [1]}'):
        auth.write_text(text)
        assert [*credentials.findings(checkout)]
    assert os.environ["HOME"] == str(home)


def test_no_finding_where_no_base_comes_from_a_registry(tmp_path: Path) -> None:
    found = write_checkout(tmp_path, {"projects/alone:1/Dockerfile": "FROM scratch\n"})
    assert [*credentials.findings(open_checkout(found, {}))] == []
