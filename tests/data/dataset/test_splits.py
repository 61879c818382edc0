"""Data sets on disk: the rows read equal the rows written, from one folder or several."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from records import answer, demo, pair, prompt, thumb, turns

from alignment_core.data.dataset.splits import read_dataset
from alignment_core.data.ingestion.mismatch import mismatched_rows
from alignment_core.data.ingestion.write_records import Records, write_dataset
from alignment_core.data.rendering.renderer import Renderer
from alignment_core.records import LabelledResponse

TRAIN = Records(
    demonstrations=[demo("q", "a", "r", "b"), demo("s", "t")],
    preferences=[pair("q", "a", "b", 1.5), pair(turns("q", "a", "r"), "x", "y")],
    feedback=[thumb("q", "a", True), thumb("r", "b", False), LabelledResponse(turns("s"), answer("é"), True, 2.0)],
    prompts=[prompt("q"), prompt("system: be", "r")],
)
HELD_OUT = Records(prompts=[prompt("held")])


@pytest.fixture
def folder(tmp_path: Path, renderer: Renderer) -> Path:
    report = write_dataset(tmp_path / "data", TRAIN, HELD_OUT, renderer)
    assert report["rows"]["train"] == {"demonstrations": 2, "preferences": 2, "feedback": 3, "prompts": 2}
    assert report["rows"]["held_out"] == {"demonstrations": 0, "preferences": 0, "feedback": 0, "prompts": 1}
    assert report["left_out"] == {}
    return tmp_path / "data"


def test_rows_equal_the_rendered_records(folder: Path, renderer: Renderer) -> None:
    train = read_dataset(folder).train
    assert [row.sequences["demonstration"] for row in train.demonstrations] == [
        renderer.demonstration(record.messages) for record in TRAIN.demonstrations
    ]
    for row, record in zip(train.preferences, TRAIN.preferences, strict=True):
        assert row.sequences["chosen"] == renderer.completion(record.prompt, record.chosen)
        assert row.sequences["rejected"] == renderer.completion(record.prompt, record.rejected)
    assert [row.values for row in train.preferences] == [{"margin": 1.5}, {"margin": 0.0}]
    assert [row.sequences["response"] for row in train.feedback] == [
        renderer.completion(record.prompt, record.response) for record in TRAIN.feedback
    ]
    assert [row.values for row in train.feedback] == [
        {"desirable": 1.0, "weight": 1.0}, {"desirable": 0.0, "weight": 1.0}, {"desirable": 1.0, "weight": 2.0},
    ]  # fmt: skip
    assert [row.sequences["prompt"] for row in train.prompts] == [
        renderer.prompt(record.messages) for record in TRAIN.prompts
    ]


def test_messages_of_a_prompt(folder: Path) -> None:
    data = read_dataset(folder)
    for split, records in ((data.train, TRAIN), (data.held_out, HELD_OUT)):
        assert [split.messages(row) for row in split.prompts] == [record.messages for record in records.prompts]
    with pytest.raises(KeyError):
        data.held_out.messages(data.train.prompts[0])


def test_rows_support_iteration_indexing_and_slicing(folder: Path) -> None:
    rows = read_dataset(folder).train.feedback
    assert [row.id for row in rows] == [rows[index].id for index in range(3)]
    assert rows[-1] == rows[2]
    assert rows[1:] == [rows[1], rows[2]]
    assert len({row.id for row in rows}) == 3
    with pytest.raises(IndexError):
        rows[3]


def test_ids_depend_only_on_content(folder: Path, tmp_path: Path, renderer: Renderer) -> None:
    moved = Records(demonstrations=TRAIN.demonstrations[::-1], preferences=TRAIN.preferences[::-1])
    write_dataset(tmp_path / "other", moved, Records(), renderer)
    for kind in ("demonstrations", "preferences"):
        ids = [[row.id for row in getattr(read_dataset(path).train, kind)] for path in (folder, tmp_path / "other")]
        assert ids[0] == ids[1][::-1]


def test_folders_are_joined_in_order(folder: Path, tmp_path: Path, renderer: Renderer) -> None:
    more = Records(preferences=[pair("new", "yes", "no")], prompts=[prompt("extra")])
    write_dataset(tmp_path / "more", more, Records(), renderer)
    joined = read_dataset(folder, tmp_path / "more").train
    assert len(joined.preferences) == 3
    assert joined.preferences[2].sequences["chosen"] == renderer.completion(turns("new"), answer("yes"))
    assert joined.messages(joined.prompts[2]) == turns("extra")


def test_records_file_is_readable_and_names_its_rows(folder: Path) -> None:
    lines = [json.loads(line) for line in (folder / "train" / "records.jsonl").read_text(encoding="utf-8").splitlines()]
    train = read_dataset(folder).train
    preference = next(line for line in lines if line["rows"].get("preferences") == [train.preferences[0].id])
    assert (preference["prompt"], preference["chosen"], preference["rejected"], preference["margin"]) == (
        list(turns("q")), list(answer("a")), list(answer("b")), 1.5,
    )  # fmt: skip
    thumbs = [next(line for line in lines if line["rows"].get("feedback") == [row.id]) for row in train.feedback]
    assert [(row["desirable"], row.get("weight")) for row in thumbs] == [(True, None), (False, None), (True, 2.0)]


def test_records_that_do_not_fit_are_left_out_and_counted(tmp_path: Path, renderer: Renderer) -> None:
    long = Records(demonstrations=[demo("q", "x" * 600), demo("q", "fine")])
    report = write_dataset(tmp_path, long, Records(), renderer)
    assert report["rows"]["train"]["demonstrations"] == 1
    assert report["left_out"] == {"completion_too_long": 1}


def test_several_batches(tmp_path: Path, renderer: Renderer) -> None:
    records = Records(feedback=[thumb(f"q{i}", f"a{i}", i % 2 == 0) for i in range(700)])
    write_dataset(tmp_path, records, Records(), renderer)
    rows = read_dataset(tmp_path).train.feedback
    assert len(rows) == 700
    for index in (0, 255, 256, 511, 699):
        assert renderer.decode(rows[index].sequences["response"].completion) == f"a{index}"


# --- mismatched responses -----------------------------------------------------------------------------------------


def test_mismatch_combines_a_prompt_with_the_response_to_another(folder: Path, renderer: Renderer) -> None:
    rows = list(read_dataset(folder).train.feedback)
    completions = {row.sequences["response"].completion: row.sequences["response"].prompt for row in rows}
    for row in rows:
        own, other = row.sequences["response"], row.sequences["mismatched"]
        assert other.prompt == own.prompt
        assert completions[other.completion] != own.prompt


def partners_of(hashes: list[int], prompt_ids: list[int], prompts: list[int], responses: list[int]) -> list[int]:
    columns = (np.array(values) for values in (hashes, prompt_ids, prompts, responses))
    with tempfile.TemporaryDirectory() as folder:
        return [int(other) for other in mismatched_rows(*columns, 100, Path(folder))]


def test_most_mismatches_stay_when_rows_are_added() -> None:
    hashes = [(i * 2654435761) % 2**32 for i in range(240)]
    prompt_ids = [i // 2 for i in range(240)]
    before = partners_of(hashes[:200], prompt_ids[:200], [10] * 200, [10] * 200)
    after = partners_of(hashes, prompt_ids, [10] * 240, [10] * 240)
    assert sum(a == b for a, b in zip(before, after, strict=False)) > 150
    assert all(prompt_ids[index] != prompt_ids[other] for index, other in enumerate(before))


def test_mismatch_is_the_next_fitting_row_on_the_hash_circle() -> None:
    """Sorted by hash, the rows are a, b, c. The response of b is too long for the prompt of a."""
    assert partners_of([1, 2, 3], [1, 2, 3], [60, 10, 10], [10, 90, 20]) == [2, 2, 0]
    assert partners_of([1, 2, 3], [1, 1, 3], [10, 10, 10], [10, 10, 10]) == [2, 2, 0]
    assert partners_of([1, 2, 3], [1, 2, 3], [95, 10, 10], [10, 90, 20]) == [2, 2, 0]  # none fits, so the shortest


def test_single_prompt_has_no_mismatch(tmp_path: Path, renderer: Renderer) -> None:
    assert partners_of([1, 2], [7, 7], [1, 1], [1, 1]) == [-1, -1]
    write_dataset(tmp_path, Records(feedback=[thumb("q", "a", True), thumb("q", "b", False)]), Records(), renderer)
    for row in read_dataset(tmp_path).train.feedback:
        assert row.sequences["mismatched"] == row.sequences["response"]


def test_mismatch_that_does_not_fit_truncates_the_prompt_only(tmp_path: Path, renderer: Renderer) -> None:
    rows = [thumb("x" * 400, "short", True), thumb("brief", "y" * 400, True)]
    write_dataset(tmp_path, Records(feedback=rows), Records(), renderer)
    first, second = read_dataset(tmp_path).train.feedback
    sequence: Any = first.sequences["mismatched"]
    own = first.sequences["response"]
    assert len(sequence.ids) == 512
    assert sequence.completion == second.sequences["response"].completion
    assert sequence.prompt == own.prompt[-sequence.start :]
