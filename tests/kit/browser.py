"""A headless Chromium, driven through chromedriver's own protocol; tests skip without it."""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def missing() -> str:
    """Return why there is no browser to test with; empty if there is one."""
    absent = [n for n, p in (("chromium", CHROMIUM), ("chromedriver", DRIVER)) if p is None]
    return f"{' and '.join(absent)} not installed" if absent else ""


class Browser:
    """One window."""

    def __init__(self, port: int, profile: Path) -> None:
        self._base = f"http://127.0.0.1:{port}"
        options = {
            "binary": CHROMIUM,
            "args": [*FLAGS, f"--user-data-dir={profile}", "about:blank"],
        }
        always = {
            "browserName": "chrome",
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
            "unhandledPromptBehavior": "ignore",
        }
        made = self._send("POST", "/session", {"capabilities": {"alwaysMatch": always}})
        self._base += f"/session/{made['sessionId']}"

    def _send(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self._base + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                return json.load(reply)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(json.load(error)["value"]["message"]) from None

    def open(self, url: str) -> None:
        """Load a page and wait until it is there; what went before is forgotten."""
        self.requests()
        self.console()
        self._send("POST", "/url", {"url": url})

    def js(self, script: str, *arguments: Any) -> Any:
        """Run the body of a function in the page and return what it returns."""
        return self._send("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def cdp(self, command: str, **parameters: Any) -> Any:
        """Send a command of Chromium's own protocol."""
        return self._send("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def click(self, selector: str) -> None:
        """Click the first element that a selector finds."""
        found = self._send("POST", "/element", {"using": "css selector", "value": selector})
        self._send("POST", f"/element/{next(iter(found.values()))}/click", {})

    def press(self, *keys: str) -> None:
        """Press and release keys, each a character or a code of WebDriver."""
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        one = {"type": "key", "id": "keyboard", "actions": actions}
        self._send("POST", "/actions", {"actions": [one]})

    def size(self, width: int, height: int, *, dark: bool = False) -> None:
        """Show the page as a screen of so many pixels would, in light or dark mode."""
        self.cdp(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.cdp("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        """Save a picture of what is in sight, or of the whole page."""
        shot = self.cdp("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))

    def console(self) -> list[str]:
        """Return errors and warnings since the page was opened, or since the last call."""
        entries = self._send("POST", "/se/log", {"type": "browser"})
        return [e["message"] for e in entries if e["level"] in ("SEVERE", "WARNING")]

    def requests(self) -> list[str]:
        """Return what the page asked for since it was opened, or since the last call."""
        entries = self._send("POST", "/se/log", {"type": "performance"})
        messages = [json.loads(e["message"])["message"] for e in entries]
        sent = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        own = [one for one in sent if not one["documentURL"].startswith("chrome")]
        return [str(one["request"]["url"]) for one in own]

    def dialog(self) -> str | None:
        """Return the text of an open dialog, None if there is none."""
        try:
            return str(self._send("GET", "/alert/text"))
        except AssertionError:
            return None

    def quit(self) -> None:
        """Close the window."""
        self._send("DELETE", "")


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """Start a browser with a new profile below ``folder``, and end it afterwards."""
    assert DRIVER is not None
    port = _free_port()
    log = folder / "driver.log"
    with log.open("wb") as output:
        driver = subprocess.Popen(
            [DRIVER, f"--port={port}"],
            stdout=output,
            stderr=output,
            env={**os.environ, "HOME": str(folder)},
        )
    try:
        _wait_for(port)
        window = Browser(port, folder / "profile")
        try:
            yield window
        finally:
            window.quit()
    finally:
        driver.terminate()
        driver.wait(timeout=20)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _wait_for(port: int) -> None:
    end = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)
