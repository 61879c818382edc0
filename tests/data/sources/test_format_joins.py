"""Formats that join rows: message trees, chat snapshots, annotations by several raters, traces with scores."""

from __future__ import annotations

import json
from typing import Any

import pytest
from records import demo, found, pair, prompt, thumb, turns

# --- OpenAssistant --------------------------------------------------------------------------------------------------


def message(id_: str, parent: str | None, text: str, **more: Any) -> dict[str, Any]:
    role = more.pop("role", "prompter" if text.startswith("q") else "assistant")
    return {"message_id": id_, "parent_id": parent, "text": text, "role": role, "message_tree_id": "t", **more}


TREE = [
    message("1", None, "q1"),
    message("2", "1", "good", rank=0, emojis={"name": ["+1", "-1"], "count": [3, 1]}),
    message("3", "1", "bad", rank=1, emojis={"+1": 1, "-1": 4}),
    message("4", "2", "q2"),
    message("5", "4", "last", rank=None, emojis={"+1": 1, "-1": 1}),
    message("6", "3", "q3"),
]
TREE_RECORDS = [
    pair("q1", "good", "bad"),
    thumb("q1", "good", True),
    thumb("q1", "bad", False),
    prompt("q1", "bad", "q3"),
    demo("q1", "good", "q2", "last"),
]


def unordered(records: list[Any]) -> list[str]:
    return sorted(map(repr, records))


def nested(rows: list[dict[str, Any]]) -> dict[str, Any]:
    children = {row["message_id"]: {**row, "replies": []} for row in rows}
    for row in rows:
        if row["parent_id"] is not None:
            children[row["parent_id"]]["replies"].append(children[row["message_id"]])
    return {"message_tree_id": "t", "tree_state": "ready_for_export", "prompt": children[rows[0]["message_id"]]}


@pytest.mark.parametrize("rows", [TREE, [TREE[i] for i in (5, 3, 1, 4, 2, 0)], [nested(TREE)]],
                         ids=["messages", "out of order", "nested"])  # fmt: skip
def test_tree_yields_pairs_labels_a_best_path_and_open_prompts(rows: list[Any]) -> None:
    result = found(rows)
    assert unordered(result.records) == unordered(TREE_RECORDS)
    assert not result.bad


def test_trees_may_be_interleaved_in_a_file() -> None:
    other = [{**row, "message_tree_id": "u"} for row in TREE]
    mixed = [row for both in zip(TREE, other, strict=True) for row in both]
    assert unordered(found(mixed).records) == unordered(TREE_RECORDS * 2)


def test_cycles_and_orphans_are_quarantined_and_the_rest_is_read() -> None:
    broken = [*TREE, message("7", "8", "q7"), message("8", "7", "loop"), message("9", "nowhere", "lost"),
              message("2", "1", "twice")]  # fmt: skip
    result = found(broken)
    assert unordered(result.records) == unordered(TREE_RECORDS)
    assert result.bad == {"orphaned_message": 3, "duplicate_message": 1}


def test_deleted_and_rejected_messages_are_dropped_with_their_replies() -> None:
    rows = [TREE[0], {**TREE[1], "deleted": True}, {**TREE[2], "review_result": False}, *TREE[3:]]
    result = found(rows)
    assert result.dropped == {"deleted": 1, "failed_review": 1, "below_dropped_message": 3}
    assert result.records == [prompt("q1")]
    assert not result.bad


def test_broken_reply_does_not_affect_the_rest_of_its_tree() -> None:
    tree = nested(TREE)
    tree["prompt"]["replies"][1]["text"] = None
    result = found([tree, {"prompt": {"text": "q", "role": "prompter", "replies": "none"}}])
    assert result.bad == {"empty_turn": 1}
    assert demo("q1", "good", "q2", "last") in result.records


# --- ChatGPT --------------------------------------------------------------------------------------------------------


def chatgpt(*messages: tuple[str, str, str | None, dict[str, Any]], last: str = "a2") -> dict[str, Any]:
    """Return a chat of messages (id, text, parent, changes). The role follows from the first letter of the id."""
    roles = {"u": "user", "a": "assistant", "s": "system", "t": "tool"}
    mapping: dict[str, Any] = {"root": {"id": "root", "message": None, "parent": None, "children": ["s1"]}}
    for id_, text, parent, changes in messages:
        content = {"content_type": "text", "parts": [text]}
        author = {"role": roles[id_[0]], "name": None, "metadata": {}}
        message = {"id": id_, "author": author, "content": content, "recipient": "all", "weight": 1.0, **changes}
        mapping[id_] = {"id": id_, "message": message, "parent": parent or "root", "children": []}
    return {"title": "x", "create_time": 1.0, "mapping": mapping, "current_node": last, "moderation_results": []}


