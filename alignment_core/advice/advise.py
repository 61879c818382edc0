"""Apply the rules to a run, and ask its optimizer for advice of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from alignment_core.advice.rules import RULES, Metrics, Policy
from alignment_core.errors import PluginError
from alignment_core.plugin_api import Advice, AlignmentOptimizer
from alignment_core.plugin_calls import calling


def advise(metrics: Metrics, optimizer: AlignmentOptimizer) -> list[Advice]:
    """Return the advice of every rule that finds something, the most important first.

    Args:
        metrics: the metrics of the stages by their names in the plan. Of a planned run, those that are known already.
        optimizer: the optimizer of the run. Its own advice follows that of the rules for every optimizer.
    """
    setting = optimizer.kl_setting
    hold = f"raise `optimizer.{setting}` or lower" if setting else "lower"
    policy = Policy(optimizer, f"{hold} `optimizer.learning_rate`")
    found = [
        Advice(rule.name, f"{finding[0].upper()}{finding[1:]}", meaning, do, rule.source)
        for rule in RULES
        for finding, meaning, do in rule.find(metrics, policy)
    ]
    return [*found, *_own(metrics, optimizer)]


def own_advice(
    optimizer: AlignmentOptimizer, trained: Mapping[str, Any], evaluated: Mapping[str, Any]
) -> Sequence[Advice]:
    """Return the optimizer's own advice.

    Raises:
        PluginError: its method failed, or returned something else.
    """
    with calling(optimizer, "advice"):
        given = list(optimizer.advice(trained, evaluated))
        if wrong := [type(one).__name__ for one in given if not isinstance(one, Advice)]:
            raise PluginError("it does not return a list of advice", got=wrong[0], expected="Advice(…)")
    return given


def _own(metrics: Metrics, optimizer: AlignmentOptimizer) -> Iterator[Advice]:
    """Yield the optimizer's own advice. A fault in it is shown in its place: the run itself is finished."""
    try:
        yield from own_advice(optimizer, metrics.get("optimize", {}), metrics.get("evaluate", {}))
    except PluginError as error:
        yield Advice("failed", str(error), "this plugin's own advice is missing", "tell its author", "")
