"""`doit graph`: the picture, and each format that is made of it."""

import io
import json
import re
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from rc_tasks.commands.cli.command import execute
from rc_tasks.engine.session import session
from rc_tasks.errors import RcError
from rc_tasks.model.graph.view import Edge, EdgeKind, GraphNode, GraphView, NodeKind, levels, tree
from rc_tasks.views.graph_formats import as_dot, as_json, as_mermaid, print_tree
from rc_tasks.views.graph_svg import svg
from tests.support.checkouts import entered

SVG = "{http://www.w3.org/2000/svg}"
FILES = {
    "projects/base:1/Dockerfile": "FROM nvcr.io/nvidia/pytorch:25.01-py3\n",
    "projects/tools/Dockerfile": "FROM scratch\n",
    "projects/app:1/Dockerfile": "FROM base:latest\nCOPY --from=tools /x /x\n",
    "projects/app:2/Dockerfile": "FROM app:1\n",
    "projects/base:latest": "-> base:1",
    "projects/broken/Dockerfile": "FROM $NOWHERE\n",
    "projects/on-broken/Dockerfile": "FROM broken\n",
    "projects/left/Dockerfile": "FROM right\n",
    "projects/right/Dockerfile": "FROM left\nCOPY --from=tools /x /x\n",
    "projects/on-left/Dockerfile": "FROM left\n",
}
HOSTILE = (
    'a"b',
    "back\\slash\\",
    "a&amp;b<c>",
    "<script>alert(1)</script>",
    "]]>",
    "\x1b[31mred\nline\x00",
    "\udcff\ufffe",
    "ümlaut:größe",
    "日本語:最新",
    "%%{init: x}%%",
    "`md` **b**",
    "style:x#1;",
    '"',
    "end",
    "x" * 300,
)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with entered(tmp_path / "imgs", FILES, ["base:1", "tools"], monkeypatch) as made:
        yield made


def ran(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert execute("graph", argv) == 0
    return capsys.readouterr().out


def hostile() -> GraphView:
    nodes = tuple(GraphNode(name, NodeKind.IMAGE, "failed", ('why "<&>"\x00',)) for name in HOSTILE)
    edges = [Edge(HOSTILE[0], name) for name in HOSTILE[1:5]]
    edges += [
        Edge(HOSTILE[1], HOSTILE[0], EdgeKind.CIRCULAR),
        Edge(HOSTILE[8], HOSTILE[8], EdgeKind.CIRCULAR),
    ]
    return GraphView(nodes, tuple(edges))


def chain(length: int) -> GraphView:
    names = [f"image:{number}" for number in range(length)]
    edges = (Edge(above, below) for above, below in pairwise(names))
    return GraphView(tuple(GraphNode(name, NodeKind.IMAGE, "stale") for name in names), tuple(edges))


class Terminal(io.StringIO):
    """Something that a person looks at."""

    def isatty(self) -> bool:
        return True


def test_the_tree_has_bases_above_and_each_image_once(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ran(capsys) == (
        "broken  failed\n"
        "└─ on-broken  missing\n"
        "nvcr.io/nvidia/pytorch:25.01-py3  registry\n"
        "└─ base:1  fresh  alias base:latest\n"
        "   └─ app:1  missing\n"
        "      └─ app:2  missing\n"
        "tools  fresh\n"
        "├─ → app:1\n"
        "└─ right  failed\n"
        "   └─ left  failed\n"
        "      ├─ on-left  missing\n"
        "      └─ → right (cycle)\n"
    )


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (["app:2"], {"app:2", "app:1", "base:1", "tools", "nvcr.io/nvidia/pytorch:25.01-py3"}),
        (["build:on-broken"], {"broken", "on-broken"}),
        (["left"], {"left", "right", "on-left", "tools"}),
        (["base:latest"], {"app:2", "app:1", "base:1", "tools", "nvcr.io/nvidia/pytorch:25.01-py3"}),
    ],
    ids=["a leaf", "a broken base", "a circle", "an alias"],
)
def test_names_show_what_is_built_on_them_and_what_these_need(
    root: Path, capsys: pytest.CaptureFixture[str], names: list[str], shown: set[str]
) -> None:
    found = json.loads(ran(capsys, *names, "--format", "json"))
    assert {node["name"] for node in found["nodes"] if node["kind"] != "alias"} == shown


