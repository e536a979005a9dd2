"""`doit report`: what is gathered, and that no value can be more than text on the page."""

import json
import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path

import pytest
from msgspec.structs import replace

from rc_tasks.commands.cli.command import execute
from rc_tasks.commands.report import write
from rc_tasks.engine.session import session
from rc_tasks.errors import RcError
from rc_tasks.model.graph.pin import Pin
from rc_tasks.model.graph.view import Edge, EdgeKind, GraphNode, GraphView, NodeKind
from rc_tasks.model.manifest.diff import compared
from rc_tasks.model.manifest.manifest import Contents, Distribution, Manifest, Origin, Package, document
from rc_tasks.model.manifest.manifest import PackageKind as Keeper
from rc_tasks.state.bases.registry_bases import BaseKind as How
from rc_tasks.state.bases.registry_bases import RegistryBase
from rc_tasks.state.checkout import Checkout, open_checkout
from rc_tasks.state.history import HistoryEntry, Outcome, RunHistory
from rc_tasks.state.judge import Judge
from rc_tasks.state.published import manifests
from rc_tasks.state.records.records import Failure, Passed, Step
from rc_tasks.state.records.status import State
from rc_tasks.views.report import details
from rc_tasks.views.report.manifest_summary import ManifestSummary, manifest_summary
from rc_tasks.views.report.overview import (
    FailedImage,
    ImageOverview,
    ImageRun,
    Overview,
    RecentChange,
    overview,
    recent_changes,
)
from rc_tasks.views.report.page import in_script, render
from rc_tasks.views.report.timeline import NOT_STARTED, timeline
from tests.support.checkouts import SOURCE, entered
from tests.support.overviews import team

FILES = {
    "projects/base:1/Dockerfile": "FROM nvcr.io/nvidia/pytorch:25.01-py3\n",
    "projects/app:1/Dockerfile": "FROM base:latest\n",
    "projects/app:2/Dockerfile": "FROM app:1\n",
    "projects/base:latest": "-> base:1",
    "projects/broken/Dockerfile": "FROM $NOWHERE\n",
    "projects/left/Dockerfile": "FROM right\n",
    "projects/right/Dockerfile": "FROM left\n",
}
BEGIN = datetime(2026, 11, 21, 1, 0, tzinfo=UTC)
# Where a name may be broken, and whether it fits on its bar.
BY_LENGTH = {"wbr", "text"}
HOSTILE = (
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    "</style></title><b>",
    "\"'><svg onload=alert(1)>",
    "' onclick='alert(1)",
    "--><!--",
    "]]>",
    "{{ 7 * 7 }}{% raw %}",
    "\x1b[31mred\x1b]0;title\x07",
    "line\nbreak\u2028separator\u2029paragraph\x00",
    "שלום:אחרון",
    "left\u202eright\u2066",
    "\udcff\ufffe",
    "&amp;&lt;",
    "javascript:alert(1)",
    "x" * 500,
)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with entered(tmp_path / "im gs", FILES, ["base:1"], monkeypatch) as made:
        yield made


def gathered(root: Path) -> Overview:
    checkout = open_checkout(root, {})
    return overview(checkout, Judge(checkout))


def entry(image: str, step: Step, **more: object) -> HistoryEntry:
    outcome = Outcome.DONE
    made = HistoryEntry("run", image, step, outcome, BEGIN.isoformat(), 60.0, 5.0, "node1")
    return replace(made, **more)


def run(root: Path, *entries: HistoryEntry) -> None:
    """Write a run's entries, each begun one minute after the one before it."""
    written = RunHistory(root / ".rc/history", entries[0].run)
    for number, each in enumerate(entries):
        written.append(replace(each, started_at=(each.began + timedelta(minutes=number)).isoformat()))


