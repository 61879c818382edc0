"""The Prefect server that records the flows of this process.

It is the one at PREFECT_API_URL, the one that `align up` started, or a temporary one.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from alignment_core.errors import ConfigError

TERMINATED = 128 + signal.SIGTERM

HEARTBEAT_SECONDS = 30
"""Time between two heartbeats of a flow run."""


def prepare_server() -> None:
    """Let a temporary server load while this process plans the run and imports Prefect."""
    from alignment_flows.serve.temporary_server import prepare_temporary_server

    configure_prefect()
    prepare_temporary_server()


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
