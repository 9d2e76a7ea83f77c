"""Headless Chromium over its DevTools protocol: what a page prints, what it asks of the network, keys and clicks."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-extensions --remote-debugging-port=0 --window-size=1300,1000"
)


def chromium() -> str:
    """The browser's path; without one the test is skipped and says so."""
    for name in _NAMES:
        found = shutil.which(name)
        if found:
            return found
    pytest.skip("no Chromium here; install Debian's `chromium` to run the tests of pages")


class Tab:
    """One tab: `errors` it logged, `requests` it made, and its script."""

    def __init__(self, address: str) -> None:
        websocket = pytest.importorskip("websocket", reason="websocket-client is not installed")
        self._socket = websocket.create_connection(address, suppress_origin=True, timeout=30)
        self._next = 0
        self.errors: list[str] = []
        self.requests: list[str] = []
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command and its answer; events on the way are kept."""
        self._next += 1
        self._socket.send(json.dumps({"id": self._next, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv())
            if message.get("id") == self._next:
                assert "error" not in message, message
                return message["result"]
            self._event(message)

    def _event(self, message: dict[str, Any]) -> None:
        what, facts = message.get("method"), message.get("params", {})
        if what == "Network.requestWillBeSent":
            self.requests.append(facts["request"]["url"])
        elif what == "Runtime.exceptionThrown":
            details = facts["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description") or details["text"])
        elif what == "Runtime.consoleAPICalled" and facts["type"] in ("error", "warning", "assert"):
            self.errors.append(str(facts["args"]))
        elif what == "Log.entryAdded" and facts["entry"]["level"] in ("error", "warning"):
            self.errors.append(facts["entry"]["text"])

    def js(self, expression: str) -> Any:
        """The value of an expression; promises are waited for."""
        done = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def open(self, path: Path) -> None:
        """Open a file and wait until its script has run."""
        self.errors.clear()
        self.requests.clear()
        self.call("Page.navigate", url=path.resolve().as_uri())
        self.until("document.documentElement?.dataset.ready === 'yes'")

    def until(self, condition: str, seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while not self.js(condition):
            assert time.monotonic() < end, f"{condition} did not come true; errors: {self.errors}"
            time.sleep(0.02)

    def press(self, key: str, code: int, text: str = "") -> None:
        facts = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **facts)
        self.call("Input.dispatchKeyEvent", type="keyUp", **facts)

    def close(self) -> None:
        self._socket.close()


@contextlib.contextmanager
def browser() -> Iterator[Tab]:
    """A browser with a new profile and one tab."""
    program = chromium()
    profile = tempfile.mkdtemp(prefix="workbench-chromium-")
    process = subprocess.Popen(
        [program, *_FLAGS.split(), f"--user-data-dir={profile}", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        port = Path(profile) / "DevToolsActivePort"
        end = time.monotonic() + 60
        while not (port.is_file() and port.read_text().strip()):
            assert process.poll() is None and time.monotonic() < end, "Chromium did not start"
            time.sleep(0.02)
        number = port.read_text().split()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{number}/json") as answer:
            pages = [page for page in json.load(answer) if page["type"] == "page"]
        tab = Tab(pages[0]["webSocketDebuggerUrl"])
        yield tab
        with contextlib.suppress(Exception):
            tab.call("Browser.close")
        tab.close()
    finally:
        process.terminate()
        process.wait(timeout=30)
        shutil.rmtree(profile, ignore_errors=True)
