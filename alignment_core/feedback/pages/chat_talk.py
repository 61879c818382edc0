"""One conversation of the chat page: what was asked, what was answered, and with which answer it goes on.

It works without a page, on a plain dictionary, which the page keeps per visitor.
"""

from __future__ import annotations

import secrets
from collections.abc import MutableMapping, Sequence
from typing import Any

Turn = dict[str, Any]
Answer = dict[str, Any]
TITLE_LENGTH = 40


def new_talk(models: Sequence[str], *, blind: bool) -> dict[str, Any]:
    """Return an empty conversation with these models. `blind`: which of two models wrote an answer is hidden."""
    return {"id": secrets.token_hex(8), "models": list(models), "blind": blind, "turns": []}


class Talk:
    """A conversation. All models see the same one: each answer that it goes on with, whoever wrote it.

    So two answers to one question have the same prompt, and a vote on them is a preference pair.

    A turn is a `question`, its `answers`, and the `slots` that the page shows beside each other. A slot holds the
    `model` that answers in it and the place of its `answer`, None until there is one. `kept` is the place of the answer
    that the conversation goes on with, None until somebody has chosen one, and `vote` what was chosen. An answer holds
    its `content`, the `key` and the `label` of the model, whether it is `edited`, and a thumb as `up` and `comment`.
    """

    def __init__(self, data: MutableMapping[str, Any]) -> None:
        self.data = data

    @property
    def turns(self) -> list[Turn]:
        turns: list[Turn] = self.data["turns"]
        return turns

    @property
    def models(self) -> list[str]:
        """The models that answer the next message, one or two."""
        models: list[str] = self.data["models"]
        return models

    @property
    def title(self) -> str:
        """The beginning of the first question; empty if there is none."""
        text = " ".join(str(self.turns[0]["question"]).split()) if self.turns else ""
        return text if len(text) <= TITLE_LENGTH else f"{text[: TITLE_LENGTH - 1]}…"

    def ask(self, question: str, models: Sequence[str]) -> None:
        """Add a question, to be answered by these models, from left to right."""
        slots = [{"model": model, "answer": None} for model in models]
        self.turns.append({"question": question, "answers": [], "slots": slots, "kept": None, "vote": None})

    def kept(self, place: int) -> int | None:
        """Return the place of the answer that the conversation goes on with: the chosen one, or else the last shown."""
        turn = self.turns[place]
        shown = [slot["answer"] for slot in turn["slots"] if slot["answer"] is not None]
        chosen: int | None = turn["kept"]
        return chosen if chosen is not None else shown[-1] if shown else None

    def messages(self, place: int, system: str | None) -> list[dict[str, Any]]:
        """Return the conversation up to the question of a turn."""
        found = [{"role": "system", "content": system}] if system else []
        for before, turn in enumerate(self.turns[:place]):
            found.append({"role": "user", "content": turn["question"]})
            if (kept := self.kept(before)) is not None:
                found.append({"role": "assistant", "content": turn["answers"][kept]["content"]})
        return [*found, {"role": "user", "content": self.turns[place]["question"]}]

    def open_slots(self) -> list[int]:
        """Return the slots of the last turn that wait for an answer."""
        slots = self.turns[-1]["slots"] if self.turns else []
        return [number for number, slot in enumerate(slots) if slot["answer"] is None]

    def answer(self, place: int, slot: int, content: str, *, key: str, label: str, edited: bool = False) -> None:
        """Put an answer into a slot."""
        turn = self.turns[place]
        turn["answers"].append({"content": content, "key": key, "label": label, "edited": edited})
        turn["slots"][slot]["answer"] = len(turn["answers"]) - 1

    def regenerate(self) -> None:
        """Show the kept answer of the last turn beside a slot for another one of the first model."""
        place = len(self.turns) - 1
        turn, kept = self.turns[place], self.kept(place)
        turn["slots"] = [{"model": "", "answer": kept}, {"model": self.models[0], "answer": None}]
        turn["vote"] = None

    def give_up(self, slot: int) -> None:
        """Remove a slot of the last turn that got no answer, if another one has one."""
        slots = self.turns[-1]["slots"]
        if len(slots) > 1 and slots[slot]["answer"] is None:
            del slots[slot]

    def choose(self, vote: str) -> None:
        """Note what was chosen among the two answers of the last turn: `first`, `second`, `tie` or `bad`."""
        turn = self.turns[-1]
        turn["vote"] = vote
        if vote in ("first", "second"):
            turn["kept"] = turn["slots"][vote == "second"]["answer"]

    def edit(self, slot: int, content: str) -> None:
        """Let the last turn go on with an edited answer alone."""
        place = len(self.turns) - 1
        turn = self.turns[place]
        turn["slots"] = [{"model": turn["slots"][slot]["model"], "answer": None}]
        self.answer(place, 0, content, key="", label="edited by you", edited=True)
        turn["kept"], turn["vote"] = turn["slots"][0]["answer"], None

    def can_compare(self, place: int) -> bool:
        """Return whether a turn shows two different answers and is the last one.

        Later turns follow from the answer that was kept, which is then chosen for good.
        """
        turn = self.turns[place]
        found = [slot["answer"] for slot in turn["slots"]]
        if place != len(self.turns) - 1 or len(found) < 2 or None in found:
            return False
        return len({turn["answers"][number]["content"].strip() for number in found}) == 2

    def hides_names(self, place: int) -> bool:
        """Return whether the names of the models of a turn are hidden until there is a vote."""
        turn = self.turns[place]
        blind = self.data["blind"] and len(turn["slots"]) > 1 and turn["vote"] is None
        return bool(blind and place == len(self.turns) - 1)


RANKS = {"first": (1, 2), "second": (2, 1), "tie": (1, 1), "bad": None}
"""What a vote on two answers says, as ranks. None: both are bad."""
