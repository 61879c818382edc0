"""Whether a saved reward model loads in plain peft, as a sequence classifier of transformers."""

from __future__ import annotations

import copy

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel


def not_in_plain_peft(model: PreTrainedModel) -> str | None:
    """Return why a reward model on this base loads only here; None if plain peft loads it.

    A saved reward model is a classifier with a head named `score`, which reads the last token. So are those of most
    decoders in transformers.
    """
    name = f"a reward model on {type(model).__name__}"
    own = not type(model).__module__.startswith("transformers.")  # a class that the model brought along
    if own or type(model.config) not in AutoModelForSequenceClassification._model_mapping:
        return f"{name} loads only here, because transformers has no classifier of this architecture"
    config = copy.deepcopy(model.config)
    config.num_labels = 1
    with torch.device("meta"):
        head = getattr(AutoModelForSequenceClassification.from_config(config, trust_remote_code=False), "score", None)
    if not isinstance(head, nn.Linear) or head.bias is not None:
        return f"{name} loads only here, because the head of its classifier in transformers is another"
    return None