def test_json_has_the_keys_of_the_listing(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(ran(capsys, "app:2", "--format=json"))
    nodes = {node["name"]: node for node in found["nodes"]}
    assert nodes["app:1"] == {
        "name": "app:1",
        "kind": "image",
        "state": "missing",
        "reasons": ["never built"],
        "rolled_back": False,
        "dockerfile": "projects/app:1/Dockerfile",
        "context": "projects/app:1",
        "matrix": {},
        "bases": ["base:1", "tools"],
        "aliases": [],
    }
    assert nodes["base:1"]["aliases"] == ["base:latest"]
    assert nodes["base:latest"]["state"] is None
    assert found["edges"] == [
        {"from": "base:1", "to": "app:1", "kind": "base"},
        {"from": "tools", "to": "app:1", "kind": "base"},
        {"from": "app:1", "to": "app:2", "kind": "base"},
        {"from": "nvcr.io/nvidia/pytorch:25.01-py3", "to": "base:1", "kind": "base"},
        {"from": "base:1", "to": "base:latest", "kind": "alias"},
    ]


def test_dot_and_mermaid(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ran(capsys, "base:1", "--format", "dot").splitlines()[:3] == [
        "digraph images {",
        '  node [shape=box, style="filled,rounded", fontname="monospace"]',
        '  n0 [label="app:1\\nmissing", tooltip="app:1", fillcolor="#f6e4f8", color="#8a3394"]',
    ]
    session.cache_clear()
    assert ran(capsys, "right", "--format", "mermaid") == (
        "flowchart LR\n"
        '  n0["left<br/>failed"]:::failed\n'
        '  n1["on-left<br/>missing"]:::missing\n'
        '  n2["right<br/>failed"]:::failed\n'
        '  n3["tools<br/>fresh"]:::fresh\n'
        "  n2 --> n0\n"
        "  n0 --> n1\n"
        "  n0 -. circular .-> n2\n"
        "  n3 --> n2\n"
        "  classDef failed fill:#fde4e2,stroke:#b3261e,color:#16191d\n"
        "  classDef fresh fill:#e3f5e7,stroke:#1e7d34,color:#16191d\n"
        "  classDef missing fill:#f6e4f8,stroke:#8a3394,color:#16191d\n"
    )


def test_an_empty_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with entered(tmp_path, {}, [], monkeypatch):
        assert ran(capsys).startswith("there are no images yet")
        assert json.loads(ran(capsys, "--format", "json")) == {"nodes": [], "edges": []}
        ElementTree.fromstring(ran(capsys, "--format", "svg"))
        assert ran(capsys, "--format", "mermaid") == "flowchart LR\n"


def test_what_cannot_be_shown_is_told(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RcError, match=r"did you mean app:1"):
        execute("graph", ["app:3"])
    with pytest.raises(RcError, match="'tree', 'mermaid', 'dot', 'svg', 'json'"):
        execute("graph", ["--format", "pdf"])
    (root / "projects/Bad Name").mkdir()
    (root / "projects/Bad Name/Dockerfile").write_text("FROM scratch\n")
    session.cache_clear()
    assert execute("graph", []) == 0
    assert "'Bad Name' cannot be the name of an image" in capsys.readouterr().err


def test_an_alias_of_no_image_is_a_base_that_nothing_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {"projects/app/Dockerfile": "FROM old:latest\n", "projects/old:latest": "-> old:1"}
    with entered(tmp_path, files, [], monkeypatch) as made:
        (made / "projects/old:1/tmp").mkdir(parents=True)
        assert ran(capsys) == "old:1  unknown\n└─ app  failed\nold:latest  failed\n"


def test_the_svg_is_one_that_screen_readers_and_dark_pages_can_use(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = ElementTree.fromstring(ran(capsys, "--format", "svg"))
    ids = {element.get("id"): element.text for element in image if element.get("id")}
    assert [ids[name] for name in str(image.get("aria-labelledby")).split()] == [
        "Images and what they are built on",
        "9 images (3 failed, 2 fresh, 4 missing), 1 registry base, 1 alias."
        " Each image stands to the right of its bases.",
    ]
    assert "prefers-color-scheme:dark" in str(image.findtext(f"{SVG}style"))
    assert [path.get("class") for path in image.iter(f"{SVG}path")].count("circular") == 1
    titles = {str(group.findtext(f"{SVG}title")) for group in image.iter(f"{SVG}g")}
    assert "app:1: missing\nnever built" in titles
    assert "base:latest: alias" in titles


def test_the_svg_needs_nothing_from_elsewhere_and_escapes_all_names() -> None:
    text = svg(hostile())
    image = ElementTree.fromstring(text)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg\")|url\(|@import|href", text)
    assert {element.tag.removeprefix(SVG) for element in image.iter()} == {
        *("svg", "title", "desc", "style", "rect", "path", "g", "text")
    }
    titles = [
        str(group.findtext(f"{SVG}title")).partition(": failed\n")[0] for group in image.iter(f"{SVG}g")
    ]
    assert titles[:6] == [*HOSTILE[:5], "\\x1b[31mred\\nline\\x00"]
    assert titles[-1] == "x" * 300
    assert max(len(str(each.text)) for each in image.iter(f"{SVG}text")) <= 44


def test_boxes_never_overlap_and_lie_inside() -> None:
    image = ElementTree.fromstring(svg(crowd(120)))
    boxes = [
        tuple(float(str(rect.get(key))) for key in ("x", "y", "width", "height"))
        for rect in image.iterfind(f"{SVG}g/{SVG}rect")
    ]
    width, height = float(str(image.get("width"))), float(str(image.get("height")))
    for number, (x, y, w, h) in enumerate(boxes):
        assert x > 0
        assert y > 0
        assert x + w < width
        assert y + h < height
        for x2, y2, w2, h2 in boxes[:number]:
            assert x + w < x2 or x2 + w2 < x or y + h < y2 or y2 + h2 < y


def crowd(images: int) -> GraphView:
    """Images on four registry bases, most on an image, some on several, with an alias here and there."""
    nodes = [GraphNode(f"registry/base:{number}", NodeKind.REGISTRY) for number in range(4)]
    edges = []
    for number in range(images):
        name = f"image-{number:04}:1"
        bases = {nodes[number % 4].name} if number < 12 else {f"image-{number // 3:04}:1"}
        bases |= {f"image-{number // 7:04}:1"} if number % 5 == 0 and number > 12 else set()
        nodes.append(GraphNode(name, NodeKind.IMAGE, ("fresh", "stale")[number % 2], ("why",)))
        edges += [Edge(base, name) for base in sorted(bases)]
    aliases = [f"image-{number:04}:1" for number in range(0, images, 10)]
    nodes += [GraphNode(f"latest-{name}", NodeKind.ALIAS) for name in aliases]
    edges += [Edge(name, f"latest-{name}", EdgeKind.ALIAS) for name in aliases]
    return GraphView(tuple(nodes), tuple(edges))


@pytest.mark.parametrize("picture", [crowd(500), chain(500)], ids=["wide", "deep"])
def test_500_images_are_drawn_in_no_time(picture: GraphView) -> None:
    start = time.process_time()
    text = svg(picture)
    assert time.process_time() - start < 1, "measured: 0.1 s"
    assert len(text) < 500_000
    out = io.StringIO()
    print_tree(picture, out)
    assert sum("→" not in line for line in out.getvalue().splitlines()) == sum(
        node.kind is not NodeKind.ALIAS for node in picture.nodes
    )


def test_levels_are_by_the_longest_way_and_circles_have_one_too() -> None:
    nodes = tuple(GraphNode(name, NodeKind.IMAGE) for name in "abcd")
    edges = (
        Edge("a", "b"),
        Edge("b", "c"),
        Edge("a", "c"),
        Edge("c", "d"),
        Edge("d", "b", EdgeKind.CIRCULAR),
    )
    picture = GraphView(nodes, edges)
    assert levels(picture) == {"a": 0, "b": 1, "c": 2, "d": 3}
    assert [(row.node.name, len(row.lasts), row.again) for row in tree(picture)] == [
        ("a", 0, None),
        ("b", 1, None),
        ("c", 2, None),
        ("d", 3, None),
        ("b", 4, EdgeKind.CIRCULAR),
        ("c", 1, EdgeKind.BASE),
    ]


def test_hostile_names_stay_inside_of_their_quotes() -> None:
    dot = as_dot(hostile())
    assert '  n0 [label="a\\"b\\nfailed", tooltip="a\\"b",' in dot
    assert '  n1 [label="back\\\\slash\\\\\\nfailed", tooltip="back\\\\slash\\\\",' in dot
    assert '  n2 [label="a&amp;amp;b<c>\\nfailed",' in dot
    mermaid = as_mermaid(hostile())
    assert '  n0["a#34;b<br/>failed"]:::failed\n' in mermaid
    assert '  n3["#60;script#62;alert#40;1#41;#60;/script#62;<br/>failed"]' in mermaid
    assert '  n7["ümlaut:größe<br/>failed"]' in mermaid
    assert '  n11["style#58;x#35;1#59;<br/>failed"]' in mermaid
    for text in (dot, mermaid, svg(hostile()), as_json(hostile())):
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", text)
        text.encode()  # no lone surrogate
    assert len(dot.splitlines()) == len(HOSTILE) + 6 + 3
    assert [node["name"] for node in json.loads(as_json(hostile()))["nodes"]] == list(HOSTILE)


def test_a_pipe_gets_plain_text() -> None:
    out = io.StringIO()
    print_tree(hostile(), out)
    assert "\x1b" not in out.getvalue()
    assert "\\x1b[31mred\\nline\\x00  failed\n" in out.getvalue()
    latin = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    print_tree(chain(3), latin)
    latin.seek(0)
    assert latin.read() == "image:0  stale\n`- image:1  stale\n   `- image:2  stale\n"


@pytest.mark.parametrize("columns", [20, 40, 160])
def test_a_terminal_gets_colour_and_whole_names(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    out = Terminal()
    names = ["base", "wide:größe-日本語-" + "x" * 60, "zchild:1"]
    nodes = tuple(GraphNode(name, NodeKind.IMAGE, "stale") for name in names)
    print_tree(GraphView(nodes, (Edge(names[0], names[1]), Edge(names[0], names[2]))), out)
    assert "\x1b[33mstale" in out.getvalue()
    lines = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue()).splitlines()
    assert lines[0] == "base  stale"
    assert names[1] in "".join(line[3:] for line in lines[1:])
    if columns == 40:
        assert [line[:3] for line in lines[1:-1]] == ["├─ ", "│  ", "│  "]
        assert max(map(len, lines)) <= columns
