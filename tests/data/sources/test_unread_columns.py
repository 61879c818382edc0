"""No column of a row is left out silently: it is read, harmless, counted, or the row is refused."""

from __future__ import annotations

from typing import Any

import pytest
from records import demo, found, pair, thumb, turns

from alignment_core.config import SourceConfig
from alignment_core.data.sources.formats import UNREAD, detect
from alignment_core.data.sources.formats.standard import Demonstrations
from alignment_core.data.sources.readers import RawRow
from alignment_core.errors import DataError
from alignment_core.records.columns import TrackedRow
from alignment_core.records.format import Quarantined, Unread

EXCHANGE = {"prompt": "q", "response": "a"}
CHAT = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
OTHER = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "b"}]


@pytest.mark.parametrize(
    ("column", "up", "down"),
    [("thumbs", "up", "down"), ("feedback", "positive", "negative"), ("is_helpful", True, False), ("vote", 1, -1),
     ("reaction", "👍", "👎"), ("liked", "yes", "no")],
)  # fmt: skip
def test_clear_judgments_are_labels(column: str, up: Any, down: Any) -> None:
    for row in (EXCHANGE, {"messages": CHAT}, {"instruction": "q", "output": "a"}, {"conversations": CHAT}):
        result = found([{**row, column: up}, {**row, column: down}, {**row, column: None}])
        assert result.records == [thumb("q", "a", True), thumb("q", "a", False)]
        assert result.dropped == {"no_label": 1}


def test_zero_may_be_a_dislike_or_no_vote() -> None:
    rows = [{**EXCHANGE, "vote": 1}, {**EXCHANGE, "vote": 0}]
    result = found(rows)
    assert (result.records, result.bad) == ([thumb("q", "a", True)], {"bad_label": 1})
    assert "label: vote" in result.details[0]
    mapped = found(rows, columns={"prompt": "prompt", "completion": "response", "label": "vote"})
    assert mapped.records == [thumb("q", "a", True), thumb("q", "a", False)]


@pytest.mark.parametrize("column", ["score", "reward", "stars"])
def test_numeric_judgments_are_ratings(column: str) -> None:
    result = found([{**EXCHANGE, column: 5}, {"messages": CHAT, column: 2}], threshold=3)
    assert result.records == [thumb("q", "a", True), thumb("q", "a", False)]
    result = found([{**EXCHANGE, column: 5}])
    assert result.bad == {"no_threshold": 1}
    assert column in result.details[0]


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ({**EXCHANGE, "helpfulness": 4, "correctness": 1}, ["`helpfulness`", "`correctness`"]),
        ({**EXCHANGE, "feedback": "Please be shorter."}, ["`feedback`"]),
        ({**EXCHANGE, "mySatisfaction": 3}, ["`mySatisfaction`"]),
        ({**EXCHANGE, "opinion": "👎"}, ["`opinion`"]),
        ({**EXCHANGE, "chosen": False}, ["`chosen` (maybe a judgment)"]),
        ({**EXCHANGE, "context": "A long article."}, ["`context`", "prompt (or system): context"]),
        ({**EXCHANGE, "response_2": "b"}, ["`response_2`", "rejected (or chosen): response_2"]),
        ({**EXCHANGE, "my_tools": [{"name": "f"}]}, ["`my_tools`"]),
        ({**EXCHANGE, "loss_mask": [0, 1]}, ["`loss_mask`"]),
        ({**EXCHANGE, "rationale": "Because."}, ["`rationale`"]),
        ({"messages": CHAT, "rating_of_users": 1}, ["`rating_of_users`"]),
        ({"messages": [CHAT[0], {**CHAT[1], "rating": -1}]}, ["`messages[].rating`"]),
        ({**EXCHANGE, "metadata": {"rating": -1}}, ["`metadata.rating`"]),
        ({"prompt": "q", "context": "A long article."}, ["`context`"]),
        ({"text": "a", "label": "sports"}, ["`label`"]),
        ({"context": "q", "chosen": "The answer is a.", "rejected": "The answer is b."}, ["`context`"]),
        ({"title": "q", "chosen": "The answer is a.", "rejected": "The answer is b."}, ["`title`"]),
        ({"frage": "q", "chosen": "The answer is a.", "rejected": "The answer is b."}, ["`frage`"]),
    ],
)  # fmt: skip
def test_file_is_refused_for_a_column_that_may_change_its_rows(row: dict[str, Any], named: list[str]) -> None:
    with pytest.raises(DataError, match=UNREAD) as error:
        found([row])
    for name in named:
        assert name in str(error.value)


def test_later_row_is_refused_like_a_file() -> None:
    row = RawRow({**EXCHANGE, "critique": "Wrong."}, "f:101")
    (outcome,) = Demonstrations().outcomes(row, SourceConfig(path="f"))
    assert isinstance(outcome, Quarantined)
    assert (outcome.reason, "`critique`" in outcome.detail, outcome.raw) == ("unread_column", True, row.value)


