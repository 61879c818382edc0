"""Target `hub`: the adapter with its model card in a repository of the Hugging Face hub."""

from __future__ import annotations

import json
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from alignment_core.errors import ConfigError
from alignment_core.export import adapter, card
from alignment_core.export.exporting import Exported
from alignment_core.export.origin import Origin


def push(origin: Origin, folder: Path, repo: str, *, private: bool) -> Exported:
    """Write the adapter into `folder`, and send it in one commit to a repository, which is made where it is missing.

    The token is the one of the hub's own client: `HF_TOKEN`, or what `hf auth login` keeps.

    Raises:
        ConfigError: no token, no such name, no right to write there, or the hub does not answer.
    """
    if get_token() is None:
        raise ConfigError("the hub needs a token", where="HF_TOKEN", do="Set it, or run `hf auth login`")
    adapter.write(origin, folder)
    notes = _without_local_base(origin, folder)
    card.write(origin, folder, "hub", repo)
    api = HfApi()
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        commit = api.upload_folder(repo_id=repo, folder_path=folder, commit_message=f"Adapter {origin.artifact.key}")
    except (HfHubHTTPError, HFValidationError) as error:
        said = str(error).strip().splitlines()[0]
        raise ConfigError("the hub does not take the adapter", where=f"--repo {repo}", got=said) from error
    except Exception as error:  # no network, in the words of whichever HTTP library the hub's client uses
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ConfigError("the hub cannot be reached", where=f"--repo {repo}", got=reason) from error
    use = [f'AutoPeftModelForCausalLM.from_pretrained("{repo}")']
    return Exported(
        target="hub", key=origin.artifact.key, place=str(commit.repo_url), found={"commit": commit.oid}, use=use,
        notes=notes,
    )  # fmt: skip


def _without_local_base(origin: Origin, folder: Path) -> list[str]:
    """Name a base that is a folder here by its name alone: where it lies on this machine is nobody's business."""
    if not origin.base_is_local:
        return []
    name = Path(origin.base).name
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text(encoding="utf-8")) | {"base_model_name_or_path": name}
    file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return [f"The base model {name} is a folder of this machine: whoever loads the adapter needs it, too."]
