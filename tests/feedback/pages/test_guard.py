"""What stands before the pages, against a small application and a clock that the tests move."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from powers import permissions_count
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

from alignment_core.errors import ConfigError
from alignment_core.feedback.pages import login as limits
from alignment_core.feedback.pages.guard import FORM_BYTES, SOCKET, Guard, Message, Receive, Send
from alignment_core.feedback.pages.login import Login, Sessions
from alignment_core.feedback.pages.web import _secret

PASSWORD = "open sesame"
ORIGIN = {"origin": "http://testserver"}
PRESS = '42["event",{"id":1}]'


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def page_of(clock: Clock, password: str | None = PASSWORD) -> TestClient:
    async def echo(socket: WebSocket) -> None:
        await socket.accept()
        async for text in socket.iter_text():
            await socket.send_text(text)

    routes = [
        Route("/", lambda request: PlainTextResponse("the page")),
        Route("/health", lambda request: PlainTextResponse("well")),
        WebSocketRoute(f"{SOCKET}/socket.io", echo),
    ]
    login = None if password is None else Login(password, clock)
    guard = Guard(Starlette(routes=routes), title="Rank", login=login, sessions=Sessions(clock))
    return TestClient(guard, follow_redirects=False)


@pytest.fixture
def page(clock: Clock) -> Iterator[TestClient]:
    with page_of(clock) as client:
        yield client


def guess(page: TestClient, password: str) -> int:
    return page.post("/login", data={"password": password}).status_code


def test_nothing_but_the_form_is_shown_without_the_password(page: TestClient) -> None:
    assert page.get("/health").text == "well"
    assert "Password" in page.get("/login").text
    for path in ("/", "/_nicegui/1/static/x.js", "/anything"):
        assert page.get(path).headers["location"] == "/login"
    assert page.get(f"{SOCKET}/socket.io?transport=polling").status_code == 401
    assert page.get("/session").status_code == 401
    with pytest.raises(WebSocketDisconnect), page.websocket_connect(f"{SOCKET}/socket.io", headers=ORIGIN):
        pass
    for cookie in ("x", "", '"', "é"):
        assert page.get("/", headers={"cookie": f"align-rank-session={cookie}".encode()}).status_code == 303
    answer = page.post("/login", data={"password": PASSWORD})
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    assert "HttpOnly; SameSite=Lax" in answer.headers["set-cookie"]
    assert page.get("/").text == "the page"
    assert page.get("/session").status_code == 204
    with page.websocket_connect(f"{SOCKET}/socket.io", headers=ORIGIN) as socket:
        socket.send_text("2")
        assert socket.receive_text() == "2"


def test_headers(page: TestClient) -> None:
    guess(page, PASSWORD)
    for path in ("/", "/login", "/health", "/session", "/none"):
        headers = page.get(path).headers
        assert "frame-ancestors 'none'" in headers["content-security-policy"], path
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "same-origin"
    assert "script" not in page.get("/login").headers["content-security-policy"]


@pytest.mark.parametrize("password", [None, PASSWORD])
def test_other_sites_are_refused(clock: Clock, password: str | None) -> None:
    with page_of(clock, password) as page:
        guess(page, PASSWORD)
        for origin in (
            "http://evil.example",
            "http://testserver.evil.example",
            "null",
            "http://testserver:81",
            "http://[",
        ):
            assert page.get("/", headers={"origin": origin}).status_code == 403
            assert page.post("/login", data={"password": PASSWORD}, headers={"origin": origin}).status_code == 403
            with (
                pytest.raises(WebSocketDisconnect),
                page.websocket_connect(f"{SOCKET}/socket.io", headers={"origin": origin}),
            ):
                pass
        with pytest.raises(WebSocketDisconnect), page.websocket_connect(f"{SOCKET}/socket.io"):
            pass  # browsers always name the origin
        for origin in ("http://testserver", "http://TESTSERVER:80", "https://testserver"):
            assert page.get("/", headers={"origin": origin}).status_code == 200
            with page.websocket_connect(f"{SOCKET}/socket.io", headers={"origin": origin}):
                pass


def test_four_hundred_guesses_are_not_looked_at(
    page: TestClient, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        found = [guess(page, f"wrong {number}") for number in range(400)]
    assert found == [403] * limits.FREE_GUESSES + [429] * (400 - limits.FREE_GUESSES)
    checked = [record for record in caplog.records if "wrong password from testclient" in record.getMessage()]
    assert len(checked) == limits.FREE_GUESSES + 1
    assert guess(page, PASSWORD) == 429, "the right password is not looked at during the wait either"
    waits = []
    for _ in range(12):
        answer = page.post("/login", data={"password": "wrong"})
        assert "Too many wrong passwords. Try again in" in answer.text
        waits.append(int(answer.headers["retry-after"]))
        clock.now += waits[-1]
    assert waits[1:9] == [4, 8, 16, 32, 64, 128, 256, 512]
    assert max(waits) == limits.LONGEST_WAIT
    assert guess(page, PASSWORD) == 303
    assert guess(page, "wrong") == 403, "the right password resets the wait"


def test_guesses_from_many_addresses_are_slow_together(clock: Clock) -> None:
    login = Login(PASSWORD, clock)
    assert login.check(PASSWORD, "10.9.9.9") is None
    found = [login.check("wrong", f"10.0.{number // 250}.{number % 250}") for number in range(1000)]
    assert sum(wait == 0 for wait in found) == limits.BURST - 1
    assert login.check(PASSWORD, "10.1.1.1") == pytest.approx(limits.REFILL_SECONDS)
    assert login.check(PASSWORD, "10.9.9.9") is None, "an address that knew the password is not locked out by others"
    clock.now += limits.REFILL_SECONDS
    assert login.check(PASSWORD, "10.1.1.1") is None


def test_an_ipv6_network_is_one_address(clock: Clock) -> None:
    login = Login(PASSWORD, clock)
    waits = [login.check("wrong", f"2001:db8::{number:x}%eth0") for number in range(6)]
    assert waits == [0, 0, 0, 2, 2, 2]
    assert login.check("wrong", "::ffff:10.0.0.1") == login.check("wrong", "10.0.0.1") == 0


def test_few_addresses_are_remembered(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ADDRESSES", 50)
    login = Login(PASSWORD, clock)
    assert login.check(PASSWORD, "10.9.9.9") is None
    for number in range(500):
        clock.now += limits.REFILL_SECONDS
        login.check("wrong", f"10.0.{number // 250}.{number % 250}")
    assert len(login._guessers) <= 50
    assert login._guessers["10.9.9.9"].trusted
    assert login.check("wrong", "x" * 1000) == 0
    assert max(map(len, login._guessers)) <= 64


@pytest.mark.parametrize("password", ["", "öpen sesame", PASSWORD + " ", PASSWORD[:-1], "\0", "\ud800"])
def test_other_passwords_are_wrong(clock: Clock, password: str) -> None:
    assert Login(PASSWORD, clock).check(password, "127.0.0.1") == 0


def test_sessions_end_when_idle(page: TestClient, clock: Clock) -> None:
    guess(page, PASSWORD)
    for _ in range(3):
        clock.now += limits.IDLE_SECONDS - 1
        assert page.get("/").status_code == 200
    clock.now += limits.IDLE_SECONDS - 1
    assert page.get("/session").status_code == 204
    assert page.get(f"{SOCKET}/socket.io").status_code == 404, "neither this nor a ping keeps the session open"
    clock.now += 1
    assert page.get("/").status_code == 303


def test_sessions_end_on_an_open_websocket(page: TestClient, clock: Clock) -> None:
    guess(page, PASSWORD)
    with page.websocket_connect(f"{SOCKET}/socket.io", headers=ORIGIN) as socket:
        clock.now += limits.IDLE_SECONDS - 1
        socket.send_text(PRESS)
        assert socket.receive_text() == PRESS
        clock.now += limits.IDLE_SECONDS - 1
        socket.send_text("3")  # the answer to a ping
        assert socket.receive_text() == "3"
        clock.now += 1
        socket.send_text(PRESS)
        with pytest.raises(WebSocketDisconnect):
            socket.receive_text()


def test_sessions_end_even_if_they_are_in_use(page: TestClient, clock: Clock) -> None:
    guess(page, PASSWORD)
    started = clock.now
    while clock.now + limits.IDLE_SECONDS / 2 < started + limits.LONGEST_SECONDS:
        clock.now += limits.IDLE_SECONDS / 2
        assert page.get("/").status_code == 200
    clock.now = started + limits.LONGEST_SECONDS
    assert page.get("/").status_code == 303


def test_ended_sessions_are_forgotten(clock: Clock) -> None:
    sessions = Sessions(clock)
    for _ in range(20):
        clock.now += limits.IDLE_SECONDS
        sessions.start()
    assert len(sessions._known) == 1


def test_wrong_passwords_are_forgotten_after_a_while(clock: Clock) -> None:
    login = Login(PASSWORD, clock)
    for _ in range(limits.FREE_GUESSES):
        assert login.check("wrong", "10.0.0.1") == 0
    clock.now += limits.FORGET_SECONDS + 1
    assert login.check("wrong", "10.0.0.1") == 0
    assert Login(PASSWORD, clock).check("wrong", "") == 0


def test_forms_are_read_up_to_a_limit(clock: Clock) -> None:
    read, sent = 0, []

    async def receive() -> Message:
        nonlocal read
        read += 1000
        return {"type": "http.request", "body": b"password=" + b"x" * 991, "more_body": read < 1_000_000}

    async def send(message: Message) -> None:
        sent.append(message)

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        raise AssertionError

    guard = Guard(app, title="Rank", login=Login(PASSWORD, clock), sessions=Sessions(clock))
    scope = {"type": "http", "method": "POST", "path": "/login", "headers": [], "client": ("10.0.0.1", 1)}
    asyncio.run(guard(scope, receive, send))
    assert sent[0]["status"] == 403
    assert read <= FORM_BYTES + 1000


@pytest.mark.parametrize("made", [(), ("store/.pages",), ("store/.pages/rank",)])
def test_store_that_cannot_be_written(tmp_path: Path, made: tuple[str, ...]) -> None:
    for name in ("store", *made):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
    closed = [tmp_path / name for name in ("store", *made)]
    for folder in closed:
        folder.chmod(0o555)
    with permissions_count(), pytest.raises(ConfigError, match=r"cannot write.*got Permission denied.*store"):
        _secret(tmp_path / "store" / ".pages" / "rank")
    for folder in closed:
        folder.chmod(0o755)
