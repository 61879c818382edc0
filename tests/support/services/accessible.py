"""Check how a page looks to everybody: WCAG 2.2 AA by axe-core, in light and dark, and the width of a phone."""

from __future__ import annotations

from typing import Any

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"], "resultTypes": ["violations"]}
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 360, "height": 740}
WIDTH = """() => [document.documentElement.scrollWidth, ...[...document.querySelectorAll("body *")]
    .filter((one) => one.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
    .slice(0, 5).map((one) => one.outerHTML.slice(0, 160))]"""

SETTLED = """() => !document.querySelector("[class*=-leave-active], [class*=-enter-active]")
    && [...document.querySelectorAll(".q-notification")].every((one) => one.querySelector("button"))"""
"""True when nothing appears or vanishes, as short messages soon do: axe would take the colors in between."""


def check_looks(page: Page) -> None:
    """Fail if axe finds a violation, or the page is wider than a phone. The page is left as on a light desktop."""
    found: list[str] = []
    page.mouse.move(0, 0)  # a tooltip that fades has other colors
    page.wait_for_function(SETTLED)
    for scheme in ("light", "dark"):
        for size in (PHONE, DESKTOP):
            page.emulate_media(color_scheme=scheme, reduced_motion="reduce")  # type: ignore[arg-type]
            page.set_viewport_size(size)  # type: ignore[arg-type]
            page.wait_for_timeout(400)  # colors fade
            found += [f"{scheme}, {size['width']} px: {fault}" for fault in _violations(page)]
            width, *causes = page.evaluate(WIDTH)
            if width > size["width"]:
                found.append(f"{scheme}: {width} px wide on a screen of {size['width']} px: {causes}")
    page.emulate_media(color_scheme="light")
    assert not found, "\n".join(found)


def _violations(page: Page) -> list[str]:
    faults: list[dict[str, Any]] = Axe().run(page, options=RULES).response["violations"]
    return [
        f"{fault['id']} ({fault['help']}): {node['html'][:200]} {_reason(node)}"
        for fault in faults
        for node in fault["nodes"]
    ]


def _reason(node: dict[str, Any]) -> str:
    return "; ".join(check["message"] for check in (*node["any"], *node["all"], *node["none"]))
