"""The canonical records that every source of feedback becomes, before tokenisation.

A conversation is a tuple of `{role, content, …}` messages; other keys (tool calls, names) are kept as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Message = Mapping[str, Any]
Conversation = tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A whole conversation whose assistant turns are worth imitating.

    `messages` starts with a system or user turn and ends with an assistant turn; `origin` is `file:line`.
    """

    messages: Conversation
    origin: str = ""


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """Two completions of one prompt, the first preferred.

    `chosen` and `rejected` hold only the turns after the prompt; `margin` is by how much (score points), if known.
    """

    prompt: Conversation
    chosen: Conversation
    rejected: Conversation
    margin: float | None = None
    origin: str = ""


@dataclass(frozen=True, slots=True)
class LabelledResponse:
    """One completion that a person marked good or bad; `weight` counts it as so many votes."""

    prompt: Conversation
    response: Conversation
    desirable: bool
    weight: float = 1.0
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation that waits for the assistant's turn."""

    messages: Conversation
    origin: str = ""


Record = Demonstration | PreferencePair | LabelledResponse | Prompt


@dataclass(frozen=True, slots=True)
class RawRow:
    """A row as it stood in the file; `origin` is `file:line` (`file:row` where a container has no lines)."""

    value: Any
    origin: str
