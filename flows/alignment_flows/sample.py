"""Responses for people to rank: sampled from a model, and put into the feedback store."""

import json
from collections.abc import Sequence
from pathlib import Path

from prefect import flow

from alignment_core.config import PipelineConfig
from alignment_core.feedback import open_feedback
from alignment_core.registry import load_registry
from alignment_core.stages.build import leased
from alignment_core.stages.plan_sample import make_sample_plan
from alignment_flows.form import PipelineForm, run_name, settings_of
from alignment_flows.tasks import Stages, told_in_words

RESPONSES = "responses.jsonl"


@flow(name="sample", flow_run_name=run_name, persist_result=False, validate_parameters=False)
@told_in_words
def sample(config: PipelineForm, model: str | None = None, changes: Sequence[str] = ()) -> int:
    """Sample several responses to each prompt, for `align rank`; returns how many prompts can be ranked.

    Args:
        config: The settings of a run; `sample` says how many responses and how long.
        model: Who answers: an alias such as `production`, or a key; the SFT model of these settings if empty.
        changes: Settings to change, such as `sample.responses_per_prompt=8`.
    """
    settings, stage = settings_of(config, changes), Stages()
    plan = make_sample_plan(settings, load_registry(), model or None)
    with leased(plan.calls()):
        data = stage(plan.ingest)
        sft = stage(plan.sft, data)
        stage(plan.sample, data, sft)
        return _keep(settings, stage.built(plan.sample).artifact.path, plan.model)


def _keep(settings: PipelineConfig, folder: Path, model: str) -> int:
    """Put what was sampled into the feedback store; what is there already is not put there again."""
    with (folder / RESPONSES).open(encoding="utf-8") as file, open_feedback(settings.feedback) as store:
        lines = map(json.loads, file)
        sampled = [(tuple(line["prompt"]), [(text, model) for text in line["responses"]]) for line in lines]
        return len(store.add_rankables(sampled))
