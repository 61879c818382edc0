import pytest
from alignment_librechat import LibreChat

from alignment_core.plugin_api import BadRow, Dropped, SourceConfig
from alignment_core.testing import check_format

SOURCE = SourceConfig(path="export.json")


def message(number, text, rating=None, *, parent=None, **more):
    """A message as LibreChat exports it. User messages have even numbers."""
    feedback = {} if rating is None else {"feedback": {"rating": rating, "tag": {"key": "accurate_reliable"}}}
    return {
        "messageId": f"m{number}",
        "parentMessageId": f"m{number - 1}" if parent is None else parent,
        "isCreatedByUser": number % 2 == 0,
        "sender": "User" if number % 2 == 0 else "GPT-4o",
        "text": text,
        **feedback,
        **more,
    }


def export(*messages, **more):
    return {"conversationId": "c1", "endpoint": "openAI", "title": "Tea", "recursive": False, **more} | (
        {} if "messagesTree" in more else {"messages": list(messages)}
    )


def read(row):
    assert LibreChat().matches(row)
    return list(LibreChat().read(row, "export.json:1", SOURCE))


def test_rated_messages_with_the_turns_before_them():
    found = read(
        export(
            message(0, "How long does tea take?", parent="00000000-0000-0000-0000-000000000000"),
            message(1, "Three minutes.", "thumbsUp"),
            message(2, "And coffee?"),
            message(3, "A year.", "thumbsDown"),
        )
    )
    up, down = [reading.record for reading in found]
    assert (up.desirable, down.desirable) == (True, False)
    assert up.prompt == ({"role": "user", "content": "How long does tea take?"},)
    assert [turn["role"] for turn in down.prompt] == ["user", "assistant", "user"]
    assert down.response == ({"role": "assistant", "content": "A year."},)


def test_nested_branches_and_text_in_parts():
    answer = message(1, "", "thumbsUp", content=[{"type": "think", "think": "Hm."}, {"type": "text", "text": "Three."}])
    other = message(3, "Four.", parent="m0")
    question = message(0, "How long?", parent="none", children=[answer, other])
    (reading,) = read(export(messagesTree=[question], recursive=True, options={"promptPrefix": "Be brief."}))
    assert reading.record.prompt[0] == {"role": "system", "content": "Be brief."}
    assert reading.record.response == ({"role": "assistant", "content": "Three."},)


def test_unusable_messages_are_dropped_with_a_reason():
    assert read(export(message(0, "Hi"), message(1, "Hello."))) == [Dropped("unrated", "export.json:1")]
    broken = export(message(0, "Hi"), message(1, "Hel", "thumbsDown", unfinished=True))
    assert read(broken) == [Dropped("broken_answer", "export.json:1")]


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([message(1, "Hello.", "thumbsUp")], "missing_message"),
        ([message(0, "Hi"), message(1, " ", "thumbsUp")], "empty_message"),
    ],
)
def test_broken_conversations_are_quarantined_with_a_reason(messages, reason):
    with pytest.raises(BadRow) as caught:
        read(export(*messages))
    assert caught.value.reason == reason


def test_other_formats_do_not_match():
    assert not LibreChat().matches({"messages": [{"role": "user", "content": "Hi"}]})
    assert not LibreChat().matches({"prompt": "Hi", "completion": "Hello."})


def test_conformance():
    check_format(LibreChat).assert_passed()
