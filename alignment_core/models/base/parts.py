"""The parts of a loaded model: its body and its head, and how exactly it computes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from bitsandbytes.nn import Linear8bitLt
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from alignment_core.losses.likelihood import HeadShape, head_logits
from alignment_core.models.base.layers import keep_layers

FEW_WORDS = 64


def transformer_body(model: PreTrainedModel) -> Callable[..., Any]:
    """Return the transformer body. It is called like the model, and its output has `last_hidden_state`."""
    body: Any = getattr(model, model.base_model_prefix, None)
    return _LastState(model) if body is None else body


@dataclass(frozen=True)
class _LastState:
    """Replaces the body of a model that does not name one."""

    model: PreTrainedModel

    def __call__(self, **inputs: Any) -> Any:
        states = self.model(**inputs, output_hidden_states=True).hidden_states
        return BaseModelOutput(last_hidden_state=states[-1])


def head_shape(model: PreTrainedModel, temperature: float = 1.0) -> HeadShape:
    """Return what the architecture does to the head's output before the softmax."""
    config = model.config.get_text_config()
    divisor = getattr(config, "logits_scaling", None)  # Granite divides, Cohere multiplies
    scale = 1 / divisor if divisor else getattr(config, "logit_scale", None) or 1.0
    return HeadShape(scale, getattr(config, "final_logit_softcapping", None), temperature)


def separable(model: PreTrainedModel) -> bool:
    """Return whether the logits are the head applied to the last hidden state, with `head_shape`'s scale and cap.

    This is tested by comparing them, because no name in a configuration guarantees it. A model without weights (on the
    meta device) is judged by one with the same configuration but a small vocabulary and no layers.
    """
    if model.device.type == "meta":
        return _separable_by_shape(model)
    head = model.get_output_embeddings()
    if head is None or not isinstance(getattr(head, "weight", None), torch.Tensor):
        return False
    ids = torch.tensor([[0, 1, 2]], device=model.device)
    with torch.no_grad():
        theirs = model(input_ids=ids, use_cache=False).logits[0].float()
        states = transformer_body(model)(input_ids=ids, use_cache=False).last_hidden_state[0]
        if states.shape[-1] != head.weight.shape[-1]:
            return False
        ours = head_logits(states, head.weight, getattr(head, "bias", None), head_shape(model))
    # bf16 rounds to 0.4%. A missing scale or cap differs by much more.
    return torch.allclose(ours, theirs, rtol=0, atol=0.03 * float(theirs.abs().max()))


def rounding(model: PreTrainedModel) -> float:
    """Return how much, relatively, the outputs for the same tokens may differ between two passes by rounding alone.

    bf16 rounds to 0.4%. int8 layers round the inputs of all tokens in a pass together.
    """
    coarse = model.dtype != torch.float32 or any(isinstance(module, Linear8bitLt) for module in model.modules())
    return 0.05 if coarse else 1e-3


def _separable_by_shape(whole: PreTrainedModel) -> bool:
    small = copy.deepcopy(whole.config)
    for part in (small, small.get_text_config()):
        part.vocab_size, part.pad_token_id = FEW_WORDS, 0
    try:
        with torch.device("meta"):
            model = type(whole)(small).float()
        keep_layers(model, small.get_text_config().num_hidden_layers, 0)
        model.to_empty(device="cpu").eval()
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(generator=generator)
            for buffer in model.buffers():
                buffer.fill_(1)
        return separable(model)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, IndexError):
        return True  # true for nearly all; the real model is tested when it is loaded
