"""A record as a prompt and up to two completions, and the hashes by which equal content is recognized."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from alignment_core.data.dataset.kinds import DEMONSTRATION, FEEDBACK, PREFERENCE, PROMPT
from alignment_core.data.ingestion.minhash import words
from alignment_core.records import (
    Conversation,
    Demonstration,
    Facts,
    LabelledResponse,
    Message,
    PreferencePair,
    Prompt,
    Record,
)


@dataclass(frozen=True, slots=True)
class RecordParts:
    """A record of any kind.

    Attributes:
        kind: index in `KINDS`.
        prompt: the turns before the completions. May be empty.
        completions: none (prompt), one (demonstration, labelled response) or two (chosen and rejected).
        sign: of a labelled response: 1 if desirable, -1 if undesirable. Of any other record: 0.
        weight: number of votes that a labelled response counts as.
        margin: of a pair. NaN if unknown.
        facts: the kept columns of its row.
    """

    kind: int
    prompt: Conversation
    completions: tuple[Conversation, ...]
    sign: int = 0
    weight: float = 1.0
    margin: float = float("nan")
    facts: Facts = field(default_factory=dict)

    def root(self) -> int:
        """Return the hash of the words of the prompt without system turns, or else of the first completion.

        A record of system turns alone has those of its prompt.
        """
        asked = [turn for turn in self.prompt if turn["role"] != "system"]
        return words_hash(plain_text(asked or self._answer() or self.prompt))

    def characters(self) -> int:
        """Return the length of all texts. That of a turn with more than a text is the length of its JSON."""
        turns = (turn for part in (self.prompt, *self.completions) for turn in part)
        return sum(len(turn["content"]) if is_plain(turn) else len(canonical((turn,))) for turn in turns)

    def text(self) -> str:
        """Return the text by which near-duplicate prompts are found: the prompt, or the completion if it has none."""
        return plain_text(self.prompt or self._answer())

    def _answer(self) -> Conversation:
        return self.completions[0] if self.completions else ()


def split_record(record: Record) -> RecordParts:
    """Split a record into its parts."""
    facts = record.facts
    match record:
        case Demonstration(messages):
            return RecordParts(DEMONSTRATION, messages[:-1], (messages[-1:],), facts=facts)
        case PreferencePair(prompt, chosen, rejected, margin):
            score_margin = float("nan") if margin is None else margin
            return RecordParts(PREFERENCE, prompt, (chosen, rejected), margin=score_margin, facts=facts)
        case LabelledResponse(prompt, response, desirable, weight):
            return RecordParts(FEEDBACK, prompt, (response,), sign=1 if desirable else -1, weight=weight, facts=facts)
        case Prompt(messages):
            return RecordParts(PROMPT, messages, (), facts=facts)


def words_hash(text: str) -> int:
    """Return a hash of the words of a text."""
    return digest64(" ".join(words(text)))


def canonical(messages: Conversation) -> str:
    """Return a conversation as JSON that does not depend on the order of its keys: role, content, then the others."""
    return json.dumps([_ordered(message) for message in messages], ensure_ascii=False)


def plain_text(messages: Sequence[Message]) -> str:
    """Return the text of a conversation: the contents of its turns, joined by newlines."""
    return "\n".join(message.get("content") or "" for message in messages)


def digest64(text: str) -> int:
    """Return a 64-bit BLAKE2b hash of a text."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def combine_hashes(*columns: Any) -> Any:
    """Combine several columns of integers into one 64-bit hash per row."""
    state = np.zeros(len(columns[0]), dtype=np.uint64)
    for column in columns:
        state = (state ^ column.astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            state = (state ^ (state >> np.uint64(shift))) * np.uint64(factor)
        state = state ^ (state >> np.uint64(31))
    return state


def is_plain(message: Mapping[str, Any]) -> bool:
    """Return whether a turn is a role and a text, in this order."""
    return tuple(message) == ("role", "content")


def _ordered(message: Mapping[str, Any]) -> Mapping[str, Any]:
    if is_plain(message):
        return message
    first = {"role": message["role"], "content": message.get("content")}
    return {**first, **{key: message[key] for key in sorted(message) if key not in first}}
