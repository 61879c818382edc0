"""A question to a module that answers in a process of its own, so that this one loads no torch and keeps no memory."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

from alignment_core.errors import AlignmentError, StageCrashed

LAST_LOG_BYTES = 2000


def ask(module: str, request: Mapping[str, Any], what: str) -> dict[str, Any]:
    """The answer of `python -m module` to a request, both plain JSON.

    Args:
        module: one whose `main` calls `reply`.
        request: what it is asked.
        what: what it does, for the words of an error.

    Raises:
        AlignmentError: as raised in the process; `StageCrashed` if it died.
    """
    with tempfile.TemporaryFile() as log:
        # -P: a folder of the user's that is called `datasets` must not stand in for the package.
        command = [sys.executable, "-P", "-m", module]
        done = subprocess.run(
            command, input=json.dumps(request).encode(), stdout=subprocess.PIPE, stderr=log, check=False
        )
        if done.returncode != 0:
            log.seek(max(0, log.seek(0, 2) - LAST_LOG_BYTES))
            last = log.read().decode(errors="replace").strip()
            raise StageCrashed("its process died", where=what, got=f"exit code {done.returncode}", do=last)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if "error" in answer:
        raise AlignmentError.from_json(answer["error"])
    return answer


def reply(run: Callable[[dict[str, Any]], Mapping[str, Any]]) -> None:
    """The other side of `ask`: answer the request on stdin by `run`."""
    request = json.loads(sys.stdin.read())
    try:
        answer = dict(run(request))
    except AlignmentError as error:
        answer = {"error": error.to_json()}
    print(json.dumps(answer))
