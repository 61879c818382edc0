"""The padding token is never a stop token, whatever special tokens the tokenizer has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from chat_styles import byte_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, normalizers, pre_tokenizers

from alignment_core.data.rendering.chat_template import ChatTemplate
from alignment_core.data.rendering.encoder import Encoder, Text
from alignment_core.data.rendering.renderer import Renderer, generation_stops, load_tokenizer
from alignment_core.data.rendering.tokenizer import growth_of
from alignment_core.errors import ModelError


def saved(folder: Path, tokenizer: Any, eos: Any = None) -> str:
    tokenizer.save_pretrained(folder)
    if eos is not None:
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
    return str(folder)


def tokenizer_of(vocabulary: list[str], **special: str) -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE({token: index for index, token in enumerate(vocabulary)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def test_existing_padding_token_is_kept(tmp_path: Path) -> None:
    assert load_tokenizer(saved(tmp_path, byte_tokenizer())).pad_token == "<pad>"


def test_gpt2_pads_with_a_byte_that_no_text_contains(tmp_path: Path) -> None:
    end = "<|endoftext|>"
    path = saved(tmp_path, tokenizer_of(["a", "b", "ÿ", end], bos_token=end, eos_token=end, unk_token=end))
    assert load_tokenizer(path).pad_token == "ÿ"


def test_llama3_pads_with_a_reserved_token(tmp_path: Path) -> None:
    names = ["a", "<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>"]
    tokenizer = tokenizer_of(names, bos_token=names[1], eos_token=names[2], additional_special_tokens=names[3:])
    assert load_tokenizer(saved(tmp_path, tokenizer)).pad_token == names[3]


def test_qwen_gets_another_padding_token_because_its_own_is_a_stop(tmp_path: Path) -> None:
    names = ["a", "<|endoftext|>", "<|im_end|>", "<|fim_pad|>"]
    tokenizer = tokenizer_of(names, eos_token=names[2], pad_token=names[1], additional_special_tokens=names[3:])
    path = saved(tmp_path, tokenizer, eos=[2, 1])
    loaded = load_tokenizer(path)
    assert loaded.pad_token == "<|fim_pad|>"
    renderer = Renderer(loaded, chat_template=None, max_length=9, generation_stops=generation_stops(path))
    assert renderer.pad_id == 3
    assert set(renderer.stop_ids) == {1, 2}


def test_no_possible_padding_token_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="pad_token"):
        load_tokenizer(saved(tmp_path, tokenizer_of(["a", "</s>"], eos_token="</s>")))


def test_renderer_rejects_a_padding_token_that_stops() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = "</s>"
    with pytest.raises(ModelError, match="padding"):
        Renderer(tokenizer, chat_template=None, max_length=9)


def test_missing_tokenizer_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_tokenizer(str(tmp_path / "nowhere"))


def test_generation_stops_are_one_id_several_or_none(tmp_path: Path) -> None:
    for eos, expected in ((2, (2,)), ([1, 2], (1, 2))):
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
        assert generation_stops(str(tmp_path)) == expected
    (tmp_path / "generation_config.json").write_text("{}")
    assert generation_stops(str(tmp_path)) == ()


def test_stories260k_also_stops_on_its_document_separator(stories260k: Path) -> None:
    """`<s>` = 1 separates documents in training, so generation_config stops on 1 or 2. `<unk>` = 0 pads."""
    path = str(stories260k)
    renderer = Renderer(
        load_tokenizer(path), chat_template=None, max_length=512, generation_stops=generation_stops(path)
    )
    sequence = renderer.completion(({"role": "user", "content": "Hi"},), ({"role": "assistant", "content": "Yes é"},))
    assert set(renderer.stop_ids) == {1, 2}
    assert renderer.pad_id == 0
    assert sequence.ids[0] == 1
    assert sequence.ids[-1] == 2
    assert renderer.decode(sequence.completion) == "Yes é"


def grown(text: str, normalizer: Any) -> float:
    return len(normalizer.normalize_str(text)) / len(text)


@given(
    st.text("ab ", min_size=1, max_size=20),
    st.lists(
        st.one_of(
            st.builds(normalizers.Replace, st.text("ab ", min_size=1, max_size=3), st.text("ab ", max_size=4)),
            st.builds(lambda new: normalizers.Replace(Regex("[ab]"), new), st.text("ab ", max_size=4)),
            st.builds(normalizers.Prepend, st.text("ab", min_size=1, max_size=3)),
            st.just(normalizers.NFKC()),
        ),
        max_size=4,
    ),
)
def test_no_text_grows_more_than_foreseen(text: str, parts: list[Any]) -> None:
    normalizer = normalizers.Sequence(parts)
    assert grown(text, normalizer) <= growth_of(json.loads(normalizer.__getstate__()))


def test_the_longest_decomposition_is_foreseen() -> None:
    assert grown("\ufdfa", normalizers.NFKC()) == growth_of({"type": "NFKC"})


@pytest.mark.parametrize(
    ("normalizer", "growth"),
    [
        (normalizers.Sequence([normalizers.Replace("a", "aa")] * 40), "1.1e[+]12"),
        (normalizers.Replace(" ", "x" * 1_000_000), "1e[+]06"),
        (normalizers.Replace(Regex(""), "x" * 200), "201"),
        (normalizers.Prepend("x" * 1_000_000), "1e[+]06"),
    ],
)
def test_tokenizer_that_blows_texts_up_is_refused(tmp_path: Path, normalizer: Any, growth: str) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizer
    with pytest.raises(ModelError, match=rf"normalizer: .* got up to {growth} times as long"):
        load_tokenizer(saved(tmp_path, tokenizer))


def test_pattern_that_takes_for_ever_is_reported(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("(a|aa)+$"), "isolated")
    encoder = Encoder(load_tokenizer(saved(tmp_path, tokenizer)))
    with pytest.raises(ModelError, match=r"the tokenizer fails on a text.* got Onig: Regex search error: retry-limit"):
        encoder.encode([Text("a" * 60 + "b")])


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["chat_template.jinja", "additional_chat_templates/tool.jinja"])
def test_template_that_is_too_large_is_not_read(tmp_path: Path, name: str) -> None:
    folder = Path(saved(tmp_path, byte_tokenizer()))
    (folder / name).parent.mkdir(exist_ok=True)
    with (folder / name).open("wb") as file:
        file.truncate(10**11)
    with pytest.raises(ModelError, match=f"{name}: the chat template is too large. got 100,000,000,000 characters"):
        load_tokenizer(str(folder))


def test_template_in_another_file_that_is_too_large_is_not_parsed(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(saved(tmp_path, byte_tokenizer()))
    tokenizer.chat_template = "{{ x }}" * 150_000
    with pytest.raises(ModelError, match=r"the chat template is too large. got 1,050,000 characters"):
        ChatTemplate(tokenizer, None)
