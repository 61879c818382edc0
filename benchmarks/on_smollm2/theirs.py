"""Train one cell with TRL: python -m on_smollm2.theirs.

SFT, reward model, DPO, KTO, GRPO and RLOO use TRL 1.16 or newer. PPO uses TRL 1.12, the last release with a PPO
trainer. Settings that the cell does not name are TRL's defaults, except that gradient checkpointing is off on both
sides.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

import trl
from against_trl.steps import Steps
from against_trl.world import serve
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, set_seed

from on_smollm2.meter import Meter, measured, warm_up
from on_smollm2.request import Request, answering
from on_smollm2.their_on_policy import group_trainer, ppo_trainer
from on_smollm2.their_settings import PAD, Texts, dtype_of, lora, settings_of

TRAINERS = {"ppo": ppo_trainer, "grpo": group_trainer, "rloo": group_trainer}
SCORES = {"ppo": "objective/scores", "grpo": "reward", "rloo": "reward"}
"""What each trainer calls the mean score of a rollout."""


def simple_trainer(request: Request, out: str) -> tuple[Any, Meter]:
    """Return the trainer of SFT, reward model, DPO or KTO."""
    cell, path = request.cell, str(request.base)
    trainer, config = {
        "sft": (trl.SFTTrainer, trl.SFTConfig),
        "reward": (trl.RewardTrainer, trl.RewardConfig),
        "dpo": (trl.DPOTrainer, trl.DPOConfig),
        "kto": (trl.KTOTrainer, trl.KTOConfig),
    }[cell.optimizer]
    more: dict[str, Any] = {"num_train_epochs": cell.all_settings["epochs"], "max_length": 256}
    if cell.optimizer in ("dpo", "kto"):
        more["beta"] = cell.all_settings["beta"]
    if cell.optimizer == "reward":
        more["center_rewards_coefficient"] = 0.01  # our default
        model: Any = AutoModelForSequenceClassification.from_pretrained(path, dtype=dtype_of(cell), num_labels=1)
    else:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype_of(cell))
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.pad_token = PAD
    warm_up(model)
    meter = Meter()
    made = trainer(
        model=model,
        args=settings_of(config, cell, request.device, out, **more),
        train_dataset=Texts(tokenizer).data(request),
        processing_class=tokenizer,
        peft_config=lora(cell, "SEQ_CLS" if cell.optimizer == "reward" else "CAUSAL_LM"),
        callbacks=[Steps(meter)],
    )
    return made, meter


def _logged(history: Sequence[dict[str, Any]], name: str) -> list[float]:
    return [round(float(entry[name]), 4) for entry in history if name in entry]


def train_cell(request: Request) -> dict[str, Any]:
    set_seed(request.cell.data.seed)
    optimizer = request.cell.optimizer
    with tempfile.TemporaryDirectory() as out:
        trainer, meter = TRAINERS.get(optimizer, simple_trainer)(request, out)
        trainer.train()
        found = measured(meter)
    (trainer.model.policy if optimizer == "ppo" else trainer.model).save_pretrained(str(request.out))
    history = trainer.state.log_history
    kept = {"losses": _logged(history, "loss"), "warnings": []}
    if optimizer == "kto":
        kept["z0"] = _logged(history, "kl")
    if optimizer in SCORES:
        kept["scores"] = _logged(history, SCORES[optimizer])
    return {**found, **kept, "trl": trl.__version__}


if __name__ == "__main__":
    serve(answering(train_cell))
