"""Read the right answer from the facts of a prompt."""

from __future__ import annotations

from typing import Any

from alignment_core.plugin_api import DataError, Facts


def fact_of(facts: Facts, name: str) -> Any:
    """Return a fact. `column.key` is a key of an object in a column.

    Raises:
        DataError: the prompt does not have the fact.
    """
    if name in facts:
        return facts[name]
    found: Any = facts
    for key in name.split("."):
        if not isinstance(found, dict) or key not in found:
            raise DataError(
                "the prompt lacks a fact that an evaluator needs",
                got=f"facts {', '.join(facts)}" if facts else "no facts",
                expected=name,
                do="Keep the column with `data.sources[].keep`, and leave out rows that do not have it",
            )
        found = found[key]
    return found


def column_of(name: str) -> str:
    """Return the column that holds a fact."""
    return name.split(".")[0]


def answers_of(facts: Facts, name: str) -> list[str]:
    """Return the right answers as text: the fact itself, or each of its items if it is a list.

    Raises:
        DataError: there is none, or one is neither text nor a number.
    """
    found = fact_of(facts, name)
    answers = found if isinstance(found, list) else [found]
    if not answers or any(isinstance(answer, bool) or not isinstance(answer, str | int | float) for answer in answers):
        raise DataError(
            f"the fact `{name}` is no answer",
            got=repr(found)[:80],
            expected="a text, a number, or a list of them",
        )
    return [str(answer) for answer in answers]
