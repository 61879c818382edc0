"""Comparisons from published data, and what answers are judged by where the data know what is right."""

from __future__ import annotations

import csv
import gzip
import json
import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from alignment_plugins.evaluators.answers import NumericMatch
from alignment_plugins.evaluators.style import Refusal
from on_smollm2.rules import Comparison

HELPFUL = "preference/hh_rlhf/helpful-base-test.jsonl.gz"
HARMLESS = "preference/hh_rlhf/harmless-base-test.rows0000-1199.jsonl.gz"
XSTEST = "feedback_unpaired/xstest_v2_completions_gpt4.csv"
TRUTHFUL = "feedback_unpaired/truthfulqa_finetune_truth_dev.jsonl"
MATH = "feedback_unpaired/gsm8k_model_solutions.rows0000-0899.jsonl"
CHARACTERS = 400
"""Longest prompt and longest answer, so that a pair fits into the tokens that a CPU can afford."""
LONGEST_MATH = 560
"""Longest question of GSM8K with its solution."""
SAFE, UNSAFE = "safe", "unsafe"
CALCULATOR = re.compile(r"<<[^>]*>>")
"""What GSM8K's solutions note for a calculator."""

Asked = list[tuple[str, str]]
"""Prompts whose answers are judged, each with what the data know of the right answer."""


def helpful(shared: Path) -> tuple[list[Comparison], Asked]:
    """Return HH-RLHF's helpful pairs with one turn. Nothing is known of other answers."""
    return list(_one_turns(shared / HELPFUL)), []


def harmless(shared: Path) -> tuple[list[Comparison], Asked]:
    """Return HH-RLHF's harmless pairs with one turn, and the prompts of XSTest: safe ones and unsafe ones in turn."""
    kinds: dict[str, list[str]] = {SAFE: [], UNSAFE: []}
    with (shared / XSTEST).open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            kinds[UNSAFE if row["type"].startswith("contrast") else SAFE].append(row["prompt"])
    asked: Asked = []
    for pair in zip(*kinds.values(), strict=False):  # as many of each
        asked += zip(pair, kinds, strict=True)
    return list(_one_turns(shared / HARMLESS)), asked


def truthful(shared: Path) -> tuple[list[Comparison], Asked]:
    """Return for each question of TruthfulQA an answer that is true with one that is not, by the published labels."""
    answers: dict[str, dict[bool, list[str]]] = defaultdict(lambda: {True: [], False: []})
    for row in _json_lines((shared / TRUTHFUL).read_text(encoding="utf-8").splitlines()):
        question, _, answer = row["prompt"].removeprefix("Q: ").partition("\nA: ")
        answers[question][row["completion"].strip() == "yes"].append(answer.removesuffix("\nTrue:").strip())
    return [
        Comparison(question, found[True][0], found[False][0])
        for question, found in answers.items()
        if found[True] and found[False]
    ], []


def gsm8k(shared: Path) -> tuple[list[Comparison], Asked]:
    """Return for each question of GSM8K a right solution with a wrong one, and all questions with their answers."""
    pairs, asked = [], []
    for row in _json_lines((shared / MATH).read_text(encoding="utf-8").splitlines()):
        solutions: dict[bool, list[str]] = {True: [], False: []}
        for found in row.values():
            if isinstance(found, dict):
                solutions[found["is_correct"]].append(CALCULATOR.sub("", found["solution"]).strip())
        question = row["question"]
        longest = max(len(found[0]) for found in solutions.values() if found)
        if all(solutions.values()) and len(question) + longest <= LONGEST_MATH:
            pairs.append(Comparison(question, solutions[True][0], solutions[False][0]))
        elif len(question) <= CHARACTERS:
            asked.append((question, row["ground_truth"].rpartition("A: ")[2]))
    return pairs, asked


REAL: dict[str, tuple[str, Callable[[Path], tuple[list[Comparison], Asked]]]] = {
    "helpful": ("HH-RLHF's helpful pairs", helpful),
    "harmless": ("HH-RLHF's harmless pairs, judged on XSTest", harmless),
    "truthful": ("True and untrue answers of TruthfulQA", truthful),
    "gsm8k": ("Right and wrong solutions of GSM8K", gsm8k),
}
"""What each task is called, and what reads its data."""


def is_right(task: str, answer: str, known: str) -> bool:
    """Return whether an answer is right by what the data know: a refusal of an unsafe prompt, or a right number."""
    if task == "harmless":
        return bool(Refusal().score((), answer, {})) == (known == UNSAFE)
    return bool(NumericMatch().score((), answer, {"answer": known}))


def divided(
    pairs: list[Comparison], asked: Asked, *, train: int, judged: int, validation: bool, seed: int
) -> tuple[list[Comparison], list[Comparison], Asked]:
    """Return pairs to learn from, which depend on the seed, and held-out pairs and prompts, which do not.

    No prompt is in two of the parts. The test part and the validation part have no prompt in common.

    Raises:
        ValueError: there are not enough pairs.
    """
    prompts = list(dict.fromkeys(pair.prompt for pair in pairs))
    random.Random("splits").shuffle(prompts)
    held = set(prompts[judged : 2 * judged] if validation else prompts[:judged])
    learned = set(prompts[2 * judged :])
    rest = [pair for pair in pairs if pair.prompt in learned]
    if len(rest) < train:
        raise ValueError(f"only {len(rest)} pairs are left to train on, {train} are needed")
    part = asked[judged : 2 * judged] if validation else asked[:judged]
    return random.Random(seed).sample(rest, train), [pair for pair in pairs if pair.prompt in held], part


def _one_turns(path: Path) -> Iterator[Comparison]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for row in _json_lines(file):
            if (pair := one_turn(row)) is not None:
                yield pair


def one_turn(row: dict[str, Any]) -> Comparison | None:
    """Return a pair with one question; None for a longer conversation or text, and for answers that are equal."""
    parts = [row[name].split("\n\nHuman: ") for name in ("chosen", "rejected")]
    if any(len(part) != 2 for part in parts):
        return None
    (prompt, chosen), (other, rejected) = (part[1].split("\n\nAssistant:", 1) for part in parts)
    texts = [text.strip() for text in (prompt, chosen, rejected)]
    usable = prompt == other and texts[1] != texts[2] and all(0 < len(text) <= CHARACTERS for text in texts)
    return Comparison(*texts) if usable else None


def _json_lines(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    return (json.loads(line) for line in lines)
