"""Train one cell with this library: python -m on_smollm2.ours."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from against_trl.world import serve

from alignment_core.registry import load_registry
from alignment_core.stages.reward import BradleyTerry
from alignment_core.stages.sft import SFT
from alignment_core.training.loop import train
from alignment_core.training.rows import Rows
from on_smollm2.cells import ON_POLICY, Cell
from on_smollm2.chat_model import ChatModel
from on_smollm2.data_sets import DataSet
from on_smollm2.meter import Meter, measured, warm_up
from on_smollm2.request import Request, answering


class Timed:
    """Progress that notifies the meter after each optimizer step."""

    stopping = False

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self.warnings: list[str] = []

    def step(self, done: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
        if metrics is not None:
            self.meter.step()

    def log(self, message: str) -> None: ...

    def warn(self, message: str) -> None:
        self.warnings.append(message)


def objective_of(cell: Cell) -> Any:
    """Return the training objective. What the cell does not set has the library's default."""
    settings = cell.all_settings
    given = {name: value for name, value in settings.items() if name not in ("load_in", "lora_rank", "lora_alpha")}
    if cell.optimizer in ("sft", "reward"):
        return {"sft": SFT, "reward": BradleyTerry}[cell.optimizer](**given)
    if cell.optimizer in ON_POLICY:
        # TRL takes one optimizer step per pass over a rollout, and does not penalize scores by itself.
        pairs = settings["rollout_size"] // settings.get("samples", 1)
        given |= {
            "batch_size": pairs if cell.optimizer == "online_dpo" else settings["rollout_size"],
            "max_new_tokens": cell.data.new_tokens,
            "missing_end_penalty": 0.0,
            "step_kl": None,
        }
    return load_registry().optimizer({"name": cell.optimizer, **given})


def rows_of(cell: Cell, data: DataSet, model: ChatModel) -> Rows:
    match cell.optimizer:
        case "sft":
            return Rows(demonstrations=model.demonstrations(data.pairs))
        case "kto":
            return Rows(feedback=model.feedback(data.thumbs(cell.data.seed)))
        case optimizer if optimizer in ON_POLICY:
            return Rows(prompts=model.prompts([pair.prompt for pair in data.pairs]))
        case _:
            return Rows(preferences=model.preferences(data.pairs))


def open_roles(cell: Cell, model: ChatModel, reward: Path | None) -> str:
    """Add the roles that the optimizer needs, and return the one that is kept."""
    roles, lora = model.roles, model.lora(cell.all_settings)
    if cell.optimizer == "reward":
        roles.add_base("policy")
        roles.add_new("reward", lora, cell.data.seed)
        roles.add_head("reward")
        roles.train_only(["reward"])
        return "reward"
    roles.add_new("policy", lora, cell.data.seed)
    if cell.optimizer != "sft":
        roles.add_base("reference")
    if cell.optimizer in ON_POLICY:
        assert reward is not None
        roles.add_saved("reward", reward)
    if cell.optimizer == "ppo":
        roles.add_copy("value", of="reward")
    roles.train_only(["policy", "value"] if cell.optimizer == "ppo" else ["policy"])
    return "policy"


def train_cell(request: Request) -> dict[str, Any]:
    cell = request.cell
    model = ChatModel(request.base, cell.all_settings["load_in"], request.device)
    trained = open_roles(cell, model, request.reward)
    warm_up(model.roles.model)
    meter = Meter()
    run = model.run(rows_of(cell, request.data, model), cell.data.seed)
    run.progress = timed = Timed(meter)
    with tempfile.TemporaryDirectory() as checkpoints:
        meter.start()
        train(objective_of(cell), run, Path(checkpoints), 1e9)
    found = measured(meter)
    model.roles.save(trained, request.out)
    steps = [entry for entry in run.history if "loss" in entry]
    metrics: dict[str, Any] = {"losses": [round(entry["loss"], 4) for entry in steps], "warnings": timed.warnings}
    if cell.optimizer == "kto":
        metrics["z0"] = [entry["kl"] for entry in steps]
    if cell.optimizer in ON_POLICY:
        metrics["scores"] = [round(entry["score"], 3) for entry in run.history if "score" in entry]
    return {**found, **metrics}


if __name__ == "__main__":
    serve(answering(train_cell))
