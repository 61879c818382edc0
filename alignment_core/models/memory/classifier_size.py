"""How much memory a sequence classifier takes, measured on fake tensors."""

from __future__ import annotations

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForSequenceClassification, PretrainedConfig

from alignment_core.config import LoadIn
from alignment_core.errors import ModelError, loading_failure
from alignment_core.models.base.layers import keep_layers
from alignment_core.models.base.loading import bare_model, base_dtype
from alignment_core.models.memory.architecture import fake_device
from alignment_core.models.memory.counting import (
    QUANTISED_BYTES,
    AllocationCounter,
    emulate_quantised,
    make_fake,
    weight_bytes,
)
from alignment_core.models.memory.glibc_heap import heap_for


class ClassifierSize:
    """How much memory a classifier takes, measured on fake tensors as in `dry_run`.

    Attributes:
        weights: bytes of its weights.

    Raises:
        ModelError: transformers can build no classifier from the configuration.
    """

    def __init__(self, config: PretrainedConfig, own_code: str | None, load_in: LoadIn, device: torch.device) -> None:
        dtype, where = base_dtype(load_in, device), f"reward.model {config.name_or_path}"
        try:
            with torch.device("meta"):
                model = bare_model(AutoModelForSequenceClassification, config, own_code, dtype=dtype)
        except (OSError, ValueError, KeyError, ImportError) as error:
            reason = loading_failure(error, "reward")
            raise ModelError("the reward model does not load", where=where, got=reason) from error
        model.requires_grad_(False).eval()
        self.weights = weight_bytes(model, load_in)
        # Nothing is kept from layer to layer, so two layers are enough.
        keep_layers(model, config.get_text_config().num_hidden_layers, 2)
        if load_in in QUANTISED_BYTES:
            emulate_quantised(model)
        self._mode, self._device = FakeTensorMode(allow_non_fake_inputs=True), device
        make_fake(model, self._mode, fake_device(device))
        self._model = model

    def reading(self, tokens: int, width: int) -> int:
        """Return the peak bytes of one forward pass of `tokens` tokens, in texts of at most `width` tokens."""
        rows = max(1, round(tokens / width))
        with self._mode, torch.no_grad():
            ids = torch.ones((rows, width), dtype=torch.long, device=fake_device(self._device))
            own = [*self._model.parameters(), *self._model.buffers(), ids]
            with AllocationCounter(own, heap_for(self._device.type)) as counted:
                self._model(input_ids=ids, attention_mask=torch.ones_like(ids))
        peak: int = counted.peak
        return peak
