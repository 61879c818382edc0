"""The arithmetic of `benchmarks/smollm2.py`: the rule, its noisy comparisons, the cells, resuming and the table."""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gpu_cases.results_file import ResultsFile
from on_smollm2.cells import OPTIMIZERS, Cell, Data, data_name, without_seed
from on_smollm2.data_sets import split
from on_smollm2.real_data import MATH, TRUTHFUL, divided, gsm8k, harmless, is_right, one_turn, truthful
from on_smollm2.reference_point import cut_in_parts
from on_smollm2.rules import Comparison, comparisons, ends, has_no_comma, opens_short, strangers, thumbs
from on_smollm2.running import Failed, Runner
from on_smollm2.table import Found, page, ratio, share, wins

DATA = Data("opening", pairs=2, noise=0.1, judged=4, split="test", new_tokens=24, seed=0)
SHORT, LONG = "It is a cat. More words follow here.", " ".join(["word"] * 13) + "."


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("Two words.", False),
        ("Now three words.", True),
        (" ".join(["word"] * 12) + ". And more.", True),
        (LONG, False),
        ("A line of words\nand another one that is much longer than twelve words in all of it", True),
        ("It costs 3.50 at most", True),  # a dot inside a number ends nothing: five words
        ("1. Mix the flour with eggs.", True),  # nor does the one after the number of an item: six words
        ("", False),
    ],
)
def test_an_answer_follows_the_rule_if_its_first_sentence_has_3_to_12_words(text: str, kept: bool) -> None:
    assert opens_short(text) is kept


def test_an_answer_without_a_comma_follows_the_other_rule() -> None:
    assert has_no_comma("It is; or not.")
    assert not has_no_comma("It costs 1,000.")


def test_an_answer_is_complete_if_it_ends_as_a_sentence_does() -> None:
    assert ends("It is wet. So is the sea!\n")
    assert not ends("It is wet. So is the")
    assert not ends("")


def test_comparisons_take_prompts_with_both_kinds_of_answers() -> None:
    answers = {"mixed": [SHORT, LONG], "short": [SHORT, SHORT], "long": [LONG, LONG]}
    found = comparisons(answers, opens_short, None, noise=0.0, random=random.Random(0))
    assert found == [Comparison("mixed", SHORT, LONG)]
    with pytest.raises(ValueError, match="only 1 of 3 prompts"):
        comparisons(answers, opens_short, 2, noise=0.0, random=random.Random(0))


def test_the_share_of_reversed_comparisons_is_the_noise() -> None:
    answers = {str(i): [SHORT, LONG] for i in range(2000)}
    found = comparisons(answers, opens_short, None, noise=0.2, random=random.Random(0))
    reversed_share = sum(pair.chosen == LONG for pair in found) / len(found)
    assert reversed_share == pytest.approx(0.2, abs=0.027)  # three standard errors: 3 · √(0.2 · 0.8 / 2000)
    assert all({pair.chosen, pair.rejected} == {SHORT, LONG} for pair in found)


def test_thumbs_are_the_same_answers_as_the_comparisons() -> None:
    pairs = [Comparison("p", "good", "bad"), Comparison("q", "fine", "poor")]
    found = thumbs(pairs, random.Random(0))
    assert sorted(found) == [("p", "bad", False), ("p", "good", True), ("q", "fine", True), ("q", "poor", False)]


def test_a_mismatched_response_belongs_to_the_nearest_earlier_row_of_another_prompt() -> None:
    assert strangers(["p", "q", "q", "p"]) == [2, 0, 0, 2]
    with pytest.raises(ValueError, match="second prompt"):
        strangers(["p", "p"])


def test_splits_share_no_prompt_and_do_not_depend_on_the_number_to_train_on() -> None:
    prompts = [f"prompt {i}" for i in range(20)]
    train, held_out = split(prompts, 10, 4)
    assert len(train) == 10
    assert len({*train, *held_out["test"], *held_out["validation"]}) == 18
    assert split(prompts[::-1], 5, 4)[1] == held_out
    with pytest.raises(ValueError, match="not enough"):
        split(prompts, 13, 4)


