"""Prefect's two user interfaces as users see them: a deployment's run form, a run, and its artifacts."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from browser import PATIENCE_MS, BrowserPage
from playwright.sync_api import Locator, Response, expect
from served import Served

OWN_FAULTS = "|".join(
    (
        r"favicon|/\w+\.svg|/v2/assets/|/assets/FlowRun",  # pictures that are missing
        r"amplitude\.com",  # V2 contacts it, whatever `PREFECT_SERVER_ANALYTICS_ENABLED` is
        r"task_runs/filter",  # a malformed request of V2
        r"status of (409|503)",  # a refused run, and a server whose database is busy
        # The graph of a running flow still draws its line for the current time after it was closed.
        r"\((reading 'position'|setting '_parentID')\) \(http://[^/]+/assets/index-",
    )
)
"""Faults of Prefect 3.8.8's pages: a pattern of the errors that they log and of the addresses that they request."""

BUSY_TIMES = 20

RUN_MS = 900_000
"""How long a small run may take on a busy machine."""


@dataclass(frozen=True)
class Field:
    """One field of a form.

    Attributes:
        title: the title above it.
        text: the description.
        kind: `number`, `text`, `switch`, or `other` for a choice, tabs, a list or a group.
        value: its value: `on` or `off` for a switch, and all its text for `other`.
    """

    title: str
    text: str
    kind: str
    value: str


@dataclass(frozen=True)
class Interface:
    """The common part of both interfaces."""

    browser: BrowserPage
    served: Served
    path: ClassVar[str]
    fields_below: ClassVar[str]
    tab_role: ClassVar[Literal["button", "tab"]]

    def open_form(self, deployment: str) -> None:
        """Open the form for a custom run of `flow/deployment`."""
        found = self.served.deployment(deployment)
        self.browser.open(f"{self.served.url}{self.path}/deployments/deployment/{found['id']}/run")
        self.browser.page.get_by_role("button", name="Submit", exact=True).wait_for()

    def height(self) -> float:
        """Return the height of the page's content in pixels, with the part that has to be scrolled to."""
        tallest = "() => Math.max(...[...document.querySelectorAll('*')].map(each => each.scrollHeight))"
        return float(self.browser.page.evaluate(tallest))

    def open_run(self, flow_run: str) -> None:
        self.browser.open(f"{self.served.url}{self.path}/runs/flow-run/{flow_run}")

    def tab(self, title: str) -> Locator:
        """Return the tab of a plugin."""
        raise NotImplementedError

    def field(self, title: str) -> Locator:
        """Return the last field with this title: the optimizer comes after the other trainings with the same field."""
        raise NotImplementedError

    def choose_in(self, field: str, tab: str) -> None:
        """Open a tab of a field, for example `Off`."""
        chosen = self.field(field).get_by_role(self.tab_role, name=tab, exact=True).first
        chosen.click()
        expect(chosen).to_have_attribute("aria-selected", "true", timeout=PATIENCE_MS)

    def choose(self, title: str) -> None:
        """Open a plugin's tab and wait until it is selected."""
        self.tab(title).click()
        expect(self.tab(title)).to_have_attribute("aria-selected", "true", timeout=PATIENCE_MS)

    def fields(self, tab: str) -> list[Field]:
        """Return the fields of an open tab, in order. Fields of a group are in the group's value."""
        read: list[dict[str, Any]] = self.tab(tab).evaluate(self.fields_below)
        return [
            Field(
                title=str(row["title"]).removesuffix(" (Optional)"),
                text=row["text"],
                kind={"number": "number", "textarea": "text", "checkbox": "switch", "switch": "switch"}.get(
                    row["kind"], "other"
                ),
                value=row["value"],
            )
            for row in read
        ]

    def set_number(self, title: str, value: str) -> None:
        self.field(title).locator("input").fill(value)

    def submit(self) -> str:
        """Start the run and return its id."""
        answer = self._submitted()
        assert answer.ok, answer.text()
        return str(answer.json()["id"])

    def refused(self, title: str, path: str, words: str) -> None:
        """Try to start the run, and wait for the error: the server's message, which names the field by its path, or
        the interface's own message next to the field."""
        page = self.browser.page
        page.get_by_role("button", name="Submit", exact=True).click()
        message = page.get_by_text(f"Validation failed for field '{path}'. Failure reason: {words}")
        message.or_(self.field(title).get_by_text(words, exact=True)).first.wait_for()

    def schedule(self, deployment: str, minutes: int) -> None:
        """Give a deployment a schedule with this interval."""
        found = self.served.deployment(deployment)
        page = self.browser.open(f"{self.served.url}{self.path}/deployments/deployment/{found['id']}")
        page.get_by_role("button", name="Schedule", exact=True).first.click()
        dialog = page.get_by_role("dialog")
        dialog.locator("input[type=number], input[name='schedule.interval_value']").first.fill(str(minutes))
        dialog.get_by_role("button", name="Save").click()
        dialog.wait_for(state="hidden")

    def _submitted(self) -> Response:
        """Submit the form and return the server's response. Retry while its database is busy."""
        for _ in range(BUSY_TIMES):
            with self.browser.page.expect_response(re.compile("create_flow_run")) as answer:
                self.browser.page.get_by_role("button", name="Submit", exact=True).click()
            if answer.value.status != 503:
                break
        return answer.value

    def wait_for_end(self, state: str) -> None:
        """Wait until the page of a run shows this state."""
        self.browser.page.get_by_text(state, exact=True).first.wait_for(timeout=RUN_MS)

    def show(self, tab: str) -> None:
        """Open one of the tabs on a run's page."""
        raise NotImplementedError

    def open_report(self, flow_run: str, key: str) -> None:
        """Open a report from a run's artifacts."""
        self.open_run(flow_run)
        self.show("Artifacts")
        self._scroll_to(self.browser.page.get_by_text(key, exact=True).first)
        # Opened by its address, because the list is redrawn while the page loads more.
        chosen = {"flow_run_id": {"any_": [flow_run]}, "key": {"any_": [key]}}
        (found,) = self.served.post("artifacts/filter", artifacts=chosen)
        self.browser.open(f"{self.served.url}{self.path}/artifacts/artifact/{found['id']}")

    def _scroll_to(self, found: Locator) -> None:
        """Scroll down a list until it shows an item. A list loads more as it is scrolled, in an order of its own."""
        deadline = time.monotonic() + PATIENCE_MS / 1000
        self.browser.page.mouse.move(600, 500)
        while not found.is_visible():
            assert time.monotonic() < deadline, f"not in the list: {found}"
            self.browser.page.mouse.wheel(0, 3000)
            self.browser.page.wait_for_timeout(500)