class Parsed(HTMLParser):
    """A page as a browser's parser sees it: elements with their attributes, texts, and the data."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.inside: dict[str, str] = {}
        self._raw = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        named = dict(attrs).get("id") or ""
        self._raw = f"{tag}{named}" if tag in {"script", "style"} else ""

    def handle_endtag(self, tag: str) -> None:
        self._raw = ""

    def handle_data(self, data: str) -> None:
        if self._raw:
            self.inside[self._raw] = self.inside.get(self._raw, "") + data
        else:
            self.text += data

    def kinds(self) -> set[tuple[str, str]]:
        """Every element with every name of an attribute that it has."""
        fixed = (each for each in self.elements if each[0] not in BY_LENGTH)
        return {(tag, name) for tag, attributes in fixed for name in ("", *attributes)}

    def tags(self) -> list[str]:
        """All elements in their order."""
        return [tag for tag, _ in self.elements if tag not in BY_LENGTH]


def test_images_are_gathered_with_all_that_the_listing_says(root: Path) -> None:
    images = {image.name: image for image in gathered(root).images}
    assert {name: image.state for name, image in images.items()} == {
        "base:1": State.FRESH,
        "app:1": State.MISSING,
        "app:2": State.MISSING,
        "broken": State.FAILED,
        "left": State.FAILED,
        "right": State.FAILED,
    }
    base = images["base:1"]
    assert base.bases == ("nvcr.io/nvidia/pytorch:25.01-py3",)
    assert base.aliases == ("base:latest",)
    assert base.size_bytes == (root / "projects/base:1/image.sqsh").stat().st_size
    assert base.built_at == "2026-01-02T03:04:15+00:00"
    assert (base.edf, base.edf_text) == ("projects/base:1/env.toml", 'image = "x"\n')
    assert images["app:1"].bases == ("base:1",)
    assert images["left"].bases == ("right",), "what is circular has bases too"
    assert images["broken"].reasons[0].startswith("projects/broken/Dockerfile:1")


def test_runs_are_told_by_image_and_the_newest_as_a_whole(root: Path) -> None:
    run(root, *(entry("base:1", step, run="a", size_bytes=100) for step in Step))
    later = (BEGIN + timedelta(days=1)).isoformat()
    run(
        root,
        entry("base:1", Step.PODMAN, run="b", started_at=later, outcome=Outcome.RETRIED, node="gone"),
        entry("base:1", Step.PODMAN, run="b", started_at=later),
        entry("base:1", Step.ENROOT, run="b", started_at=later, size_bytes=120, duration_s=30.0),
        entry("app:1", Step.PODMAN, run="b", started_at=later, outcome=Outcome.FAILED),
        entry("no-more", Step.PODMAN, run="b", started_at=later),
    )
    # What only wrote env.toml is no build.
    run(root, entry("app:2", Step.ENV, run="0", started_at="2026-11-20T00:00:00+00:00"))
    found = gathered(root)
    images = {image.name: image for image in found.images}
    assert [(b.run, b.duration_s, b.size_bytes, b.failed) for b in images["base:1"].built] == [
        ("a", 180.0, 100, False),
        ("b", 90.0, 120, False),
    ]
    assert [(b.duration_s, b.failed) for b in images["app:1"].built] == [(0, True)]
    assert images["app:2"].built == ()
    assert [(e.image, e.step, e.outcome) for e in found.tries] == [
        ("base:1", Step.PODMAN, Outcome.RETRIED),
        ("base:1", Step.PODMAN, Outcome.DONE),
        ("base:1", Step.ENROOT, Outcome.DONE),
        ("app:1", Step.PODMAN, Outcome.FAILED),
        ("no-more", Step.PODMAN, Outcome.DONE),
    ]


def test_a_failure_names_the_images_that_wait_for_it(root: Path) -> None:
    (root / "projects/app:1/project.toml").write_text("nonsense = 1\n")
    shown = gathered(root)
    (failed,) = [failed for failed in shown.failures if failed.image == "app:1"]
    assert failed.waiting == ("app:2",)
    images = {image.name: image for image in shown.images}
    assert images["app:1"].bases == ("base:1",), "a broken project.toml hides no base"
    page = render(shown, SOURCE)
    assert 'Not built because of it: <a href="#image%3Aapp%3A2">app:2</a>' in page


def test_changes_since_yesterday_are_listed_once_for_each_image() -> None:
    now = BEGIN + timedelta(days=2)

    def at(hours_ago: int, image: str, step: Step = Step.ENROOT, **more: object) -> HistoryEntry:
        return entry(image, step, started_at=(now - timedelta(hours=hours_ago)).isoformat(), **more)

    past = [
        at(1, "grown", size_bytes=150, image_id="b", image_id_before="a", reason="by <b>"),
        at(2, "broken", Step.PODMAN, outcome=Outcome.FAILED),
        at(3, "same", size_bytes=100, image_id="c", image_id_before="c"),
        at(4, "broken", size_bytes=10),
        at(5, "built", Step.PODMAN),
        at(30, "grown", size_bytes=100),
        at(31, "old", size_bytes=100),
    ]
    changes = list(recent_changes(past, now))
    assert [(change.image, change.outcome) for change in changes] == [
        ("grown", Outcome.DONE),
        ("broken", Outcome.FAILED),
        ("same", Outcome.DONE),
    ]
    assert [change.size_change_bytes for change in changes] == [50, None, None]
    assert [change.is_same for change in changes] == [False, False, True]
    page = render(Overview(root=SOURCE, made_at=now, recent=tuple(changes)), SOURCE)
    assert "another image, +50 B" in page
    assert "published again, the same image" in page
    assert "<td>by &lt;b&gt;</td>" in page


def test_failures_are_those_that_stand_and_those_of_the_last_run(root: Path) -> None:
    log = root / ".rc/logs/app:1/podman/2026-11-21T01-00-00.000Z.7.log"
    log.parent.mkdir(parents=True)
    log.write_bytes(b"".join(b"line %d\n\n" % number for number in range(30)))
    shown = str(log.relative_to(root))
    checkout = open_checkout(root, {})
    inputs = Judge(checkout).inputs(Step.PODMAN, "app:1")
    failure = Failure(inputs, "2026-11-21T01:00:09+00:00", "RUN false failed", shown)
    checkout.records.put_failure(Step.PODMAN, "app:1", failure)
    run(
        root,
        entry("app:1", Step.PODMAN, outcome=Outcome.FAILED, log=shown),
        entry("base:1", Step.ENROOT, outcome=Outcome.FAILED, log=".rc/logs/../../pyproject.toml"),
    )
    failures = {failed.image: failed for failed in gathered(root).failures}
    assert set(failures) == {"app:1", "base:1", "broken", "left", "right"}
    app = failures["app:1"]
    assert (app.step, app.message, app.log) == (Step.PODMAN, "RUN false failed", shown)
    assert app.tail == tuple(b"line %d" % number for number in range(10, 30))
    base = failures["base:1"]
    assert (base.state, base.step, base.message) == (State.FRESH, Step.ENROOT, "")
    assert base.tail == (), "only logs are shown"
    circle = sorted((failures["left"].message, failures["right"].message), key=len)
    assert circle[0] in {"as left", "as right"}
    assert "built on one another" in circle[1]
    assert "next:" in circle[1]


@pytest.mark.parametrize(
    "line",
    [
        '{"duration_s": 1e300}',
        '{"queued_s": 1e300}',
        '{"started_at": "9999-12-31T23:59:59+00:00", "duration_s": 9e9}',
        '{"started_at": "0001-01-02T00:00:00+00:00", "queued_s": 9e9}',
        '{"size_bytes": -5}',
        '{"node": null, "reason": 7}',
    ],
)
def test_a_damaged_history_still_makes_a_page(root: Path, line: str) -> None:
    usual = {"run": "r", "image": "base:1", "step": "podman", "outcome": "done", "queued_s": 0}
    usual |= {"started_at": BEGIN.isoformat(), "duration_s": 1}
    history = root / ".rc/history"
    history.mkdir(parents=True)
    (history / "r.jsonl").write_text(f"{json.dumps({**usual, **json.loads(line)})}\nnoise\n")
    assert "Last run" in render(gathered(root), SOURCE)


def manifest(number: int, *packages: Package, text: str = "usual") -> Manifest:
    """A build of base:1; `text` stands wherever an image can have put one."""
    contents = Contents(Distribution(text, text, text), packages, {text: 2000 + number, "/usr": 1000}, 7)
    origin = Origin(
        f"FROM {text}\nRUN {text}{number}\n", {text: f"{text}{number}"}, f"{text}{number}",
        {text: f"{text}{number}"}, {text: f"{text}{number}"}, BEGIN.isoformat(), text, text, text,
    )  # fmt: skip
    published_at = (BEGIN + timedelta(days=number)).isoformat()
    name, image_id = "base:1", f"{number:064x}"
    return Manifest(name, image_id, "arm64", published_at, 100 + number, 900, contents, origin)


def hostile_inside(text: str) -> ManifestSummary:
    old, new = (
        manifest(number, Package(keeper, text, f"{text}{number}", text), text=text)
        for number, keeper in ((1, Keeper.PYTHON), (2, Keeper.PYTHON))
    )
    return ManifestSummary(text, {Keeper.DPKG: 3}, ((text, 1000),), compared(old, new))


def hostile(text: str) -> Overview:
    """A page's worth of one text, wherever a file or a tool could have put it."""
    tries = tuple(
        HistoryEntry(
            text, text, step, outcome, BEGIN.isoformat(), 60.0, 5.0, text, text, reason=text, log=text
        )
        for step in Step
        for outcome in Outcome
    )
    built = ImageRun(text, BEGIN, ((Step.PODMAN, 60.0), (Step.ENROOT, 5.0)), 1000)
    image = ImageOverview(
        text,
        State.FAILED,
        (text, text),
        1000,
        text,
        text,
        True,
        (text,),
        (text,),
        text,
        text,
        (built, built),
        (Passed((text, text), text, 1.0),),
        text,
        hostile_inside(text),
        text,
        text,
    )
    nodes = (GraphNode(text, NodeKind.IMAGE, "failed", (text,)), GraphNode(f"{text}2", NodeKind.ALIAS))
    picture = GraphView(nodes, (Edge(text, f"{text}2", EdgeKind.ALIAS),))
    failures = (
        FailedImage(text, State.FAILED, text, Step.PODMAN, text, text, (text.encode(errors="replace"),)),
        FailedImage(text, State.STALE, "", Step.ENROOT, "", text, waiting=(text,)),
    )
    return Overview(
        Path("/tmp") / text.replace("/", "_").replace("\x00", "_"),
        BEGIN, (image,), picture, tries, failures,
        (RegistryBase(text, How.PINNED, Pin(text, BEGIN.isoformat()), (text, text), (text,)),),
        (text,), text, text, 3, (RecentChange(text, Outcome.DONE, text, text, False, 5),), 7,
    )  # fmt: skip


