"""The conformance kit: check in seconds, on a tiny model, that an optimizer keeps the contract of `plugin_api`.

In a plugin's repository, with pytest:

    from alignment_core.testing import check

    def test_it_keeps_the_contract():
        check(MyOptimizer, beta=0.3).assert_passed()

`align plugins check NAME` does the same for an installed optimizer.
"""

from __future__ import annotations

from typing import Any

from alignment_core.plugin_api import AlignmentOptimizer
from alignment_core.testing.report import Report, Result
from alignment_core.testing.run_checks import check_run
from alignment_core.testing.settings_checks import check_settings
from alignment_core.testing.tiny_run import one_thread

__all__ = ["Report", "Result", "check"]

SMALL = {"batch_size": 4, "epochs": 2, "learning_rate": 1e-2}
"""Common settings that give a few effective steps on the kit's few rows."""


def check(optimizer: type[AlignmentOptimizer], **settings: Any) -> Report:
    """Run all checks on an optimizer.

    Args:
        optimizer: the optimizer class.
        settings: settings of the checked run. Missing ones are those of its `example`, the small values of the kit
            or the defaults.
    """
    report = Report(optimizer.__name__)
    settings = {**optimizer.example, **settings}
    if check_settings(report, optimizer, settings):
        with one_thread():
            check_run(report, _made(optimizer, settings))
    return report


def _made(optimizer: type[AlignmentOptimizer], settings: dict[str, Any]) -> AlignmentOptimizer:
    try:
        return optimizer.model_validate({**SMALL, **settings})
    except ValueError:
        return optimizer.model_validate(settings)  # the optimizer does not allow the small values
