"""The commands `align up`, `align down` and `align deploy`: what they do, in order, and what they say."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from alignment_core.errors import ConfigError
from alignment_flows.local import check_server, quieten_prefect


def start(port: int) -> None:
    """Server, work pools, deployments, automation, workers; what is there already stays."""
    quieten_prefect()
    from alignment_flows.deployments import POOLS, deploy
    from alignment_flows.services import log_file, up

    state = up(port, POOLS, deploy)
    print(f"Prefect: {state.url.removesuffix('/api')}")
    print(f"Choose a deployment and run it: {_deployments_page(state.url)}")
    print(f"For other commands in this terminal: export PREFECT_API_URL={state.url}")
    print(
        f"Runs find relative paths in {Path.cwd()}; logs are in {log_file('server').parent}. `align down` ends it all."
    )


def stop() -> None:
    """End what `start` started."""
    quieten_prefect()
    from alignment_flows.services import down

    ended = down()
    print(f"ended: {', '.join(service.name for service in ended)}" if ended else "nothing was running")


def refresh(configs: Sequence[Path]) -> None:
    """Register the deployments with the server that PREFECT_API_URL names, or that `align up` started."""
    quieten_prefect()
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from alignment_flows.deployments import count_warning, deploy
    from alignment_flows.services import running_server

    url = PREFECT_API_URL.value() or running_server()
    if url is None:
        raise ConfigError("there is no Prefect server to deploy to", do="Run `align up`, or set PREFECT_API_URL")
    os.environ["PREFECT_API_URL"] = url  # for Prefect's own command
    with temporary_settings({PREFECT_API_URL: url}):
        check_server(url)
        names = deploy(configs)
        warning = count_warning() if any(name.startswith("retrain/") for name in names) else None
    if warning is not None:
        print(f"warning: {warning}", file=sys.stderr)
    print("\n".join(names))
    print(f"{len(names)} deployments at {_deployments_page(url)}")


def _deployments_page(url: str) -> str:
    """In the interface that the server shows to whoever opens its address."""
    return f"{url.removesuffix('/api')}/v2/deployments"