def keep(root: Path, *found: Manifest) -> Checkout:
    """Leave manifests as builds would have, the last of them of what is published."""
    checkout = open_checkout(root, {})
    published = checkout.records.get(Step.ENROOT, "base:1")
    assert published is not None
    for number, each in enumerate(found):
        last = each is found[-1]
        image_id = published.inputs["image"] if last else each.image_id
        manifests.put(checkout, replace(each, image_id=image_id))
        path = root / f".rc/manifests/base:1/{image_id}"
        assert each.origin is not None
        origin = {"name": each.name, "image_id": image_id, **document(each.origin)}
        Path(f"{path}.origin.json").write_text(json.dumps(origin))
        os.utime(f"{path}.json", (number, number))
    return checkout


def dpkg(name: str, version: str) -> Package:
    return Package(Keeper.DPKG, name, version)


SAME = tuple(dpkg(f"same{number}", "1") for number in range(50))


def shown_of(root: Path, name: str = "base:1") -> tuple[dict[str, list[str]], list[str]]:
    """The facts of an image by their names, and the lines of what changed."""
    found = gathered(root)
    (image,) = (each for each in found.images if each.name == name)
    facts: dict[str, list[str]] = {}
    for key, text in details.facts(image, found):
        facts.setdefault(key, []).append(text)
    return facts, list(details.changed(image))


