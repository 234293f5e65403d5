"""A headless Chromium, controlled over a pipe (DevTools protocol) without a driver or library.

Messages are JSON objects that end with a zero byte, in at descriptor 3 and out at descriptor 4.
"""

import base64
import fcntl
import json
import os
import shutil
import time
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-extensions", "--disable-dev-shm-usage", "--remote-debugging-pipe"),
)
PATIENCE = 60.0


class Browser:
    """One tab, with a log of its console, exceptions and requests."""

    def __init__(self, profile: Path) -> None:
        program = next(filter(None, map(shutil.which, NAMES)), None)
        if program is None:
            pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed")
        child_in, self._out = os.pipe()
        self._in, child_out = os.pipe()
        os.set_blocking(self._in, False)
        self._pid = _spawn([program, *FLAGS, f"--user-data-dir={profile}"], child_in, child_out)
        self._buffer = b""
        self._count = 0
        self.events = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        """The result of a command to the tab; AssertionError with its error message."""
        return self._call(method, session=self._session, **parameters)

    def open(self, path, width, height=900):
        """Show a file at a width in CSS pixels, and wait until its figures are drawn."""
        self.events.clear()
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self.call("Page.navigate", url=Path(path).resolve().as_uri())
        self.wait_for("document.documentElement?.dataset.drawn === 'yes'")

    def wait_for(self, condition):
        """Evaluate an expression until it is true."""
        end = time.monotonic() + PATIENCE
        while not self.ask(condition):
            assert time.monotonic() < end, f"{condition} is still false; {self.troubles()}"
            time.sleep(0.05)

    def ask(self, expression):
        """The value of a JavaScript expression, as JSON."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def troubles(self):
        """Everything the page logged or threw."""
        kinds = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [event for event in self.events if event["method"] in kinds]

    def requests(self):
        """URLs that the page requested, without data and blob URLs."""
        sent = [e for e in self.events if e["method"] == "Network.requestWillBeSent"]
        urls = [event["params"]["request"]["url"] for event in sent]
        return [url for url in urls if not url.startswith(("data:", "blob:"))]

    def screenshot(self, path):
        """The whole page as PNG."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        Path(path).write_bytes(base64.b64decode(shot["data"]))

    def close(self):
        """End the browser; without its pipe it ends itself."""
        os.close(self._in)
        os.close(self._out)
        os.waitpid(self._pid, 0)

    def _call(self, method, session=None, **parameters):
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._count:
                assert "error" not in answer, answer["error"]
                return answer["result"]
            self.events.append(answer)

    def _read(self):
        end = time.monotonic() + PATIENCE
        while b"\0" not in self._buffer:
            try:
                piece = os.read(self._in, 2**20)
            except BlockingIOError:
                assert time.monotonic() < end, "the browser does not answer"
                time.sleep(0.005)
                continue
            assert piece, "the browser has ended"
            self._buffer += piece
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)


def _spawn(command, read_from, write_to):
    """Start a process with these descriptors as 3 and 4 and /dev/null as 0 to 2; returns its id."""
    # Above 10 first, since one of them may be 3 or 4 already.
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in (read_from, write_to)]
    actions = [(os.POSIX_SPAWN_OPEN, n, os.devnull, os.O_RDWR, 0) for n in range(3)]
    actions += [(os.POSIX_SPAWN_DUP2, fd, n) for n, fd in enumerate(high, start=3)]
    pid = os.posix_spawn(command[0], command, os.environ, file_actions=actions)
    for fd in (read_from, write_to, *high):
        os.close(fd)
    return pid
