"""Solutions of several models to one question, each checked for correctness."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from alignment_core.config import SourceConfig
from alignment_core.data.sources.parsing import shapes
from alignment_core.records import LabelledResponse
from alignment_core.records.columns import inside, peek
from alignment_core.records.format import BadRow, Dropped, Fields, Outcome, Quarantined, Reading, RecordFormat


class Graded(RecordFormat):
    """GSM8K's model solutions: for each model name, a solution and whether it is correct."""

    name: ClassVar[str] = "graded_solutions"
    shape: ClassVar[str] = "{question, <model>: {is_correct, solution}}"

    unused: ClassVar[frozenset[str]] = frozenset({"ground_truth"})

    def matches(self, row: Fields) -> bool:
        return "question" in row and any(_is_solution(value) for value in row.values())

    def read(self, row: Fields, origin: str, source: SourceConfig) -> Iterable[Outcome]:
        prompt = shapes.prompt(row["question"], "question")
        for name in row:
            if _is_solution(peek(row, name)):
                value = inside(row, name)
                try:
                    response = shapes.completion(value["solution"], f"{name}.solution")
                    correct = shapes.label(value["is_correct"], f"{name}.is_correct")
                except BadRow as bad:
                    yield Quarantined(origin, bad.reason, bad.detail, row)
                    continue
                if correct is None:
                    yield Dropped("no_label", origin)
                else:
                    yield Reading(LabelledResponse(prompt, response, correct, 1.0, origin))


def _is_solution(value: Any) -> bool:
    return isinstance(value, Mapping) and "is_correct" in value and "solution" in value
