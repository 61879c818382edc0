"""The split keeps rows of every kind in training, and still holds something out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from alignment_core.config import DataConfig, SourceConfig
from alignment_core.data.dataset.splits import Dataset, read_dataset
from alignment_core.data.ingestion.ingest import ingest
from alignment_core.data.rendering.renderer import Renderer
from alignment_core.progress import Silent

WORDS = ("amber", "bison", "cedar", "delta", "ember", "fjord", "grove", "heron",
         "indigo", "jasper", "kelp", "lotus", "maple", "nectar", "onyx", "pearl")  # fmt: skip
"""Prompts must not be alike, or they would count as near-duplicates."""


def prompt(number: int) -> str:
    return " ".join(f"{WORDS[(number * step + step) % 16]}{number}" for step in (1, 3, 5, 7))


def thumb(number: int, up: bool) -> dict[str, Any]:
    return {"prompt": prompt(number), "completion": f"Answer {number}: {prompt(number + 50)}", "label": up}


def split(rows: Sequence[dict[str, Any]], renderer: Renderer, folder: Path, share: float) -> tuple[Dataset, list[str]]:
    """Ingest the rows, those of each format from a file of their own."""
    (folder / "out").mkdir(parents=True)
    sources = []
    for name in ("label", "chosen"):
        if some := [row for row in rows if name in row]:
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
            sources.append(SourceConfig(path=str(folder / f"{name}.jsonl")))
    data = DataConfig(sources=sources, held_out_fraction=share)
    report = ingest(data, renderer, folder / "out", Silent(), pages=False)
    return read_dataset(folder / "out"), report["warnings"]


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_only_bad_thumb_of_forty_is_learned_from(renderer: Renderer, tmp_path: Path, share: float) -> None:
    moved = 0
    for bad in range(12):
        rows = [thumb(number, number != bad) for number in range(40)]
        found, warnings = split(rows, renderer, tmp_path / f"{bad}", share)
        assert sum(not row.values["desirable"] for row in found.train.feedback) == 1
        assert len(found.train.feedback) + len(found.held_out.feedback) == 40
        assert len(found.held_out.prompts) >= 1
        said = [message for message in warnings if "All undesirable responses would have been held out" in message]
        moved += len(said)
    assert moved >= (1 if share > 0.1 else 0)
    assert moved < 12  # the others were in training already


def test_only_pair_is_learned_from(renderer: Renderer, tmp_path: Path) -> None:
    for place in range(4):
        rows: list[dict[str, Any]] = [thumb(number, up=True) for number in range(6)]
        rows[place] = {"prompt": prompt(place), "chosen": "Yes, gladly.", "rejected": "No, never."}
        found, _ = split(rows, renderer, tmp_path / f"{place}", 0.7)
        assert (len(found.train.preferences), len(found.held_out.preferences)) == (1, 0)
        assert len(found.held_out.prompts) >= 1


def test_only_pair_of_opposite_labels_is_learned_from(renderer: Renderer, tmp_path: Path) -> None:
    for place in range(4):
        rows = [thumb(number, up=number % 2 == 0) for number in range(8)]
        rows.append({**thumb(place, up=place % 2 == 1), "completion": "The opposite."})
        found, _ = split(rows, renderer, tmp_path / f"{place}", 0.7)
        assert (len(found.train.preferences), len(found.held_out.preferences)) == (1, 0)


def test_split_is_unchanged_where_nothing_is_rare(renderer: Renderer, tmp_path: Path) -> None:
    rows = [thumb(number, up=number % 2 == 0) for number in range(40)]
    found, warnings = split(rows, renderer, tmp_path / "a", 0.3)
    held = {json.loads(found.held_out.prompts.messages(row.id))[0]["content"] for row in found.held_out.prompts}
    # A conversation is held out by the hash of its own prompt, whatever else the data hold.
    more, _ = split([*rows, thumb(99, up=True)], renderer, tmp_path / "b", 0.3)
    again = {json.loads(more.held_out.prompts.messages(row.id))[0]["content"] for row in more.held_out.prompts}
    assert held == again - {prompt(99)}
    assert not any("would have been held out" in message for message in warnings)


def test_another_conversation_is_held_out_instead(renderer: Renderer, tmp_path: Path) -> None:
    """One of six is held out. If that is the only bad thumb, another one takes its place."""
    for bad in range(6):
        found, _ = split([thumb(number, number != bad) for number in range(6)], renderer, tmp_path / f"{bad}", 0.01)
        assert sum(not row.values["desirable"] for row in found.train.feedback) == 1
        assert (len(found.train.feedback), len(found.held_out.feedback)) == (5, 1)


def test_nothing_is_held_out_if_training_needs_every_conversation(renderer: Renderer, tmp_path: Path) -> None:
    found, warnings = split([thumb(1, up=True), thumb(2, up=False)], renderer, tmp_path / "two", 0.5)
    assert (len(found.train.feedback), len(found.held_out.feedback)) == (2, 0)
    assert any("would have been held out" in message for message in warnings)
