"""The roles as a plugin sees them: they map token sequences to log-probabilities, scores or values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from alignment_core.errors import PluginError, TrainingError, ran_out_of_memory
from alignment_core.losses.likelihood import fused_token_logps, token_logps_of
from alignment_core.models.base.parts import head_shape
from alignment_core.models.passes.batching import least_padding
from alignment_core.models.passes.packing import Arrangement, pack_by_budget, packed, padded
from alignment_core.models.passes.reach import EVERY_LENGTH, Reach
from alignment_core.models.roles.shared_base import Roles
from alignment_core.models.roles.shares import from_shares, share_of
from alignment_core.plugin_api import TokenLogps, TokenSequence
from alignment_core.ranks import ALONE, Ranks

SMALLEST_BUDGET = 64
T = TypeVar("T")


class Budget:
    """Tokens, padding included, in one forward pass. Shared by everything that runs a model, halved on out of memory.

    Attributes:
        tokens: the current budget.
        ranks: the processes that share the stage. All halve their budget if one of them runs out of memory.
        on_halved: called with a message after the budget was halved.
        on_pass: called before every forward pass outside a loss with the number of its sequences; may raise to stop.
    """

    def __init__(self, tokens: int, ranks: Ranks = ALONE) -> None:
        self.tokens, self.ranks = tokens, ranks
        self.on_halved: Callable[[str], None] = lambda _: None
        self.on_pass: Callable[[int], None] = lambda _: None

    def fit(self, attempt: Callable[[], T]) -> T:
        """Call `attempt`, which reads `tokens`, until it fits in memory, on every rank.

        Within another attempt of a rank, it is part of that one, which is repeated as a whole.

        Raises:
            TrainingError: it does not fit even with the smallest budget.
        """
        if self.ranks.apart:
            return attempt()
        while True:
            try:
                return self.ranks.together("passes", attempt)
            except (RuntimeError, MemoryError) as error:
                if not ran_out_of_memory(error):
                    raise
                if self.tokens // 2 < SMALLEST_BUDGET:
                    raise TrainingError(
                        "out of memory even with the smallest token budget",
                        where="token_budget",
                        got=self.tokens,
                        do="Lower `model.max_length` or choose a smaller base model",
                    ) from error
                self.tokens //= 2
            # Outside `except`: the exception would keep the failed attempt's tensors alive.
            torch.cuda.empty_cache()
            self.on_halved(f"out of memory: token_budget is now {self.tokens}")


class LanguageModel:
    """The policy or the reference: log-probabilities of completions.

    Gradients flow only if the role is trained and the caller has them enabled. A call without gradients may pass any
    number of sequences, which are split by the token budget.
    """

    def __init__(self, roles: Roles, role: str, pad_id: int, budget: Budget) -> None:
        self.roles, self.role, self.pad_id, self.budget = roles, role, pad_id, budget

    def logps(self, sequences: Sequence[TokenSequence]) -> Tensor:
        """Return the summed log-probability of the target tokens, shape (sequences,), float32, nats."""
        return self.token_logps(sequences).logps.sum(dim=1)

    def token_logps(self, sequences: Sequence[TokenSequence], temperature: float = 1.0) -> TokenLogps:
        """Return log-probabilities and entropies under logits / temperature, shape (sequences, longest completion)."""

        def forward(part: Sequence[TokenSequence]) -> tuple[Tensor, ...]:
            return self._forward(part, temperature)

        logps, mask, entropy = _in_budget(self.roles, self.role, self.budget, sequences, forward)
        return TokenLogps(logps, mask, entropy)

    def hidden(self, sequences: Sequence[TokenSequence]) -> Tensor:
        """Return the last hidden state at each completion token.

        The result has shape (sequences, longest completion, width). It is float32, and 0 at padding.
        """

        def forward(part: Sequence[TokenSequence]) -> tuple[Tensor, ...]:
            arrangement = arrange(self.roles, part, self.pad_id)
            places = completion_positions(part, arrangement)
            mask = completion_mask(part).to(self.roles.device).unsqueeze(2)
            states = read_states(self.roles, self.role, arrangement.read_at(places), places.to(self.roles.device))
            empty = torch.zeros((*mask.shape[:2], states.shape[1]), device=self.roles.device)
            return (empty.masked_scatter(mask, states),)

        return _in_budget(self.roles, self.role, self.budget, sequences, forward)[0]

    def _forward(self, sequences: Sequence[TokenSequence], temperature: float) -> tuple[Tensor, ...]:
        device = self.roles.device
        arrangement = arrange(self.roles, sequences, self.pad_id)
        mask = target_mask(sequences)
        places = predicting_positions(sequences, arrangement, mask)
        targets = flat_targets(sequences).to(device, non_blocking=True)
        read = arrangement.read_at(places)
        logps, entropy = read_targets(
            self.roles, self.role, read, places.to(device, non_blocking=True), targets, temperature
        )
        mask = mask.to(device, non_blocking=True)
        empty = torch.zeros(mask.shape, device=device)
        return empty.masked_scatter(mask, logps), mask.float(), empty.masked_scatter(mask, entropy)


def read_targets(
    roles: Roles, role: str, arrangement: Arrangement, places: Tensor, targets: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Return the log-probability and entropy of each target token, both (tokens,) float32.

    Args:
        places: indices of the states that predict the targets, in the flattened arrangement.
        targets: token ids.
    """
    if not roles.separable:
        return token_logps_of(roles.logits(role, arrangement)[places], targets, temperature)
    head = roles.head
    return fused_token_logps(
        roles.hidden(role, arrangement)[places],
        head.weight,
        targets,
        bias=getattr(head, "bias", None),
        shape=head_shape(roles.model, temperature),
    )


