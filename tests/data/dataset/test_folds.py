"""Folds of the feedback, for the judge and the rest: disjoint by prompt, and of about the requested size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from alignment_core.data.dataset.folds import rows_in_fold
from alignment_core.data.dataset.splits import Split, read_dataset
from alignment_core.data.ingestion.write_records import Records, write_dataset
from alignment_core.data.rendering.renderer import Renderer, load_tokenizer
from alignment_core.records import LabelledResponse, PreferencePair


def assistant_turn(text: str) -> tuple[dict[str, Any], ...]:
    return ({"role": "assistant", "content": text},)


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Split:
    """400 prompts with two pairs and one labelled response each. Some of the prompts have to be truncated."""
    folder = tmp_path_factory.mktemp("data")
    pairs, labels = [], []
    for n in range(400):
        prompt = ({"role": "user", "content": "Think! " * (n % 30) + f"What is {n}?"},)
        pairs += [
            PreferencePair(prompt, assistant_turn("Yes."), assistant_turn("No."), origin=f"x:{n}"),
            PreferencePair(
                prompt, assistant_turn("Well, yes. " * 3), assistant_turn("Well, no. " * 3), origin=f"y:{n}"
            ),
        ]
        labels.append(LabelledResponse(prompt, assistant_turn("Yes."), True, origin=f"z:{n}"))
    renderer = Renderer(load_tokenizer(str(tiny_model), None), chat_template=None, max_length=128)
    write_dataset(folder, Records(preferences=pairs, feedback=labels), Records(), renderer)
    return read_dataset(folder).train


def prompts_of(rows: Any) -> set[str]:
    return {rows._rows.conversation(place) for place in rows._places}


def test_folds_are_disjoint_by_prompt_and_complete(split: Split) -> None:
    judge, rest = rows_in_fold(split, 0.25, "judge"), rows_in_fold(split, 0.25, "rest")
    assert len(judge.preferences) + len(rest.preferences) == len(split.preferences) > 700
    assert len(judge.feedback) + len(rest.feedback) == len(split.feedback) == 400
    judge_prompts, rest_prompts = (prompts_of(one.preferences) | prompts_of(one.feedback) for one in (judge, rest))
    assert not judge_prompts & rest_prompts, "a truncated prompt is still the same prompt"
    # One in four of 400 prompts is 100, plus or minus five standard deviations of 8.7.
    assert 56 < len(judge_prompts) < 144
    assert judge.prompts is split.prompts


def test_iteration_indexing_and_slicing_agree(split: Split) -> None:
    part = rows_in_fold(split, 0.25, "judge").preferences
    assert [row.id for row in part] == [part[place].id for place in range(len(part))] == [row.id for row in part[:]]
    assert {row.id for row in part} < {row.id for row in split.preferences}
