"""Responses side by side: which words are marked, and what of long responses a page holds."""

from __future__ import annotations

import time

from hypothesis import given, settings
from hypothesis import strategies as st

from alignment_core.reporting.words import (
    BUDGET,
    FOLDED,
    SHOWN,
    Answer,
    Run,
    Sample,
    differing,
    marked,
    that_fit,
    words,
)


def marks(runs: list[Run] | None) -> list[str]:
    return [run.text for run in runs or [] if run.differs]


def test_words_that_differ_are_marked_on_both_sides() -> None:
    both = differing("Give the basil some light, please.", "Give the small plant some light, please!")
    assert both is not None
    assert (marks(both[0]), marks(both[1])) == (["basil", "."], ["small plant", "!"])


def test_nothing_is_marked_where_almost_everything_differs() -> None:
    assert differing("one two three four", "five six seven one") is None
    assert differing("", "word") is None
    sample = marked(Sample([], [Answer("sft", -1, "one two three four"), Answer("dpo", 0, "five six seven one")]))
    assert [marks(list(answer.runs)) for answer in sample.answers] == [[], []]
    assert sample.note == "Almost every word differs, so none is marked: dpo"


def test_each_character_of_chinese_is_a_word() -> None:
    both = differing("今天天气很好", "今天天气不好")
    assert both is not None
    assert (marks(both[0]), marks(both[1])) == (["很"], ["不"])


def test_of_several_responses_all_but_the_first_are_marked() -> None:
    texts = ["a red dog ran home", "a blue dog ran home", "a red cat ran home"]
    sample = marked(Sample([], [Answer(f"m{n}", n, text) for n, text in enumerate(texts)]))
    assert [marks(list(answer.runs)) for answer in sample.answers] == [[], ["blue"], ["cat"]]


@settings(max_examples=40, deadline=None)
@given(st.text(alphabet="ab \n.中é", max_size=60), st.text(alphabet="ab \n.中é", max_size=60))
def test_pieces_are_the_text(one: str, other: str) -> None:
    assert "".join(words(one)) == one
    if (both := differing(one, other)) is not None:
        assert "".join(run.text for run in both[0]) == one
        assert "".join(run.text for run in both[1]) == other


def test_long_responses_are_folded_and_then_cut() -> None:
    text = "word " * 4000
    (sample,) = that_fit([Sample([], [Answer("sft", -1, text), Answer("dpo", 0, text[:-5] + "end")])], 5)
    answer = sample.answers[1]
    shown, folded = ("".join(run.text for run in runs) for runs in (answer.shown, answer.folded))
    assert (len(shown), len(shown + folded), answer.left_out) == (SHOWN, FOLDED, 19_998 - FOLDED)
    assert text.startswith(shown + folded)
    assert sample.note == "Differences are marked in the first 1,500 words"


def test_page_holds_as_many_samples_as_a_browser_opens_but_one_at_least() -> None:
    def samples(models: int, size: int) -> list[Sample]:
        return [
            Sample([], [Answer(str(n), n, f"{n:02} " + "x" * (size - 3)) for n in range(models)]) for _ in range(500)
        ]

    assert len(that_fit(samples(2, 100), 24)) == 24
    # twelve responses of 10,000 characters: 120,000 for each prompt
    assert len(that_fit(samples(12, 10_000), 24)) == BUDGET // 120_000
    assert len(that_fit(samples(60, 20_000), 24)) == 1
    assert that_fit([], 24) == []


def test_twelve_long_responses_are_compared_in_a_moment() -> None:
    texts = [" ".join(str((n * 7919 + m) % 97) for n in range(2500)) for m in range(12)]
    started = time.process_time()
    marked(Sample([], [Answer(str(n), n, text) for n, text in enumerate(texts)]))
    assert time.process_time() - started < 10
