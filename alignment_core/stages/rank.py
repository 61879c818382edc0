"""Rank sampled responses with an evaluator instead of human raters, and make preference pairs from the ranks."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from alignment_core.data.ingestion.write_records import Records, write_dataset
from alignment_core.evaluation.judging import Cases, scores_of
from alignment_core.execution.stage import Job, Stage
from alignment_core.planning.pipeline import VERSIONS
from alignment_core.plugin_api import Evaluator
from alignment_core.progress import Stopped
from alignment_core.records import Conversation, LabelledResponse, PreferencePair
from alignment_core.registry import load_registry
from alignment_core.seeds import seed_of
from alignment_core.stages.sample import RESPONSES
from alignment_core.stages.shared.context import open_renderer


def run(job: Job) -> dict[str, Any]:
    """Write a data set of pairs and labels. Each one is flipped with probability `label_noise`."""
    config = job.call.config
    evaluator = load_registry().evaluator(config["by"])
    rater = _Rater(evaluator, random.Random(seed_of(config["seed"], "label noise")), config["label_noise"])
    pairs: dict[str, list[PreferencePair]] = {"train": [], "held_out": []}
    labels: dict[str, list[LabelledResponse]] = {"train": [], "held_out": []}
    undecided = 0
    with (job.parents["samples"] / RESPONSES).open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if job.progress.stopping:
                raise Stopped(f"stopped after {number - 1} prompts")
            sampled = json.loads(line)
            prompt, origin, split = tuple(sampled["prompt"]), f"{RESPONSES}:{number}", sampled["split"]
            scores = rater.scores(origin, prompt, sampled)
            known = {"origin": origin, "facts": sampled["facts"]}
            preferred = list(rater.pairs(prompt, scores, known))
            pairs[split] += preferred
            labels[split] += rater.labels(prompt, scores, known)
            undecided += not preferred
    train, held_out = (Records(preferences=pairs[name], feedback=labels[name]) for name in ("train", "held_out"))
    report = write_dataset(job.out, train, held_out, open_renderer(job))
    return {**report, "prompts_without_a_preference": undecided}


@dataclass(frozen=True)
class _Rater:
    """A simulated rater, who judges with the evaluator and sometimes makes errors."""

    evaluator: Evaluator
    noise: random.Random
    label_noise: float

    def scores(self, origin: str, prompt: Conversation, sampled: Mapping[str, Any]) -> dict[str, float]:
        """Return the score of each distinct response that is not blank and that the evaluator scores."""
        cases = Cases()
        for text in dict.fromkeys(sampled["responses"]):
            if text.strip():
                cases.add(origin, prompt, sampled["facts"], text)
        found = zip(cases.responses, scores_of(self.evaluator, cases), strict=True)
        return {text: score for text, score in found if score is not None}

    def pairs(self, prompt: Conversation, scores: dict[str, float], known: dict[str, Any]) -> Iterator[PreferencePair]:
        """Yield a pair for every two responses with different scores."""
        for better in scores:
            for worse in scores:
                if scores[better] > scores[worse]:
                    chosen, rejected = (worse, better) if self._errs() else (better, worse)
                    yield PreferencePair(prompt, _assistant_turn(chosen), _assistant_turn(rejected), **known)

    def labels(
        self, prompt: Conversation, scores: dict[str, float], known: dict[str, Any]
    ) -> Iterator[LabelledResponse]:
        """Yield a thumb for each response whose score differs from the mean: up if it is above."""
        mean = sum(scores.values()) / max(1, len(scores))
        for text, score in scores.items():
            if score != mean:
                yield LabelledResponse(prompt, _assistant_turn(text), (score > mean) != self._errs(), **known)

    def _errs(self) -> bool:
        return self.noise.random() < self.label_noise


def _assistant_turn(text: str) -> tuple[dict[str, str], ...]:
    return ({"role": "assistant", "content": text},)


STAGE = Stage("rank", VERSIONS["rank"], run)
