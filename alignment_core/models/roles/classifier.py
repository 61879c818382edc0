"""A reward model that is a separate model: a sequence classifier with one label that reads text in its own tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from alignment_core.config import LoadIn
from alignment_core.errors import ModelError, loading_failure
from alignment_core.models.base.loading import (
    base_dtype,
    config_may_be_wrong,
    is_quantized,
    keep_linear4bit_differentiable,
    quantization,
    read_config,
)
from alignment_core.models.passes.batching import call_cost, least_padding
from alignment_core.models.passes.reach import find_reach
from alignment_core.models.roles.logps import Budget
from alignment_core.models.roles.shares import from_shares, share_of
from alignment_core.own_code import code_may_fail, may_run

GROUP = "reward"
WHERE = f"{GROUP}.model"
T = TypeVar("T")


def load_classifier(
    path: str, *, revision: str | None, load_in: LoadIn, device: torch.device, own_code: str | None = None
) -> PreTrainedModel:
    """Load a sequence classifier with one label, frozen and in eval mode, in the precision of the base model.

    Args:
        path: its folder or hub id.
        revision: its hub commit; None for a folder.
        load_in: its precision.
        device: where to load it.
        own_code: digest of its own code that may run; None: none may.

    Raises:
        ModelError: it does not load, does not have exactly one label, or its head was never trained.
    """
    transformers_logging.disable_progress_bar()
    dtype = base_dtype(load_in, device)
    try:
        config = read_classifier_config(path, revision, own_code)
        with code_may_fail(path, own_code, WHERE), config_may_be_wrong():
            model, loading = AutoModelForSequenceClassification.from_pretrained(
                path,
                revision=revision,
                config=config,
                dtype=dtype,
                quantization_config=None if is_quantized(config) else quantization(load_in, dtype),
                device_map={"": device},
                use_safetensors=True,
                output_loading_info=True,
                trust_remote_code=may_run(path, revision, own_code),
            )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        reason = loading_failure(error, GROUP)
        raise ModelError("the reward model does not load", where=f"{WHERE} {path}", got=reason) from error
    if missing := sorted(loading["missing_keys"]):
        raise ModelError(
            "the reward model's file lacks weights, which would be initialized at random",
            where=f"{WHERE} {path}",
            got=", ".join(missing[:3]),
            do="Choose a model that was trained as a sequence classifier",
        )
    keep_linear4bit_differentiable(model)
    model.requires_grad_(False)
    loaded: PreTrainedModel = model.eval()
    return loaded


def read_classifier_config(path: str, revision: str | None, own_code: str | None = None) -> PretrainedConfig:
    """Return the configuration of a sequence classifier with one label. For the arguments, see `load_classifier`.

    Raises:
        ModelError: it does not load, or does not have exactly one label.
    """
    try:
        config = read_config(path, revision, own_code)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            "the reward model's configuration does not load", where=WHERE, got=loading_failure(error, GROUP)
        ) from error
    if config.num_labels != 1:
        raise ModelError("the reward model has more than one label", where=WHERE, got=config.num_labels, expected=1)
    return config


class ClassifierReward(Generic[T]):
    """The reward role on a separate model. Inputs (`T`) are encoded in that model's tokens and read by its pooling.

    transformers pools causal models at the last token that is not the configuration's padding token, and encoders at
    the first token.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenize: Callable[[T], Sequence[int]],
        pad_id: int,
        budget: Budget,
    ) -> None:
        """
        Args:
            model: from `load_classifier`.
            tokenize: encodes an input, such as a sequence of the policy, in the model's own tokens.
            pad_id: padding token if the model's configuration names none.
            budget: tokens, padding included, in one pass.
        """
        self.model, self.tokenize, self.budget = model, tokenize, budget
        config = model.config.get_text_config()
        if config.pad_token_id is None:
            config.pad_token_id = pad_id
        self._pad_id: int = config.pad_token_id
        self._call_cost = call_cost(model)
        self._reach = find_reach(model, packs=False)

    def scores(self, sequences: Sequence[T]) -> Tensor:
        """Return the score of each sequence's text, shape (sequences,), float32, without gradient."""
        texts = [self.tokenize(sequence) for sequence in sequences]
        ranks = self.budget.ranks
        share = share_of(ranks, [len(text) for text in texts])
        mine = [texts[i] for i in share]
        with torch.no_grad():
            found = self.budget.fit(lambda: (self._in_parts(mine),))
            return from_shares(ranks, share, len(texts), found, self.model.device)[0]

    def _in_parts(self, texts: Sequence[Sequence[int]]) -> Tensor:
        scores = torch.empty(len(texts), dtype=torch.float32, device=self.model.device)
        self._reach.check(max(map(len, texts), default=0))
        together = [i for i, ids in enumerate(texts) if len(ids) <= self._reach.batched]
        groups = least_padding([len(texts[i]) for i in together], self.budget.tokens, self._call_cost)
        alone = [[i] for i, ids in enumerate(texts) if len(ids) > self._reach.batched]
        for group in [[together[place] for place in places] for places in groups] + alone:
            self.budget.on_pass(len(group))
            scores[group] = self._forward([texts[i] for i in group])
        return scores

    def _forward(self, texts: Sequence[Sequence[int]]) -> Tensor:
        width = max(map(len, texts))
        ids = torch.tensor([[*text, *[self._pad_id] * (width - len(text))] for text in texts])
        mask = torch.tensor([[1] * len(text) + [0] * (width - len(text)) for text in texts])
        device = self.model.device
        output = self.model(input_ids=ids.to(device), attention_mask=mask.to(device))
        logits: Tensor = output.logits[:, 0].float()
        return logits
