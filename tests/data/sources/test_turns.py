"""A turn is read in every exporter's notation: its thought, its calls, its result, its weight."""

from __future__ import annotations

import json
from typing import Any

import pytest
from records import found

from alignment_core.data.sources.parsing import shapes
from alignment_core.records import Demonstration, LabelledResponse, PreferencePair
from alignment_core.records.format import BadRow

ASKED = {"role": "user", "content": "Warm?"}
THOUGHT = {"role": "assistant", "content": "Yes.", "reasoning_content": "It is May."}
CALL = {"type": "function", "function": {"name": "look", "arguments": {"city": "Rome"}}}
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]


def turn(**item: Any) -> Any:
    (message,) = shapes.conversation([{"role": "assistant", **item}], "messages")
    return message


@pytest.mark.parametrize(
    "item",
    [
        {"content": "Yes.", "reasoning_content": "It is May."},
        {"content": "Yes.", "reasoning": "It is May."},
        {"content": "Yes.", "thinking": "It is May.", "reasoning_content": None},
        {"content": "Yes.", "thought": "It is May.", "reasoning": "It is May."},
        {"content": "<think>\nIt is May.\n</think>\n\nYes."},
        {"content": "It is May.\n</think>\n\nYes."},
        {"content": "<think></think>\n\nYes.", "reasoning": "It is May."},
        {"content": [{"type": "thinking", "thinking": "It is May."}, {"type": "text", "text": "Yes."}]},
        {"content": [{"type": "reasoning", "text": "It is May."}, "Yes."]},
        {"content": '<details type="reasoning" done="true" duration="2">\n<summary>Thought for 2 seconds</summary>\n'
                    "> It is May.\n</details>\nYes."},
        {"content": '<details type="reasoning"><summary>Thought</summary>\n&gt; It is May.\n</details>\n\nYes.'},
    ],
)  # fmt: skip
def test_thoughts_are_read_in_every_notation(item: dict[str, Any]) -> None:
    assert turn(**item) == THOUGHT


def test_thought_in_a_plain_completion_is_read() -> None:
    assert shapes.completion("<think>It is May.</think>Yes.", "completion") == (THOUGHT,)


@pytest.mark.parametrize(
    "content", ["Use <think> and </think> for thoughts.", "<details><summary>More</summary>x</details>", "a < b"]
)
def test_answers_that_only_speak_of_thoughts_keep_their_text(content: str) -> None:
    assert turn(content=content) == {"role": "assistant", "content": content}


def test_a_users_thought_is_text() -> None:
    message = {"role": "user", "content": "<think>a</think>b"}
    assert shapes.conversation([message], "messages") == (message,)


@pytest.mark.parametrize(
    "item",
    [
        {
            "content": None,
            "tool_calls": [{"type": "function", "function": {"name": "look", "arguments": '{"city": "Rome"}'}}],
        },
        {"tool_calls": [CALL]},
        {"content": "", "tool_calls": [{"function": {"name": "look", "arguments": {"city": "Rome", "body": None}}}]},
        {"content": "", "tool_calls": [{"name": "look", "arguments": {"city": "Rome"}}]},
        {"content": None, "tool_calls": json.dumps([CALL])},
        {"content": None, "function_call": {"name": "look", "arguments": '{"city": "Rome"}'}},
        {"content": [{"type": "tool_use", "name": "look", "input": {"city": "Rome"}}]},
    ],
)
def test_calls_are_read_in_every_notation(item: dict[str, Any]) -> None:
    assert turn(**item) == {"role": "assistant", "content": "", "tool_calls": [CALL]}


def test_null_that_a_model_wrote_is_kept() -> None:
    called = turn(content=None, function_call={"name": "look", "arguments": '{"city": null}'})
    assert called["tool_calls"][0]["function"]["arguments"] == {"city": None}


@pytest.mark.parametrize(
    ("content", "text"),
    [("18", "18"), ("", ""), (None, ""), ({"temp": 18}, '{"temp": 18}'), ([1, 2], "[1, 2]"), (7, "7"),
     ([{"type": "text", "text": "18"}], "18"), ([{"city": "Rome"}], '[{"city": "Rome"}]')],
)  # fmt: skip
def test_results_of_tools_are_text(content: Any, text: str) -> None:
    (message,) = shapes.conversation([{"role": "tool", "content": content, "tool_call_id": "c"}], "messages")
    assert message == {"role": "tool", "content": text, "tool_call_id": "c"}


def test_result_in_a_users_turn_is_a_tools_turn() -> None:
    part = {"type": "tool_result", "tool_use_id": "c", "content": [{"type": "text", "text": "18"}]}
    (message,) = shapes.conversation([{"role": "user", "content": [part]}], "messages")
    assert message == {"role": "tool", "content": "18", "tool_call_id": "c"}


