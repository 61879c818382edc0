"""Create, load, copy and save the adapters on one base model. Files are standard PEFT folders."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from alignment_core.config import LoraConfig
from alignment_core.errors import AlignmentError, ModelError, ran_out_of_memory
from alignment_core.models.base.saving import save_tensors
from alignment_core.models.passes.lora import use_fast_lora
from alignment_core.models.roles.adapter_patterns import check_patterns
from alignment_core.models.roles.targets import fit_targets, refused_by_peft, without_adapter

ADAPTER = "adapter_model.safetensors"
SCORE_KEY = "base_model.model.score.weight"


class Adapters:
    """Named adapters in the linear layers of a base model. `Roles` decides which of them is active.

    Attributes:
        layers: the linear layers that carry adapters.
    """

    def __init__(self, model: PreTrainedModel, path: str, revision: str | None) -> None:
        """
        Args:
            model: the loaded base model.
            path: its folder or hub id, written into every saved adapter.
            revision: its hub commit, also written into every saved adapter.
        """
        self.model = model
        self.path, self.revision = path, revision
        self.layers: list[BaseTunerLayer] = []
        self._peft: PeftModel | None = None

    def add_new(self, name: str, lora: LoraConfig, seed: int) -> None:
        """Add a new adapter. B is zero, so the model's output does not change.

        Raises:
            ConfigError: a target module does not exist, or peft cannot adapt it.
        """
        torch.manual_seed(seed)
        config = self._peft_config(lora)
        fit_targets(self.model, config)
        try:
            self._add(name, config)
        except ValueError as error:
            raise refused_by_peft(error) from error

    def left_out(self) -> str | None:
        """Return a sentence about the matrices that no adapter trains; None if there are none."""
        return without_adapter(self.model)

    def add_saved(self, name: str, folder: Path) -> Tensor | None:
        """Load an adapter from its folder and return the weight of its scalar head, if it has one.

        Raises:
            ModelError: it was made for another base model, or changes its output head.
        """
        weights = self._add_shape(name, folder)
        score: Tensor | None = weights.pop(SCORE_KEY, None)
        self._load(name, weights, str(folder))
        return score

    def check_saved(self, folder: Path) -> None:
        """Check that a saved adapter fits this base model, which may be without weights (on the meta device).

        Raises:
            ModelError: as for `add_saved`.
        """
        self._check("check", self._add_shape("check", folder), str(folder))

    def _add_shape(self, name: str, folder: Path) -> dict[str, Tensor]:
        """Add an adapter with the shape of a saved one. Return the saved weights."""
        try:
            config = PeftLoraConfig.from_pretrained(str(folder))
            config.modules_to_save, config.inference_mode, config.task_type = None, False, "CAUSAL_LM"
            config.base_model_name_or_path = self.model.name_or_path or None  # peft warns if the file names another
            check_patterns(config, (name for name, _ in self.model.named_modules()), str(folder))
            self._add(name, config)
        except AlignmentError:
            raise
        except Exception as error:  # no module has one of the adapter's names, or peft takes a field for what it is not
            if ran_out_of_memory(error):
                raise
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            raise _misfit(str(folder), kind + str(error).partition("\n")[0]) from error
        if isinstance(self.model.get_output_embeddings(), BaseTunerLayer):
            raise ModelError(
                "the adapter changes the model's output head, which every role shares",
                where=str(folder),
                do="Merge it into its base model with peft's `merge_and_unload`, and set `model.base` to the result",
            )
        try:
            weights: dict[str, Tensor] = load_file(folder / ADAPTER)
        except SafetensorError as error:
            raise _misfit(str(folder), str(error)) from error
        return weights

    def add_copy(self, name: str, of: str) -> None:
        """Add an adapter that starts with the weights of another."""
        assert self._peft is not None
        self._add(name, self._peft.peft_config[of])
        self._load(name, self.weights(of), f"adapter {of}")

    def weights(self, name: str) -> dict[str, Tensor]:
        """Return the weights of one adapter by their names in a PEFT file."""
        weights: dict[str, Tensor] = get_peft_model_state_dict(
            self._peft, adapter_name=name, save_embedding_layers=False
        )
        return weights

    def parameters(self, names: Sequence[str]) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the weights of these adapters, named by kind and adapter."""
        for layer in self.layers:
            for kind in dict.fromkeys(layer.adapter_layer_names):  # DoRA adds its own a second time
                for name, module in getattr(layer, kind).items():
                    if name in names:
                        found = [module] if isinstance(module, nn.Parameter) else module.parameters()
                        yield from ((f"{kind}.{name}", parameter) for parameter in found)

    def save(self, name: str, folder: Path, score: Tensor | None) -> None:
        """Write a standard PEFT folder in safetensors. With a scalar head, it is a one-label sequence classifier."""
        assert self._peft is not None
        weights = self.weights(name)
        config = PeftLoraConfig(**self._peft.peft_config[name].to_dict())
        config.inference_mode = True
        for kind in ("target_modules", "target_parameters"):
            if isinstance(targets := getattr(config, kind), set):
                setattr(config, kind, sorted(targets))
        if score is not None:
            weights = weights | {SCORE_KEY: score}
            config.task_type, config.modules_to_save = "SEQ_CLS", ["score"]
        folder.mkdir(parents=True, exist_ok=True)
        save_tensors(weights, folder / ADAPTER)
        config.save_pretrained(str(folder))

    def _add(self, name: str, config: PeftLoraConfig) -> None:
        with warnings.catch_warnings():
            # peft reads a property of transformers 5.2x by a deprecated name.
            warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
            # peft looks for the pattern of experts only among modules, and then uses it all the same.
            warnings.filterwarnings("ignore", ".*(rank|alpha)_pattern keys did not match", RuntimeWarning)
            if self._peft is None:
                self._peft = get_peft_model(self.model, config, adapter_name=name)
            else:
                self._peft.add_adapter(name, config)
        self.layers = [module for module in self.model.modules() if isinstance(module, BaseTunerLayer)]
        for layer in self.layers:
            use_fast_lora(layer)
        # A new adapter starts in training mode, with dropout and gradients enabled.
        self.model.eval().requires_grad_(False)

    def _load(self, name: str, weights: dict[str, Tensor], origin: str) -> None:
        # Not with peft's own function: it renames weights of some architectures, and then skips those it does not find.
        with torch.no_grad():
            for key, weight in self._check(name, weights, origin).items():
                weight.copy_(weights[key])

    def _check(self, name: str, weights: Mapping[str, Tensor], origin: str) -> dict[str, Tensor]:
        """Return the adapter's own weights, which have the names and shapes of `weights`."""
        present = self.weights(name)
        differing = {key for key in present.keys() | weights.keys() if not _same_shape(key, present, weights)}
        if differing:
            count = "1 weight" if len(differing) == 1 else f"{len(differing)} weights"
            raise _misfit(origin, f"{count} missing, unknown or of a different shape, such as {min(differing)}")
        return present

    def _peft_config(self, lora: LoraConfig) -> PeftLoraConfig:
        return PeftLoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=lora.target_modules,
            use_rslora=lora.rslora,
            use_dora=lora.dora,
            fan_in_fan_out=any(isinstance(module, Conv1D) for module in self.model.modules()),  # GPT-2
            task_type="CAUSAL_LM",
            base_model_name_or_path=self.path,
            revision=self.revision,
        )


def _misfit(origin: str, got: str) -> ModelError:
    return ModelError(
        "the adapter does not fit the base model",
        where=origin,
        got=got,
        do="Use the adapter with the base model that it was trained on",
    )


def _same_shape(name: str, one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return name in one and name in other and one[name].shape == other[name].shape
