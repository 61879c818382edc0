"""Sample several responses of a model to each prompt, to be ranked by raters or by an evaluator."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from alignment_core.config import SampleConfig
from alignment_core.data.dataset.splits import Dataset, Split
from alignment_core.execution.stage import Job, Stage
from alignment_core.planning.pipeline import VERSIONS
from alignment_core.plugin_api import Row
from alignment_core.stages.shared.context import StageContext, open_data, require_rows
from alignment_core.stages.shared.resume import complete_lines
from alignment_core.training.rows import Rows
from alignment_core.training.run import Run

RESPONSES = "responses.jsonl"
BATCH = 64
"""Number of responses that are generated together. A stopped stage keeps complete batches."""


def run(job: Job) -> dict[str, Any]:
    """Write `responses.jsonl`, one line per prompt with its split and responses. A killed stage resumes from this file.

    The responses are from the model `policy` of the call, or from the SFT model if there is none.
    """
    settings = SampleConfig.model_validate(job.call.config["sample"])
    longest = settings.longest(job.call.config["max_length"])
    data = open_data(job)
    require_rows(data.train.prompts, "prompts", job)
    context = StageContext.open(job)
    if "policy" in job.parents:
        context.roles.add_saved("policy", job.parents["policy"])
    else:
        context.add_sft("policy")
    training = context.run(Rows())
    todo = list(_prompts(data, settings))
    kept = job.checkpoints / RESPONSES
    done = job.ranks.from_first("kept lines", lambda: len(complete_lines(kept)))
    batch = prompts_together(settings) * job.ranks.size
    with kept.open("a", encoding="utf-8") as file:
        for start in range(done, len(todo), batch):
            job.progress.step(start, len(todo))
            part = todo[start : start + batch]
            answers = _responses(training, [prompt for _, _, prompt in part], settings, longest, context)
            for (name, split, prompt), texts in zip(part, answers, strict=True):
                line = {"split": name, "prompt": _messages(split, prompt), "responses": texts, "facts": prompt.facts}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()
    job.progress.step(len(todo), len(todo))
    kept.rename(job.out / RESPONSES)
    return {"responses": len(todo) * settings.responses_per_prompt}


def prompts_together(settings: SampleConfig) -> int:
    """Return the number of prompts that are answered in one batch."""
    return max(1, BATCH // settings.responses_per_prompt)


def _prompts(data: Dataset, settings: SampleConfig) -> Iterator[tuple[str, Split, Row]]:
    for name, split in (("train", data.train), ("held_out", data.held_out)):
        for prompt in split.prompts[: settings.max_prompts]:
            yield name, split, prompt


def _messages(split: Split, prompt: Row) -> list[dict[str, Any]]:
    return [dict(message) for message in split.messages(prompt)]


def _responses(
    training: Run, prompts: list[Row], settings: SampleConfig, longest: int, context: StageContext
) -> list[list[str]]:
    count = settings.responses_per_prompt
    rollouts = training.generate(prompts, max_new_tokens=longest, temperature=settings.temperature, samples=count)
    texts = [context.renderer.decode(rollout.sequence.completion) for rollout in rollouts]
    return [texts[i * count : (i + 1) * count] for i in range(len(prompts))]


STAGE = Stage("sample", VERSIONS["sample"], run)
