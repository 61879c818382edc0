"""Votes, duplicates, splits and conversions of handwritten records."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from records import answer, demo, pair, prompt, thumb, turns

from alignment_core.data.ingestion.counts import SelectionCounts
from alignment_core.data.ingestion.selection.select import select
from alignment_core.data.ingestion.shards import Shards, ShardWriter
from alignment_core.data.rendering.renderer import Renderer
from alignment_core.records import Demonstration, Record
from alignment_core.records.format import Reading


class World:
    """Records in a shard, and the rows selected from them."""

    def __init__(self, folder: Path, renderer: Renderer) -> None:
        self.folder, self.renderer, self.count = folder, renderer, 0

    def select(
        self,
        readings: Sequence[Record | Reading],
        held_out: float = 0.0001,
        near: float | None = 0.8,
        weight: float = 1.0,
    ) -> tuple[dict[str, list[Any]], dict[str, list[Any]], SelectionCounts]:
        """Return the rows of both splits as text, by kind, and the counts."""
        self.count += 1
        path = self.folder / f"{self.count}.arrow"
        with ShardWriter(path, self.renderer) as writer:
            for line, reading in enumerate(readings, 1):
                writer.add(reading if isinstance(reading, Reading) else Reading(reading), str(line))
        shards = Shards([path], [["f"]], self.folder)
        train, held, counts = select(shards, np.array([weight]), held_out, near, self.folder)
        return _as_text(shards, train), _as_text(shards, held), counts

    def all(self, *readings: Record | Reading, **settings: Any) -> tuple[dict[str, list[Any]], SelectionCounts]:
        """Return the rows of both splits together, for tests in which the split does not matter."""
        train, held, counts = self.select(readings, **settings)
        return {kind: sorted(train[kind] + held[kind]) for kind in train}, counts


def _as_text(shards: Shards, chosen: Any) -> dict[str, list[Any]]:
    def text_of(index: int, column: str) -> str:
        return shards.text(int(index), column)

    return {
        "demonstrations": [(text_of(i, "prompt"), text_of(i, "first")) for i in chosen.demonstrations],
        "preferences": [
            (text_of(good, "prompt"), text_of(good, "first"), text_of(bad, "second" if good == bad else "first"))
            for good, bad in zip(*chosen.preferences, strict=True)
        ],
        "feedback": [
            (text_of(i, "prompt"), text_of(i, ("first", "second")[side]), int(sign))
            for i, side, sign in zip(*chosen.feedback, strict=True)
        ],
        "prompts": [text_of(i, "prompt") for i in chosen.prompts],
    }


@pytest.fixture
def world(tmp_path: Path, renderer: Renderer) -> World:
    return World(tmp_path, renderer)


# Questions that share no words, so none is a near-duplicate of another.
QUESTIONS = [
    f"{word} {word}? {word}!" for word in ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta")
]


# --- conversions ------------------------------------------------------------------------------------------------


def test_pair_yields_rows_of_every_kind(world: World) -> None:
    rows, counts = world.all(pair("q", "good", "bad"), demo("r", "fine"))
    assert rows == {
        "demonstrations": [("q", "good"), ("r", "fine")],
        "preferences": [("q", "good", "bad")],
        "feedback": [("q", "bad", -1), ("q", "good", 1)],
        "prompts": ["q", "r"],
    }
    total = sum(counts.conversions.values(), start=type(counts.votes)())
    assert total["feedback from the two sides of pairs"] == 2
    assert total["demonstrations from chosen sides and desirable responses"] == 1


def test_opposite_labels_on_one_prompt_make_pairs(world: World) -> None:
    """Each of three liked responses is paired with the disliked one. There is no pair if all labels agree."""
    rows, _ = world.all(
        *(thumb("q", text, True) for text in ("a a", "b b", "c c")), thumb("q", "no no", False), thumb("r", "d d", True)
    )
    assert rows["preferences"] == [("q", "a a", "no no"), ("q", "b b", "no no"), ("q", "c c", "no no")]
    assert rows["demonstrations"] == [("q", "a a"), ("q", "b b"), ("q", "c c"), ("r", "d d")]


def test_existing_pair_is_not_derived_again(world: World) -> None:
    rows, _ = world.all(thumb("q", "a", True), thumb("q", "b", False), pair("q", "a", "b"))
    assert rows["preferences"] == [("q", "a", "b")]
    assert rows["feedback"] == [("q", "a", 1), ("q", "b", -1)]


def test_middle_ranks_are_neither_liked_nor_disliked(world: World) -> None:
    """With a > b > c, a won twice, c lost twice, and b won and lost once."""
    rows, counts = world.all(pair("q", "a", "b"), pair("q", "a", "c"), pair("q", "b", "c"))
    assert rows["feedback"] == [("q", "a", 1), ("q", "c", -1)]
    assert rows["demonstrations"] == [("q", "a")]
    assert counts.votes["as often chosen as rejected"] == 1


def test_explicit_label_overrides_a_pair(world: World) -> None:
    rows, _ = world.all(pair("q", "a", "b"), thumb("q", "a", False))
    assert rows["feedback"] == [("q", "a", -1), ("q", "b", -1)]


def test_responses_without_a_prompt(world: World) -> None:
    labels = [type(thumb("q", "a", True))((), answer(word * 3), sign) for word, sign in (("x", True), ("y", False))]
    rows, _ = world.all(*labels)
    assert rows["prompts"] == []
    assert rows["feedback"] == [("", "xxx", 1), ("", "yyy", -1)]


# --- votes --------------------------------------------------------------------------------------------------------


def test_the_majority_decides(world: World) -> None:
    votes = [thumb("q", "a", True), thumb("q", "a", False), thumb("q", "a", True)]
    rows, counts = world.all(*votes, thumb("r", "b", True))
    assert rows["feedback"] == [("q", "a", 1), ("r", "b", 1)]
    assert counts.votes["contradicting"] == 1
    assert counts.votes["outvoted"] == 1
    assert counts.duplicates["exact"] == 1


def test_tied_votes_are_dropped(world: World) -> None:
    rows, counts = world.all(thumb("q", "a", True), thumb("q", "a", False), thumb("r", "b", True))
    assert rows["feedback"] == [("r", "b", 1)]
    assert counts.votes["tied"] == 2


def test_last_vote_of_a_rater_counts(world: World) -> None:
    early = Reading(thumb("q", "a", True), "ann", 1.0)
    late = Reading(thumb("q", "a", False), "ann", 9.0)
    other = Reading(thumb("q", "a", False), "bob", 5.0)
    rows, counts = world.all(late, early, other)
    assert rows["feedback"] == [("q", "a", -1)]
    assert counts.votes["superseded"] == 1
    assert counts.votes["contradicting"] == 0


def test_opposite_pairs_are_votes_too(world: World) -> None:
    rows, counts = world.all(pair("q", "a", "b"), pair("q", "b", "a"), pair("q", "a", "b"))
    assert rows["preferences"] == [("q", "a", "b")]
    assert counts.votes["outvoted"] == 1
    rows, counts = world.all(pair("q", "a", "b"), pair("q", "b", "a"), demo("r", "x"))
    assert rows["preferences"] == []
    assert counts.votes["tied"] == 2


def test_weights_count_as_votes(world: World) -> None:
    heavy = type(thumb("q", "a", True))(turns("q"), answer("a"), True, 3.0)
    rows, _ = world.all(heavy, thumb("q", "a", False), thumb("q", "a", False))
    assert rows["feedback"] == [("q", "a", 1)]


# --- duplicates ---------------------------------------------------------------------------------------------------

LONG = "please tell me in a few words what the capital of france is and how many people live there today"


def test_exact_and_near_duplicates_are_removed_and_counted(world: World) -> None:
    copies = [demo(LONG, "paris"), demo(LONG, "paris"), demo(LONG + " please", "Paris!")]
    train, held, counts = world.select([*many(40), *copies])  # one of the 40 has the lowest hash and is held out
    assert (LONG, "paris") in train["demonstrations"]
    assert len(train["demonstrations"]) + len(held["demonstrations"]) == 41
    assert dict(counts.duplicates) == {"exact": 1, "near": 1}


def test_same_prompt_with_other_responses_is_not_a_duplicate(world: World) -> None:
    rows, counts = world.all(*(thumb(LONG, text, True) for text in ("yes", "no", "paris of course")))
    assert len(rows["feedback"]) == 3
    assert counts.duplicates["near"] == 0


def test_near_duplicates_can_be_kept(world: World) -> None:
    rows, _ = world.all(demo(LONG, "paris"), demo(LONG + " please", "Paris!"), near=None)
    assert len(rows["demonstrations"]) == 2


# --- splits -------------------------------------------------------------------------------------------------------


def many(count: int, start: int = 0) -> list[Record]:
    return [
        demo(f"question {i * 7919} about {i * 104729} and {i * 1299709}", f"answer {i}") for i in range(start, count)
    ]


def test_adding_records_does_not_move_prompts(world: World) -> None:
    first = world.select(many(150), held_out=0.2)
    more = world.select([*many(300, 150), *many(150)], held_out=0.2)
    for split, grown in zip(first[:2], more[:2], strict=True):
        assert set(split["prompts"]) <= set(grown["prompts"])
    assert 15 <= len(first[1]["prompts"]) <= 45


def test_records_of_one_prompt_stay_in_one_split(world: World) -> None:
    """All records with the same prompt are in one split, whatever the system prompt."""
    records = []
    for question in QUESTIONS:
        records += [thumb(question, f"{question} one", True), thumb(question, f"{question} two", False)]
        records += [demo(question, "yes"), prompt("system: be", question)]
    train, held, _ = world.select(records, held_out=0.5)
    asked = [{text.removeprefix("be\n") for text in split["prompts"]} for split in (train, held)]
    assert asked[0]
    assert asked[1]
    assert not asked[0] & asked[1]
    assert asked[0] | asked[1] == set(QUESTIONS)


def test_chats_that_open_with_the_same_greeting_are_split_by_their_whole_prompt(world: World) -> None:
    """Of 400 chats, half open with a greeting. A tenth of all, give or take chance, is held out."""
    chats = [demo("hi", "hello", f"{i * 7919} or {i * 104729} or {i * 1299709}?", str(i)) for i in range(200)]
    train, held, counts = world.select([*chats, *many(200)], held_out=0.1)
    assert len(train["demonstrations"]) + len(held["demonstrations"]) == 400
    assert 22 <= len(held["demonstrations"]) <= 58  # 40 ± three standard deviations of 6
    assert not counts.warnings


def test_records_of_one_conversation_stay_in_one_split(world: World) -> None:
    records: list[Record | Reading] = []
    for question in QUESTIONS:
        follow_up = (question, "hm", f"and {question * 2}")
        rated = [thumb(question, "a", True), thumb(turns(*follow_up), "b", True)]
        records += [Reading(record, conversation=f"chat of {question}") for record in rated]
        records.append(demo(*follow_up, "c"))  # elsewhere, so only its prompt says that it belongs to the chat
    train, held, _ = world.select(records, held_out=0.5)
    sides = [{text.split("?")[0] for text in split["prompts"]} for split in (train, held)]
    assert not sides[0] & sides[1]
    assert len(sides[0] | sides[1]) == len(QUESTIONS)
    assert min(map(len, sides)) > 0


def test_near_duplicate_prompts_stay_together_and_none_is_dropped(world: World) -> None:
    originals = many(200)
    asked = [record.messages[0]["content"] for record in originals if isinstance(record, Demonstration)]
    copies = [demo(text.upper() + " !", "again") for text in asked[:100]]
    longer = [demo(f"{LONG} {text} so", "x") for text in asked[100:]]
    variants = [demo(f"{LONG} {text} thus", "y") for text in asked[100:]]
    train, held, counts = world.select([*originals, *copies, *longer, *variants], held_out=0.2)
    assert len(train["demonstrations"]) + len(held["demonstrations"]) == 500
    assert 40 <= len(held["demonstrations"]) <= 160  # 100, in units of two
    from alignment_core.data.ingestion.minhash import shingles, similarity

    held_sets = [shingles(text) for text in held["prompts"]]
    assert all(similarity(shingles(text), other) < 0.8 for text in train["prompts"] for other in held_sets)
    assert not counts.warnings


def test_share_that_differs_from_the_one_asked_for_is_explained(world: World) -> None:
    """One prompt has 300 of 320 records. Whichever side it is on, the share of the other is far from a half."""
    votes: list[Record] = [thumb(LONG, f"answer {i * 7919} is {i * 104729}", True) for i in range(300)]
    _, held, counts = world.select([*votes, *many(20)], held_out=0.5)
    (warning,) = counts.warnings
    assert warning.startswith(f"Held out {len(held['demonstrations'])} of 320 records")
    assert "up to 300 do so" in warning


def test_prompts_from_one_template_are_kept_with_a_warning(world: World) -> None:
    """If all prompts resemble each other, dropping them would leave nothing, so they are kept with a warning."""
    template = "you are given a sentence and you must say whether it is kind or unkind in one word here it is " * 3
    train, held, counts = world.select([demo(f"{template} {i}", f"word {i * 31}") for i in range(60)], held_out=0.3)
    assert len(train["demonstrations"]) + len(held["demonstrations"]) == 60
    assert any("template" in warning for warning in counts.warnings)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_small_data_still_has_both_splits(world: World, count: int) -> None:
    for fraction in (0.0001, 0.9999):
        train, held, _ = world.select(many(count), held_out=fraction)
        assert train["prompts"]
        assert held["prompts"]


def test_one_conversation_cannot_be_split(world: World) -> None:
    train, held, counts = world.select([thumb("q", "a", True), thumb("q", "b", False)])
    assert len(train["feedback"]) == 2
    assert held["feedback"] == []
    assert counts.warnings


# --- weights ------------------------------------------------------------------------------------------------------


def test_weight_below_one_selects_a_stable_share(world: World) -> None:
    rows, _ = world.all(*many(400), weight=0.25)
    again, _ = world.all(*many(500), weight=0.25)
    assert 60 <= len(rows["prompts"]) <= 140
    assert set(rows["prompts"]) <= set(again["prompts"])


# --- parts --------------------------------------------------------------------------------------------------------


def test_results_do_not_depend_on_the_part_size(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Process votes, duplicates, leaks and conversions in one part and in parts of eight."""
    records: list[Record | Reading] = [*many(60), *many(20), *(demo(f"{LONG} {i}", f"{LONG} {i}") for i in range(20))]
    for question in QUESTIONS:
        records += [thumb(question, "a a", True), thumb(question, "a a", False), thumb(question, "b", False)]
        records += [pair(question, "c c", "d"), pair(question, "d", "c c"), pair(question, "c c", "e")]
        records += [Reading(thumb(question, "f", True), "ann", 1.0), Reading(thumb(question, "f", False), "ann", 2.0)]
    whole = world.select(records, held_out=0.3)
    monkeypatch.setattr("alignment_core.data.dataset.disk_arrays.PART", 8)
    parts = world.select(records, held_out=0.3)
    assert parts[:2] == whole[:2]
    assert vars(parts[2]) == vars(whole[2])
    assert min(whole[2].duplicates.values()) > 0
