"""The side of an export that its caller sees: a name to resolve, a process to wait for, a folder in the end."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from alignment_core.errors import ConfigError
from alignment_core.export.folder import refuse_existing
from alignment_core.own_process import ask

Target = Literal["merged", "adapter", "gguf", "ollama", "vllm", "hub"]
TARGETS: tuple[str, ...] = get_args(Target)


class Request(BaseModel):
    """What shall be exported, and where to.

    Attributes:
        store: folder of the artifact store.
        key: key of an `sft` or `optimize` artifact.
        target: for whom.
        place: the new folder, absolute; None for the hub.
        repo: `owner/name` on the hub.
        private: whether a repository that is made there is private.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    store: Path
    key: str
    target: Target
    place: Path | None = None
    repo: str | None = None
    private: bool = False


class Exported(BaseModel):
    """What came of it.

    Attributes:
        target: as asked for.
        key: the artifact's key.
        place: the folder, or the address on the hub.
        found: what was measured and compared; depends on the target.
        use: commands that start or load it.
        notes: what a person should know.
    """

    model_config = ConfigDict(frozen=True)

    target: str
    key: str
    place: str
    found: dict[str, object] = Field(default_factory=dict)
    use: list[str] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)


def export(request: Request) -> Exported:
    """Export in a process of its own.

    Raises:
        AlignmentError: whatever is wrong with the artifact, its base, the target or the place.
    """
    if request.target == "hub":
        if request.repo is None:
            raise ConfigError("the hub needs a repository", where="--repo", expected="owner/name")
        if request.place is not None:
            raise ConfigError("the hub takes no folder", where="--out", do="Leave `--out` out")
    else:
        if request.place is None:
            raise ConfigError("a folder is missing", where="--out", do="Name a new one")
        if request.repo is not None:
            raise ConfigError("only the hub takes a repository", where="--repo", do="Use `--to hub`")
        refuse_existing(request.place)
    answer = ask("alignment_core.export.child", request.model_dump(mode="json"), f"export to {request.target}")
    return Exported.model_validate(answer)
