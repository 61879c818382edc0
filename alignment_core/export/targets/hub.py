"""Target `hub`: the adapter with its model card in a repository on the Hugging Face Hub."""

from __future__ import annotations

import json
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from alignment_core.errors import ConfigError
from alignment_core.export import model_card
from alignment_core.export.request import Exported
from alignment_core.export.targets import adapter
from alignment_core.inference.trained_model import TrainedModel


def push(origin: TrainedModel, folder: Path, repo: str, *, private: bool) -> Exported:
    """Write the adapter to `folder` and push it to a Hub repository in one commit. A missing repository is created.

    The token is that of the Hub client: `HF_TOKEN`, or the one stored by `hf auth login`.

    Raises:
        ConfigError: there is no token, the name is invalid, access is denied, or the Hub cannot be reached.
    """
    if get_token() is None:
        raise ConfigError("the Hub needs a token", where="HF_TOKEN", do="Set HF_TOKEN, or run `hf auth login`")
    adapter.write(origin, folder)
    notes = _without_local_base(origin, folder)
    model_card.write(origin, folder, "hub", repo)
    api = HfApi()
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        commit = api.upload_folder(repo_id=repo, folder_path=folder, commit_message=f"Adapter {origin.artifact.key}")
    except (HfHubHTTPError, HFValidationError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError("the Hub rejected the adapter", where=f"--repo {repo}", got=reason) from error
    except Exception as error:  # no network: the exception depends on the HTTP library of the Hub client
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ConfigError("the Hub cannot be reached", where=f"--repo {repo}", got=reason) from error
    use = [f'AutoPeftModelForCausalLM.from_pretrained("{repo}")']
    return Exported(
        target="hub", key=origin.artifact.key, place=str(commit.repo_url), found={"commit": commit.oid}, use=use,
        notes=notes,
    )  # fmt: skip


def _without_local_base(origin: TrainedModel, folder: Path) -> list[str]:
    """Replace the path of a local base model by its name, so that no local path is published. Return notes."""
    if not origin.base_is_local:
        return []
    name = Path(origin.base).name
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text(encoding="utf-8")) | {"base_model_name_or_path": name}
    file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return [f"The base model {name} is a local folder. Anyone who loads the adapter also needs this folder."]
