"""Send a signal to a stage's process at a moment that a test chooses, counted in events of the process.

A moment is a kind of event and a number: the process sends itself the signal just before the event of that number. The
moment does not depend on the speed or load of the machine.

    file         a file or folder of the build is opened, created, renamed or removed
    checkpoint   the same below `checkpoints`
    publish      the same for the artifact itself, once its manifest is opened
    pass         a forward pass of a model
    token        a token of every response of a batch is chosen
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

KINDS = ("file", "checkpoint", "publish", "pass", "token")
VARIABLE = "STAGE_DIES_AT"
"""Environment variable with the path of the file that `order` writes."""
SITE = f"import sys; sys.path.append({str(Path(__file__).parent)!r}); import dies; dies.begin()\n"
"""Content of a `sitecustomize.py`, so that every Python process checks whether it is the target."""


def order(
    file: Path,
    counts: Path,
    key: str,
    *,
    kind: str = "",
    number: int = 0,
    signum: int = signal.SIGKILL,
    once: bool = False,
) -> None:
    """Write down the moment for the next processes.

    Args:
        file: the file, whose path is the value of `VARIABLE`.
        counts: file for the number of events of each kind, written when the process ends normally. A file with the
            same name plus `.sent` is created next to it when the signal is sent.
        key: key of the stage's artifact. A stage may build other artifacts too.
        kind: kind of the event. If it is empty, nothing is sent.
        number: number of the event of that kind, from 1.
        signum: the signal.
        once: send nothing if a signal was already sent.
    """
    file.write_text(json.dumps([str(counts), key, kind, number, int(signum), once]))


def begin() -> None:
    """Count events in this process if it is a stage's, and in each process that it forks if it is a fork server."""
    if VARIABLE not in os.environ:
        return
    if "alignment_core.execution.stage_process" in sys.orig_argv:
        _count()
    elif "alignment_core.processes.fork_server" in sys.orig_argv:
        server = os.getpid()
        os.register_at_fork(after_in_child=lambda: _count() if os.getppid() == server else None)


def _count() -> None:
    counts, key, kind, number, signum, once = json.loads(Path(os.environ[VARIABLE]).read_text())
    seen: Counter[str] = Counter()
    process, sent = os.getpid(), Path(f"{counts}.sent")

    def note(*kinds: str) -> None:
        if os.getpid() != process:  # forked by the stage
            return
        seen.update(kinds)
        if kind in kinds and seen[kind] == number and not (once and sent.exists()):
            sent.touch()
            os.kill(process, signum)

    _listen_to_files(note, key)
    _listen_to_models(note)
    atexit.register(lambda: Path(counts).write_text(json.dumps(seen)))


def _listen_to_files(note: Callable[..., None], key: str) -> None:
    publishing = False

    def on_audit_event(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal publishing
        if event not in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree"):
            return
        path = str(arguments[0])
        if "/.building/" not in path:
            return
        own = f"/.building/{key}" in path
        publishing = publishing or (own and path.endswith("/out/manifest.json"))
        note("file", *["checkpoint"] * ("/checkpoints/" in path), *["publish"] * (own and publishing))

    sys.addaudithook(on_audit_event)


def _listen_to_models(note: Callable[..., None]) -> None:
    """Count passes and tokens. The imports are those of any stage that runs a model."""
    from alignment_core.models.generation import padded_batch, slot_batch
    from alignment_core.models.roles.shared_base import Roles

    Roles.hidden = _noted(Roles.hidden, lambda: note("pass"))  # type: ignore[method-assign]
    for module in (padded_batch, slot_batch):
        module.choose = _noted(module.choose, lambda: note("token"))


def _noted(function: Callable[..., Any], note: Callable[[], None]) -> Callable[..., Any]:
    @wraps(function)
    def noted(*arguments: Any, **named: Any) -> Any:
        note()
        return function(*arguments, **named)

    return noted