class V1(Interface):
    """The dark interface, whose addresses have no prefix."""

    path = ""
    tab_role = "button"
    fields_below = """tab => {
        const body = tab.closest('.p-label__body');
        const rows = [...body.querySelectorAll('.schema-form-property')];
        return rows.filter(row => row.parentElement.closest('.p-label__body') === body).map(row => {
            const field = row.querySelector('.p-label__body');
            const input = field.querySelector('input, textarea');
            return {
                title: row.querySelector('.schema-form-property__label').innerText,
                text: row.querySelector('.schema-form-property__description')?.innerText ?? '',
                kind: input?.type,
                value: input?.type === 'checkbox' ? (input.checked ? 'on' : 'off') : input?.value ?? field.innerText,
            };
        });
    }"""

    def tab(self, title: str) -> Locator:
        return self.browser.page.locator(".p-button-group").get_by_role("button", name=title, exact=True)

    def field(self, title: str) -> Locator:
        label = self.browser.page.locator(".schema-form-property__label", has_text=re.compile(rf"^{title}( \(Opt|$)"))
        return self.browser.page.locator(".schema-form-property", has=label).last

    def show(self, tab: str) -> None:
        self.browser.page.locator(".p-tab-navigation, [role=tablist]").get_by_text(tab, exact=True).first.click()


class V2(Interface):
    """The light interface, below /v2."""

    path = "/v2"
    tab_role = "tab"
    fields_below = """tab => {
        const panel = tab.closest('[data-slot=tabs]').querySelector('[role=tabpanel]');
        const rows = [...panel.querySelector('label').closest('div.group').parentElement.children];
        return rows.map(row => {
            const field = row.querySelector('fieldset');
            const input = field.querySelector('input, textarea, [role=switch]');
            const role = input?.getAttribute('role');
            return {
                title: row.querySelector('label').innerText,
                text: row.querySelector('p')?.innerText ?? '',
                kind: role ?? input?.type,
                value: role === 'switch' ? (input.ariaChecked === 'true' ? 'on' : 'off')
                    : input?.value ?? field.innerText,
            };
        });
    }"""

    def tab(self, title: str) -> Locator:
        return self.browser.page.get_by_role("tab", name=title, exact=True)

    def field(self, title: str) -> Locator:
        label = self.browser.page.locator("label", has_text=re.compile(rf"^{title}( \(Opt|$)"))
        return self.browser.page.locator("div.group", has=label).last

    def show(self, tab: str) -> None:
        self.browser.page.get_by_role("tab", name=tab, exact=True).click()


INTERFACES = {"v1": V1, "v2": V2}