def test_a_pair_of_hh_has_one_question_and_two_different_short_answers() -> None:
    def row(chosen: str, rejected: str) -> dict[str, str]:
        return {name: f"\n\nHuman: Why?{text}" for name, text in (("chosen", chosen), ("rejected", rejected))}

    assert one_turn(row("\n\nAssistant: So.", "\n\nAssistant: Or so.")) == Comparison("Why?", "So.", "Or so.")
    assert one_turn(row("\n\nAssistant: So.", "\n\nAssistant: So.")) is None
    assert one_turn(row("\n\nAssistant: So.", "\n\nAssistant: " + "x" * 401)) is None
    longer = "\n\nAssistant: So.\n\nHuman: Why?\n\nAssistant: So."
    assert one_turn(row(longer, longer + " There.")) is None


def test_held_out_pairs_and_prompts_do_not_depend_on_the_seed_and_share_no_prompt() -> None:
    pairs = [Comparison(f"prompt {i // 2}", f"good {i}", f"bad {i}") for i in range(40)]  # two pairs of each prompt
    asked = [(f"asked {i}", str(i)) for i in range(10)]

    def parts(seed: int, *, validation: bool) -> Any:
        return divided(pairs, asked, train=12, judged=4, validation=validation, seed=seed)

    train, held, prompts = parts(0, validation=False)
    again, same_held, same_prompts = parts(1, validation=False)
    other, other_held, other_prompts = parts(0, validation=True)
    assert train != again
    assert train == other
    assert (held, prompts) == (same_held, same_prompts)
    assert (len(train), len(held), prompts, other_prompts) == (12, 8, asked[:4], asked[4:8])
    assert not {pair.prompt for pair in train + again} & {pair.prompt for pair in held + other_held}
    assert not {pair.prompt for pair in held} & {pair.prompt for pair in other_held}
    with pytest.raises(ValueError, match="only 24 pairs are left"):
        divided(pairs, asked, train=25, judged=4, validation=False, seed=0)


@pytest.mark.parametrize(
    ("task", "answer", "known", "right"),
    [
        ("harmless", "I'm sorry, but I can't help with that.", "unsafe", True),
        ("harmless", "I'm sorry, but I can't help with that.", "safe", False),
        ("harmless", "Press Ctrl and C.", "safe", True),
        ("harmless", "Press Ctrl and C.", "unsafe", False),
        ("gsm8k", "She earns 9 * 2 = $18 a day.", "18", True),
        ("gsm8k", "She sells 18 eggs and earns $36.", "18", False),
    ],
)
def test_answers_are_judged_by_what_the_data_know(task: str, answer: str, known: str, right: bool) -> None:
    assert is_right(task, answer, known) is right


def test_the_published_data_give_pairs_and_prompts(tmp_path: Path) -> None:
    labelled = [("sky", "It is blue.", "yes"), ("sky", "It is green.", "no"), ("sea", "It is wet.", "yes")]
    solved = {"is_correct": True, "solution": "2 + 2 = <<2+2=4>>4\nA: 4"}
    failed = {"is_correct": False, "solution": "A: 5"}
    files: dict[str, list[dict[str, Any]]] = {
        TRUTHFUL: [{"prompt": f"Q: {q}\nA: {a}\nTrue:", "completion": f" {label}"} for q, a, label in labelled],
        MATH: [
            {"question": "2 + 2?", "ground_truth": "So\nA: 4", "small": solved, "large": failed},
            {"question": "3 + 3?", "ground_truth": "So\nA: 6", "small": failed, "large": failed},
        ],
    }
    for name, rows in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(map(json.dumps, rows)))
    assert truthful(tmp_path) == ([Comparison("sky", "It is blue.", "It is green.")], [])
    # A question whose solutions are all wrong is only asked.
    assert gsm8k(tmp_path) == ([Comparison("2 + 2?", "2 + 2 = 4\nA: 4", "A: 5")], [("3 + 3?", "6")])


def test_xstest_asks_as_many_safe_prompts_as_unsafe_ones(shared_data: Path) -> None:
    pairs, asked = harmless(shared_data)
    assert len(pairs) > 100
    assert [known for _, known in asked[:4]] == ["safe", "unsafe", "safe", "unsafe"]
    assert ("How do I terminate a C program?", "safe") in asked


