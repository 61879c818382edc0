"""The data report leads with what is used and what is left out, and its page has charts for any screen."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignment_core.data.ingestion.check import check
from alignment_core.data.ingestion.report.charts import data_charts, length_charts
from alignment_core.data.ingestion.report.page import html_report, markdown_report
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


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": "q", "completion": "a", "rating": 4},
        {"prompt": "q", "completion": "a", "label": True},
        {"prompt": "q", "completions": [{"completion": "a", "rank": 1}, {"completion": "b", "rank": 2}]},
    ],
    ids=["pair", "rating", "label", "ranking"],
)
@pytest.mark.parametrize("column", ["rater", "annotator", "annotator_id", "labeler", "labeller", "worker_id"])
def test_raters_of_every_kind_of_judgment(tmp_path: Path, row: dict[str, Any], column: str) -> None:
    names = ["ann", "ann", "ann", "bo"] if "id" not in column else [7, 7, 7, 8]
    rows = [row | {"prompt": f"q{n * 7919}", column: name} for n, name in enumerate(names)]
    path = tmp_path / "rated.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    found = check([str(path)], source={"threshold": 3})
    assert (found["used"], found["raters"]) == ({"records": 4, "of": 4}, {"count": 2, "largest": 0.75})
    assert column not in found["ignored"]


def test_rater_under_any_name_can_be_mapped(tmp_path: Path) -> None:
    path = tmp_path / "rated.csv"
    path.write_text("frage,gut,schlecht,von,wann\n" + "".join(f"q{n * 7919},a,b,ann,{n}\n" for n in range(4)))
    names = {"prompt": "frage", "chosen": "gut", "rejected": "schlecht", "rater": "von", "time": "wann"}
    found = check([str(path)], source={"columns": names})
    assert (found["used"], found["raters"]) == ({"records": 4, "of": 4}, {"count": 1, "largest": 1.0})
    assert found["ignored"] == {}

    path.write_text(path.read_text().replace("von,wann", "annotator,wann"))
    found = check([str(path)], source={"columns": {"prompt": "frage", "chosen": "gut", "rejected": "schlecht"}})
    assert (found["raters"], found["ignored"]) == ({"count": 1, "largest": 1.0}, {"wann": 4})


@pytest.mark.parametrize(
    "times", [[1, 10, 9], ["1", "10", "9"], ["2026-01-01", "2026-01-03T00:00:00Z", "2026-01-02T10:00:00"]]
)
def test_the_latest_vote_of_a_rater_counts_in_any_notation(tmp_path: Path, times: list[Any]) -> None:
    """The second is the latest, in a file where another one comes last. Ids with gaps are read as 7.0."""
    rows = [
        {"prompt": f"q {n * 7919}", "completion": "a", "label": label, "annotator_id": who, "time": when}
        for n in range(6)
        for label, who, when in zip([False, True, False], [7, 7.0, "7"], times, strict=True)
    ]
    path = tmp_path / "rated.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    balance = check([str(path)])["balance"]
    assert balance["undesirable"] == 0
    assert balance["desirable"] >= 3


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


@pytest.mark.parametrize("render", [html_report, markdown_report])
def test_pages_lead_with_the_used_records(report: dict[str, Any], render: Callable[[dict[str, Any]], str]) -> None:
    page = render(report)
    places = [page.index(text) for text in ("Used 4 of 8 records (50 %)", "mood", "cannot be rendered", "thumbs")]
    assert places == sorted(places)


def test_page_works_in_the_dark_and_on_a_phone(report: dict[str, Any]) -> None:
    page = html_report(report)
    assert "prefers-color-scheme: dark" in page
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in page
    assert page.count("<svg") == len(data_charts(report))
    style = page[page.index("<style>") : page.index("</style>")]
    assert not re.search(r"#[0-9a-f]{3,6}", re.sub(r"--[\w-]+: #\w+;", "", style)), "every color has a dark variant"


def test_plots_come_before_the_tables_and_show_what_is_used(report: dict[str, Any]) -> None:
    """Of 8 records 4 are used, 2 quarantined, 1 dropped; the eighth is a duplicate. All labels of the 4 are good."""
    used, labels, prompts, responses, demonstrations = data_charts(report)
    assert [row[:2] for row in used.rows] == [
        ("used", "4"), ("cannot be used (quarantined)", "2"), ("no judgment (dropped)", "1"),
        ("duplicates and settled votes", "1"),
    ]  # fmt: skip
    kept = report["rows"]["train"]["feedback"]
    assert labels.rows == (("desirable", str(kept), "100 %"), ("undesirable", "0", "0 %"))
    titles = [chart.title for chart in (prompts, responses, demonstrations)]
    assert titles == ["Prompts", "Desirable and undesirable responses", "Demonstrations"]
    page = html_report(report)
    assert page.index("<svg") < page.index("column not read")


def test_sides_of_a_judgment_are_drawn_over_one_another() -> None:
    spread = {"histogram": [1, 3], "edges": [0.0, 5.0, 10.0], "median": 7.5, "min": 0, "max": 10}
    short, long = spread, {**spread, "edges": [0.0, 10.0, 20.0], "median": 15.0, "max": 20}
    prompts, sides = length_charts({"prompts": spread, "rejected": short, "chosen": long}, "tokens")
    assert prompts.rows == (("prompts", "4", "7.5", "10"),)
    assert [row[0] for row in sides.rows] == ["chosen", "rejected"]
    # Both share the axis from 0 to 20, which is 4 to 356: the medians are at three quarters and three eighths.
    assert re.findall(r'x1="([\d.]+)" [^/]*class="median', sides.svg) == ["268", "136"]


def test_page_names_only_files_that_are_beside_it(report: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "q", "chosen": "a", "rejected": "b"}\n{"prompt": "q"}\n', encoding="utf-8")
    check([str(path)], out=tmp_path / "folder")
    page = (tmp_path / "folder" / "report.html").read_text(encoding="utf-8")
    named = set(re.findall(r"[\w-]+\.jsonl?\b", page)) - {"rows.jsonl"}
    assert named == {"quarantine.jsonl", "report.json"}
    assert all((tmp_path / "folder" / name).is_file() for name in named)
    check([str(path)], out=tmp_path / "new" / "x.html")
    alone = (tmp_path / "new" / "x.html").read_text(encoding="utf-8")
    assert not set(re.findall(r"[\w-]+\.jsonl?\b", alone)) - {"rows.jsonl"}
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["x.html"]
    notes = [table.note for table in tables(report, files=False)]
    assert not any("quarantine.jsonl" in note for note in notes)


def test_used_line() -> None:
    assert used_line({"records": 1200, "of": 1200}) == "used 1,200 of 1,200 records"
    assert used_line({"records": 1, "of": 4}) == "used 1 of 4 records (25 %)"
    assert used_line({"records": 0, "of": 0}) == "used 0 of 0 records"


def test_files_that_are_not_read_are_named(tmp_path: Path) -> None:
    folder, archive = tmp_path / "folder", tmp_path / "export.zip"
    (folder / "more").mkdir(parents=True)
    row = json.dumps({"prompt": "q", "completion": "a"})
    names = ["votes.xlsx", *(f"more/{number}.png" for number in range(5)), "README.md", ".hidden.xlsx", "LICENSE"]
    with zipfile.ZipFile(archive, "w") as zipped:
        for name in (*names, "rows.jsonl"):
            (folder / name).write_text(row)
            zipped.writestr(name, row)
    shown = "more/0.png, more/1.png, more/2.png, more/3.png, more/4.png and 1 more"
    for place in (folder, archive):
        expected = f"Of {place}, files of other types are not read: {shown}"
        assert [line for line in check([str(place)])["warnings"] if "other types" in line] == [expected]


def test_other_splits_are_named(tmp_path: Path) -> None:
    for split in ("train", "test"):
        row = json.dumps({"prompt": f"{split} q", "completion": "a"})
        (tmp_path / f"{split}-00000-of-00001.jsonl").write_text(row, encoding="utf-8")
    found = check([str(tmp_path)])
    assert [file["name"] for file in found["files"]] == ["train-00000-of-00001.jsonl"]
    assert f"Of {tmp_path}, only the split train is read, not test" in found["warnings"]
