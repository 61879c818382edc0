"""Commands that serve an exported model with vLLM."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignment_core.models.base.adapter_identity import UNDERSTOOD, WITHOUT_EFFECT

VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Allowed values of vLLM's `--max-lora-rank`. The adapter's rank may be lower."""


UNSUPPORTED = {
    "use_dora": "DoRA adapters",
    "target_parameters": "adapters on stacked experts",
    "modules_to_save": "adapters that also hold complete modules",
    "rank_pattern": "adapters with several ranks",
    "alpha_pattern": "adapters with several scales",
}
"""Settings of an adapter that vLLM refuses or, like the last two, does not read, and what they stand for."""


def vllm_refusal(adapter: Mapping[str, Any]) -> str | None:
    """Return why vLLM cannot serve this adapter on its base model, or None if it can.

    Args:
        adapter: the parsed `adapter_config.json`.
    """
    used = {field for field, value in adapter.items() if value not in WITHOUT_EFFECT}
    if named := [what for field, what in UNSUPPORTED.items() if field in used]:
        return f"vLLM does not support {named[0]}"
    if ignored := used - UNDERSTOOD:
        return f"vLLM does not read `{min(ignored)}`, which this adapter uses"
    if adapter["r"] > VLLM_RANKS[-1]:
        return f"vLLM supports adapters up to rank {VLLM_RANKS[-1]}, but this one has rank {adapter['r']}"
    return None


def vllm_adapter_command(base: str, revision: str | None, name: str, folder: Path, rank: int) -> str:
    """Return the command that serves the base model with an exported adapter as a separate model called `name`."""
    words = ["vllm", "serve", base]
    if revision is not None:
        words += ["--revision", revision]
    words += ["--enable-lora", "--max-lora-rank", str(next(size for size in VLLM_RANKS if size >= rank))]
    words += ["--lora-modules", f"{name}={folder}", "--chat-template", f"{folder}/chat_template.jinja"]
    # For the stop tokens: the base model's settings may lack the token that ends a turn in the template.
    return shlex.join([*words, "--generation-config", str(folder)])


def vllm_merged_command(folder: Path) -> str:
    """Return the command that serves a merged model."""
    return shlex.join(["vllm", "serve", str(folder)])
