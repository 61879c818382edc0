"""Votes, raters and responses as the feedback store returns them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from alignment_core.records import Conversation

RaterKind = Literal["human", "ai"]


@dataclass(frozen=True, slots=True)
class Rater:
    """The author of a vote. Kind `ai` marks votes of a model wherever they are shown or exported."""

    name: str
    kind: RaterKind = "human"


@dataclass(frozen=True, slots=True)
class Response:
    """One response to a prompt. `model` is the key of the artifact that wrote it, empty if unknown or a person."""

    id: str
    text: str
    model: str


@dataclass(frozen=True, slots=True)
class RankingTask:
    """Responses to one prompt to rank against each other."""

    id: str
    prompt: Conversation
    responses: tuple[Response, ...]


@dataclass(frozen=True, slots=True)
class Vote:
    """One vote with the prompt and the responses that it judges.

    Attributes:
        number: increases with every vote in the store.
        rater: who voted.
        prompt: the conversation up to the response.
        responses: the response that got the thumb, or the ranked responses.
        ranks: rank of each response: 1 is best, equal ranks are a tie. Empty for a thumb, for a skipped ranking, and
            if all responses are bad.
        up: True for thumb up, False for thumb down, None for a comment without a thumb and for a ranking.
        comment: the rater's comment.
        time: seconds since the epoch.
        bad: whether the rater found all responses bad.
        edited: id of the response that the rater wrote from one of the others, empty if there is none.
    """

    number: int
    rater: Rater
    prompt: Conversation
    responses: tuple[Response, ...]
    ranks: tuple[int, ...]
    up: bool | None
    comment: str
    time: float
    bad: bool = False
    edited: str = ""

    @property
    def is_thumb(self) -> bool:
        return len(self.responses) == 1
