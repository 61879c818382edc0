"""Rows of token ids, which optimizers train on."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """A prompt and its completion in token ids.

    Attributes:
        ids: prompt and completion, without padding.
        start: index in `ids` of the first completion token.
        mask: which completion tokens are targets. None: all of them.
    """

    ids: tuple[int, ...]
    start: int
    mask: tuple[bool, ...] | None = None

    @property
    def prompt(self) -> tuple[int, ...]:
        return self.ids[: self.start]

    @property
    def completion(self) -> tuple[int, ...]:
        return self.ids[self.start :]

    @property
    def targets(self) -> int:
        """Return the number of target tokens."""
        return len(self.ids) - self.start if self.mask is None else sum(self.mask)

    def digest(self) -> str:
        """Return a content address. Two addresses are equal if and only if ids, start and mask are."""
        mask = b"" if self.mask is None else bytes(self.mask)
        content = array("I", (self.start, *self.ids)).tobytes() + b"|" + mask
        return hashlib.blake2b(content, digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class Row:
    """One indivisible unit of a step. Its sequences always share a micro-batch.

    Rows of the data set use the names below. An optimizer may build rows with other names.

    | data             | sequences                | values                        |
    |------------------|--------------------------|-------------------------------|
    | `preferences`    | `chosen`, `rejected`     | `margin` (0 if unknown)       |
    | `feedback`       | `response`, `mismatched` | `desirable` (1 or 0), `weight` |
    | `demonstrations` | `demonstration`          | –                             |
    | `prompts`        | `prompt` (no completion) | –                             |

    `mismatched` is this row's prompt with the response to another prompt (for KTO's z0), fixed by a hash of the row.

    Attributes:
        id: stable name of the row, a hash of its content.
        sequences: token sequences by name.
        values: by name, one number or one number per completion token.
        facts: what the record knows beside the conversation (`data.sources[].keep`), as plain JSON.
    """

    id: str
    sequences: Mapping[str, TokenSequence]
    values: Mapping[str, float | Sequence[float]] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    def number(self, name: str) -> float:
        """Return a value that is a single number."""
        value = self.values[name]
        assert isinstance(value, float | int)
        return value
