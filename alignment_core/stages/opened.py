"""What most stages begin with: the base model, the roles on it, the tokenizer and the rows."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from alignment_core.config import LoraConfig
from alignment_core.data.conversations import Conversations
from alignment_core.data.dataset import Dataset, Split, read_dataset
from alignment_core.data.folds import in_fold
from alignment_core.data.rendering import Renderer, generation_stops, load_tokenizer
from alignment_core.data.replay import with_replay
from alignment_core.data.retelling import Retelling
from alignment_core.errors import DataError
from alignment_core.models.classifier import TextReward, load_classifier
from alignment_core.models.load import choose_device, load_base
from alignment_core.models.logps import Budget
from alignment_core.models.roles import Roles
from alignment_core.plugin_api import Conversation, Row, TokenSequence
from alignment_core.stages.base import Job
from alignment_core.stages.fitting import budget_of, fit_to_memory
from alignment_core.training.loop import Objective, train
from alignment_core.training.run import Rows, Run, Vocabulary

DATA = ("data", "ranked", "votes", "older_votes")
"""Roles of parents that are data sets."""


def open_renderer(job: Job) -> Renderer:
    """Tokenizer and chat template of the job."""
    model, config = job.call.inputs["model"], job.call.config
    return Renderer(
        load_tokenizer(model["path"], model["revision"]),
        chat_template=config["chat_template"],
        max_length=config["max_length"],
        generation_stops=generation_stops(model["path"], model["revision"]),
    )


def open_data(job: Job) -> Dataset:
    """The rows that the job reads; see `data_of`."""
    return data_of(job.call.config, {role: job.parents[role] for role in DATA if role in job.parents})


def data_of(config: Mapping[str, Any], folders: Mapping[str, Path]) -> Dataset:
    """The ingested rows, joined by the ranked samples where there are any.

    Where a part of the people's judgements is kept for the judge, only those that the stage may learn from. In a
    retrain the new votes, with older rows among them.

    Args:
        config: the stage's settings.
        folders: the data sets that it reads, by role, in the order of `DATA`.
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
    return train if fold is None else in_fold(train, **fold)


@dataclass
class External:
    """A reward model of its own (`reward.model`), and how sequences are told to it."""

    model: PreTrainedModel
    retelling: Retelling
    pad_id: int

    @classmethod
    def of(cls, job: Job, renderer: Renderer) -> External:
        """Load the one that the job names."""
        place, config = job.call.inputs["reward_model"], job.call.config
        device = choose_device(job.call.runtime.device)
        tokenizer = load_tokenizer(place["path"], place["revision"])
        model = load_classifier(place["path"], revision=place["revision"], load_in=config["load_in"], device=device)
        positions = getattr(model.config.get_text_config(), "max_position_embeddings", None) or math.inf
        retelling = Retelling(
            renderer,
            Conversations(*(job.parents[role] for role in (*DATA, "safety") if role in job.parents)),
            tokenizer,
            chat_template=config["reward_model"]["chat_template"],
            limit=min(positions, tokenizer.model_max_length),
            warn=job.progress.warn,
        )
        return cls(model, retelling, tokenizer.pad_token_id)

    def role(self, budget: Budget) -> TextReward[TokenSequence]:
        """As an optimizer sees it."""
        return TextReward(self.model, self.retelling.ids, self.pad_id, budget)

    def reader(self, budget: Budget) -> TextReward[tuple[Conversation, str]]:
        """As a judge of prompts and responses in words, whoever wrote them."""
        return TextReward(self.model, lambda said: self.retelling.ids_of(*said), self.pad_id, budget)


@dataclass
class Opened:
    """A loaded base with no roles yet."""

    job: Job
    roles: Roles
    renderer: Renderer
    external: External | None = None

    @classmethod
    def of(cls, job: Job) -> Opened:
        """Load the base model of the job."""
        model = job.call.inputs["model"]
        renderer = open_renderer(job)
        base = load_base(
            model["path"],
            revision=model["revision"],
            load_in=job.call.config["load_in"],
            device=choose_device(job.call.runtime.device),
        )
        roles = Roles(base, model["path"], model["revision"])
        if not roles.separable:
            job.progress.warn(
                f"{type(base).__name__}: its logits are more than its head applied to its last hidden state. They are "
                "computed in full, which takes memory for every token times the whole vocabulary"
            )
        if not roles.packs:
            job.progress.log("padded batches: the base model's attention does not take packed rows")
        return cls(job, roles, renderer)

    def add_sft(self, role: str) -> None:
        """A frozen role that is the SFT model; the base where there was no SFT stage."""
        if "sft" in self.job.parents:
            self.roles.add_saved(role, self.job.parents["sft"])
        else:
            self.roles.add_base(role)

    def add_trainable(self, role: str) -> None:
        """A role to be trained that starts as the SFT model; from a fresh adapter where there was no SFT stage."""
        if "sft" in self.job.parents:
            self.roles.add_saved(role, self.job.parents["sft"])
        else:
            lora = LoraConfig.model_validate(self.job.call.config["lora"])
            self.roles.add_new(role, lora, self.job.call.config["seed"])

    @property
    def rewarded(self) -> bool:
        """Whether the job has a reward model: one that was trained, or one of its own."""
        return "reward" in self.job.parents or "reward_model" in self.job.call.inputs

    def add_reward(self) -> None:
        """The reward model that the job has."""
        if "reward" in self.job.parents:
            self.roles.add_saved("reward", self.job.parents["reward"])
        else:
            self.external = External.of(self.job, self.renderer)

    def reward_metrics(self) -> dict[str, int]:
        """How many texts an external reward model could not take whole."""
        return {} if self.external is None else {"reward_texts_cut": self.external.retelling.cut}

    def save(self, role: str, folder: Path) -> None:
        """The role as a PEFT folder, with the chat template that it was trained on beside it."""
        self.roles.save(role, folder)
        (folder / "chat_template.jinja").write_text(self.renderer.template, encoding="utf-8")

    def run(self, rows: Rows, cached_reference: Mapping[str, float] | None = None) -> Run:
        """The run of these rows, once every role is there."""
        tokenizer = self.renderer.tokenizer
        vocabulary = Vocabulary(tokenizer, self.renderer.pad_id, self.renderer.stop_ids)
        budget = Budget(budget_of(self.job.call.runtime))
        return Run(
            roles=self.roles,
            rows=rows,
            vocabulary=vocabulary,
            budget=budget,
            seed=self.job.call.config.get("seed", 0),
            progress=self.job.progress,
            cached_reference=cached_reference or {},
            external_reward=None if self.external is None else self.external.role(budget),
        )

    def train(self, objective: Objective, run: Run) -> None:
        """Choose token budget and checkpointing by the memory that is free, say so, and train."""
        runtime = self.job.call.runtime
        external = None if self.external is None else self.external.model.config
        fit_to_memory(objective, run, runtime, self.job.call.config, self.job.checkpoints, external)
        train(objective, run, self.job.checkpoints, runtime.checkpoint_seconds)


def need(rows: Sequence[Row], what: str, job: Job) -> Sequence[Row]:
    """`rows`, or an error that says which supervision the data do not give."""
    if not rows:
        raise DataError(
            f"the data give no {what}",
            where=job.call.label,
            do=f"Add a source that holds {what}, or choose an optimizer that does not need them",
        )
    return rows


def write_history(run: Run, out: Path) -> dict[str, Any]:
    """Write `metrics.jsonl`, one line per step or report, and return each metric's mean over the last tenth."""
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
