"""The page of the data report in a browser: readable in light and dark, and on a phone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from accessible import check_looks
from browser import BrowserPage
from playwright.sync_api import expect

from alignment_core.data.ingestion.check import check

pytestmark = pytest.mark.ci


def test_data_report_is_readable_everywhere(tmp_path: Path, browser_page: BrowserPage) -> None:
    """It has a warning, all charts, a long word, a wide table and a sample with marked targets."""
    thumbs = [
        {"prompt": f"What is {n} plus {n}?", "completion": "sum" * 40 + f" {2 * n}", "label": n % 3 > 0}
        for n in range(12)
    ]
    pairs = [
        {"prompt": f"Name {n} towns.", "chosen": f"{n} towns: " + "Ulm, " * n, "rejected": "No.", "verdict": n}
        for n in range(12)
    ]
    for name, rows in (("thumbs", thumbs), ("pairs", pairs)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = check([str(tmp_path / "thumbs.jsonl"), str(tmp_path / "pairs.jsonl")], out=tmp_path / "out")
    assert report["warnings"]
    (file,) = (tmp_path / "out").rglob("*.html")
    page = browser_page.open(file.as_uri())
    expect(page.get_by_role("heading", level=1)).to_be_visible()
    assert page.locator("mark").count()
    check_looks(page)
