"""Call a module in a separate process, so that this process does not load torch or keep the memory."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

from alignment_core.errors import AlignmentError, StageCrashed, ran_out_of_memory
from alignment_core.processes.start import start_module

LAST_LOG_BYTES = 2000


def call_module(module: str, request: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Send a request to `module` in a separate process and return its answer. Both are plain JSON.

    Args:
        module: a module whose `main` calls `answer_call`.
        request: the request.
        what: what the module does, for error messages.

    Raises:
        AlignmentError: the error that the process raised, or `StageCrashed` if the process crashed, or code of a model
            or of a plugin ended it.
    """
    with tempfile.TemporaryFile() as log, tempfile.TemporaryFile() as stdin, tempfile.TemporaryFile() as told:
        stdin.write(json.dumps(request).encode())
        stdin.seek(0)
        output = log.fileno()
        child = start_module(module, stdin=stdin.fileno(), stdout=output, stderr=output, passed=(told.fileno(),))
        try:
            returncode = child.wait()
        except BaseException:
            child.kill()
            child.wait()
            raise
        told.seek(0)
        line = told.read()
        log.seek(max(0, log.seek(0, 2) - LAST_LOG_BYTES))
        last = log.read().decode(errors="replace").strip()
    if not line.endswith(b"\n"):
        if returncode < 0 or "Traceback (most recent call last)" in last:
            raise StageCrashed("the process crashed", where=what, got=f"exit code {returncode}", do=last)
        raise _ended_itself(what, returncode, last)
    answer: dict[str, Any] = json.loads(line)
    if "error" in answer:
        raise AlignmentError.from_json({**answer["error"], "where": answer["error"]["where"] or what})
    return answer


def answer_call(run: Callable[[dict[str, Any]], Mapping[str, Any]]) -> None:
    """Answer the request of `call_module` on stdin with the result of `run`.

    The answer has a file of its own, because libraries, plugins and the code of a model print to stdout.
    """
    request, told = json.loads(sys.stdin.read()), int(sys.argv[1])
    try:
        answer = dict(run(request))
    except AlignmentError as error:
        answer = {"error": error.to_json()}
    except (MemoryError, RuntimeError) as error:
        if not ran_out_of_memory(error):
            raise
        answer = {"error": _no_memory(error).to_json()}
    with os.fdopen(told, "w", encoding="utf-8") as file:
        file.write(json.dumps(answer) + "\n")


def _no_memory(error: BaseException) -> AlignmentError:
    line = str(error).strip().partition("\n")[0]
    return AlignmentError(
        "this takes more memory than there is",
        got=line or type(error).__name__,
        do="Close other programs, or choose a smaller model",
    )


def _ended_itself(what: str, returncode: int, last: str) -> AlignmentError:
    line = last.rpartition("\n")[2]
    return AlignmentError(
        "the process was ended by code that runs in it, of a model or of a plugin, before it answered",
        where=what,
        got=f"exit code {returncode}{f' after {line!r}' if line else ''}",
        do="Use another model or plugin, or report it to its author",
    )
