"""Every record format: a realistic example and its expected records, written by hand."""

from __future__ import annotations

import json
from typing import Any

import pytest
from records import answer, demo, found, pair, prompt, thumb, turns

from alignment_core.config import SourceConfig
from alignment_core.data.sources.formats import detect
from alignment_core.errors import DataError
from alignment_core.records import Demonstration, LabelledResponse, PreferencePair

Q = [{"role": "user", "content": "q"}]
A, B = [{"role": "assistant", "content": "a"}], [{"role": "assistant", "content": "b"}]


def chat(*contents: str) -> list[dict[str, str]]:
    return [{"from": {"user": "human", "assistant": "gpt"}.get(turn["role"], turn["role"]), "value": turn["content"]}
            for turn in turns(*contents)]  # fmt: skip


# name: (format, rows, settings, records)
CASES: dict[str, tuple[str, list[Any], dict[str, Any], list[Any]]] = {
    "prompt and completion": ("demonstrations", [{"prompt": "q", "completion": "a"}], {}, [demo("q", "a")]),
    "messages": ("demonstrations", [{"messages": [*Q, *A]}], {}, [demo("q", "a")]),
    "messages that end with a question": (
        "demonstrations", [{"messages": [*Q, *A, *Q]}], {}, [demo("q", "a"), prompt("q", "a", "q")],
    ),
    "other common column names": (
        "demonstrations",
        [{"question": "q", "answer": "a"}, {"query": "r", "response": "b"}, {"prompt": "s", "output": "c"}],
        {}, [demo("q", "a"), demo("r", "b"), demo("s", "c")],
    ),
    "prompt, response, label": (
        "labelled", [{"prompt": "q", "response": "a", "label": 1}], {}, [thumb("q", "a", True)],
    ),
    "text": ("demonstrations", [{"text": "story"}], {}, [Demonstration(answer("story"))]),
    "prompts": ("prompts", [{"prompt": "q"}, {"prompt": Q}], {}, [prompt("q"), prompt("q")]),
    "pairs of texts": ("pairs", [{"prompt": "q", "chosen": "a", "rejected": "b"}], {}, [pair("q", "a", "b")]),
    "pairs of messages": ("pairs", [{"prompt": Q, "chosen": A, "rejected": B}], {}, [pair("q", "a", "b")]),
    "pairs with a system column": (
        "pairs", [{"system": "s", "prompt": "q", "chosen": "a", "rejected": "b"}], {},
        [pair(turns("system: s", "q"), "a", "b")],
    ),
    "texts with a common prefix": (
        "pairs", [{"chosen": "The sky is blue.", "rejected": "The sky is black."}], {},
        [pair("The sky is", "blue.", "black.")],
    ),
    "implicit prompt": ("pairs", [{"chosen": [*Q, *A], "rejected": [*Q, *B]}], {}, [pair("q", "a", "b")]),
    "implicit prompt of several turns": (
        "pairs", [{"chosen": [*Q, *A, *Q, *A], "rejected": [*Q, *A, *Q, *B]}], {},
        [pair(turns("q", "a", "q"), "a", "b")],
    ),
    "prompt, completion, label": (
        "labelled", [{"prompt": "q", "completion": "a", "label": True}, {"prompt": "q", "completion": "b", "label": 0}],
        {}, [thumb("q", "a", True), thumb("q", "b", False)],
    ),
    "messages and label": ("labelled", [{"messages": [*Q, *A], "label": "👎"}], {}, [thumb("q", "a", False)]),
    "rating": (
        "rated", [{"prompt": "q", "completion": "a", "rating": 4}, {"prompt": "q", "completion": "b", "rating": "2.5"}],
        {"threshold": 3}, [thumb("q", "a", True), thumb("q", "b", False)],
    ),
    "anthropic hh": (
        "anthropic_hh",
        [{"chosen": "\n\nHuman: q\n\nmore\n\nAssistant: a\n\nHuman: r\n\nAssistant: yes",
          "rejected": "\n\nHuman: q\n\nmore\n\nAssistant: a\n\nHuman: r\n\nAssistant: no\n\nHuman"}],
        {}, [pair(turns("q\n\nmore", "a", "r"), "yes", "no")],
    ),
    "anthropic hh with a separate prompt": (
        "anthropic_hh",
        [{"prompt": "\n\nHuman: q\n\nAssistant: a\n\nHuman: r\n\nAssistant:", "chosen": " yes", "rejected": " no"}],
        {}, [pair(turns("q", "a", "r"), "yes", "no")],
    ),
    "anthropic hh with two turns by one speaker": (
        "anthropic_hh",
        [{"chosen": "\n\nHuman: q\n\nHuman: r\n\nAssistant: a",
          "rejected": "\n\nHuman: q\n\nHuman: r\n\nAssistant: b"}],
        {}, [pair("q\n\nr", "a", "b")],
    ),
    "alpaca": (
        "alpaca",
        [{"instruction": "i", "input": "", "output": "o"},
         {"instruction": "i", "input": "n", "output": "o", "system": "s", "history": [["h", "k"]]}],
        {}, [demo("i", "o"), demo("system: s", "h", "k", "i\nn", "o")],
    ),
    "dolly": (
        "alpaca", [{"instruction": "i", "context": "n", "response": "o", "category": "x"}], {}, [demo("i\nn", "o")],
    ),
    "alpaca with a thumb": (
        "alpaca", [{"instruction": "i", "output": "o", "kto_tag": False}], {}, [thumb("i", "o", False)],
    ),
    "alpaca ranking": (
        "alpaca", [{"instruction": "i", "input": "n", "chosen": "a", "rejected": "b"}], {}, [pair("i\nn", "a", "b")],
    ),
    "self-instruct": (
        "self_instruct",
        [{"instruction": "i", "instances": [{"input": "", "output": "o"}, {"input": "n", "output": "p"}]}],
        {}, [demo("i", "o"), demo("i\nn", "p")],
    ),
    "sharegpt": (
        "sharegpt", [{"conversations": chat("system: s", "q", "a", "r", "b")}], {},
        [demo("system: s", "q", "a", "r", "b")],
    ),
    "sharegpt ranking": (
        "sharegpt",
        [{"conversations": chat("q"), "chosen": {"from": "gpt", "value": "a"},
          "rejected": {"from": "gpt", "value": "b"}}],
        {}, [pair("q", "a", "b")],
    ),
    "sharegpt feedback": (
        "sharegpt", [{"conversations": chat("q", "a"), "kto_tag": True}], {}, [thumb("q", "a", True)],
    ),
    "ultrafeedback": (
        "pairs",
        [{"prompt": "q", "chosen": [*Q, *A], "rejected": [*Q, *B], "messages": [*Q, *A],
          "score_chosen": 8.5, "score_rejected": 6}],
        {}, [pair("q", "a", "b", 2.5)],
    ),
    "shp": (
        "shp",
        [{"history": "q", "human_ref_A": "a", "human_ref_B": "b", "score_A": 4, "score_B": 2, "labels": 1},
         {"history": "r", "human_ref_A": "a", "human_ref_B": "b", "score_A": 1, "score_B": 9, "labels": 0}],
        {}, [pair("q", "a", "b"), pair("r", "b", "a")],
    ),
    "k-way by rank": (
        "k_way", [{"context": "q", "completions": [{"rank": 2, "completion": "b"}, {"rank": 1, "completion": "a"}]}],
        {}, [pair("q", "a", "b")],
    ),
    "k-way answers": (
        "k_way",
        [{"prompt": "q", "answers": [{"answer": text, "rank": rank} for rank, text in enumerate("abc")]}],
        {}, [pair("q", "a", "c"), pair("q", "a", "b"), pair("q", "b", "c")],
    ),
    "k-way by score, with a threshold": (
        "k_way", [{"prompt": "q", "responses": ["a", "b"], "scores": [1, 4]}], {"threshold": 3},
        [pair("q", "b", "a", 3.0), thumb("q", "a", False), thumb("q", "b", True)],
    ),
    "halos": (
        "halos",
        [{"prompt": Q, "output": "a", "label": 0, "type": "binary_feedback"},
         {"prompt": Q, "output_A": "a", "output_B": "b", "label": 0, "type": "pairwise_feedback"}],
        {}, [thumb("q", "a", False), pair("q", "b", "a")],
    ),
    "pandalm": (
        "pandalm",
        [{"instruction": "i", "input": "n", "response1": "a", "response2": "b",
          "annotator1": 2, "annotator2": 2, "annotator3": 0}],
        {}, [pair("i\nn", "b", "a")],
    ),
    "openai preference": (
        "openai_preference", [{"input": {"messages": Q}, "preferred_output": A, "non_preferred_output": B}], {},
        [pair("q", "a", "b")],
    ),
    "graded solutions": (
        "graded_solutions",
        [{"question": "q", "ground_truth": "t", "small": {"is_correct": False, "solution": "b"},
          "large": {"is_correct": True, "solution": "a"}}],
        {}, [thumb("q", "b", False), thumb("q", "a", True)],
    ),
    "rated turns": (
        "rated_turns",
        [{"session_id": "x", "conversation": [
            {"role": "user", "content": "q", "rating": None}, {"role": "assistant", "content": "a", "rating": 1},
            {"role": "user", "content": "r"}, {"role": "assistant", "content": "b", "rating": -1}]}],
        {}, [thumb("q", "a", True), thumb(turns("q", "a", "r"), "b", False)],
    ),
    "columns": (
        "columns", [{"question": "q", "good": " Yes", "bad": " No"}],
        {"columns": {"prompt": "question", "chosen": "good", "rejected": "bad"}}, [pair("q", " Yes", " No")],
    ),
    "columns by index": (
        "columns", [{"0": "fine", "1": "1"}, {"0": "bad", "1": "0"}], {"columns": {"completion": "0", "label": "1"}},
        [LabelledResponse((), answer("fine"), True), LabelledResponse((), answer("bad"), False)],
    ),
    "columns with text labels": (
        "columns", [{"p": "q", "c": "a", "l": "1_full"}, {"p": "q", "c": "b", "l": "2_refusal"}],
        {"columns": {"prompt": "p", "completion": "c", "label": "l"}, "desirable": ["1_full"]},
        [thumb("q", "a", True), thumb("q", "b", False)],
    ),
    "messages with content parts": (
        "pairs",
        [{"chosen_messages": [{"role": "user", "content": [{"type": "text", "value": "q"}], "loss_weight": 0.0},
                              {"role": "assistant", "content": [{"type": "text", "text": "a"}]}],
          "rejected_messages": [{"role": "user", "content": [{"type": "text", "value": "q"}]},
                                {"role": "assistant", "content": [{"type": "text", "value": "b"}]}]}],
        {}, [pair("q", "a", "b")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_format(name: str) -> None:
    format_name, rows, settings, records = CASES[name]
    result = found(rows, **settings)
    assert result.format == format_name
    assert result.records == records
    assert not result.bad
    assert not result.dropped


@pytest.mark.parametrize("name", CASES)
def test_every_judgment_has_the_rater_that_its_row_names(name: str) -> None:
    format_name, rows, settings, records = CASES[name]
    result = found([{**row, "annotator": "ann", "time": 60} for row in rows], **settings)
    judged = [isinstance(record, PreferencePair | LabelledResponse) for record in records]
    assert (result.format, result.records) == (format_name, records)
    assert result.voters == ["ann" if is_judged else None for is_judged in judged]
    assert not result.ignored


def test_format_can_be_set() -> None:
    """A row that looks like a demonstration is not read as one if the settings name another format."""
    assert found([{"prompt": "q"}], format="prompts").format == "prompts"
    assert found([{"prompt": "q", "completion": "a"}], format="prompts").bad == {"other_format": 1}


def test_sharegpt_function_calls_become_tool_calls() -> None:
    tools = [{"name": "add", "parameters": {}}]
    called = json.dumps({"name": "add", "arguments": {"a": 1}})
    turns_ = [{"from": "human", "value": "1+1"}, {"from": "function_call", "value": called},
              {"from": "observation", "value": "2"}, {"from": "gpt", "value": "Two."}]  # fmt: skip
    (record,) = found([{"conversations": turns_, "tools": json.dumps(tools)}]).records
    assert isinstance(record, Demonstration)
    asked, call, result, reply = record.messages
    assert asked == {"role": "user", "content": "1+1", "tools": [{"type": "function", "function": tools[0]}]}
    assert call["tool_calls"] == [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}]
    assert (result["role"], result["content"]) == ("tool", "2")
    assert reply == {"role": "assistant", "content": "Two."}


def test_openai_tools_stay_with_the_prompt() -> None:
    tools = [{"type": "function", "function": {"name": "add"}}]
    row = {"input": {"messages": Q, "tools": tools}, "preferred_output": A, "non_preferred_output": B}
    (record,) = found([row]).records
    assert isinstance(record, PreferencePair)
    assert record.prompt[0]["tools"] == tools


def test_shp_keeps_clear_votes_and_at_most_five_pairs_per_post() -> None:
    clear = {"history": "q", "human_ref_A": "a", "human_ref_B": "b", "score_A": 8, "score_B": 4, "labels": 1}
    close = {**clear, "score_A": 7}
    many = [{**clear, "human_ref_A": f"a{index}"} for index in range(7)]
    assert found([clear, close]).dropped == {"below_score_ratio": 1}
    assert found([clear, close], threshold=1.5).dropped == {}
    assert (len(found(many).records), found(many).dropped) == (5, {"more_than_max_pairs": 2})
    assert len(found(many, max_pairs=2).records) == 2


def test_single_pair_of_a_ranking_is_best_against_worst() -> None:
    result = found([{"prompt": "q", "responses": ["a", "b", "c"], "ranks": [2, 1, 3]}], max_pairs=1)
    assert (result.records, result.dropped) == ([pair("q", "b", "c")], {"more_than_max_pairs": 2})


def test_ties_are_dropped_and_counted() -> None:
    panda = {"instruction": "i", "response1": "a", "response2": "b", "annotator1": 1, "annotator2": 2, "annotator3": 0}
    result = found([panda, {**panda, "annotator3": 1}])
    assert (result.records, result.dropped) == ([pair("i", "a", "b")], {"tie": 1})
    ranked = {"prompt": "q", "responses": ["a", "b", "c"], "scores": [1, 1, 2]}
    result = found([ranked])
    assert (result.dropped, len(result.records)) == ({"tie": 1}, 2)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(True, True), (1, True), (1.0, True), ("true", True), ("1", True), ("1.0", True), ("👍", True), ("Yes", True),
     ("thumbs_up", True), (" up ", True), (False, False), (0, False), (-1, False), ("0", False), ("👎", False),
     ("dislike", False), ("-1", False), ("FALSE", False)],
)  # fmt: skip
def test_label_spellings(value: Any, expected: bool) -> None:
    assert found([{"prompt": "q", "completion": "a", "label": value}]).records == [thumb("q", "a", expected)]


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "null prompt": ({"prompt": None, "completion": "a"}, "empty_prompt"),
    "blank prompt": ({"prompt": " \n", "completion": "a"}, "empty_prompt"),
    "empty list of messages": ({"messages": []}, "empty_prompt"),
    "null completion": ({"prompt": "q", "completion": None}, "empty_completion"),
    "blank completion": ({"prompt": "q", "completion": "  "}, "empty_completion"),
    "NaN from a spreadsheet": ({"prompt": "q", "completion": float("nan")}, "empty_completion"),
    "equal sides": ({"prompt": "q", "chosen": "a", "rejected": "a"}, "identical_completions"),
    "equal conversations": ({"chosen": [*Q, *A], "rejected": [*Q, *A]}, "identical_completions"),
    "different prompts": (
        {"chosen": [*Q, *A], "rejected": [{"role": "user", "content": "other"}, *B]}, "different_prompts",
    ),
    "unknown label": ({"prompt": "q", "completion": "a", "label": "perhaps"}, "bad_label"),
    "label that is a list": ({"prompt": "q", "completion": "a", "label": [1]}, "bad_label"),
    "label out of range": ({"prompt": "q", "completion": "a", "label": 7}, "bad_label"),
    "rating without a threshold": ({"prompt": "q", "completion": "a", "rating": 7}, "no_threshold"),
    "rating that is not a number": ({"prompt": "q", "completion": "a", "rating": "high"}, "bad_number"),
    "infinite rating": ({"prompt": "q", "completion": "a", "rating": float("inf")}, "bad_number"),
    "unknown role": ({"messages": [{"role": "wizard", "content": "q"}, *A]}, "unknown_role"),
    "no assistant": ({"messages": Q}, "no_assistant_turn"),
    "content is an object": ({"messages": [{"role": "user", "content": {"a": 1}}, *A]}, "bad_conversation"),
    "an image": ({"messages": [{"role": "user", "content": [{"type": "image", "url": "u"}]}, *A]}, "not_text"),
    "NUL": ({"prompt": "q\x00", "completion": "a"}, "nul_character"),
    "half a surrogate pair": ({"prompt": "\ud800", "completion": "a"}, "undecodable_text"),
    "vote out of range": (
        {"instruction": "i", "response1": "a", "response2": "b", "annotator1": 3}, "rating_out_of_range",
    ),
    "turn rated 5": (
        {"conversation": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "rating": 5}]},
        "rating_out_of_range",
    ),
    "transcript that ends with the human": (
        {"chosen": "\n\nHuman: q\n\nAssistant: a\n\nHuman: r", "rejected": "\n\nHuman: q\n\nAssistant: b"},
        "no_assistant_turn",
    ),
    "transcript with an empty answer": (
        {"chosen": "\n\nHuman: q\n\nAssistant:", "rejected": "\n\nHuman: q\n\nAssistant: b"}, "empty_completion",
    ),
    "fewer scores than responses": ({"prompt": "q", "responses": ["a", "b"], "scores": [1]}, "bad_ranking"),
    "one response ranked": ({"prompt": "q", "answers": [{"answer": "a", "rank": 0}]}, "one_completion"),
    "tools that are not JSON": ({"conversations": chat("q", "a"), "tools": "{"}, "bad_tools"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_has_a_named_reason(name: str) -> None:
    row, reason = BAD[name]
    result = found([row])
    assert result.bad == {reason: 1}
    assert result.records == []
    assert all(result.details)


def test_rows_of_another_format_and_non_objects_are_quarantined() -> None:
    rows: list[Any] = [{"prompt": "q", "chosen": "a", "rejected": "b"}] * 3
    result = found([*rows, {"instruction": "i", "output": "o"}, "text", 5, None, [1]])
    assert result.format == "pairs"
    assert result.bad == {"other_format": 1, "not_an_object": 4}
    assert "instruction, output" in result.details[0]


def test_a_missing_or_renamed_column_is_named() -> None:
    rows = [{"p": "q", "c": "a"}, {"p": "q", "completion": "a"}]
    result = found(rows, columns={"prompt": "p", "completion": "c"})
    assert result.records == [demo("q", "a")]
    assert result.bad == {"missing_column": 1}
    assert "no c" in result.details[0]


def test_numbers_and_booleans_in_text_columns_become_text() -> None:
    assert found([{"prompt": 7, "completion": True}]).records == [demo("7", "True")]


def test_unanswered_labels_are_dropped() -> None:
    rows = [{"prompt": "q", "completion": "a", "label": None}, {"prompt": "q", "completion": "a", "label": ""}]
    assert found(rows).dropped == {"no_label": 2}


@pytest.mark.parametrize(
    "row",
    [{"prompt": "q", "reply": "a"}, {"prompt": "q", "my_rating": 3}, {"frage": "q", "completion": "a", "label": True},
     {"prompt": "q", "answer1": "a", "answer2": "b", "comparison": "left"}],
)  # fmt: skip
def test_rows_with_unknown_columns_are_not_guessed(row: dict[str, Any]) -> None:
    """A row whose prompt or response is in an unknown column is not read as a bare response or prompt."""
    with pytest.raises(DataError, match="no known format matches these rows"):
        detect([row], SourceConfig(path="x"), "x")


@pytest.mark.parametrize(
    ("row", "advice"),
    [
        (
            {"id": 3, "user_input": "q", "bot_reply": "a", "thumbs": "up", "created_at": "2026-01-01"},
            "If the prompt is `user_input`, the completion is `bot_reply`, the label is `thumbs`: `--column "
            "prompt=user_input --column completion=bot_reply --column label=thumbs`, or in a config file `columns: "
            "{prompt: user_input, completion: bot_reply, label: thumbs}` of the source",
        ),
        (
            {"the question": "q", "bot answer": "a", "my_rating": 3},
            "If the prompt is `the question`, the completion is `bot answer`, the rating is `my_rating`: `--column "
            "'prompt=the question' --column 'completion=bot answer' --column rating=my_rating`",
        ),
        ({"frage": "q", "antwort": "a"}, "Say which are the prompt and the completion"),
        ({"prompt": "q", "answer1": "a", "answer2": "b", "comparison": "left"}, "Say which are the prompt"),
    ],
)
def test_unknown_columns_come_with_a_mapping_to_copy(row: dict[str, Any], advice: str) -> None:
    with pytest.raises(DataError) as error:
        detect([row], SourceConfig(path="x"), "x")
    assert advice in str(error.value)


def test_labels_in_a_mixed_file_are_never_read_as_demonstrations() -> None:
    labelled = [{"prompt": f"q{i}", "completion": "a", "label": False} for i in range(3)]
    result = found([*labelled, {"prompt": "q", "completion": "a"}])
    assert result.format == "labelled"
    assert result.bad == {"other_format": 1}
    mostly = found([labelled[0], *({"prompt": f"q{i}", "completion": "a"} for i in range(3))])
    assert mostly.format == "demonstrations"
    assert mostly.bad == {"other_format": 1}


def test_responses_that_differ_only_in_whitespace_are_identical() -> None:
    assert found([{"prompt": "q", "chosen": "a", "rejected": " a\n"}]).bad == {"identical_completions": 1}
