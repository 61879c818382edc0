"""A conversation with votes, and which models stay in memory, without a page."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from alignment_core.errors import ArtifactError
from alignment_core.feedback.pages.chat_models import ChatModels
from alignment_core.feedback.pages.chat_talk import Talk, new_talk


@pytest.fixture
def talk() -> Talk:
    return Talk(new_talk(["a", "b"], blind=True))


def said(talk: Talk, place: int, system: str | None = None) -> list[str]:
    return [message["content"] for message in talk.messages(place, system)]


def answered(talk: Talk, *texts: str) -> None:
    for slot, text in enumerate(texts):
        talk.answer(len(talk.turns) - 1, slot, text, key=f"key {slot}", label=f"label {slot}")


def test_conversation_goes_on_with_the_chosen_answer(talk: Talk) -> None:
    talk.ask("One?", ["a", "b"])
    assert (talk.open_slots(), talk.kept(0), talk.can_compare(0)) == ([0, 1], None, False)
    answered(talk, "left", "right")
    assert (talk.open_slots(), talk.can_compare(0), talk.hides_names(0)) == ([], True, True)
    talk.choose("first")
    assert not talk.hides_names(0)
    talk.ask("Two?", ["a", "b"])
    assert not talk.can_compare(0), "the second question follows from the answer"
    answered(talk, "same", " same ")
    assert not talk.can_compare(1)
    talk.ask("Three?", ["b"])
    assert said(talk, 2, "Be kind.") == ["Be kind.", "One?", "left", "Two?", " same ", "Three?"]
    assert said(talk, 0) == ["One?"]
    # What is stored is JSON.
    assert said(Talk(json.loads(json.dumps(talk.data))), 2) == said(talk, 2)


def test_tie_keeps_the_last_answer_and_a_failed_one_is_left_out(talk: Talk) -> None:
    talk.ask("One?", ["a", "b"])
    answered(talk, "left", "right")
    talk.choose("tie")
    talk.ask("Two?", ["a", "b"])
    talk.ask("Three?", ["a"])
    assert said(talk, 2) == ["One?", "right", "Two?", "Three?"]


def test_regenerated_answer_stands_beside_the_kept_one(talk: Talk) -> None:
    talk.ask("One?", ["a"])
    answered(talk, "first")
    talk.regenerate()
    assert talk.open_slots() == [1]
    talk.give_up(1)
    assert [slot["answer"] for slot in talk.turns[0]["slots"]] == [0], "a failed second answer leaves the first"
    talk.regenerate()
    talk.answer(0, 1, "second", key="key", label="label")
    assert talk.kept(0) == 1
    talk.choose("first")
    assert talk.kept(0) == 0
    talk.regenerate()
    talk.answer(0, 1, "third", key="key", label="label")
    talk.edit(1, "better")
    assert [talk.turns[0]["answers"][slot["answer"]]["content"] for slot in talk.turns[0]["slots"]] == ["better"]
    talk.ask("Two?", ["a"])
    assert said(talk, 1) == ["One?", "better", "Two?"]
    assert [one["content"] for one in talk.turns[0]["answers"]] == ["first", "second", "third", "better"]


def test_title_is_the_beginning_of_the_first_question(talk: Talk) -> None:
    assert talk.title == ""
    talk.ask("How do I\nkeep basil alive on a window sill in winter?", ["a"])
    assert talk.title == "How do I keep basil alive on a window s…"
    assert len(talk.title) == 40


class Loaded:
    """A model whose process is a flag."""

    def __init__(self, reference: str, log: list[str]) -> None:
        self.reference, self.is_loaded, self.is_answering, self._log = reference, False, False, log

    async def close(self) -> None:
        self.is_loaded = False
        self._log.append(self.reference)


def test_model_that_was_not_used_for_the_longest_time_leaves_the_memory() -> None:
    closed: list[str] = []

    def open_model(reference: str) -> Any:
        if reference == "gone":
            raise ArtifactError("there is no such model")
        return Loaded(reference, closed)

    models = ChatModels(["a"], open_model, lambda: ["b", "a", "c"])
    assert models.choices() == ["a", "b", "c"]

    def use(*references: str) -> None:
        asyncio.run(models.make_room(references))
        for reference in references:
            models.get(reference).is_loaded = True  # type: ignore[misc]

    use("a")
    use("b")
    use("a")
    assert closed == []
    use("c")
    assert closed == ["b"]
    use("b", "d")
    assert closed == ["b", "a", "c"]
    models.get("b").is_answering = True  # type: ignore[misc]
    use("a")
    assert closed == ["b", "a", "c", "d"], "b is answering, and stays"
    with pytest.raises(ArtifactError):
        models.get("gone")
