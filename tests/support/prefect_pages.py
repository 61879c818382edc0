"""Prefect's two user interfaces, as a person sees them: a deployment's run form, a run, its artifacts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, ClassVar

from browser import PATIENCE_MS, BrowserPage
from playwright.sync_api import Locator, Response, expect
from served import Served

OWN_FAULTS = r"favicon|/\w+\.svg|/v2/assets/|/assets/FlowRun|amplitude\.com|task_runs/filter|status of (409|503)"
"""Prefect 3.8.8's pages look for pictures that are not there; V2 sends one malformed request, and asks amplitude.com
how to count visits, whatever `PREFECT_SERVER_ANALYTICS_ENABLED` is. They log an error for a refused run, and for an
answer that the server's database is busy."""

BUSY_TIMES = 20

RUN_MS = 900_000
"""How long a small run may take on a busy machine."""


@dataclass(frozen=True)
class Field:
    """One field of a form.

    Attributes:
        title: what stands above it.
        text: the description.
        kind: `number`, `text`, `switch`, or `other` for a choice, tabs, a list or a group.
        value: what it holds; of a switch `on` or `off`, of `other` all that is written there.
    """

    title: str
    text: str
    kind: str
    value: str


@dataclass(frozen=True)
class Interface:
    """What both interfaces have."""

    browser: BrowserPage
    served: Served
    path: ClassVar[str]
    fields_below: ClassVar[str]

    def open_form(self, deployment: str) -> None:
        """The form that a custom run of `flow/deployment` is started with."""
        found = self.served.deployment(deployment)
        self.browser.open(f"{self.served.url}{self.path}/deployments/deployment/{found['id']}/run")
        self.browser.page.get_by_role("button", name="Submit", exact=True).wait_for()

    def open_run(self, flow_run: str) -> None:
        self.browser.open(f"{self.served.url}{self.path}/runs/flow-run/{flow_run}")

    def tab(self, title: str) -> Locator:
        """The tab of a plugin."""
        raise NotImplementedError

    def field(self, title: str) -> Locator:
        """The last field with this title, as the optimizer comes after every training that shares one."""
        raise NotImplementedError

    def choose(self, title: str) -> None:
        """Open a plugin's tab, and wait for what is on it."""
        self.tab(title).click()
        expect(self.tab(title)).to_have_attribute("aria-selected", "true", timeout=PATIENCE_MS)

    def fields(self, tab: str) -> list[Field]:
        """What is on an open tab, in order; fields of groups are in their group's value."""
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
        """Start the run; returns its id."""
        answer = self._submitted()
        assert answer.ok, answer.text()
        return str(answer.json()["id"])

    def refused(self, title: str, path: str, words: str) -> None:
        """Try to start the run, which the page has to refuse with these words: the server's, which name the field by
        its path, or the interface's own beside the field."""
        page = self.browser.page
        page.get_by_role("button", name="Submit", exact=True).click()
        told = page.get_by_text(f"Validation failed for field '{path}'. Failure reason: {words}")
        told.or_(self.field(title).get_by_text(words, exact=True)).first.wait_for()

    def _submitted(self) -> Response:
        """What the server answers; asked again where it says that its database is busy."""
        for _ in range(BUSY_TIMES):
            with self.browser.page.expect_response(re.compile("create_flow_run")) as answer:
                self.browser.page.get_by_role("button", name="Submit", exact=True).click()
            if answer.value.status != 503:
                break
        return answer.value

    def wait_for_end(self, state: str) -> None:
        """Until the page of a run shows this state."""
        self.browser.page.get_by_text(state, exact=True).first.wait_for(timeout=RUN_MS)

    def show(self, tab: str) -> None:
        """One of the tabs on a run's page."""
        raise NotImplementedError

    def open_report(self, flow_run: str, key: str) -> None:
        """A report among a run's artifacts."""
        self.open_run(flow_run)
        self.show("Artifacts")
        self.browser.page.get_by_text(key, exact=True).first.wait_for()
        # Followed by its address: the list is drawn anew while the page asks for more.
        chosen = {"flow_run_id": {"any_": [flow_run]}, "key": {"any_": [key]}}
        (found,) = self.served.post("artifacts/filter", artifacts=chosen)
        self.browser.open(f"{self.served.url}{self.path}/artifacts/artifact/{found['id']}")


class V1(Interface):
    """The dark one, whose addresses have no prefix."""

    path = ""
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
    """The light one, below /v2."""

    path = "/v2"
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
