"""The log-probabilities of sampled responses: those of the sampling pass, if they equal those of a fresh pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from alignment_core.plugin_api import LanguageModelRole, Rollout, TokenLogps

TOLERANCE = 1e-3
"""Most nats by which a token may differ. Its ratio is then wrong by 0.1 %, a two-hundredth of PPO's clip range."""
CHECKED = 16
"""One response in so many is read again, in every rollout."""


def sampled_logps(
    policy: LanguageModelRole, rollouts: Sequence[Rollout], temperature: float, on_refused: Callable[[str], None]
) -> TokenLogps:
    """Return the log-probabilities that responses were sampled with, or those of a fresh pass if they differ.

    The decision depends only on these rollouts, so a resumed run decides in the same way. Without gradients.

    Args:
        policy: the role that has sampled the responses, with the same weights.
        temperature: that of the sampling.
        on_refused: called with a message if a fresh pass is taken because the two differ.
    """
    sequences = [rollout.sequence for rollout in rollouts]
    with torch.no_grad():
        if any(rollout.logps is None or rollout.entropies is None for rollout in rollouts):
            return policy.token_logps(sequences, temperature)
        checked = range(0, len(rollouts), CHECKED)
        fresh = policy.token_logps([sequences[i] for i in checked], temperature)
        found = _kept([rollouts[i] for i in checked], fresh.logps.device)
        difference = float((found.logps - fresh.logps).abs().max())
        if difference <= TOLERANCE:
            return _kept(rollouts, fresh.logps.device)
        on_refused(
            f"the log-probabilities of the sampling pass differ from those of a fresh pass by {difference:.2g} nats. "
            "The responses are read again"
        )
        return policy.token_logps(sequences, temperature)


def _kept(rollouts: Sequence[Rollout], device: torch.device) -> TokenLogps:
    """Return what the sampling pass kept, zero-padded."""

    def table(columns: list[tuple[float, ...]]) -> Tensor:
        rows = [torch.tensor(column, dtype=torch.float32) for column in columns]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)

    logps = table([rollout.logps or () for rollout in rollouts])
    mask = table([(1.0,) * len(rollout.sequence.completion) for rollout in rollouts])
    return TokenLogps(logps, mask, table([rollout.entropies or () for rollout in rollouts]))
