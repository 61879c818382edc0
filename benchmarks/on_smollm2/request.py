"""What a process that trains or judges one cell is asked for, and how it answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from on_smollm2.cells import Cell
from on_smollm2.data_sets import DataSet, read


@dataclass(frozen=True)
class Request:
    """One cell to train or to judge.

    Attributes:
        cell: the cell.
        base: folder of the base model.
        data_file: file of its data.
        out: folder of its adapter.
        reward: folder of the reward model's adapter, for PPO.
        device: `cpu`, `cuda` or `auto`.
    """

    cell: Cell
    base: Path
    data_file: Path
    out: Path
    reward: Path | None
    device: str

    @cached_property
    def data(self) -> DataSet:
        return read(self.data_file)

    def to_json(self) -> dict[str, Any]:
        return {
            "case": self.cell.case,
            "base": str(self.base),
            "data_file": str(self.data_file),
            "out": str(self.out),
            "reward": None if self.reward is None else str(self.reward),
            "device": self.device,
        }

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Request:
        reward = None if found["reward"] is None else Path(found["reward"])
        base, data_file, out = (Path(found[name]) for name in ("base", "data_file", "out"))
        return cls(Cell.from_case(found["case"]), base, data_file, out, reward, found["device"])


def answering(answer: Callable[[Request], dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Return the function that `against_trl.world.serve` calls with the JSON of a request."""

    def measure(**found: Any) -> dict[str, Any]:
        return answer(Request.from_json(found))

    return measure
