"""The data report leads with what is used and what is left out, and its page has charts for any screen."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from alignment_core.data.ingestion.check import check
from alignment_core.data.ingestion.report.charts import balance_chart, length_charts
from alignment_core.data.ingestion.report.page import render_report
from alignment_core.data.ingestion.report.tables import tables
from alignment_core.data.ingestion.report.used import used_line


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of 8 rows: 4 used, one a duplicate, one without a label, one empty, one with an unusable character."""
    rows = [
        *({"prompt": f"question {i * 7919}", "response": f"a {i}", "thumbs": "up", "mood": "ok"} for i in range(4)),
        {"prompt": "question 0", "response": "a 0", "thumbs": "up"},
        {"prompt": "q", "response": "a", "thumbs": None},
        {"prompt": "q", "response": "", "thumbs": "up"},
        {"prompt": "q", "response": "\U000f0000", "thumbs": "down"},
    ]
    path = tmp_path_factory.mktemp("report") / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return check([str(path)])


def test_raters_are_those_of_the_used_records(tmp_path: Path) -> None:
    """Ann rates three answers and one of them again, Bo one, and one answer has no rater."""
    rated = [("q1", "ann"), ("q2", "ann"), ("q3", "ann"), ("q3", "ann"), ("q4", "bo"), ("q5", None)]
    rows = [
        {"prompt": f"{asked} {n * 7919}", "completion": "a", "label": True, "time": float(n)}
        | ({"rater": who} if who else {})
        for n, (asked, who) in enumerate(rated)
    ]
    rows[3]["prompt"] = rows[2]["prompt"]
    path = tmp_path / "rated.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    assert check([str(path)])["raters"] == {"count": 2, "largest": 0.75}


def test_a_report_without_raters(report: dict[str, Any]) -> None:
    assert report["raters"] == {"count": 0}


def test_counts_of_what_is_used_and_what_is_not(report: dict[str, Any]) -> None:
    assert report["used"] == {"records": 4, "of": 8}
    assert report["ignored"] == {"mood": 4}
    assert report["unrendered"] == {"private_use_characters": 1}
    assert report["warnings"][0].startswith("Not read, and left out: `mood` (4 rows).")
    first = tables(report)[0]
    assert [row[:2] for row in first.rows] == [
        ("column not read: mood", 4), ("cannot be rendered: private_use_characters", 1),
        ("quarantined: empty_completion", 1), ("dropped: no_label", 1), ("exact duplicates", 1),
    ]  # fmt: skip
    assert [str(row[2])[:14] for row in first.rows[:2]] == ["rows.jsonl:1: ", "rows.jsonl:8: "]
    assert first.rows[0][2] == "rows.jsonl:1: ok"


@pytest.mark.parametrize("form", ["html", "markdown"])
def test_pages_lead_with_the_used_records(report: dict[str, Any], form: str) -> None:
    page = render_report(report, form)
    places = [page.index(text) for text in ("Used 4 of 8 records (50%)", "`mood`", "cannot be rendered", "thumbs")]
    assert places == sorted(places)


def test_page_works_in_the_dark_and_on_a_phone(report: dict[str, Any]) -> None:
    page = render_report(report, "html")
    assert "prefers-color-scheme: dark" in page
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in page
    assert page.count("<svg") == len(report["lengths"]) + 1
    style = page[page.index("<style>") : page.index("</style>")]
    assert not re.search(r"#[0-9a-f]{3,6}", re.sub(r"--[\w-]+: #\w+;", "", style)), "every color has a dark variant"


def test_charts() -> None:
    spread = {"histogram": [1, 3], "edges": [0.0, 5.0, 10.0], "median": 7.5, "min": 0, "max": 10}
    (chart,) = length_charts({"<prompts>": spread}, "tokens")
    # 320 units for 10 tokens. The tallest bar, of 3, has 60 units.
    assert re.findall(r'class="bar" x="([\d.]+)" y="([\d.]+)"', chart) == [("0.0", "64.0"), ("160.0", "24.0")]
    assert 'class="median" x1="240.0"' in chart
    assert "&lt;prompts&gt;: median 8 tokens" in chart
    bar = balance_chart({"desirable": 3, "undesirable": 1})
    assert bar is not None
    assert 'class="up" x="0" y="22" width="240.0"' in bar
    assert balance_chart({"desirable": 0, "undesirable": 0}) is None


def test_used_line() -> None:
    assert used_line({"records": 1200, "of": 1200}) == "used 1,200 of 1,200 records"
    assert used_line({"records": 1, "of": 4}) == "used 1 of 4 records (25%)"
    assert used_line({"records": 0, "of": 0}) == "used 0 of 0 records"


def test_other_splits_are_named(tmp_path: Path) -> None:
    for split in ("train", "test"):
        row = json.dumps({"prompt": f"{split} q", "completion": "a"})
        (tmp_path / f"{split}-00000-of-00001.jsonl").write_text(row, encoding="utf-8")
    found = check([str(tmp_path)])
    assert [file["name"] for file in found["files"]] == ["train-00000-of-00001.jsonl"]
    assert f"Of {tmp_path}, only the split train is read, not test" in found["warnings"]
