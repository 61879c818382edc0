"""Votes, duplicates, splits and conversions, on records written down by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from records import answer, demo, pair, prompt, thumb, turns

from alignment_core.data.facts import Facts
from alignment_core.data.rendering import Renderer
from alignment_core.data.selection import select
from alignment_core.data.shards import Shards, ShardWriter
from alignment_core.record_format import Reading
from alignment_core.records import Record


class World:
    """Records in a shard, and what is selected from them."""

    def __init__(self, folder: Path, renderer: Renderer) -> None:
        self.folder, self.renderer, self.count = folder, renderer, 0

    def select(
        self,
        readings: Sequence[Record | Reading],
        held_out: float = 0.0001,
        near: float | None = 0.8,
        weight: float = 1.0,
    ) -> tuple[dict[str, list[Any]], dict[str, list[Any]], Facts]:
        """The rows of both splits by kind, in words, and the facts."""
        self.count += 1
        path = self.folder / f"{self.count}.arrow"
        with ShardWriter(path, self.renderer) as writer:
            for line, reading in enumerate(readings, 1):
                writer.add(reading if isinstance(reading, Reading) else Reading(reading), str(line))
        shards = Shards([path], [["f"]], self.folder)
        train, held, facts = select(shards, np.array([weight]), held_out, near, self.folder)
        return _in_words(shards, train), _in_words(shards, held), facts

    def all(self, *readings: Record | Reading, **settings: Any) -> tuple[dict[str, list[Any]], Facts]:
        """The rows of both splits together: what is held out does not matter."""
        train, held, facts = self.select(readings, **settings)
        return {kind: sorted(train[kind] + held[kind]) for kind in train}, facts


def _in_words(shards: Shards, chosen: Any) -> dict[str, list[Any]]:
    def said(index: int, column: str) -> str:
        return shards.text(int(index), column)

    return {
        "demonstrations": [(said(i, "prompt"), said(i, "first")) for i in chosen.demonstrations],
        "preferences": [
            (said(good, "prompt"), said(good, "first"), said(bad, "second" if good == bad else "first"))
            for good, bad in zip(*chosen.preferences, strict=True)
        ],
        "feedback": [
            (said(i, "prompt"), said(i, ("first", "second")[side]), int(sign))
            for i, side, sign in zip(*chosen.feedback, strict=True)
        ],
        "prompts": [said(i, "prompt") for i in chosen.prompts],
    }


@pytest.fixture
def world(tmp_path: Path, renderer: Renderer) -> World:
    return World(tmp_path, renderer)


# Questions that share no words, so that none is taken for a copy of another.
QUESTIONS = [
    f"{word} {word}? {word}!" for word in ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta")
]


# --- conversions ------------------------------------------------------------------------------------------------


def test_a_pair_serves_every_kind(world: World) -> None:
    rows, facts = world.all(pair("q", "good", "bad"), demo("r", "fine"))
    assert rows == {
        "demonstrations": [("q", "good"), ("r", "fine")],
        "preferences": [("q", "good", "bad")],
        "feedback": [("q", "bad", -1), ("q", "good", 1)],
        "prompts": ["q", "r"],
    }
    total = sum(facts.conversions.values(), start=type(facts.votes)())
    assert total["feedback from the two sides of pairs"] == 2
    assert total["demonstrations from chosen sides and desirable responses"] == 1


def test_opposite_labels_on_one_prompt_make_pairs(world: World) -> None:
    """Three liked and one disliked: each liked one once against it. No pair where all agree."""
    rows, _ = world.all(
        *(thumb("q", text, True) for text in ("a a", "b b", "c c")), thumb("q", "no no", False), thumb("r", "d d", True)
    )
    assert rows["preferences"] == [("q", "a a", "no no"), ("q", "b b", "no no"), ("q", "c c", "no no")]
    assert rows["demonstrations"] == [("q", "a a"), ("q", "b b"), ("q", "c c"), ("r", "d d")]


def test_a_pair_that_was_given_is_not_made_again(world: World) -> None:
    rows, _ = world.all(thumb("q", "a", True), thumb("q", "b", False), pair("q", "a", "b"))
    assert rows["preferences"] == [("q", "a", "b")]
    assert rows["feedback"] == [("q", "a", 1), ("q", "b", -1)]


def test_middle_ranks_are_neither_liked_nor_disliked(world: World) -> None:
    """a > b > c: a won twice, c lost twice, b won and lost once."""
    rows, facts = world.all(pair("q", "a", "b"), pair("q", "a", "c"), pair("q", "b", "c"))
    assert rows["feedback"] == [("q", "a", 1), ("q", "c", -1)]
    assert rows["demonstrations"] == [("q", "a")]
    assert facts.votes["as often chosen as rejected"] == 1


def test_a_label_that_was_given_counts_more_than_a_pair(world: World) -> None:
    rows, _ = world.all(pair("q", "a", "b"), thumb("q", "a", False))
    assert rows["feedback"] == [("q", "a", -1), ("q", "b", -1)]


def test_answers_without_a_prompt(world: World) -> None:
    labels = [type(thumb("q", "a", True))((), answer(word * 3), sign) for word, sign in (("x", True), ("y", False))]
    rows, _ = world.all(*labels)
    assert rows["prompts"] == []
    assert rows["feedback"] == [("", "xxx", 1), ("", "yyy", -1)]


# --- votes --------------------------------------------------------------------------------------------------------


def test_the_majority_decides(world: World) -> None:
    votes = [thumb("q", "a", True), thumb("q", "a", False), thumb("q", "a", True)]
    rows, facts = world.all(*votes, thumb("r", "b", True))
    assert rows["feedback"] == [("q", "a", 1), ("r", "b", 1)]
    assert facts.votes["contradicting"] == 1
    assert facts.votes["outvoted"] == 1
    assert facts.duplicates["exact"] == 1


def test_a_draw_says_nothing(world: World) -> None:
    rows, facts = world.all(thumb("q", "a", True), thumb("q", "a", False), thumb("r", "b", True))
    assert rows["feedback"] == [("r", "b", 1)]
    assert facts.votes["tied"] == 2


def test_one_voters_last_vote_counts(world: World) -> None:
    early = Reading(thumb("q", "a", True), "ann", 1.0)
    late = Reading(thumb("q", "a", False), "ann", 9.0)
    other = Reading(thumb("q", "a", False), "bob", 5.0)
    rows, facts = world.all(late, early, other)
    assert rows["feedback"] == [("q", "a", -1)]
    assert facts.votes["superseded"] == 1
    assert facts.votes["contradicting"] == 0


def test_opposite_pairs_are_votes_too(world: World) -> None:
    rows, facts = world.all(pair("q", "a", "b"), pair("q", "b", "a"), pair("q", "a", "b"))
    assert rows["preferences"] == [("q", "a", "b")]
    assert facts.votes["outvoted"] == 1
    rows, facts = world.all(pair("q", "a", "b"), pair("q", "b", "a"), demo("r", "x"))
    assert rows["preferences"] == []
    assert facts.votes["tied"] == 2


def test_weights_count_as_votes(world: World) -> None:
    heavy = type(thumb("q", "a", True))(turns("q"), answer("a"), True, 3.0)
    rows, _ = world.all(heavy, thumb("q", "a", False), thumb("q", "a", False))
    assert rows["feedback"] == [("q", "a", 1)]


# --- duplicates ---------------------------------------------------------------------------------------------------

LONG = "please tell me in a few words what the capital of france is and how many people live there today"


def test_exact_and_near_duplicates_are_removed_and_counted(world: World) -> None:
    copies = [demo(LONG, "paris"), demo(LONG, "paris"), demo(LONG + " please", "Paris!")]
    train, held, facts = world.select([*many(40), *copies])  # one of the many has the lowest hash, and is held out
    assert (LONG, "paris") in train["demonstrations"]
    assert len(train["demonstrations"]) + len(held["demonstrations"]) == 41
    assert dict(facts.duplicates) == {"exact": 1, "near": 1, "like_held_out": 0}


def test_the_same_prompt_with_other_answers_is_no_duplicate(world: World) -> None:
    rows, facts = world.all(*(thumb(LONG, text, True) for text in ("yes", "no", "paris of course")))
    assert len(rows["feedback"]) == 3
    assert facts.duplicates["near"] == 0


def test_near_duplicates_can_be_left_alone(world: World) -> None:
    rows, _ = world.all(demo(LONG, "paris"), demo(LONG + " please", "Paris!"), near=None)
    assert len(rows["demonstrations"]) == 2


# --- splits -------------------------------------------------------------------------------------------------------


def many(count: int, start: int = 0) -> list[Record]:
    return [
        demo(f"question {i * 7919} about {i * 104729} and {i * 1299709}", f"answer {i}") for i in range(start, count)
    ]


def test_adding_records_moves_no_prompt(world: World) -> None:
    first = world.select(many(150), held_out=0.2)
    more = world.select([*many(300, 150), *many(150)], held_out=0.2)
    for split, grown in zip(first[:2], more[:2], strict=True):
        assert set(split["prompts"]) <= set(grown["prompts"])
    assert 15 <= len(first[1]["prompts"]) <= 45


def test_a_conversation_stays_in_one_split(world: World) -> None:
    """All turns and all answers that start with one question share a split, whatever the system prompt."""
    records = []
    for question in QUESTIONS:
        records += [thumb(question, f"{question} one", True), thumb(question, f"{question} two", False)]
        records += [demo(question, "hm", "and " + question, "yes"), prompt("system: be", question)]
    train, held, _ = world.select(records, held_out=0.5)
    starts = [{text.removeprefix("be\n").split("\n")[0] for text in split["prompts"]} for split in (train, held)]
    assert starts[0]
    assert starts[1]
    assert not starts[0] & starts[1]
    assert starts[0] | starts[1] == set(QUESTIONS)


def test_no_training_prompt_is_like_a_held_out_one(world: World) -> None:
    originals = many(200)
    copies = [demo(record.messages[0]["content"].upper() + " !", "again") for record in originals[:100]]
    longer = [demo(f"{LONG} {record.messages[0]['content']} so", "x") for record in originals[100:]]
    variants = [demo(f"{LONG} {record.messages[0]['content']} thus", "y") for record in originals[100:]]
    train, held, facts = world.select([*originals, *copies, *longer, *variants], held_out=0.2)
    assert facts.duplicates["like_held_out"] > 0
    from alignment_core.data.near import shingles, similarity

    held_sets = [shingles(text) for text in held["prompts"]]
    assert all(similarity(shingles(text), other) < 0.8 for text in train["prompts"] for other in held_sets)


def test_prompts_from_one_template_are_no_leak(world: World) -> None:
    """Where every prompt resembles every other, dropping them would leave nothing: they stay, with a warning."""
    template = "you are given a sentence and you must say whether it is kind or unkind in one word here it is " * 3
    train, held, facts = world.select([demo(f"{template} {i}", f"word {i * 31}") for i in range(60)], held_out=0.3)
    assert len(train["demonstrations"]) + len(held["demonstrations"]) == 60
    assert any("template" in warning for warning in facts.warnings)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_a_little_data_still_has_both_splits(world: World, count: int) -> None:
    for fraction in (0.0001, 0.9999):
        train, held, _ = world.select(many(count), held_out=fraction)
        assert train["prompts"]
        assert held["prompts"]


def test_one_conversation_cannot_be_split(world: World) -> None:
    train, held, facts = world.select([thumb("q", "a", True), thumb("q", "b", False)])
    assert len(train["feedback"]) == 2
    assert held["feedback"] == []
    assert facts.warnings


# --- weights ------------------------------------------------------------------------------------------------------


def test_a_weight_below_one_takes_a_stable_share(world: World) -> None:
    rows, _ = world.all(*many(400), weight=0.25)
    again, _ = world.all(*many(500), weight=0.25)
    assert 60 <= len(rows["prompts"]) <= 140
    assert set(rows["prompts"]) <= set(again["prompts"])


# --- parts --------------------------------------------------------------------------------------------------------


def test_nothing_depends_on_how_many_records_are_worked_on_together(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Votes, duplicates, leaks and conversions, once in one part and once in parts of eight."""
    records: list[Record | Reading] = [*many(60), *many(20), *(demo(f"{LONG} {i}", f"{LONG} {i}") for i in range(20))]
    for question in QUESTIONS:
        records += [thumb(question, "a a", True), thumb(question, "a a", False), thumb(question, "b", False)]
        records += [pair(question, "c c", "d"), pair(question, "d", "c c"), pair(question, "c c", "e")]
        records += [Reading(thumb(question, "f", True), "ann", 1.0), Reading(thumb(question, "f", False), "ann", 2.0)]
    whole = world.select(records, held_out=0.3)
    monkeypatch.setattr("alignment_core.data.ondisk.PART", 8)
    parts = world.select(records, held_out=0.3)
    assert parts[:2] == whole[:2]
    assert vars(parts[2]) == vars(whole[2])
    assert min(whole[2].duplicates.values()) > 0
