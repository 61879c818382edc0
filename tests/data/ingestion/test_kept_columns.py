"""Columns that a source keeps travel from its rows to the rows of the data set, as facts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from alignment_core.data.dataset.splits import Dataset, read_dataset
from alignment_core.data.ingestion.check import check
from alignment_core.errors import DataError

NAMES = ["apple", "pear", "plum", "fig", "grape", "lemon", "melon", "cherry", "peach", "quince"]
SUMS = [{"question": f"How many {name}s are {i} and {i}?", "answer": str(2 * i)} for i, name in enumerate(NAMES)]
MAPPED = {"columns": {"prompt": "question"}}


def ingested(folder: Path, rows: Sequence[Mapping[str, Any]], **source: Any) -> tuple[dict[str, Any], Dataset]:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    report = check([str(path)], out=folder / "out", held_out_fraction=0.2, source=source)
    return report, read_dataset(folder / "out")


def facts_by_text(data: Dataset) -> dict[str, Mapping[str, Any]]:
    splits = (data.train, data.held_out)
    return {split.messages(row)[-1]["content"]: row.facts for split in splits for row in split.prompts}


def test_kept_columns_are_the_facts_of_prompts(tmp_path: Path) -> None:
    rows = [{**row, "tests": [{"input": i, "score": 1}]} for i, row in enumerate(SUMS)]
    report, data = ingested(tmp_path, rows, keep=["answer", "tests"], **MAPPED)
    expected = {row["question"]: {"answer": row["answer"], "tests": row["tests"]} for row in rows}
    assert facts_by_text(data) == expected
    assert report["ignored"] == {}
    assert report["warnings"] == []


def test_columns_that_are_not_kept_are_still_reported(tmp_path: Path) -> None:
    report, data = ingested(tmp_path, [{**row, "hint": "add"} for row in SUMS], keep=["answer"], **MAPPED)
    assert report["ignored"] == {"hint": 10}
    assert set(facts_by_text(data)[SUMS[3]["question"]]) == {"answer"}


def test_a_column_can_be_kept_and_read(tmp_path: Path) -> None:
    """The answer is the completion of the demonstration and the fact of all its rows."""
    _, data = ingested(tmp_path, [{"prompt": row["question"], "completion": row["answer"]} for row in SUMS],
                       keep=["completion"])  # fmt: skip
    assert [len(rows) for rows in (data.train.demonstrations, data.held_out.demonstrations)] == [8, 2]
    for row in (*data.train.demonstrations, *data.train.prompts):
        assert row.facts.keys() == {"completion"}


def test_keeping_messages_does_not_hide_what_is_left_out_of_them(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello", "feedback": "bad"}]
    with pytest.raises(DataError, match=r"messages\[\]\.feedback"):
        check_strictly(tmp_path, [{"messages": turns}], keep=["messages"])


def check_strictly(folder: Path, rows: Sequence[Mapping[str, Any]], **source: Any) -> None:
    from alignment_core.config import SourceConfig
    from alignment_core.data.sources.inputs import find_inputs

    path = folder / "strict.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    find_inputs([SourceConfig(path=str(path), **source)])


def test_a_kept_column_that_may_change_the_meaning_is_no_error(tmp_path: Path) -> None:
    """`context` may be a part of the prompt. Naming it in `keep` says that it is not."""
    rows = [{"prompt": row["question"], "completion": "?", "context": "in a shop"} for row in SUMS]
    with pytest.raises(DataError, match="context"):
        check_strictly(tmp_path, rows)
    check_strictly(tmp_path, rows, keep=["context"])


def test_a_column_that_no_row_has_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"answr.* expected columns of .*rows\.jsonl: answer, question"):
        ingested(tmp_path, SUMS, keep=["answr"], **MAPPED)


def test_rows_without_the_column_have_no_facts(tmp_path: Path) -> None:
    rows = [row if i else {"question": row["question"]} for i, row in enumerate(SUMS)]
    _, data = ingested(tmp_path, rows, keep=["answer"], **MAPPED)
    facts = facts_by_text(data)
    assert facts[SUMS[0]["question"]] == {}
    assert facts[SUMS[1]["question"]] == {"answer": "2"}


def test_the_first_record_with_facts_decides_and_contradictions_are_counted(tmp_path: Path) -> None:
    question = SUMS[0]["question"]
    rows = [{"question": question, "completion": "none"}, {"question": question, "completion": "zero", "answer": "0"}]
    rows += [{"question": question, "completion": "nil", "answer": "00"}, *SUMS[1:]]
    mapped = {"columns": {"prompt": "question", "completion": "completion"}}
    report, data = ingested(tmp_path, [{"completion": "x", **row} for row in rows], keep=["answer"], **mapped)
    assert facts_by_text(data)[question] == {"answer": "0"}
    assert [text for text in report["warnings"] if "kept columns of 1 prompt differ" in text]


def test_values_that_are_no_json(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{**row, "due": date(2024, 2, 1), "price": Decimal("1.50"), "raw": 1.0} for row in SUMS]
    rows[4]["raw"] = float("nan")
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    report = check([str(path)], out=tmp_path / "out", source={"keep": ["due", "price", "raw"], **MAPPED})
    facts = facts_by_text(read_dataset(tmp_path / "out"))
    assert facts[SUMS[0]["question"]] == {"due": "2024-02-01", "price": "1.50", "raw": 1.0}
    assert report["quarantined"] == {"unusable_fact": 1}
    assert SUMS[4]["question"] not in facts


def test_rows_of_a_format_that_joins_rows_keep_their_columns(tmp_path: Path) -> None:
    """SHP's rows are read together. Each record keeps the column of its own row."""
    rows = [
        {"post_id": f"p{i}", "history": f"Why is {name} so {name}?", "human_ref_A": f"{name} yes", "labels": i % 2,
         "human_ref_B": f"{name} no", "score_A": 9, "score_B": 1, "score_ratio": 9.0, "topic": name}
        for i, name in enumerate(NAMES)
    ]  # fmt: skip
    report, data = ingested(tmp_path, rows, keep=["topic"])
    assert report["files"][0]["format"] == "shp"
    facts = facts_by_text(data)
    assert len(facts) == 10
    assert all(found["topic"] in text for text, found in facts.items())
