"""The flow `sample`: sample responses and add them to the feedback store for ranking."""

import json
from collections.abc import Sequence
from pathlib import Path

from alignment_core.config import PipelineConfig
from alignment_core.feedback import open_feedback
from alignment_core.planning.sample import plan_sampling
from alignment_core.planning.unpacked_base import base_of_run
from alignment_core.registry import load_registry
from alignment_flows.form.parameters import secret_flow
from alignment_flows.form.settings import PipelineForm, read_settings, run_name
from alignment_flows.tasks import StageRunner, without_traceback

RESPONSES = "responses.jsonl"


@secret_flow(name="sample", flow_run_name=run_name, persist_result=False, validate_parameters=False)
@without_traceback
def sample(config: PipelineForm, model: str | None = None, changes: Sequence[str] = ()) -> int:
    """Sample several responses to each prompt for ranking, and return the number of prompts that can be ranked.

    Args:
        config: The settings of a run. `sample` sets the number and length of the responses.
        model: The model to sample from: an alias such as `production`, or a key. If empty, the SFT model is used.
        changes: Settings to override, such as `sample.responses_per_prompt=8`.
    """
    settings, stage = read_settings(config, changes), StageRunner()
    stage(base_of_run(settings))
    plan = plan_sampling(settings, load_registry(), model or None)
    with stage.planned(plan.calls()):
        data = stage(plan.ingest)
        adapter = stage(plan.adapter)
        sft = stage(plan.sft, data, adapter) or adapter
        stage(plan.sample, data, sft)
        return _keep(settings, stage.built(plan.sample).artifact.path, plan.model)


def _keep(settings: PipelineConfig, folder: Path, model: str) -> int:
    """Add the sampled responses to the feedback store. Responses that are already there are skipped."""
    with (folder / RESPONSES).open(encoding="utf-8") as file, open_feedback(settings.feedback) as store:
        lines = map(json.loads, file)
        sampled = [(tuple(line["prompt"]), [(text, model) for text in line["responses"]]) for line in lines]
        return len(store.add_ranking_tasks(sampled))
