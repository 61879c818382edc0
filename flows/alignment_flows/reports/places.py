"""Where the page of a run is."""

from collections.abc import Mapping
from pathlib import Path

from alignment_core.artifacts.layout import REPORTS
from alignment_core.execution.build import StageResult


def page_of(name: str, built: Mapping[str, StageResult]) -> Path:
    """Return where the page of a run is, in its store. Runs of one name with the same model have the same page.

    Args:
        name: the name of the run from its settings.
        built: its stages by their names in the plan.
    """
    policy = built["optimize"].artifact
    return policy.path.parents[1] / REPORTS / f"{name}-{policy.key[:12]}.html"
