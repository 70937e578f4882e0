"""A headless Chromium with a fake microphone, driven by its DevTools protocol."""

import base64
import contextlib
import itertools
import json
import re
import subprocess
import time

from websockets.sync.client import connect


class Tab:
    """A page of the browser."""

    def __init__(self, address: str):
        """Attach to a target's socket."""
        self._socket = connect(address, max_size=None)
        self._numbers = itertools.count(1)
        self.events: list[dict] = []

    def ask(self, method: str, **params):
        """A command's result; events that come before it are kept."""
        number = next(self._numbers)
        self._socket.send(
            json.dumps({"id": number, "method": method, "params": params})
        )
        while True:
            message = json.loads(self._socket.recv(timeout=60))
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            self.events.append(message)

    def run(self, script: str):
        """The value of an expression in the page."""
        result = self.ask(
            "Runtime.evaluate",
            expression=script,
            awaitPromise=True,
            returnByValue=True,
            userGesture=True,
        )
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, script: str, seconds: float = 60.0):
        """The value of an expression, once it is true."""
        until = time.monotonic() + seconds
        while not (value := self.run(script)):
            assert time.monotonic() < until, f"{script} did not come true"
            time.sleep(0.1)
        return value

    def take_picture(self, width: int, height: int, dark: bool = False) -> bytes:
        """A PNG of the page at that size."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1}
        self.ask("Emulation.setDeviceMetricsOverride", mobile=width < 600, **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])
        shot = self.ask("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(shot["data"])


@contextlib.contextmanager
def open_tab(chromium: str, profile: str, microphone: str):
    """A new tab.

    Args:
        chromium: the program.
        profile: folder that is new.
        microphone: wave file that is played once.
    """
    command = [
        chromium,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-component-update",
        "--no-first-run",
        "--use-fake-ui-for-media-stream",
        "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-audio-capture={microphone}%noloop",
        f"--user-data-dir={profile}",
        "--remote-debugging-port=0",
        "about:blank",
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        lines = iter(process.stderr.readline, "")
        found = (re.search(r"ws://\S+", line) for line in lines)
        browser = Tab(next(match for match in found if match).group())
        target = browser.ask("Target.createTarget", url="about:blank")["targetId"]
        address = browser._socket.request.headers["Host"]
        tab = Tab(f"ws://{address}/devtools/page/{target}")
        for domain in ("Page", "Network", "Runtime", "Log"):
            tab.ask(f"{domain}.enable")
        yield tab
    finally:
        process.kill()
        process.wait(10)
