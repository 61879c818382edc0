"""Which model this is, told from its content: what enters the cache keys in its stead. Loads no torch, no weights."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from alignment_core.artifacts.digest import tree_digest
from alignment_core.config import ModelConfig
from alignment_core.errors import ModelError

WEIGHTS = ("config.json", "*.safetensors", "*.safetensors.index.json")
# generation_config.json names the tokens on which generation stops, so it decides how text becomes tokens.
TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
    "generation_config.json",
)
PICKLED = ("*.bin", "*.pt", "*.pth")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
COMMIT = re.compile(r"[0-9a-f]{40}")
HUB_SECONDS = 10

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelIdentity:
    """A base model, told apart by its content.

    Attributes:
        name: last part of the path or hub id, for labels.
        path: absolute folder or hub id, to load it from.
        revision: commit of a hub model; None for a folder.
        weights: digest of the configuration and the weights, or `owner/name@commit`.
        tokenizer: digest of all that decides how text becomes tokens and where generation stops.
    """

    name: str
    path: str
    revision: str | None
    weights: str
    tokenizer: str


def model_identity(config: ModelConfig) -> ModelIdentity:
    """Find the model and tell its content.

    Raises:
        ModelError: it is neither a folder with a model in safetensors nor a model of the hub.
    """
    folder = Path(config.base).expanduser()
    if folder.is_dir():
        return _of_folder(folder.resolve(), config)
    if not HUB_ID.fullmatch(config.base):
        raise ModelError(
            "there is no such folder",
            where="model.base",
            got=config.base,
            expected="a folder of a model in Hugging Face format, or a hub id such as Qwen/Qwen2.5-0.5B-Instruct",
        )
    return _of_hub(config.base, config.revision)


def _of_folder(folder: Path, config: ModelConfig) -> ModelIdentity:
    if config.revision is not None:
        raise ModelError(
            "a folder has no revisions", where="model.revision", got=config.revision, do="Leave `revision` out"
        )
    if not (folder / "config.json").is_file():
        raise ModelError(
            "the folder holds no model: config.json is missing",
            where="model.base",
            got=folder,
            do="Name the folder that `save_pretrained` wrote",
        )
    if not any(folder.glob("*.safetensors")):
        raise _no_safetensors(str(folder), pickled=any(_matching(folder, PICKLED)))
    return ModelIdentity(
        name=folder.name,
        path=str(folder),
        revision=None,
        weights=tree_digest(folder, _matching(folder, WEIGHTS)),
        tokenizer=tree_digest(folder, _matching(folder, TOKENIZER)),
    )


def _matching(folder: Path, patterns: tuple[str, ...]) -> Iterator[Path]:
    return (path for pattern in patterns for path in folder.glob(pattern) if path.is_file())


def _no_safetensors(place: str, *, pickled: bool) -> ModelError:
    return ModelError(
        "the weights are pickled, which can run code" if pickled else "the model has no weights",
        where="model.base",
        got=place,
        expected="*.safetensors",
        do="Load it once with transformers and save it with `save_pretrained`" if pickled else None,
    )


def _of_hub(repo: str, revision: str | None) -> ModelIdentity:
    commit = revision if revision and COMMIT.fullmatch(revision) else _commit(repo, revision)
    address = f"{repo}@{commit}"
    return ModelIdentity(repo.rsplit("/", 1)[-1], repo, commit, weights=address, tokenizer=address)


def _commit(repo: str, revision: str | None) -> str:
    """The commit that a branch or tag of the hub stands for; without a network, the one that was downloaded last."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        info = HfApi().model_info(repo, revision=revision, timeout=HUB_SECONDS)
    except GatedRepoError as error:
        raise ModelError(
            "the hub asks you to accept this model's licence",
            where="model.base",
            got=repo,
            do=f"Accept it at https://huggingface.co/{repo}, then run `hf auth login`",
        ) from error
    except RevisionNotFoundError as error:
        raise ModelError("the hub knows no such revision", where="model.revision", got=f"{repo}@{revision}") from error
    except RepositoryNotFoundError as error:
        raise _unknown(repo, "it is neither a folder here nor a model of the hub") from error
    except Exception as error:  # no network, in the words of whichever HTTP library the hub's client uses
        return _downloaded_commit(repo, revision, error)
    names = [file.rfilename for file in info.siblings or ()]
    if info.sha is None or not any(name.endswith(".safetensors") for name in names):
        raise _no_safetensors(repo, pickled=any(name.endswith((".bin", ".pt", ".pth")) for name in names))
    return info.sha


def _downloaded_commit(repo: str, revision: str | None, error: Exception) -> str:
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(repo, "config.json", revision=revision)
    if not isinstance(config, str):
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        problem = f"it is no folder here, was not downloaded before, and the hub cannot be reached ({reason})"
        raise _unknown(repo, problem) from error
    commit = Path(config).parent.name
    logger.warning("the hub cannot be reached; using %s at the downloaded commit %s", repo, commit)
    return commit


def _unknown(repo: str, problem: str) -> ModelError:
    return ModelError(
        problem,
        where="model.base",
        got=repo,
        expected="a folder of a model in Hugging Face format, or a hub id",
        do="Check the spelling and the working directory; a private model needs `hf auth login`",
    )
