"""The identity of a model by its content, which enters the cache keys. Loads neither torch nor weights."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from alignment_core.artifacts.digest import tree_digest
from alignment_core.config.places import expanded
from alignment_core.errors import ModelError
from alignment_core.models.base import unusable
from alignment_core.own_code import NAMING, OWN_CODE, check_classes, code_digest
from alignment_core.texts import damaged, read_json_of_model

WEIGHTS = ("config.json", "*.safetensors", "*.safetensors.index.json")
# generation_config.json names the stop tokens, so it belongs to the tokenizer's identity.
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
ADAPTER_FILES = "adapter_"
"""How the names of an adapter's files start. Beside the weights of a model, they are not the model's."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
COMMIT = re.compile(r"[0-9a-f]{40}")
HUB_SECONDS = 10
DEFAULT_LABELS = 2
"""Number of labels in a transformers configuration that does not name them."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelIdentity:
    """A model, identified by its content.

    Attributes:
        name: last part of the path or Hub id, for labels.
        path: absolute folder or Hub id to load the model from.
        revision: commit of a Hub model; None for a folder.
        weights: digest of the configuration and the weights, or `owner/name@commit`.
        tokenizer: digest of everything that decides how text becomes tokens and where generation stops, or
            `owner/name@commit`.
        own_code: digest of the code that the model brings along, if it is trusted and the model names a class in it.
    """

    name: str
    path: str
    revision: str | None
    weights: str
    tokenizer: str
    own_code: str | None = None

    def place(self) -> dict[str, Any]:
        """Return what a loader needs, for the inputs of a stage: where the model is, and which code it may run."""
        return {"path": self.path, "revision": self.revision, **self.code()}

    def code(self) -> dict[str, str]:
        """Return the digest of the code that the run trusts, for cache keys. Empty if there is none."""
        return {} if self.own_code is None else {OWN_CODE: self.own_code}


def model_identity(
    path: str, revision: str | None, where: str = "model.base", *, trusted: bool = False
) -> ModelIdentity:
    """Find a model and return its identity.

    Args:
        path: a folder, or a Hub id.
        revision: branch, tag or commit of a Hub model.
        where: the setting that names the model. The `revision` setting is next to it.
        trusted: whether the settings trust the code that the model brings along.

    Raises:
        ModelError: it is neither a folder with a model in safetensors nor a model on the Hub, it may not be read, or
            its code is elsewhere.
    """
    with files_may_be_closed(path, where):
        found = _found(path, revision, where)
        if not trusted:
            return found
        named = {name: read_json(model_file(found, name)) for name in NAMING}
        folder = Path(found.path) if found.revision is None else None
        if not check_classes(named, found.path, where, folder):
            return found
        return replace(found, own_code=code_digest(found.path, found.revision))


@contextmanager
def files_may_be_closed(path: str, where: str) -> Iterator[None]:
    """Turn an error of the file system about a model into one that names the file.

    Args:
        path: the folder or Hub id of the model.
        where: the setting that names the model.

    Raises:
        ModelError: a file or a folder may not be read, or is gone.
    """
    try:
        yield
    except OSError as error:
        raise ModelError(
            "the model cannot be read",
            where=where,
            got=f"{error.filename or path}: {error.strerror or type(error).__name__}",
            do="Check the permissions of the folder and of its files",
        ) from error


def _found(path: str, revision: str | None, where: str) -> ModelIdentity:
    folder = expanded(path)
    if folder.is_dir():
        return _of_folder(folder.resolve(), revision, where)
    if folder.is_file() or not HUB_ID.fullmatch(path):
        raise unusable.path(folder, where)
    return of_hub(path, revision, where)


def check_classifier(model: ModelIdentity, where: str) -> None:
    """Check that a model is a sequence classifier with one label.

    Raises:
        ModelError: it is not, according to its configuration.
    """
    found = read_json(model_file(model, "config.json"))
    kinds, names = found.get("architectures") or [], found.get("id2label")
    if not isinstance(kinds, list) or not isinstance(names, dict | None):
        raise damaged(f"{model.path}/config.json", "`architectures` or `id2label` of another kind")
    labels = found.get("num_labels", DEFAULT_LABELS) if names is None else len(names)
    if not any(str(kind).endswith("ForSequenceClassification") for kind in kinds):
        raise ModelError(
            "the model is not a sequence classifier",
            where=where,
            got=", ".join(map(str, kinds)) or "a config.json without `architectures`",
            expected="an architecture with a name such as LlamaForSequenceClassification",
        )
    if labels != 1:
        raise ModelError(
            "the model has more than one label, so it is unclear which of them is the reward",
            where=where,
            got=f"{labels} labels",
            expected="1 label",
            do="Choose a reward model with a single output",
        )


def has_chat_template(model: ModelIdentity) -> bool:
    """Return whether the model's tokenizer has a chat template in one of the places where transformers looks."""
    if any(model_file(model, name) is not None for name in ("chat_template.jinja", "chat_template.json")):
        return True
    return "chat_template" in read_json(model_file(model, "tokenizer_config.json"))


