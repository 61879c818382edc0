"""Rendering: prompts are exact prefixes, responses end at the stop token, masks cover only the assistant's text."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import pytest
from chat_styles import STYLES, byte_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment_core.data.rendering.renderer import BUILTIN_TEMPLATES, Renderer, Request, Unrenderable
from alignment_core.errors import ModelError
from alignment_core.plugin_api import TokenSequence

TEMPLATES = {**STYLES, **{f"builtin {name}": text for name, text in BUILTIN_TEMPLATES.items()}}
TRIMS = {"llama", "gemma", "builtin plain", "builtin llama3", "builtin alpaca"}
LENGTH = 4096

# SentencePiece writes a space as "▁", so a literal "▁" cannot be distinguished from a space.
letters = st.characters(codec="utf-8", exclude_categories=("Cs", "Co", "Cc"), exclude_characters="▁")
words = st.text(letters, min_size=1).filter(str.strip)
texts = st.one_of(words, st.sampled_from(["yes", " padded \n", "a\n\nb", "<s>html</s>", "x <|im_end|> y", "[INST]"]))


@st.composite
def conversations(draw: Any, system: bool = True) -> tuple[dict[str, str], ...]:
    """Draw alternating turns that end with an assistant turn, optionally after a system prompt."""
    turns = [{"role": "system", "content": draw(texts)}] if system and draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        turns += [{"role": "user", "content": draw(texts)}, {"role": "assistant", "content": draw(texts)}]
    return tuple(turns)


@pytest.fixture(scope="module", params=[False, True], ids=["bytes", "sentencepiece"])
def renderers(request: Any) -> dict[str, Renderer]:
    tokenizer = byte_tokenizer(sentencepiece=request.param)
    return {name: Renderer(tokenizer, chat_template=text, max_length=LENGTH) for name, text in TEMPLATES.items()}


def rendered(name: str, message: dict[str, str]) -> str:
    """Return a turn's text as the template writes it."""
    return message["content"].strip() if name in TRIMS else message["content"]


def target_texts(renderer: Renderer, sequence: TokenSequence) -> list[str]:
    """Return the text of each contiguous run of target tokens, without special tokens."""
    mask = [False] * sequence.start + list(sequence.mask or [True] * (len(sequence.ids) - sequence.start))
    pieces = groupby(zip(sequence.ids, mask, strict=True), key=lambda item: item[1])
    return [
        renderer.tokenizer.decode([token for token, _ in run], skip_special_tokens=True)
        for is_target, run in pieces if is_target
    ]  # fmt: skip


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=25, deadline=None)
@given(conversation=conversations())
def test_prompt_is_an_exact_prefix_and_the_response_ends_at_a_stop(
    renderers: dict[str, Renderer], name: str, conversation: Any
) -> None:
    renderer = renderers[name]
    prompt, answer = conversation[:-1], conversation[-1:]
    sequence = renderer.completion(prompt, answer)
    assert sequence.prompt == renderer.prompt(prompt).ids
    assert sequence.completion[-1] == renderer.stop_ids[0]
    assert not set(sequence.completion[:-1]) & set(renderer.stop_ids), "the response continues after a stop token"
    if name != "endless":  # trims nothing, but has no token that ends the text
        assert renderer.decode(sequence.completion) == rendered(name, answer[0])


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name != "endless"])
@settings(max_examples=25, deadline=None)
@given(conversation=conversations())
def test_targets_of_a_demonstration_are_the_assistants_turns(
    renderers: dict[str, Renderer], name: str, conversation: Any
) -> None:
    renderer = renderers[name]
    sequence = renderer.demonstration(conversation)
    answers = [rendered(name, turn) for turn in conversation if turn["role"] == "assistant"]
    found = target_texts(renderer, sequence)
    if name == "thinking":
        found[-1] = found[-1].removeprefix("<think>\n\n</think>\n\n")
    assert [text.lstrip(" ") for text in found] == [text.lstrip(" ") for text in answers]
    assert sequence.ids == renderer.completion(conversation[:-1], conversation[-1:]).ids
    mask = sequence.mask or [True] * len(sequence.completion)
    learned = [token for token, target in zip(sequence.completion, mask, strict=True) if target]
    assert learned.count(renderer.stop_ids[0]) == len(answers), "the end of each turn is also a target"


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name not in ("gemma", "mistral", "deaf", "endless")])
@settings(max_examples=25, deadline=None)
@given(conversation=conversations())
def test_text_matches_apply_chat_template(tokenizer: Any, name: str, conversation: Any) -> None:
    """The ids decode to the output of transformers' `apply_chat_template`, up to the end of the response."""
    renderer = Renderer(tokenizer, chat_template=TEMPLATES[name], max_length=LENGTH)
    text = tokenizer.apply_chat_template(list(conversation), chat_template=TEMPLATES[name], tokenize=False)
    decoded = tokenizer.decode(renderer.demonstration(conversation).ids)
    assert text.startswith(decoded)
    assert text[len(decoded) :].strip() in ("", "<|endoftext|>")


