"""Headless Chromium that records its console errors and the addresses it requests, and takes screenshots.

Tests use the fixture `browser_page` (tests/conftest.py). While it is open, nothing else in the same thread can use
asyncio, so the flow run or the server that a page shows must run in another process or thread.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from PIL import Image
from playwright.sync_api import Browser, ConsoleMessage, Error, Page, expect, sync_playwright

PATIENCE_MS = 300_000
"""How long Playwright waits for an element: far longer than anything takes on a busy machine."""

expect.set_options(timeout=PATIENCE_MS)  # for all test files: Playwright keeps one value per process

LOCAL = {"127.0.0.1", "localhost"}
FLAGS = [
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    # No request leaves this machine. Playwright still reports what a page requests.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
]
NOTHING = r"(?!)"
"""A pattern that matches nothing."""

SCREEN = {"width": 1280, "height": 900}
COLOURS = 128


def save_small(shot: Image.Image, path: Path) -> None:
    """Save a screenshot with few colors: those of large areas exactly, and rare ones, such as that of a few words."""
    few = shot.convert("RGB").quantize(COLOURS, Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE)
    few.save(path, optimize=True)


@dataclass
class BrowserPage:
    """One page in a browser context without cookies or history.

    Attributes:
        page: Playwright's page.
        pictures: the folder for screenshots.
        tolerated: a pattern of errors and addresses that are not our fault.
        complaints: console errors, and uncaught exceptions.
        strangers: addresses outside this machine that the page requested.
    """

    page: Page
    pictures: Path
    tolerated: str = NOTHING
    complaints: list[str] = field(default_factory=list)
    strangers: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.set_default_timeout(PATIENCE_MS)
        self.page.on("console", self._on_console)
        self.page.on("pageerror", self._on_exception)
        self.page.on("request", lambda request: self._on_request(request.url))
        self.page.on("websocket", lambda socket: self._on_request(socket.url))

    def open(self, url: str) -> Page:
        """Open an address and return Playwright's page."""
        self.page.goto(url)
        return self.page

    def picture(self, name: str, clip: tuple[int, int, int, int] | None = None) -> Path:
        """Save a screenshot as `NAME.png`, with few colors to keep the file small.

        Args:
            name: name of the file without `.png`.
            clip: left, upper, right and lower edge of the part to keep, in pixels of the window.
        """
        shot = Image.open(BytesIO(self.page.screenshot(animations="disabled"))).crop(clip)
        path = self.pictures / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_small(shot, path)
        return path

    def expected(self, pattern: str) -> None:
        """Remove the matching errors, which the test provoked. Fail if there are none."""
        kept = [complaint for complaint in self.complaints if not re.search(pattern, complaint)]
        assert len(kept) < len(self.complaints), f"no complaint matches {pattern!r}: {self.complaints}"
        self.complaints[:] = kept

    def check(self) -> None:
        """Fail if the page logged errors or requested anything outside this machine."""
        assert not self.strangers, f"the page requests addresses that are not on this machine: {self.strangers}"
        assert not self.complaints, f"the browser's console has errors: {self.complaints}"

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self._record_error(f"{message.text} ({message.location['url']})")

    def _on_exception(self, error: Error) -> None:
        scripts = re.findall(r"https?://[^\s)]+", error.stack or "")
        self._record_error(f"{error.message} ({scripts[0] if scripts else 'no script'})")

    def _record_error(self, complaint: str) -> None:
        if not re.search(self.tolerated, complaint):
            self.complaints.append(complaint)

    def _on_request(self, url: str) -> None:
        address = urlsplit(url)
        outside = address.scheme in ("http", "https", "ws", "wss") and address.hostname not in LOCAL
        if outside and not re.search(self.tolerated, url):
            self.strangers.append(url)


def chromium_path() -> str:
    """Return the path of Chromium, from ALIGN_CHROMIUM or the system. Skip the test if there is none."""
    named = os.environ.get("ALIGN_CHROMIUM", "chromium")
    found = shutil.which(named)
    if found is None:
        pytest.skip(f"no Chromium ({named}): install it, or set ALIGN_CHROMIUM to its program")
    return found


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start a browser with a new, empty profile."""
    program = chromium_path()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS, timeout=PATIENCE_MS)
        yield browser
        browser.close()


@contextmanager
def page_of(browser: Browser, pictures: Path, tolerated: str = NOTHING) -> Iterator[BrowserPage]:
    """Open a page without cookies or history. It must pass `BrowserPage.check` at the end.

    Args:
        browser: the browser from `chromium`.
        pictures: the folder for screenshots; `last.png` shows the final state of the page.
        tolerated: see `BrowserPage`.
    """
    context = browser.new_context(viewport=SCREEN, timezone_id="UTC", locale="en-GB")
    opened = BrowserPage(context.new_page(), pictures, tolerated)
    try:
        yield opened
    finally:
        opened.picture("last")
        context.close()
    opened.check()
