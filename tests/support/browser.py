"""A person's browser: headless Chromium, what it showed, what it complained of, and whom it asked.

The tests take the fixture `browser_page` (tests/conftest.py). While it is open, nothing else in the same thread can use
asyncio: the flow run or the server that a page shows belongs into a process or a thread of its own.
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
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

PATIENCE_MS = 120_000
"""How long Playwright waits for what should be there: far more than anything takes on a busy machine."""

LOCAL = {"127.0.0.1", "localhost"}
FLAGS = [
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    # Nothing gets out, whatever a page asks for; what it asked for is told all the same.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
]
NOTHING = r"(?!)"
"""A pattern that matches nothing."""

SCREEN = {"width": 1280, "height": 900}
COLOURS = 64


@dataclass
class BrowserPage:
    """One page in a browser that remembers nothing of others.

    Attributes:
        page: Playwright's page.
        pictures: the folder that screenshots go to.
        tolerated: a pattern of complaints and addresses that are no fault of ours.
        complaints: what the console called an error, and exceptions that no script caught.
        strangers: addresses outside this machine that the page asked for.
    """

    page: Page
    pictures: Path
    tolerated: str = NOTHING
    complaints: list[str] = field(default_factory=list)
    strangers: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.set_default_timeout(PATIENCE_MS)
        self.page.on("console", self._said)
        self.page.on("pageerror", lambda error: self._complained(str(error)))
        self.page.on("request", lambda request: self._asked(request.url))
        self.page.on("websocket", lambda socket: self._asked(socket.url))

    def open(self, url: str) -> Page:
        """Go to an address, and give Playwright's page."""
        self.page.goto(url)
        return self.page

    def picture(self, name: str, clip: tuple[int, int, int, int] | None = None) -> Path:
        """What the page looks like now, as a PNG of few colours (`NAME.png`), so that it stays small.

        Args:
            name: of the file.
            clip: left, upper, right and lower edge of the part that is kept, in pixels of the window.
        """
        shot = Image.open(BytesIO(self.page.screenshot(animations="disabled"))).crop(clip)
        path = self.pictures / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        shot.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
        return path

    def expected(self, pattern: str) -> None:
        """Take back the complaints that match, which the test provoked; fails where there are none."""
        kept = [complaint for complaint in self.complaints if not re.search(pattern, complaint)]
        assert len(kept) < len(self.complaints), f"no complaint matches {pattern!r}: {self.complaints}"
        self.complaints[:] = kept

    def check(self) -> None:
        """Fail if the page complained, or asked for anything that is not on this machine."""
        assert not self.strangers, f"the page asks for what is not on this machine: {self.strangers}"
        assert not self.complaints, f"the browser's console has errors: {self.complaints}"

    def _said(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self._complained(f"{message.text} ({message.location['url']})")

    def _complained(self, complaint: str) -> None:
        if not re.search(self.tolerated, complaint):
            self.complaints.append(complaint)

    def _asked(self, url: str) -> None:
        address = urlsplit(url)
        outside = address.scheme in ("http", "https", "ws", "wss") and address.hostname not in LOCAL
        if outside and not re.search(self.tolerated, url):
            self.strangers.append(url)


def chromium_path() -> str:
    """The system's Chromium, or the one that ALIGN_CHROMIUM names; the test is skipped where there is none."""
    named = os.environ.get("ALIGN_CHROMIUM", "chromium")
    found = shutil.which(named)
    if found is None:
        pytest.skip(f"no Chromium ({named}): install it, or name its program in ALIGN_CHROMIUM")
    return found


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser with a new, empty profile."""
    program = chromium_path()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS, timeout=PATIENCE_MS)
        yield browser
        browser.close()


@contextmanager
def page_of(browser: Browser, pictures: Path, tolerated: str = NOTHING) -> Iterator[BrowserPage]:
    """A page with no cookies and no history, which has to pass `BrowserPage.check` at the end.

    Args:
        browser: what `chromium` gives.
        pictures: the folder for screenshots; `last.png` there shows how the page was left.
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
