"""The judge's part of the people's judgements: disjoint by prompt, and of about the size that was asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from alignment_core.data.dataset import Records, Split, read_dataset, write_dataset
from alignment_core.data.folds import in_fold
from alignment_core.data.rendering import Renderer, load_tokenizer
from alignment_core.records import LabelledResponse, PreferencePair


def said(text: str) -> tuple[dict[str, Any], ...]:
    return ({"role": "assistant", "content": text},)


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Split:
    """400 prompts with two pairs and one labelled response each; some of the prompts have to be cut."""
    folder = tmp_path_factory.mktemp("data")
    pairs, labels = [], []
    for n in range(400):
        prompt = ({"role": "user", "content": "Think! " * (n % 30) + f"What is {n}?"},)
        pairs += [
            PreferencePair(prompt, said("Yes."), said("No."), origin=f"x:{n}"),
            PreferencePair(prompt, said("Well, yes. " * 3), said("Well, no. " * 3), origin=f"y:{n}"),
        ]
        labels.append(LabelledResponse(prompt, said("Yes."), True, origin=f"z:{n}"))
    renderer = Renderer(load_tokenizer(str(tiny_model), None), chat_template=None, max_length=128)
    write_dataset(folder, Records(preferences=pairs, feedback=labels), Records(), renderer)
    return read_dataset(folder).train


def questions(rows: Any) -> set[str]:
    return {rows._rows.conversation(place) for place in rows._places}


def test_parts_are_disjoint_by_prompt_and_make_the_whole(split: Split) -> None:
    judge, rest = in_fold(split, 0.25, "judge"), in_fold(split, 0.25, "rest")
    assert len(judge.preferences) + len(rest.preferences) == len(split.preferences) > 700
    assert len(judge.feedback) + len(rest.feedback) == len(split.feedback) == 400
    theirs, ours = (questions(one.preferences) | questions(one.feedback) for one in (judge, rest))
    assert not theirs & ours, "a prompt whose tokens were cut is the same prompt"
    # 400 prompts at one in four: 100, give or take five standard deviations of 8.7
    assert 56 < len(theirs) < 144
    assert judge.prompts is split.prompts


def test_rows_are_the_rows(split: Split) -> None:
    part = in_fold(split, 0.25, "judge").preferences
    assert [row.id for row in part] == [part[place].id for place in range(len(part))] == [row.id for row in part[:]]
    assert {row.id for row in part} < {row.id for row in split.preferences}
