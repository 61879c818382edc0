"""What stands between the network and the pages: headers for the browser, origins, the password and the sessions.

The guard sees each request and each message of a websocket before the web library does.
"""

from __future__ import annotations

import html
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from importlib.resources import files
from math import ceil
from typing import Any
from urllib.parse import parse_qs, urlsplit

from alignment_core.feedback.pages.login import LONGEST_SECONDS, Login, Sessions
from alignment_core.palette import palette

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

LOGIN, SESSION, HEALTH = "/login", "/session", "/health"
SOCKET = "/_nicegui_ws"
USED = '42["event"'
"""Start of a message that a key press or click causes. All others come without the visitor."""
FORM_BYTES = 4096
POLICY_VIOLATION = 1008
"""Code of a websocket that is closed because of a rule."""

# The web library evaluates code that the server sends, and writes scripts and styles into the page.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; font-src 'self' data:; connect-src 'self'; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'"
)
FORM_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'"
)
HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}

WATCH = f"""<script>
const watching = setInterval(() => {{
  if (!window.socket) return;
  clearInterval(watching);
  window.socket.on("connect_error", async () => {{
    const answer = await fetch("{SESSION}").catch(() => null);
    if (answer && answer.status === 401) window.location.assign("{LOGIN}");
  }});
}}, 100);
</script>"""
"""Script for the pages: when the session has ended and the connection is refused, ask for the password again."""


class Guard:
    """ASGI middleware around the pages.

    Args:
        app: the application.
        title: title of the page.
        login: checks the password. None: the pages have none.
        sessions: who has entered it.
    """

    def __init__(self, app: App, *, title: str, login: Login | None, sessions: Sessions) -> None:
        self.app = app
        self._title, self._login, self._sessions = title, login, sessions
        self._cookie = f"align-{title.lower()}-session"

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._http(scope, receive, _with_headers(send))
        elif scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _http(self, scope: Message, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if _is_foreign(scope):
            await _answer(send, 403, "This page only accepts requests from itself.")
        elif self._login is None or path == HEALTH:
            await self.app(scope, receive, send)
        elif path == LOGIN:
            await self._ask(self._login, scope, receive, send)
        elif not self._is_open(scope, active=not path.startswith((SOCKET, SESSION))):
            if path.startswith((SOCKET, SESSION)):
                await _answer(send, 401, "The session has ended.")
            else:
                await _answer(send, 303, "", [("location", LOGIN)])
        elif path == SESSION:
            await _answer(send, 204, "")
        else:
            await self.app(scope, self._watched(scope, receive), send)

    async def _websocket(self, scope: Message, receive: Receive, send: Send) -> None:
        if _is_foreign(scope) or not self._is_open(scope, active=False):
            await receive()
            await send({"type": "websocket.close", "code": POLICY_VIOLATION})
            return
        watched = self._watched(scope, receive)

        async def until_the_session_ends() -> Message:
            message = await watched()
            if message["type"] == "websocket.receive" and not self._is_open(scope, active=False):
                await send({"type": "websocket.close", "code": POLICY_VIOLATION})
                return {"type": "websocket.disconnect", "code": POLICY_VIOLATION}
            return message

        await self.app(scope, until_the_session_ends, send)

    def _watched(self, scope: Message, receive: Receive) -> Receive:
        """Return `receive`, which also notes that the visitor does something."""

        async def watched() -> Message:
            message = await receive()
            text = message.get("text") or (message.get("body") or b"").decode(errors="replace")
            if USED in text:
                self._is_open(scope, active=True)
            return message

        return watched

    def _is_open(self, scope: Message, *, active: bool) -> bool:
        if self._login is None:
            return True
        cookies = (part.strip().partition("=") for part in (_header(scope, b"cookie") or "").split(";"))
        token = next((value for name, _, value in cookies if name == self._cookie), None)
        return token is not None and self._sessions.is_open(token, active=active)

    async def _ask(self, login: Login, scope: Message, receive: Receive, send: Send) -> None:
        """Show the form, or check the password that it sends."""
        if scope["method"] != "POST":
            await self._form(send, 200, "")
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if len(body) > FORM_BYTES or not message.get("more_body"):
                break
        given = parse_qs(body[:FORM_BYTES].decode(errors="replace")).get("password", [""])[0]
        wait = login.check(given, (scope.get("client") or ("",))[0])
        if wait is None:
            cookie = f"{self._cookie}={self._sessions.start()}; Path=/; HttpOnly; SameSite=Lax"
            cookie += f"; Max-Age={LONGEST_SECONDS:.0f}" + ("; Secure" if scope.get("scheme") == "https" else "")
            await _answer(send, 303, "", [("location", "/"), ("set-cookie", cookie)])
        elif wait > 0:
            seconds = ceil(wait)
            again = f"Too many wrong passwords. Try again in {seconds} {'second' if seconds == 1 else 'seconds'}."
            await self._form(send, 429, again, [("retry-after", str(seconds))])
        else:
            await self._form(send, 403, "Wrong password.")

    async def _form(self, send: Send, status: int, fault: str, headers: Iterable[tuple[str, str]] = ()) -> None:
        page = (files(__package__) / "login.html").read_text(encoding="utf-8")
        page = page.replace("{palette}", palette())
        page = page.replace("{title}", html.escape(self._title)).replace("{fault}", html.escape(fault))
        kind = [("content-type", "text/html; charset=utf-8"), ("content-security-policy", FORM_POLICY)]
        await _answer(send, status, page, [*kind, *headers])


def _is_foreign(scope: Message) -> bool:
    """Return whether another site sent the request. Browsers name the origin of every websocket."""
    origin = _header(scope, b"origin")
    if origin is None:
        return bool(scope["type"] == "websocket")
    try:
        parts = urlsplit(origin)
    except ValueError:
        return True
    default = {"http": ":80", "https": ":443"}.get(parts.scheme, ":")
    host = (_header(scope, b"host") or "").lower()
    return not parts.netloc or parts.netloc.lower().removesuffix(default) != host.removesuffix(default)


def _header(scope: Message, name: bytes) -> str | None:
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), None)


def _with_headers(send: Send) -> Send:
    async def with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            given = {name.lower() for name, _ in message.get("headers", ())}
            more = {**HEADERS, "content-security-policy": POLICY}
            added = [(name.encode(), value.encode()) for name, value in more.items() if name.encode() not in given]
            message = {**message, "headers": [*message.get("headers", ()), *added]}
        await send(message)

    return with_headers


async def _answer(send: Send, status: int, text: str, headers: Iterable[tuple[str, str]] = ()) -> None:
    body = text.encode()
    named = {"content-type": "text/plain; charset=utf-8", "cache-control": "no-store", **dict(headers)}
    if status != 204:
        named["content-length"] = str(len(body))
    raw = [(name.encode(), value.encode()) for name, value in named.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
