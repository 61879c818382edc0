"""DPO and KTO compared with TRL's trainers: the same adapters, rows and steps give the same losses and weights.

Intended differences:

- TRL takes the completions for KTO's reference point from neighboring rows of the file. Ours are completions of other
  prompts, fixed by hash. The tests give ours to both.
- TRL ignores label smoothing in DPO's sigmoid loss.
- TRL's margins and rewards equal ours without `margin_scale` and `length_normalised`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from engine import PAD
from peft import AutoPeftModelForCausalLM
from runs import Listener, World, feedback_rows, learn, make_world, preference_rows
from torch import Tensor
from transformers import AutoTokenizer

from alignment_core.plugin_api import Row, TokenSequence
from alignment_core.training.contract import Objective
from alignment_core.training.loop import learning_rate_factor
from alignment_core.training.rows import Rows
from alignment_core.training.run import Run
from alignment_plugins.dpo import DPO
from alignment_plugins.kto import KTO

trl = pytest.importorskip("trl", minversion="1.16", reason="TRL is not installed: pip install 'alignment-flows[peer]'")

# TRL, datasets and accelerate emit unrelated warnings.
pytestmark = [pytest.mark.peer, pytest.mark.filterwarnings("ignore")]

STEPS: dict[str, Any] = {"learning_rate": 5e-3, "batch_size": 4, "epochs": 2, "beta": 0.3}


@pytest.fixture(scope="module")
def world(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tiny_model, tmp_path_factory.mktemp("world"))


def batch_of(sequences: Sequence[TokenSequence], prefix: str = "") -> dict[str, Tensor]:
    """Return a batch as TRL's collators make it."""
    width = max(len(sequence.ids) for sequence in sequences)

    def padded(rows: list[list[int]]) -> Tensor:
        return torch.tensor([row + [0] * (width - len(row)) for row in rows])

    return {
        f"{prefix}input_ids": padded([list(sequence.ids) for sequence in sequences]) + PAD,
        f"{prefix}attention_mask": padded([[1] * len(sequence.ids) for sequence in sequences]),
        f"{prefix}completion_mask": padded(
            [[0] * sequence.start + [1] * len(sequence.completion) for sequence in sequences]
        ),
    }


def dpo_batch(rows: Sequence[Row]) -> dict[str, Tensor]:
    return batch_of([row.sequences["chosen"] for row in rows] + [row.sequences["rejected"] for row in rows])


def kto_batch(rows: Sequence[Row]) -> dict[str, Tensor]:
    responses = batch_of([row.sequences["response"] for row in rows])
    mismatched = batch_of([row.sequences["mismatched"] for row in rows], "KL_")
    return responses | mismatched | {"label": torch.tensor([bool(row.number("desirable")) for row in rows])}


def trainer_of(kind: str, world: World, folder: Path, objective: Any, rows: Rows) -> Any:
    """Return TRL's trainer on the SFT adapter. It keeps a copy of the adapter as its reference."""
    model = AutoPeftModelForCausalLM.from_pretrained(str(world.sft), is_trainable=True, dtype=torch.float32)
    text = [{"prompt": "a", "chosen": "b", "rejected": "c"}] if kind == "dpo" else []
    text = text or [
        {"prompt": "a", "completion": "b", "label": True},
        {"prompt": "c", "completion": "d", "label": False},
    ]
    settings: dict[str, Any] = {"beta": objective.beta}
    if kind == "kto":
        good = sum(bool(row.number("desirable")) for row in rows.feedback)
        bad = len(rows.feedback) - good
        settings |= {"desirable_weight": min(good, bad) / good, "undesirable_weight": min(good, bad) / bad}
    make, config = (trl.DPOTrainer, trl.DPOConfig) if kind == "dpo" else (trl.KTOTrainer, trl.KTOConfig)
    from datasets import Dataset

    return make(
        model=model,
        args=config(
            str(folder), report_to="none", use_cpu=True, bf16=False, gradient_checkpointing=False,
            per_device_train_batch_size=2, disable_dropout=True, **settings,
        ),
        train_dataset=Dataset.from_list(text),
        processing_class=AutoTokenizer.from_pretrained(world.base),
    )  # fmt: skip


def ours_by_plain_name(run: Run) -> dict[str, Tensor]:
    return run.roles.adapter_weights("policy")


