"""The result of a run and the advice on it in words, with names and commands between backticks.

The terminal, the page of the run and the report of a comparison show these sentences, so that all say the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from alignment_core.artifacts.models import SHORT
from alignment_core.outcome.result import Result, WinRate
from alignment_core.plugin_api import Advice
from alignment_core.texts import percent

SHOWN = 3
"""Maximum number of warnings that are shown. The pages of the stages have all of them."""
JUDGES = "`evaluation.evaluators`, `evaluation.reward_model` or `evaluation.endpoint`"


def achieved(result: Result) -> str:
    """Return one sentence: how the model compares with its start, its KL and the length of its answers."""
    over_start = [rate for rate in result.win_rates if rate.opponent == result.start]
    name = f"`{result.optimizer}`"
    first = f"{name} {against(over_start[0])}" if over_start else f"{name} was trained, and no judge compared it"
    facts = []
    if result.kl is not None:
        kl = f"{result.kl:.2g}" if result.kl < 99.5 else f"{result.kl:.0f}"  # otherwise 1.6e+02
        facts.append(f"KL {kl} nats per response")
    if result.length_ratio is not None:
        facts.append(_length(result.length_ratio))
    return "; ".join([first, ", ".join(facts)] if facts else [first]) + "."


def lines(result: Result) -> Iterator[str]:
    """Yield the result as sentences: what was achieved, by every judge, the data, the gate and the warnings."""
    yield achieved(result)
    yield from (f"It {against(rate)}." for rate in result.win_rates[1:])
    if not result.win_rates:
        yield f"To learn how good it is, set {JUDGES}."
    if result.used is not None and result.of is not None:
        yield _used(result.used, result.of, result.data_report)
    yield from _gate(result)
    for stage, text in result.warnings[:SHOWN]:
        yield f"Warning of {stage}: {text}"
    if (more := len(result.warnings) - SHOWN) > 0:
        yield f"{more} more {'warning' if more == 1 else 'warnings'}: see the pages of the stages."


def next_steps(result: Result, store: Path, config: str = "CONFIG") -> Iterator[str]:
    """Yield what to do with the model, as commands.

    Args:
        result: the result of the run.
        store: folder of the artifact store.
        config: the config file of the run, as a person would type it.
    """
    yield f"`align chat {config} --model {result.key[:SHORT]}`"
    if result.passed is not False and "production" not in result.aliases:
        yield f"`align promote {result.key[:SHORT]}{store_option(store)}`"
    elif "production" in result.aliases:
        yield f"`align export production{store_option(store)} --to merged --out my-model`"


def advised(advice: Sequence[Advice]) -> Iterator[str]:
    """Yield each advice in two sentences, with the name of its rule."""
    yield from (f"{one.finding}: {one.meaning}. To change it: {one.do}. ({one.rule})" for one in advice)


def store_option(store: Path) -> str:
    """Return the option that names a store, or nothing for the default one."""
    place = store.absolute()
    if place == Path("artifacts").absolute():
        return ""
    here = Path.cwd()
    return f" --store {place.relative_to(here) if place.is_relative_to(here) else place}"


def percent_range(low: float, high: float) -> str:
    """Return an interval of shares in percent, such as `54–68`."""
    return f"{100 * low:.0f}–{100 * high:.0f}"


def against(rate: WinRate) -> str:
    """Return how a model compares with another one, as a sentence without its subject."""
    share, ends = percent(rate.rate), percent_range(rate.low, rate.high)
    where = f"of {rate.prompts} held-out prompts ({ends}, judge `{rate.judge}`)"
    if rate.low > 0.5:
        return f"beats {rate.opponent} on {share} {where}"
    if rate.high < 0.5:
        return f"loses to {rate.opponent}: it is better on {share} {where}"
    return f"is not clearly better or worse than {rate.opponent}: better on {share} {where}"


def _length(ratio: float) -> str:
    change = round(100 * (ratio - 1)) if math.isfinite(ratio) else 0
    return f"answers {abs(change)} % {'longer' if change > 0 else 'shorter'}" if change else "answers as long as before"


def _used(used: int, of: int, report: str | None) -> str:
    left = of - used
    see = f": see {report}" if report is not None and left else ""
    return f"Used {used:,} of {of:,} records" + (f" ({left:,} left out{see})" if left else "") + "."


def _gate(result: Result) -> Iterator[str]:
    if result.passed is None:
        return
    names = " and ".join(f"`{alias}`" for alias in result.aliases)
    if result.passed:
        yield f"Gate: passed; the model is {names}." if names else "Gate: passed."
    else:
        yield f"Gate: not passed: {'; '.join(reason.removeprefix('failed: ') for reason in result.reasons)}."
