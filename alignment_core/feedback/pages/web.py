"""Shared parts of the pages: serving, the password and submitting texts."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import secrets
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

from alignment_core.errors import ConfigError

PASSWORD = "ALIGN_PASSWORD"
"""Environment variable with the password. A command line would be visible to every user of the machine."""
SHORTEST_PASSWORD = 8
RECONNECT_SECONDS = 30.0
"""Time that a browser has to come back. After that its page is loaded again, and what was being typed is lost. A few
seconds are not enough on a busy machine or a bad network."""

SHOW_SECONDS = 0.5
"""Time for a message to reach the browser before the page ends."""


def is_loopback(host: str) -> bool:
    """Return whether the address can be reached only from this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def password_for(host: str) -> str | None:
    """Return the password that the pages require, or None if none is set and only this machine can reach them.

    Raises:
        ConfigError: other machines could reach the pages without a password, or the password is too short.
    """
    password = os.environ.get(PASSWORD) or None
    if password is None and not is_loopback(host):
        raise ConfigError(
            "other machines can reach this page, but no password is set",
            where=f"--host {host}",
            do=f"Set a password in the environment variable {PASSWORD}, or keep the default host 127.0.0.1",
        )
    if password is not None and len(password) < SHORTEST_PASSWORD:
        raise ConfigError(
            "the password is too short", where=PASSWORD, expected=f"{SHORTEST_PASSWORD} or more characters"
        )
    return password


def serve(page: Callable[[], Any], *, title: str, host: str, port: int, state: Path, close: Callable[[], Any]) -> None:
    """Serve a page until Ctrl-C, or until its `EndButton` is pressed.

    Args:
        page: builds the page for each visitor.
        title: title of the browser tab.
        host: address to listen on.
        port: port to listen on.
        state: folder that keeps visitor data across restarts.
        close: called on shutdown.

    Raises:
        ConfigError: other machines could reach the page without a password, the port is in use, or `state` cannot be
            written.
    """
    password = password_for(host)
    listener = _listen(host, port)
    secret = _secret(state)
    from fastapi import FastAPI
    from fastapi.middleware.trustedhost import TrustedHostMiddleware
    from nicegui import app, ui
    from nicegui.storage import Storage

    from alignment_core.feedback.pages.guard import HEALTH, WATCH, Guard
    from alignment_core.feedback.pages.login import Login, Sessions
    from alignment_core.feedback.pages.parts import style

    Storage.path = state.resolve()  # NiceGUI reads its variable of the environment on import, which has happened
    site = FastAPI(title=title, docs_url=None, redoc_url=None, openapi_url=None)
    site.get(HEALTH)(lambda: {"page": title})
    app.on_shutdown(close)
    ui.page("/", title=title)(page)
    login = None if password is None else Login(password)
    site.add_middleware(Guard, title=title, login=login, sessions=Sessions())
    if login is not None:
        ui.add_head_html(WATCH, shared=True)
    if is_loopback(host):
        # Prevents DNS rebinding: another site in the same browser could point its own host name here.
        site.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost", "[::1]"])
    ui.add_css(style(), shared=True)
    ui.run_with(
        site,
        title=title,
        dark=None,
        language="en-US",
        storage_secret=secret,
        # Cookies do not know ports: with one name for both, each page would forget what it knows of a visitor in turn.
        session_middleware_kwargs={"session_cookie": f"align-{title.lower()}"},
        reconnect_timeout=RECONNECT_SECONDS,
        show_welcome_message=False,
    )
    config = uvicorn.Config(site, log_level="warning")
    print(f"{title}: http://{'localhost' if is_loopback(host) else host}:{listener.getsockname()[1]}", flush=True)
    _Server(config).run(sockets=[listener])


class _Server(uvicorn.Server):
    """Ends quietly on Ctrl-C. uvicorn's own handler raises the signal again at the end, and prints a traceback."""

    def handle_exit(self, sig: int, frame: object) -> None:
        self.force_exit, self.should_exit = self.should_exit, True


@dataclass(frozen=True)
class EndButton:
    """A button that ends the page as Ctrl-C does, for a program that then goes on.

    Attributes:
        label: text of the button.
        message: what the page says from then on.
    """

    label: str
    message: str

    def show(self) -> None:
        """Add the button to the header of the page."""
        from nicegui import ui

        from alignment_core.feedback.pages.parts import button

        async def end() -> None:
            ui.add_css("#popup { display: none; }")  # that the connection is lost is no news
            with ui.dialog(value=True).props("persistent"), ui.card():
                ui.label(self.message).props('data-testid="message"')
            await asyncio.sleep(SHOW_SECONDS)
            signal.raise_signal(signal.SIGINT)

        button(self.label, end, kind="main")


ENTER, CTRL_ENTER = "keydown.enter.exact.prevent", "keydown.enter.ctrl.prevent"
"""Key presses in a field."""


def on_submit(field: Any, run: Callable[[str], object], button: Any = None, *, press: str = ENTER) -> None:
    """Call `run` with the text of a field when the visitor presses Enter in it, or presses the button.

    The text comes with the event: while the page connects, an event can reach the server before what was typed.
    """
    typed = "found.matches('input, textarea') ? found : found.querySelector('input, textarea')"
    emit = f"() => {{ const found = getHtmlElement({field.id}); emit(({typed}).value); }}"
    field.on(press, lambda event: run(event.args), js_handler=emit)
    if button is not None:
        button.on("click", lambda event: run(event.args), js_handler=emit)


def _secret(state: Path) -> str:
    """Return the secret that signs the visitors' cookies. It is stored to survive restarts.

    Raises:
        ConfigError: the folder of the state cannot be written.
    """
    file = state / "secret"
    try:
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (
            suppress(FileExistsError),
            os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as new,
        ):
            new.write(secrets.token_urlsafe(32))
        if not os.access(state, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(state))
        return file.read_text()
    except OSError as error:
        raise ConfigError(
            "the page cannot write what it remembers of its visitors",
            where=str(error.filename or state),
            got=error.strerror,
            do=f"Fix the permissions of the folder, or choose another `store` than {state.parent.parent}",
        ) from error


def _listen(host: str, port: int) -> Any:
    import socket

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()  # connections made before the page is ready wait
    except OSError as error:
        listener.close()
        raise ConfigError(
            "cannot listen on this address", where=f"{host}:{port}", got=error.strerror, do="Choose another --port"
        ) from error
    return listener
