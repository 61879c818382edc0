"""A Prefect server for one run, for users who have no server. It stops when the process of the run exits or is killed.

Prefect's own temporary server receives Ctrl-C from the terminal together with the run, so the run cannot report its
end. It also outlives a killed run.
"""

import asyncio
import atexit
import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from functools import cache
from pathlib import Path

from alignment_core.errors import ConfigError

STARTUP_SECONDS = 120
STOP_SECONDS = 30
STUCK_SECONDS = 3
"""A server that stops waits until what it received is in the database, or until nothing has changed for so long."""


def prepare_temporary_server() -> None:
    """Start loading a server, unless this environment has one. It loads while the run is planned."""
    home = Path(os.environ.get("PREFECT_HOME", "~/.prefect")).expanduser()
    if not os.environ.get("PREFECT_API_URL") and not (home / "align-up.json").exists():
        _process()


def start_temporary_server() -> str:
    """Start a server that runs until this process exits, and return its API URL. One per process.

    It uses the user's Prefect database, so that the runs can be viewed later. If that is an SQLite file which another
    server uses, it uses another file and says so.

    Raises:
        ConfigError: the server does not start.
    """
    url, server = _process()
    try:
        # The socket already listens, so the request waits until the server is up.
        with urllib.request.urlopen(f"{url}/health", timeout=STARTUP_SECONDS):
            return url
    except OSError as error:
        code = server.poll()
        raise ConfigError(
            "the temporary Prefect server does not start",
            got=f"{error}" if code is None else f"exit code {code}",
            do="See its messages above, or start a server with `align up`",
        ) from error


@cache
def _process() -> tuple[str, subprocess.Popen[bytes]]:
    """Start the server's process, and return the API URL that the server will have."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/api"
        server = subprocess.Popen(
            [sys.executable, "-P", "-m", "alignment_flows.serve.temporary_server", str(listener.fileno())],
            stdin=subprocess.PIPE,
            stdout=sys.stderr,
            pass_fds=(listener.fileno(),),
            start_new_session=True,
        )
    # Prefect's threads deliver their last events before functions registered here are called.
    atexit.register(_stop, server)
    return url, server


def _stop(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def serve(listener: int) -> None:
    """Serve on the open socket until SIGTERM, or until the parent process is gone.

    Returns at once if the user's settings name a server.
    """
    threading.Thread(target=_follow_parent, daemon=True).start()
    gc.disable()  # what imports make is no garbage: looking for some takes an eighth of the time until the server is up
    from prefect.settings import (
        PREFECT_API_BLOCKS_REGISTER_ON_START,
        PREFECT_API_DATABASE_CONNECTION_URL,
        PREFECT_API_URL,
        temporary_settings,
    )

    if PREFECT_API_URL.value() is not None:
        return
    from alignment_flows.serve.run_database import reserved_database

    users = PREFECT_API_DATABASE_CONNECTION_URL.value()
    with reserved_database(users) as database:
        if database != users:
            first, other = (url.partition(":///")[2] for url in (users, database))
            print(f"align: another server uses {first}, so this run is recorded in {other}.", file=sys.stderr)
        # Runs use no blocks. Registering those of all installed packages takes seconds.
        settings = {PREFECT_API_DATABASE_CONNECTION_URL: database, PREFECT_API_BLOCKS_REGISTER_ON_START: False}
        with temporary_settings(settings):
            _serve(listener)


def _serve(listener: int) -> None:
    import uvicorn
    from prefect.server.api.server import create_app

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            await _all_recorded(lambda: len(self.server_state.tasks))
            await super().shutdown(sockets)

    config = uvicorn.Config(create_app(ephemeral=True, final=True), log_level="error")
    gc.freeze()
    gc.enable()
    Server(config).run(sockets=[socket.socket(fileno=listener)])


async def _all_recorded(requests: Callable[[], int]) -> None:
    """Wait until every request is answered and every event is handled: services that are stopped lose theirs."""
    from prefect.server.utilities.messaging.memory import METRICS

    last, since = -1, time.monotonic()
    while left := requests() + sum(topic["published"] - topic["consumed"] for topic in METRICS.values()):
        if left != last:
            last, since = left, time.monotonic()
        elif time.monotonic() - since > STUCK_SECONDS:
            print("align: the end of the run may be missing in Prefect's database.", file=sys.stderr)
            return
        await asyncio.sleep(0.01)


def _follow_parent() -> None:
    os.read(0, 1)  # returns when the parent exits
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    serve(int(sys.argv[1]))
