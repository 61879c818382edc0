"""The reward model: a scalar head on its own adapter, trained on preference pairs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from alignment_core import losses
from alignment_core.config import RewardConfig
from alignment_core.evaluation import held_out_metrics
from alignment_core.evaluation.calibration import calibration
from alignment_core.execution.stage import Job, Stage
from alignment_core.models.roles.classifier_export import not_in_plain_peft
from alignment_core.planning.pipeline import VERSIONS
from alignment_core.plugin_api import LossOutput, MicroBatch, StepBatch
from alignment_core.stages.shared.context import StageContext, open_data, require_rows, write_history
from alignment_core.training.rows import Rows
from alignment_core.training.run import Run

CALIBRATION = "calibration.json"


class BradleyTerry(RewardConfig):
    """The objective: the Bradley–Terry loss with a centering term."""

    def batches(self, run: Run) -> Iterator[StepBatch]:
        for rows in run.shuffled(run.preferences, self.batch_size, self.epochs):
            yield StepBatch(rows)

    def loss(self, run: Run, micro: MicroBatch) -> LossOutput:
        chosen, rejected = run.reward.scores(micro.sequences("chosen") + micro.sequences("rejected")).chunk(2)
        pairs = micro.denominators["rows"]
        loss = losses.bradley_terry(chosen, rejected) + self.centering * (chosen + rejected) ** 2
        metrics = {
            "accuracy": (chosen > rejected).sum() / pairs,
            "score_chosen": chosen.sum() / pairs,
            "score_rejected": rejected.sum() / pairs,
        }
        return LossOutput(loss.sum() / pairs, metrics)

    def total_steps(self, run: Run) -> int:
        return self.epochs * -(-len(run.preferences) // self.batch_size)


def run(job: Job) -> dict[str, Any]:
    """Train the reward model. `AutoPeftModelForSequenceClassification(…, num_labels=1)` loads the artifact."""
    data = open_data(job)
    context = StageContext.open(job)
    context.add_sft("policy")
    context.add_trainable("reward")
    context.roles.add_head("reward")
    if reason := not_in_plain_peft(context.roles.model):
        job.progress.warn(reason)
    context.roles.train_only(["reward"])
    training = context.run(Rows(preferences=require_rows(data.train.preferences, "preference pairs", job)))
    objective = BradleyTerry.model_validate(job.call.config["reward"])
    context.train(objective, training)
    context.save("reward", job.out)
    metrics = write_history(training, job.out)
    if data.held_out.preferences:
        found = calibration(held_out_metrics.pair_differences(data.held_out.preferences, training.reward.scores))
        (job.out / CALIBRATION).write_text(json.dumps(found.to_json(), indent=2) + "\n", encoding="utf-8")
        metrics |= {"held_out_accuracy": found.accuracy, "held_out_brier": found.brier, "held_out_ece": found.ece}
    return metrics


STAGE = Stage("reward", VERSIONS["reward"], run)
