"""Records with very long texts: they are named and left out, and those that are used are tokenized a few at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alignment_core.data.ingestion import shards
from alignment_core.data.ingestion.check import check
from alignment_core.data.ingestion.record_parts import split_record
from alignment_core.data.ingestion.shards import LONGEST
from alignment_core.records import PreferencePair

TURN = {"role": "assistant", "content": "four"}


def write(path: Path, data: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in data), encoding="utf-8")
    return path


def test_record_of_more_than_a_million_characters_is_named_and_left_out(tmp_path: Path) -> None:
    """One has a million characters in all, the other one more: the prompt and both answers count."""
    long = [{"prompt": "é" * 10, "chosen": "x" * (LONGEST - 12 + more), "rejected": "no"} for more in (0, 1)]
    path = write(
        tmp_path / "rows.jsonl", [*({"prompt": f"q{i}", "chosen": "a", "rejected": "b"} for i in range(9)), *long]
    )
    report = check([str(path)], out=tmp_path / "report")
    assert report["quarantined"] == {"text_too_long": 1}
    (line,) = (tmp_path / "report" / "quarantine.jsonl").read_text().splitlines()
    assert json.loads(line) == {
        "origin": "rows.jsonl:11",
        "reason": "text_too_long",
        "detail": "its texts have 1,000,001 characters, and at most 1,000,000 are read",
        "row": "é" * 10,
    }


def test_all_texts_count_and_so_does_the_json_of_tool_calls() -> None:
    calls = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {"a": "b"}}}]}
    pair = PreferencePair(
        prompt=({"role": "user", "content": "six ch"},), chosen=(TURN,), rejected=(calls,), origin="o"
    )
    assert split_record(pair).characters() == 6 + 4 + len(json.dumps([calls], ensure_ascii=False))


def test_fewer_long_records_are_tokenized_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The report is the same, however many there are."""
    path = write(
        tmp_path / "rows.jsonl", [{"prompt": f"q{i}", "chosen": "yes " * i, "rejected": "b"} for i in range(1, 60)]
    )
    whole = check([str(path)])
    sizes: list[int] = []
    flush = shards.ShardWriter._flush

    def counted(self: Any) -> None:
        sizes.append(len(self._waiting))
        flush(self)

    monkeypatch.setattr(shards.ShardWriter, "_flush", counted)
    monkeypatch.setattr(shards, "BATCH_CHARACTERS", 1000)
    assert check([str(path)]) == whole
    # 4 i + 3 or 4 characters each: the last ones have about 240, so five of them exceed a thousand.
    assert max(sizes) < 25
    assert sizes[-2] == 5
