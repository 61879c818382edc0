"""What the ranks of a stage exchange in each step: proof that they have the same batch, and the sums of their parts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import sha256

import torch
from torch import nn

from alignment_core.errors import PluginError
from alignment_core.plugin_api import StepBatch
from alignment_core.ranks import Ranks


def check_same_batch(ranks: Ranks, batch: StepBatch | None, step: int) -> None:
    """Check that all ranks have the same rows in a step.

    Raises:
        PluginError: they differ.
    """
    if ranks.size == 1:
        return
    found = ranks.gather("batch", None if batch is None else _digest(batch))
    if len({*found}) > 1:
        raise PluginError(
            "the processes of the stage have different rows in the same step",
            where=f"batches, step {step + 1}",
            got=", ".join(f"rank {rank}: {digest[:8] if digest else 'no batch'}" for rank, digest in enumerate(found)),
            expected="rows that depend only on the run",
            do="Take random numbers from `run.random(name)`, or set `gpus: 1`",
        )


def _digest(batch: StepBatch) -> str:
    # Not of the numbers of rows: on cards, the last bits of what was computed on each of them may differ.
    digest = sha256()
    for row in batch.rows:
        named = [(name, sequence.digest()) for name, sequence in row.sequences.items()]
        digest.update(repr((row.id, named, sorted(row.values))).encode())
    digest.update(repr((sorted(batch.denominators), sorted(batch.constants))).encode())
    return digest.hexdigest()


def sum_over_ranks(ranks: Ranks, weights: Iterable[nn.Parameter], metrics: Mapping[str, float]) -> dict[str, float]:
    """Replace the gradients by their sums over the ranks, and return the sums of the metrics.

    A loss is a sum over the rows of a step divided by a number for the complete step, so these are exactly those of the
    complete step. A weight that no rank used keeps no gradient.
    """
    if ranks.size == 1:
        return dict(metrics)
    learned = list(weights)
    found = ranks.gather("metrics", (dict(metrics), [weight.grad is not None for weight in learned]))
    gradients = []
    for weight, used in zip(learned, zip(*(flags for _, flags in found), strict=True), strict=True):
        if any(used):
            weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
            gradients.append(weight.grad)
    ranks.add_up(gradients)
    sums: dict[str, float] = {}
    for part, _ in found:
        for name, value in part.items():
            sums[name] = sums.get(name, 0.0) + value
    return sums
