"""How an exported model is started elsewhere."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's `--max-lora-rank` may be; an adapter may have less."""


def vllm_refusal(adapter: Mapping[str, Any]) -> str | None:
    """Why vLLM could not serve this adapter beside its base; None where it can.

    Args:
        adapter: its `adapter_config.json`.
    """
    if adapter.get("use_dora"):
        return "vLLM serves no DoRA adapter"
    if adapter["r"] > VLLM_RANKS[-1]:
        return f"vLLM serves adapters of rank {VLLM_RANKS[-1]} at most, and this one has {adapter['r']}"
    return None


def vllm_adapter_command(base: str, revision: str | None, name: str, folder: Path, rank: int) -> str:
    """Serve the base with an exported adapter as a model of its own name."""
    words = ["vllm", "serve", base]
    if revision is not None:
        words += ["--revision", revision]
    words += ["--enable-lora", "--max-lora-rank", str(next(size for size in VLLM_RANKS if size >= rank))]
    words += ["--lora-modules", f"{name}={folder}", "--chat-template", f"{folder}/chat_template.jinja"]
    # Where the answer ends: the base's own settings may not know the token that the template ends a turn with.
    return shlex.join([*words, "--generation-config", str(folder)])


def vllm_merged_command(folder: Path) -> str:
    """Serve a merged model."""
    return shlex.join(["vllm", "serve", str(folder)])
