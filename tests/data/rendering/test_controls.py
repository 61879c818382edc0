"""Controls of a chat template that the tokenizer does not have: said, and every turn ends with the same token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from alignment_core.config import DataConfig, SourceConfig
from alignment_core.data.ingestion.ingest import ingest
from alignment_core.data.rendering.byte_tokenizer import byte_backend
from alignment_core.data.rendering.renderer import BUILTIN_TEMPLATES, Renderer
from alignment_core.errors import ModelError
from alignment_core.progress import Silent

CONVERSATION = (
    {"role": "user", "content": "Hi <|im_end|>"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "So long"},
)
GEMMA = (
    "{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content }}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
TWO_ENDS = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% if loop.last and not add_generation_prompt %}"
    "{{ eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""A control after every turn, and the end token after the last."""
ONLY_BETWEEN = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
    "{% if add_generation_prompt or not loop.last %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
ROLES = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""As in GLM: a turn ends where the next one begins."""
BUILT = "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '<|' + 'end|>' }}{% endfor %}"


@pytest.fixture
def tokenizer() -> Any:
    """Return a tokenizer of bytes, whose only special tokens are `<pad>` and `</s>`."""
    return PreTrainedTokenizerFast(tokenizer_object=byte_backend(), pad_token="<pad>", eos_token="</s>")


def learned(renderer: Renderer) -> list[str]:
    """Return the text of each run of targets in a conversation of two answers."""
    sequence = renderer.demonstration(CONVERSATION)
    mask = [False] * sequence.start + list(sequence.mask or [True] * (len(sequence.ids) - sequence.start))
    runs: list[list[int]] = []
    for place, (token, target) in enumerate(zip(sequence.ids, mask, strict=True)):
        if target:
            if not mask[place - 1]:
                runs.append([])
            runs[-1].append(token)
    return [renderer.tokenizer.decode(run) for run in runs]


@pytest.mark.parametrize("template", [BUILTIN_TEMPLATES["chatml"], BUILTIN_TEMPLATES["llama3"], GEMMA, TWO_ENDS])
def test_every_turn_ends_with_the_end_token(tokenizer: Any, template: str) -> None:
    renderer = Renderer(tokenizer, chat_template=template, max_length=512)
    end = tokenizer.eos_token
    assert learned(renderer) == [f"Hello{end}", f"So long{end}"]
    assert renderer.stop_ids == (tokenizer.eos_token_id,)
    first, second = renderer.warnings
    assert f"is not a token of the tokenizer: every turn ends with `{end}` instead" in first
    assert "of the tokenizer, and read as ordinary text" in second
    # What is stored and exported is the template as it was learned.
    again = Renderer(tokenizer, chat_template=renderer.template, max_length=512)
    assert again.demonstration(CONVERSATION) == renderer.demonstration(CONVERSATION)


def test_end_that_only_stands_between_turns(tokenizer: Any) -> None:
    renderer = Renderer(tokenizer, chat_template=ONLY_BETWEEN, max_length=512)
    text = tokenizer.decode(renderer.demonstration(CONVERSATION).ids)
    assert text.endswith("<|assistant|>Hello</s><|user|>Bye</s><|assistant|>So long</s>")


def test_control_that_begins_the_next_turn_is_not_an_end(tokenizer: Any) -> None:
    renderer = Renderer(tokenizer, chat_template=ROLES, max_length=512)
    assert renderer.template == ROLES
    assert learned(renderer) == ["Hello", "So long</s>"]
    (warning,) = renderer.warnings
    assert warning.startswith("`<|system|>`, `<|user|>`, `<|assistant|>` of the chat template are not tokens")


@pytest.mark.parametrize("template", ["plain", "alpaca"])
def test_templates_of_words_say_nothing(tokenizer: Any, template: str) -> None:
    assert Renderer(tokenizer, chat_template=BUILTIN_TEMPLATES[template], max_length=512).warnings == ()


def test_known_controls_stay(tokenizer: Any) -> None:
    tokenizer.add_tokens(
        [AddedToken(name, special=True) for name in ("<|im_start|>", "<|im_end|>")], special_tokens=True
    )
    renderer = Renderer(tokenizer, chat_template=BUILTIN_TEMPLATES["chatml"], max_length=512)
    assert (renderer.warnings, renderer.template) == ((), BUILTIN_TEMPLATES["chatml"])
    assert learned(renderer) == ["Hello<|im_end|>", "So long<|im_end|>"]


def test_end_that_is_an_ordinary_token_becomes_special(tokenizer: Any) -> None:
    tokenizer.add_tokens([AddedToken(name, special=False) for name in ("<|im_start|>", "<|im_end|>")])
    renderer = Renderer(tokenizer, chat_template=BUILTIN_TEMPLATES["chatml"], max_length=512)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert learned(renderer) == ["Hello<|im_end|>", "So long<|im_end|>"]
    assert renderer.stop_ids[0] == end
    sequence = renderer.demonstration(CONVERSATION)
    assert sequence.ids.count(end) == 4, "a user's text must not become the end token"
    assert renderer.decode(sequence.ids[-3:]) == "ng"


def test_end_that_the_template_puts_together_is_refused(tokenizer: Any) -> None:
    with pytest.raises(ModelError, match=r"ends an answer with `<\|end\|>`, which is not a token"):
        Renderer(tokenizer, chat_template=BUILT, max_length=512)


def test_ingestion_says_it(tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Hi", "completion": "Hello"}\n')
    (tmp_path / "out").mkdir()
    renderer = Renderer(tokenizer, chat_template=BUILTIN_TEMPLATES["chatml"], max_length=512)
    data = DataConfig(sources=[SourceConfig(path=str(tmp_path / "rows.jsonl"))])
    report = ingest(data, renderer, tmp_path / "out", Silent(), pages=False)
    assert report["warnings"][:2] == list(renderer.warnings)


def test_response_has_no_nul_character(tokenizer: Any) -> None:
    """A model may sample it, but no feedback store and no data set takes it: a vote on the response would be lost."""
    renderer = Renderer(tokenizer, chat_template=BUILTIN_TEMPLATES["chatml"], max_length=512)
    ids = tokenizer("a\0b", add_special_tokens=False).input_ids
    assert tokenizer.decode(ids) == "a\0b"
    assert renderer.decode(ids) == "a\ufffdb"
