"""Marks tell whose words a rendered text holds, whatever the template does with them."""

from __future__ import annotations

from typing import Any

import pytest

from alignment_core.data.rendering.engine.marks import COPIES, TOOLS, Layout, Marker
from alignment_core.data.rendering.engine.program import Program, Unmarkable, check_shown
from alignment_core.data.rendering.engine.template_checks import TemplateRefusal

EACH = "{% for m in messages %}{{ m.role[0] }}:"
CHAT: tuple[Any, ...] = ({"role": "user", "content": " Hi? "}, {"role": "assistant", "content": "Yes."})
CALL = {"role": "assistant", "content": "", "tool_calls": [
    {"type": "function", "function": {"name": "look", "arguments": {"at": "Rome", "times": 2}}}
]}  # fmt: skip


def layout(template: str, messages: tuple[Any, ...] = CHAT) -> Layout:
    return Program(template, {}).layout(messages)


def texts(found: Layout) -> list[tuple[int, str, str]]:
    return [(piece.turn, piece.part, found.text[piece.start : piece.end]) for piece in found.pieces]


@pytest.mark.parametrize(
    ("expression", "user", "assistant"),
    [
        ("m.content", "Hi?", "Yes."),
        ("m.content | trim | upper", "HI?", "YES."),
        ("m.content | tojson", "Hi?", "Yes."),
        ("m.content | tojson(ensure_ascii=True)", "Hi?", "Yes."),
        ("'<' + m['content'].strip() + '>'", "Hi?", "Yes."),
    ],
)
def test_strings_are_found_however_they_are_written(expression: str, user: str, assistant: str) -> None:
    found = layout(EACH + "{{ " + expression + " }};{% endfor %}")
    assert texts(found) == [(0, "content", user), (1, "content", assistant)]


def test_words_of_one_turn_in_another_are_its_own() -> None:
    found = layout("{% for m in messages %}{{ m.content }} (to {{ messages[0].content | trim }}){% endfor %}")
    assert [piece.turn for piece in found.pieces] == [0, 0, 1, 0]


def test_equal_texts_are_told_apart() -> None:
    same = ({"role": "user", "content": "ok"}, {"role": "assistant", "content": "ok"})
    found = layout("{% for m in messages | reverse %}{{ m.content }}{% endfor %}", same)
    assert [piece.turn for piece in found.pieces] == [1, 0]


def test_calls_and_tools_are_found() -> None:
    template = "{{ tools | tojson }}" + EACH + "{{ m.content }}{{ m.tool_calls | default([]) | tojson }}{% endfor %}"
    tools = [{"type": "function", "function": {"name": "look", "description": "d", "parameters": {}}}]
    found = layout(template, ({**CHAT[0], "tools": tools}, CALL))
    assert texts(found) == [
        (TOOLS, "tool", "look"), (0, "content", "Hi?"), (1, "call", "look"), (1, "argument", "at"),
        (1, "argument", "Rome"), (1, "argument", "times"),
    ]  # fmt: skip


def test_repeated_name_belongs_to_the_call_only_inside_it() -> None:
    inside = "{{ m.tool_calls[0].function.name }}({{ m.tool_calls[0].function | tojson }})"
    after = "{{ messages[0].tool_calls[0].function.name }} says {{ m.content }}"
    template = (
        "{% for m in messages %}{% if m.tool_calls %}" + inside + "{% else %}" + after + "{% endif %}{% endfor %}"
    )
    found = layout(template, (CALL, {"role": "tool", "content": "warm"}))
    assert [block.turn for block in found.blocks()] == [0, COPIES, 1]


def test_template_that_looks_at_the_words_is_not_trusted() -> None:
    with pytest.raises(Unmarkable):
        layout("{% for m in messages %}{% if m.content == 'Yes.' %}Y{% endif %}{{ m.content }}{% endfor %}")


def test_template_that_looks_at_a_question_is_read_with_the_answers_marked() -> None:
    found = layout("{% for m in messages %}{% if m.content == ' Hi? ' %}H{% endif %}{{ m.content }}{% endfor %}")
    assert texts(found) == [(1, "content", "Yes.")]


@pytest.mark.parametrize(
    ("template", "messages", "missing"),
    [
        (EACH + "{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}", CHAT, "'assistant'"),
        ("{% for m in messages[1:] %}{{ m.content }}{% endfor %}", CHAT, "'user'"),
        (EACH + "{{ m.content }}{% endfor %}", (*CHAT[:1], CALL), "a call of a tool"),
        (EACH + "{{ m.content }}{% endfor %}", ({**CHAT[0], "tools": [{"name": "look"}]}, CHAT[1]), "the tools"),
    ],
)
def test_what_a_template_leaves_out_is_named(template: str, messages: Any, missing: str) -> None:
    with pytest.raises(TemplateRefusal, match=missing):
        check_shown(messages, layout(template, messages))


def test_marks_are_read_back() -> None:
    marker = Marker()
    (marked,) = marker.conversation(({"role": "user", "content": "\n a b "},))
    assert marked["content"].startswith("\n ")
    assert marked["content"].endswith(" ")
    assert marker.read(marked["content"]).text == "\n a b "