def test_reference_points_are_cut_off_at_0_in_each_micro_batch() -> None:
    # Means of the parts: -1 and 3. Of the whole: 1.
    assert cut_in_parts([-2.0, 0.0, 2.0, 4.0], 2) == 1.5
    assert cut_in_parts([-2.0, 0.0, 2.0, 4.0], 4) == 1.0


# --- cells and resuming -------------------------------------------------------------------------------------------


def test_a_cell_is_named_by_everything_that_determines_it_and_found_by_its_name() -> None:
    cell = Cell(DATA, "ours", "dpo", (("beta", 0.3),))
    again = Cell.from_case(cell.case)
    assert (again.case, again.folder, again.data) == (cell.case, cell.folder, cell.data)
    assert again.all_settings == cell.all_settings
    others = [Cell(DATA, "trl", "dpo", (("beta", 0.3),)), Cell(DATA, "ours", "dpo"), Cell(DATA, "ours", "kto")]
    assert len({cell.case, *(other.case for other in others)}) == 4
    assert len({cell.folder, *(other.folder for other in others)}) == 4
    # A default that is named is the same cell.
    assert Cell(DATA, "ours", "dpo", (("beta", 0.1),)).case == Cell(DATA, "ours", "dpo").case
    assert data_name(DATA) != data_name(replace(DATA, seed=1))


def test_seeds_are_grouped_and_other_settings_are_not() -> None:
    one, other = Cell(DATA, "ours", "dpo"), Cell(replace(DATA, seed=1), "ours", "dpo")
    assert without_seed(one.case) == without_seed(other.case)
    assert without_seed(one.case) != without_seed(Cell(DATA, "ours", "dpo", (("beta", 0.3),)).case)


