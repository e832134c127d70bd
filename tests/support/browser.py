"""A headless Chromium, driven by the DevTools protocol over a pipe: no driver program, no library, no port.

Debian's chromium-headless-shell does, and so do chromium and Chrome. It runs in a network namespace, so what a page asks of
the world outside finds nobody, and is recorded.
"""

import base64
import fcntl
import itertools
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.netns import Netns

PROGRAMS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
PATIENCE_S = 60.0
_FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage",
          "--disable-background-networking", "--disable-component-update", "--disable-extensions", "--disable-sync",
          "--disable-default-apps", "--hide-scrollbars", "--force-color-profile=srgb", "--remote-debugging-pipe")


class BrowserError(AssertionError):
    """The browser said no, died, or did not answer in time."""


def find_browser() -> str | None:
    """A browser this can drive, or None."""
    return next((found for program in PROGRAMS if (found := shutil.which(program))), None)


class Browser:
    """One browser with one page. `close` ends it, and its profile goes with it.

    `console` holds what the page logged as an error, `requests` the URLs it asked for, since the last `open`.
    """

    def __init__(self, netns: Netns, program: str) -> None:
        self._profile = tempfile.TemporaryDirectory(prefix="rustosd-browser-", ignore_cleanup_errors=True)
        to_us, from_browser = os.pipe()
        to_browser, from_us = os.pipe()
        # The browser reads descriptor 3 and writes 4; ours must not be those before the shell has moved them.
        theirs = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (to_browser, from_browser)]
        shell = f'exec "$@" 3<&{theirs[0]} 4>&{theirs[1]} {theirs[0]}<&- {theirs[1]}>&-'
        environment = {**os.environ, "HOME": self._profile.name, "XDG_RUNTIME_DIR": self._profile.name}
        with open(Path(self._profile.name) / "log", "wb") as self._log:
            self.process = netns.popen("bash", "-c", shell, "bash", program, *_FLAGS, f"--user-data-dir={self._profile.name}",
                                       "about:blank", pass_fds=theirs, env=environment, stdin=subprocess.DEVNULL,
                                       stdout=self._log, stderr=self._log)
        for fd in (to_browser, from_browser, *theirs):
            os.close(fd)
        self._in, self._out = to_us, from_us
        self._buffer = b""
        self._serial = itertools.count(1)
        self._session: str | None = None
        self._loaded = False
        self.console: list[str] = []
        self.requests: list[str] = []
        self.failed: list[str] = []
        try:
            target = self.call("Target.createTarget", url="about:blank")["targetId"]
            self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Network", "Log", "Accessibility"):
                self.call(f"{domain}.enable")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the protocol and its result. Raises BrowserError."""
        number = next(self._serial)
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + PATIENCE_S
        while True:
            answer = self._next(deadline, method)
            if answer.get("id") == number:
                if "error" in answer:
                    raise BrowserError(f"{method}: {answer['error'].get('message')}")
                return answer["result"]

    def resize(self, width: int, height: int, *, dark: bool = False, mobile: bool = False, scale: float = 1) -> None:
        """The size of the window in CSS pixels, and the colours the person prefers."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=mobile)
        self.call("Emulation.setEmulatedMedia", features=[
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])

    def javascript(self, on: bool) -> None:
        """Whether pages opened from now on may run scripts."""
        self.call("Emulation.setScriptExecutionDisabled", value=not on)

    def open(self, url: str) -> None:
        """Load a page to its end."""
        self.console, self.requests, self.failed = [], [], []
        self._loaded = False
        answer = self.call("Page.navigate", url=url)
        if "errorText" in answer:
            raise BrowserError(f"{url}: {answer['errorText']}")
        deadline = time.monotonic() + PATIENCE_S
        while not self._loaded:
            self._next(deadline, f"loading {url}")

    def evaluate(self, expression: str) -> Any:
        """The value of an expression in the page, awaited. Raises BrowserError for what it throws."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise BrowserError(details.get("exception", {}).get("description") or details["text"])
        return answer["result"].get("value")

    def until(self, expression: str, holds: Callable[[Any], object] = bool, seconds: float = PATIENCE_S) -> Any:
        """Evaluate until the value is as wanted, and return it. Raises BrowserError with the last one."""
        deadline = time.monotonic() + seconds
        while not holds(value := self.evaluate(expression)):
            if time.monotonic() > deadline:
                raise BrowserError(f"after {seconds} s still: {expression} is {value!r}")
            time.sleep(0.1)
        return value

    def press(self, key: str, *, shift: bool = False) -> None:
        """A key of the keyboard: Tab, Enter, " "."""
        code, text = {"Tab": (9, ""), "Enter": (13, "\r"), " ": (32, " ")}[key]
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code,
                      modifiers=8 if shift else 0, **({"text": text} if text and kind == "keyDown" else {}))

    def screenshot(self, path: Path, *, whole: bool = True) -> None:
        """A picture of the page, all of it, as PNG."""
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))

    def accessibility(self) -> list[dict[str, Any]]:
        """The nodes of the tree that a screen reader gets: role, name and properties of those not ignored."""
        nodes = self.call("Accessibility.getFullAXTree")["nodes"]
        return [{"role": node.get("role", {}).get("value"), "name": node.get("name", {}).get("value", ""),
                 **{p["name"]: p["value"].get("value") for p in node.get("properties", ())}}
                for node in nodes if not node.get("ignored")]

    def close(self) -> None:
        """End the browser. May be called twice."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for fd in (self._in, self._out):
            try:
                os.close(fd)
            except OSError:
                continue
        self._profile.cleanup()

    def _next(self, deadline: float, what: str) -> dict[str, Any]:
        """The next message, whose event is noted."""
        while b"\0" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._in], [], [], left)[0]:
                raise BrowserError(f"no answer within {PATIENCE_S} s: {what}")
            octets = os.read(self._in, 1 << 20)
            if not octets:
                log = (Path(self._profile.name) / "log").read_text(errors="replace")
                raise BrowserError(f"the browser died at {what}; it said: {log[-2000:]}")
            self._buffer += octets
        text, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(text)
        self._note(message.get("method"), message.get("params", {}))
        return message

    def _note(self, event: str | None, params: dict[str, Any]) -> None:
        if event == "Page.loadEventFired":
            self._loaded = True
        elif event == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif event == "Network.loadingFailed" and not params.get("canceled"):
            self.failed.append(params.get("errorText", ""))
        elif event == "Runtime.exceptionThrown":
            self.console.append(params["exceptionDetails"].get("exception", {}).get("description", "exception"))
        elif event == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.console.append(" ".join(str(arg.get("value", arg.get("description"))) for arg in params["args"]))
        elif event == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.console.append(params["entry"]["text"])