@settings(max_examples=60, deadline=None)
@given(conversation=conversations(), name=st.sampled_from(sorted(TEMPLATES)))
def test_fast_path_equals_template_rendering(renderers: dict[str, Renderer], name: str, conversation: Any) -> None:
    """Plain responses are assembled without the template. With that fast path disabled, the ids are the same."""
    quick = renderers[name]
    slow = Renderer(quick.tokenizer, chat_template=TEMPLATES[name], max_length=LENGTH)
    slow._chat._trim = None
    prompt, answer = conversation[:-1], conversation[-1:]
    if (
        name == "endless"
    ):  # the one difference: without a stop token, trailing blanks of a response may or may not be kept
        answer = ({"role": "assistant", "content": answer[0]["content"].strip()},)
    assert quick.completion(prompt, answer) == slow.completion(prompt, answer)


def test_most_templates_are_recognized_as_plain(renderers: dict[str, Renderer]) -> None:
    plain = {name for name, renderer in renderers.items() if renderer._chat._trim is not None}
    assert plain >= set(TEMPLATES) - {"thinking"}


@pytest.mark.parametrize(("name", "system"), [("gemma", True), ("mistral", True), ("deaf", True), ("qwen", False)])
def test_unsupported_system_prompt_moves_into_the_first_user_turn(name: str, system: bool, tokenizer: Any) -> None:
    renderer = Renderer(tokenizer, chat_template=TEMPLATES[name], max_length=LENGTH)
    prompt = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"})
    tokens = renderer.tokens(Request(prompt, (({"role": "assistant", "content": "So."},),)))
    assert tokens.rewritten is system
    text = tokenizer.decode(tokens.completions[0].ids)
    assert ("Be brief.\n\nWhy?" in text) is system
    assert text.count("Be brief.") == 1


TOOLS = [{"type": "function", "function": {"name": "add", "description": "adds", "parameters": {}}}]
CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "add", "arguments": {"a": 1}}}]}


@pytest.mark.parametrize("name", ["mistral", "gemma", "builtin plain", "builtin chatml"])
def test_tools_calls_and_results_are_rendered(name: str, tokenizer: Any) -> None:
    renderer = Renderer(tokenizer, chat_template=TEMPLATES[name], max_length=LENGTH)
    conversation = (
        {"role": "user", "content": "1 + 1?", "tools": TOOLS},
        CALL,
        {"role": "tool", "content": "result 2"},
        {"role": "assistant", "content": "Two."},
    )
    sequence = renderer.demonstration(conversation)
    text = tokenizer.decode(sequence.ids)
    for part in ("1 + 1?", "adds", '"name": "add"', '"a": 1', "result 2", "Two."):
        assert part in text
    learned = target_texts(renderer, sequence)
    assert len(learned) == 2
    assert '"a": 1' in learned[0]
    assert "Two." in learned[1]


def test_completion_of_several_turns_masks_tool_output(renderer: Renderer) -> None:
    prompt = ({"role": "user", "content": "1 + 1?"},)
    completion = (CALL, {"role": "tool", "content": "result 2"}, {"role": "assistant", "content": "Two."})
    sequence = renderer.completion(prompt, completion)
    learned = "".join(target_texts(renderer, sequence))
    assert sequence.prompt == renderer.prompt(prompt).ids
    assert "result" not in learned
    assert '"a": 1' in learned
    assert "Two." in learned


def test_special_tokens_in_user_text_stay_text(renderer: Renderer) -> None:
    tokenizer, text = renderer.tokenizer, "<s>bold</s> and <|im_end|>"
    sequence = renderer.completion(({"role": "user", "content": text},), ({"role": "assistant", "content": text},))
    stop, start = tokenizer.convert_tokens_to_ids(["</s>", "<s>"])
    assert list(sequence.ids).count(stop) == 1
    assert list(sequence.ids).count(start) == 1
    assert renderer.decode(sequence.completion) == text


def test_stop_ids_come_from_template_tokenizer_and_generation_config(tokenizer: Any) -> None:
    ids = tokenizer.convert_tokens_to_ids(["<|im_end|>", "</s>", "<|eot_id|>"])
    found = Renderer(tokenizer, chat_template=STYLES["qwen"], max_length=99, generation_stops=[ids[2]]).stop_ids
    assert found == tuple(ids)
    assert Renderer(tokenizer, chat_template=STYLES["endless"], max_length=99).stop_ids == (ids[1],)


