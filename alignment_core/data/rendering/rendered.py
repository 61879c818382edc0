"""Rendered conversations: a prompt and its completion as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from alignment_core.data.rendering.encoder import Span, Unrenderable
from alignment_core.records import Conversation, Message


@dataclass(frozen=True, slots=True)
class Rendered:
    """A prompt and its completion as text.

    Attributes:
        head: the prompt, as generation sees it. In a completion of several turns it is the prompt as the template
            writes it before earlier answers, where that differs.
        tail: the completion, up to and including the text of the stop token.
        head_targets: spans of the assistant turns in `head`. None if not requested.
        tail_targets: spans of the assistant turns in `tail`. None if all of `tail` is the assistant's.
        end_id: id of the stop token that is added after `tail`. None if `tail` ends with the text of one.
        rewritten: whether the template refused the original conversation, so that its text is in user and assistant
            turns only.
        left_out: reasons why assistant turns are no targets, with their numbers.
    """

    head: str
    tail: str = ""
    head_targets: tuple[Span, ...] | None = None
    tail_targets: tuple[Span, ...] | None = None
    end_id: int | None = None
    rewritten: bool = False
    left_out: Counter[str] = field(default_factory=Counter)


def with_one_head(results: Sequence[Rendered]) -> list[Rendered]:
    """Return the completions with the shortest of their heads. What follows it in another head becomes its tail's.

    Raises:
        Unrenderable: the heads differ otherwise.
    """
    shortest = min((result.head for result in results), key=len)
    if not all(result.head.startswith(shortest) for result in results):
        raise Unrenderable("template_rewrites_history", "the chat template writes different prompts for the two sides")
    return [_from(result, len(shortest)) for result in results]


def _from(result: Rendered, size: int) -> Rendered:
    more = len(result.head) - size
    if not more:
        return result
    targets = result.tail_targets
    if targets is not None:
        targets = tuple((start + more, end + more) for start, end in targets)
    return replace(result, head=result.head[:size], tail=result.head[size:] + result.tail, tail_targets=targets)


def is_begun(prompt: Conversation) -> bool:
    """Whether a prompt ends with the start of an answer."""
    return bool(prompt) and bool(prompt[-1].get("prefix"))


def joined(begun: Message, rest: Message | None = None) -> Message:
    """Return an answer from its start and its rest."""
    start = {key: value for key, value in begun.items() if key != "prefix"}
    return start if rest is None else {**start, **rest, "content": begun["content"] + (rest.get("content") or "")}


def after_beginning(result: Rendered, begun: Message) -> Rendered:
    """Return a rendered answer whose start is in the prompt.

    Raises:
        Unrenderable: the template changes the start of the answer.
    """
    start = begun["content"].strip()
    size = result.tail.find(start) + len(start)
    if start not in result.tail:
        raise Unrenderable("unknown_targets", "the chat template changes the start of the answer that the prompt gives")
    targets = result.tail_targets
    if targets is not None:
        targets = inside(targets, size, len(result.tail))
    return replace(result, head=result.head + result.tail[:size], tail=result.tail[size:], tail_targets=targets)


def inside(spans: Sequence[Span], start: int, end: int) -> tuple[Span, ...]:
    """Return the parts of `spans` between `start` and `end`, relative to `start`."""
    return tuple((max(a, start) - start, min(b, end) - start) for a, b in spans if b > start and a < end)
