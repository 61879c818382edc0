"""Call the code of a plugin. An error in it becomes a `PluginError` that names the plugin, the method and the place."""

from __future__ import annotations

import errno
import re
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from alignment_core.errors import AlignmentError, PluginError, ran_out_of_memory
from alignment_core.plugin_api import AlignmentOptimizer, Evaluator, Listener, Needs, PairEvaluator, RecordFormat


class Kind(NamedTuple):
    """One kind of plugin."""

    base: type
    """The base class of its plugins."""
    hook: str
    """Name of the hook that registers them."""
    noun: str
    """What messages call it."""


KINDS: dict[str, Kind] = {
    "optimizer": Kind(AlignmentOptimizer, "alignment_optimizers", "optimizer"),
    "format": Kind(RecordFormat, "alignment_formats", "record format"),
    "evaluator": Kind(Evaluator, "alignment_evaluators", "evaluator"),
    "pair_evaluator": Kind(PairEvaluator, "alignment_pair_evaluators", "pair evaluator"),
    "listener": Kind(Listener, "alignment_listeners", "listener"),
}
"""The kinds of plugins, by the name that commands and JSON use."""
FRAMES = 3
"""Calls of a traceback that a message shows."""
ROWS = 4
"""Rows that a message names."""
OURS, STANDARD = str(Path(__file__).resolve().parent), str(Path(traceback.__file__).resolve().parent)


@contextmanager
def calling(plugin: object, method: str, place: str | Callable[[], str] = "") -> Iterator[None]:
    """Turn an exception of a plugin's method, which the block calls, into an error that a user can act on.

    Errors of Alignment Flows, running out of memory and a full disk pass unchanged: they are handled elsewhere. So does
    everything if `plugin` is not a plugin, but an objective of Alignment Flows.

    Args:
        plugin: the instance.
        method: name of the method.
        place: what the method works on, e.g. a step or a row. A function is called if there is an error.

    Raises:
        PluginError: the method raised.
    """

    def where() -> str:
        return method_of(plugin, method, place if isinstance(place, str) else place())

    try:
        yield
    except PluginError as error:
        if error.where is None:
            error.where = where()
        raise
    except AlignmentError:
        raise
    except (Exception, SystemExit) as error:
        if _kind(plugin) is None or ran_out_of_memory(error) or _disk_is_full(error):
            raise
        raise raised(error, where()) from error


def needs_of(optimizer: AlignmentOptimizer) -> Needs:
    """Return what the optimizer needs with its settings.

    Raises:
        PluginError: `needs` raised, or returned something else.
    """
    with calling(optimizer, "needs"):
        needs: object = optimizer.needs()
        if not isinstance(needs, Needs):
            raise PluginError(
                "it does not return what the optimizer needs", got=type(needs).__name__, expected="Needs(…)"
            )
    return needs


def raised(error: BaseException, where: str) -> PluginError:
    """Return the error for an exception of a plugin's code, with the last lines of its traceback."""
    trace = f"The last lines of the traceback:\n{last_lines(error)}"
    return PluginError(f"it raised {summary(error)}", where=where, do=_hint(error) + trace)


def method_of(plugin: object, method: str, place: str = "") -> str:
    """Return how a message names a method of a plugin: the method, the plugin, its module and the place."""
    kind = _kind(plugin)
    cls = plugin.__class__
    name = f"the {kind} `{plugin.name}` ({cls.__module__})" if kind else cls.__name__  # type: ignore[attr-defined]
    return f"`{method}` of {name}" + (f", {place}" if place else "")


def _kind(plugin: object) -> str | None:
    return next((kind.noun for kind in KINDS.values() if isinstance(plugin, kind.base)), None)


def named(rows: Sequence[str]) -> str:
    """Return the ids of rows for a message: the first few, and the number of the others."""
    more = f" and {len(rows) - ROWS} more" if len(rows) > ROWS else ""
    return f"row{'s' if len(rows) > 1 else ''} {', '.join(rows[:ROWS])}{more}"


def summary(error: BaseException) -> str:
    """Return type and text of an exception, on one line."""
    text = " ".join(re.sub(r"For further information visit \S+", "", str(error)).split())  # of pydantic
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def last_lines(error: BaseException) -> str:
    """Return the end of the traceback, indented: the first call in the plugin, and the last ones."""
    frames = list(traceback.extract_tb(error.__traceback__))
    first = next((i for i, frame in enumerate(frames) if _is_theirs(frame.filename)), len(frames) - 1)
    last = max(first + 1, len(frames) - (FRAMES - 1))
    shown = traceback.format_list(frames[first : first + 1])
    shown += ["  …\n"] * (last > first + 1) + traceback.format_list(frames[last:])
    return "\n".join(f"  {line}" for line in [*"".join(shown).splitlines(), summary(error)])


def _is_theirs(file: str) -> bool:
    return not file.startswith(OURS) and (not file.startswith(STANDARD) or "site-packages" in file)


def _hint(error: BaseException) -> str:
    if isinstance(error, ValidationError) and any(one["type"] == "frozen_instance" for one in error.errors()):
        return "Settings are fixed. Keep what changes in `run.state`. "
    if "backward through the graph a second time" in str(error):
        return (
            "The loss uses a graph that is gone: that of an earlier step, if it uses a tensor that was stored without "
            "`detach()`, or its own, if it was used by `torch.autograd`. "
        )
    return ""


def _disk_is_full(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
