"""Target `ollama`: a merged model with the Modelfile that `ollama create` takes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from alignment_core.errors import ModelError
from alignment_core.export import merged
from alignment_core.export.go_template import Message, Turns, read_off
from alignment_core.export.origin import Origin

MODELFILE = "Modelfile"
ARCHITECTURES = (
    "LlamaForCausalLM",
    "MixtralForCausalLM",
    "GemmaForCausalLM",
    "Gemma2ForCausalLM",
    "Gemma3ForCausalLM",
    "Phi3ForCausalLM",
    "Qwen2ForCausalLM",
    "CohereForCausalLM",
)
"""What `ollama create` converts from safetensors by itself (`ConvertModel` in its `convert/convert.go`)."""
SAMPLING = {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "repetition_penalty": "repeat_penalty"}
"""Settings of a generation_config.json, and Ollama's names for them."""
CONTEXT = 8192
"""Tokens of context at most, unless the Modelfile is changed: Ollama reserves memory for all of them."""


def write(origin: Origin, folder: Path) -> dict[str, Any]:
    """Merge, and write the Modelfile.

    Raises:
        ModelError: Ollama cannot read such a model, its template has no Go equivalent, or the parity check fails.
    """
    config = AutoConfig.from_pretrained(origin.base, revision=origin.revision)
    architecture = config.architectures[0]
    if architecture not in ARCHITECTURES:
        raise ModelError(
            "Ollama does not read models of this architecture from safetensors",
            where=str(origin.base),
            got=architecture,
            expected=f"one of {', '.join(ARCHITECTURES)}",
            do="Export it by `--to gguf`, and name that file in a Modelfile",
        )
    found = merged.write(origin, folder)
    turns, bos = _read_template(folder, str(origin.folder))
    _tell_whether_bos(folder, adds=bos)
    context = min(getattr(config, "max_position_embeddings", CONTEXT), CONTEXT)
    (folder / MODELFILE).write_text(_modelfile(folder, turns, context), encoding="utf-8")
    return found


def _read_template(folder: Path, where: str) -> tuple[Turns, bool]:
    """The template without a leading BOS, and whether it writes one: Ollama puts it in front by itself."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    bos = tokenizer.bos_token or ""

    def render(messages: Sequence[Message], ask: bool) -> str:
        text: str = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=ask)
        return text.removeprefix(bos)

    turns = read_off(render, where)
    written = tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    return turns, bool(bos) and written.startswith(bos)


def _tell_whether_bos(folder: Path, *, adds: bool) -> None:
    """Say so where Ollama's and llama.cpp's converters look; unsaid, they add one to every prompt."""
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text(encoding="utf-8")) | {"add_bos_token": adds}
    file.write_text(json.dumps(settings, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _modelfile(folder: Path, turns: Turns, context: int) -> str:
    generation, tokenizer = GenerationConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    lines = ["FROM .", f'TEMPLATE """{turns.go()}"""']
    if turns.system is not None:
        lines.append(f'SYSTEM """{turns.system}"""')
    stops = generation.eos_token_id if isinstance(generation.eos_token_id, list) else [generation.eos_token_id]
    lines += [f"PARAMETER stop {json.dumps(tokenizer.convert_ids_to_tokens(stop))}" for stop in stops]
    lines.append(f"PARAMETER num_ctx {context}")
    chosen = {theirs: getattr(generation, ours, None) for ours, theirs in SAMPLING.items()}
    lines += [f"PARAMETER {name} {value}" for name, value in chosen.items() if value is not None]
    return "\n".join(lines) + "\n"
