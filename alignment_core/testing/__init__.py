"""The conformance kit: check in seconds that a plugin keeps the contract of `plugin_api`.

In a plugin's repository, with pytest:

    from alignment_core.testing import check

    def test_it_keeps_the_contract():
        check(MyOptimizer, beta=0.3).assert_passed()

`check_format`, `check_evaluator` and `check_listener` do the same for plugins of the other kinds, and
`align plugins check NAME` for any that is installed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alignment_core.errors import ConfigError
from alignment_core.plugin_api import AlignmentOptimizer, Evaluator, Listener, PairEvaluator, RecordFormat
from alignment_core.testing.report import Report, Result

__all__ = ["Report", "Result", "check", "check_evaluator", "check_format", "check_listener", "check_plugin"]


def check(optimizer: type[AlignmentOptimizer], **settings: Any) -> Report:
    """Run all checks on an optimizer, on a tiny model with every role.

    Args:
        optimizer: the optimizer class.
        settings: settings of the checked run. Missing ones are those of its `example`, the small values of the kit
            or the defaults.
    """
    from alignment_core.testing.run_checks import check_optimizer

    return check_optimizer(optimizer, {**_example(optimizer), **settings})


def check_format(record_format: type[RecordFormat], rows: Sequence[Mapping[str, Any]] | None = None) -> Report:
    """Run all checks on a record format: which rows it recognizes, what it reads, and what bad rows do.

    Args:
        record_format: the class.
        rows: rows in this format, as in one file. None: those of its `example`.
    """
    from alignment_core.testing.format_checks import check_rows

    return check_rows(record_format, rows)


def check_evaluator(
    evaluator: type[Evaluator | PairEvaluator], facts: Mapping[str, Any] | None = None, **settings: Any
) -> Report:
    """Run all checks on an evaluator or a pair evaluator, with responses of many kinds.

    Args:
        evaluator: the class.
        facts: what the records know, for an evaluator that looks at it. None: its `example_facts`.
        settings: settings of the evaluator. Missing ones are those of its `example` or the defaults.
    """
    from alignment_core.testing.evaluator_checks import check_judging

    return check_judging(evaluator, facts, {**_example(evaluator), **settings})


def check_listener(listener: type[Listener], **settings: Any) -> Report:
    """Run all checks on a listener: the events of stages that are built, found, and fail. The folder is temporary.

    Args:
        listener: the class.
        settings: settings of the listener. Missing ones are those of its `example` or the defaults.
    """
    from alignment_core.testing.listener_checks import check_events

    return check_events(listener, {**_example(listener), **settings})


def check_plugin(plugin: type[Any], settings: Mapping[str, Any]) -> Report:
    """Run all checks on a plugin of any kind, with these settings beside those of its `example`.

    Raises:
        ConfigError: it is a record format, which has no settings.
    """
    if issubclass(plugin, RecordFormat):
        if settings:
            raise ConfigError("a record format has no settings", where="--set", got=", ".join(settings))
        return check_format(plugin)
    if issubclass(plugin, Evaluator | PairEvaluator):
        return check_evaluator(plugin, **settings)
    return check_listener(plugin, **settings) if issubclass(plugin, Listener) else check(plugin, **settings)


def _example(plugin: Any) -> Mapping[str, Any]:
    example = getattr(plugin, "example", {})
    return example if isinstance(example, Mapping) else {}  # the check of the declaration says what is wrong