def read_states(roles: Roles, role: str, arrangement: Arrangement, places: Tensor) -> Tensor:
    """Return the last hidden states at these flattened indices, (places, width) float32."""
    return roles.hidden(role, arrangement)[places].float()


def read_scalars(roles: Roles, role: str, arrangement: Arrangement, places: Tensor) -> Tensor:
    """Return the output of the role's scalar head at these flattened indices, (places,) float32."""
    # float32 outside autocast: losses use the differences of close scores
    scores: Tensor = roles.head_of(role)(read_states(roles, role, arrangement, places)).squeeze(-1)
    return scores


class ScalarModel:
    """The reward or the value model: an adapter with a scalar head."""

    def __init__(self, roles: Roles, role: str, pad_id: int, budget: Budget) -> None:
        self.roles, self.role, self.pad_id, self.budget = roles, role, pad_id, budget

    def scores(self, sequences: Sequence[TokenSequence]) -> Tensor:
        """Return the score at the last token of each sequence, shape (sequences,), float32."""

        def forward(part: Sequence[TokenSequence]) -> tuple[Tensor, ...]:
            arrangement = arrange(self.roles, part, self.pad_id)
            last = torch.stack([places[-1] for places in arrangement.places])
            return (self._head(arrangement, last),)

        return _in_budget(self.roles, self.role, self.budget, sequences, forward)[0]

    def values(self, sequences: Sequence[TokenSequence]) -> Tensor:
        """Return values before each completion token, shape (sequences, longest completion), float32, 0 at padding."""

        def forward(part: Sequence[TokenSequence]) -> tuple[Tensor, ...]:
            arrangement = arrange(self.roles, part, self.pad_id)
            mask = completion_mask(part)
            found = self._head(arrangement, predicting_positions(part, arrangement, mask))
            return (
                torch.zeros(mask.shape, device=found.device).masked_scatter(
                    mask.to(found.device, non_blocking=True), found
                ),
            )

        return _in_budget(self.roles, self.role, self.budget, sequences, forward)[0]

    def _head(self, arrangement: Arrangement, places: Tensor) -> Tensor:
        return read_scalars(
            self.roles, self.role, arrangement.read_at(places), places.to(self.roles.device, non_blocking=True)
        )


def _in_budget(
    roles: Roles,
    role: str,
    budget: Budget,
    sequences: Sequence[TokenSequence],
    forward: Callable[[Sequence[TokenSequence]], tuple[Tensor, ...]],
) -> tuple[Tensor, ...]:
    """Run `forward` with gradients for a trained role inside a loss, and without gradients otherwise.

    A frozen role gets a micro-batch in the same parts as the policy, so equal weights give the same numbers to the last
    bit.
    """
    if torch.is_grad_enabled() and roles.trained:
        with torch.set_grad_enabled(role in roles.trained):
            return _in_parts(budget.tokens, sequences, forward, roles)

    def stoppable(part: Sequence[TokenSequence]) -> tuple[Tensor, ...]:
        budget.on_pass(len(part))
        return forward(part)

    ranks = budget.ranks
    share = share_of(ranks, [len(sequence.ids) for sequence in sequences], sequences)
    mine = [sequences[i] for i in share]
    with torch.no_grad():
        found = budget.fit(lambda: _in_parts(budget.tokens, mine, stoppable, roles) if mine else None)
        return from_shares(ranks, share, len(sequences), found, roles.device)