def theirs_by_plain_name(trainer: Any) -> dict[str, Tensor]:
    return {
        name.replace(".default", ""): parameter
        for name, parameter in trainer.model.named_parameters()
        if parameter.requires_grad
    }


OBJECTIVES: dict[str, Any] = {"dpo": (DPO(**STEPS), dpo_batch), "kto": (KTO(**STEPS), kto_batch)}


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_short_training_matches_trl(world: World, tmp_path: Path, kind: str) -> None:
    """Compare each loss, each gradient norm and the final weights over six steps of torch's AdamW."""
    objective, collate = OBJECTIVES[kind]
    rows = Rows(preferences=preference_rows(12), feedback=feedback_rows(8, 4))
    run = world.open(kind, rows=rows, progress=Listener())
    batches = batches_of(objective, world.open(kind, rows=rows))
    trainer = trainer_of(kind, world, tmp_path / "trl", objective, rows)
    learned = list(theirs_by_plain_name(trainer).values())
    optimizer = torch.optim.AdamW(learned, weight_decay=0.0)
    expected = []
    for step, batch in enumerate(batches):
        factor = learning_rate_factor(step, len(batches), schedule="cosine", warmup_fraction=0.1)
        optimizer.param_groups[0]["lr"] = STEPS["learning_rate"] * factor
        loss = trainer._compute_loss(trainer.model, collate(batch), False)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        expected.append((loss.item(), norm.item()))

    learn(objective, run, tmp_path / "ours")
    assert len(expected) == run.step == 6
    assert [entry["loss"] for entry in run.history] == pytest.approx([loss for loss, _ in expected], rel=1e-3)
    assert [entry["grad_norm"] for entry in run.history] == pytest.approx([norm for _, norm in expected], rel=5e-3)
    if kind == "kto":
        assert [entry["kl"] for entry in run.history] == pytest.approx(
            trainer._metrics["train"]["kl"], rel=1e-2, abs=1e-4
        )
        assert max(trainer._metrics["train"]["kl"]) > 0.01
    before = ours_by_plain_name(world.open(kind, rows=rows))
    after, theirs = ours_by_plain_name(run), theirs_by_plain_name(trainer)
    assert after.keys() == theirs.keys()
    for name, weight in theirs.items():
        assert (weight - before[name]).abs().max() > 1e-3
        torch.testing.assert_close(after[name], weight.detach(), rtol=0, atol=1e-3)


def batches_of(objective: Objective, run: Run) -> list[list[Row]]:
    """Return the rows of each step as in the data. They depend only on the seed."""
    whole = {row.id: row for row in (*run.preferences, *run.feedback)}
    with torch.no_grad():
        return [[whole[row.id] for row in batch.rows] for batch in objective.batches(run)]


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_gradient_of_one_step_matches_trl(world: World, tmp_path: Path, kind: str) -> None:
    """Start away from the reference. Ours uses micro-batches of one row, and TRL one batch."""
    objective, collate = OBJECTIVES[kind]
    rows = Rows(preferences=preference_rows(6, seed=3), feedback=feedback_rows(3, 3, seed=3))
    one_step = objective.model_copy(update={"batch_size": 6, "epochs": 1, "max_grad_norm": 1e9})
    run = world.open(kind, rows=rows, budget=1)
    trainer = trainer_of(kind, world, tmp_path / "trl", one_step, rows)
    generator = torch.Generator().manual_seed(0)
    ours, theirs = ours_by_plain_name(run), theirs_by_plain_name(trainer)
    with torch.no_grad():
        for name, weight in theirs.items():
            noise = 0.05 * torch.randn(weight.shape, generator=generator)
            weight += noise
            ours[name] += noise
    (batch,) = batches_of(one_step, run)
    loss = trainer._compute_loss(trainer.model, collate(batch), False)
    loss.backward()
    learn(one_step, run, tmp_path / "ours")
    assert run.history[0]["loss"] == pytest.approx(loss.item(), rel=1e-4)
    found = {name.removeprefix("model.").replace(".policy", ""): p.grad for name, p in run.roles.parameters().items()}
    assert len(found) == len(theirs)
    for name, parameter in theirs.items():
        gradient = found[name.removeprefix("base_model.model.")]
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-3, atol=1e-5)
