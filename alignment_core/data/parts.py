"""A record in the three parts that rows are made of, and the hashes that tell what is the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from alignment_core.data.near import words
from alignment_core.records import Conversation, Demonstration, LabelledResponse, PreferencePair, Prompt, Record

KINDS = ("demonstrations", "preferences", "feedback", "prompts")
"""Of records and of rows; a record's `kind` is the index in here."""
DEMONSTRATION, PREFERENCE, FEEDBACK, PROMPT = range(4)


@dataclass(frozen=True, slots=True)
class Parts:
    """A record of any kind.

    Attributes:
        kind: index in `KINDS`.
        prompt: the turns before the completions; may be empty.
        completions: none (prompt), one (demonstration, labelled response) or two (chosen, rejected).
        sign: 1 desirable, -1 undesirable, 0 for anything but a labelled response.
        weight: of a labelled response, in votes.
        margin: of a pair, NaN where unknown.
    """

    kind: int
    prompt: Conversation
    completions: tuple[Conversation, ...]
    sign: int = 0
    weight: float = 1.0
    margin: float = float("nan")

    def root(self) -> int:
        """Hash by which conversations are split: that of the first user turn's words, else of the first answer's."""
        turns = [turn for part in (self.prompt, *self.completions[:1]) for turn in part]
        first = next((turn for turn in turns if turn["role"] == "user"), turns[-1])
        return digest64(" ".join(words(first.get("content") or "")))

    def text(self) -> str:
        """What near-duplicates of the prompt are looked for in; the completion where there is no prompt."""
        return plain_text(self.prompt or self.completions[0])


def parts(record: Record) -> Parts:
    """The parts of a record."""
    match record:
        case Demonstration(messages):
            return Parts(DEMONSTRATION, messages[:-1], (messages[-1:],))
        case PreferencePair(prompt, chosen, rejected, margin):
            known = float("nan") if margin is None else margin
            return Parts(PREFERENCE, prompt, (chosen, rejected), margin=known)
        case LabelledResponse(prompt, response, desirable, weight):
            return Parts(FEEDBACK, prompt, (response,), sign=1 if desirable else -1, weight=weight)
        case Prompt(messages):
            return Parts(PROMPT, messages, ())


def canonical(messages: Conversation) -> str:
    """JSON of a conversation, role and content first, whatever order the keys came in."""
    return json.dumps([_ordered(message) for message in messages], ensure_ascii=False)


def plain_text(messages: Conversation) -> str:
    """The words of a conversation."""
    return "\n".join(message.get("content") or "" for message in messages)


def digest64(text: str) -> int:
    """64 bits of BLAKE2b."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def mixed(*columns: Any) -> Any:
    """One 64-bit hash per row from several."""
    state = np.zeros(len(columns[0]), dtype=np.uint64)
    for column in columns:
        state = (state ^ column.astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            state = (state ^ (state >> np.uint64(shift))) * np.uint64(factor)
        state = state ^ (state >> np.uint64(31))
    return state


def _ordered(message: Mapping[str, Any]) -> Mapping[str, Any]:
    if tuple(message) == ("role", "content"):
        return message
    first = {"role": message["role"], "content": message.get("content")}
    return {**first, **{key: message[key] for key in sorted(message) if key not in first}}
