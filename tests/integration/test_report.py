"""The report's page in a real browser: it works, looks as it should, and asks for nothing."""

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from rc_tasks.state.records.records import Step
from rc_tasks.state.records.status import State
from rc_tasks.views.report.overview import ImageOverview, ImageRun, Overview
from rc_tasks.views.report.page import render
from tests.support.browser import Browser, running_browser
from tests.support.checkouts import SOURCE
from tests.support.overviews import NIGHT, crowd, team

NAMES = (
    "[...document.querySelectorAll('#table tbody tr:not(.more):not([hidden])')]"
    ".map(row => row.cells[0].textContent)"
)
SORTED = "[...document.querySelectorAll('#table th')].map(h => h.getAttribute('aria-sort'))"
FOCUS = "document.activeElement.textContent.trim()"
SIZES = "[...document.querySelectorAll('#table td.size')].map(cell => cell.dataset.value)"
NO_OVERFLOW = "document.documentElement.scrollWidth <= innerWidth"
# Of every element with text: its beginning, the colour of the text, and the one below it.
COLOURS = """
    [...document.querySelectorAll('body *')]
    .filter(e => e.checkVisibility() && e.getClientRects().length
        && !e.closest('svg, dialog, .defs, .unseen')
        && [...e.childNodes].some(child => child.nodeType === Node.TEXT_NODE && child.data.trim()))
    .map(e => {
        const paper = e => getComputedStyle(e).backgroundColor;
        let under = e;
        while (paper(under) === 'rgba(0, 0, 0, 0)') under = under.parentElement;
        return [e.outerHTML.slice(0, 80), getComputedStyle(e).color, paper(under)];
    })
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_browser() as running:
        yield running


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("a page") / "report #1.html"
    path.write_text(render(team(), SOURCE))
    return path


@pytest.fixture
def page(browser: Browser, written: Path) -> Iterator[Browser]:
    """The team's page, freshly opened; it may neither complain nor fetch anything."""
    browser.size(1280, 900)
    browser.media()
    browser.open(written.as_uri())
    yield browser
    assert browser.complaints == []
    assert browser.requests == [written.as_uri()]


def column(page: Browser, name: str) -> list[str]:
    found: list[str] = page.run(
        f"[...document.querySelectorAll('#table td.{name}')].map(c => c.firstChild?.textContent ?? '')"
    )
    return found


def head(page: Browser, name: str) -> str:
    """Mark a column's button, and return a selector for it."""
    page.run(f"document.querySelector('thead .{name} button').id = 'sort-{name}'")
    return f"#sort-{name}"


def test_it_sorts_by_mouse_and_by_keyboard(page: Browser) -> None:
    assert page.run(NAMES)[:2] == ["data-tools:3", "megatron:core-0.11"]
    assert page.run(SORTED)[0] == "ascending"
    page.click(head(page, "size"))
    assert column(page, "size")[:2] == ["412 MB", "8.3 GB"]
    assert column(page, "size")[-3:] == ["", "", ""], "what has no size stands last"
    page.press("Enter")
    assert column(page, "size")[:2] == ["14.6 GB", "13.1 GB"]
    assert column(page, "size")[-3:] == ["", "", ""]
    assert [each for each in page.run(SORTED) if each] == ["descending"]
    page.click(head(page, "state"))
    assert column(page, "state")[:3] == ["failed", "building", "stale"], "by urgency, not by letters"


def test_it_filters_by_text_and_by_states(page: Browser) -> None:
    page.run("document.getElementById('filter').focus()")
    page.type("REASONING stale")
    assert page.run(NAMES) == ["reasoning-eval:1.2", "reasoning-train:0.9", "reasoning:2025.1"]
    assert page.run("document.getElementById('found').textContent") == "3 of 11 shown"
    page.click(".tile.failed")
    assert page.run(NAMES) == []
    assert page.run("document.getElementById('nothing').checkVisibility()")
    page.click("#reset")
    assert len(page.run(NAMES)) == 11
    page.click(".tile.failed")
    page.click(".tile.missing")
    assert page.run(NAMES) == ["verl:0.3", "viewer"]
    pressed = "[...document.querySelectorAll('.tile[aria-pressed=true]')].map(t => t.dataset.state)"
    assert page.run(pressed) == ["failed", "missing"]
    page.press("Space")
    assert page.run(NAMES) == ["verl:0.3"], "a chip is a button for the keyboard too"