@pytest.mark.parametrize(
    ("item", "reason", "named"),
    [
        ({"content": "<think>It is"}, "open_thought", "<think>"),
        ({"content": [{"type": "image_url", "image_url": "x"}]}, "not_text", "image_url"),
        ({"content": "a", "reasoning": {"text": "b"}}, "not_text", "reasoning"),
        ({"tool_calls": [{"function": {"name": "look", "arguments": '{"city'}}]}, "bad_tool_call", "arguments"),
        ({"tool_calls": [{"function": {"name": "look", "arguments": "[1]"}}]}, "bad_tool_call", "list"),
        ({"tool_calls": [{"function": {}}]}, "bad_tool_call", "tool_calls[0]"),
        ({"content": "a", "weight": 0.5}, "bad_weight", "0.5"),
    ],
)
def test_what_cannot_be_used_is_named(item: dict[str, Any], reason: str, named: str) -> None:
    with pytest.raises(BadRow) as error:
        turn(**item)
    assert error.value.reason == reason
    assert named in error.value.detail


@pytest.mark.parametrize("mask", [{"weight": 0}, {"train": False}, {"loss": 0.0}, {"trainable": "false"}])
def test_masked_turns_are_context(mask: dict[str, Any]) -> None:
    refusal, answer = {"role": "assistant", "content": "No."}, {"role": "assistant", "content": "Yes."}
    (record,) = found([{"messages": [ASKED, {**refusal, **mask}, ASKED, {**answer, "weight": 1}]}]).records
    assert record == Demonstration((ASKED, {**refusal, "weight": 0}, ASKED, answer))
    (record,) = found([{"messages": [ASKED, answer, ASKED, {**refusal, **mask}]}]).records
    assert record == Demonstration((ASKED, answer)), "what follows the last answer to learn is left out"
    assert found([{"messages": [ASKED, {**refusal, **mask}]}]).bad == {"nothing_to_learn": 1}


def test_prompt_that_ends_with_an_answer_begins_the_completion() -> None:
    begun = {"role": "assistant", "content": "It is"}
    (record,) = found([{"prompt": [ASKED, begun], "completion": [{"role": "assistant", "content": " warm."}]}]).records
    assert record.messages[1] == {**begun, "prefix": True}  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "tools", [TOOLS, json.dumps(TOOLS), [TOOLS[0]["function"]], [json.dumps(TOOLS[0])],
              [{"type": "function", "function": {**TOOLS[0]["function"], "strict": None}}],
              [{"name": "look", "input_schema": {"type": "object"}}]]
)  # fmt: skip
def test_tools_beside_a_record_are_on_its_first_turn(tools: Any) -> None:
    answer = {"role": "assistant", "content": "Yes."}
    offered = {**ASKED, "tools": TOOLS}
    chat = {"messages": [ASKED, answer], "tools": tools}
    assert found([chat]).records == [Demonstration((offered, answer))]
    assert found([{**chat, "label": True}]).records == [LabelledResponse((offered,), (answer,), True)]
    other = {"role": "assistant", "content": "No."}
    pair = PreferencePair((offered,), (answer,), (other,))
    assert found([{"prompt": [ASKED], "chosen": [answer], "rejected": [other], "tools": tools}]).records == [pair]
    row = {
        "input": {"messages": [ASKED], "tools": tools},
        "preferred_output": [answer],
        "non_preferred_output": [other],
    }
    assert found([row]).records == [pair]
    logged = {"id": "t", "input": {"messages": [ASKED], "tools": tools}, "output": answer}
    score = {"traceId": "t", "name": "user-feedback", "value": 1}
    assert found([logged, score]).records == [LabelledResponse((offered,), (answer,), True)]


def test_names_are_no_tools() -> None:
    row = {"messages": [ASKED, {"role": "assistant", "content": "Yes."}], "tools": ["look"]}
    assert found([row], format="demonstrations").bad == {"bad_tools": 1}


def test_tools_are_mapped_like_other_columns() -> None:
    row = {"chat": [ASKED, {"role": "assistant", "content": "Yes."}], "apis": TOOLS, "tools": [{"name": "other"}]}
    (record,) = found([row], columns={"messages": "chat", "tools": "apis"}).records
    assert isinstance(record, Demonstration)
    assert record.messages[0] == {**ASKED, "tools": TOOLS}
    (record,) = found([row], columns={"messages": "chat"}).records
    assert isinstance(record, Demonstration)
    assert record.messages[0] == ASKED
