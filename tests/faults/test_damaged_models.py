"""A damaged file of a model is named before the run starts, whatever the damage."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from powers import permissions_count
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from alignment_core.config import LoraConfig
from alignment_core.data.rendering.tokenizer import generation_stops
from alignment_core.errors import ModelError, loading_failure
from alignment_core.models.base.adapter_identity import UNDERSTOOD, adapter_identity
from alignment_core.models.base.base_checks import (
    check_files,
    check_positions,
    check_precision,
    positions_made_for,
    rows_to_add,
)
from alignment_core.models.base.identity import model_identity, read_json
from alignment_core.models.base.loading import bare_model, read_config
from alignment_core.models.roles import adapter_patterns
from alignment_core.models.roles.adapters import Adapters
from alignment_core.stages.adapter import check_fit

JUNK = [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"a":' * 100_000, b"[" * 100_000, b'{"a": ' + b"1" * 10_000 + b"}"]
WRONG: list[Any] = [True, -1, 1.5, float("nan"), float("inf"), "x", ["x"], [1], [[]], [None], {"x": None}, {"x": "y"}]


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def check(folder: Path) -> None:
    """Do what a plan does with these files."""
    found = model_identity(str(folder), None)
    check_files(found, "model.base")
    check_precision(found, "bf16", "model.base")
    check_positions(found, 128, {}, "model.base")
    positions_made_for(found)
    rows_to_add(found, None, "model.base", resize=False)
    generation_stops(str(folder))


@pytest.mark.parametrize("junk", JUNK, ids=range(len(JUNK)))
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "generation_config.json", "added_tokens.json"])
def test_file_that_is_no_json_object(model: Path, name: str, junk: bytes) -> None:
    (model / name).write_bytes(junk)
    with pytest.raises(ModelError, match=name):
        check(model)


def with_value(path: str) -> Callable[[dict[str, Any], Any], None]:
    *parents, last = path.split("/")

    def put(fields: dict[str, Any], value: Any) -> None:
        for name in parents:
            fields = fields.setdefault(name, {})
        fields[last] = value

    return put


def change_config(model: Path, path: str, value: Any) -> None:
    """Set a field of a model's config.json, which may be inside another one: `a/b`."""
    file = model / "config.json"
    fields = json.loads(file.read_text())
    with_value(path)(fields, value)
    file.write_text(json.dumps(fields))


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("tokenizer.json", "model"), ("tokenizer.json", "model/vocab"), ("tokenizer.json", "added_tokens"),
        ("tokenizer_config.json", "added_tokens_decoder"), ("added_tokens.json", "x"),
        ("config.json", "model_type"), ("config.json", "quantization_config"),
        ("generation_config.json", "eos_token_id"), ("model.safetensors.index.json", "weight_map"),
    ],
)  # fmt: skip
def test_value_of_another_kind(model: Path, name: str, path: str) -> None:
    """Either it is named, or it does no harm. It never is a traceback."""
    file, named = model / name, []
    fields = json.loads(file.read_text()) if file.exists() else {}
    for value in WRONG:
        changed = json.loads(json.dumps(fields))
        with_value(path)(changed, value)
        file.write_text(json.dumps(changed))
        try:
            check(model)
        except ModelError as error:
            named.append(str(error))
    assert len(named) >= len(WRONG) / 3
    other = ("a file of weights is missing", "the model is quantized already")
    assert [text for text in named if name not in text and not any(words in text for words in other)] == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_size", 10**9), ("hidden_size", -32), ("hidden_size", "32"), ("hidden_size", True),
        ("hidden_size", 10**300), ("hidden_size", 0), ("num_hidden_layers", 10**6), ("num_hidden_layers", 1.5),
        ("vocab_size", 10**12), ("num_attention_heads", -1), ("intermediate_size", [64, "x"]), ("head_dim", 10**9),
    ],
)  # fmt: skip
@pytest.mark.parametrize("part", ["", "text_config/", "a/b/"])
def test_size_that_no_model_has(model: Path, part: str, field: str, value: Any) -> None:
    """It would take all memory or hours, or end in the code of transformers."""
    change_config(model, f"{part}{field}", value)
    with pytest.raises(ModelError, match=rf"config\.json: .*{field}"):
        check(model)


def test_model_that_is_larger_than_its_weights(model: Path) -> None:
    file = model / "config.json"
    fields = json.loads(file.read_text())
    longest = max(fields["vocab_size"], 64)
    for field, most, whose in (("hidden_size", longest, "values"), ("num_hidden_layers", 21, "tensors")):
        # Two layers of 9 tensors each, the embedding, the last norm and the head.
        file.write_text(json.dumps({**fields, field: most}))
        check(model)
        file.write_text(json.dumps({**fields, field: most + 1}))
        with pytest.raises(ModelError, match=rf"larger than its weights. got {field} {most + 1}, .* {most} {whose}"):
            check(model)