def test_an_image_tells_what_is_inside_and_what_its_last_rebuild_changed(root: Path) -> None:
    twice = (dpkg("twice", "1"), dpkg("twice", "1"))
    many = [dpkg(f"p{number:02}", "1") for number in range(42)]
    keep(
        root,
        manifest(1, dpkg("older", "1")),
        manifest(2, *SAME, *twice, dpkg("libc6", "2.36-9")),
        manifest(3, *SAME, *many, twice[0], dpkg("libc6", "2.36-10")),
    )
    facts, (between, *lines) = shown_of(root)
    assert facts["System"] == ["usual"]
    assert facts["Packages"] == ["94 dpkg"]
    assert facts["Largest"] == ["usual 2 kB, /usr 1 kB"]
    assert between.startswith("000000000000 of 2026-11-23 ")
    assert "  -RUN usual2" in lines
    assert "  +RUN usual3" in lines
    assert "packages    1 upgraded, 42 added, 1 removed" in lines
    at = lines.index("dpkg")
    assert lines[at + 1] == "  upgraded    libc6  2.36-9 → 2.36-10"
    assert lines[at + 2] == "  added       p00    1"
    assert lines[-1] == "  … and 32 more"
    assert len(lines) - at == 14


def test_a_summary_is_the_same_as_that_of_whole_manifests(root: Path) -> None:
    old = manifest(1, *SAME, dpkg("a", "1"), dpkg("a", "2"), dpkg("b", "1"))
    new = manifest(2, *SAME, dpkg("a", "2"), dpkg("a", "3"), dpkg("c", "1"), dpkg("c", "1"))
    checkout = keep(root, old, new)
    found = manifest_summary(checkout, "base:1")
    assert found is not None and found.changes is not None
    assert found.changes.packages == compared(old, new).packages


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("new", b"{"),
        ("new", b'{"schema": 1}'),
        ("new", b"[[[["),
        ("old", b"null"),
        ("old", b'{"contents": {"packages": [[]]}}'),
        ("new", b"[" * 100_000),
        ("old", b'{"contents": {"packages": [{"kind": {}}]}}'),
        ("old", b"soon"),
    ],
)
def test_a_damaged_manifest_leaves_the_page_whole(root: Path, file: str, damage: bytes) -> None:
    checkout = keep(root, manifest(1, dpkg("a", "1")), manifest(2, dpkg("a", "2")))
    present = manifests.present_id(checkout, "base:1")
    image_id = present if file == "new" else f"{1:064x}"
    path = root / f".rc/manifests/base:1/{image_id}.json"
    if damage == b"soon":
        damage = path.read_bytes().replace(b'"published_at":"2026', b'"published_at":"soon')
    path.write_bytes(damage)
    facts, changed = shown_of(root)
    assert changed == []
    assert ("System" in facts) == (file == "old")
    render(gathered(root), SOURCE)


