"""The page around a report loads nothing, and shows the texts of strangers as they are."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from alignment_core.plugin_api import Advice
from alignment_core.reporting.page import Figures, coded, cut, render
from alignment_core.reporting.words import Answer, Sample, that_fit
from alignment_flows.reports.comparison_page import PACKAGE

NASTY = "<script>alert(1)</script>\0\x1b[31m\u202e{{ 7 * 7 }} & `x`"


class Elements(HTMLParser):
    """Collects the names of elements and their addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "action", "data", "srcset")]


def test_texts_of_strangers_are_text_and_nothing_is_loaded() -> None:
    samples = that_fit(
        [Sample([(NASTY, NASTY)], [Answer(NASTY, -1, NASTY), Answer(NASTY, 0, NASTY + "y", [NASTY])])], 9
    )
    table = Figures(NASTY, [NASTY, "n"], [[NASTY, (NASTY, NASTY)]])
    page = render(
        PACKAGE, "comparison.html.jinja",
        title=NASTY, kicker=NASTY, headline=NASTY, sentences=[NASTY], prompts=1, failures=[], series={NASTY: 0},
        charts=[], curves=[], more_curves=[], results=table, costs=table, samples=samples,
        seeds=None, advice=[(NASTY, Advice(NASTY, NASTY, NASTY, NASTY, NASTY))], settings=[(NASTY, NASTY, [NASTY])],
    )  # fmt: skip
    parsed = Elements()
    parsed.feed(page)
    assert not parsed.names & {"script", "img", "iframe", "link", "object", "form", "a"}
    assert not parsed.addresses
    assert not re.search(r"@import|url\(|[\x00-\x08\x1b]", page)
    assert page.count("&lt;script&gt;") > 10
    assert "49" not in re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL), "a text is no template"
    assert "default-src 'none'" in page
    assert '<html lang="en">' in page


def test_names_between_backticks_are_code() -> None:
    assert coded("set `a<b>` to 1 & go") == "set <code>a&lt;b&gt;</code> to 1 &amp; go"
    assert coded("`` ` ``") == "`` ` ``"
    assert cut("x" * 400) == "x" * 300 + "…"
