"""The canonical records that every source of feedback is converted to before tokenization.

A conversation is a tuple of `{role, content, …}` messages. Other keys (tool calls, names) are kept unchanged.

`facts` of a record are the columns of its row that `data.sources[].keep` names, as plain JSON. The model does not see
them. Evaluators do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Message = Mapping[str, Any]
Conversation = tuple[Message, ...]
Facts = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A complete conversation whose assistant turns the model learns to imitate.

    `messages` starts with a system or user turn and ends with an assistant turn. `origin` is `file:line`.
    """

    messages: Conversation
    origin: str = ""
    facts: Facts = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """Two completions of one prompt, of which the first is preferred.

    `chosen` and `rejected` hold only the turns after the prompt. `margin` is the difference in score points, if known.
    """

    prompt: Conversation
    chosen: Conversation
    rejected: Conversation
    margin: float | None = None
    origin: str = ""
    facts: Facts = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LabelledResponse:
    """One completion that is labelled desirable or undesirable. It counts as `weight` votes."""

    prompt: Conversation
    response: Conversation
    desirable: bool
    weight: float = 1.0
    origin: str = ""
    facts: Facts = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation that ends before an assistant turn."""

    messages: Conversation
    origin: str = ""
    facts: Facts = field(default_factory=dict)


Record = Demonstration | PreferencePair | LabelledResponse | Prompt


@dataclass(frozen=True, slots=True)
class RawRow:
    """A row as read from a file. `origin` is `file:line`, or `file:row` if the container has no lines."""

    value: Any
    origin: str
