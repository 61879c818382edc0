"""Call a module in a separate process, so that this process does not load torch or keep the memory."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

from alignment_core.errors import AlignmentError, StageCrashed
from alignment_core.processes.start import start_module

LAST_LOG_BYTES = 2000


def call_module(module: str, request: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Send a request to `module` in a separate process and return its answer. Both are plain JSON.

    Args:
        module: a module whose `main` calls `answer_call`.
        request: the request.
        what: what the module does, for error messages.

    Raises:
        AlignmentError: the error that the process raised, or `StageCrashed` if the process crashed.
    """
    with tempfile.TemporaryFile() as log, tempfile.TemporaryFile() as stdin, tempfile.TemporaryFile() as stdout:
        stdin.write(json.dumps(request).encode())
        stdin.seek(0)
        child = start_module(module, stdin=stdin.fileno(), stdout=stdout.fileno(), stderr=log.fileno())
        try:
            returncode = child.wait()
        except BaseException:
            child.kill()
            child.wait()
            raise
        if returncode != 0:
            log.seek(max(0, log.seek(0, 2) - LAST_LOG_BYTES))
            last = log.read().decode(errors="replace").strip()
            raise StageCrashed("the process crashed", where=what, got=f"exit code {returncode}", do=last)
        stdout.seek(0)
        lines = stdout.read().splitlines()
    answer: dict[str, Any] = json.loads(lines[-1])
    if "error" in answer:
        raise AlignmentError.from_json(answer["error"])
    return answer


def answer_call(run: Callable[[dict[str, Any]], Mapping[str, Any]]) -> None:
    """Answer the request of `call_module` on stdin with the result of `run`."""
    request = json.loads(sys.stdin.read())
    try:
        answer = dict(run(request))
    except AlignmentError as error:
        answer = {"error": error.to_json()}
    print(json.dumps(answer))
