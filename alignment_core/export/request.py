"""Request an export and run it in a separate process. This module does not load torch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

from pydantic import BaseModel, ConfigDict, Field

from alignment_core.errors import ConfigError
from alignment_core.export.atomic_folder import check_absent
from alignment_core.export.target_names import Target
from alignment_core.processes.module_call import call_module

TARGETS: tuple[str, ...] = get_args(Target)


class Request(BaseModel):
    """The model to export, the target and the destination.

    Attributes:
        store: folder of the artifact store.
        key: key of an `sft` or `optimize` artifact.
        target: the export target.
        place: absolute path of the new folder; None for the Hub.
        repo: `owner/name` on the Hub.
        private: whether a new Hub repository is private.
        quantize: llama.cpp's name of the type of a second, quantized GGUF file; None for none.
        trusted: whether the user trusts the code that the base model brings along.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    store: Path
    key: str
    target: Target
    place: Path | None = None
    repo: str | None = None
    private: bool = False
    quantize: str | None = None
    trusted: bool = False


class Exported(BaseModel):
    """The result of an export.

    Attributes:
        target: the export target.
        key: the artifact's key.
        place: the folder, or the URL on the Hub.
        found: measurements of the parity check; they depend on the target.
        use: commands that serve or load the model.
        notes: hints for the user.
    """

    model_config = ConfigDict(frozen=True)

    target: str
    key: str
    place: str
    found: dict[str, object] = Field(default_factory=dict)
    use: list[str] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)


def export(request: Request) -> Exported:
    """Export in a separate process.

    Raises:
        AlignmentError: the artifact, its base model, the target or the folder is unusable.
    """
    _check_quantize(request)
    if request.target == "hub":
        if request.repo is None:
            raise ConfigError(
                "the Hub target needs a repository", where="--repo", expected="owner/name", do="Add `--repo owner/name`"
            )
        if request.place is not None:
            raise ConfigError("the Hub target does not accept a folder", where="--out", do="Remove `--out`")
    else:
        if request.place is None:
            raise ConfigError("the output folder is missing", where="--out", do="Add `--out` with a new folder")
        if request.repo is not None:
            raise ConfigError(
                "only the Hub target accepts a repository", where="--repo", do="Remove `--repo`, or use `--to hub`"
            )
        check_absent(request.place)
    answer = call_module(
        "alignment_core.export.process", request.model_dump(mode="json"), f"export to {request.target}"
    )
    return Exported.model_validate(answer)


def _check_quantize(request: Request) -> None:
    if request.quantize is None:
        return
    if request.target != "gguf":
        raise ConfigError("only GGUF files are quantized", where="--quantize", do="Remove it, or use `--to gguf`")
    if not re.fullmatch(r"[A-Z0-9_]+", request.quantize):
        raise ConfigError(
            "this is no type of llama.cpp", where="--quantize", got=request.quantize, expected="a name such as Q4_K_M"
        )
