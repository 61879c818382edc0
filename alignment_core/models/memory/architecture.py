"""What decides the memory of a stage: the architecture, and the forward passes that the stage makes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PretrainedConfig

from alignment_core.config import LoadIn, LoraConfig, Moments
from alignment_core.models.passes.reach import EVERY_LENGTH, Reach
from alignment_core.plugin_api import TokenSequence


def fake_device(device: torch.device) -> torch.device:
    """Return the device of the fake tensors of a plan for `device`.

    Without CUDA, fake tensors on `cuda` have no backward. Those of the CPU take its place: an operation gives the same
    shapes on both.
    """
    return device if device.type != "cuda" or torch.cuda.is_available() else torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward pass.

    Attributes:
        role: the role that runs.
        sequences: the sequences that it reads.
        tokens: tokens in the pass, padding included; a shared prompt counts once.
        head: whether a scalar head reads the states, instead of the vocabulary head.
        hidden: whether the states themselves are returned.
    """

    role: str
    sequences: tuple[TokenSequence, ...]
    tokens: int
    head: bool = False
    hidden: bool = False


@dataclass(frozen=True, slots=True)
class Architecture:
    """Everything about the models that determines the memory of a stage.

    Attributes:
        config: the model's configuration.
        load_in: precision of the frozen base model.
        lora: shape of the adapters.
        adapters: roles that have an adapter.
        heads: roles that have a scalar head.
        trained: roles that are trained.
        snapshots: roles that are snapshots of the policy, which are saved in checkpoints.
        parameters: number of trained weights that belong to no role.
        own_code: digest of the model's own code that may run; None: none may.
        external_code: the same of the external reward model.
        device: the device of the stage. It may be a card that this machine does not have.
        packs: whether sequences are packed into one row (`packing.enable_packing`).
        adamw: precision of AdamW's moments.
        external_reward: configuration of a reward model that is a separate model; None if there is none.
        reach: up to which length sequences share a pass (`Roles.reach`).
    """

    config: PretrainedConfig
    load_in: LoadIn
    lora: LoraConfig
    adapters: tuple[str, ...]
    heads: tuple[str, ...]
    trained: tuple[str, ...]
    device: torch.device
    packs: bool = True
    external_reward: PretrainedConfig | None = None
    adamw: Moments = "32bit"
    reach: Reach = EVERY_LENGTH
    snapshots: tuple[str, ...] = ()
    parameters: int = 0
    own_code: str | None = None
    external_code: str | None = None


@dataclass(frozen=True, slots=True)
class Footprint:
    """Memory that a stage holds throughout, in bytes, and the counts behind it.

    Attributes:
        base: the frozen base model.
        loading: extra bytes while the base model is loaded.
        adapters: adapters, scalar heads and other trained weights.
        training: gradients and AdamW's two moments of the trained roles.
        parameters: number of weights of the base model.
        trainable: number of trained weights.
        cache_per_token: keys and values of one token in all layers.
        external_reward: a reward model that is a separate model.
        snapshots: those of the adapters that are snapshots of the policy.
    """

    base: int
    loading: int
    adapters: int
    training: int
    parameters: int
    trainable: int
    cache_per_token: int
    external_reward: int = 0
    snapshots: int = 0
