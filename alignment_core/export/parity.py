"""The parity check: compare the logits and greedy answers of an exported model with those of the adapter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from alignment_core.data.rendering.renderer import Renderer
from alignment_core.errors import ModelError
from alignment_core.export.tokenizer_files import PROMPTS
from alignment_core.plugin_api import TokenSequence

NEW_TOKENS = 24
SINGLE = 2.0**-24
"""Unit roundoff of float32."""
ROOM = 3
"""The largest differences of two draws of the same noise are within this factor of each other."""


def greedy_answers(model: Any, renderer: Renderer) -> list[TokenSequence]:
    """Return each prompt followed by the model's greedy answer."""
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
    """Return the logits of every sequence: float32 tensors of shape (tokens, vocabulary) on the CPU."""
    with torch.no_grad():
        return [
            model(input_ids=torch.tensor([sequence.ids], device=model.device), use_cache=False).logits[0].float().cpu()
            for sequence in sequences
        ]


def rounding_noise(model: Any, sequences: Sequence[TokenSequence], logits: Sequence[Tensor], roundoff: float) -> float:
    """Return the largest change of this model's logits that one more rounding of its weights would cause.

    Rounding to nearest gives each weight a relative error of at most `roundoff` that is practically random. Each weight
    is multiplied by 1 plus such an error, which modifies the model in place.

    Args:
        model: the model in float32.
        sequences: the input sequences.
        logits: the logits before the change.
        roundoff: unit roundoff of the tested data type.
    """
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        weight.mul_(1 + roundoff * (2 * torch.rand(weight.shape, generator=generator) - 1))
    return largest_difference(logits, logits_of(model, sequences))


def largest_difference(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """Return the largest absolute difference between two models' logits."""
    return max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True))


def check_logits(adapter: Sequence[Tensor], exported: Sequence[Tensor], allowed: float, what: str) -> dict[str, float]:
    """Return the largest difference and the tolerance.

    Raises:
        ModelError: the difference exceeds the tolerance or is NaN.
    """
    difference = largest_difference(adapter, exported)
    if not difference <= allowed:
        raise ModelError(
            f"{what} is not the model that was trained",
            where="parity check",
            got=f"logits that differ by up to {difference:.3g} from the adapter's on the same full-precision base",
            expected=f"at most {allowed:.3g}",
            do="Nothing was exported. This is a bug in Alignment Flows or in a library. Export the adapter instead",
        )
    return {"largest_difference": difference, "tolerance": allowed}


def check_answers(
    sequences: Sequence[TokenSequence], adapter: Sequence[Tensor], exported: Sequence[Tensor], difference: float
) -> int:
    """Return how many greedy answers of the adapter the exported model reproduces.

    Both models read the adapter's answers: greedy decoding gives the same text if and only if the most likely token is
    the same at each position. A different token is accepted only if the adapter's lead over it is at most twice the
    rounding difference.

    Raises:
        ModelError: a different token wins against a larger lead.
    """
    same = 0
    for number, (sequence, ours, theirs) in enumerate(zip(sequences, adapter, exported, strict=True), start=1):
        places = slice(sequence.start - 1, len(sequence.ids) - 1)
        answer = torch.tensor(sequence.ids[sequence.start :])
        wins = theirs[places].argmax(dim=-1)
        differing = (wins != answer).nonzero().flatten().tolist()
        for place in differing[:1]:
            row = ours[places][place]
            gap = float(row[answer[place]] - row[wins[place]])
            if gap > 2 * difference:
                raise ModelError(
                    "the exported model does not give the same answers as the trained one",
                    where=f"parity check, prompt {number}",
                    got=f"a different token after {place} tokens, although the adapter's token leads by {gap:.3g}",
                    expected=f"the same token, unless it leads by at most twice the rounding, {2 * difference:.3g}",
                )
        same += not differing
    return same


def distance(adapter: Sequence[Tensor], other: Sequence[Tensor]) -> dict[str, float]:
    """Return the distance of another model's predictions from the adapter's on the same tokens; KL in nats."""
    ours, theirs = torch.cat(list(adapter)), torch.cat(list(other))
    kl = torch.nn.functional.kl_div(
        theirs.log_softmax(-1), ours.log_softmax(-1), reduction="batchmean", log_target=True
    )
    return {
        "largest_logit_difference": float((ours - theirs).abs().max()),
        "kl_per_token": float(kl),
        "same_likeliest_token": float((ours.argmax(-1) == theirs.argmax(-1)).float().mean()),
    }