def test_other_columns_are_counted_and_harmless_ones_are_not() -> None:
    row = {**EXCHANGE, "id": 1, "createdAt": "x", "model": "m", "source": "s", "language": "en", "category": "c",
           "shoe size": 43, "empty": None, "nothing": ""}  # fmt: skip
    result = found([row, EXCHANGE])
    assert result.records == [demo("q", "a"), demo("q", "a")]
    assert result.ignored == {"shoe size": 1}


def test_keys_of_turns_are_counted() -> None:
    chat = [{**CHAT[0], "mood": "sad", "timestamp": 1}, {**CHAT[1], "mood": None}]
    assert found([{"messages": chat}]).ignored == {"messages[].mood": 1}


RANKED = [{"text": "a", "rank": 1, "mood": "sad", "id": 7}, {"text": "b", "rank": 2, "mood": ""}]
CHOICE = [{"result": [{"type": "pairwise", "value": {"selected": "left"}}]}]
ARGILLA = {
    "prompt": "q", "response_1": "a", "response_2": "b",
    "best.responses": ["response_1"], "best.responses.status": ["submitted"], "best.responses.users": ["ann"],
}  # fmt: skip
GRADED = {"question": "q", "6B": {"is_correct": True, "solution": "a", "mood": "sad"}}


@pytest.mark.parametrize(
    ("row", "ignored"),
    [
        ({"prompt": "q", "answers": RANKED}, {"answers[].mood": 1}),
        ({"data": {"prompt": "q", "left": "a", "right": "b", "mood": "sad"}, "annotations": CHOICE}, {"data.mood": 1}),
        ({**ARGILLA, "mood": "sad", "best-suggestion": "response_2", "status": "completed"}, {"mood": 1}),
        (GRADED, {"6B.mood": 1}),
    ],
)  # fmt: skip
def test_keys_of_objects_are_counted(row: dict[str, Any], ignored: dict[str, int]) -> None:
    result = found([row])
    assert (len(result.records), result.ignored) == (1, ignored)


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ({"prompt": "q", "answers": [{**item, "context": "An article."} for item in RANKED]}, "answers[].context"),
        ({"data": {"prompt": "q", "left": "a", "right": "b", "system": "S"}, "annotations": CHOICE}, "data.system"),
        ({**ARGILLA, "context": "An article."}, "context"),
        ({**GRADED, "7B": {"is_correct": True, "solution": "a", "reasoning": "Well."}}, "7B.reasoning"),
    ],
)  # fmt: skip
def test_keys_of_objects_may_change_the_row(row: dict[str, Any], named: str) -> None:
    with pytest.raises(DataError, match=UNREAD) as error:
        found([row])
    assert f"`{named}`" in str(error.value)


def test_columns_that_repeat_what_was_read_are_harmless() -> None:
    rows = [{"messages": CHAT, "prompt": "q"}, {"messages": CHAT, "text": "### q ### a", "full_prompt": "Human: q\na"}]
    result = found(rows)
    assert (len(result.records), result.ignored) == (2, {})
    assert found([{"messages": CHAT, "text": "### q"}]).ignored == {"text": 1}


def test_second_judgment_is_counted() -> None:
    result = found([{**EXCHANGE, "label": True, "quality": 3}])
    assert (result.records, result.ignored) == ([thumb("q", "a", True)], {"quality": 1})


def test_user_can_leave_a_column_out() -> None:
    row = {**EXCHANGE, "score": 1, "helpfulness": 2}
    mapped = found([row], columns={"prompt": "prompt", "completion": "response"})
    assert (mapped.records, mapped.ignored) == ([demo("q", "a")], {"helpfulness": 1, "score": 1})
    row = {"messages": CHAT, "helpfulness": 2}
    assert found([row], format="demonstrations").ignored == {"helpfulness": 1}


def test_column_that_is_mapped_but_not_used_is_counted() -> None:
    row = {"q": "q", "a": "a", "s": "Be brief.", "m": CHAT}
    result = found([row], columns={"messages": "m", "prompt": "q", "completion": "a", "text": "s"})
    assert result.ignored == {"q": 1, "a": 1, "s": 1}


@pytest.mark.parametrize("writer", ["user", "author", "from"])
def test_messages_of_people_are_not_demonstrations(writer: str) -> None:
    with pytest.raises(DataError, match=f"columns .*{writer}"):
        detect([{"type": "message", writer: "U1", "text": "hello", "ts": "1.0"}], SourceConfig(path="f"), "f")


