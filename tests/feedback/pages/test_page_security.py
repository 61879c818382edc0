"""The ranking page as a browser, a guesser and another site see it, and as twenty raters use it at once."""

from __future__ import annotations

import json
import socket
import sqlite3
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from browser import BrowserPage, page_of
from pages import served_page
from playwright.sync_api import Browser, expect

from alignment_core.feedback import open_feedback

pytestmark = [pytest.mark.ci, pytest.mark.timeout(1800)]


PASSWORD = "open sesame"
RATERS, RANKINGS = 20, 5
KEYS = ("2", "1", "Enter")


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    place = str(tmp_path / "feedback.db")
    prompts = [({"role": "user", "content": f"Question {number}?"},) for number in range(RANKINGS)]
    with open_feedback(place) as store:
        store.add_ranking_tasks([(prompt, [(text, "m") for text in "abc"]) for prompt in prompts])
    file = tmp_path / "run.yaml"
    config = {"model": {"base": "x"}, "data": {"sources": [{"path": "x"}]}, "feedback": place, "store": str(tmp_path)}
    file.write_text(json.dumps(config))
    return file


def upgrade(url: str, *headers: str) -> int:
    """Ask for a websocket as a browser does, and return the status of the answer."""
    address = urlsplit(url)
    lines = [
        "GET /_nicegui_ws/socket.io/?EIO=4&transport=websocket HTTP/1.1", f"Host: {address.netloc}",
        "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", *headers,
    ]  # fmt: skip
    with socket.create_connection((str(address.hostname), address.port or 80), timeout=60) as raw:
        raw.sendall("\r\n".join([*lines, "", ""]).encode())
        return int(raw.recv(100).split()[1])


def test_guesses_origins_and_headers(settings: Path, tmp_path: Path) -> None:
    with (
        served_page(tmp_path, "rank", settings, ALIGN_PASSWORD=PASSWORD) as url,
        httpx.Client(base_url=url, timeout=120) as client,
        ThreadPoolExecutor(20) as threads,
    ):
        headers = client.get("/login").headers
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert client.get("/").headers["location"] == "/login"
        assert upgrade(url, f"Origin: {url}") == 403, "without the password there is no websocket"
        cookie = client.post("/login", data={"password": PASSWORD}).headers["set-cookie"].partition(";")[0]
        client.cookies.clear()
        statuses = threads.map(lambda n: client.post("/login", data={"password": f"wrong {n}"}).status_code, range(400))
        counts = Counter(statuses)
        # Those who wait for a few seconds get one more guess each time.
        assert counts[403] + counts[429] == 400
        assert counts[403] <= 5
        assert upgrade(url, f"Cookie: {cookie}", f"Origin: {url}") == 101
        for origin in (["Origin: http://evil.example"], ["Origin: null"], []):
            assert upgrade(url, f"Cookie: {cookie}", *origin) == 403
        page = client.get("/", headers={"cookie": cookie})
        assert page.status_code == 200
        assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
    assert "wrong password from 127.0.0.1, 3 in a row" in (tmp_path / "page.log").read_text()


def test_ended_session_asks_for_the_password_again(settings: Path, tmp_path: Path, browser_page: BrowserPage) -> None:
    short = (
        "from alignment_core.feedback.pages import login, web; "
        "login.LONGEST_SECONDS, web.RECONNECT_SECONDS = 8.0, 5.0; "
        "from alignment_flows.cli.app import main; main()"
    )
    program = (sys.executable, "-P", "-c", short)
    with served_page(tmp_path, "rank", settings, program=program, ALIGN_PASSWORD=PASSWORD) as url:
        page = browser_page.open(url)
        password = page.get_by_label("Password")
        password.fill(PASSWORD)
        page.keyboard.press("Enter")
        expect(page.get_by_label("Your name")).to_be_visible()
        expect(password).to_be_visible()
        browser_page.expected("401|403|WebSocket")
        page.goto("about:blank")


@pytest.mark.slow
def test_keys_of_twenty_raters_are_saved_although_the_database_is_busy(
    settings: Path, tmp_path: Path, browser: Browser
) -> None:
    """All keys are pressed while another process writes, so that no vote is saved before the last key."""
    place = tmp_path / "feedback.db"
    with served_page(tmp_path, "rank", settings) as url, ExitStack() as stack:
        opened = [stack.enter_context(page_of(browser, tmp_path / str(rater))).page for rater in range(RATERS)]
        for rater, page in enumerate(opened):
            page.goto(url)
            page.get_by_label("Your name").fill(f"Rater {rater}")
            page.keyboard.press("Enter")
        for page in opened:
            expect(page.get_by_test_id("progress")).to_have_text(f"0 of {RANKINGS} ranked")
        with closing(sqlite3.connect(place, isolation_level=None, timeout=60)) as writer:
            writer.execute("BEGIN IMMEDIATE")
            for _ in range(RANKINGS):
                for page in opened:
                    for key in KEYS:
                        page.keyboard.press(key)
            writer.execute("ROLLBACK")
        for page in opened:
            expect(page.get_by_text("All responses are ranked")).to_be_visible()
            page.goto("about:blank")
    with open_feedback(str(place)) as store:
        votes = list(store.votes())
    assert Counter(vote.rater.name for vote in votes) == {f"Rater {rater}": RANKINGS for rater in range(RATERS)}
    assert all(sorted(vote.ranks) == [1, 2, 3] for vote in votes)


def test_second_skip_is_refused_while_the_first_is_saved(
    settings: Path, tmp_path: Path, browser_page: BrowserPage
) -> None:
    with served_page(tmp_path, "rank", settings) as url:
        page = browser_page.open(url)
        page.get_by_label("Your name").fill("Ann")
        page.keyboard.press("Enter")
        progress = page.get_by_test_id("progress")
        expect(progress).to_have_text(f"0 of {RANKINGS} ranked")
        with closing(sqlite3.connect(tmp_path / "feedback.db", isolation_level=None, timeout=60)) as writer:
            writer.execute("BEGIN IMMEDIATE")
            page.keyboard.press("s")
            page.keyboard.press("s")
            expect(page.get_by_text("this prompt was not skipped")).to_be_visible()
            page.keyboard.press("b")
            expect(page.get_by_text("this prompt was not rejected")).to_be_visible()
            writer.execute("ROLLBACK")
        expect(progress).to_have_text(f"1 of {RANKINGS} ranked")
        page.goto("about:blank")
