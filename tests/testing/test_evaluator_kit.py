"""The kit for evaluators passes correct ones, the built-in ones among them, and finds every seeded fault."""

from __future__ import annotations

import pytest
from faulty_evaluators import FAULTS, NoFacts, Sound, SoundPair

from alignment_core.discovery.installed import Plugin
from alignment_core.plugin_api import Evaluator, PairEvaluator
from alignment_core.registry import load_registry
from alignment_core.testing import check_evaluator, check_plugin

BUILT_IN = [
    plugin
    for plugin in load_registry().plugins
    if plugin.kind in ("evaluator", "pair_evaluator") and plugin.package == "alignment-flows"
    if "url" not in plugin.cls.model_fields  # asks a service
]


@pytest.mark.parametrize("sound", [Sound, SoundPair])
def test_correct_evaluator_passes(sound: type[Evaluator | PairEvaluator]) -> None:
    report = check_evaluator(sound)
    report.assert_passed()
    assert {result.outcome for result in report.results} == {"passed"}


@pytest.mark.parametrize("plugin", BUILT_IN, ids=lambda plugin: plugin.name)
def test_built_in_evaluator_passes(plugin: Plugin) -> None:
    check_plugin(plugin.cls, {}).assert_passed()


def test_facts_can_be_given() -> None:
    check_evaluator(NoFacts, {"answer": "12"}).assert_passed()


@pytest.mark.parametrize("faulty", FAULTS)
def test_seeded_fault_is_found(faulty: type[Evaluator | PairEvaluator]) -> None:
    check, outcome, reason = FAULTS[faulty]
    (found,) = [result for result in check_evaluator(faulty).results if result.check == check]
    assert found.outcome == outcome
    assert reason in found.detail