def model_file(model: ModelIdentity, name: str) -> Path | None:
    """Return a file of the model, or None if it does not exist or cannot be downloaded."""
    if model.revision is None:
        path = Path(model.path) / name
        return path if path.is_file() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(hf_hub_download(model.path, name, revision=model.revision))
    except EntryNotFoundError:
        return None
    except Exception as error:  # no network; the type depends on the HTTP library of the Hub's client
        logger.warning("%s of %s cannot be downloaded: %s", name, model.path, error)
        return None


def read_json(file: Path | None) -> dict[str, Any]:
    """Return the fields of a JSON file; none if it is missing.

    Raises:
        ModelError: it is no JSON object, or cannot be read.
    """
    return {} if file is None else read_json_of_model(file)


def _of_folder(folder: Path, revision: str | None, where: str) -> ModelIdentity:
    if revision is not None:
        raise ModelError("a folder has no revisions", where=_revision(where), got=revision, do="Remove `revision`")
    if not (folder / "config.json").is_file() or not any(_matching(folder, ("*.safetensors",))):
        raise unusable.folder(folder, where)
    return ModelIdentity(
        name=folder.name,
        path=str(folder),
        revision=None,
        weights=tree_digest(folder, _matching(folder, WEIGHTS)),
        tokenizer=tree_digest(folder, _matching(folder, TOKENIZER)),
    )


def _revision(where: str) -> str:
    return f"{where.rpartition('.')[0]}.revision"


def _matching(folder: Path, patterns: tuple[str, ...]) -> Iterator[Path]:
    found = (path for pattern in patterns for path in folder.glob(pattern) if path.is_file())
    return (path for path in found if not path.name.startswith(ADAPTER_FILES))


def of_hub(repo: str, revision: str | None, where: str, marker: str = "config.json") -> ModelIdentity:
    """Return the identity of a model or an adapter on the Hub, which has the file `marker`.

    Raises:
        ModelError: there is none, or the Hub cannot be reached.
    """
    commit = revision if revision and COMMIT.fullmatch(revision) else _commit(repo, revision, where, marker)
    address = f"{repo}@{commit}"
    return ModelIdentity(repo.rsplit("/", 1)[-1], repo, commit, weights=address, tokenizer=address)


def _commit(repo: str, revision: str | None, where: str, marker: str) -> str:
    """Return the commit of a branch or tag on the Hub; without a network, the one that was downloaded last."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        info = HfApi().model_info(repo, revision=revision, timeout=HUB_SECONDS)
    except GatedRepoError as error:
        raise ModelError(
            "the Hub asks you to accept this model's license",
            where=where,
            got=repo,
            do=f"Accept it at https://huggingface.co/{repo}, then run `hf auth login`",
        ) from error
    except RevisionNotFoundError as error:
        problem = "the Hub has no such revision"
        raise ModelError(problem, where=_revision(where), got=f"{repo}@{revision}") from error
    except RepositoryNotFoundError as error:
        raise _unknown(repo, "this is neither a local folder nor a model on the Hub", where) from error
    except Exception as error:  # no network; the type depends on the HTTP library of the Hub's client
        return _downloaded_commit(repo, revision, where, marker, error)
    names = [file.rfilename for file in info.siblings or ()]
    weights = [name for name in names if name.endswith(".safetensors")]
    if marker == "config.json":
        weights = [name for name in weights if not name.startswith(ADAPTER_FILES)]
    if info.sha is None or not weights or marker not in names:
        raise unusable.repository(repo, names, where)
    return info.sha


def _downloaded_commit(repo: str, revision: str | None, where: str, marker: str, error: Exception) -> str:
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(repo, marker, revision=revision)
    if not isinstance(config, str):
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        problem = f"this is not a local folder or a downloaded model, and the Hub cannot be reached ({reason})"
        raise _unknown(repo, problem, where) from error
    commit = Path(config).parent.name
    logger.warning("the Hub cannot be reached: using %s at the downloaded commit %s", repo, commit)
    return commit


def _unknown(repo: str, problem: str, where: str) -> ModelError:
    return ModelError(
        problem,
        where=where,
        got=repo,
        expected="a model folder in Hugging Face format, or a Hub id",
        do="Check the spelling and the working directory. For a private model, run `hf auth login` first",
    )
