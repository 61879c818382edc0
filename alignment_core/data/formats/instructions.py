"""Instruction data: Alpaca and Self-Instruct."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import ClassVar

from alignment_core.config import SourceConfig
from alignment_core.data.formats import shapes
from alignment_core.data.formats.comparing import pair
from alignment_core.record_format import BadRow, Dropped, Fields, Outcome, Quarantined, Reading, RecordFormat
from alignment_core.records import Conversation, Demonstration, LabelledResponse, Message


class Alpaca(RecordFormat):
    """Instruction, optional input and history, and an output; or chosen and rejected; or a thumb on the output."""

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
            yield Reading(pair(prompt, sides[0], sides[1], None, origin))
            return
        answer = shapes.completion(row[answered], answered)
        label = next((row[name] for name in ("kto_tag", "label") if name in row), None)
        if label is None:
            yield Reading(Demonstration((*prompt, *answer), origin))
            return
        desirable = shapes.label(label, desirable=source.desirable)
        if desirable is None:
            yield Dropped("no_label", origin)
        else:
            yield Reading(LabelledResponse(prompt, answer, desirable, 1.0, origin))


class SelfInstruct(RecordFormat):
    """An instruction with several instances of input and output."""

    name: ClassVar[str] = "self_instruct"
    shape: ClassVar[str] = "{instruction, instances: [{input, output}]}"

    def matches(self, row: Fields) -> bool:
        return "instruction" in row and isinstance(row.get("instances"), list)

    def read(self, row: Fields, origin: str, source: SourceConfig) -> Iterable[Outcome]:
        if not row["instances"]:
            raise BadRow("empty_completion", "instances is empty")
        for index, instance in enumerate(row["instances"]):
            try:
                if not isinstance(instance, dict):
                    raise BadRow("not_an_object", f"instances[{index}] is a {type(instance).__name__}")
                prompt = alpaca_prompt({**instance, "instruction": row["instruction"]})
                answer = shapes.completion(instance.get("output"), f"instances[{index}].output")
                yield Reading(Demonstration((*prompt, *answer), origin))
            except BadRow as bad:
                yield Quarantined(origin, bad.reason, bad.detail, row)


def alpaca_prompt(row: Fields) -> Conversation:
    """System, history and the instruction with its input, as turns."""
    instruction = shapes.text(row["instruction"], "instruction", "empty_prompt")
    given = row.get("input", row.get("context"))
    if isinstance(given, str) and not given.strip():
        given = None
    if given:
        instruction = f"{instruction}\n{shapes.text(given, 'input', 'empty_prompt')}"
    return (*_before(row), {"role": "user", "content": instruction})


def _before(row: Fields) -> Iterator[Message]:
    if row.get("system"):
        yield shapes.turn("system", row["system"], "system", "empty_prompt")
    history = row.get("history") or []
    if not isinstance(history, list):
        raise BadRow("bad_conversation", f"history: {type(history).__name__} where a list of turns was expected")
    for index, turns in enumerate(history):
        if not isinstance(turns, list) or len(turns) != 2:
            raise BadRow("bad_conversation", f"history[{index}] is no [question, answer]")
        for role, value in zip(("user", "assistant"), turns, strict=True):
            yield shapes.turn(role, value, f"history[{index}]", "empty_turn")
