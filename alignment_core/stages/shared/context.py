"""The common setup of most stages: the base model, the roles on it, the tokenizer and the rows."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from alignment_core.config import LoraConfig, VllmConfig
from alignment_core.data.dataset.cross_tokenizer import CrossTokenizer
from alignment_core.data.dataset.folds import rows_in_fold
from alignment_core.data.dataset.prompt_index import PromptIndex
from alignment_core.data.dataset.replay import with_replay
from alignment_core.data.dataset.splits import Dataset, Split, read_dataset
from alignment_core.data.rendering.renderer import Renderer, load_tokenizer
from alignment_core.errors import DataError
from alignment_core.execution.stage import Job
from alignment_core.models.base.layers import unquantised
from alignment_core.models.base.loading import choose_device, load_base
from alignment_core.models.generation.vllm import VllmEngine
from alignment_core.models.passes.packed_attention import pieces_note
from alignment_core.models.roles.classifier import GROUP, ClassifierReward, load_classifier
from alignment_core.models.roles.logps import Budget
from alignment_core.models.roles.shared_base import Roles
from alignment_core.own_code import OWN_CODE
from alignment_core.plugin_api import Conversation, Row, TokenSequence
from alignment_core.stages.shared.card import use_card
from alignment_core.stages.shared.memory_fit import fit_to_memory, initial_token_budget
from alignment_core.training.contract import Objective
from alignment_core.training.loop import train
from alignment_core.training.rewards import Rewards
from alignment_core.training.rows import Rows, Vocabulary
from alignment_core.training.run import Run

DATA = ("data", "ranked", "votes", "older_votes")
"""The parent roles that are data sets."""


def open_renderer(job: Job) -> Renderer:
    """Load the tokenizer and the chat template of the job."""
    model, config = job.call.inputs["model"], job.call.config
    return Renderer.of_stage(model, config)


def open_data(job: Job) -> Dataset:
    """Read the rows of the job; see `training_data`."""
    return training_data(job.call.config, {role: job.parents[role] for role in DATA if role in job.parents})


def training_data(config: Mapping[str, Any], folders: Mapping[str, Path]) -> Dataset:
    """Return the rows that a stage learns from: the ingested rows and the ranked samples, if there are any.

    If part of the feedback is reserved for the judge, the stage gets only its own part. In a retraining run, the
    feedback consists of the new votes mixed with older rows.

    Args:
        config: the settings of the stage.
        folders: the data sets that the stage reads, by role, in the order of `DATA`.
    """
    data = read_dataset(*folders.values())
    if (replay := config.get("replay")) is None:
        return replace(data, train=_of_fold(data.train, config))
    new = read_dataset(folders["votes"])
    old = read_dataset(*(folder for role, folder in folders.items() if role != "votes"))
    train = with_replay(
        _of_fold(new.train, config), _of_fold(old.train, config), data.train, replay, str(config["replay_seed"])
    )
    return replace(data, train=train)


def _of_fold(train: Split, config: Mapping[str, Any]) -> Split:
    fold = config.get("fold")
    return train if fold is None else rows_in_fold(train, **fold)


@dataclass
class ExternalRewardModel:
    """The existing reward model in `reward.model`, with the conversion of sequences to its tokenizer."""

    model: PreTrainedModel
    cross_tokenizer: CrossTokenizer
    pad_id: int

    @classmethod
    def load(cls, job: Job, renderer: Renderer) -> ExternalRewardModel:
        """Load the reward model that the job names."""
        place, config = job.call.inputs["reward_model"], job.call.config
        device = device_of(job)
        path, revision, own_code = place["path"], place["revision"], place.get(OWN_CODE)
        tokenizer = load_tokenizer(path, revision, own_code, group=GROUP)
        model = load_classifier(path, revision=revision, load_in=config["load_in"], device=device, own_code=own_code)
        positions = getattr(model.config.get_text_config(), "max_position_embeddings", None) or math.inf
        cross_tokenizer = CrossTokenizer(
            renderer,
            PromptIndex(*(job.parents[role] for role in (*DATA, "safety") if role in job.parents)),
            tokenizer,
            chat_template=config["reward_model"]["chat_template"],
            limit=min(positions, tokenizer.model_max_length),
            warn=job.progress.warn,
        )
        return cls(model, cross_tokenizer, tokenizer.pad_token_id)

    def role(self, budget: Budget) -> ClassifierReward[TokenSequence]:
        """Return the reward role for optimizers. It scores token sequences of the base model."""
        return ClassifierReward(self.model, self.cross_tokenizer.encode, self.pad_id, budget)

    def reader(self, budget: Budget) -> ClassifierReward[tuple[Conversation, str]]:
        """Return a scorer of prompts and responses as text, from any source."""
        return ClassifierReward(
            self.model, lambda pair: self.cross_tokenizer.encode_response(*pair), self.pad_id, budget
        )


@dataclass
class StageContext:
    """The loaded base model of a job, to which the stage adds roles."""

    job: Job
    roles: Roles
    renderer: Renderer
    external: ExternalRewardModel | None = None

    @classmethod
    def open(cls, job: Job) -> StageContext:
        """Load the base model of the job."""
        model = job.call.inputs["model"]
        renderer = open_renderer(job)
        device = device_of(job)
        base = load_base(
            model["path"],
            revision=model["revision"],
            load_in=job.call.config["load_in"],
            device=device,
            rows=job.call.config.get("embedding_rows"),
            own_code=model.get(OWN_CODE),
        )
        roles = Roles(base, model["path"], model["revision"])
        if not roles.separable:
            job.progress.warn(
                f"the logits of {type(base).__name__} are not simply its output head applied to its last hidden state. "
                "They are computed for all tokens at once, which needs memory for every token times the vocabulary"
            )
        if not roles.packs:
            job.progress.log("using padded batches: the attention of the base model does not support packed rows")
        elif reason := pieces_note(base):
            job.progress.log(f"attention runs sequence by sequence, not in one call of flash attention: {reason}")
        if restricted := roles.reach.describe():
            job.progress.warn(f"{restricted}: {type(base).__name__} changes its positions or attention there")
        if job.call.config["load_in"] in ("nf4", "int8") and (unquantized := unquantised(base)):
            job.progress.warn(unquantized)
        if base.dtype == torch.float16:
            job.progress.log("computing in float16, because this GPU has no bf16: the loss is scaled")
        return cls(job, roles, renderer)

    def add_sft(self, role: str) -> None:
        """Add a frozen role: the SFT model, or the base model if there was no SFT stage."""
        if "sft" in self.job.parents:
            self.roles.add_saved(role, self.job.parents["sft"])
        else:
            self.roles.add_base(role)

    def add_trainable(self, role: str) -> None:
        """Add a role to train. It starts as the SFT model, or as a new adapter if there was no SFT stage."""
        if "sft" in self.job.parents:
            self.roles.add_saved(role, self.job.parents["sft"])
        else:
            self.add_new(role)

    def add_new(self, role: str) -> None:
        """Add a role with a new adapter, and say which weights it cannot train."""
        config = self.job.call.config
        self.roles.add_new(role, LoraConfig.model_validate(config["lora"]), config["seed"])
        if left_out := self.roles.left_out():
            self.job.progress.warn(left_out)

    @property
    def rewarded(self) -> bool:
        """Whether the job has a reward model: a trained one, or the existing one in `reward.model`."""
        return "reward" in self.job.parents or "reward_model" in self.job.call.inputs

    def add_reward(self) -> None:
        """Add the reward model of the job."""
        if "reward" in self.job.parents:
            self.roles.add_saved("reward", self.job.parents["reward"])
        else:
            self.external = ExternalRewardModel.load(self.job, self.renderer)

    def reward_metrics(self) -> dict[str, int]:
        """Return how many texts were truncated for the reward model in `reward.model`."""
        return {} if self.external is None else {"reward_texts_cut": self.external.cross_tokenizer.truncated}

    def save(self, role: str, folder: Path) -> None:
        """Save the role as a PEFT folder, together with the chat template that it was trained with."""
        self.roles.save(role, folder)
        (folder / "chat_template.jinja").write_text(self.renderer.template, encoding="utf-8")

    def run(
        self,
        rows: Rows,
        cached_reference: Mapping[str, float] | None = None,
        rewarded_by: Rewards | None = None,
        snapshots: Sequence[str] = (),
    ) -> Run:
        """Return the run on these rows. Add all roles first."""
        tokenizer = self.renderer.tokenizer
        vocabulary = Vocabulary(tokenizer, self.renderer.pad_id, self.renderer.stop_ids)
        budget = Budget(initial_token_budget(self.job.call.runtime), self.job.ranks)
        return Run(
            roles=self.roles,
            rows=rows,
            vocabulary=vocabulary,
            budget=budget,
            seed=self.job.call.config.get("seed", 0),
            progress=self.job.progress,
            cached_reference=cached_reference or {},
            external_reward=None if self.external is None else self.external.role(budget),
            rewarded_by=rewarded_by,
            engine=self._engine(),
            snapshot_names=snapshots,
        )

    def _engine(self) -> VllmEngine | None:
        """Return the engine that samples for the job, or None if the job itself does."""
        inputs = self.job.call.inputs
        if "vllm" not in inputs:
            return None
        settings = VllmConfig.model_validate(inputs["vllm"])
        return VllmEngine(settings, inputs["model"]["path"], self.roles, self.renderer.stop_ids, self.job.ranks)

    def train(self, objective: Objective, run: Run) -> None:
        """Choose the token budget and gradient checkpointing for the free memory, log the choice, and train."""
        runtime = self.job.call.runtime
        external = None if self.external is None else self.external.model.config
        fit_to_memory(objective, run, runtime, self.job.call.config, self.job.checkpoints, external)
        train(objective, run, self.job.checkpoints, runtime.checkpoint_seconds)


def device_of(job: Job) -> torch.device:
    """Return the device of the job, set up for what is loaded onto it.

    Raises:
        ModelError: there is no such device.
    """
    device = choose_device(job.call.runtime.device)
    use_card(device, job.call.runtime.memory_gb)
    return device


def require_rows(rows: Sequence[Row], what: str, job: Job) -> Sequence[Row]:
    """Return `rows`.

    Raises:
        DataError: there are none. The message says what is missing in the data.
    """
    if not rows:
        raise DataError(
            f"the data contain no {what}",
            where=job.call.label,
            do=f"Add a source that contains {what}, or choose an optimizer that does not need them",
        )
    return rows


def write_history(run: Run, out: Path) -> dict[str, Any]:
    """Write `metrics.jsonl`, one line per step or report. Return each metric's mean over its last 10 % of values."""
    with (out / "metrics.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(entry) + "\n" for entry in run.history)
    summary: dict[str, Any] = {
        "steps": run.step,
        "token_budget": run.budget.tokens,
        "gradient_checkpointing": run.roles.checkpointing,
    }
    for name in dict.fromkeys(name for entry in run.history for name in entry if name != "step"):
        values = [entry[name] for entry in run.history if name in entry]
        newest = values[-max(1, len(values) // 10) :]
        summary[name] = sum(newest) / len(newest)
    return summary
