"""Ask a person whether a model that passed the gate becomes `production`.

A run that Prefect started waits in the browser: the run of a deployment is suspended, which frees its process, and a
run inside another flow is paused. A run that was started by hand asks in its terminal. If it has none, nobody is asked.

A suspended run starts again in a new process. Meanwhile votes may have come in and files may have changed, so it does
not plan its stages again. It finds those that it asked about in an input that it stored with itself.
"""

import os
import sys
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import cast

import typer
from prefect.client.schemas.objects import FlowRunInput
from prefect.context import FlowRunContext
from prefect.exceptions import FlowPauseTimeout
from prefect.flow_runs import pause_flow_run, suspend_flow_run
from prefect.input import RunInput
from prefect.input.actions import create_flow_run_input, filter_flow_run_input, read_flow_run_input
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.utilities.urls import url_for
from pydantic import Field

from alignment_core.account import account_name
from alignment_core.artifacts import PRODUCTION, Artifact, ArtifactStore
from alignment_core.config import PipelineConfig
from alignment_core.errors import ArtifactError
from alignment_core.evaluation.promotion import Decision, Promotion
from alignment_core.execution.build import StageResult
from alignment_core.markdown import message, unmarked
from alignment_flows.reports.run import publish_run_report, win_rates

ASKED = "align-asked-about"
"""Key of the input of a flow run that lists the stages it asked about."""
QUESTION = "approval"
LAUNCHED = "PREFECT__FLOW_RUN_ID"
"""Environment variable that Prefect sets for the runs that a worker starts."""


class Approval(RunInput):
    """A person's decision, as the form in the browser asks for it."""

    approve: bool = Field(False, title="Approve", description="On: the model becomes production. Off: it does not.")
    name: str = Field(min_length=1, title="Your name", description="It is recorded in the alias's history.")
    reason: str = Field(min_length=1, title="Reason", description="It is recorded in the alias's history.")


def ask(config: PipelineConfig, built: Mapping[str, StageResult], promotion: Promotion) -> Decision | None:
    """Ask a person about the model and return the decision. None: there was nobody to ask.

    Args:
        config: the settings of the run.
        built: the stages of the run, by their names in the plan.
        promotion: the result of the gate so far.

    Raises:
        prefect.exceptions.Pause: the run is suspended. It continues in a new process.
    """
    if LAUNCHED in os.environ:
        return _ask_in_browser(config, built, promotion)
    if sys.stdin.isatty() and sys.stderr.isatty():
        return _ask_in_terminal(config, built)
    model = built["optimize"].artifact
    get_run_logger().warning(
        "gate.approval: nobody can be asked, because the run has no terminal and no worker started it. The model stays "
        "`candidate`. Promote it with `align promote %s --store %s`",
        model.key,
        config.store.absolute(),
    )
    return None


def stages_asked_about(config: PipelineConfig) -> dict[str, StageResult] | None:
    """Return the stages that this flow run asked about before it was suspended, or None if it has not asked.

    Raises:
        ArtifactError: an artifact is no longer in the store.
    """
    if config.gate is None or not config.gate.approval or LAUNCHED not in os.environ:
        return None
    asked = cast(dict[str, str] | None, read_flow_run_input(ASKED))
    if asked is None:
        return None
    store = ArtifactStore(config.store, config.remote)
    return {name: _from_store(store, name, key) for name, key in asked.items()}


def _from_store(store: ArtifactStore, name: str, key: str) -> StageResult:
    artifact = store.find(key)
    if artifact is None:
        raise ArtifactError(
            f"the result of the stage `{name}` was removed while the run waited for approval",
            where=str(store.root),
            got=f"no {key}",
            do="Start a new run",
        )
    return StageResult(artifact, True, 0.0, artifact.manifest().metrics)


def _ask_in_browser(config: PipelineConfig, built: Mapping[str, StageResult], promotion: Promotion) -> Decision:
    if (answer := _answer()) is not None:
        return _decision(answer)
    assert config.gate is not None
    context = FlowRunContext.get()
    assert context is not None
    assert context.flow_run is not None
    form = Approval.with_initial_data(description=_question(config, built, promotion))
    seconds = int(timedelta(days=config.gate.approval_days).total_seconds())
    # A run that was not answered in time and is then retried asks again, for which it needs another key.
    key = f"{QUESTION}-{context.flow_run.run_count}"
    # Prefect can suspend neither a run without a deployment nor a run inside another one.
    if context.flow_run.deployment_id is not None and context.flow_run.parent_task_run_id is None:
        if read_flow_run_input(ASKED) is None:
            keys = {name: stage.artifact.key for name, stage in built.items()}
            create_flow_run_input(ASKED, keys)
        return _decision(suspend_flow_run(form, timeout=seconds, key=key))
    try:
        return _decision(pause_flow_run(form, timeout=seconds, key=key))
    except FlowPauseTimeout:
        return Decision(False, "nobody", f"there was no answer within {config.gate.approval_days:g} days")


def _answer() -> Approval | None:
    """Return the answer that a person gave to this run while it was suspended."""
    inputs = cast(list[FlowRunInput], filter_flow_run_input(f"suspended-{QUESTION}-", limit=200))
    answers = [given for given in inputs if given.key.endswith("-response")]
    return Approval.load_from_flow_run_input(answers[-1]) if answers else None


def _decision(answer: Approval) -> Decision:
    return Decision(answer.approve, f"{answer.name} in flow run {flow_run.name}", answer.reason)


def _ask_in_terminal(config: PipelineConfig, built: Mapping[str, StageResult]) -> Decision | None:
    typer.echo(f"\n{_facts(config, built, unmarked)}\n", err=True)
    try:
        approved = typer.confirm(f"Promote it to {PRODUCTION}?", default=False, err=True)
        reason = typer.prompt("Reason", err=True)
    except typer.Abort:
        return None
    return Decision(approved, account_name(), reason)


def _question(config: PipelineConfig, built: Mapping[str, StageResult], promotion: Promotion) -> str:
    """Return the text above the form, and publish the report of the run so far, which it refers to."""
    publish_run_report(config, built, promotion)
    page = url_for("flow-run", obj_id=flow_run.id)
    link = f"The reports, with samples and curves, are under *Artifacts* on [the page of the run]({page})."
    return "\n\n".join([_facts(config, built, message), *win_rates(built), link])


def _facts(config: PipelineConfig, built: Mapping[str, StageResult], shown: Callable[[str], str]) -> str:
    """Return which model is to replace which one, and the checks that it passed.

    Args:
        config: the settings of the run.
        built: its stages.
        shown: puts a message into the text: `message` into markdown, `unmarked` into a terminal.
    """
    model: Artifact = built["optimize"].artifact
    current = ArtifactStore(config.store, config.remote).aliases.current(PRODUCTION)
    place = f"in place of `{current.kind}/{current.key}`" if current else "which does not exist yet"
    checks = "\n".join(f"- {shown(reason)}" for reason in built["gate"].metrics["reasons"])
    passed = f"The model `{model.kind}/{model.key}` of the run {config.name} passed the gate."
    return f"{shown(f'{passed} It would become `{PRODUCTION}`, {place}.')}\n\n{checks}"
