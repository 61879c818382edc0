"""Several responses of the SFT model to each prompt, for people or an evaluator to rank."""

from __future__ import annotations

import json
from typing import Any

from alignment_core.config import SampleConfig
from alignment_core.data.dataset import Split
from alignment_core.plugin_api import Row
from alignment_core.stages.base import Job, Stage
from alignment_core.stages.opened import Opened, need, open_data
from alignment_core.stages.plan import VERSIONS
from alignment_core.training.run import Rows, Run

RESPONSES = "responses.jsonl"


def run(job: Job) -> dict[str, Any]:
    """Write `responses.jsonl`: split, prompt and its responses, one line per prompt."""
    settings = SampleConfig.model_validate(job.call.config["sample"])
    data = open_data(job)
    need(data.train.prompts, "prompts", job)
    opened = Opened.of(job)
    opened.add_sft("policy")
    training = opened.run(Rows())
    sampled = 0
    with (job.out / RESPONSES).open("w", encoding="utf-8") as file:
        for name, split in (("train", data.train), ("held_out", data.held_out)):
            prompts = list(split.prompts[: settings.max_prompts])
            for prompt, texts in _responses(training, prompts, settings, opened):
                line = {"split": name, "prompt": list(_messages(split, prompt)), "responses": texts}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
                sampled += len(texts)
    return {"responses": sampled}


def _messages(split: Split, prompt: Row) -> list[dict[str, Any]]:
    return [dict(message) for message in split.messages(prompt)]


def _responses(
    training: Run, prompts: list[Row], settings: SampleConfig, opened: Opened
) -> list[tuple[Row, list[str]]]:
    if not prompts:
        return []
    count = settings.responses_per_prompt
    rollouts = training.generate(
        prompts, max_new_tokens=settings.max_new_tokens, temperature=settings.temperature, samples=count
    )
    texts = [opened.renderer.decode(rollout.sequence.completion) for rollout in rollouts]
    return [(prompt, texts[i * count : (i + 1) * count]) for i, prompt in enumerate(prompts)]


STAGE = Stage("sample", VERSIONS["sample"], run)
