"""The shortest time that a run could take on a card: its arithmetic and its weight traffic, without launches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from alignment_core.models.base.layers import linear_layers
from alignment_core.plugin_api import TokenSequence
from alignment_core.training.demand import Demand
from gpu_cases.kinds.runs import now
from gpu_cases.place import Place

ARITHMETIC, TRAFFIC = 0.75, 0.85
"""Shares of the published peaks that good kernels reach."""
PEAKS = {
    "NVIDIA GeForce RTX 3060": (25.5, 360),
    "NVIDIA GeForce RTX 3090": (71, 936),
    "NVIDIA GeForce RTX 4090": (165, 1008),
    "NVIDIA GeForce RTX 5090": (209.5, 1792),
    "NVIDIA L4": (121, 300),
    "NVIDIA A100-SXM4-80GB": (312, 2039),
    "NVIDIA H100 80GB HBM3": (989, 3350),
    "NVIDIA H200": (989, 4800),
}
"""By device name: dense bf16 products with float32 sums in TFLOP/s, and bandwidth in GB/s, from the data sheets."""


@dataclass(frozen=True)
class Limits:
    """What a device can do at most: floating-point operations and bytes per second, and where the numbers are from."""

    operations: float
    traffic: float
    source: str


def limits_of(place: Place) -> Limits:
    """Return the limits of a known card, or measured ones."""
    if place.name in PEAKS:
        teraflops, gigabytes = PEAKS[place.name]
        return Limits(ARITHMETIC * teraflops * 1e12, TRAFFIC * gigabytes * 1e9, "data sheet")
    size, dtype = (4096, torch.bfloat16) if place.is_card else (512, torch.float32)
    left, right = (torch.randn(size, size, device=place.device, dtype=dtype) for _ in range(2))
    product = _seconds(place, lambda: left @ right)
    source = torch.ones(2**26 if place.is_card else 2**22, device=place.device)
    copied = torch.empty_like(source)
    copy = _seconds(place, lambda: copied.copy_(source))
    return Limits(2 * size**3 / product, 2 * source.nbytes / copy, "measured")


def _seconds(place: Place, work: Callable[[], object]) -> float:
    work()
    began = now(place.device)
    for _ in range(5):
        work()
    return (now(place.device) - began) / 5


@dataclass(frozen=True)
class Size:
    """A model in numbers. Count it before adapters are added.

    Attributes:
        body: weights of the linear layers.
        head: weights of the output head.
        attention: query heads times their width times layers.
        bytes_read: bytes per weight of the body that one pass moves: quantized ones are read, written and read again.
        bytes_stored: bytes per weight of the body.
    """

    body: int
    head: int
    attention: int
    bytes_read: float
    bytes_stored: float

    @classmethod
    def of(cls, model: PreTrainedModel, load_in: str) -> Size:
        config = model.config
        body = sum(
            layer.in_features * layer.out_features for layer in linear_layers(model) if isinstance(layer, nn.Linear)
        )
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        stored = 0.52 if load_in == "nf4" else float(model.dtype.itemsize)
        read = stored + 2 * model.dtype.itemsize if load_in == "nf4" else stored
        attention = config.num_attention_heads * width * config.num_hidden_layers
        return cls(body, config.vocab_size * config.hidden_size, attention, read, stored)


def shortest_seconds(
    size: Size, limits: Limits, demand: Demand, sequences: Sequence[TokenSequence], *, budget: int, recomputed: float
) -> float:
    """Return the shortest time of a run that learns, reads and samples as `demand` says.

    A frozen weight takes two operations per token forward and two backward, and two more if its layer is recomputed.
    The gradient of the output head is computed with the logits. Attention takes 2.5 times its forward pass in backward.

    Args:
        sequences: sequences as the run learns them, from which the mean length and the share of targets are taken.
        budget: tokens in one pass.
        recomputed: share of the layers that backward recomputes.
    """
    tokens = sum(len(s.ids) for s in sequences)
    targets = sum(s.targets for s in sequences) / tokens
    length = sum(len(s.ids) ** 2 for s in sequences) / tokens
    attention = 2 * size.attention * length
    passes = 2 + recomputed
    learned = demand.learned * (2 * passes * size.body + (1 + recomputed + 2.5) * attention + 4 * size.head * targets)
    read = demand.read * (2 * size.body + attention + 2 * size.head * targets)
    sampled = demand.responses * demand.response_tokens * 2 * (size.body + size.head)
    moved = size.body * size.bytes_read * (passes * demand.learned + demand.read) / budget
    if demand.responses:  # one token for all rows at a time
        calls = demand.response_tokens * demand.responses / max(1, demand.generated_together)
        moved += calls * (size.body * size.bytes_stored + 2 * size.head)
    return (learned + read + sampled) / limits.operations + moved / limits.traffic
