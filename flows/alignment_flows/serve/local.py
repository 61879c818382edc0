"""Run flows in this process.

The Prefect server that records them is the one at PREFECT_API_URL, the one that `align up` started, or a temporary one.
"""

import asyncio
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from alignment_core.artifacts import ArtifactStore
from alignment_core.config import ModelConfig, PipelineConfig
from alignment_core.errors import ConfigError
from alignment_core.execution.build import StageResult, build
from alignment_core.execution.stage import Runtime
from alignment_core.planning.pipeline import plan_pipeline
from alignment_core.planning.retrain import TooFewVotes, plan_retrain
from alignment_core.planning.sample import plan_sampling
from alignment_core.planning.unpacked_base import base_call
from alignment_core.registry import load_registry
from alignment_flows.contenders import Contest, plans_of
from alignment_flows.form.references import refers_to_prefect, resolve
from alignment_flows.reports.places import page_of
from alignment_flows.serve.cached_run import all_built, find_cached_run, has_server

if TYPE_CHECKING:
    from alignment_flows.reports.comparison import Comparison

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

TERMINATED = 128 + signal.SIGTERM

HEARTBEAT_SECONDS = 30
"""Time between two heartbeats of a flow run."""


def outside_event_loop(run: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Run in a thread if this one runs an event loop, as a notebook does: Prefect would return coroutines there."""

    @wraps(run)
    def wrapper(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return run(*args, **kwargs)
        done: Future[Result] = Future()

        def work() -> None:
            try:
                done.set_result(run(*args, **kwargs))
            except BaseException as error:
                done.set_exception(error)

        thread = threading.Thread(target=copy_context().run, args=(work,))
        thread.start()
        try:
            return done.result()
        except KeyboardInterrupt:
            # The stage stops as it does on Ctrl-C, and keeps its checkpoint.
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(thread.ident or 0), ctypes.py_object(KeyboardInterrupt)
            )
            thread.join()
            raise

    return wrapper


@dataclass(frozen=True)
class FinishedRun:
    """A finished run of the pipeline.

    Attributes:
        name: the name of the run from its settings.
        flow_run_id: the id of the flow run in Prefect; None if the run had nothing to do and there was no server.
        stages: the results of the stages by their names in the plan, in the order of the plan.
        aliases: the aliases that the aligned model has now.
    """

    name: str
    flow_run_id: str | None
    stages: dict[str, StageResult]
    aliases: list[str]

    @property
    def adapter(self) -> Path:
        """Folder of the aligned adapter, in PEFT's format."""
        return self.stages["optimize"].artifact.path

    @property
    def metrics(self) -> dict[str, Any]:
        """Metrics of the aligned model on the held-out split."""
        return self.stages["evaluate"].metrics


@outside_event_loop
def run_pipeline(config: PipelineConfig) -> FinishedRun:
    """Run the pipeline as a Prefect flow run, unless it has nothing to do and there is no server to record it.

    Raises:
        AlignmentError: a setting is wrong, or a stage failed.
    """
    # Planning first reports mistakes before the run is recorded.
    settings = prepared(config)
    plan = plan_pipeline(settings, load_registry())
    if (built := find_cached_run(config, plan)) is not None:
        _write_missing_page(settings, built)
        return _finished(config, built, None)
    _prepare_server()
    from alignment_flows.pipeline import align

    # Looking through the store is only worth it where there may be heartbeats: a temporary server gets none.
    with recorded_run(heartbeats=not (has_server() and all_built(plan))):
        state = align(config, return_state=True)
    return _finished(settings, state.result(raise_on_failure=True), state)


def _write_missing_page(config: PipelineConfig, built: dict[str, StageResult]) -> None:
    """Write the page of a run that no flow reports on, if it is not there. The store may be read-only."""
    if page_of(config.name, built).is_file():
        return
    from alignment_flows.reports.run_page import write_run_page

    try:
        write_run_page(config, built, None)
    except OSError as error:
        print(f"could not write the report of the run: {error}", file=sys.stderr)


def _finished(config: PipelineConfig, built: dict[str, StageResult], state: Any) -> FinishedRun:
    aliases = ArtifactStore(config.store, config.remote).aliases.of(built["optimize"].artifact.key)
    flow_run_id = None if state is None else str(state.state_details.flow_run_id)
    return FinishedRun(config.name, flow_run_id, built, aliases)


@outside_event_loop
def run_comparison(config: PipelineConfig, contest: Contest, folder: Path) -> "Comparison":
    """Run the comparison as a Prefect flow run. The result lists the contenders that failed.

    Raises:
        AlignmentError: a setting is wrong.
    """
    _prepare_server()
    from alignment_flows.comparison import compare

    # Planning first reports mistakes before the run is recorded.
    rounds = contest.rounds(resolved(config))
    plans_of({seed: {name: prepared(each) for name, each in found.items()} for seed, found in rounds.items()}, contest)
    with recorded_run():
        state = compare(config, **vars(contest), folder=folder, return_state=True)
    comparison = state.result(raise_on_failure=False)
    if isinstance(comparison, BaseException):
        raise comparison
    return comparison


@outside_event_loop
def run_retrain(config: PipelineConfig) -> FinishedRun | TooFewVotes:
    """Run the flow `retrain`, and return its result, or why it was skipped.

    Raises:
        AlignmentError: a setting is wrong, or a stage failed.
    """
    _prepare_server()
    # Planning first reports mistakes before the run is recorded.
    settings = prepared(config)
    plan_retrain(settings, load_registry())
    with recorded_run():
        from alignment_flows.retraining import SKIPPED, retrain

        state = retrain(config, return_state=True)
    if state.name == SKIPPED:
        skipped = state.result()
        assert isinstance(skipped, TooFewVotes)
        return skipped
    stages: Any = state.result(raise_on_failure=True)
    return _finished(settings, stages, state)


@outside_event_loop
def run_sampling(config: PipelineConfig, model: str | None) -> int:
    """Run the flow `sample`, and return the number of prompts that can be ranked.

    Raises:
        AlignmentError: a setting is wrong, or a stage failed.
    """
    _prepare_server()
    # Planning first reports mistakes before the run is recorded.
    plan_sampling(prepared(config), load_registry(), model)
    with recorded_run():
        from alignment_flows.sampling import sample

        kept: int = sample(config, model, return_state=True).result(raise_on_failure=True)
    return kept


def _prepare_server() -> None:
    """Let a temporary server load while this process plans the run and imports Prefect."""
    from alignment_flows.serve.temporary_server import prepare_temporary_server

    configure_prefect()
    prepare_temporary_server()


def resolved(config: PipelineConfig) -> PipelineConfig:
    """Return the settings with the values of the blocks and variables of Prefect that they refer to.

    The flow itself is given the references, because Prefect stores its parameters.

    Raises:
        ConfigError: there is no such block or variable, or its value does not fit.
    """
    if not refers_to_prefect(config):
        return config
    with prefect_server(heartbeats=False):
        return resolve(config)


def prepared(config: PipelineConfig) -> PipelineConfig:
    """Return the resolved settings for planning. A base model in a GGUF file is in the store then.

    A run would unpack it as its first stage. Done here, mistakes in the settings are found before the run is recorded.

    Raises:
        AlignmentError: a block or variable does not exist, or the base model cannot be unpacked.
    """
    settings = resolved(config)
    unpack_base(settings.model, Runtime(store=settings.store.absolute(), isolation=settings.isolation))
    return settings


def unpack_base(model: ModelConfig, runtime: Runtime) -> StageResult | None:
    """Unpack the base model into the store if it is a GGUF file that is not there yet. Say so on stderr.

    Raises:
        AlignmentError: it cannot be unpacked.
    """
    call = base_call(model, runtime)
    return None if call is None else build(call, Printed(call.label))


class Printed:
    """Progress that prints log lines and warnings to stderr."""

    stopping = False

    def __init__(self, label: str) -> None:
        self._label = label

    def step(self, done: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
        pass

    def log(self, message: str) -> None:
        print(f"{self._label}: {message}", file=sys.stderr, flush=True)

    def warn(self, message: str) -> None:
        self.log(f"warning: {message}")


@contextmanager
def recorded_run(*, heartbeats: bool = True) -> Iterator[None]:
    """Record the flow inside as `prefect_server` does, and show it in the terminal."""
    with prefect_server(heartbeats=heartbeats) as lasting:
        from alignment_flows.terminal.shown_run import shown_run

        with shown_run(linked=lasting):
            yield


@contextmanager
def prefect_server(*, heartbeats: bool = True) -> Iterator[bool]:
    """Record the flows inside on the user's server, or on a temporary one that stops with this process.

    Args:
        heartbeats: whether flow runs send heartbeats, by which the server detects a killed run. Stopping them takes a
            second.

    Yields:
        Whether the server outlives this process.
    """
    configure_prefect()
    from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    from alignment_flows.serve.services import running_server
    from alignment_flows.serve.temporary_server import start_temporary_server

    settings: dict[Any, Any] = {}
    lasting = True
    if (url := PREFECT_API_URL.value()) is not None:
        check_server(url)
    elif (url := running_server()) is not None:
        settings = {PREFECT_API_URL: url}
    else:
        settings = {PREFECT_API_URL: start_temporary_server()}
        lasting = heartbeats = False  # the server stops with the run
    if not heartbeats:
        settings[PREFECT_FLOWS_HEARTBEAT_FREQUENCY] = None
    with temporary_settings(settings), _exit_on_sigterm():
        yield lasting


@contextmanager
def _exit_on_sigterm() -> Iterator[None]:
    """Prefect calls the existing SIGTERM handler. The default one would leave the stage's process running."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set a handler
        yield
        return
    previous = signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(TERMINATED))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def check_server(url: str) -> None:
    """Check that the server at PREFECT_API_URL answers.

    Raises:
        ConfigError: it does not answer.
    """
    import httpx
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        fault = client.api_healthcheck()
    if isinstance(fault, httpx.TransportError):
        raise ConfigError(
            "the Prefect server does not answer",
            where="PREFECT_API_URL",
            got=f"{fault} at {url}",
            do="Start the server, or unset PREFECT_API_URL to use a temporary server",
        )


def configure_prefect() -> None:
    """Set defaults for the environment variables that Prefect reads on import."""
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", str(HEARTBEAT_SECONDS))
