"""The Python API: what the commands of `align` do, as functions.

Everything here is exported by `alignment_flows`. Importing this module loads neither torch nor Prefect.
"""

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignment_core.artifacts import PRODUCTION, Artifact, ArtifactStore, catalogue
from alignment_core.artifacts.models import Standing, find_model
from alignment_core.config import PipelineConfig
from alignment_core.config_file import check_config, load_config
from alignment_core.export.request import Exported, Request
from alignment_core.export.request import export as export_model
from alignment_core.export.target_names import Target
from alignment_core.forecast.fit import Fit
from alignment_core.forecast.fit import fit as find_fit
from alignment_core.planning.pipeline import plan_pipeline
from alignment_core.planning.retrain import TooFewVotes, plan_retrain
from alignment_core.registry import load_registry
from alignment_flows.contenders import Contest
from alignment_flows.planned_run import PlannedRun, planned_run
from alignment_flows.serve.local.runs import FinishedRun, run_comparison, run_pipeline, run_retrain, run_sampling
from alignment_flows.serve.local.settings import prepared

if TYPE_CHECKING:
    from alignment_core.inference.loaded_model import LoadedModel
    from alignment_flows.reports.comparison import Comparison

STORE: Path = PipelineConfig.model_fields["store"].default
Changes = Mapping[str, Any] | Sequence[str]


def load_settings(source: str | Path | Mapping[str, Any], changes: Changes = ()) -> PipelineConfig:
    """Return the settings of a run.

    Args:
        source: a YAML file, or a mapping with the same content.
        changes: settings to change, as `{"optimizer.beta": 0.3}` or `["optimizer.beta=0.3"]`.

    Raises:
        ConfigError: the file cannot be read, or a setting is missing, misspelled or out of range.
    """
    if isinstance(source, Mapping):
        return check_config(source, _overrides(changes))
    return load_config(Path(source), _overrides(changes))


def change_settings(settings: PipelineConfig, changes: Changes) -> PipelineConfig:
    """Return a copy of the settings with some of them changed.

    Args:
        settings: the settings. They are not modified.
        changes: as for `load_settings`.

    Raises:
        ConfigError: a setting is misspelled or out of range.
    """
    return check_config(settings.model_dump(mode="json"), _overrides(changes))


def _overrides(changes: Changes) -> list[str]:
    if isinstance(changes, Mapping):
        return [f"{name}={json.dumps(value, default=str)}" for name, value in changes.items()]
    return list(changes)


def plan(settings: PipelineConfig, card: float | None = None) -> PlannedRun:
    """Plan a run: which stages are in the store, and the memory and time of the others. Nothing is built.

    Args:
        settings: the settings of the run.
        card: memory in GiB of a card to plan for, which this machine need not have. None: the device of the settings.

    Raises:
        AlignmentError: a mistake in the settings, the data or the model.
    """
    settings = prepared(settings)
    return planned_run(settings, plan_pipeline(settings, load_registry()), card)


def plan_retraining(settings: PipelineConfig, card: float | None = None) -> PlannedRun | TooFewVotes:
    """Plan a retrain as `plan` does a run, or say that there are too few new votes for one.

    Raises:
        AlignmentError: a mistake in the settings, the data or the model.
    """
    settings = prepared(settings)
    made = plan_retrain(settings, load_registry())
    return made if isinstance(made, TooFewVotes) else planned_run(settings, made, card)


def fit(settings: PipelineConfig, card: float | None = None, models: Sequence[str] = ()) -> Fit:
    """Try settings that need less memory until every stage of a run fits, those that lose least first.

    Args:
        settings: the settings of the run.
        card: memory in GiB of a card to plan for, which this machine need not have. None: the device of the settings.
        models: further base models to try, in this order, if the settings' own does not fit.

    Raises:
        AlignmentError: a mistake in the settings, the data or the model.
    """
    return find_fit(prepared(settings), card, models)


def run(settings: PipelineConfig) -> FinishedRun:
    """Run the pipeline: build every stage that is not in the artifact store.

    The run is recorded by the Prefect server that PREFECT_API_URL names or that `align up` started, otherwise by a
    temporary server. A run that has nothing to do starts no temporary server, and is then not recorded.

    Raises:
        AlignmentError: a mistake in the settings, the data or the model, or a stage that failed.
    """
    return run_pipeline(settings)


