"""What the pages have in common: who may see them, whose votes they take, and how they are served."""

from __future__ import annotations

import getpass
import ipaddress
import os
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from alignment_core.errors import ConfigError

PASSWORD = "ALIGN_PASSWORD"
"""Environment variable with the password; a command line could be read by everyone on the machine."""
SHORTEST_PASSWORD = 8
UNPROTECTED = ("/login", "/_nicegui", "/health")
PAUSE_SECONDS = 1.0
"""After a wrong password."""

STYLE = """
body { background: #f6f7f9; }
.page { max-width: 56rem; margin: 0 auto; width: 100%; }
.words { white-space: pre-wrap; overflow-wrap: anywhere; }
.body--dark { background: #121417; }
"""


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def password_for(host: str) -> str | None:
    """The password that the pages ask for; None where only this machine can reach them and none is set.

    Raises:
        ConfigError: others could reach the pages, and there is no password, or one that is guessed at once.
    """
    password = os.environ.get(PASSWORD) or None
    if password is None and not is_loopback(host):
        raise ConfigError(
            "others could reach this page, and it has no password",
            where=f"--host {host}",
            do=f"Put one into the environment variable {PASSWORD}, or leave the host at 127.0.0.1",
        )
    if password is not None and len(password) < SHORTEST_PASSWORD:
        raise ConfigError("the password is too short", where=PASSWORD, expected=f"{SHORTEST_PASSWORD} characters")
    return password


def serve(page: Callable[[], Any], *, title: str, host: str, port: int, state: Path, close: Callable[[], Any]) -> None:
    """Serve a page until Ctrl-C.

    Args:
        page: builds it for each visitor.
        title: of the browser's tab.
        host: address to listen on.
        port: ditto.
        state: folder that remembers visitors over a restart.
        close: called at the end.

    Raises:
        ConfigError: others could reach it without a password, or the port is taken.
    """
    password = password_for(host)
    listener = _listen(host, port)
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.environ["NICEGUI_STORAGE_PATH"] = str(state)
    import uvicorn
    from fastapi import FastAPI
    from fastapi.middleware.trustedhost import TrustedHostMiddleware
    from nicegui import app, ui

    site = FastAPI(title=title, docs_url=None, redoc_url=None, openapi_url=None)
    site.get("/health")(lambda: {"page": title})
    app.on_shutdown(close)
    ui.page("/", title=title)(page)
    if password is not None:
        ui.page("/login", title=title)(lambda: _login(password))
        app.middleware("http")(_ask_for_password)
    if is_loopback(host):
        # Another site in the same browser could otherwise reach us by a name of its own.
        site.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost", "[::1]"])
    ui.add_css(STYLE, shared=True)
    ui.run_with(site, title=title, dark=None, storage_secret=_secret(state), show_welcome_message=False)
    config = uvicorn.Config(site, log_level="warning")
    print(f"{title}: http://{'localhost' if is_loopback(host) else host}:{listener.getsockname()[1]}", flush=True)
    uvicorn.Server(config).run(sockets=[listener])


def visitor() -> str:
    """Name under which the visitor votes; empty until there is one."""
    from nicegui import app

    name = app.storage.user.get("name", "")
    return name if isinstance(name, str) else ""


def ask_for_name() -> None:
    """A card that asks for the visitor's name, and then shows the page."""
    from nicegui import app, ui

    def keep() -> None:
        if name.value.strip():
            app.storage.user["name"] = name.value.strip()
            ui.navigate.reload()

    with ui.card().classes("page"):
        ui.label("Under which name shall your votes be kept?")
        name = ui.input("Your name", value=_account()).props("autofocus").on("keydown.enter", keep)
        ui.button("Go on", on_click=keep)


def _account() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""


def _login(password: str) -> None:
    import asyncio

    from nicegui import app, ui

    async def enter() -> None:
        if secrets.compare_digest(given.value.encode(), password.encode()):
            app.storage.user["entered"] = _mark(password)
            ui.navigate.to("/")
            return
        await asyncio.sleep(PAUSE_SECONDS)
        ui.notify("That is not the password.", type="negative")

    with ui.card().classes("absolute-center"):
        given = ui.input("Password", password=True).props("autofocus").on("keydown.enter", enter)
        ui.button("Enter", on_click=enter)


def _mark(password: str) -> str:
    """What says that a visitor knew this password, and no other one."""
    import hashlib

    return hashlib.sha256(password.encode()).hexdigest()


async def _ask_for_password(request: Any, call_next: Callable[[Any], Awaitable[Any]]) -> Any:
    from fastapi.responses import RedirectResponse
    from nicegui import app

    password = os.environ.get(PASSWORD, "")
    if request.url.path.startswith(UNPROTECTED) or app.storage.user.get("entered") == _mark(password):
        return await call_next(request)
    return RedirectResponse("/login")


def _secret(state: Path) -> str:
    """What signs the visitors' cookies, the same after a restart."""
    file = state / "secret"
    try:
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as new:
            new.write(secrets.token_urlsafe(32))
    except FileExistsError:
        pass
    return file.read_text()


def _listen(host: str, port: int) -> Any:
    import socket

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()  # who comes before the page is ready waits
    except OSError as error:
        listener.close()
        raise ConfigError(
            "the address cannot be listened on", where=f"{host}:{port}", got=error.strerror, do="Choose another --port"
        ) from error
    return listener
