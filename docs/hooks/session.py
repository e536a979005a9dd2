"""Player of the recorded session, put into the page that asks for it when the site is built.

The plugin asciinema-player adds the program and its styles. The plugin's own block of Markdown has no
poster and loads a file, which a browser does not allow a page that it opened without a web server.
"""

import html
import json
from pathlib import Path

CAST = Path(__file__).resolve().parents[1] / "session.cast"
MARKER = "<!-- the recorded session -->"
PLAYER = """\
<div id="session" data-cast="{cast}"></div>
<script>
document.addEventListener("DOMContentLoaded", () => {{
  const place = document.getElementById("session");
  AsciinemaPlayer.create({{data: place.dataset.cast}}, place, {options});
}});
</script>
"""


def on_page_markdown(markdown: str, **_: object) -> str:
    """Replace the marker with the player (an event of MkDocs)."""
    cast = CAST.read_text()
    end_s, *_rest = json.loads(cast.splitlines()[-1])
    options = {"poster": f"npt:{end_s}", "terminalFontFamily": "monospace", "fit": "width"}
    # Markdown ends a block of HTML at an empty line.
    player = PLAYER.format(cast=html.escape(cast).replace("\n", "&#10;"), options=json.dumps(options))
    return markdown.replace(MARKER, player)
