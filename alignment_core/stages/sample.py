"""Several responses of a model to each prompt, for people or an evaluator to rank."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from alignment_core.config import SampleConfig
from alignment_core.data.dataset import Dataset, Split
from alignment_core.plugin_api import Row
from alignment_core.stages.base import Job, Stage
from alignment_core.stages.kept import whole_lines
from alignment_core.stages.opened import Opened, need, open_data
from alignment_core.stages.plan import VERSIONS
from alignment_core.training.run import Rows, Run

RESPONSES = "responses.jsonl"
BATCH = 64
"""Responses that are generated together, and kept together when the stage is stopped."""


def run(job: Job) -> dict[str, Any]:
    """Write `responses.jsonl`: split, prompt and its responses, one line per prompt. A killed stage goes on from there.

    The responses are the SFT model's, or those of `policy` where the call names one.
    """
    settings = SampleConfig.model_validate(job.call.config["sample"])
    data = open_data(job)
    need(data.train.prompts, "prompts", job)
    opened = Opened.of(job)
    if "policy" in job.parents:
        opened.roles.add_saved("policy", job.parents["policy"])
    else:
        opened.add_sft("policy")
    training = opened.run(Rows())
    todo = list(_prompts(data, settings))
    kept = job.checkpoints / RESPONSES
    done = len(whole_lines(kept))
    batch = prompts_together(settings)
    with kept.open("a", encoding="utf-8") as file:
        for start in range(done, len(todo), batch):
            job.progress.step(start, len(todo))
            part = todo[start : start + batch]
            answers = _responses(training, [prompt for _, _, prompt in part], settings, opened)
            for (name, split, prompt), texts in zip(part, answers, strict=True):
                line = {"split": name, "prompt": _messages(split, prompt), "responses": texts}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()
    job.progress.step(len(todo), len(todo))
    kept.rename(job.out / RESPONSES)
    return {"responses": len(todo) * settings.responses_per_prompt}


def prompts_together(settings: SampleConfig) -> int:
    """Prompts that are answered in one batch."""
    return max(1, BATCH // settings.responses_per_prompt)


def _prompts(data: Dataset, settings: SampleConfig) -> Iterator[tuple[str, Split, Row]]:
    for name, split in (("train", data.train), ("held_out", data.held_out)):
        for prompt in split.prompts[: settings.max_prompts]:
            yield name, split, prompt


def _messages(split: Split, prompt: Row) -> list[dict[str, Any]]:
    return [dict(message) for message in split.messages(prompt)]


def _responses(training: Run, prompts: list[Row], settings: SampleConfig, opened: Opened) -> list[list[str]]:
    count = settings.responses_per_prompt
    rollouts = training.generate(
        prompts, max_new_tokens=settings.max_new_tokens, temperature=settings.temperature, samples=count
    )
    texts = [opened.renderer.decode(rollout.sequence.completion) for rollout in rollouts]
    return [texts[i * count : (i + 1) * count] for i in range(len(prompts))]


STAGE = Stage("sample", VERSIONS["sample"], run)
