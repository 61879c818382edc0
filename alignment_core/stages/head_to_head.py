"""Compare two models' responses to the same prompts: how often each judge prefers the first, and how they differ.

Responses are compared as text, so the models may have different base models and tokenizers. This stage loads a model
only if a reward model has not scored the responses yet.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignment_core.artifacts.manifest import read_manifest
from alignment_core.config import EndpointConfig
from alignment_core.errors import DataError
from alignment_core.evaluation.judge_endpoint import Endpoint, Question
from alignment_core.evaluation.win_rate import mean_with_interval, verdict, win_rate
from alignment_core.execution.stage import Job, Stage
from alignment_core.planning.pipeline import VERSIONS

RESPONSES, SAFETY, VERDICTS = "responses.jsonl", "safety.jsonl", "verdicts.jsonl"
ENDPOINT, JUDGE, REWARD = "endpoint", "judge", "reward"

Line = dict[str, Any]


@dataclass(frozen=True)
class Pair:
    """The two models' lines of `responses.jsonl` for one prompt."""

    ours: Line
    theirs: Line

    @property
    def prompt(self) -> list[dict[str, Any]]:
        prompt: list[dict[str, Any]] = self.ours["prompt"]
        return prompt

    @property
    def equal(self) -> bool:
        """Whether both responses are the same text."""
        return bool(self.ours["response"] == self.theirs["response"])


def run(job: Job) -> dict[str, Any]:
    """Write `verdicts.jsonl`, one line per prompt with both responses and the verdict of each judge."""
    sides = [read_manifest(job.parents[role]) for role in ("policy", "opponent")]
    pairs, unmatched = match_responses(*(_lines(job.parents[role] / RESPONSES) for role in ("policy", "opponent")))
    if not pairs:
        raise DataError(
            "the two models have no prompt in common",
            where=job.call.label,
            do="Evaluate both on the same held-out prompts: use the same sources and `held_out_fraction`",
        )
    verdicts, facts = _verdicts(job, pairs)
    with (job.out / VERDICTS).open("w", encoding="utf-8") as file:
        for i, pair in enumerate(pairs):
            texts = {"prompt": pair.prompt, "response": pair.ours["response"], "opponent": pair.theirs["response"]}
            line = {**texts, "verdicts": {judge: found[i] for judge, found in verdicts.items()}}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    metrics: dict[str, Any] = {"prompts": len(pairs), "unmatched_prompts": unmatched, **facts}
    metrics["win_rate"] = {
        judge: win_rate(decided).to_json()
        for judge, found in verdicts.items()
        if (decided := [one for one in found if one is not None])
    }
    if theirs := sum(len(pair.theirs["response"]) for pair in pairs):
        metrics["length_ratio"] = sum(len(pair.ours["response"]) for pair in pairs) / theirs
    perplexities = [side.metrics["perplexity"] for side in sides if "perplexity" in side.metrics]
    # Per-token perplexities of different tokenizers are not comparable.
    if len(perplexities) == 2 and sides[0].config["tokenizer"] == sides[1].config["tokenizer"]:
        metrics["perplexity_ratio"] = perplexities[0] / perplexities[1]
    return metrics | _on_safety(job)


def match_responses(ours: Sequence[Line], theirs: Sequence[Line]) -> tuple[list[Pair], int]:
    """Pair the lines with the same prompt.

    A prompt that occurs several times is paired as often as it occurs in both.

    Returns:
        The pairs in the order of `ours`, and the number of lines without a partner.
    """
    waiting: dict[str, list[Line]] = defaultdict(list)
    for line in theirs:
        waiting[_prompt(line)].append(line)
    pairs = [Pair(line, waiting[key].pop(0)) for line in ours if waiting.get(key := _prompt(line))]
    return pairs, len(ours) + len(theirs) - 2 * len(pairs)


def _prompt(line: Line) -> str:
    return json.dumps(line["prompt"], sort_keys=True)


def _lines(path: Path) -> list[Line]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _verdicts(job: Job, pairs: Sequence[Pair]) -> tuple[dict[str, list[int | None]], dict[str, Any]]:
    """Return each judge's verdict on every pair (None: no verdict), and statistics about the judging.

    Equal responses are a tie for every judge that scores them. An endpoint is not asked about them.
    """
    verdicts: dict[str, list[int | None]] = {}
    facts: dict[str, Any] = {}
    for judge in job.call.config["judges"]:
        if judge == ENDPOINT:
            verdicts[judge], facts[ENDPOINT] = _asked(job, pairs)
        else:
            scores = zip(pairs, _scores(job, judge, pairs), strict=True)
            verdicts[judge] = [_verdict(pair, ours, theirs) for pair, (ours, theirs) in scores]
    return verdicts, facts


def _verdict(pair: Pair, ours: float | None, theirs: float | None) -> int | None:
    if ours is None or theirs is None:
        return None
    # Scores from two evaluations differ by rounding errors, also those of the same text.
    return 0 if pair.equal else verdict(ours, theirs)


def _asked(job: Job, pairs: Sequence[Pair]) -> tuple[list[int | None], dict[str, int]]:
    """Return the verdicts of the endpoint, and the number of its answers by outcome."""
    settings = EndpointConfig.model_validate(job.call.inputs[ENDPOINT] | job.call.config[ENDPOINT])
    asked = [pair for pair in pairs if not pair.equal]
    questions = [Question(pair.prompt, pair.ours["response"], pair.theirs["response"]) for pair in asked]
    found = Endpoint(settings, job.progress).compare(questions, job.checkpoints / "endpoint.jsonl")
    answers = iter(found.answers)
    return [0 if pair.equal else next(answers).verdict for pair in pairs], {
        **found.counts(),
        "equal": len(pairs) - len(asked),
    }


def _scores(job: Job, judge: str, pairs: Sequence[Pair]) -> Iterator[tuple[float | None, float | None]]:
    """Yield a judge's scores of both responses: from the evaluations, or computed here with a reward model."""
    if judge in job.parents:
        from alignment_core.stages.shared.text_scores import score_texts

        texts = [(pair.prompt, line["response"]) for pair in pairs for line in (pair.ours, pair.theirs)]
        found = score_texts(job, judge, texts)
        scored = [None if math.isnan(score) else score for score in found]
        yield from zip(scored[::2], scored[1::2], strict=True)
    else:
        yield from ((pair.ours[judge], pair.theirs[judge]) for pair in pairs)


def _on_safety(job: Job) -> dict[str, Any]:
    """Return, per evaluator, by how much the mean score on the safety prompts exceeds the opponent's, with interval."""
    files = [job.parents[role] / SAFETY for role in ("policy", "opponent")]
    if not all(file.is_file() for file in files):
        return {}
    pairs, _ = match_responses(*(_lines(file) for file in files))
    found: dict[str, Mapping[str, float]] = {}
    for evaluator in job.call.config["evaluators"] if pairs else ():
        both = [(pair.ours[evaluator], pair.theirs[evaluator]) for pair in pairs]
        differences = [ours - theirs for ours, theirs in both if ours is not None and theirs is not None]
        if not differences:
            continue
        difference, low, high = mean_with_interval(differences, job.call.config["seed"])
        found[evaluator] = {"difference": difference, "low": low, "high": high}
    return {"safety": found}


STAGE = Stage("head_to_head", VERSIONS["head_to_head"], run)