ASKED = (("s1", "", None, {}), ("u1", "hello", "s1", {}), ("a1", "first", "u1", {}), ("u2", "more", "a1", {}))


def test_chatgpt_export_is_read_along_the_branch_that_was_shown_last() -> None:
    result = found([chatgpt(*ASKED, ("a2", "second", "u2", {}), ("a3", "another", "u2", {}))])
    assert (result.format, result.records) == ("chatgpt", [demo("hello", "first", "more", "second")])
    assert result.dropped == {"answer_of_another_branch": 1}
    assert (result.bad, result.ignored) == ({}, {})


def test_custom_instructions_of_chatgpt_are_the_system_prompt() -> None:
    told = {"content_type": "user_editable_context", "user_profile": "I am a baker.", "user_instructions": "Be brief."}
    custom = ("u0", "", "s1", {"content": told})
    result = found([chatgpt(ASKED[0], custom, ("u1", "hello", "u0", {}), ("a2", "hi", "u1", {}))])
    assert result.records == [demo("system: I am a baker.\n\nBe brief.", "hello", "hi")]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"recipient": "python"}, "uses_tools"),
        ({"content": {"content_type": "code", "text": "1 + 1"}}, "not_text"),
        ({"content": {"content_type": "thoughts", "thoughts": []}}, "not_text"),
        ({"content": {"content_type": "multimodal_text", "parts": [{"content_type": "image"}]}}, "not_text"),
        ({"author": {"role": "tool"}}, "uses_tools"),
    ],
)  # fmt: skip
def test_chatgpt_chats_with_more_than_text_are_quarantined(changes: dict[str, Any], reason: str) -> None:
    result = found([chatgpt(*ASKED[:3], ("a2", "second", "a1", changes)), chatgpt(*ASKED, ("a2", "b", "u2", {}))])
    assert (result.bad, len(result.records)) == ({reason: 1}, 1)


def test_broken_chats_of_chatgpt_are_quarantined() -> None:
    loop = chatgpt(("u1", "hello", "a2", {}), ("a2", "hi", "u1", {}))
    assert found([loop, chatgpt(*ASKED, last="nowhere")]).bad == {"cyclic_tree": 1, "orphaned_message": 1}


def rating(message: str, word: Any, **more: Any) -> dict[str, Any]:
    return {"message_id": message, "conversation_id": "c", "user_id": "user-1", "rating": word, "content": "{}", **more}


def test_thumbs_of_chatgpt_are_joined_to_the_answers_that_they_rate() -> None:
    chat = chatgpt(*ASKED, ("a2", "second", "u2", {}), ("a3", "another", "u2", {}))
    other = chatgpt(("u9", "hey", None, {}), ("a9", "ho", "u9", {}), last="a9")
    ratings = [rating("a3", "thumbsDown"), rating("a1", "thumbs_up"), rating("lost", "thumbs_up")]
    for rows in ([chat, other, *ratings], [*ratings, other, chat]):
        result = found(rows)
        assert unordered(result.records) == unordered([
            thumb("hello", "first", True), thumb(turns("hello", "first", "more"), "another", False), demo("hey", "ho"),
        ])  # fmt: skip
        assert result.dropped == {"answer_without_rating": 1}
        assert result.bad == {"orphaned_rating": 1}


def test_chats_of_chatgpt_may_share_the_ids_of_messages() -> None:
    chats = [{**chatgpt(*ASKED[:2], ("a1", text, "u1", {}), last="a1"), "id": text} for text in ("one", "two")]
    votes = [rating("a1", word, conversation_id=chat) for chat, word in (("two", "thumbs_down"), ("one", "thumbs_up"))]
    result = found([*votes, *chats])
    assert unordered(result.records) == unordered([thumb("hello", "one", True), thumb("hello", "two", False)])


def test_ratings_of_chatgpt_that_say_nothing_or_rate_no_answer() -> None:
    chat = chatgpt(*ASKED, ("a2", "second", "u2", {"recipient": "python"}))
    rows = [chat, rating("a1", None), rating("u2", "thumbs_up"), rating("a2", "thumbs_up"), rating("root", "hm")]
    result = found(rows)
    assert not result.records
    assert result.dropped == {"no_label": 1}
    assert result.bad == {"missing_message": 1, "uses_tools": 1, "bad_label": 1}