def test_configuration_of_many_levels(model: Path) -> None:
    """It takes no longer than one of two."""
    change_config(model, "/".join("a" * 300), 1)
    check(model)


@pytest.mark.parametrize("part", ["", "text_config/"])
@pytest.mark.parametrize("field", ["attn_implementation", "_attn_implementation", "_attn_implementation_internal"])
@pytest.mark.parametrize("value", ["evil/code", "evil/code@main:f", "msa|evil/code", {"": "eager", "x": "evil/code"}])
def test_code_of_another_repository(model: Path, part: str, field: str, value: Any) -> None:
    """transformers would load it with the package `kernels`, if that is installed."""
    change_config(model, f"{part}{field}", value)
    with pytest.raises(ModelError, match=f"code in another repository.*{field}: .*evil/code"):
        check(model)
    if not part and isinstance(value, str) and "internal" not in field:  # transformers leaves that out itself
        with pytest.raises(ModelError, match="code in another repository"):
            read_config(str(model), None)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_attention_heads", 0), ("rms_norm_eps", "x"), ("tie_word_embeddings", "x"), ("rope_scaling", 3),
        ("layer_types", 3), ("dtype", [1]), ("pad_token_id", 10**9), ("hidden_act", "__import__"), ("id2label", [1]),
        ("num_key_value_heads", 3), ("rope_scaling", {"rope_type": "unknown"}), ("architectures", 7),
    ],
)  # fmt: skip
def test_field_that_transformers_does_not_check(model: Path, field: str, value: Any) -> None:
    """Either it is named in one line, or it does no harm."""
    file = model / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), field: value}))
    try:
        with torch.device("meta"):
            bare_model(AutoModelForCausalLM, read_config(str(model), None), None)
    except (ValueError, KeyError, OSError) as error:
        reason = loading_failure(error)
    else:
        reason = "it does no harm"
    assert reason.strip()
    assert "\n" not in reason


def test_weights_outside_of_the_folder_are_refused(model: Path) -> None:
    outside = model.parent / "other.safetensors"
    shutil.copy(model / "model.safetensors", outside)
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": "../other.safetensors"}}))
    with pytest.raises(ModelError, match="no file beside it"):
        check(model)


@pytest.mark.parametrize(
    "field", ["r", "lora_alpha", "lora_dropout", "target_modules", "rank_pattern", "alpha_pattern"]
)
def test_adapter_with_a_value_of_another_kind(tmp_path: Path, field: str) -> None:
    """Either it is named in one line, or it does no harm."""
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4}
    tensors = {"q.lora_A.weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    (tmp_path / "adapter_model.safetensors").write_bytes(header(tensors) + bytes(4))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": [1, {"name": "default"}]}))
    assert adapter_identity_of(tmp_path, config) is None
    for value in WRONG:
        said = adapter_identity_of(tmp_path, {**config, field: value})
        assert said is None or (said.startswith("model.adapter: ") and "\n" not in said)


def adapter_identity_of(folder: Path, config: dict[str, Any]) -> str | None:
    """Return the error about the adapter, or None."""
    (folder / "adapter_config.json").write_text(json.dumps(config))
    try:
        adapter_identity(str(folder), None)
    except ModelError as error:
        return str(error)
    return None


