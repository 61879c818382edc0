"""A reward model that is a model of its own: a sequence classifier with one label, read through its own text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from alignment_core.config import LoadIn
from alignment_core.errors import ModelError
from alignment_core.models.batching import call_cost, least_padding
from alignment_core.models.counting import (
    QUANTISED_BYTES,
    Counted,
    bytes_of_weights,
    keep_layers,
    make_fake,
    stand_for_quantised,
)
from alignment_core.models.heap import heap_of
from alignment_core.models.load import base_dtype, keep_linear4bit_differentiable, quantization
from alignment_core.models.logps import Budget

WHERE = "reward.model"
T = TypeVar("T")


def load_classifier(path: str, *, revision: str | None, load_in: LoadIn, device: torch.device) -> PreTrainedModel:
    """A sequence classifier with one label, frozen and in eval mode, in the precision of the base.

    Raises:
        ModelError: it does not load, has another number of labels, or its head was never trained.
    """
    transformers_logging.disable_progress_bar()
    dtype = base_dtype(load_in, device)
    try:
        config = read_classifier_config(path, revision)
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            path,
            revision=revision,
            config=config,
            dtype=dtype,
            quantization_config=quantization(load_in, dtype),
            device_map={"": device},
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError("the reward model does not load", where=f"{WHERE} {path}", got=first_line) from error
    if missing := sorted(loading["missing_keys"]):
        raise ModelError(
            "the reward model's file lacks weights, which would be random",
            where=f"{WHERE} {path}",
            got=", ".join(missing[:3]),
            do="Choose a model that was trained as a sequence classifier",
        )
    keep_linear4bit_differentiable(model)
    model.requires_grad_(False)
    loaded: PreTrainedModel = model.eval()
    return loaded


def read_classifier_config(path: str, revision: str | None) -> PretrainedConfig:
    """
    Raises:
        ModelError: it does not load, or has another number of labels.
    """
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(path, revision=revision)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError("the reward model's configuration does not load", where=WHERE, got=error) from error
    if config.num_labels != 1:
        raise ModelError("the reward model has more than one label", where=WHERE, got=config.num_labels, expected=1)
    return config


class TextReward(Generic[T]):
    """The reward role on another model: all (`T`) is told in that model's tokens and read by its own pooling.

    transformers pools causal models at the last token that is not the configuration's padding, encoders at their first.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        told: Callable[[T], Sequence[int]],
        pad_id: int,
        budget: Budget,
    ) -> None:
        """
        Args:
            model: from `load_classifier`.
            told: what is to be scored, such as a sequence of the policy's, in the model's own tokens.
            pad_id: pads where the model's configuration names no token.
            budget: tokens, padding included, in one pass.
        """
        self.model, self.told, self.budget = model, told, budget
        config = model.config.get_text_config()
        if config.pad_token_id is None:
            config.pad_token_id = pad_id
        self._pad_id: int = config.pad_token_id
        self._call_cost = call_cost(model)

    def scores(self, sequences: Sequence[T]) -> Tensor:
        """Score of each sequence's text, shape (sequences,), float32, without gradient."""
        texts = [self.told(sequence) for sequence in sequences]
        with torch.no_grad():
            return self.budget.fit(lambda: self._in_parts(texts))

    def _in_parts(self, texts: Sequence[Sequence[int]]) -> Tensor:
        scores = torch.empty(len(texts), dtype=torch.float32, device=self.model.device)
        for group in least_padding([len(ids) for ids in texts], self.budget.tokens, self._call_cost):
            self.budget.on_pass()
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


class ClassifierSize:
    """How much memory a classifier takes, found as `dry_run` does it: on tensors without content.

    Attributes:
        weights: bytes of its weights.
    """

    def __init__(self, config: PretrainedConfig, load_in: LoadIn, device: torch.device) -> None:
        with torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(config, dtype=base_dtype(load_in, device))
        model.requires_grad_(False).eval()
        self.weights = bytes_of_weights(model, load_in)
        # Nothing is kept from layer to layer, so that two of them tell.
        keep_layers(model, config.get_text_config().num_hidden_layers, 2)
        if load_in in QUANTISED_BYTES:
            stand_for_quantised(model)
        self._mode, self._device = FakeTensorMode(allow_non_fake_inputs=True), device
        make_fake(model, self._mode, device)
        self._model = model

    def reading(self, tokens: int, width: int) -> int:
        """Peak bytes of one forward pass of so many tokens, none of its texts longer than `width`."""
        rows = max(1, round(tokens / width))
        with self._mode, torch.no_grad():
            ids = torch.ones((rows, width), dtype=torch.long, device=self._device)
            own = [*self._model.parameters(), *self._model.buffers(), ids]
            with Counted(own, heap_of(self._device.type)) as counted:
                self._model(input_ids=ids, attention_mask=torch.ones_like(ids))
        peak: int = counted.peak
        return peak