def test_a_rolled_back_image_says_so_everywhere(root: Path) -> None:
    newest, latest = manifest(3, dpkg("a", "3")), manifest(4, dpkg("a", "4"))
    checkout = keep(root, newest, latest, manifest(2, dpkg("a", "2")))
    published = checkout.records.get(Step.ENROOT, "base:1")
    built = checkout.records.get(Step.PODMAN, "base:1")
    assert published is not None and built is not None and built.facts is not None
    facts = replace(built.facts, image_id=newest.image_id)
    checkout.records.put(Step.PODMAN, "base:1", replace(built, facts=facts))
    tests = (
        Passed(("python", "-c", "import it's"), "podman", 2.5),
        Passed(("endless",), "podman", float("inf")),
    )
    rolled_back = replace(published, instead_of=newest.image_id, smoke=tests)
    checkout.records.put(Step.ENROOT, "base:1", rolled_back)
    told, (between, *_) = shown_of(root)
    assert told["Rolled back"][0].startswith("from the build 000000000000 of 2026-11-24 ")
    assert told["Smoke test"] == ["python -c 'import it'\"'\"'s' passed (2.5 s, podman)"]
    assert between.startswith(f"{newest.image_id[:12]} of 2026-11-24 "), "what it stands in place of"
    found = gathered(root)
    (node,) = (each for each in found.graph_view.nodes if each.name == "base:1")
    assert node.words.endswith(", rolled back")
    (image,) = (each for each in found.images if each.name == "base:1")
    assert image.state == node.state
    page = Parsed(render(found, SOURCE)).text
    assert ", rolled back" in page


