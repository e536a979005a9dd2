"""Debian's chromium without a window, driven over two pipes in its own DevTools protocol.

The protocol is JSON with a NUL behind each message (chromium's --remote-debugging-pipe). The tests need
no more: a driver would be another program, which has to be there in the browser's own version.
"""

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.tools import require_tools, which

_WAIT_S = 60.0
_NAMES = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
    "--headless",
    # root has no sandbox, and containers have no GPU and a small /dev/shm.
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
_KEYS = {
    "Enter": {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"},
    "Tab": {"key": "Tab", "code": "Tab", "windowsVirtualKeyCode": 9},
    "ArrowRight": {"key": "ArrowRight", "code": "ArrowRight", "windowsVirtualKeyCode": 39},
    "Space": {"key": " ", "code": "Space", "windowsVirtualKeyCode": 32, "text": " "},
}


class Browser:
    """One page of a browser. `complaints` are what the console shows, `requests` what it asked for."""

    def __init__(self, to: int, back: int) -> None:
        self._to, self._back = to, back
        self._rest = b""
        self._number = 0
        self._session = ""
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self._loaded = False
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")
        self.size(1280, 900)

    def size(self, width: int, height: int) -> None:
        """Make the window so large, in pixels; narrow ones are those of a phone."""
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )

    def media(self, *, dark: bool = False, kind: str = "screen") -> None:
        """Prefer dark pages, or light ones; `kind` may be `print`."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", media=kind, features=[scheme])

    def open(self, url: str, *, scripts: bool = True) -> float:
        """Load a page; returns the seconds until it was laid out, by the browser's own clock."""
        self._call("Emulation.setScriptExecutionDisabled", value=not scripts)
        self.complaints.clear()
        self.requests.clear()
        self._loaded = False
        # A URL that differs in its fragment only would load nothing.
        self._call("Page.navigate", url="about:blank")
        self._until_loaded()
        self._loaded = False
        self.requests.clear()
        self._call("Page.navigate", url=url)
        self._until_loaded()
        if not scripts:
            return 0.0
        # Measured by the page itself: two frames after loading, all is laid out and drawn.
        return float(
            self.run(
                "new Promise(done => requestAnimationFrame(() => requestAnimationFrame("
                "() => done(performance.now() / 1000))))"
            )
        )

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression, or of its promise."""
        found = self._call(
            "Runtime.evaluate",
            expression=expression,
            awaitPromise=True,
            returnByValue=True,
            userGesture=True,
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, expression: str) -> None:
        """Wait until a JavaScript expression is true."""
        end_s = time.monotonic() + _WAIT_S
        while not self.run(f"new Promise(done => setTimeout(() => done(!!({expression})), 20))"):
            assert time.monotonic() < end_s, f"never true: {expression}"

    def click(self, selector: str) -> None:
        """Click the middle of an element with the mouse."""
        x, y = self.run(
            f"(e => {{ e.scrollIntoView({{block: 'center'}}); const r = e.getBoundingClientRect();"
            f" return [r.x + r.width / 2, r.y + r.height / 2] }})"
            f"(document.querySelector({json.dumps(selector)}))"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self._call(
                "Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1, buttons=1
            )

    def press(self, key: str) -> None:
        """Press and release a key."""
        self._call("Input.dispatchKeyEvent", type="keyDown", **_KEYS[key])
        self._call("Input.dispatchKeyEvent", type="keyUp", **_KEYS[key])

    def type(self, text: str) -> None:
        """Type into what has the focus."""
        self._call("Input.insertText", text=text)

    def allow(self, permission: str, setting: str) -> None:
        """Answer a question of the browser's before it is asked: `granted` or `denied`."""
        name = {"name": permission}
        self._call("Browser.setPermission", browser=True, permission=name, setting=setting)

    def accessible(self) -> list[tuple[str, str]]:
        """The role and the name of everything that a screen reader is told of."""
        self._call("Accessibility.enable")
        nodes = self._call("Accessibility.getFullAXTree")["nodes"]
        self._call("Accessibility.disable")
        return [
            (node.get("role", {}).get("value", ""), node.get("name", {}).get("value", ""))
            for node in nodes
            if not node["ignored"]
        ]

    def source(self, selector: str) -> str:
        """An element as HTML, also where the page may run no scripts."""
        root = self._call("DOM.getDocument")["root"]["nodeId"]
        node = self._call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        found: str = self._call("DOM.getOuterHTML", nodeId=node)["outerHTML"]
        return found

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        """A picture of the window, or of the whole page."""
        more: dict[str, Any] = {}
        if whole:
            box = self._call("Page.getLayoutMetrics")["cssContentSize"]
            more = {"captureBeyondViewport": True, "clip": {**box, "scale": 1}}
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot", **more)["data"]))

    def _until_loaded(self) -> None:
        end_s = time.monotonic() + _WAIT_S
        while not self._loaded:
            self._message(end_s)

    def _call(self, method: str, browser: bool = False, **params: Any) -> Any:
        self._number += 1
        number = self._number
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        if self._session and not browser:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        end_s = time.monotonic() + _WAIT_S
        while True:
            found = self._message(end_s)
            if found.get("id") == number:
                assert "error" not in found, (method, found["error"])
                return found["result"]

    def _message(self, end_s: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._back], [], [], max(0.0, end_s - time.monotonic()))
            assert ready, "the browser does not answer"
            read = os.read(self._back, 1 << 20)
            assert read, "the browser has ended"
            self._rest += read
        line, _, self._rest = self._rest.partition(b"\0")
        found: dict[str, Any] = json.loads(line)
        self._notice(found.get("method", ""), found.get("params", {}))
        return found

    def _notice(self, event: str, told: dict[str, Any]) -> None:
        match event:
            case "Page.loadEventFired":
                self._loaded = True
            case "Network.requestWillBeSent":
                self.requests.append(told["request"]["url"])
            case "Runtime.consoleAPICalled":
                self.complaints.append(str(told["args"]))
            case "Runtime.exceptionThrown":
                self.complaints.append(str(told["exceptionDetails"]))
            case "Log.entryAdded":
                self.complaints.append(told["entry"]["text"])


@contextmanager
def running_browser() -> Iterator[Browser]:
    """A browser with a profile of its own, which is ended with all its processes."""
    program = next(filter(which, _NAMES), "chromium")
    require_tools(program)
    profile = tempfile.mkdtemp(prefix="chromium-")
    theirs, to = os.pipe()
    back, answers = os.pipe()
    # It reads descriptor 3 and writes 4: high ones first, so that none of them is in the way.
    moves = f'exec 3<&{theirs} 4>&{answers}; exec {program} "$@"'
    argv = ["bash", "-c", moves, "chromium", *_FLAGS, f"--user-data-dir={profile}"]
    process = subprocess.Popen(
        argv,
        pass_fds=(theirs, answers),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "HOME": profile},
    )
    try:
        os.close(theirs)
        os.close(answers)
        yield Browser(to, back)
    finally:
        # Without its pipes it ends by itself, its children with it.
        os.close(to)
        os.close(back)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        shutil.rmtree(profile, ignore_errors=True)
