"""What raters say of responses, as the store gives it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from alignment_core.records import Conversation

RaterKind = Literal["human", "ai"]


@dataclass(frozen=True, slots=True)
class Rater:
    """Who judges; `ai` marks a model's judgement wherever it is shown or handed on."""

    name: str
    kind: RaterKind = "human"


@dataclass(frozen=True, slots=True)
class Response:
    """One answer to a prompt; `model` is the key of the artifact that wrote it, empty where nobody knows."""

    id: str
    text: str
    model: str


@dataclass(frozen=True, slots=True)
class Rankable:
    """Responses to one prompt that are to be ranked together."""

    id: str
    prompt: Conversation
    responses: tuple[Response, ...]


@dataclass(frozen=True, slots=True)
class Vote:
    """One judgement in force, with all that it is about.

    Attributes:
        number: rises with every vote of the store.
        rater: who judged.
        prompt: the conversation up to the response.
        responses: the one that a thumb is for, or those that were ranked.
        ranks: of each response, 1 is best, equal ranks are a tie; empty for a thumb and for a ranking that was skipped.
        up: of a thumb: up, down, or None for neither (a comment alone); None for a ranking.
        comment: what the rater wrote beside it.
        time: seconds since the epoch.
    """

    number: int
    rater: Rater
    prompt: Conversation
    responses: tuple[Response, ...]
    ranks: tuple[int, ...]
    up: bool | None
    comment: str
    time: float

    @property
    def is_thumb(self) -> bool:
        return len(self.responses) == 1
