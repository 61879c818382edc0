"""The data of a cell: what it learns from and what it is judged on. Made once and kept as JSON."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from on_smollm2.cells import Data, data_name
from on_smollm2.real_data import REAL, Asked, divided
from on_smollm2.rules import RULES, Comparison, Thumb, comparisons, thumbs

if TYPE_CHECKING:
    from on_smollm2.chat_model import ChatModel

INSTRUCTIONS = "sft/alpaca_en_demo.rows000-799.json"
WORDS = 14
"""Longest instruction in words."""
ANSWERS = 4
"""Answers that are sampled per prompt, of which at most two are compared."""
SPARE = {"opening": 1.6, "commas": 1.6, "ends": 3.45}
"""Prompts per comparison: not every prompt has answers of both kinds."""


@dataclass(frozen=True)
class DataSet:
    """What a cell reads.

    Attributes:
        pairs: comparisons to learn from.
        held_out: comparisons to judge scores by, without mistakes of the rater where there is a rule.
        asked: prompts whose answers are judged, each with what is known of the right answer (with a rule: nothing).
    """

    pairs: list[Comparison]
    held_out: list[Comparison]
    asked: Asked

    def thumbs(self, seed: int) -> list[Thumb]:
        return thumbs(self.pairs, random.Random(f"thumbs {seed}"))


def make(data: Data, sampler: Callable[[], ChatModel], shared: Path, work: Path) -> Path:
    """Write the data of a cell if it is not there, and return its file. `sampler` returns the untouched model."""
    path = work / "data" / data_name(data)
    if not path.exists():
        found = _published(data, shared) if data.task in REAL else _ruled(data, sampler, shared, work)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({name: getattr(found, name) for name in ("pairs", "held_out", "asked")}, indent=1))
    return path


def read(path: Path) -> DataSet:
    found = json.loads(path.read_text())
    pairs, held_out = ([Comparison(*row) for row in found[name]] for name in ("pairs", "held_out"))
    return DataSet(pairs, held_out, [(prompt, known) for prompt, known in found["asked"]])


def split(prompts: list[str], train: int, judged: int) -> tuple[list[str], dict[str, list[str]]]:
    """Return prompts to train on and, for each split, those to judge on. They do not depend on the seed.

    Raises:
        ValueError: there are not enough prompts.
    """
    if len(prompts) < train + 2 * judged:
        raise ValueError(f"{len(prompts)} prompts are not enough for {train} to train on and two times {judged}")
    order = sorted(prompts)
    random.Random("splits").shuffle(order)
    held_out = {"test": order[:judged], "validation": order[judged : 2 * judged]}
    return order[2 * judged : 2 * judged + train], held_out


def _ruled(data: Data, sampler: Callable[[], ChatModel], shared: Path, work: Path) -> DataSet:
    rows = json.loads((shared / INSTRUCTIONS).read_text())
    short = [row["instruction"] for row in rows if not row["input"] and len(row["instruction"].split()) <= WORDS]
    train, held_out = split(list(dict.fromkeys(short)), round(SPARE[data.task] * data.pairs), data.judged)
    judged = held_out[data.split]
    # The held-out comparisons are the same for every seed, with a seed of their own.
    path = work / "data" / f"held-out-{data.task}-{data.split}-{data.judged}-{data.new_tokens}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(_compared(sampler(), judged, data, None, 0.0, 1_000_000)))
    pairs = _compared(sampler(), train, data, data.pairs, data.noise, data.seed)
    held = [Comparison(*row) for row in json.loads(path.read_text())]
    return DataSet(pairs, held, [(prompt, "") for prompt in judged])


def _compared(
    model: ChatModel, prompts: list[str], data: Data, count: int | None, noise: float, seed: int
) -> list[Comparison]:
    """Return comparisons of the untouched model's answers."""
    from alignment_core.training.rows import Rows
    from on_smollm2.chat_model import sample

    if not model.roles.has("policy"):
        model.roles.add_base("policy")
    texts = sample(model, model.run(Rows(), seed), prompts, data.new_tokens, ANSWERS)
    answers = {
        prompt: [text for text in dict.fromkeys(found) if text] for prompt, found in zip(prompts, texts, strict=True)
    }
    _, follows = RULES[data.task]
    return comparisons(answers, follows, count, noise=noise, random=random.Random(f"comparisons {seed}"))


def _published(data: Data, shared: Path) -> DataSet:
    _, read_pairs = REAL[data.task]
    pairs, asked = read_pairs(shared)
    validation = data.split == "validation"
    return DataSet(*divided(pairs, asked, train=data.pairs, judged=data.judged, validation=validation, seed=data.seed))
