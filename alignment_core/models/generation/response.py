"""A sampled response, and what the pass that sampled it knows about its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alignment_core.losses.likelihood import token_logps_of
from alignment_core.models.generation.choice import CHOSEN_TOGETHER
from alignment_core.plugin_api import TokenSequence


@dataclass(frozen=True, slots=True)
class Response:
    """A response with its prompt.

    Attributes:
        sequence: prompt and response. `start` is the prompt's length.
        logps: log-probability of each token of the response in nats, under the logits divided by the temperature,
            without top-k and top-p; None if they were not kept.
        entropies: entropy in nats of the distribution that each token was sampled from; None like `logps`.
        slow: whether it was generated in a slow way: without a cache, or with no other response.
    """

    sequence: TokenSequence
    logps: tuple[float, ...] | None = None
    entropies: tuple[float, ...] | None = None
    slow: bool = False

    @classmethod
    def of(cls, prompt: Sequence[int], response: Sequence[int], record: TokenRecord | None, row: int) -> Response:
        """Return the response of a finished row."""
        sequence = TokenSequence((*prompt, *response), len(prompt))
        return cls(sequence) if record is None else cls(sequence, *record.of(row, len(response)))


class TokenRecord:
    """Log-probabilities and entropies of the tokens of some rows, on their device until a row is finished."""

    def __init__(self, rows: int, tokens: int, temperature: float, device: torch.device) -> None:
        """
        Args:
            rows: rows that are generated together.
            tokens: longest response.
            temperature: divides the logits.
        """
        self.temperature = temperature
        self._found = torch.zeros(2, rows, tokens, device=device)

    def add(self, logits: Tensor, tokens: Tensor, places: Tensor) -> None:
        """Add the next token of every row.

        Args:
            logits: shape (rows, vocabulary).
            tokens: shape (rows,). A negative one, of a row that is not looked at, counts as token 0.
            places: index of the token in the response of its row, shape (rows,).
        """
        rows = max(1, CHOSEN_TOGETHER // logits.shape[-1])
        parts = zip(torch.split(logits, rows), torch.split(tokens.clamp_min(0), rows), strict=True)
        found = [torch.stack(token_logps_of(some, chosen, self.temperature)) for some, chosen in parts]
        self._found.scatter_(2, places.expand(2, -1).unsqueeze(2), torch.cat(found, dim=1).unsqueeze(2))

    def keep(self, rows: Tensor) -> None:
        """Keep only these rows."""
        self._found = self._found[:, rows]

    def of(self, row: int, tokens: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return the log-probabilities and entropies of the first tokens of a row."""
        logps, entropies = self._found[:, row, :tokens].tolist()
        return tuple(logps), tuple(entropies)
