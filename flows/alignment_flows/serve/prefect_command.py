"""Run one of Prefect's commands with a faster start than `python -m prefect` does.

    python -P -m alignment_flows.serve.prefect_command worker start --pool gpu

A worker imports its modules while the server starts, and begins when its work pool exists.
"""

import gc
import sys
import time
from importlib import import_module

POLL_SECONDS = 0.2
NEEDED = {"server": "prefect.server.api.server", "worker": "prefect.workers.process"}
"""The modules that take most of a command's start."""


def main() -> None:
    """Import, wait, and run the command in the arguments."""
    arguments = sys.argv[1:]
    # Nearly all objects that an import creates stay. To look for garbage among them takes a fifth of the time.
    gc.disable()
    app = import_module("prefect.cli").app
    import_module(NEEDED[arguments[0]])
    gc.freeze()
    gc.enable()
    if "--pool" in arguments:
        _await_pool(arguments[arguments.index("--pool") + 1])
    sys.argv = ["prefect", *arguments]
    app()


def _await_pool(name: str) -> None:
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError

    with get_client(sync_client=True) as client:
        while True:
            try:
                client.read_work_pool(name)
                return
            except (httpx.TransportError, ObjectNotFound):
                pass  # the server does not answer yet, or has no such pool
            except PrefectHTTPStatusError as error:
                if error.response.is_client_error:
                    raise
            time.sleep(POLL_SECONDS)


if __name__ == "__main__":
    main()
