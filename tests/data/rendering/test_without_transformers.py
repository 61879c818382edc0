"""What a check of data does without transformers gives what transformers gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from chat_styles import STYLES
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import TemplateError, UndefinedError
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from alignment_core.config import DataConfig, SourceConfig
from alignment_core.data.ingestion.check import check
from alignment_core.data.ingestion.ingest import ingest
from alignment_core.data.rendering.builtin_templates import BUILTIN_TEMPLATES
from alignment_core.data.rendering.byte_tokenizer import EOS, PAD, ByteTokenizer, byte_backend
from alignment_core.data.rendering.engine.sandbox import render
from alignment_core.data.rendering.renderer import Renderer
from alignment_core.progress import Silent

VARIABLES = {"bos_token": "<s>", "eos_token": "</s>", "date_string": "26 Jul 2024"}
TEMPLATES = {**BUILTIN_TEMPLATES, **STYLES}
messages = st.builds(
    lambda role, content: {"role": role, "content": content},
    st.sampled_from(["system", "user", "assistant", "tool"]),
    st.one_of(st.text(), st.sampled_from([" a ", "\n\nb\n", "{{ x }}", "{% generation %}", "<b>&'\"</b>"])),
)


@pytest.mark.parametrize("name", TEMPLATES)
@given(conversation=st.lists(messages, max_size=5), generation=st.booleans())
def test_text_is_rendered_as_by_transformers(name: str, conversation: list[Any], generation: bool) -> None:
    template = TEMPLATES[name]
    variables = {**VARIABLES, "messages": conversation, "tools": None, "add_generation_prompt": generation}
    try:
        (theirs,), _ = render_jinja_template(
            conversations=[conversation], chat_template=template, add_generation_prompt=generation, **VARIABLES
        )
    except (TemplateError, UndefinedError) as refusal:
        with pytest.raises(type(refusal)):
            render(template, variables)
        return
    assert render(template, variables) == theirs


def theirs_and_ours() -> tuple[Any, ByteTokenizer]:
    return PreTrainedTokenizerFast(tokenizer_object=byte_backend(), pad_token=PAD, eos_token=EOS), ByteTokenizer()


def test_the_byte_tokenizer_has_the_attributes_of_transformers() -> None:
    theirs, ours = theirs_and_ours()
    for name in ("chat_template", "name_or_path", "pad_token", "pad_token_id", "eos_token_id", "bos_token_id"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert ours.special_tokens_map == theirs.special_tokens_map
    assert list(ours.all_special_tokens) == theirs.all_special_tokens
    assert ours.added_tokens_decoder == theirs.added_tokens_decoder
    assert ours.convert_tokens_to_ids("</s>") == theirs.convert_tokens_to_ids("</s>") == 1


@given(text=st.text(), skip=st.booleans())
def test_bytes_are_encoded_and_decoded_as_by_transformers(text: str, skip: bool) -> None:
    theirs, ours = theirs_and_ours()
    ids = [*theirs(text)["input_ids"], 1, 0]
    assert ours.backend_tokenizer.encode(text).ids == ids[:-2]
    assert len(ids) == len(text.encode()) + 2 or any(token in text for token in (EOS, PAD))
    assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)


def test_the_report_on_bytes_is_that_of_a_tokenizer_of_transformers(tmp_path: Path) -> None:
    path = tmp_path / "turns.jsonl"
    turns = [{"role": role, "content": f"{role} </s> é"} for role in ("system", "user", "assistant", "user")]
    rows = [{"prompt": turns, "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    renderer = Renderer(theirs_and_ours()[0], chat_template=None, max_length=2**31 - 1)
    theirs = ingest(DataConfig(sources=[SourceConfig(path=str(path))]), renderer, tmp_path, Silent(), unit="bytes")
    assert check([str(path)]) == theirs
