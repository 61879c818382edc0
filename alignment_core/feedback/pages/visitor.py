"""Under which name a visitor votes. Both pages of one machine know it."""

from __future__ import annotations

from urllib.parse import quote, unquote

from nicegui import ui

from alignment_core.account import account_name
from alignment_core.feedback.pages.parts import button, title
from alignment_core.feedback.pages.web import on_submit

COOKIE = "align-name"
"""Cookie with the name. Cookies do not know ports, so the page for chat and the one for ranks share it. What a visitor
does on one of them is stored under another cookie, which is signed."""
SECONDS = 400 * 24 * 3600
"""The longest time that browsers keep a cookie."""
LONGEST = 100
"""Characters of a name."""


def visitor() -> str:
    """Return the name under which the visitor's votes are saved; empty until the visitor has entered one."""
    given = ui.context.client.request.cookies.get(COOKIE, "")
    return unquote(given)[:LONGEST].strip()


def ask_for_name() -> None:
    """Show a card that asks for the visitor's name, then reload the page."""

    def save(name: str) -> None:
        if name.strip():
            _keep(name.strip()[:LONGEST], SECONDS)

    with ui.card().classes("page p-6 gap-3 mt-8").style("max-width: 26rem").props("role=main"):
        title("Enter your name")
        ui.label("Your votes are saved under this name.").classes("muted")
        name = ui.input("Your name", value=account_name("")).props("autofocus outlined").classes("w-full")
        on_submit(name, save, button("Continue", kind="main"))


def name_button() -> None:
    """Add a button with which another person goes on at the same browser."""
    button(press=lambda: _keep("", 0), icon="person", label="Vote under another name")


def _keep(name: str, seconds: int) -> None:
    value = quote(name, safe="", errors="replace")
    ui.run_javascript(f"document.cookie = '{COOKIE}={value}; path=/; max-age={seconds}; SameSite=Strict'")
    ui.navigate.reload()