# --- truncation ---------------------------------------------------------------------------------------------------


def turns(*contents: str) -> tuple[dict[str, str], ...]:
    return tuple(
        {"role": "user" if index % 2 == 0 else "assistant", "content": content}
        for index, content in enumerate(contents)
    )


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(1, 120), min_size=1, max_size=7), answer=st.integers(1, 60), system=st.booleans())
def test_truncation_keeps_the_response_and_the_newest_turns(
    tokenizer: Any, lengths: list[int], answer: int, system: bool
) -> None:
    lengths = lengths if len(lengths) % 2 else lengths[:-1]
    renderer = Renderer(tokenizer, chat_template=STYLES["qwen"], max_length=128)
    prompt = turns(*(str(index) + "x" * length for index, length in enumerate(lengths)))
    prompt = ({"role": "system", "content": "be"}, *prompt) if system else prompt
    completion = ({"role": "assistant", "content": "z" * answer},)
    tokens = renderer.tokens(Request(prompt, (completion,), demonstration=True, waiting=True))
    (sequence,) = tokens.completions
    whole = Renderer(tokenizer, chat_template=STYLES["qwen"], max_length=9999).completion(prompt, completion)
    assert len(sequence.ids) <= 128
    assert sequence.completion == whole.completion
    assert tokens.demonstration is not None
    assert len(tokens.demonstration.ids) <= 128
    assert tokens.prompt is not None
    assert len(tokens.prompt.ids) <= 96
    assert tokens.truncated == (len(whole.ids) > 128 or whole.start > 96)
    assert sequence.ids[-8:] == whole.ids[-8:]
    # The end of the newest question is kept, and the text starts like a conversation.
    kept = tokenizer.decode(sequence.prompt)
    assert kept.startswith("<|im_start|>")
    assert kept.endswith("x<|im_end|>\n<|im_start|>assistant\n")
    if not tokens.truncated:
        assert sequence == whole


def test_oldest_turns_are_dropped_first(tokenizer: Any) -> None:
    renderer = Renderer(tokenizer, chat_template=STYLES["qwen"], max_length=80)
    prompt = turns("first " * 9, "one", "second", "two", "third")
    text = tokenizer.decode(renderer.completion(prompt, ({"role": "assistant", "content": "yes"},)).ids)
    assert "first" not in text
    assert all(word in text for word in ("second", "two", "third", "yes"))


def test_both_sides_of_a_pair_get_the_same_prompt(tokenizer: Any) -> None:
    renderer = Renderer(tokenizer, chat_template=STYLES["qwen"], max_length=100)
    sides = tuple(({"role": "assistant", "content": text},) for text in ("short", "long " * 12))
    short, long = renderer.tokens(Request(turns("q " * 60), sides)).completions
    assert short.prompt == long.prompt
    assert len(long.ids) <= 100


def test_response_longer_than_max_length_has_a_named_reason(tokenizer: Any) -> None:
    renderer = Renderer(tokenizer, chat_template=STYLES["qwen"], max_length=100)
    with pytest.raises(Unrenderable) as caught:
        renderer.completion(turns("why?"), ({"role": "assistant", "content": "long " * 60},))
    assert caught.value.reason == "completion_too_long"


def test_one_rejected_row_does_not_affect_the_others(tokenizer: Any) -> None:
    template = "{% if 'bad' in messages[0].content %}{{ raise_exception('bad word') }}{% endif %}" + STYLES["qwen"]
    renderer = Renderer(tokenizer, chat_template=template, max_length=100)
    requests = [Request(turns(word), (({"role": "assistant", "content": "ok"},),)) for word in ("fine", "bad", "good")]
    first, second, third = renderer.batch(requests)
    assert isinstance(second, Unrenderable)
    assert second.reason == "template_refuses"
    assert "bad word" in second.what
    assert not isinstance(first, Unrenderable)
    assert not isinstance(third, Unrenderable)


def test_broken_template_is_a_clear_error(tokenizer: Any) -> None:
    for template in ("{{ raise_exception('no') }}", "{% if %}", "nothing of it"):
        with pytest.raises(ModelError, match="template"):
            Renderer(tokenizer, chat_template=template, max_length=100)


def test_missing_assistant_turn_has_a_named_reason(renderer: Renderer) -> None:
    with pytest.raises(Unrenderable, match="no assistant turn"):
        renderer.demonstration(turns("only a question"))
