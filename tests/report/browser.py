"""A headless Chromium driven over a pipe (its DevTools protocol), with nothing but the standard library."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = """
    --headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync --disable-background-networking
    --disable-component-update --disable-default-apps --hide-scrollbars --remote-debugging-pipe
""".split()


def program() -> str | None:
    """The browser's path, None where there is none."""
    return next((path for path in map(shutil.which, PROGRAMS) if path), None)


def _high(end: int) -> int:
    """The same end of a pipe under a number that is out of the way of 3 and 4, which the browser reads and writes."""
    moved = fcntl.fcntl(end, fcntl.F_DUPFD, 20)
    os.close(end)
    return moved


class Browser:
    """One tab. `events` are all messages that it sent by itself: console, exceptions, network."""

    def __init__(self) -> None:
        self.profile = tempfile.mkdtemp(prefix="browser-")
        to_browser, self.out, self.incoming, from_browser = (_high(end) for end in (*os.pipe(), *os.pipe()))
        words = [str(program()), *FLAGS, f"--user-data-dir={self.profile}", "about:blank"]
        line = f'exec "$@" 3<&{to_browser} 4>&{from_browser}'
        self.process = subprocess.Popen(
            ["bash", "-c", line, "bash", *words], pass_fds=(to_browser, from_browser), stderr=subprocess.DEVNULL
        )
        os.close(to_browser)
        os.close(from_browser)
        self.events: list[dict[str, Any]] = []
        self.rest, self.number, self.session = b"", 0, None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.out)
        os.close(self.incoming)
        shutil.rmtree(self.profile, ignore_errors=True)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Sends one command and gives its result."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.receive()
            if answer.get("id") == self.number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]

    def receive(self, seconds: float = 60) -> dict[str, Any]:
        """The next message; events are kept."""
        end = time.monotonic() + seconds
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.incoming], [], [], max(0.0, end - time.monotonic()))
            data = os.read(self.incoming, 1 << 20) if ready else b""
            assert data, "the browser does not answer"
            self.rest += data
        line, _, self.rest = self.rest.partition(b"\0")
        message = json.loads(line)
        if "method" in message:
            self.events.append(message)
        return message

    def open(self, file: Path, *, width: int = 1280, height: int = 900) -> None:
        """Loads a file in a window of this size and waits until it is loaded."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self.events.clear()
        self.call("Page.navigate", url=file.resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.receive()

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def press(self, key: str, code: int, text: str = "") -> None:
        """A key goes down and up in the focused element."""
        about = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **about)
        self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    def picture(self) -> bytes:
        """What the window shows, as PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])

    def said(self) -> list[str]:
        """Everything on the console, exceptions and refusals of the policy included."""
        told = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [json.dumps(event["params"])[:300] for event in self.events if event["method"] in told]

    def requested(self) -> list[str]:
        """The addresses that the page asked for, itself and embedded data aside."""
        urls = [
            event["params"]["request"]["url"] for event in self.events if event["method"] == "Network.requestWillBeSent"
        ]
        return [url for url in urls[1:] if not url.startswith("data:")]
