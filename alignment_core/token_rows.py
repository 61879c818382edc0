"""Rows of token ids: what optimizers learn from."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """A prompt and its completion in token ids.

    Attributes:
        ids: prompt and completion, without padding.
        start: index in `ids` at which the completion begins.
        mask: which completion tokens are targets; None means all of them.
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
        """Number of target tokens."""
        return len(self.ids) - self.start if self.mask is None else sum(self.mask)

    def digest(self) -> str:
        """Content address: equal exactly where ids, start and mask are."""
        mask = b"" if self.mask is None else bytes(self.mask)
        content = array("I", (self.start, *self.ids)).tobytes() + b"|" + mask
        return hashlib.blake2b(content, digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class Row:
    """One indivisible unit of a step: its sequences always share a micro-batch.

    Data rows carry these names; an optimizer may make rows of its own.

    | data          | sequences              | values                                            |
    |---------------|------------------------|---------------------------------------------------|
    | `preferences` | `chosen`, `rejected`   | `margin` (0 where unknown)                        |
    | `feedback`    | `response`, `mismatched` | `desirable` (1 or 0), `weight`                  |
    | `prompts`     | `prompt` (no completion) | –                                               |

    `mismatched` is this row's prompt with the response to another prompt (KTO's z0), fixed by a hash of the row.

    Attributes:
        id: stable name of the row, a hash of its content.
        sequences: token sequences by name.
        values: a number, or one number per completion token, by name.
    """

    id: str
    sequences: Mapping[str, TokenSequence]
    values: Mapping[str, float | Sequence[float]] = field(default_factory=dict)

    def number(self, name: str) -> float:
        """A value that is one number."""
        value = self.values[name]
        assert isinstance(value, float | int)
        return value
