"""The conformance kit: whether an optimizer keeps the contract of `plugin_api`, shown on a tiny model in seconds.

In the author's own repository, under pytest:

    from alignment_core.testing import check

    def test_it_keeps_the_contract():
        check(MyOptimizer, beta=0.3).assert_passed()

`align plugins check NAME` does the same for an installed one.
"""

from __future__ import annotations

from typing import Any

from alignment_core.plugin_api import AlignmentOptimizer
from alignment_core.testing.report import Report, Result
from alignment_core.testing.running import check_run
from alignment_core.testing.settings import check_settings
from alignment_core.testing.world import one_thread

__all__ = ["Report", "Result", "check"]

SMALL = {"batch_size": 4, "epochs": 2, "learning_rate": 1e-2}
"""Settings of every optimizer that make a few steps of the kit's few rows, each of which changes something."""


def check(optimizer: type[AlignmentOptimizer], **settings: Any) -> Report:
    """Run every check on an optimizer.

    Args:
        optimizer: the class.
        settings: of the run that is checked; whatever is not named is small where the kit knows how, else its default.
    """
    report = Report(optimizer.__name__)
    if check_settings(report, optimizer, settings):
        with one_thread():
            check_run(report, _made(optimizer, settings))
    return report


def _made(optimizer: type[AlignmentOptimizer], settings: dict[str, Any]) -> AlignmentOptimizer:
    try:
        return optimizer.model_validate({**SMALL, **settings})
    except ValueError:
        return optimizer.model_validate(settings)  # these small values are not allowed here