def test_the_graph_leads_to_rows_also_to_hidden_ones(page: Browser) -> None:
    page.click(".tile.fresh")
    page.run(
        "[...document.querySelectorAll('.canvas a')].find(a => a.textContent.includes('viewer')).focus()"
    )
    page.press("Enter")
    page.until(f"{FOCUS} === 'viewer'")
    assert len(page.run(NAMES)) == 11
    page.run("document.querySelector('.canvas').scrollIntoView()")
    page.run("document.querySelector('.zoom button[aria-label=Larger]').id = 'larger'")
    before = page.run("document.querySelector('.canvas svg').getBoundingClientRect().width")
    page.click("#larger")
    assert page.run("document.querySelector('.canvas svg').getBoundingClientRect().width") > before
    assert page.run(NO_OVERFLOW), "it scrolls in its own box"


def test_a_row_opens_to_charts_with_units_and_the_edf(page: Browser) -> None:
    page.run("document.querySelectorAll('.open')[6].id = 'opened'")
    page.click("#opened")
    assert page.run("document.getElementById('opened').getAttribute('aria-expanded')") == "true"
    shown = page.run("document.querySelector('tr.more').innerText")
    assert "projects/reasoning_base/image.sqsh" in shown
    labels = page.run("[...document.querySelectorAll('.chart')].map(c => c.getAttribute('aria-label'))")
    assert labels[0].startswith("Durations of ")
    assert " min " in labels[0]
    assert labels[1].endswith(" GB")
    texts = page.run("[...document.querySelectorAll('.chart text')].map(t => t.textContent)")
    assert {"min", "build", "squash", "GB", "0", "21 Nov"} <= set(texts)
    # It stays below its row when sorted, and goes with it when filtered.
    page.click(head(page, "size"))
    assert (
        page.run("document.querySelector('tr.more').previousElementSibling.id") == "image:reasoning_base"
    )
    page.click(".tile.failed")
    assert not page.run("document.querySelector('tr.more').checkVisibility()")


def test_an_opened_row_says_what_is_inside_and_what_was_changed(page: Browser) -> None:
    page.run("document.querySelectorAll('.open')[6].click()")
    facts = page.run(
        "[...document.querySelectorAll('.details dl > *')].map(e => `${e.localName} ${e.textContent}`)"
    )
    assert facts[:7] == [
        "dt System",
        "dd Ubuntu 24.04.1 LTS",
        "dt Packages",
        "dd 712 dpkg, 298 python",
        "dt Largest",
        "dd /usr 15.8 GB, /opt 4.9 GB, /root 10 kB",
        "dt Smoke test",
    ]
    assert facts[8].startswith("dd nvcc --version passed"), "two tests have one heading"
    assert facts[-1].startswith("dd nvcr.io/nvidia/pytorch:25.01-py3: ")
    changed = page.run("document.querySelector('.changed pre').textContent").split("\n")
    assert changed[0].startswith("base        nvcr.io/nvidia/pytorch:25.01-py3: sha256:")
    assert "  COPY train.sh /" not in changed and "   COPY train.sh /" in changed
    packages = [line for line in changed[changed.index("dpkg") :] if line.startswith("  ")]
    assert 0 < len([line for line in packages if "…" not in line]) <= 12
    assert page.run("document.querySelector('.changed h3 span').textContent").count(" of 2026-11-") == 2
    # One that was never built has nothing of this, and no heading for it.
    page.run("document.querySelectorAll('tr.more').forEach(row => row.remove())")
    page.run("[...document.querySelectorAll('.open')].find(b => b.textContent === 'viewer').click()")
    assert page.run("document.querySelectorAll('.details .changed').length") == 0
    assert page.run("[...document.querySelectorAll('.details dt')].map(e => e.textContent)") == [
        "Registry base"
    ]


