"""The browser fixture detects requests to other machines and errors on pages."""

from __future__ import annotations

import functools
import http.server
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from browser import BrowserPage, save_small
from local_server import serving
from PIL import Image

pytestmark = pytest.mark.ci

Serve = Callable[[str], str]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Return a function that serves a page on this machine and returns its URL."""
    root = tmp_path / "site"
    root.mkdir()
    (root / "favicon.ico").touch()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(root))
    with serving(handler) as address:

        def put(html: str) -> str:
            (root / "index.html").write_text(f"<!doctype html><title>page</title>{html}")
            return f"http://{address}/"

        yield put


def test_page_with_only_local_requests_passes(serve: Serve, browser_page: BrowserPage) -> None:
    page = browser_page.open(serve("<h1>Ready</h1><img src='data:,'><script>fetch('/')</script>"))
    assert page.get_by_role("heading").inner_text() == "Ready"
    browser_page.check()
    with Image.open(browser_page.picture("ready")) as shot:
        assert shot.size == (1280, 900)


def test_page_with_a_request_to_another_machine_fails(serve: Serve, browser_page: BrowserPage) -> None:
    with browser_page.page.expect_event("requestfailed"):
        browser_page.open(serve("<script src='https://cdn.example.com/chart.js'></script>"))
    with pytest.raises(AssertionError, match=r"not on this machine: \['https://cdn.example.com/chart.js'\]"):
        browser_page.check()
    browser_page.strangers.clear()
    browser_page.expected("ERR_NAME_NOT_RESOLVED")


@pytest.mark.parametrize(
    ("html", "message"),
    [
        ("<script>console.error('no table')</script>", "no table"),
        ("<script>nobody.here()</script>", "nobody is not defined"),
        ("<script src='/gone.js'></script>", r"404 .*gone\.js"),
    ],
)
def test_page_with_an_error_fails(serve: Serve, browser_page: BrowserPage, html: str, message: str) -> None:
    browser_page.open(serve(html))
    with pytest.raises(AssertionError, match=message):
        browser_page.check()
    with pytest.raises(AssertionError, match="no complaint matches"):
        browser_page.expected("something else")
    browser_page.expected(message)


def test_few_colors_keep_the_background_and_one_green_word(tmp_path: Path) -> None:
    """The gray steps of smooth letters outnumber the green pixels a thousand times."""
    page, green = (246, 247, 249), (24, 99, 42)
    shot = Image.new("RGB", (400, 400), page)
    for x in range(246):
        shot.paste((x, x + 1 - x % 3, x + x % 4), (x, 100, x + 1, 150))
    shot.paste(green, (10, 10, 14, 13))
    save_small(shot, tmp_path / "few.png")
    with Image.open(tmp_path / "few.png") as few:
        kept = few.convert("RGB")
    assert kept.getpixel((300, 300)) == page
    found = kept.getpixel((11, 11))
    assert isinstance(found, tuple)
    assert max(abs(one - other) for one, other in zip(found, green, strict=True)) <= 12
