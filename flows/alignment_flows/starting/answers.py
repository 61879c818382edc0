"""Look at the first rows of the data for right answers that a rule can check."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

from alignment_core.config import SourceConfig
from alignment_core.config.places import names_feedback_store
from alignment_core.data.sources.locate import is_hub, source_files
from alignment_core.data.sources.readers import read_file
from alignment_core.records import RawRow

FIRST_ROWS = 200
COLUMNS = ("answer", "final_answer", "solution", "ground_truth", "expected_answer", "correct_answer", "target", "gold")
"""Columns in which data sets keep the right answer."""
LONGEST_ANSWER = 5
"""Words of a right answer that a model can be expected to give exactly."""
MARKED = re.compile(r"####\s*\S|\\boxed\{")
NUMBER = re.compile(r"[-+]?[$€£]?\s?\d[\d.,/ ]*\s?%?")


@dataclass(frozen=True)
class Answers:
    """The column with the right answers, and the evaluator that compares with them."""

    column: str
    rule: Literal["numeric_match", "exact_match"]


def first_rows(path: str) -> list[Mapping[str, Any]]:
    """Return the first rows of a source that are objects. Of a Hub data set or a database: none."""
    if is_hub(path) or names_feedback_store(path):
        return []
    return list(islice(_objects(SourceConfig(path=path)), FIRST_ROWS))


def _objects(source: SourceConfig) -> Iterator[Mapping[str, Any]]:
    for file in source_files(source):
        for row in read_file(file, source):
            if isinstance(row, RawRow) and isinstance(row.value, Mapping):
                yield row.value


def find_answers(rows: Sequence[Mapping[str, Any]]) -> Answers | None:
    """Return the column that holds a right answer in every row, or None."""
    for column in COLUMNS:
        values = [str(row[column]).strip() for row in rows if row.get(column) is not None]
        if not values or len(values) < len(rows):
            continue
        if all(MARKED.search(value) or NUMBER.fullmatch(value) for value in values):
            return Answers(column, "numeric_match")
        if all(0 < len(value.split()) <= LONGEST_ANSWER for value in values):
            return Answers(column, "exact_match")
    return None