@pytest.mark.parametrize("name", ["system", "system_prompt"])
def test_system_prompt_is_read_everywhere(name: str) -> None:
    system, s = {name: "Be kind."}, "system: Be kind."
    rows: dict[str, list[Any]] = {
        "exchange": [{**EXCHANGE, **system}, demo(s, "q", "a")],
        "messages": [{"messages": CHAT, **system}, demo(s, "q", "a")],
        "labelled messages": [{"messages": CHAT, "label": 1, **system}, thumb(turns(s, "q"), "a", True)],
        "sharegpt": [{"conversations": CHAT, **system}, demo(s, "q", "a")],
        "whole sides": [{"prompt": "q", "chosen": CHAT, "rejected": OTHER, **system}, pair(turns(s, "q"), "a", "b")],
        "input": [{"input": "q", "chosen": "a", "rejected": "b", **system}, pair(turns(s, "q"), "a", "b")],
        "k-way": [{"prompt": "q", "responses": ["a", "b"], "ranks": [1, 2], **system}, pair(turns(s, "q"), "a", "b")],
        "alpaca": [{"instruction": "q", "output": "a", **system}, demo(s, "q", "a")],
    }
    for row, record in rows.values():
        result = found([row])
        assert (result.records, result.ignored) == ([record], {})


def test_system_prompt_that_the_conversation_repeats_is_read_once() -> None:
    chat = [{"role": "system", "content": "Be kind. "}, *CHAT]
    assert found([{"messages": chat, "system": "Be kind."}]).records == [demo("system: Be kind. ", "q", "a")]
    assert found([{"messages": chat, "system": "Be rude."}]).bad == {"two_system_prompts": 1}


def test_history_of_ms_swift_stands_before_the_query() -> None:
    row = {"query": "r", "response": "b", "history": [["q", "a"]], "system": "s"}
    assert found([row]).records == [demo("system: s", "q", "a", "r", "b")]
    assert found([{**row, "rejected_response": "c"}]).records == [pair(turns("system: s", "q", "a", "r"), "b", "c")]
    assert found([{**row, "history": CHAT}]).records == [demo("system: s", "q", "a", "r", "b")]


def test_rejected_response_beside_messages_makes_a_pair() -> None:
    assert found([{"messages": CHAT, "rejected_response": "b"}]).records == [pair("q", "a", "b")]
    assert found([{"messages": CHAT, "rejected_messages": OTHER}]).records == [pair("q", "a", "b")]


def test_ratings_of_both_sides_are_the_margin() -> None:
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "chosen_rating": 5.0, "rejected_rating": 1.5}
    assert found([row]).records == [pair("q", "a", "b", 3.5)]


def test_transcript_as_prompt() -> None:
    asked = "\n\nHuman: q\n\nAssistant: a\n\nHuman: r\n\nAssistant: "
    answers = [{"answer": "b", "rank": 1.0}, {"answer": "c", "rank": 2.0}]
    assert found([{"prompt": asked, "answers": answers}]).records == [pair(turns("q", "a", "r"), "b", "c")]
    assert found([{"prompt": asked, "completion": "b"}]).records == [demo("q", "a", "r", "b")]


def test_transcripts_with_windows_line_ends_and_a_system_prompt() -> None:
    text = "{}\r\n\r\nHuman: q\r\nmore\r\n\r\nAssistant: {}"
    result = found([{"chosen": text.format("", "a"), "rejected": text.format("", "b")}])
    assert (result.format, result.records) == ("anthropic_hh", [pair("q\nmore", "a", "b")])
    for before in ("Be kind.", "System: Be kind."):
        result = found([{"chosen": text.format(before, "a"), "rejected": text.format(before, "b")}])
        assert result.records == [pair(turns("system: Be kind.", "q\nmore"), "a", "b")]


@pytest.mark.parametrize("value", [float("nan"), "NaN", None, ""])
def test_missing_labels_and_ratings(value: Any) -> None:
    assert found([{**EXCHANGE, "label": value}]).dropped == {"no_label": 1}
    assert found([{**EXCHANGE, "rating": value}], threshold=1).dropped == {"no_label": 1}


def test_tracked_row_reads_what_is_copied_but_not_what_is_asked_for() -> None:
    row = TrackedRow({"a": 1, "b": 2})
    assert "a" in row
    assert set(row) == {"a", "b"}
    assert not row.read
    assert (row["a"], row.get("c"), row.read) == (1, None, {"a", "c"})
    for copy in (lambda row: dict(row), lambda row: {**row}, lambda row: list(row.items()), lambda row: row | {}):
        copy(row := TrackedRow({"a": 1, "b": 2}))
        assert row.read == {"a", "b"}


def test_unread_is_an_outcome() -> None:
    outcomes = Demonstrations().outcomes(RawRow({**EXCHANGE, "x": 1}, "f:1"), SourceConfig(path="f"))
    assert outcomes[0] == Unread("f:1", {"x": 1})