def compare(
    settings: PipelineConfig,
    optimizers: Sequence[str] = (),
    changes: Changes = (),
    folder: Path = Path("comparison"),
    *,
    grid: Sequence[str] = (),
    seeds: int = 1,
    stop_losers: bool = False,
) -> "Comparison":
    """Train several contenders on the same SFT model, reward model and data, and write one report.

    A contender is an optimizer, with one combination of the values in the grid. One that fails does not stop the
    others; its row holds the error.

    Args:
        settings: the settings of the runs.
        optimizers: names of installed optimizers. Empty: the one in the settings.
        changes: settings to change for all (`seed`) or for one optimizer (`kto.learning_rate`).
        folder: folder of `report.html` and `report.json`.
        grid: settings with several values, for all optimizers (`optimizer.beta=0.05,0.1`) or for one (`kto.beta=1,2`).
        seeds: number of seeds, from the seed of the settings upwards. The report then has intervals over seeds.
        stop_losers: whether contenders that are clearly worse than the best get no more seeds.

    Raises:
        AlignmentError: a mistake in the settings, found before anything is trained.
    """
    contest = Contest(tuple(optimizers), tuple(_overrides(changes)), tuple(grid), seeds, stop_losers)
    return run_comparison(settings, contest, folder)


def retrain(settings: PipelineConfig) -> FinishedRun | TooFewVotes:
    """Retrain the model in production on the new votes, and promote the result if it passes the gate.

    Raises:
        AlignmentError: a mistake in the settings, the data or the model, or a stage that failed.
    """
    return run_retrain(settings)


def sample(settings: PipelineConfig, model: str | None = None) -> int:
    """Sample several responses to each prompt for ranking, and return the number of prompts that can be ranked.

    Args:
        settings: `sample` sets the number and length of the responses.
        model: an alias or a key. None: the SFT model of these settings.

    Raises:
        AlignmentError: a mistake in the settings, the data or the model, or a stage that failed.
    """
    return run_sampling(settings, model)


def open_artifact(reference: str, store: Path = STORE) -> Artifact:
    """Return an artifact of the store; its `path` is the folder and `manifest()` describes it.

    Args:
        reference: an alias such as `production`, the name of a run for its newest aligned model, a key, a key prefix,
            or `latest` for the newest aligned model.
        store: folder of the artifact store.

    Raises:
        ArtifactError: no artifact, or more than one, matches.
    """
    return catalogue.resolve(ArtifactStore(store), reference).artifact


def load_model(
    reference: str = PRODUCTION, store: Path = STORE, device: str = "auto", *, trust_remote_code: bool = False
) -> "LoadedModel":
    """Load a trained model into this process, for generation. This imports torch.

    Args:
        reference: as for `open_artifact`.
        store: folder of the artifact store.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        trust_remote_code: run the code that the base model brings along. The run that trained it did.

    Raises:
        ConfigError: the base model brings code of its own, and `trust_remote_code` is false.
        ArtifactError: there is no such model, or it is damaged.
        ModelError: the base model is gone, or has changed since the adapter was trained.
    """
    from alignment_core.inference.loaded_model import LoadedModel

    key = find_model(ArtifactStore(store), reference).key
    return LoadedModel.open(Path(store), key, device, trusted=trust_remote_code)


def export(
    reference: str,
    to: Target,
    out: Path | None = None,
    *,
    repo: str | None = None,
    private: bool = False,
    quantize: str | None = None,
    store: Path = STORE,
    trust_remote_code: bool = False,
) -> Exported:
    """Export a trained model for other programs, and verify that the export is the model that was trained.

    Args:
        reference: as for `open_artifact`.
        to: `merged`, `adapter`, `gguf`, `ollama`, `vllm` or `hub`.
        out: the new folder. Not for `hub`.
        repo: `owner/name` on the Hub. Only for `hub`.
        private: create the Hub repository as private.
        quantize: llama.cpp's name of the type of a second, quantized file, such as `Q4_K_M`. Only for `gguf`.
        store: folder of the artifact store.
        trust_remote_code: run the code that the base model brings along. The run that trained it did.

    Raises:
        AlignmentError: a problem with the artifact, its base model, the target or the folder.
    """
    model = find_model(ArtifactStore(store), reference)
    if model.standing in (Standing.UNALIGNED, Standing.REFUSED):
        warnings.warn(str(model.warning), stacklevel=2)
    place = None if out is None else Path(out).absolute()
    request = Request(
        store=Path(store).absolute(),
        key=model.key,
        target=to,
        place=place,
        repo=repo,
        private=private,
        quantize=quantize,
        trusted=trust_remote_code,
    )
    return export_model(request)
