"""Two models' responses to the same prompts, side by side: how often each judge prefers the first, and what differs.

Everything is compared as text, so that the models may be of different bases and tokenizers. Only a reward model that
has to read the texts first loads a model here.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignment_core.artifacts.manifest import read_manifest
from alignment_core.config import EndpointConfig
from alignment_core.errors import DataError
from alignment_core.evaluation.endpoint import Endpoint, Question
from alignment_core.evaluation.win_rate import mean_with_interval, verdict, win_rate
from alignment_core.stages.base import Job, Stage
from alignment_core.stages.plan import VERSIONS

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


def run(job: Job) -> dict[str, Any]:
    """Write `verdicts.jsonl`, one line per prompt with both responses and what each judge makes of them."""
    sides = [read_manifest(job.parents[role]) for role in ("policy", "opponent")]
    pairs, unmatched = matched(*(_lines(job.parents[role] / RESPONSES) for role in ("policy", "opponent")))
    if not pairs:
        raise DataError(
            "the two models answered no prompt in common",
            where=job.call.label,
            do="Give both the same held-out prompts: the same sources and `held_out_fraction`",
        )
    verdicts, facts = _judged(job, pairs)
    with (job.out / VERDICTS).open("w", encoding="utf-8") as file:
        for i, pair in enumerate(pairs):
            said = {"prompt": pair.prompt, "response": pair.ours["response"], "opponent": pair.theirs["response"]}
            line = {**said, "verdicts": {judge: found[i] for judge, found in verdicts.items()}}
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
    # Perplexities per token of different tokenizers measure different things.
    if len(perplexities) == 2 and sides[0].config["tokenizer"] == sides[1].config["tokenizer"]:
        metrics["perplexity_ratio"] = perplexities[0] / perplexities[1]
    return metrics | _on_safety(job)


def matched(ours: Sequence[Line], theirs: Sequence[Line]) -> tuple[list[Pair], int]:
    """Lines of the same prompt, in the order of `ours`, and how many lines of either have no partner.

    A prompt that occurs several times is matched as often as both have it.
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


def _judged(job: Job, pairs: Sequence[Pair]) -> tuple[dict[str, list[int | None]], dict[str, Any]]:
    """Each judge's verdict on every pair (None: no verdict), and what is to be said about the judging."""
    verdicts: dict[str, list[int | None]] = {}
    facts: dict[str, Any] = {}
    for judge in job.call.config["judges"]:
        if judge == ENDPOINT:
            settings = EndpointConfig.model_validate(job.call.inputs[ENDPOINT] | job.call.config[ENDPOINT])
            questions = [Question(pair.prompt, pair.ours["response"], pair.theirs["response"]) for pair in pairs]
            answers = Endpoint(settings, job.progress).compare(questions, job.checkpoints / "endpoint.jsonl")
            verdicts[judge] = [answer.verdict for answer in answers.answers]
            facts[ENDPOINT] = answers.counts()
        else:
            verdicts[judge] = [verdict(ours, theirs) for ours, theirs in _scores(job, judge, pairs)]
    return verdicts, facts


def _scores(job: Job, judge: str, pairs: Sequence[Pair]) -> Iterator[tuple[float, float]]:
    """A judge's scores of both responses: as the evaluations wrote them, or by a reward model that reads them here."""
    if judge in job.parents:
        from alignment_core.stages.judging import scores_of_texts

        texts = [(pair.prompt, line["response"]) for pair in pairs for line in (pair.ours, pair.theirs)]
        found = scores_of_texts(job, judge, texts)
        yield from zip(found[::2], found[1::2], strict=True)
    else:
        yield from ((pair.ours[judge], pair.theirs[judge]) for pair in pairs)


def _on_safety(job: Job) -> dict[str, Any]:
    """By evaluator: how much higher the mean score on the safety prompts is than the opponent's, with its interval."""
    files = [job.parents[role] / SAFETY for role in ("policy", "opponent")]
    if not all(file.is_file() for file in files):
        return {}
    pairs, _ = matched(*(_lines(file) for file in files))
    found: dict[str, Mapping[str, float]] = {}
    for evaluator in job.call.config["evaluators"] if pairs else ():
        differences = [pair.ours[evaluator] - pair.theirs[evaluator] for pair in pairs]
        difference, low, high = mean_with_interval(differences, job.call.config["seed"])
        found[evaluator] = {"difference": difference, "low": low, "high": high}
    return {"safety": found}


STAGE = Stage("versus", VERSIONS["versus"], run)
