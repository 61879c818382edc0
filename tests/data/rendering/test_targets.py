"""Which words are targets, under templates that treat earlier answers, thoughts and calls in ways of their own."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import pytest
from chat_styles import byte_tokenizer

from alignment_core.data.rendering.renderer import Renderer, Request, Tokens, Unrenderable
from alignment_core.plugin_api import TokenSequence

LAST = (
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}"
)
TURNS = "{% for m in messages %}{% if m.role == 'assistant' %}"
OTHERS = "{% else %}<|user|>{{ m.content }}{% endif %}{% endfor %}"
U, A, E = "<|user|>", "<|assistant|>", "<|end|>"
TEMPLATES = {
    # Ends an answer with another token if turns follow, as harmony does.
    "two ends": TURNS + "<|assistant|>{{ m.content }}{{ '</s>' if loop.last else '<|end|>' }}" + OTHERS
    + "{% if add_generation_prompt %}<|assistant|>{% endif %}",
    # Ends no answer, and writes an empty thought before the earlier ones, as GLM does.
    "no end": LAST + TURNS + "<|assistant|>{% if loop.index0 > ns.last and m.reasoning_content %}"
    "<think>{{ m.reasoning_content }}</think>{% else %}<think></think>{% endif %}{{ m.content }}" + OTHERS
    + "{% if add_generation_prompt %}<|assistant|>{% endif %}",
    # Starts generation in a thought that it writes only before the last answer, as Qwen3.5 does.
    "open": LAST + TURNS + "<|assistant|>{% if loop.index0 > ns.last %}<think>\n{{ m.reasoning_content or '' }}\n"
    "</think>\n\n{% endif %}{{ m.content }}<|end|>" + OTHERS
    + "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}",
    # Starts generation in a thought, and drops every finished one, as DeepSeek's R1 does.
    "dropped": TURNS + "<|assistant|>{{ m.content.split('</think>')[-1] }}<|end|>" + OTHERS
    + "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}",
    # Has no place for thoughts.
    "plain": TURNS + "<|assistant|>{{ m.content }}<|end|>" + OTHERS
    + "{% if add_generation_prompt %}<|assistant|>{% endif %}",
    # Reads contents as lists of parts.
    "parts": "{% for m in messages %}<|{{ m.role }}|>{% for part in m.content %}{{ part.text }}{% endfor %}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}",
}  # fmt: skip


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def answer(text: str, thought: str = "") -> dict[str, Any]:
    return {"role": "assistant", "content": text, **({"reasoning_content": thought} if thought else {})}


CHAT = (user("Hi?"), answer("Yes."), user("Sure?"), answer("Quite."))
THOUGHTS = (user("Hi?"), answer("Yes.", "Hm."), user("Sure?"), answer("Quite.", "Well."))


def renderer(name: str, **options: Any) -> Renderer:
    return Renderer(byte_tokenizer(), chat_template=TEMPLATES[name], max_length=4096, **options)


def shown(found: Renderer, sequence: TokenSequence) -> str:
    """Return the text of a sequence with its targets in brackets."""
    mask = [False] * sequence.start + list(sequence.mask or [True] * (len(sequence.ids) - sequence.start))
    text = ""
    for target, run in groupby(zip(sequence.ids, mask, strict=True), key=lambda item: item[1]):
        part = found.tokenizer.decode([token for token, _ in run])
        text += f"[{part}]" if target else part
    return text


def demonstrated(name: str, *turns: Any, **options: Any) -> tuple[str, Tokens]:
    found = renderer(name, **options)
    tokens = found.tokens(Request(turns[:-1], (turns[-1:],), demonstration=True))
    assert tokens.demonstration is not None
    return shown(found, tokens.demonstration), tokens


def compared(name: str, prompt: Any, *sides: Any) -> tuple[list[str], Tokens]:
    found = renderer(name)
    tokens = found.tokens(Request(prompt, sides))
    return [shown(found, sequence) for sequence in tokens.completions], tokens


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("two ends", f"{U}Hi?{A}[Yes.]{E}{U}Sure?{A}[Quite.</s>]"),
        ("no end", f"{U}Hi?{A}[<think></think>Yes.]{U}Sure?{A}[<think></think>Quite.</s>]"),
        ("open", f"{U}Hi?{A}[Yes.{E}]{U}Sure?{A}<think>\n[\n</think>\n\nQuite.{E}]"),
        ("dropped", f"{U}Hi?{A}[Yes.{E}]{U}Sure?{A}<think>\n[\n</think>\n\nQuite.{E}]"),
        ("parts", f"{U}Hi?{E}{A}[Yes.{E}]{U}Sure?{E}{A}[Quite.{E}]"),
    ],
)  # fmt: skip
def test_every_answer_is_a_target(name: str, text: str) -> None:
    found, tokens = demonstrated(name, *CHAT)
    assert found == text
    assert not tokens.left_out


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("no end", f"{U}Hi?{A}<think></think>Yes.{U}Sure?{A}[<think>Well.</think>Quite.</s>]"),
        ("open", f"{U}Hi?{A}Yes.{E}{U}Sure?{A}<think>\n[Well.\n</think>\n\nQuite.{E}]"),
        ("dropped", f"{U}Hi?{A}\n\nYes.{E}{U}Sure?{A}<think>\n[Well.\n</think>\n\nQuite.{E}]"),
    ],
)  # fmt: skip
def test_answer_without_the_thought_that_led_to_it_is_not_learned(name: str, text: str) -> None:
    found, tokens = demonstrated(name, *THOUGHTS)
    assert found == text
    assert tokens.left_out == {"turn_without_its_thought": 1}
    assert not tokens.thoughts


def test_thoughts_without_a_place_are_kept_as_text_or_left_out() -> None:
    text, tokens = demonstrated("plain", *THOUGHTS[:2])
    assert text == "<|user|>Hi?<|assistant|>[<think>\nHm.\n</think>\n\nYes.<|end|>]"
    assert tokens.thoughts == {"as_text": 1}
    text, tokens = demonstrated("plain", *THOUGHTS[:2], thoughts="left_out")
    assert text == "<|user|>Hi?<|assistant|>[Yes.<|end|>]"
    assert tokens.thoughts == {"left_out": 1}


def test_thought_in_the_text_is_the_same_as_one_beside_it() -> None:
    inline = (user("Hi?"), answer("<think>\nHm.\n</think>\n\nYes."))
    for name in TEMPLATES:
        assert demonstrated(name, *inline) == demonstrated(name, *THOUGHTS[:2])


@pytest.mark.parametrize("name", TEMPLATES)
def test_pair_that_parts_early_is_compared_where_it_parts(name: str) -> None:
    later = (user("Sure?"), answer("Quite."))
    texts, tokens = compared(name, CHAT[:1], (answer("Yes."), *later), (answer("No."), *later))
    assert len({sequence.prompt for sequence in tokens.completions}) == 1
    for text, word in zip(texts, ("Yes.", "No."), strict=True):
        targets = "".join(part.partition("]")[0] for part in text.split("[")[1:])
        assert word in targets
        assert "Quite." in targets
        assert "Sure?" not in targets
        assert text.count("<think>") == text.count("</think>")


@pytest.mark.parametrize("name", ["no end", "open", "dropped"])
def test_pair_is_compared_with_its_thoughts(name: str) -> None:
    """Only a last answer is shown with its thought, so the answers after the one that differs are left out."""
    later = (user("Sure?"), answer("Quite."))
    texts, tokens = compared(name, CHAT[:1], (answer("Yes.", "Hm."), *later), (answer("No.", "Ah."), *later))
    for text, words in zip(texts, (("Hm.", "Yes."), ("Ah.", "No.")), strict=True):
        assert all(word in text.partition("[")[2] for word in words)
        assert "Quite." not in text
    assert tokens.left_out == {"turn_after_a_dropped_thought": 2}


def test_masked_answer_is_context() -> None:
    text, tokens = demonstrated("plain", CHAT[0], {**CHAT[1], "weight": 0}, *CHAT[2:])
    assert text == "<|user|>Hi?<|assistant|>Yes.<|end|><|user|>Sure?<|assistant|>[Quite.<|end|>]"
    assert not tokens.left_out
    with pytest.raises(Unrenderable) as error:
        compared("plain", CHAT[:1], tuple({**turn, "weight": 0} for turn in CHAT[1:]))
    assert error.value.reason == "nothing_to_learn"


@pytest.mark.parametrize("name", ["two ends", "plain", "parts"])
def test_begun_answer_is_continued(name: str) -> None:
    begun = (user("Hi?"), {"role": "assistant", "content": "It is ", "prefix": True})
    found = renderer(name)
    sequence = found.completion(begun, (answer("warm."),))
    assert shown(found, sequence).endswith("It is[ warm.</s>]" if name == "two ends" else "It is[ warm.<|end|>]")
    assert sequence.prompt == found.prompt(begun).ids


@pytest.mark.parametrize("name", TEMPLATES)
def test_text_without_a_conversation_needs_no_template(name: str) -> None:
    found = renderer(name)
    sequence = found.demonstration((answer("Once upon a time."),))
    assert shown(found, sequence) == "<s>[Once upon a time.</s>]"
    bare = Renderer(byte_tokenizer(bos=False), chat_template=TEMPLATES[name], max_length=99)
    assert shown(bare, bare.demonstration((answer("Once"),))) == "O[nce</s>]", "the first token has nothing before it"


def test_call_that_ends_with_a_token_of_its_own_stops_there() -> None:
    template = (
        "{{ tools | tojson if tools else '' }}" + TURNS + "<|assistant|>{{ m.content }}"
        "{% for c in m.tool_calls or [] %}{{ c.function.name }}({{ c.function.arguments | tojson }}){% endfor %}"
        "{{ '<|eot_id|>' if m.tool_calls else '<|end|>' }}" + OTHERS
        + "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )  # fmt: skip
    found = Renderer(byte_tokenizer(), chat_template=template, max_length=4096)
    called = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "look", "arguments": {"n": 1}}}]}
    text = shown(found, found.demonstration((user("Hi?"), called, {"role": "tool", "content": "7"}, answer("Seven."))))
    assert text == '<|user|>Hi?<|assistant|>[look({"n": 1})<|eot_id|>]<|user|>7<|assistant|>[Seven.<|end|>]'
    assert found.tokenizer.convert_tokens_to_ids("<|eot_id|>") in found.stop_ids


def test_marks_in_the_data_are_refused() -> None:
    with pytest.raises(Unrenderable) as error:
        demonstrated("plain", user("\U00100000"), answer("Yes."))
    assert error.value.reason == "private_use_characters"


def test_ids_are_shortened_for_a_template_that_checks_them() -> None:
    template = (
        TURNS + "{{ m.content }}{% for c in m.tool_calls or [] %}{% if c.id | length != 9 %}"
        "{{ raise_exception('nine characters') }}{% endif %}{{ c.function.name }}#{{ c.id }}{% endfor %}</s>"
        "{% elif m.role == 'tool' %}<|user|>{{ m.tool_call_id }}: {{ m.content }}" + OTHERS
    )
    found = Renderer(byte_tokenizer(), chat_template=template, max_length=4096)
    called = {"role": "assistant", "content": "", "tool_calls": [
        {"id": f"call_long_{n}", "function": {"name": f"look{n}", "arguments": {}}} for n in range(2)
    ]}  # fmt: skip
    results = tuple({"role": "tool", "content": f"r{n}", "tool_call_id": f"call_long_{n}"} for n in (1, 0))
    tokens = found.tokens(Request((user("Hi?"), called, *results), ((answer("Yes."),),)))
    assert not tokens.rewritten
    text = found.tokenizer.decode(tokens.completions[0].ids)
    first, second = (text.partition(f"look{n}#")[2][:9] for n in range(2))
    assert f"<|user|>{second}: r1<|user|>{first}: r0" in text
    assert first != second