# --- Open WebUI -----------------------------------------------------------------------------------------------------


def feedback(rating: Any, *, on: str = "a1", arena: bool = False, user: str = "u", **more: Any) -> dict[str, Any]:
    messages = {
        "q1": {"id": "q1", "parentId": None, "childrenIds": ["a1", "a2"], "role": "user", "content": "hello"},
        "a1": {"id": "a1", "parentId": "q1", "childrenIds": ["q2"], "role": "assistant", "content": "first"},
        "a2": {"id": "a2", "parentId": "q1", "childrenIds": [], "role": "assistant", "content": "second"},
        "q2": {"id": "q2", "parentId": "a1", "childrenIds": ["a3"], "role": "user", "content": "more"},
        "a3": {"id": "a3", "parentId": "q2", "childrenIds": [], "role": "assistant", "content": "third"},
    }
    row = {
        "id": "f", "user_id": user, "type": "rating", "updated_at": 5,
        "data": {"rating": rating, "model_id": "m", "sibling_model_ids": None, "details": {"rating": None}},
        "meta": {"arena": arena, "chat_id": "c", "message_id": on},
        "snapshot": {"chat": {"chat": {"history": {"messages": messages, "currentId": "a3"}, "params": {}}}},
    }  # fmt: skip
    return {**row, **more}


def test_open_webui_ratings_carry_context_and_voter() -> None:
    result = found([feedback(1, on="a3"), feedback("-1", on="a2", user="v")])
    assert result.format == "open_webui"
    assert result.records == [
        thumb(turns("hello", "first", "more"), "third", True), thumb("hello", "second", False),
    ]  # fmt: skip
    assert result.voters == ["u", "v"]


def test_open_webui_arena_votes_become_pairs() -> None:
    assert found([feedback(1, arena=True)]).records == [pair("hello", "first", "second")]
    assert found([feedback("-1", arena=True)]).records == [pair("hello", "second", "first")]
    assert found([feedback(0, arena=True)]).dropped == {"neutral": 1}
    assert found([feedback(1, arena=True, on="a3")]).bad == {"missing_message": 1}


def test_open_webui_scalar_and_neutral_ratings() -> None:
    scalar = feedback(None)
    scalar["data"]["details"]["rating"] = 8
    assert found([scalar], threshold=7).records == [thumb("hello", "first", True)]
    assert found([scalar]).bad == {"no_threshold": 1}
    assert found([feedback(0), feedback(None)]).dropped == {"neutral": 2}
    assert found([feedback(9)]).bad == {"rating_out_of_range": 1}


def test_open_webui_system_prompt_is_kept() -> None:
    row = feedback(1)
    row["snapshot"]["chat"]["chat"]["params"]["system"] = "be kind"
    assert found([row]).records == [thumb(turns("system: be kind", "hello"), "first", True)]


def test_open_webui_broken_snapshots() -> None:
    gone, orphan, loop, bare = (feedback(1, on="a3") for _ in range(4))
    gone["meta"]["message_id"] = "a9"
    history = orphan["snapshot"]["chat"]["chat"]["history"]["messages"]
    history["q2"]["parentId"] = "nowhere"
    history = loop["snapshot"]["chat"]["chat"]["history"]["messages"]
    history["q1"]["parentId"] = "q2"
    bare["snapshot"] = {"chat": None}
    result = found([gone, orphan, loop, bare])
    assert result.bad == {"missing_message": 2, "orphaned_message": 1, "cyclic_tree": 1}


# --- Gradio ---------------------------------------------------------------------------------------------------------

SPOKEN = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "metadata": {}},
          {"role": "user", "content": "r"}, {"role": "assistant", "content": "b"}]  # fmt: skip


def flagged(conversation: Any, index: Any, flag: str) -> dict[str, str]:
    return {"conversation": json.dumps(conversation), "index": json.dumps(index), "value": "?", "flag": flag,
            "username": "", "timestamp": "2025-01-01 00:00:00"}  # fmt: skip


def test_gradio_messages_and_older_tuples() -> None:
    rows = [
        flagged(SPOKEN, 3, "Like"),
        flagged(SPOKEN, 1, "Dislike"),
        flagged([["q", "a"], ["r", "b"]], [1, 1], "Like"),
    ]
    result = found(rows)
    assert result.format == "gradio"
    assert result.records == [
        thumb(turns("q", "a", "r"), "b", True), thumb("q", "a", False), thumb(turns("q", "a", "r"), "b", True),
    ]  # fmt: skip


