"""A micro-batch as `loss` gets it. A misspelled name is an error that says which names there are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alignment_core.config_file import did_you_mean
from alignment_core.errors import PluginError
from alignment_core.plugin_api import Row, TokenSequence


class Numbers(dict[str, float]):
    """The denominators or constants of a step. A missing one is an error that names those that there are."""

    def __init__(self, kind: str, numbers: Mapping[str, float]) -> None:
        super().__init__(numbers)
        self._kind = kind

    def __missing__(self, name: str) -> float:
        raise _no_such(f"the step has no {self._kind} of this name", name, self)


@dataclass
class MicroRows:
    """A micro-batch of a step (`plugin_api.MicroBatch`)."""

    rows: Sequence[Row]
    denominators: Mapping[str, float]
    constants: Mapping[str, float]
    device: torch.device

    def __post_init__(self) -> None:
        self.denominators = Numbers("denominator", self.denominators)
        self.constants = Numbers("constant", self.constants)

    def sequences(self, name: str) -> list[TokenSequence]:
        for row in self.rows:
            if name not in row.sequences:
                raise _no_such(f"the row {row.id} has no sequence of this name", name, row.sequences)
        return [row.sequences[name] for row in self.rows]

    def values(self, name: str) -> Tensor:
        numbers = [row.values[name] for row in self._with(name)]
        if any(isinstance(number, Sequence) for number in numbers):
            raise PluginError(
                f"`{name}` is one number per token, not one per row", do=f'Read it with `micro.token_values("{name}")`'
            )
        values = torch.tensor(numbers, dtype=torch.float32)
        return values.to(self.device, non_blocking=True)

    def token_values(self, name: str) -> Tensor:
        columns = [torch.tensor(row.values[name], dtype=torch.float32) for row in self._with(name)]
        if any(column.dim() != 1 for column in columns):
            raise PluginError(
                f"`{name}` is one number per row, not one per token", do=f'Read it with `micro.values("{name}")`'
            )
        return torch.nn.utils.rnn.pad_sequence(columns, batch_first=True).to(self.device, non_blocking=True)

    def _with(self, name: str) -> Sequence[Row]:
        for row in self.rows:
            if name not in row.values:
                raise _no_such(f"the row {row.id} has no value of this name", name, row.values)
        return self.rows


def _no_such(what: str, name: str, known: Iterable[str]) -> PluginError:
    names = list(known)
    return PluginError(
        what, got=name, expected=f"one of {', '.join(names)}" if names else "none", do=did_you_mean(name, names)
    )
