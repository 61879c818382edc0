"""A pipeline in this process, recorded by the server that PREFECT_API_URL names or `align up` started, or by a
temporary one.
"""

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignment_core.artifacts import ArtifactStore
from alignment_core.config import PipelineConfig
from alignment_core.errors import ConfigError
from alignment_core.registry import load_registry
from alignment_core.stages.build import Built
from alignment_core.stages.plan import Plan, make_plan
from alignment_core.stages.plan_retrain import plan_retrain
from alignment_core.stages.plan_sample import make_sample_plan

if TYPE_CHECKING:
    from alignment_flows.comparison import Comparison

TERMINATED = 128 + signal.SIGTERM

HEARTBEAT_SECONDS = 30
"""Time between two signs of life of a flow run."""


@dataclass(frozen=True)
class FinishedRun:
    """A run of the pipeline.

    Attributes:
        name: the run's name from its settings.
        flow_run_id: its id in Prefect.
        stages: what was built or found, by the names of the plan, in their order.
        aliases: the aliases that the aligned model has now.
    """

    name: str
    flow_run_id: str
    stages: dict[str, Built]
    aliases: list[str]


def run_pipeline(config: PipelineConfig) -> FinishedRun:
    """Run the pipeline as a Prefect flow run.

    Raises:
        AlignmentError: a mistake of the user, or a stage that failed.
    """
    # A mistake is told at once, before a server is started.
    plan = make_plan(config, load_registry())
    with prefect_at_hand(heartbeats=not all_built(plan)):
        from alignment_flows.pipeline import align

        state = align(config, return_state=True)
    return _finished(config, state)


def _finished(config: PipelineConfig, state: Any) -> FinishedRun:
    built = state.result(raise_on_failure=True)
    aliases = ArtifactStore(config.store).aliases.of(built["optimize"].artifact.key)
    return FinishedRun(config.name, str(state.state_details.flow_run_id), built, aliases)


def all_built(plan: Plan) -> bool:
    """Whether every stage is in the store, undamaged."""
    calls = plan.calls().values()
    store = ArtifactStore(plan.ingest.runtime.store)
    there = {artifact.key: artifact for artifact in store.artifacts()}
    return all(call.key in there and store.fault(there[call.key]) is None for call in calls)


def run_comparison(
    config: PipelineConfig, optimizers: Sequence[str], changes: Sequence[str], folder: Path
) -> "Comparison":
    """Run the comparison as a Prefect flow run; optimizers that failed are told in it.

    Raises:
        AlignmentError: a mistake of the user.
    """
    quieten_prefect()
    from alignment_flows.compare import compare, plans_of

    # A mistake is told at once, before a server is started.
    plans_of(config, optimizers, changes)
    with prefect_at_hand():
        state = compare(config, optimizers, changes, folder, return_state=True)
    comparison = state.result(raise_on_failure=False)
    if isinstance(comparison, BaseException):
        raise comparison
    return comparison


def run_retrain(config: PipelineConfig) -> FinishedRun | str:
    """Run the flow `retrain`; where it found too few votes, its words.

    Raises:
        AlignmentError: a mistake of the user, or a stage that failed.
    """
    # A mistake is told at once, before a server is started.
    plan_retrain(config, load_registry())
    with prefect_at_hand():
        from alignment_flows.retrain import SKIPPED, retrain

        state = retrain(config, return_state=True)
    if state.name == SKIPPED:
        return str(state.message)
    return _finished(config, state)


def sample_responses(config: PipelineConfig, model: str | None) -> int:
    """Run the flow `sample`; returns how many prompts can be ranked.

    Raises:
        AlignmentError: a mistake of the user, or a stage that failed.
    """
    # A mistake is told at once, before a server is started.
    make_sample_plan(config, load_registry(), model)
    with prefect_at_hand():
        from alignment_flows.sample import sample

        kept: int = sample(config, model, return_state=True).result(raise_on_failure=True)
    return kept


@contextmanager
def prefect_at_hand(*, heartbeats: bool = True) -> Iterator[None]:
    """Flows inside are recorded by the user's server, or by a temporary one that ends with this process.

    Args:
        heartbeats: whether they give signs of life, by which the server knows a killed run; ending them takes a second.
    """
    quieten_prefect()
    from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    from alignment_flows.server import start_temporary_server
    from alignment_flows.services import running_server

    # Prefect ends the process by the handler it finds, and the default one would leave the stage behind.
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(TERMINATED))
    settings: dict[Any, Any] = {}
    if (url := PREFECT_API_URL.value()) is not None:
        check_server(url)
    elif (url := running_server()) is not None:
        settings = {PREFECT_API_URL: url}
    else:
        settings = {PREFECT_API_URL: start_temporary_server()}
        heartbeats = False  # it dies with the run
    if not heartbeats:
        settings[PREFECT_FLOWS_HEARTBEAT_FREQUENCY] = None
    with temporary_settings(settings):
        yield


def check_server(url: str) -> None:
    """Raises: ConfigError if the server that PREFECT_API_URL names does not answer."""
    import httpx
    from prefect.client.orchestration import get_client

    fault = get_client(sync_client=True).api_healthcheck()
    if isinstance(fault, httpx.TransportError):
        raise ConfigError(
            "the Prefect server does not answer",
            where="PREFECT_API_URL",
            got=f"{fault} at {url}",
            do="Start it, or unset PREFECT_API_URL: a run then brings its own",
        )


def quieten_prefect() -> None:
    """Settings that Prefect reads at its import; the user's own win."""
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", str(HEARTBEAT_SECONDS))
    if sys.stderr.isatty():
        # The terminal has the progress bar and its lines; the log is on the run's page.
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "ERROR")
