"""Target `ollama`: a merged model with a Modelfile for `ollama create`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from alignment_core.errors import ModelError
from alignment_core.export.targets import merged
from alignment_core.export.targets.go_template import Message, TemplateParts, infer_template_parts
from alignment_core.inference.trained_model import TrainedModel

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
"""Architectures that `ollama create` converts from safetensors (`ConvertModel` in its `convert/convert.go`)."""
SAMPLING = {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "repetition_penalty": "repeat_penalty"}
"""Settings in generation_config.json and their names in Ollama."""
CONTEXT = 8192
"""Default maximum context in tokens. Ollama reserves memory for all of them."""


def write(origin: TrainedModel, folder: Path) -> dict[str, Any]:
    """Merge and write the Modelfile.

    Raises:
        ModelError: Ollama cannot read the architecture, the template has no Go equivalent, or the parity check fails.
    """
    config = AutoConfig.from_pretrained(origin.base, revision=origin.revision, trust_remote_code=False)
    architecture = config.architectures[0]
    if architecture not in ARCHITECTURES:
        raise ModelError(
            "Ollama cannot read models of this architecture from safetensors",
            where=str(origin.base),
            got=architecture,
            expected=f"one of {', '.join(ARCHITECTURES)}",
            do="Export with `--to gguf`, and use that file in a Modelfile",
        )
    found = merged.write(origin, folder)
    turns, bos = _read_template(folder, str(origin.folder))
    _write_add_bos(folder, adds=bos)
    context = min(getattr(config, "max_position_embeddings", CONTEXT), CONTEXT)
    (folder / MODELFILE).write_text(_modelfile(folder, turns, context), encoding="utf-8")
    return found


def _read_template(folder: Path, where: str) -> tuple[TemplateParts, bool]:
    """Return the template without a leading BOS, which Ollama adds itself, and whether the template writes one."""
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    bos = tokenizer.bos_token or ""

    def render(messages: Sequence[Message], ask: bool) -> str:
        text: str = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=ask)
        return text.removeprefix(bos)

    turns = infer_template_parts(render, where)
    written = tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    return turns, bool(bos) and written.startswith(bos)


def _write_add_bos(folder: Path, *, adds: bool) -> None:
    """Write `add_bos_token`. Without it, the converters of Ollama and llama.cpp add a BOS to every prompt."""
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text(encoding="utf-8")) | {"add_bos_token": adds}
    file.write_text(json.dumps(settings, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _modelfile(folder: Path, turns: TemplateParts, context: int) -> str:
    generation, tokenizer = (
        GenerationConfig.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder, trust_remote_code=False),
    )
    lines = ["FROM .", f'TEMPLATE """{turns.go()}"""']
    if turns.system is not None:
        lines.append(f'SYSTEM """{turns.system}"""')
    stops = generation.eos_token_id if isinstance(generation.eos_token_id, list) else [generation.eos_token_id]
    lines += [f"PARAMETER stop {json.dumps(tokenizer.convert_ids_to_tokens(stop))}" for stop in stops]
    lines.append(f"PARAMETER num_ctx {context}")
    chosen = {theirs: getattr(generation, ours, None) for ours, theirs in SAMPLING.items()}
    lines += [f"PARAMETER {name} {value}" for name, value in chosen.items() if value is not None]
    return "\n".join(lines) + "\n"
