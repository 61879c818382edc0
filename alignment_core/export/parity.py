"""Whether an exported model is the trained one: its logits and its greedy answers beside the adapter's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from alignment_core.data.rendering import Renderer
from alignment_core.errors import ModelError
from alignment_core.export.speech import PROMPTS
from alignment_core.plugin_api import TokenSequence

NEW_TOKENS = 24
SINGLE = 2.0**-24
"""Unit roundoff of float32."""
ROOM = 3
"""Two draws of the same noise have largest differences that are within this factor of each other."""


def greedy_answers(model: Any, renderer: Renderer) -> list[TokenSequence]:
    """Each prompt with the model's greedy answer."""
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=NEW_TOKENS,
        eos_token_id=list(renderer.stop_ids),
        pad_token_id=renderer.pad_id,
    )
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2 * NEW_TOKENS
    sequences = []
    for messages in PROMPTS:
        prompt = renderer.prompt(messages).ids[-(context - NEW_TOKENS) :]
        ids = torch.tensor([prompt], device=model.device)
        answered = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings)
        sequences.append(TokenSequence(tuple(answered[0].tolist()), len(prompt)))
    return sequences


def logits_of(model: Any, sequences: Sequence[TokenSequence]) -> list[Tensor]:
    """Logits at every position of every sequence, each of shape (tokens, vocabulary), float32, on the CPU."""
    with torch.no_grad():
        return [
            model(input_ids=torch.tensor([sequence.ids], device=model.device), use_cache=False).logits[0].float().cpu()
            for sequence in sequences
        ]


def noise(model: Any, sequences: Sequence[TokenSequence], logits: Sequence[Tensor], roundoff: float) -> float:
    """How much rounding moves this model's logits: the largest difference that one more rounding of it would make.

    Rounding to the nearest gives each weight a relative error of at most `roundoff`, as good as random. So that is what
    each weight is multiplied by, and the model is spoiled by it.

    Args:
        model: in float32.
        sequences: what it reads.
        logits: its logits before.
        roundoff: unit roundoff of the type that is asked about.
    """
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        weight.mul_(1 + roundoff * (2 * torch.rand(weight.shape, generator=generator) - 1))
    return largest_difference(logits, logits_of(model, sequences))


def largest_difference(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """The largest absolute difference of two models' logits."""
    return max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True))


def check_logits(adapter: Sequence[Tensor], exported: Sequence[Tensor], allowed: float, what: str) -> dict[str, float]:
    """The largest difference, and what is allowed.

    Raises:
        ModelError: it is more than is allowed, or not a number.
    """
    difference = largest_difference(adapter, exported)
    if not difference <= allowed:
        raise ModelError(
            f"{what} is not the model that was trained",
            where="parity check",
            got=f"logits that differ by up to {difference:.3g} from the adapter's on the same full-precision base",
            expected=f"at most {allowed:.3g}",
            do="Nothing was exported. This is a mistake of ours or of a library: export the adapter instead",
        )
    return {"largest_difference": difference, "tolerance": allowed}


def check_answers(
    sequences: Sequence[TokenSequence], adapter: Sequence[Tensor], exported: Sequence[Tensor], difference: float
) -> int:
    """How many of the adapter's greedy answers are the exported model's, too.

    Both are read along the adapter's answers: greedy decoding gives the same text if and only if the likeliest token
    is the same at each place. Only where the adapter's two likeliest tokens are closer together than rounding moved
    the logits may another one win.

    Raises:
        ModelError: another token wins by more than that.
    """
    same = 0
    for number, (sequence, ours, theirs) in enumerate(zip(sequences, adapter, exported, strict=True), start=1):
        places = slice(sequence.start - 1, len(sequence.ids) - 1)
        said = torch.tensor(sequence.ids[sequence.start :])
        wins = theirs[places].argmax(dim=-1)
        differing = (wins != said).nonzero().flatten().tolist()
        for place in differing[:1]:
            row = ours[places][place]
            gap = float(row[said[place]] - row[wins[place]])
            if gap > 2 * difference:
                raise ModelError(
                    "the exported model answers otherwise than the one that was trained",
                    where=f"parity check, prompt {number}",
                    got=f"another token after {place} tokens, against a lead of {gap:.3g}",
                    expected=f"the same, unless the lead is within twice the rounding, {2 * difference:.3g}",
                )
        same += not differing
    return same


def distance(adapter: Sequence[Tensor], other: Sequence[Tensor]) -> dict[str, float]:
    """How far another model's predictions are from the adapter's, along the same tokens; KL in nats."""
    ours, theirs = torch.cat(list(adapter)), torch.cat(list(other))
    kl = torch.nn.functional.kl_div(
        theirs.log_softmax(-1), ours.log_softmax(-1), reduction="batchmean", log_target=True
    )
    return {
        "largest_logit_difference": float((ours - theirs).abs().max()),
        "kl_per_token": float(kl),
        "same_likeliest_token": float((ours.argmax(-1) == theirs.argmax(-1)).float().mean()),
    }