def test_registry_bases_are_told_with_their_pins_and_only_where_there_are_some(root: Path) -> None:
    reference = "nvcr.io/nvidia/pytorch:25.01-py3"
    (root / "bases.lock").write_text(
        f'["{reference}"]\ndigest = "sha256:{"ab" * 32}"\npinned_at = "2026-01-02T12:00:00+00:00"\n'
    )
    for name in ("base:1", "app:2"):
        (told,) = shown_of(root, name)[0]["Registry base"]
        assert told.startswith(f"{reference}: abababababab, 2026-01-02, ")
        assert told.endswith(" days ago")
    assert "Registry base" not in shown_of(root, "left")[0]
    text = Parsed(render(gathered(root), SOURCE)).text
    assert "base:1 and 2 built on it" in text
    (root / "bases.lock").write_text("<<<<<<< ours\n")
    assert "Registry bases" not in Parsed(render(gathered(root), SOURCE)).text
    assert "Registry bases" not in Parsed(render(EMPTY, SOURCE)).text


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_no_value_becomes_an_element_an_attribute_or_a_program(text: str) -> None:
    page = render(hostile(text), SOURCE)
    found, plain = Parsed(page), Parsed(render(hostile(re.sub("[^ ]+", "plain", text)), SOURCE))
    assert found.kinds() <= plain.kinds()
    assert found.tags() == plain.tags()
    assert found.inside["script"] == plain.inside["script"]
    assert found.inside["style"] == plain.inside["style"]
    data = json.loads(found.inside["scriptdata"])
    (image,) = data["images"]
    assert "\n".join(data["lines"][number] for number in image["edf"]) == text
    others = {number for _, *rest in image["facts"] for number in rest} | {*image["changed"]}
    assert all(data["lines"][number].isprintable() for number in others), "names of packages too"
    assert max(len(data["lines"][number]) for number in others) <= 201
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u2028\u2029\u202a-\u202e\u2066-\u2069]", page)
    page.encode()  # no lone surrogate


def test_what_is_shown_is_what_was_given() -> None:
    found = Parsed(render(hostile('<b> & "it\'s" שלום'), SOURCE))
    assert found.text.count('<b> & "it\'s" שלום') > 20
    assert "&amp;" not in found.text
    red = Parsed(render(hostile("\x1b[31mred\x1b[0m"), SOURCE))
    assert "\\x1b[31mred\\x1b[0m" in red.text, "a name shows what it holds"
    assert "\nred\n" in re.sub(r"^.*?(red)$", r"\1", red.text, flags=re.M), "a log loses its colours"


@pytest.mark.parametrize("value", ["</script>", "<!--<script>", "\u2028\u2029", "\udcff", "&"])
def test_json_in_a_script_element_holds_no_html(value: str) -> None:
    text = in_script({value: [value]})
    assert json.loads(text) == {value: [value]}
    assert not set(text) & set("<>&\u2028\u2029")
    text.encode()


def test_the_policy_allows_what_is_in_the_page_and_nothing_else() -> None:
    page = render(team(), SOURCE)
    found = Parsed(page)
    (policy,) = (a["content"] for _, a in found.elements if a.get("http-equiv"))
    assert re.fullmatch(
        r"default-src 'none'; style-src 'sha256-[\w+/]{43}='; script-src 'sha256-[\w+/]{43}=';"
        " base-uri 'none'; form-action 'none'",
        str(policy),
    )
    names = {name for _, name in found.kinds()}
    assert not names & {"style", "src", "srcset", "action", "data", "background"}
    assert not {name for name in names if name.startswith("on")}
    assert all(str(a["href"]).startswith("#") for _, a in found.elements if "href" in a)
    ids = [a["id"] for _, a in found.elements if "id" in a]
    assert len(ids) == len(set(ids))
    from urllib.parse import unquote

    assert {unquote(str(a["href"]))[1:] for _, a in found.elements if "href" in a} <= set(ids)


EMPTY = Overview(Path("/imgs"), BEGIN)
NEVER = Overview(Path("/imgs"), BEGIN, (ImageOverview("app", State.MISSING, ("never built",)),))