def test_small_lines_rise_with_their_values(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "sparks.html"
    sizes: dict[str, list[float]] = {
        "rising": [1e9, 2e9, 1.5e9],
        "noise": [1e9, 1.001e9],
        "once": [1e9],
        "nothing": [0, 0, 0],
    }
    images = tuple(
        ImageOverview(
            name,
            State.FRESH,
            size_bytes=1,
            built=tuple(built(day, size) for day, size in enumerate(found)),
        )
        for name, found in sizes.items()
    )
    path.write_text(render(Overview(Path("/imgs"), NIGHT, images), SOURCE))
    browser.open(path.as_uri())

    def heights(name: str) -> list[float]:
        row = f"document.getElementById('image:{name}')"
        points = browser.run(f"{row}.querySelector('.size polyline')?.getAttribute('points') ?? ''")
        return [float(point.split(",")[1]) for point in points.split()]

    low, high, middle = heights("rising")
    assert low > middle > high, "down is up in SVG"
    assert abs(heights("noise")[0] - heights("noise")[1]) < 1, "noise is no change"
    assert heights("once") == []
    assert len(heights("nothing")) == 3
    browser.run("document.querySelector('.open').click()")
    texts = browser.run("[...document.querySelectorAll('.chart text')].map(t => t.textContent)")
    assert {"21 Nov", "1 min 0 s"} <= set(texts), "as precise as before they were packed"
    assert browser.complaints == []


def built(day: int, size: float) -> ImageRun:
    began = (NIGHT + timedelta(days=day)).astimezone()
    return ImageRun(str(day), began, ((Step.PODMAN, 60.0), (Step.ENROOT, 6.25)), round(size))


def test_the_registry_bases_lead_to_their_images(page: Browser) -> None:
    rows = page.run("[...document.querySelectorAll('#bases tbody tr')].map(r => r.innerText)")
    assert [row.split("\t")[0] for row in rows] == [
        "docker.io/library/debian:12",
        "docker.io/vllm/vllm-openai:v0.8.4",
        "nvcr.io/nvidia/pytorch:25.01-py3",
    ]
    assert rows[2].endswith("reasoning_base, megatron:core-0.11 and 6 built on them")
    page.click("#bases a")
    page.until(f"{FOCUS} === 'data-tools:3'")


def test_it_copies_and_says_how_where_it_may_not(page: Browser) -> None:
    path = "/capstor/store/cscs/swissai/a06/reasoning/imgs/projects/data-tools:3/env.toml"
    page.allow("clipboard-write", "granted")
    page.allow("clipboard-read", "granted")
    page.click("#table .copy")
    page.until("document.querySelector('#table .copy').textContent === 'Copied'")
    assert page.run("navigator.clipboard.readText()") == path
    # A browser without a clipboard for pages: the text is there, and selected.
    page.run("navigator.clipboard.writeText = () => Promise.reject(new Error('refused'))")
    page.run("document.querySelectorAll('#table .copy')[1].id = 'second'")
    page.click("#second")
    page.until("document.getElementById('second') === null")
    assert "megatron" in page.run("getSelection().toString()")


def test_an_opened_row_gives_the_line_that_starts_a_job(page: Browser) -> None:
    page.allow("clipboard-write", "granted")
    page.allow("clipboard-read", "granted")
    page.click("#table .open")
    page.until("document.querySelectorAll('.details .copy').length === 2")
    page.run("document.querySelectorAll('.details .copy')[1].id = 'start'")
    page.click("#start")
    page.until("document.querySelector('#start').textContent === 'Copied'")
    path = "/capstor/store/cscs/swissai/a06/reasoning/imgs/projects/data-tools:3/env.toml"
    assert page.run("navigator.clipboard.readText()") == f"srun --environment={path} "


def test_the_timeline_is_walked_with_arrow_keys(page: Browser) -> None:
    page.run("document.getElementById('timeline').scrollIntoView()")
    page.run("document.querySelector('#timeline .bar[tabindex=\"0\"]').focus()")
    first = page.run("document.getElementById('told').textContent")
    assert first.startswith("podman:")
    page.press("ArrowRight")
    second = page.run("document.getElementById('told').textContent")
    assert second != first
    assert "on nid00" in second
    assert page.run("document.querySelectorAll('#timeline [tabindex=\"0\"]').length") == 1
    rows = page.run("document.querySelectorAll('#run table tbody tr').length")
    assert rows == page.run("document.querySelectorAll('#timeline .bar').length") == 25


def test_the_focus_is_seen_and_can_skip_to_the_table(page: Browser) -> None:
    page.press("Tab")
    assert page.run(FOCUS) == "Skip to the images"
    assert page.run("document.activeElement.getBoundingClientRect().left") >= 0
    for _ in range(12):
        page.press("Tab")
        outline = page.run("getComputedStyle(document.activeElement).outline")
        assert "2px" in outline, page.run("document.activeElement.outerHTML")
        assert page.run("document.activeElement.checkVisibility()")


def luminance(colour: str) -> float:
    """The relative luminance of `rgb(…)` (WCAG 2.2)."""
    parts = [int(part) / 255 for part in colour.removeprefix("rgb(").rstrip(")").split(",")]
    r, g, b = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_texts_can_be_read_in_the_light_and_in_the_dark(page: Browser, dark: bool) -> None:
    page.media(dark=dark)
    page.run("document.querySelectorAll('.open')[6].click()")
    background = page.run("getComputedStyle(document.body).backgroundColor")
    assert (luminance(background) < 0.1) == dark
    found: list[tuple[str, str, str]] = page.run(COLOURS)
    assert len(found) > 100
    for element, ink, paper in found:
        lighter, darker = sorted((luminance(ink), luminance(paper)), reverse=True)
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5, (element, ink, paper)
    drawn = page.run("getComputedStyle(document.querySelector('.image-graph .page')).fill")
    assert drawn == background, "the graph is a part of the page"


@pytest.mark.parametrize("width", [320, 390, 820, 1280, 1920])
def test_no_width_makes_the_page_scroll_sideways(page: Browser, width: int) -> None:
    page.size(width, 844)
    page.run("document.querySelectorAll('details').forEach(d => d.open = true)")
    page.run("document.querySelectorAll('.open')[6].click()")
    assert page.run(NO_OVERFLOW)
    if width < 600:
        assert page.run("document.getElementById('table').getBoundingClientRect().right <= innerWidth")
        tall = page.run(
            "Math.min(...[...document.querySelectorAll('#table .copy')].map(b => b.offsetHeight))"
        )
        assert tall >= 24, "a finger finds it (WCAG 2.2, 2.5.8)"


def test_screen_readers_get_a_table_with_its_names(page: Browser) -> None:
    page.size(390, 844)
    found = page.accessible()
    roles = [role for role, _ in found]
    assert roles.count("rowheader") == 11 + 3, "cards on a phone are still rows"
    assert roles.count("columnheader") == 9 + 4, "what is not shown there is not told either"
    assert ("button", "Copy path of data-tools:3") in found
    assert ("searchbox", "Filter by name, state, reason, base, alias or commit") in found
    assert ("button", "3 stale") in found
    assert [role for role, name in found if role in {"button", "link", "region"} and not name] == []


def test_without_scripts_everything_can_still_be_read(browser: Browser, written: Path) -> None:
    browser.open(written.as_uri(), scripts=False)
    html = browser.source("#table")
    assert "projects/data-tools:3/env.toml" in html
    assert "<button" not in html, "nothing that would do nothing"


def test_print_shows_everything_that_is_open(page: Browser) -> None:
    page.media(kind="print")
    assert page.run("document.querySelector('nav').checkVisibility()") is False
    assert page.run("document.getElementById('table').checkVisibility()")


def test_500_images_are_a_small_page_that_is_there_soon(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "crowd.html"
    path.write_text(render(crowd(500, runs=20), SOURCE))
    assert path.stat().st_size < 2_000_000
    browser.size(1280, 900)
    browser.media()
    took_s = browser.open(path.as_uri())
    assert took_s < 20, "it takes about a second of work"
    assert browser.run(NAMES)[:2] == ["team-0-image:0.0", "team-0-image:1.2"]
    # The bases stand in the middle of the left side, far below the top.
    browser.run("document.querySelector('.canvas').scrollIntoView()")
    browser.until("document.querySelector('.canvas').scrollTop > 500")
    browser.run("document.querySelector('thead .size button').click()")
    sizes = [int(size) for size in browser.run(SIZES)]
    assert len(sizes) == 500
    assert sizes == sorted(sizes)
    browser.run("[...document.querySelectorAll('.open')].at(-1).click()")
    assert browser.run("document.querySelector('.changed pre').textContent")
    assert browser.complaints == []
    assert json.loads(browser.run("document.getElementById('data').textContent"))["root"] == "/imgs"
