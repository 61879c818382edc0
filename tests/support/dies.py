"""Sends a stage's process a signal at a moment that a test chose, counted in what the process does.

A moment is a kind of event and a number: its process sends itself the signal just before the event of that number.
However slow or busy the machine is, the moment is the same.

    file         a file or folder of the build is opened, made, renamed or removed
    checkpoint   the same below `checkpoints`
    publish      the same of the artifact itself, from its manifest on
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
"""Environment variable: the moment as JSON."""
SITE = f"import sys; sys.path.append({str(Path(__file__).parent)!r}); import dies; dies.begin()\n"
"""What a `sitecustomize.py` says, so that every Python process looks whether it is the one."""


def order(
    counts: Path, key: str, *, kind: str = "", number: int = 0, signum: int = signal.SIGKILL, once: bool = False
) -> str:
    """The value of `VARIABLE`.

    Args:
        counts: file for the number of events of each kind, written when the process ends by itself; beside it, with
            `.sent` after its name, one is made when the signal is sent.
        key: of the stage's artifact; a stage may build others on its way.
        kind: kind of the event; nothing is sent unless given.
        number: which event of that kind, from 1.
        signum: the signal.
        once: send nothing where one was sent already.
    """
    return json.dumps([str(counts), key, kind, number, int(signum), once])


def begin() -> None:
    """Listen, in a stage's process that was given a moment."""
    if VARIABLE not in os.environ or "alignment_core.stages.child" not in sys.orig_argv:
        return
    counts, key, kind, number, signum, once = json.loads(os.environ[VARIABLE])
    seen: Counter[str] = Counter()
    process, sent = os.getpid(), Path(f"{counts}.sent")

    def note(*kinds: str) -> None:
        if os.getpid() != process:  # something that the stage forked
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

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal publishing
        if event not in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree"):
            return
        path = str(arguments[0])
        if "/.building/" not in path:
            return
        own = f"/.building/{key}" in path
        publishing = publishing or (own and path.endswith("/out/manifest.json"))
        note("file", *["checkpoint"] * ("/checkpoints/" in path), *["publish"] * (own and publishing))

    sys.addaudithook(hear)


def _listen_to_models(note: Callable[..., None]) -> None:
    """Imports what a stage that runs a model imports anyway."""
    from alignment_core.models import generate
    from alignment_core.models.roles import Roles

    Roles.hidden = _noted(Roles.hidden, lambda: note("pass"))  # type: ignore[method-assign]
    generate.choose = _noted(generate.choose, lambda: note("token"))


def _noted(function: Callable[..., Any], note: Callable[[], None]) -> Callable[..., Any]:
    @wraps(function)
    def noted(*arguments: Any, **named: Any) -> Any:
        note()
        return function(*arguments, **named)

    return noted
