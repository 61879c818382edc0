"""For any rows, each format yields records or named reasons, and never raises or skips a row silently."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment_core.config import SourceConfig
from alignment_core.data.ingestion.record_parts import canonical, split_record
from alignment_core.data.sources.formats import FORMATS
from alignment_core.data.sources.readers import RawRow
from alignment_core.records.format import Dropped, Quarantined, Reading, Unread

WORDS = (
    "prompt", "completion", "chosen", "rejected", "label", "rating", "messages", "text", "instruction", "input",
    "output", "instances", "history", "system", "conversations", "conversation", "from", "value", "role", "content",
    "tools", "kto_tag", "human_ref_A", "human_ref_B", "labels", "score_A", "score_B", "context", "completions",
    "answers", "rank", "answer", "responses", "ranks", "scores", "type", "binary_feedback", "pairwise_feedback",
    "output_A", "output_B", "response1", "response2", "annotator1", "preferred_output", "non_preferred_output",
    "data", "meta", "snapshot", "message_id", "chat", "parentId", "childrenIds", "arena", "index", "flag",
    "timestamp", "username", "question", "is_correct", "solution", "annotations", "result", "pairwise", "selected",
    "ranker", "q.responses", "q.responses.status", "user_id", "status", "parent_id", "message_tree_id", "replies",
    "emojis", "+1", "trace_id", "id", "name", "key", "score", "inputs", "outputs", "request", "response",
    "assessments", "run_id", "info", "user", "assistant", "human", "gpt", "function_call", "submitted",
    "mapping", "current_node", "parent", "message", "author", "parts", "content_type", "recipient", "all",
    "\n\nHuman: a\n\nAssistant: b", "1", "[1]", "👍",
)  # fmt: skip
"""Keys and values that the formats look for, so that random rows resemble real ones."""

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 3), st.floats(), st.sampled_from(WORDS), st.text(max_size=4)
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(WORDS) | st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=12,
)
messages = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system", "tool", "x"]), "content": scalars}),
    max_size=4,
)
SHAPES: dict[str, tuple[str, ...]] = {
    "open_webui": ("data", "meta", "snapshot", "user_id"),
    "chatgpt": ("mapping", "current_node"),
    "openai_preference": ("input", "preferred_output", "non_preferred_output"),
    "label_studio": ("data", "annotations"),
    "openassistant_trees": ("prompt",),
    "openassistant_messages": ("message_id", "parent_id", "text", "role", "rank", "emojis", "message_tree_id"),
    "halos": ("type", "prompt", "output", "label", "output_A", "output_B"),
    "pandalm": ("instruction", "response1", "response2", "annotator1", "annotator2"),
    "shp": ("history", "human_ref_A", "human_ref_B", "labels", "score_A", "score_B"),
    "helpsteer_preference": ("context", "response1", "response2", "overall_preference"),
    "safe_rlhf": ("prompt", "response_0", "response_1", "better_response_id"),
    "arena": ("prompt", "conversation_a", "conversation_b", "response_a", "response_b", "winner"),
    "step_dpo": ("prompt", "initial_reason_steps", "chosen", "rejected"),
    "rated_turns": ("conversation",),
    "argilla": ("prompt", "response", "q.responses", "q.responses.status"),
    "gradio": ("conversation", "index", "value", "flag", "timestamp"),
    "traces": ("id", "trace_id", "input", "output", "scores", "name", "value", "key"),
    "graded_solutions": ("question", "a", "b"),
    "sharegpt": ("conversations", "chosen", "rejected", "tools", "label"),
    "self_instruct": ("instruction", "instances"),
    "alpaca": ("instruction", "input", "output", "history", "system"),
    "k_way": ("prompt", "completions", "responses", "scores", "ranks"),
    "anthropic_hh": ("chosen", "rejected"),
    "pairs": ("prompt", "chosen", "rejected", "margin", "score_chosen", "score_rejected"),
    "labelled": ("prompt", "completion", "label", "messages"),
    "rated": ("prompt", "completion", "rating"),
    "demonstrations": ("messages", "prompt", "completion", "text"),
    "prompts": ("prompt", "system"),
}


def rows_of(name: str) -> st.SearchStrategy[list[Any]]:
    """Draw rows with some of the format's columns and arbitrary values."""
    columns = dict.fromkeys(SHAPES[name], values | messages)
    near = st.fixed_dictionaries({}, optional=columns)
    exact = st.fixed_dictionaries(columns)
    anything = st.dictionaries(st.sampled_from(WORDS) | st.text(max_size=3), values, max_size=6)
    return st.lists(st.one_of(exact, near, anything, values), max_size=5)


def test_every_format_is_fuzzed() -> None:
    assert set(SHAPES) == {item.name for item in FORMATS}


@pytest.mark.parametrize("examples", [12, pytest.param(600, marks=pytest.mark.slow)])
@pytest.mark.parametrize("item", FORMATS, ids=lambda item: item.name)
def test_random_rows(item: Any, examples: int) -> None:
    @settings(max_examples=examples, deadline=None)
    @given(rows=rows_of(item.name), threshold=st.none() | st.floats(0, 5), desirable=st.booleans())
    def check(rows: list[Any], threshold: float | None, desirable: bool) -> None:
        source = SourceConfig(path="x", threshold=threshold, desirable=["1", "user"] if desirable else [])
        raw = [RawRow(row, f"x:{line}") for line, row in enumerate(rows, 1)]
        outcomes = list(item.records(iter(raw), source))
        accounted = {_origin(outcome) for outcome in outcomes}
        # A joined row may be part of another row's record. Every other row yields a record or a reason.
        if item.name not in ("openassistant_messages", "traces", "openassistant_trees"):
            assert accounted == {row.origin for row in raw}
        for outcome in outcomes:
            if isinstance(outcome, Reading):
                part = split_record(outcome.record)
                for text in (part.prompt, *part.completions):
                    canonical(text).encode()  # plain JSON that can be encoded as UTF-8
                assert all(completion[-1]["role"] == "assistant" for completion in part.completions)
                part.root()

    check()


def _origin(outcome: Any) -> str:
    if isinstance(outcome, Reading):
        return str(outcome.record.origin)
    assert isinstance(outcome, Dropped | Quarantined | Unread)
    return outcome.origin
