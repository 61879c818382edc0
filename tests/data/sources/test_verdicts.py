"""Data sets with two answers and a verdict in columns of their own."""

from __future__ import annotations

import json
from typing import Any

from records import found, pair, turns

from alignment_core.config import SourceConfig
from alignment_core.data.sources.formats import detect

A = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
B = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "b"}]


def test_helpsteer_prefers_the_first_response_below_zero() -> None:
    row = {"domain": "code", "context": A[:1], "response1": "a", "response2": "b", "individual_preference": [{"s": 1}]}
    result = found([{**row, "overall_preference": value} for value in (-3, 1, 0, None)])
    assert result.format == "helpsteer_preference"
    assert result.records == [pair("q", "a", "b", 3.0), pair("q", "b", "a", 1.0)]
    assert result.dropped == {"tie": 1, "no_label": 1}
    assert not result.ignored


def test_helpsteer_2_names_its_columns_differently() -> None:
    (record,) = found([{"prompt": "q", "response_1": "a", "response_2": "b", "preference_strength": 2}]).records
    assert record == pair("q", "b", "a", 2.0)


def test_safe_rlhf_takes_the_better_response_and_counts_the_other_verdict() -> None:
    row = {"prompt": "q", "response_0": "a", "response_1": "b", "better_response_id": 1, "safer_response_id": 0}
    result = found([row])
    assert (result.format, result.records) == ("safe_rlhf", [pair("q", "b", "a")])
    assert result.ignored == {"safer_response_id": 1}
    safer = found([row], format="safe_rlhf", columns={"label": "safer_response_id"})
    assert safer.records == [pair("q", "a", "b")]
    assert found([row, {**row, "better_response_id": 7}]).bad == {"bad_label": 1}


def test_arena_battles_of_conversations() -> None:
    row = {"model_a": "x", "model_b": "y", "conversation_a": A, "conversation_b": B, "judge": "j", "turn": 1}
    result = found([{**row, "winner": winner} for winner in ("model_a", "model_b", "tie", "tie (bothbad)", "model_c")])
    assert result.format == "arena"
    assert result.records == [pair("q", "a", "b"), pair("q", "b", "a")]
    assert (result.dropped, result.bad, result.voters) == ({"tie": 2}, {"bad_label": 1}, ["j", "j"])


def test_arena_battles_as_json_lists_of_several_rounds() -> None:
    row = {"prompt": json.dumps(["q", "r"]), "response_a": json.dumps(["a", "c"]), "response_b": json.dumps(["a", "d"])}
    wins = {"winner_model_a": 0, "winner_model_b": 1, "winner_tie": 0}
    result = found([{**row, **wins}, {**row, "winner_model_a": 0, "winner_model_b": 0, "winner_tie": 1}])
    assert result.records == [pair(turns("q", "a", "r"), "d", "c")]
    assert (result.dropped, result.ignored) == ({"tie": 1}, {})
    assert found([{**row, **wins, "response_a": '["a"]'}, {**row, **wins}]).bad == {"bad_conversation": 1}


def test_arena_battle_of_two_texts() -> None:
    row = {"prompt": "q", "response_a": "a", "response_b": "b", "winner": "B"}
    assert found([row]).records == [pair("q", "b", "a")]


def test_step_dpo_sides_begin_with_the_steps_before_them() -> None:
    row = {"prompt": "q", "initial_reason_steps": "Step 1: a.\nStep 2: ", "chosen": "b.", "rejected": "c.",
           "full_chosen": "b. So d.", "full_rejected": "c. So e.", "answer": "d"}  # fmt: skip
    result = found([row, {**row, "initial_reason_steps": "Step 1: a."}, {**row, "initial_reason_steps": ""}])
    assert result.format == "step_dpo"
    assert result.records == [
        pair("q", "Step 1: a.\nStep 2: b.", "Step 1: a.\nStep 2: c."),
        pair("q", "Step 1: a.\nb.", "Step 1: a.\nc."),
        pair("q", "b.", "c."),
    ]
    assert not result.ignored


def test_report_says_which_columns_were_read() -> None:
    rows: list[dict[str, Any]] = [{"prompt": "q", "response": "a", "thumbs": "up", "id": 1}]
    assert detect(rows, SourceConfig(path="f"), "f").why.endswith("read from prompt, response, thumbs")
