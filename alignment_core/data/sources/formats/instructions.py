"""Instruction data: Alpaca and Self-Instruct."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from alignment_core.config import SourceConfig
from alignment_core.data.sources.formats.context import earlier_turns, with_system
from alignment_core.data.sources.parsing import shapes
from alignment_core.data.sources.parsing.judgments import label_column, label_of, preference_pair
from alignment_core.records import Conversation, Demonstration, LabelledResponse
from alignment_core.records.format import BadRow, Dropped, Fields, Outcome, Quarantined, Reading, RecordFormat


class Alpaca(RecordFormat):
    """An instruction with optional input and history, and an output, a labelled output, or chosen and rejected."""

    name: ClassVar[str] = "alpaca"
    shape: ClassVar[str] = "{instruction, input?, output, system?, history?} or {instruction, context, response}"

    def matches(self, row: Fields) -> bool:
        if "instruction" not in row:
            return False
        return "output" in row or {"context", "response"} <= set(row) or {"chosen", "rejected"} <= set(row)

    def read(self, row: Fields, origin: str, source: SourceConfig) -> Iterable[Outcome]:
        prompt = alpaca_prompt(row)
        answered = next((name for name in ("output", "response") if name in row), None)
        if answered is None:
            sides = [shapes.completion(row[side], side) for side in ("chosen", "rejected")]
            yield Reading(preference_pair(prompt, sides[0], sides[1], None, origin))
            return
        answer = shapes.completion(row[answered], answered)
        label = label_column(row)
        if label is None:
            yield Reading(Demonstration((*prompt, *answer), origin))
            return
        desirable = label_of(row, label, source)
        if desirable is None:
            yield Dropped("no_label", origin)
        else:
            yield Reading(LabelledResponse(prompt, answer, desirable, 1.0, origin))


class SelfInstruct(RecordFormat):
    """An instruction with several instances of input and output."""

    name: ClassVar[str] = "self_instruct"
    shape: ClassVar[str] = "{instruction, instances: [{input, output}]}"
    unused: ClassVar[frozenset[str]] = frozenset({"name", "is_classification"})

    def matches(self, row: Fields) -> bool:
        return "instruction" in row and isinstance(row.get("instances"), list)

    def read(self, row: Fields, origin: str, source: SourceConfig) -> Iterable[Outcome]:
        if not row["instances"]:
            raise BadRow("empty_completion", "instances is empty")
        for index, instance in enumerate(row["instances"]):
            try:
                if not isinstance(instance, dict):
                    raise BadRow(
                        "not_an_object", f"instances[{index}] has type {type(instance).__name__}, expected an object"
                    )
                prompt = alpaca_prompt({**instance, "instruction": row["instruction"]})
                answer = shapes.completion(instance.get("output"), f"instances[{index}].output")
                yield Reading(Demonstration((*prompt, *answer), origin))
            except BadRow as bad:
                yield Quarantined(origin, bad.reason, bad.detail, row)


def alpaca_prompt(row: Fields) -> Conversation:
    """Return the system prompt, the history and the instruction with its input as turns."""
    instruction = shapes.text(row["instruction"], "instruction", "empty_prompt")
    given = row["input"] if "input" in row else row.get("context")
    if isinstance(given, str) and not given.strip():
        given = None
    if given:
        instruction = f"{instruction}\n{shapes.text(given, 'input', 'empty_prompt')}"
    return with_system((*earlier_turns(row), {"role": "user", "content": instruction}), row)
