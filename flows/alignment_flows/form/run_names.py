"""The name of a flow run: the one that a person gave it, or one that says what it runs.

Prefect names every run. A run has no mark that tells whether a person chose the name, but all names that are made up
consist of words from known lists: those of `coolname` (command line, API, schedules, automations) and those of the run
forms in the browser.
"""

import re
from collections.abc import Callable
from functools import cache
from typing import Any, cast

from coolname.data import config as coolname_lists
from prefect.runtime import flow_run

from alignment_flows.form.prefilled_names import ADJECTIVES, ANIMALS, LETTERS, PLACES, STARS


def named(pattern: str) -> Callable[[], str]:
    """Return a function for `flow_run_name` that keeps a given name. `pattern` contains parameters, as in `{alias}`."""

    def run_name() -> str:
        return given_name() or pattern.format(**flow_run.parameters)

    return run_name


def given_name() -> str | None:
    """Return the name of the current flow run, or None if Prefect made it up.

    A run that is retried or resumed has the name from its start.
    """
    name = flow_run.name
    return None if name is None or is_made_up(name) else str(name)


def is_made_up(name: str) -> bool:
    """Return whether Prefect's server, its client or one of its run forms may have made up this name."""
    first, _, rest = name.partition("-")
    if (first in _words("adj_any") and rest in _words("subj")) or (first in ADJECTIVES and rest in ANIMALS):
        return True
    if re.sub(r"\d{1,3}$", "", first) not in LETTERS:
        return False
    star, _, place = rest.rpartition("-")
    return rest in STARS or (star in STARS and place in PLACES)


@cache
def _words(name: str) -> frozenset[str]:
    """Return the words of one of coolname's lists and of the lists that it contains."""
    words = cast(dict[str, Any], coolname_lists[name])
    if "words" in words:
        return frozenset(words["words"])
    return frozenset().union(*(_words(part) for part in words["lists"]))