def split_into_passes(
    sequences: Sequence[TokenSequence], tokens: int, *, packs: bool, call_cost: int, reach: Reach = EVERY_LENGTH
) -> list[list[int]]:
    """Split the sequences into forward passes as the model lays them out. Returns groups of their indices."""
    lengths = [len(sequence.ids) for sequence in sequences]
    packed_to = reach.packed if packs else 0
    row = [i for i, length in enumerate(lengths) if length <= packed_to]
    batch = [i for i, length in enumerate(lengths) if packed_to < length <= reach.batched]
    groups = pack_by_budget([sequences[i] for i in row], tokens, lambda sequence: (sequence,))
    found = [[row[i] for i in group] for group in groups]
    found += [[batch[i] for i in group] for group in least_padding([lengths[i] for i in batch], tokens, call_cost)]
    return found + [[i] for i, length in enumerate(lengths) if length > max(packed_to, reach.batched)]


def _in_parts(
    tokens: int,
    sequences: Sequence[TokenSequence],
    forward: Callable[[Sequence[TokenSequence]], tuple[Tensor, ...]],
    roles: Roles,
) -> tuple[Tensor, ...]:
    groups = split_into_passes(sequences, tokens, packs=roles.packs, call_cost=roles.call_cost, reach=roles.reach)
    parts = [forward([sequences[i] for i in group]) for group in groups]
    order = torch.tensor([i for group in groups for i in group]).to(roles.device, non_blocking=True)
    return tuple(_joined([part[k] for part in parts], order) for k in range(len(parts[0])))


def _joined(parts: Sequence[Tensor], order: Tensor) -> Tensor:
    """Concatenate parts of different width and restore the original order of the rows."""
    if parts[0].dim() > 1:
        width = max(part.shape[1] for part in parts)
        inner = (0, 0) * (parts[0].dim() - 2)
        parts = [nn.functional.pad(part, (*inner, 0, width - part.shape[1])) for part in parts]
    joined = torch.cat(list(parts))
    return torch.empty_like(joined).index_copy_(0, order, joined)


def arrange(roles: Roles, sequences: Sequence[TokenSequence], pad_id: int) -> Arrangement:
    """Lay the sequences out for one forward pass, packed or padded as the model supports.

    Raises:
        PluginError: a sequence has no token before its completion.
        ModelError: a sequence is so long that the rows that were read before would change it.
    """
    if any(sequence.start < 1 for sequence in sequences):
        raise PluginError(
            "a sequence without a prompt: no token comes before its completion to predict it from",
            where="TokenSequence.start",
            got=0,
            expected="at least 1",
        )
    longest = max(len(sequence.ids) for sequence in sequences)
    roles.reach.check(longest)
    return packed(sequences) if roles.packs and longest <= roles.reach.packed else padded(sequences, pad_id)


def predicting_positions(sequences: Sequence[TokenSequence], arrangement: Arrangement, mask: Tensor) -> Tensor:
    """Return the indices of the states that predict the completion tokens in `mask`, row by row."""
    chosen = [
        places[sequence.start - 1 : -1][on[: len(sequence.ids) - sequence.start]]
        for sequence, places, on in zip(sequences, arrangement.places, mask, strict=True)
    ]
    return torch.cat(chosen)


def completion_positions(sequences: Sequence[TokenSequence], arrangement: Arrangement) -> Tensor:
    """Return the indices of the states at the completion tokens, row by row."""
    return torch.cat([p[s.start :] for s, p in zip(sequences, arrangement.places, strict=True)])


def completion_mask(sequences: Sequence[TokenSequence]) -> Tensor:
    """Return a mask that is True at completion tokens, shape (sequences, longest completion)."""
    lengths = torch.tensor([len(s.ids) - s.start for s in sequences])
    return torch.arange(int(lengths.max())) < lengths.unsqueeze(1)


def target_mask(sequences: Sequence[TokenSequence]) -> Tensor:
    """Return a mask that is True at target tokens, shape (sequences, longest completion)."""
    mask = completion_mask(sequences)
    for i, sequence in enumerate(sequences):
        if sequence.mask is not None:
            mask[i, : len(sequence.mask)] &= torch.tensor(sequence.mask)
    return mask


def flat_targets(sequences: Sequence[TokenSequence]) -> Tensor:
    """Return the ids of the target tokens, row by row."""
    flat: list[int] = []
    for sequence in sequences:
        completion = sequence.completion
        mask = sequence.mask
        flat.extend(completion if mask is None else [t for t, on in zip(completion, mask, strict=True) if on])
    return torch.tensor(flat, dtype=torch.long)
