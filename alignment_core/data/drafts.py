"""What goes into the renderer and what comes out of it, and what there is in between."""

from __future__ import annotations

from dataclasses import dataclass

from alignment_core.data.chat import Rendered
from alignment_core.data.encoding import Encoded, Text
from alignment_core.plugin_api import TokenSequence
from alignment_core.records import Conversation


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt with its completions, to be tokenised.

    Attributes:
        prompt: the turns before the completions.
        completions: the turns after it; all of them get the same prompt.
        demonstration: the first completion is wanted with the prompt's assistant turns as targets, too.
        waiting: the prompt alone is wanted, as generation sees it.
    """

    prompt: Conversation
    completions: tuple[Conversation, ...] = ()
    demonstration: bool = False
    waiting: bool = False


@dataclass(frozen=True, slots=True)
class Tokens:
    """A tokenised request.

    Attributes:
        completions: prompt and completion, in the order of the request's.
        demonstration: with every assistant turn as target; None if not asked for.
        prompt: the prompt alone; None if not asked for.
        kept: the turns that `prompt` holds.
        truncated: the completions' prompt, or the prompt alone, had to be cut.
        rewritten: the template refused the conversation as it was; its words stand in user and assistant turns.
    """

    completions: tuple[TokenSequence, ...]
    demonstration: TokenSequence | None
    prompt: TokenSequence | None
    kept: Conversation
    truncated: bool = False
    rewritten: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    kept: Conversation
    rendered: list[Rendered]
    texts: list[Text]
    rewritten: bool


@dataclass(frozen=True, slots=True)
class Tail:
    ids: list[int]
    mask: list[bool] | None


@dataclass(frozen=True, slots=True)
class Draft:
    """A request's tokens before it is known whether they fit; `kept` is escaped."""

    kept: Conversation
    head: Encoded
    tails: list[Tail]
    rewritten: bool

    @property
    def length(self) -> int:
        return len(self.head.ids) + max((len(tail.ids) for tail in self.tails), default=0)
