"""A Prefect server for one run, where the user named none. It is gone when the run's process is, however that ends.

Prefect's own temporary server shares the terminal's Ctrl-C with the run, which then cannot report its end, and outlives
a killed run.
"""

import atexit
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request

STARTUP_SECONDS = 120
STOP_SECONDS = 5


def start_temporary_server() -> str:
    """Start a server that lasts until this process exits; returns its API's URL.

    It uses the same database as every run of this user, so that its runs can be looked at later.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/api"
        server = subprocess.Popen(
            [sys.executable, "-P", "-m", "alignment_flows.server", str(listener.fileno())],
            stdin=subprocess.PIPE,
            stdout=sys.stderr,
            pass_fds=(listener.fileno(),),
            start_new_session=True,
        )
    # Registered before Prefect registers the delivery of its last events, and therefore called after it.
    atexit.register(_stop, server)
    # The socket listens already: the request waits in its queue until the server is up.
    with urllib.request.urlopen(f"{url}/health", timeout=STARTUP_SECONDS):
        return url


def _stop(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def serve(listener: int) -> None:
    """The server's process: serve on the open socket until SIGTERM, or until the parent is gone."""
    import uvicorn
    from prefect.server.api.server import create_app

    threading.Thread(target=_follow_parent, daemon=True).start()
    config = uvicorn.Config(create_app(ephemeral=True, final=True), log_level="error")
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=listener)])


def _follow_parent() -> None:
    os.read(0, 1)  # ends when the parent does
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    serve(int(sys.argv[1]))
