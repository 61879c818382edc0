"""Checks of an evaluator or a pair evaluator: its judgments of responses of many kinds."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from typing import Any

from alignment_core.config import Settings
from alignment_core.evaluation.judging import Cases, preferences_of, scores_of
from alignment_core.plugin_api import Evaluator, PairEvaluator
from alignment_core.testing.limits import overhearing
from alignment_core.testing.report import Doubt, Fault, Report
from alignment_core.testing.settings_checks import check_settings

ASKED = {"role": "user", "content": "What is 6 times 7?"}
PROMPTS = {
    "a question": (ASKED,),
    "a conversation": (
        {"role": "system", "content": "Be brief."},
        ASKED,
        {"role": "assistant", "content": "42"},
        {"role": "user", "content": "And twice that? \N{THINKING FACE}"},
    ),
}
RESPONSES = {
    "a sentence": "It is 42.",
    "an empty response": "",
    "blanks": " \n ",
    "other letters": "Es sind zweiundvierzig, ich schwöre! \N{OK HAND SIGN} 四十二",
    "code": '```json\n{"answer": 42, "unit": null}\n```',
    "a broken line": "\\boxed{42 [ ( * \x00",
    "a long response": "word " * 5000,
}
SAME = 1e-9
"""Two judgments of one response are the same if they differ by less."""


def check_judging(
    evaluator: type[Evaluator | PairEvaluator], facts: Mapping[str, Any] | None, settings: dict[str, Any]
) -> Report:
    """Run all checks on an evaluator or a pair evaluator with these facts and settings."""
    base: type[Settings] = PairEvaluator if issubclass(evaluator, PairEvaluator) else Evaluator
    report = Report(evaluator.__name__)
    with overhearing() as heard:
        if check_settings(report, evaluator, base, settings):
            _check_judgments(report, evaluator(**settings), dict(evaluator.example_facts if facts is None else facts))
            report.add_output(heard)
    return report


def _check_judgments(report: Report, evaluator: Evaluator | PairEvaluator, facts: dict[str, Any]) -> None:
    cases = _cases(facts, pairs=isinstance(evaluator, PairEvaluator))
    with report.checking("facts") as shown:
        shown.append(_needed(evaluator, facts))
    with report.checking("judges") as shown:
        before = copy.deepcopy((cases.prompts, cases.facts))
        started = time.perf_counter()
        together = _judged(evaluator, cases)
        seconds = (time.perf_counter() - started) / len(cases)
        if (cases.prompts, cases.facts) != before:
            raise Fault("it changes the prompts or facts that it is given")
        shown.append(f"{len(cases)} cases, {1000 * seconds:.1f} ms each")
    if report.results[-1].outcome == "failed":
        return
    with report.checking("alone and together"):
        alone = [_judged(evaluator, cases.only(index))[0] for index in range(len(cases))]
        _compare(together, alone, cases, "judged alone and together with others")
    with report.checking("repeats"):
        _compare(together, _judged(evaluator, cases), cases, "judged twice")
    with report.checking("declared facts"):
        _declared(evaluator, cases)
    if isinstance(evaluator, PairEvaluator):
        with report.checking("order"):
            turned = [None if p is None else 1 - p for p in _judged(evaluator, _turned(cases))]
            _compare(together, turned, cases, "as the first and as the second of the two responses")


def _cases(facts: Mapping[str, Any], *, pairs: bool) -> Cases:
    cases = Cases()
    texts = list(RESPONSES.values())
    for asked, prompt in PROMPTS.items():
        for i, (kind, response) in enumerate(RESPONSES.items()):
            other = texts[(i + 1) % len(texts)] if pairs else None
            cases.add(f"{kind} to {asked}", copy.deepcopy(prompt), copy.deepcopy(facts), response, other)
    return cases


def _turned(cases: Cases) -> Cases:
    return Cases(cases.rows, cases.prompts, cases.facts, cases.others, cases.responses)


def _judged(evaluator: Evaluator | PairEvaluator, cases: Cases) -> list[float | None]:
    return preferences_of(evaluator, cases) if isinstance(evaluator, PairEvaluator) else scores_of(evaluator, cases)


def _needed(evaluator: Evaluator | PairEvaluator, facts: Mapping[str, Any]) -> str:
    needed: object = evaluator.needed_facts()
    if not isinstance(needed, list | tuple) or not all(isinstance(name, str) for name in needed):
        raise Fault(f"`needed_facts` returns {needed!r}, not a list of names")
    if lacking := [name for name in needed if name not in facts]:
        raise Fault(
            f"it needs {', '.join(lacking)}, and there is no such fact. Give the class some, such as "
            f'`example_facts: ClassVar = {{"{lacking[0]}": "42"}}`, or call `check_evaluator(Mine, facts)`'
        )
    return ", ".join(needed) or "none needed"


class _Read(dict[str, Any]):
    """Facts that record which of them are read."""

    def __init__(self, facts: Mapping[str, Any], read: set[str]) -> None:
        super().__init__(facts)
        self._read = read

    def __getitem__(self, name: str) -> Any:
        self._read.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self._read.add(name)
        return super().get(name, default)


def _declared(evaluator: Evaluator | PairEvaluator, cases: Cases) -> None:
    read: set[str] = set()
    _judged(evaluator, Cases(cases.rows, cases.prompts, [_Read(f, read) for f in cases.facts], *_texts(cases)))
    if undeclared := sorted(read - set(evaluator.needed_facts())):
        raise Doubt(
            f"it reads {', '.join(undeclared)}, which `needed_facts` does not name, so that a run without it is not "
            "refused at its start"
        )


def _texts(cases: Cases) -> tuple[list[str], list[str]]:
    return cases.responses, cases.others


def _compare(one: list[float | None], other: list[float | None], cases: Cases, how: str) -> None:
    for row, a, b in zip(cases.rows, one, other, strict=True):
        if a != b and (a is None or b is None or abs(a - b) > SAME):
            raise Doubt(f"{row} gets {a} and {b} when it is {how}")
