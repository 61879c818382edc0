"""What is said of plugins that are registered in the wrong place, or whose own code fails outside of a run."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
from strangers import HINGE, RUDE

from alignment_core.discovery.shape import method_flaw
from alignment_core.errors import PluginError
from alignment_core.plugin_api import Evaluator, Listener
from alignment_core.registry import load_registry

ALIGN = [sys.executable, "-c", "from alignment_flows.cli.app import main; main()"]
Install = Callable[..., None]


@pytest.mark.parametrize("group", ["alignmentcore", "alignment-core", "allignment_core", "Alignment.Core"])
def test_misspelt_group_of_entry_points_is_reported(install: Install, group: str) -> None:
    install("stranger-hinge", HINGE, group=group)
    (problem,) = load_registry().problems
    assert str(problem) == (
        "plugin `stranger_hinge_entry` of stranger-hinge 1.2: it is registered in the group "
        f"`{group}` of entry points, so it is not found. Rename the group to `alignment_core` in the package's "
        "pyproject.toml, and install the package again"
    )
    with pytest.raises(PluginError, match="Not usable: plugin `stranger_hinge_entry`"):
        load_registry().optimizer({"name": "hinge"})


def test_similar_group_is_reported_only_if_the_package_requires_this_one(install: Install) -> None:
    install("genome-tools", HINGE, group="alignment_tools")
    install("other-tools", HINGE, group="console_scripts", requires="alignment-flows")
    assert load_registry().problems == []
    install("stranger-hinge", HINGE, group="alignment_flows.optimizers", requires="Alignment_Flows>=0.1")
    assert [problem.package for problem in load_registry().problems] == ["stranger-hinge"]


def test_list_shows_where_a_plugin_failed(install: Install) -> None:
    install("stranger-broken", "x = 1\nraise ValueError('not\\nhere')")
    install("stranger-lost", HINGE, group="alignmentcore")
    done = subprocess.run([*ALIGN, "plugins", "list"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    first, *trace, last = done.stderr.splitlines()
    where = "not usable: plugin `stranger_broken_entry` of stranger-broken 1.2: "
    assert first == f"{where}it cannot be imported: ValueError: not here"
    assert any('stranger_broken.py", line 2, in <module>' in line for line in trace)
    assert trace[-1] == "  ValueError: not here"
    assert "it is registered in the group `alignmentcore`" in last


def test_code_of_a_plugin_that_fails_on_some_settings(install: Install) -> None:
    """Validators and `needs` see the settings of a user, which no check at discovery can try."""
    checked = """
        @field_validator("slack")
        @classmethod
        def check(cls, value): return 1 / (value - 2) and value

        def needs(self): return Needs(preferences=True) if self.slack < 3 else {}[self.slack]
    """
    source = HINGE.replace("        def needs(self): return Needs(preferences=True)", checked.strip("\n"))
    install("stranger-hinge", source.replace("import Field", "import Field, field_validator"))
    registry = load_registry()
    assert registry.problems == []
    with pytest.raises(PluginError) as error:
        registry.optimizer({"name": "hinge", "slack": 2})
    first = str(error.value).splitlines()[0]
    assert first == (
        "optimizer, checked by the optimizer `hinge` (stranger_hinge): it raised ZeroDivisionError: float division by "
        "zero. The last lines of the traceback:"
    )
    with pytest.raises(PluginError) as error:
        registry.optimizer({"name": "hinge", "slack": 3})
    assert str(error.value).startswith("`needs` of the optimizer `hinge` (stranger_hinge): it raised KeyError: 3.0. ")


def test_evaluator_with_arguments_of_its_own(install: Install) -> None:
    install("stranger-rude", RUDE.replace("(self, prompt, response, facts)", "(self, response)"))
    (problem,) = load_registry().problems
    assert "Polite is not a usable evaluator: its `score` takes (response), but it is called with (prompt" in str(
        problem
    )


class Static(Evaluator):
    @staticmethod
    def score(*given: object) -> float:
        return 0.0


class Renamed(Listener):
    def started(self, it: object, more: int = 0) -> None: ...  # type: ignore[override]
    def finished(self, it: object, numbers: object, **more: object) -> None: ...


class Positional(Listener):
    def finished(self, stage: object, metrics: object, cached: bool, /) -> None: ...  # type: ignore[override]


def test_arguments_may_have_other_names() -> None:
    assert method_flaw(Static, Evaluator) is None
    assert method_flaw(Renamed, Listener) is None
    flaw = "its `finished` takes (stage, metrics, cached), but it is called with (stage, metrics, cached=…)"
    assert method_flaw(Positional, Listener) == flaw
