"""The site of docs/: it builds without a warning, and is read without network."""

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rc_tasks.model.config.settings import reference_markdown
from tests.support.browser import Browser, running_browser
from tests.support.session import TEXT as SESSION
from tests.support.tools import refuse
from tests.test_documents import commands

SOURCE = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site. `--strict` makes an error of every warning, such as a link that leads nowhere."""
    if importlib.util.find_spec("mkdocs_asciinema_player") is None:
        refuse("the site's extra is not installed; `pip install -e '.[docs]'` installs it")
    made = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        (sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", made),
        cwd=SOURCE,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return made


def test_the_page_of_commands_has_the_help_of_each(site: Path) -> None:
    page = (site / "reference/commands.html").read_text()
    for name in commands():
        assert f'<h3 id="doit-{name}">' in page
    assert "--always-execute" in page


def test_the_page_of_settings_has_each(site: Path) -> None:
    page = (site / "reference/settings.html").read_text()
    keys = re.findall(r"^\| `([^`]+)` \|", reference_markdown(), re.MULTILINE)
    assert keys
    assert not [key for key in keys if f"<code>{key}</code>" not in page]


@pytest.fixture(scope="module")
def page() -> Iterator[Browser]:
    with running_browser() as running:
        yield running


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1400, 390])
def test_pages_are_read_without_network_and_fit_a_phone(
    page: Browser, site: Path, width: int, dark: bool
) -> None:
    page.size(width, 900)
    page.media(dark=dark)
    for name in ("index", "tutorial", "how-to/report", "reference/commands"):
        page.open(f"file://{site}/{name}.html")
        assert page.complaints == []
        assert not [url for url in page.requests if not url.startswith(("file:", "data:"))]
        assert page.run("document.documentElement.scrollWidth") <= width, name


def test_the_recorded_session_plays_without_network(page: Browser, site: Path) -> None:
    page.size(1400, 900)
    page.open(f"file://{site}/index.html")
    page.until("document.querySelector('#session .ap-overlay-start')")
    end = SESSION.read_text().splitlines()[-1]
    assert end in page.run("document.querySelector('#session').textContent")
    page.click("#session .ap-overlay-start")
    page.until("document.querySelector('#session .ap-term').textContent.startsWith('$ doit list')")
    assert page.complaints == []
    assert not [url for url in page.requests if not url.startswith(("file:", "data:"))]
    player = {url.removeprefix(f"file://{site}/") for url in page.requests if "asciinema" in url}
    assert player == {"css/asciinema-player.css", "js/asciinema-player.min.js"}


def test_the_recorded_session_is_read_without_scripts(page: Browser, site: Path) -> None:
    page.open(f"file://{site}/index.html", scripts=False)
    assert '<a href="session.txt">' in page.source("article")
    assert (site / "session.txt").read_text() == SESSION.read_text()


def test_the_search_finds_a_page_without_network(page: Browser, site: Path) -> None:
    page.size(1400, 900)
    page.open(f"file://{site}/index.html")
    page.run("document.querySelector('input[name=query]').focus()")
    page.type("rollback")
    # The search begins when a key is released.
    page.press("Space")
    page.until("document.querySelector('.md-search-result__link[href*=\"how-to/rollback\"]')")
    assert page.complaints == []
