"""Every report page, and extreme ones: readable by WCAG in light and dark, no wider than a phone, and offline."""

from __future__ import annotations

from pathlib import Path

import pytest
from accessible import check_looks
from browser import BrowserPage
from example_reports import EXAMPLES, EXTREMES, write_examples

LARGE = "twelve"
"""This page takes axe a minute."""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name == LARGE else pytest.mark.ci)
        for name in (*EXAMPLES, *EXTREMES)
    ],
)
def test_page_reads_well_everywhere(name: str, browser_page: BrowserPage, tmp_path: Path) -> None:
    page = browser_page.open(write_examples(tmp_path / "made", [name])[name].as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    check_looks(page)
    assert page.locator("html").get_attribute("lang") == "en"
    assert page.locator("script").count() == 0
    for drawing in page.locator("figure > svg").all():
        assert len(drawing.get_attribute("aria-label") or "") > 10, "every plot has a text"
    if name in ("data", "long-words"):
        assert page.get_by_text("Not read, and left out").count() == 1
        assert page.locator("mark").count(), "the targets of a sample are marked"
    assert page.locator("figure table").count() == page.locator("figure").count()
