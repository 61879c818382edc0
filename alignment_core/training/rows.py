"""What a run is given: the rows of its data, the vocabulary, and stand-ins for what was not asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from alignment_core.errors import PluginError
from alignment_core.plugin_api import Row, TokenSequence


class Undeclared:
    """Replaces a role or rows that were not declared. Any use raises an error that names the need."""

    def __init__(self, need: str) -> None:
        self._need = need

    def __getattr__(self, name: str) -> Any:
        raise PluginError(
            f"the optimizer used a role or rows that it did not declare: {name}",
            do=f"Return `Needs({self._need}=True, …)` from `needs`",
        )

    def __len__(self) -> int:
        return int(self.__getattr__("len"))

    def __getitem__(self, index: Any) -> Any:
        return self.__getattr__("rows")

    def __iter__(self) -> Iterator[Any]:
        return iter(self.__getattr__("rows"))


class RewardModel(Protocol):
    """A reward model that is a separate model."""

    def scores(self, sequences: Sequence[TokenSequence]) -> Tensor:
        """Return the score at the last token of each sequence: shape (sequences,), float32."""


@dataclass
class Rows:
    """The data rows of a run."""

    demonstrations: Sequence[Row] = ()
    preferences: Sequence[Row] = ()
    feedback: Sequence[Row] = ()
    prompts: Sequence[Row] = ()
    held_out_prompts: Sequence[Row] = ()

    @classmethod
    def undeclared(cls) -> Rows:
        """Return rows that are marked as undeclared. The rows that an optimizer declares are filled in later."""
        absent: dict[str, Any] = {
            name: Undeclared(name) for name in ("preferences", "feedback", "demonstrations", "prompts")
        }
        return cls(**absent, held_out_prompts=absent["prompts"])


@dataclass
class Vocabulary:
    """What generation needs to know about the tokenizer.

    Attributes:
        tokenizer: the tokenizer itself.
        pad_id: padding token; never a stop id that can occur in a sequence.
        stop_ids: tokens that end a response.
    """

    tokenizer: Any
    pad_id: int
    stop_ids: Sequence[int]
