"""An evaluator based on word lists, for format checks, for safety lists and as the true rule of the demo."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field

from alignment_core.plugin_api import Conversation, Evaluator, Facts, hookimpl


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def _one_word(text: str) -> str:
    if _words(text) != {text.lower()}:
        raise ValueError(f"{text!r} is not one word of letters and digits, so it would never match")
    return text.lower()


Word = Annotated[str, AfterValidator(_one_word)]


class WordList(Evaluator):
    """Scores 1 if the response has a wanted word, no unwanted word, every echo word of its prompt and a first
    sentence within the limit, else 0."""

    model_config = ConfigDict(title="Word list")

    name: Literal["wordlist"] = "wordlist"
    wanted: list[Word] = Field(default_factory=list)
    """At least one of these words must occur, in any case. If empty, no word is required."""
    unwanted: list[Word] = Field(default_factory=list)
    """None of these words may occur."""
    echo: list[Word] = Field(default_factory=list)
    """Each of these words that occurs in the last user turn must also occur in the response."""
    first_sentence: int | None = Field(None, ge=1)
    """Maximum number of words of the first sentence. Unset: no limit."""

    def score(self, prompt: Conversation, response: str, facts: Facts) -> float:
        used, asked = _words(response), _words(_last_user_turn(prompt))
        passes = (
            (not self.wanted or any(word in used for word in self.wanted))
            and not any(word in used for word in self.unwanted)
            and all(word in used for word in self.echo if word in asked)
            and (self.first_sentence is None or 0 < len(_first_sentence(response).split()) <= self.first_sentence)
        )
        return float(passes)


def _first_sentence(text: str) -> str:
    """Return the text up to the first end of a sentence or line. The dot after a number, as in `1. Mix`, is none."""
    return re.split(r"(?<=[^\W\d])[.!?](?=\s|$)|\n", text.strip(), maxsplit=1)[0]


def _last_user_turn(prompt: Conversation) -> str:
    return next((str(turn["content"]) for turn in reversed(prompt) if turn["role"] == "user"), "")


@hookimpl
def alignment_evaluators() -> list[type[Evaluator]]:
    return [WordList]