def test_gradio_logger_with_two_columns() -> None:
    row = {"question": "q", "answer": "a", "flag": "Dislike", "username": "me", "timestamp": "2025-01-01 00:00:00"}
    result = found([row])
    assert result.records == [thumb("q", "a", False)]
    assert result.voters == ["me"]
    assert found([{**row, "third": "x"}]).bad == {"ambiguous_columns": 1}


def test_gradio_other_flags_and_broken_rows() -> None:
    rows = [flagged(SPOKEN, 3, "Spam"), flagged(SPOKEN, 3, ""), flagged(SPOKEN, 9, "Like"), flagged(SPOKEN, 2, "Like"),
            {**flagged(SPOKEN, 1, "Like"), "conversation": "["}]  # fmt: skip
    result = found(rows)
    assert result.dropped == {"other_flag": 1, "no_label": 1}
    assert result.bad == {"missing_message": 1, "no_assistant_turn": 1, "invalid_json": 1}
    assert found(rows[:1], desirable=["Like"]).records == [thumb(turns("q", "a", "r"), "b", False)]


# --- annotation tools -----------------------------------------------------------------------------------------------


def task(*annotations: dict[str, Any], **data: Any) -> dict[str, Any]:
    return {"id": 1, "data": data or {"prompt": "q", "answer1": "a", "answer2": "b"}, "annotations": list(annotations)}


def annotation(kind: str, value: Any, **more: Any) -> dict[str, Any]:
    return {"result": [{"type": kind, "value": {kind: value} if kind != "pairwise" else {"selected": value}}], **more}


def test_label_studio_pairwise_with_voters() -> None:
    result = found(
        [task(annotation("pairwise", "left", completed_by=7), annotation("pairwise", "right", completed_by={"id": 8}))]
    )
    assert result.format == "label_studio"
    assert result.records == [pair("q", "a", "b"), pair("q", "b", "a")]
    assert result.voters == ["7", "8"]


def test_label_studio_results_without_an_annotations_list() -> None:
    row = {"data": {"prompt": "q", "answer1": "a", "answer2": "b"}, "result": annotation("pairwise", "right")["result"]}
    assert found([row]).records == [pair("q", "b", "a")]


@pytest.mark.parametrize("order", [["z", "x", "y"], {"_": [], "rank": ["z", "x", "y"]}], ids=["list", "buckets"])
def test_label_studio_ranker(order: Any) -> None:
    items = [{"id": "x", "body": "a"}, {"id": "y", "body": "b"}, {"id": "z", "body": "c"}]
    result = found([task(annotation("ranker", order), prompt="q", items=items)])
    assert unordered(result.records) == unordered([pair("q", "c", "a"), pair("q", "c", "b"), pair("q", "a", "b")])
    assert found([task(annotation("ranker", ["x", "w"]), prompt="q", items=items)]).bad == {"bad_annotation": 1}


def test_label_studio_ratings_of_one_response() -> None:
    rows = [
        task(annotation("rating", 4), prompt="q", answer="a"),
        task(annotation("rating", 2), prompt="q", answer="b"),
    ]
    assert found(rows, threshold=3).records == [thumb("q", "a", True), thumb("q", "b", False)]
    good = task(annotation("choices", ["fine"]), prompt="q", answer="a")
    assert found([good], desirable=["fine"]).records == [thumb("q", "a", True)]
    assert found([good]).bad == {"bad_label": 1}


def test_label_studio_unfinished_tasks_are_counted() -> None:
    cancelled = annotation("pairwise", "left", was_cancelled=True)
    assert found([task(), task(cancelled), task({"result": []})]).dropped == {"pending": 2, "discarded": 1}


def argilla(values: Any, statuses: Any, **fields: Any) -> dict[str, Any]:
    fields = fields or {"prompt": "q", "response-1": "a", "response-2": "b"}
    users = [str(index) for index in range(len(values))]
    votes = {"responses": values, "responses.status": statuses, "responses.users": users}
    return {"id": "i", "status": "completed", **fields, **{f"preference.{name}": vote for name, vote in votes.items()}}