@pytest.fixture(scope="module")
def saved_adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an adapter on the tiny model."""
    folder = tmp_path_factory.mktemp("adapter")
    adapters = Adapters(meta_model(tiny_model), str(tiny_model), None)
    adapters.add_new("some", LoraConfig(rank=2, target_modules=["q_proj", "v_proj"]), 0)
    weights = {name: torch.zeros(weight.shape) for name, weight in adapters.weights("some").items()}
    save_file(weights, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4}
    (folder / "adapter_config.json").write_text(json.dumps({**config, "target_modules": ["q_proj", "v_proj"]}))
    return folder


def meta_model(folder: Path) -> Any:
    with torch.device("meta"):
        return bare_model(AutoModelForCausalLM, read_config(str(folder), None), None)


def fit_of(adapter: Path, model: Path, target: Path, **fields: Any) -> str | None:
    """Return the error about an adapter with these fields, or None."""
    folder = Path(shutil.copytree(adapter, target, dirs_exist_ok=True))
    config = json.loads((adapter / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, **fields}))
    place = {"path": str(folder), "revision": None}
    try:
        adapter_identity(str(folder), None)
        check_fit(place, {"path": str(model), "revision": None})
    except ModelError as error:
        return str(error)
    return None


@pytest.mark.filterwarnings("ignore")  # of peft, about fields that it does not know
@pytest.mark.parametrize("field", sorted(UNDERSTOOD))
def test_field_of_an_adapter_that_peft_does_not_check(
    saved_adapter: Path, tiny_model: Path, tmp_path: Path, field: str
) -> None:
    """Either it is named in one line, or it does no harm. It never is a traceback."""
    assert fit_of(saved_adapter, tiny_model, tmp_path) is None
    for value in (True, -1, 10**9, float("nan"), "x", [[]], {"x": "y"}):
        said = fit_of(saved_adapter, tiny_model, tmp_path, **{field: value})
        assert said is None or ("\n" not in said and str(tmp_path) in said)


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"target_modules": r"(.*)*(\w*)*[qv]_proj\d"}, "take too long"),
        ({"target_modules": r".*[qv]_proj", "exclude_modules": r"(([\w.])+)+!"}, "take too long"),
        ({"rank_pattern": {r"((\w|\.)*)*x": 2}}, "take too long"),
        ({"target_modules": "(q_proj"}, "no regular expression"),
        ({"target_modules": r".*\.[qv]_proj"}, None),
        ({"rank_pattern": {"q_proj": 2}}, None),
    ],
)
def test_patterns_of_an_adapter(
    saved_adapter: Path,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fields: dict[str, Any],
    problem: str | None,
) -> None:
    monkeypatch.setattr(adapter_patterns, "SECONDS", 2)
    said = fit_of(saved_adapter, tiny_model, tmp_path, **fields)
    assert said is None if problem is None else problem in (said or "")


@pytest.mark.parametrize(
    "content", [b'{"base_model_name_or_path": ' + b"[" * 100_000, b"[1]", b'{"base_model_name_or_path": {}}']
)
def test_adapter_alone_with_a_damaged_configuration(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "adapter_config.json").write_bytes(content)
    with pytest.raises(ModelError, match=r"this is only an adapter.*the model that it was trained on"):
        model_identity(str(tmp_path), None)


def test_missing_file_has_no_fields() -> None:
    assert read_json(None) == {}


def header(content: object) -> bytes:
    """Return the start of a safetensors file with this header."""
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return len(text).to_bytes(8, "little") + text


def tensor(**fields: object) -> bytes:
    return header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **fields}})


@pytest.mark.parametrize(
    "content",
    [
        b"", (2**63).to_bytes(8, "little"), header(b"[" * 200_000), header(b'{"a":' * 200_000), header([1]),
        *(tensor(data_offsets=[0, end]) for end in (None, "x", [1], True, float("nan"), float("inf"), -1, 10**400)),
        *(tensor(shape=shape) for shape in ("xx", 3, [None], [-1])), header({"__metadata__": 1, "a": 1}),
        tensor(shape=[2]) + bytes(8), tensor(dtype="F16") + bytes(8), tensor(dtype=[]) + bytes(8),
        tensor(data_offsets=[4, 8]) + bytes(8), tensor(data_offsets=[4, 0]) + bytes(8),
        tensor(shape=[2**62, 0]) + bytes(8),
        header({name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for name in "ab"}) + bytes(4),
        header(b'{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"a":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}}')
        + bytes(8),
    ],
)  # fmt: skip
def test_header_of_weights_that_makes_no_sense(model: Path, content: bytes) -> None:
    (model / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        check(model)


def test_header_that_would_take_all_memory(model: Path) -> None:
    with (model / "model.safetensors").open("wb") as file:
        file.write((2**25 + 1).to_bytes(8, "little"))
        file.truncate(2**26)
    with pytest.raises(ModelError, match=r"more tensors than a model has.*header of 33554433 bytes"):
        check(model)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["pipe", "folder", "no target", "device"])
def test_weights_that_are_no_file(model: Path, kind: str) -> None:
    place = model / "more.safetensors"
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "folder":
        place.mkdir()
    else:
        place.symlink_to("/dev/zero" if kind == "device" else "/nowhere")
    with pytest.raises(ModelError, match=r"cannot be read.*more\.safetensors"):
        check(model)


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("config.json", 0),
        ("model.safetensors", 0),
        ("tokenizer.json", 0),
        (".", 0),
        (".", 0o111),
        (".", 0o444),
        ("..", 0),
    ],
)
def test_model_that_may_not_be_read(model: Path, name: str, mode: int) -> None:
    place = model / name
    before = place.stat().st_mode
    place.chmod(mode)
    try:
        with permissions_count(), pytest.raises(ModelError, match=r"cannot be read.*Permission denied.*permissions"):
            check(model)
    finally:
        place.chmod(before)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "."])
def test_adapter_that_may_not_be_read(saved_adapter: Path, tmp_path: Path, name: str) -> None:
    place = Path(shutil.copytree(saved_adapter, tmp_path / "adapter")) / name
    place.chmod(0)
    try:
        with permissions_count(), pytest.raises(ModelError, match=r"cannot be read.*Permission denied"):
            adapter_identity(str(tmp_path / "adapter"), None)
    finally:
        place.chmod(0o755)


def test_weights_with_a_name_that_no_file_has(model: Path) -> None:
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": "a" * 5000}}))
    with pytest.raises(ModelError, match="a file of weights is missing"):
        check(model)
