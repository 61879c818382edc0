"""Load the frozen base model that all roles share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, PretrainedConfig, PreTrainedModel
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.utils import logging as transformers_logging

from alignment_core.config import LoadIn
from alignment_core.errors import AlignmentError, ModelError, loading_failure, ran_out_of_memory
from alignment_core.models.base.resizing import add_rows
from alignment_core.models.base.unusable import ADAPTER_CONFIG
from alignment_core.own_code import code_may_fail, may_run, refuse_kernels

SHOWN = 300
"""Number of characters of a library's error that are shown."""
FAST_FLOAT16 = (7, 0)
"""The compute capability from which NVIDIA's GPUs multiply float16 matrices several times faster than float32."""
NO_ADAPTER = "no-adapter"
"""A subfolder that does not exist, where transformers then looks for an adapter to load with the model."""


def choose_device(device: str) -> torch.device:
    """Return the device of this name. `auto` is the GPU if there is one, else the CPU.

    Raises:
        ModelError: a GPU was requested and there is none, or there is no such device.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ModelError("no CUDA device is visible", where="device", got=device, do="Set `device` to `cpu` or `auto`")
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ModelError("unknown device", where="device", got=device, expected="auto, cpu, cuda or cuda:N") from error
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ModelError(
            "there is no such GPU",
            where="device",
            got=device,
            expected=f"cuda:0 to cuda:{torch.cuda.device_count() - 1}",
            do="GPUs are counted from 0, and only those in CUDA_VISIBLE_DEVICES if it is set",
        )
    return found


def load_base(
    path: str,
    *,
    revision: str | None,
    load_in: LoadIn,
    device: torch.device,
    rows: int | None = None,
    own_code: str | None = None,
) -> PreTrainedModel:
    """Load the base model, frozen and in eval mode, without an adapter that may lie beside it.

    Arithmetic and modules that are not quantized (embeddings, norms, head) use `base_dtype`.

    Args:
        path: its folder or hub id.
        revision: its hub commit; None for a folder.
        load_in: its precision.
        device: where to load it.
        rows: number of rows that its embedding and its output head are extended to; None: they are as saved.
        own_code: digest of its own code that may run; None: none may.

    Raises:
        ModelError: the folder or hub id does not load, or its files lack weights.
    """
    transformers_logging.disable_progress_bar()
    dtype = base_dtype(load_in, device)
    try:
        config = read_config(path, revision, own_code)
        with code_may_fail(path, own_code, "model"), config_may_be_wrong():
            model, loading = AutoModelForCausalLM.from_pretrained(
                path,
                revision=revision,
                config=config,
                dtype=dtype,
                quantization_config=None if is_quantized(config) else quantization(load_in, dtype),
                device_map={"": device},
                use_safetensors=True,
                output_loading_info=True,
                trust_remote_code=may_run(path, revision, own_code),
                **_without_adapter(path, revision),
            )
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        reason = loading_failure(error)
        raise ModelError("the base model does not load", where=f"model.base {path}", got=reason) from error
    if missing := sorted(loading["missing_keys"]):
        raise ModelError(
            "the files of the base model lack weights, which would be initialized at random",
            where=f"model.base {path}",
            got=f"{len(missing)} missing, such as {', '.join(missing[:3])}",
            do="Download the model again. If it is complete, its config.json is that of another model",
        )
    _compute_in(model, dtype)
    keep_linear4bit_differentiable(model)
    if rows is not None:
        add_rows(model, rows)
    model.requires_grad_(False)
    model.eval()
    return model


def read_config(path: str, revision: str | None, own_code: str | None = None) -> PretrainedConfig:
    """Return the configuration of a model.

    Args:
        path: its folder or hub id.
        revision: its hub commit; None for a folder.
        own_code: digest of its own code that may run; None: none may.

    Raises:
        OSError, ValueError, KeyError: it does not load; see `loading_failure`.
        ModelError: its own code has changed, or it names code in another repository.
    """
    config: PretrainedConfig
    with code_may_fail(path, own_code, "model"), config_may_be_wrong():
        config = AutoConfig.from_pretrained(
            path, revision=revision, trust_remote_code=may_run(path, revision, own_code)
        )
    for part in (config, *(getattr(config, name, None) for name in config.sub_configs)):
        refuse_kernels(vars(part) if isinstance(part, PretrainedConfig) else {}, path, path)
    config.name_or_path = path  # where `bare_model` looks for its code, whatever the file says
    return config


def bare_model(kind: Any, config: PretrainedConfig, own_code: str | None, **options: Any) -> PreTrainedModel:
    """Build a model from a configuration of `read_config`, without its weights.

    Args:
        kind: an `Auto` class of transformers.
        config: the configuration.
        own_code: digest of the model's own code that may run; None: none may.
        options: further arguments of transformers, such as `dtype`.

    Raises:
        OSError, ValueError, KeyError, ImportError: transformers can build no model from it; see `loading_failure`.
        ModelError: the model's own code failed, or has changed.
    """
    model: PreTrainedModel
    if own_code is None or kind.__name__ not in (getattr(config, "auto_map", None) or {}):
        with config_may_be_wrong():
            model = kind.from_config(config, trust_remote_code=False, **options)
        return model
    path, revision = config.name_or_path, own_code.rpartition("@")[2] if "@" in own_code else None
    may_run(path, revision, own_code)
    # from_config would take the code from the main branch, and knows the class only in the first call of a process.
    with code_may_fail(path, own_code, "model"):
        made = get_class_from_dynamic_module(config.auto_map[kind.__name__], path, revision=revision)
        model = made._from_config(config, **options)
    return model


@contextmanager
def config_may_be_wrong() -> Iterator[None]:
    """Turn whatever transformers raises about a configuration into a ValueError that says it in one line.

    A value of another kind or a size of zero can end in any error, because no architecture checks all of its fields.
    """
    try:
        yield
    except (AlignmentError, OSError, ValueError, KeyError, ImportError, SafetensorError):
        raise
    except Exception as error:
        if ran_out_of_memory(error):
            raise
        raise ValueError(f"{type(error).__name__}: {' '.join(str(error).split())[:SHOWN]}") from error


def weight_types(
    path: str, *, revision: str | None, dtype: torch.dtype, own_code: str | None = None
) -> dict[str, torch.dtype]:
    """Return the type in which transformers keeps each weight of a base model that is read in a 16-bit type.

    Some architectures have weights that are always float32, such as the correction of a router.

    Args:
        path: its folder or hub id.
        revision: its hub commit; None for a folder.
        dtype: the 16-bit type.
        own_code: digest of its own code that may run; None: none may.
    """
    model = AutoModelForCausalLM.from_pretrained(
        path,
        revision=revision,
        dtype=dtype,
        device_map={"": "meta"},
        use_safetensors=True,
        trust_remote_code=may_run(path, revision, own_code),
        **_without_adapter(path, revision),
    )
    return {name: weight.dtype for name, weight in model.state_dict().items()}


def _without_adapter(path: str, revision: str | None) -> dict[str, Any]:
    """Return the arguments with which transformers leaves out an adapter that may lie beside the weights."""
    may_have_adapter = revision is not None or (Path(path) / ADAPTER_CONFIG).is_file()
    return {"adapter_kwargs": {"subfolder": NO_ADAPTER}} if may_have_adapter else {}


def _compute_in(model: nn.Module, dtype: torch.dtype) -> None:
    """Set the dtype of arithmetic with 4-bit weights. A model that was saved in 4 bits brings one of its own."""
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.compute_dtype = dtype


def base_dtype(load_in: LoadIn, device: torch.device) -> torch.dtype:
    """Return the dtype of the arithmetic and of all weights that are not quantized.

    bf16 and fp32 are used as given. A quantized base model computes in bf16 on a GPU that supports it, in float16 on
    one that has only that (NVIDIA's Volta and Turing: V100, T4, RTX 20), else in float32. A GPU that is only planned
    for, because this machine has none, is taken to support bf16.
    """
    if load_in in ("bf16", "fp32"):
        return torch.bfloat16 if load_in == "bf16" else torch.float32
    if device.type != "cuda":
        return torch.float32
    if not torch.cuda.is_available() or torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return torch.float16 if torch.cuda.get_device_capability(device) >= FAST_FLOAT16 else torch.float32


def is_quantized(config: PretrainedConfig) -> bool:
    """Return whether a model was saved with quantized weights. It is then loaded as it is."""
    return getattr(config, "quantization_config", None) is not None


def quantization(load_in: LoadIn, compute: torch.dtype) -> BitsAndBytesConfig | None:
    """Return the bitsandbytes settings for `load_in`; None for bf16 and fp32."""
    if load_in == "nf4":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute,
        )
    return BitsAndBytesConfig(load_in_8bit=True) if load_in == "int8" else None


def keep_linear4bit_differentiable(model: nn.Module) -> None:
    """Stop bitsandbytes from repacking 4-bit weights on CPUs with AVX512-BF16.

    There, the first no-grad forward in eval mode converts every `Linear4bit` to a layout without autograd. From then
    on, adapters below it silently get no gradient. This would affect stages that train and also generate or score.
    """
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