def test_argilla_2_submitted_answers() -> None:
    result = found(
        [argilla(["response-1", "response_2", "1", "tie"], ["submitted", "submitted", "draft", "submitted"])]
    )
    assert result.format == "argilla"
    assert result.records == [pair("q", "a", "b"), pair("q", "b", "a")]
    assert result.voters == ["0", "1"]
    assert result.dropped == {"draft": 1, "tie": 1}


def test_argilla_rankings_ratings_and_labels() -> None:
    ranks = [{"value": "response-1", "rank": 2}, {"value": "response-2", "rank": 1}]
    assert found([argilla([ranks], ["submitted"])]).records == [pair("q", "b", "a")]
    rated = argilla([4, 1], ["submitted", "submitted"], instruction="q", response="a")
    assert found([rated], threshold=3).records == [thumb("q", "a", True), thumb("q", "a", False)]
    labelled = argilla(["good"], ["submitted"], instruction="q", response="a")
    assert found([labelled]).records == [thumb("q", "a", True)]


def test_argilla_1_lists_of_votes() -> None:
    votes = [
        {"user_id": "u", "value": "yes", "status": "submitted"},
        {"user_id": "v", "value": "no", "status": "discarded"},
    ]
    result = found([{"prompt": "q", "response": "a", "helpful": votes}])
    assert result.records == [thumb("q", "a", True)]
    assert result.voters == ["u"]
    assert result.dropped == {"discarded": 1}


def exported(responses: Any, **fields: Any) -> dict[str, Any]:
    """Return a record as Argilla 2's `records.to_json` writes it."""
    fields = fields or {"prompt": "q", "response-1": "a", "response-2": "b"}
    suggestion = {"value": "response-1", "score": None, "agent": "m"}
    return {
        "id": "i", "fields": fields, "metadata": {"source": "s"}, "suggestions": {"best": suggestion},
        "responses": responses, "vectors": {}, "_server_id": "x", "status": "completed",
    }  # fmt: skip


def test_argilla_2_nested_records() -> None:
    votes = [{"value": "response-2", "user_id": "u"}, {"value": "tie", "user_id": "v"}]
    result = found([exported({"best": votes}), exported({}), exported({"best": []}), exported(None)])
    assert (result.format, result.records, result.voters) == ("argilla", [pair("q", "b", "a")], ["u"])
    assert (result.dropped, result.ignored) == ({"tie": 1, "pending": 3}, {})
    ranks = [{"value": "response-1", "rank": 2}, {"value": "response-2", "rank": 1}]
    assert found([exported({"order": [{"value": ranks, "user_id": "u"}]})]).records == [pair("q", "b", "a")]
    rated = exported({"stars": [{"value": 4, "user_id": "u"}]}, instruction="q", response="a", mood="sad")
    result = found([rated], threshold=3)
    assert (result.records, result.ignored) == ([thumb("q", "a", True)], {"fields.mood": 1})
    assert found([exported({"best": "response-1"}), exported({"best": ["a"]})]).bad == {"bad_annotation": 2}


def test_annotations_without_a_known_response() -> None:
    assert found([argilla(["response-9"], ["submitted"])]).bad == {"bad_label": 1}
    assert found([argilla(["1"], ["submitted"], response="a")]).bad == {"empty_prompt": 1}


# --- traces ---------------------------------------------------------------------------------------------------------


def call(id_: str, trace: str, answer: Any = "a", **more: Any) -> dict[str, Any]:
    return {"id": id_, "trace_id": trace, "type": "GENERATION", "input": "q", "output": answer, **more}


def score(trace: str, value: Any, name: str = "user-feedback", **more: Any) -> dict[str, Any]:
    return {"id": "s", "trace_id": trace, "name": name, "value": value, **more}


def test_langfuse_scores_join_an_observation_or_a_complete_trace() -> None:
    rows = [
        score("t", 1, observation_id="o2"), call("o1", "t", "first"),
        call("o2", "t", "second", parent_observation_id="o1"), score("u", 0),
        call("p", "u", "third"), call("v", "v", "unjudged"),
    ]  # fmt: skip
    result = found(rows)
    assert result.format == "traces"
    assert result.records == [thumb("q", "second", True), thumb("q", "third", False)]
    assert result.dropped == {"unscored": 1}


def test_langfuse_traces_with_nested_scores() -> None:
    row = {"id": "t", "input": {"messages": [{"role": "user", "content": "q"}]}, "output": {"content": "a"},
           "scores": [{"name": "thumbs", "value": 0}]}  # fmt: skip
    assert found([row]).records == [thumb("q", "a", False)]


