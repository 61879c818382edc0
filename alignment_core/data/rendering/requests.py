"""The inputs, outputs and intermediate results of the renderer."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from alignment_core.data.rendering.encoder import Encoded, Text
from alignment_core.data.rendering.rendered import Rendered
from alignment_core.plugin_api import TokenSequence
from alignment_core.records import Conversation


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt with its completions, to be tokenized.

    Attributes:
        prompt: turns before the completions.
        completions: the completions, which all get the same prompt.
        demonstration: whether to also return the first completion with the prompt's assistant turns as targets.
        waiting: whether to also return the prompt alone, as generation sees it.
    """

    prompt: Conversation
    completions: tuple[Conversation, ...] = ()
    demonstration: bool = False
    waiting: bool = False


@dataclass(frozen=True, slots=True)
class Tokens:
    """A tokenized request.

    Attributes:
        completions: the prompt with each completion, in the order of the request.
        demonstration: the sequence with every assistant turn as a target. None if not requested.
        prompt: the prompt alone. None if not requested.
        kept: the turns that are left in `prompt`.
        truncated: whether the prompt of the completions, or the prompt alone, was cut.
        rewritten: whether the template refused the original conversation, so that its text is in user and assistant
            turns only.
        left_out: reasons why assistant turns are no targets, with their numbers.
        thoughts: number of thoughts for which the template has no place, under `as_text` or `left_out`.
    """

    completions: tuple[TokenSequence, ...]
    demonstration: TokenSequence | None
    prompt: TokenSequence | None
    kept: Conversation
    truncated: bool = False
    rewritten: bool = False
    left_out: Counter[str] = field(default_factory=Counter)
    thoughts: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class RenderedRequest:
    kept: Conversation
    rendered: list[Rendered]
    texts: list[Text]
    completed: bool

    @property
    def rewritten(self) -> bool:
        return any(item.rewritten for item in self.rendered)

    @property
    def left_out(self) -> Counter[str]:
        return sum((item.left_out for item in self.rendered), Counter[str]())


@dataclass(frozen=True, slots=True)
class Tail:
    ids: list[int]
    mask: list[bool] | None


@dataclass(frozen=True, slots=True)
class TokenizedParts:
    """The tokens of a request before their length is checked. `kept` is escaped."""

    kept: Conversation
    head: Encoded
    tails: list[Tail]
    rewritten: bool
    left_out: Counter[str]

    @property
    def length(self) -> int:
        return len(self.head.ids) + max((len(tail.ids) for tail in self.tails), default=0)
