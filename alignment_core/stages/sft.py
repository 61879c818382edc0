"""Supervised fine-tuning of an adapter on the assistant turns of the demonstrations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from alignment_core.config import SFTConfig
from alignment_core.evaluation import held_out_metrics
from alignment_core.execution.stage import Job, Stage
from alignment_core.planning.pipeline import VERSIONS
from alignment_core.plugin_api import LossOutput, MicroBatch, StepBatch
from alignment_core.stages.shared.context import StageContext, open_data, require_rows, write_history
from alignment_core.training.rows import Rows
from alignment_core.training.run import Run


class SFT(SFTConfig):
    """The objective: the mean negative log-likelihood over all target tokens of the step."""

    def batches(self, run: Run) -> Iterator[StepBatch]:
        for rows in run.shuffled(run.demonstrations, self.batch_size, self.epochs):
            yield StepBatch(rows, denominators={"tokens": sum(row.sequences["demonstration"].targets for row in rows)})

    def loss(self, run: Run, micro: MicroBatch) -> LossOutput:
        return LossOutput(-run.policy.logps(micro.sequences("demonstration")).sum() / micro.denominators["tokens"])

    def total_steps(self, run: Run) -> int:
        return self.epochs * -(-len(run.demonstrations) // self.batch_size)


def run(job: Job) -> dict[str, Any]:
    """Train the SFT adapter. The artifact is its PEFT folder."""
    config = job.call.config
    data = open_data(job)
    context = StageContext.open(job)
    if "start" in job.parents:
        context.roles.add_saved("policy", job.parents["start"])
    else:
        context.add_new("policy")
    context.roles.train_only(["policy"])
    training = context.run(Rows(demonstrations=require_rows(data.train.demonstrations, "demonstrations", job)))
    context.train(SFT.model_validate(config["sft"]), training)
    context.save("policy", job.out)
    metrics = write_history(training, job.out)
    if data.held_out.demonstrations:
        metrics["held_out_loss"] = held_out_metrics.loss(training, data.held_out.demonstrations)
    return metrics


STAGE = Stage("sft", VERSIONS["sft"], run)
