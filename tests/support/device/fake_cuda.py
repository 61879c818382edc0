"""Measure passes of public models on fake tensors on `cuda`, in a build of PyTorch without CUDA.

    LD_PRELOAD=no_op_cuda.so python fake_cuda.py MODEL...

The library is `no_op_cuda.cpp`, compiled. PyTorch must find it when it starts, so this is a program. It prints a JSON
list with an entry for each model and precision: the peaks on `cuda`, and those of a plan for a card that is not there.
"""

from __future__ import annotations

import json
import sys
from typing import Any
from unittest.mock import patch

import torch
import torch.cuda.amp.common
from public_models import public_config
from torch import Tensor
from transformers import AttentionInterface

from alignment_core.config import LoraConfig
from alignment_core.models.memory import dry_run
from alignment_core.models.memory.architecture import Architecture, Pass
from alignment_core.models.memory.dry_run import DryRun
from alignment_core.plugin_api import TokenSequence

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
ROLES = ("policy", "value")
SEQUENCES = tuple(TokenSequence((0,) * length, 1) for length in (256, 512, 768))
PASSES = (Pass("policy", SEQUENCES, 1536), Pass("value", SEQUENCES, 1536, head=True))


def flash(query: Tensor, key: Tensor, value: Tensor, *, attn_mask: None, is_causal: bool, scale: float) -> Tensor:
    """Attend as a card does, where fake tensors would choose the formula with all weights."""
    attend = torch.ops.aten._scaled_dot_product_flash_attention
    found: Tensor = attend(query, key, value, 0.0, is_causal, scale=scale)[0]
    return found


def peaks(name: str, load_in: Any, device: torch.device) -> list[int]:
    """Return the peaks of a micro-batch with kept and with recomputed activations, and of a pass without gradients."""
    with patch.object(dry_run, "fake_device", lambda _: device):
        run = DryRun(Architecture(public_config(name), load_in, LoraConfig(), ROLES, ("value",), ROLES, CUDA))
    return [*(run.training(PASSES, checkpointing=on) for on in (False, True)), run.reading(PASSES[0])]


def measure(name: str, load_in: str) -> dict[str, Any]:
    planned = peaks(name, load_in, CPU)
    attention = sys.modules[AttentionInterface()["alignment_packed"].__module__]
    with patch.object(attention, "scaled_dot_product_attention", flash):
        return {"model": name, "load_in": load_in, "cuda": peaks(name, load_in, CUDA), "planned": planned}


if __name__ == "__main__":
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    torch.cuda.is_bf16_supported = lambda including_emulation=True: True
    # Without a kernel for CUDA in the build, PyTorch would take this derivative apart into five tensors.
    kernels = torch.library.Library("aten", "IMPL")
    kernels.impl("silu_backward", lambda gradient, states: torch.empty_like(states), "CUDA")
    print(json.dumps([measure(name, load_in) for name in sys.argv[1:] for load_in in ("nf4", "bf16")]))