def test_langsmith_runs_and_feedback() -> None:
    run = {"id": "r", "run_id": "r", "inputs": {"question": "q"}, "outputs": {"output": "a"}}
    assert found([run, {"run_id": "r", "key": "thumbs", "score": 1.0}]).records == [thumb("q", "a", True)]


def test_calls_without_any_score_are_refused_with_their_columns() -> None:
    asked, answered = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
    row = {"request_id": "r", "model": "m", "input": [asked], "output": [answered], "temper": "good"}
    result = found([row])
    assert (result.format, result.bad, result.ignored) == ("traces", {"no_scores": 1}, {"temper": 1})
    assert "request_id, model, input, output" in result.details[0]
    mapped = found([row], columns={"prompt": "input", "completion": "output"})
    assert mapped.ignored == {"temper": 1}
    assert mapped.records == [demo("q", "a")]


def test_langsmith_comparisons() -> None:
    runs = [
        {"id": id_, "run_id": id_, "inputs": {"input": "q"}, "outputs": {"output": text}} for id_, text in ("ra", "sb")
    ]
    compared = {"key": "preference", "scores": {"r": 0, "s": 1}}
    result = found([compared, *runs])
    assert result.records == [pair("q", "b", "a")]
    assert found([*runs, {**compared, "scores": {"r": 0, "x": 1}}]).bad == {"orphaned_score": 1}


def test_mlflow_traces() -> None:
    row = {"info": {"trace_id": "t"}, "data": {"request": '{"messages": [{"role": "user", "content": "q"}]}',
           "response": '{"choices": [{"message": {"role": "assistant", "content": "a"}}]}'},
           "assessments": [{"assessment_name": "liked", "feedback": {"value": False}}]}  # fmt: skip
    assert found([row]).records == [thumb("q", "a", False)]


def test_scalar_scores_need_a_threshold_and_several_scores_a_column() -> None:
    rows = [call("o", "t"), score("t", 0.7, name="quality")]
    assert found(rows).bad == {"no_threshold": 1}
    assert found(rows, threshold=0.5).records == [thumb("q", "a", True)]
    both = [*rows, score("t", 1, name="polite")]
    assert found(both).bad == {"several_scores": 1}
    chosen = found(both, format="traces", columns={"label": "polite"})
    assert chosen.records == [thumb("q", "a", True)]
    assert chosen.dropped == {"score quality": 1}


def test_scores_without_a_call() -> None:
    assert found([call("o", "t"), score("t", 1), score("gone", 1)]).bad == {"orphaned_score": 1}


# --- exports with missing information -------------------------------------------------------------------------------


def test_langsmith_feedback_that_names_only_the_run() -> None:
    runs = [
        {"id": f"r{i}", "trace_id": "t", "parent_run_id": "t", "run_type": "llm", "inputs": {"question": f"q{i}"},
         "outputs": {"answer": f"a{i}"}}
        for i in range(2)
    ]  # fmt: skip
    feedback = [{"id": f"f{i}", "run_id": f"r{i}", "key": "user", "score": 1.0 - i, "value": None} for i in range(2)]
    for rows in ([*runs, *feedback], [*feedback, *runs], [{**run, "trace_id": None} for run in runs] + feedback):
        result = found(rows)
        assert not result.bad
        assert unordered(result.records) == unordered([thumb("q0", "a0", True), thumb("q1", "a1", False)])


def test_langsmith_feedback_as_statistics_of_the_run() -> None:
    run = {"id": "r", "run_type": "llm", "inputs": {"input": "q"}, "outputs": {"output": "a"}}
    result = found([{**run, "feedback_stats": {"user": {"n": 2, "avg": 1.0}, "other": {"n": 0, "avg": None}}}])
    assert result.records == [thumb("q", "a", True)]


def test_argilla_chats_and_unanswered_records() -> None:
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    answered = {"h.responses": ["yes"], "h.responses.status": ["submitted"], "h.responses.users": ["u"]}
    assert found([{"chat": chat, **answered}]).records == [thumb("q", "a", True)]
    pending = {"prompt": "q", "response": "a", "thumb": [], "external_id": None, "metadata": "{}"}
    assert found([pending]).dropped == {"pending": 1}


def test_open_webui_without_a_snapshot_is_quarantined() -> None:
    row = {"type": "rating", "data": {"rating": 1}, "meta": {"message_id": "m"}, "snapshot": None}
    assert found([row]).bad == {"missing_message": 1}