@pytest.mark.parametrize(
    ("shown", "sentences"),
    [
        (
            EMPTY,
            ("There are no images yet", "nothing to draw", "No run is in the history", "Nothing failed"),
        ),
        (NEVER, ("No image has been built yet", "No run is in the history", "Nothing failed.")),
        (
            replace(team(), failures=()),
            ("Nothing failed in the last run, and no image is broken.", "Steps: 24 done, 1 failed"),
        ),
    ],
    ids=["empty checkout", "never built", "no failures"],
)
def test_what_is_not_there_has_its_sentence(shown: Overview, sentences: tuple[str, ...]) -> None:
    text = Parsed(render(shown, SOURCE)).text
    assert [sentence for sentence in sentences if sentence not in text] == []


def test_many_failures_do_not_push_the_table_away() -> None:
    failures = team().failures * 12
    found = Parsed(render(replace(team(), failures=failures), SOURCE))
    assert "2 more" in found.text
    assert not [a for tag, a in found.elements if tag == "details" and "open" in a]


def test_bars_of_one_node_that_overlap_stand_below_one_another() -> None:
    def at(minutes: int, node: str = "a") -> HistoryEntry:
        began = (BEGIN + timedelta(minutes=minutes)).isoformat()
        return entry("app", Step.PODMAN, started_at=began, duration_s=600.0, queued_s=60.0, node=node)

    shown = timeline([at(1), at(6), at(11), at(1, "b"), at(20, "")])
    assert [lane.node for lane in shown.lanes] == ["a", "b", NOT_STARTED]
    first, second, third = shown.lanes[0].bars
    assert first.y == third.y < second.y < shown.lanes[0].bottom <= shown.lanes[1].y
    assert first.ready_x == 0
    assert first.x == pytest.approx(100 / 30, abs=0.01)
    assert shown.lanes[2].bars[0].x + shown.lanes[2].bars[0].width == pytest.approx(100)
    labels = [tick.label for tick in shown.ticks]
    assert 4 <= len(labels) <= 8
    assert all(0 <= tick.x <= 96 for tick in shown.ticks)


def ran(*argv: str) -> int:
    return execute("report", argv)


def test_the_page_is_written_where_it_is_wanted(
    root: Path,
    capfdbinary: pytest.CaptureFixture[bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert ran() == 0
    page = root / ".rc/report.html"
    assert os.fsencode(page) in capfdbinary.readouterr().out
    assert os.listdir(root / ".rc") == [
        each for each in os.listdir(root / ".rc") if each[:7] != ".report"
    ]
    monkeypatch.chdir(root / "projects")
    assert ran("-o", "../../web site/größe.html") == 0
    assert (tmp_path / "web site/größe.html").read_text().startswith("<!DOCTYPE html>")
    capfdbinary.readouterr()
    assert ran("-o", "-") == 0
    assert capfdbinary.readouterr().out.startswith(b"<!DOCTYPE html>")
    link = tmp_path / "link.html"
    link.symlink_to(page)
    page.write_text("old")
    assert ran("-o", str(link)) == 0
    assert link.is_symlink()
    assert page.read_text() != "old"


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("projects", "is not a regular file"),
        ("/dev/null", "is not a regular file"),
        ("dodo.py/report.html", "something else is in this place"),
    ],
)
def test_what_cannot_be_written_is_told(root: Path, target: str, told: str) -> None:
    with pytest.raises(RcError, match=told):
        ran("-o", target)
    assert not Path("/dev/null").is_file()
    with pytest.raises(RcError, match="doit report takes no 'base:1'"):
        ran("base:1")


def test_a_killed_writer_leaves_the_old_page(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = root / ".rc/report.html"
    write(session(), page)
    before = page.read_text()
    (root / "templates/report.html.j2").write_text("\n{{ nothing }}")
    with pytest.raises(RcError, match=r"templates/report.html.j2:2: the template cannot be rendered"):
        write(session(), page)
    (root / "templates/report.css").unlink()
    with pytest.raises(RcError, match=r"(?s)templates/report.css: .*git checkout"):
        write(session(), page)
    assert page.read_text() == before