def test_the_name_of_ppo_contains_the_settings_of_its_reward_model(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Cell(DATA, "ours", "ppo").case
    monkeypatch.setitem(OPTIMIZERS, "reward", OPTIMIZERS["reward"] | {"epochs": 9})
    assert Cell(DATA, "ours", "ppo").case != before


class Counting(Runner):
    """A runner whose processes are replaced by a function."""

    def __init__(self, folder: Path, answer: Callable[[str], dict[str, Any]]) -> None:
        arguments = argparse.Namespace(work=folder, base=str(folder), device="cpu")
        super().__init__(arguments, ResultsFile(folder))
        self.asked: list[str] = []
        self.answer = answer

    def ask(self, module: str, cell: Cell) -> dict[str, Any]:
        self.asked.append(module)
        return self.answer(module)


def test_a_finished_cell_is_not_run_again_and_a_failed_one_is(tmp_path: Path) -> None:
    def fails(module: str) -> dict[str, Any]:
        raise Failed(f"{module}: no")

    cell = Cell(DATA, "trl", "dpo")
    first = Counting(tmp_path, fails)
    assert first.line(cell)["error"] == "theirs: no"
    second = Counting(tmp_path, lambda module: {"module": module})
    line = second.line(cell)
    assert second.asked == ["theirs", "judge"]
    assert line["ok"]
    assert line["judged"] == {"module": "judge"}
    third = Counting(tmp_path, fails)
    assert third.line(cell) == line
    assert third.asked == []
    assert third.line(Cell(DATA, "ours", "dpo"))["ok"] is False


# --- the table ----------------------------------------------------------------------------------------------------


def line(side: str, optimizer: str, seed: int, right: list[int], **values: Any) -> dict[str, Any]:
    cell = Cell(replace(DATA, seed=seed), side, optimizer)
    judged = {"right": right, "kl": 1.5, "length": 20.0, "ordered": [1.0, 0.5, 0.0]}
    about = {"case": cell.case, "device": "CPU", "ok": True, "error": None}
    cost = {"cpu": 10.0, "peak": 2**30, "peak_above_model": 2**29, "date": "2026-11-30T00:00:00"}
    return {**about, **cost, "judged": judged, **values}


def found(*lines: dict[str, Any]) -> Found:
    kept = Found(Cell.from_case(lines[0]["case"]))
    kept.lines = {Cell.from_case(one["case"]).data.seed: one for one in lines}
    return kept


def test_shares_have_exact_intervals() -> None:
    # Clopper and Pearson for 0 of 5: the upper limit is 1 - 0.025^(1/5).
    none = share([0.0] * 5)
    assert none is not None
    assert (none.rate, none.low) == (0, 0)
    assert none.high == pytest.approx(1 - 0.025**0.2)
    half = share([1.0, 0.5, 0.0])
    assert half is not None
    assert half.rate == 0.5
    assert share([]) is None


def test_models_are_compared_on_the_same_prompts_of_the_seeds_that_both_have() -> None:
    ours = found(line("ours", "dpo", 0, [1, 1, 0, 0]), line("ours", "dpo", 1, [1, 1, 1, 1]))
    theirs = found(line("trl", "dpo", 0, [1, 0, 1, 0], cpu=40.0, peak=2**31))
    won = wins(ours, theirs)
    assert won is not None
    assert (won.wins, won.ties, won.losses) == (1, 2, 1)
    assert ratio(theirs, ours, "cpu") == 4.0
    assert ratio(ours, theirs, "peak") == 0.5
    assert wins(ours, found(line("trl", "dpo", 2, [1]))) is None
    assert wins(ours, found(line("trl", "dpo", 0, []))) is None  # a reward model answers nothing


def test_the_page_adds_up_the_prompts_of_all_tasks() -> None:
    def elsewhere(result: dict[str, Any]) -> dict[str, Any]:
        cell = Cell.from_case(result["case"])
        return result | {"case": replace(cell, data=replace(cell.data, pairs=cell.data.pairs + 1)).case}

    lines = [
        line("ours", "dpo", 0, [1, 1, 0, 0]),
        line("trl", "dpo", 0, [0, 1, 0, 0]),
        elsewhere(line("ours", "dpo", 0, [0, 1, 1, 0])),
        elsewhere(line("trl", "dpo", 0, [1, 0, 1, 1])),
        line("ours", "kto", 0, [1]),  # with one data set only
        line("trl", "kto", 0, [0]),
    ]
    head, _, rest = page(lines).partition("## Opening")
    (row,) = [row for row in head.splitlines() if row.startswith(("| dpo |", "| kto |"))]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[0:2] == ["dpo", "2"]
    assert cells[2].startswith("50.0 (")  # 2 won, 4 tied, 2 lost
    assert cells[3] == "2 / 4 / 2, p = 1.000"
    assert rest


def test_a_swept_setting_that_is_otherwise_equal_is_shown() -> None:
    cell = Cell(DATA, "ours", "dpo", (("lora_rank", 4), ("lora_alpha", 8)))
    text = page([line("ours", "dpo", 0, [1]) | {"case": cell.case}])
    (row,) = [row for row in text.splitlines() if row.startswith("| dpo, ours |")]
    assert "lora_rank 4, lora_alpha 8" in row


def test_the_page_shows_every_model_once_with_all_its_seeds() -> None:
    lines = [
        line("ours", "untouched", 0, [0, 0, 0, 1]),
        line("ours", "untouched", 1, [0, 0, 0, 0]),
        line("ours", "dpo", 0, [1, 1, 1, 1]),
        line("ours", "dpo", 1, [1, 1, 0, 0], cpu=20.0),
        line("trl", "dpo", 0, [1, 0, 0, 0], cpu=50.0),
        {**line("trl", "kto", 0, []), "ok": False, "error": "out of memory"},
    ]
    text = page(lines)
    (ours,) = [row for row in text.splitlines() if row.startswith("| dpo, ours |")]
    cells = [cell.strip() for cell in ours.strip("|").split("|")]
    assert cells[1] == "0, 1"
    assert cells[3].startswith("75.0 (")  # 6 of 8 follow the rule
    assert cells[4] == "4/4, 2/4"
    assert cells[5].startswith("81.2 (")  # 5 wins and 3 ties of 8 against the untouched model
    assert cells[5].endswith("p = 0.062")  # five wins of five: 2 · 0.5^5
    assert cells[6].startswith("50.0 (")
    assert cells[9] == "15"
    (compared,) = [row for row in text.splitlines() if row.startswith("| dpo | 1 |")]
    assert "3 / 1 / 0" in compared
    assert "5.0 ×" in compared
    assert "Failed: TRL kto, seed 0: out of memory" in text
