"""Sweeps: means and differences over seeds, contenders that get no more seeds, the page, and a whole sweep."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from accessible import check_looks
from browser import BrowserPage
from rich.console import Console
from scipy import stats

import alignment_flows.comparison
import alignment_flows.tasks
from alignment_core.artifacts import ArtifactStore
from alignment_core.config_file import load_config
from alignment_core.errors import AlignmentError, TrainingError
from alignment_core.evaluation.win_rate import win_rate
from alignment_core.execution.build import StageResult, build
from alignment_core.outcome.leaderboard import leaderboard
from alignment_flows import api
from alignment_flows.cli.show.comparison import show_comparison
from alignment_flows.comparison import compare, seed_by_seed
from alignment_flows.contenders import Contest
from alignment_flows.reports.comparison import Comparison, OptimizerRun
from alignment_flows.reports.comparison_page import headline, html, markdown, write_comparison
from alignment_flows.reports.over_seeds import Round, losers, over_seeds
from alignment_flows.tasks import StageRunner

Write = Callable[..., Path]
Build = Callable[..., StageResult]

PROMPTS = 20
NUMBERS = count()
"""Tell apart artifacts that are otherwise the same."""
GOOD, MIDDLE, BAD = [1] * 15 + [-1] * 5, [1] * 13 + [-1] * 7, [-1] * 18 + [1] * 2
"""Verdicts on the prompts: 75, 65 and 10 % preferred."""


def asked(number: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"Question {number}?"}]


def run_of(
    built: Build, name: str, seed: int, verdicts: Sequence[int | None], error: AlignmentError | None = None
) -> OptimizerRun:
    """Return a run whose model scores 1 where it is preferred, and the SFT model's score is its seed."""
    settings = {"name": "dpo", "beta": float(name.rpartition("=")[2])}
    if error is not None:
        return OptimizerRun(name, settings, {}, error)
    lines = [
        {"prompt": asked(n), "response": "yes" if one == 1 else "no", "score": float(one == 1)}
        for n, one in enumerate(verdicts)
    ]
    start = [{**line, "response": "no", "score": float(seed)} for line in lines]
    decided = [one for one in verdicts if one is not None]
    judged = [{"prompt": asked(n), "verdicts": {"score": one}} for n, one in enumerate(verdicts)]
    of = f"{name} {seed}, {next(NUMBERS)}"
    stages = {
        "evaluate_sft": built("evaluate", f"sft {of}", {"kl": 0.0}, files={"responses.jsonl": start}),
        "optimize": built("optimize", of, seconds=10.0 + seed, config={"optimizer": settings, "of": of}),
        "evaluate": built(
            "evaluate", of, {"kl": 1.0 + seed, "kl_standard_error": 0.1}, files={"responses.jsonl": lines}
        ),
        "over_sft": built(
            "head_to_head", of, {"win_rate": {"score": win_rate(decided).to_json()}}, files={"verdicts.jsonl": judged}
        ),
    }  # fmt: skip
    return OptimizerRun(name, settings, stages)


@pytest.fixture
def rounds(built: Build) -> list[Round]:
    """Two seeds of three contenders. The last one gets only the first seed."""
    first = [run_of(built, name, 0, found) for name, found in (("dpo beta=1", GOOD), ("dpo beta=2", MIDDLE))]
    second = [run_of(built, name, 1, found) for name, found in (("dpo beta=1", GOOD[::-1]), ("dpo beta=2", MIDDLE))]
    return [Round(0, [*first, run_of(built, "dpo beta=3", 0, BAD)]), Round(1, second)]


@pytest.fixture
def sweep(rounds: list[Round]) -> Comparison:
    return over_seeds(rounds, stop_losers=True)


def anova(table: Sequence[Sequence[float]]) -> float:
    """Return half the interval of two seeds, by other formulas: variances of rows, columns and residuals."""
    (a, b), size = table, len(table[0])
    seeds = size * (sum(a) / size - sum(b) / size) ** 2 / 2
    means = [(x + y) / 2 for x, y in zip(a, b, strict=True)]
    prompts = 2 * stats.tvar(means)
    noise = stats.tvar([x - y for x, y in zip(a, b, strict=True)]) / 2
    both = max(seeds + prompts - noise, seeds, prompts)
    freedom = both**2 / (seeds**2 + prompts**2 / (size - 1) + noise**2 / (size - 1))
    widths = [stats.t.ppf(0.975, freedom) * both**0.5, stats.t.ppf(0.975, 1) * seeds**0.5]
    return float(max(widths) / (2 * size) ** 0.5)


def test_means_and_differences_are_over_seeds_and_prompts(sweep: Comparison) -> None:
    found = sweep.over_seeds
    assert found is not None
    assert (found.seeds, found.judge, found.best) == ([0, 1], "score", "dpo beta=1")
    assert found.rates == {"dpo beta=1": {0: 0.75, 1: 0.75}, "dpo beta=2": {0: 0.65, 1: 0.65}, "dpo beta=3": {0: 0.1}}
    good = [[(one + 1) / 2 for one in verdicts] for verdicts in (GOOD, GOOD[::-1])]
    half = anova(good)
    assert (found.means["dpo beta=1"].low, found.means["dpo beta=1"].high) == pytest.approx((0.75 - half, 0.75 + half))
    apart = [[(one + 1) / 2 - other for one, other in zip(MIDDLE, of_seed, strict=True)] for of_seed in good]
    half = anova(apart)
    difference = found.differences["dpo beta=2"]
    assert (difference.mean, difference.low, difference.high) == pytest.approx((-0.1, -0.1 - half, -0.1 + half))
    # One seed has the interval of its own run.
    exact = win_rate(BAD)
    assert (found.means["dpo beta=3"].low, found.means["dpo beta=3"].high) == (exact.low, exact.high)
    assert found.unsure == ["dpo beta=2"]


def test_rows_are_of_all_seeds(sweep: Comparison) -> None:
    base, first, _, third = sweep.rows
    assert (base.model, base.scores["score"].mean) == ("base", 0.5)
    assert (first.scores["score"].mean, first.metrics, first.seconds) == (0.75, {"kl": 1.5}, 21.0)
    assert first.characters is not None
    assert first.characters.mean == pytest.approx(0.75 * 3 + 0.25 * 2)
    assert {name: first.win_rate["score"][name] for name in ("wins", "losses", "seeds")} == {
        "wins": 30, "losses": 10, "seeds": 2,
    }  # fmt: skip
    assert (third.metrics["kl_standard_error"], third.seconds) == (0.1, 10.0)


def test_losers_are_clearly_worse_than_the_best_on_the_same_prompts(built: Build, rounds: list[Round]) -> None:
    found = losers(rounds[:1])
    assert list(found) == ["dpo beta=3"]
    assert found["dpo beta=3"].difference.mean == pytest.approx(-0.65)
    assert found["dpo beta=3"].difference.high < 0 < losers_of(built, [0] * PROMPTS)


def losers_of(built: Build, verdicts: list[int]) -> float:
    """Return the upper end of the difference of a contender to one with the same verdicts."""
    same = [Round(0, [run_of(built, f"dpo beta={beta}", 0, verdicts) for beta in (1, 2)])]
    assert losers(same) == {}
    compared = over_seeds(same, stop_losers=True).over_seeds
    assert compared is not None
    return compared.differences["dpo beta=2"].high


def test_prompts_without_a_verdict_are_left_out_of_both(built: Build) -> None:
    part: list[int | None] = [None, *GOOD[1:]]
    runs = [[run_of(built, "dpo beta=1", seed, GOOD), run_of(built, "dpo beta=2", seed, part)] for seed in (0, 1)]
    found = over_seeds([Round(0, runs[0]), Round(1, runs[1])], stop_losers=False).over_seeds
    assert found is not None
    assert (found.means["dpo beta=1"].prompts, found.means["dpo beta=2"].prompts) == (20, 19)
    assert (found.differences["dpo beta=2"].prompts, found.differences["dpo beta=2"].mean) == (19, 0.0)


@pytest.mark.parametrize(("stops", "seeds"), [(False, "1112223334"), (True, "11122234")])
def test_who_loses_or_fails_gets_no_more_seeds(
    built: Build, monkeypatch: pytest.MonkeyPatch, stops: bool, seeds: str
) -> None:
    """The verdicts of each contender are the same with every seed. The last one fails."""
    verdicts = {"dpo beta=1": GOOD, "dpo beta=2": MIDDLE, "dpo beta=3": BAD, "dpo beta=4": GOOD}
    counts: Counter[str] = Counter()

    def side_by_side(stage: StageRunner, plans: Mapping[str, int]) -> list[OptimizerRun]:
        counts.update(name[-1] for name in plans)
        failed = {"dpo beta=4": TrainingError("the loss is NaN")}
        return [run_of(built, name, seed, verdicts[name], failed.get(name)) for name, seed in plans.items()]

    monkeypatch.setattr(alignment_flows.comparison, "side_by_side", side_by_side)
    plans: Any = {seed: dict.fromkeys(verdicts, seed) for seed in (0, 1, 2)}
    found = seed_by_seed(StageRunner(), plans, Contest(seeds=3, stop_losers=stops))
    assert counts == Counter(seeds)
    assert found.over_seeds is not None
    assert [one.model for one in found.over_seeds.stopped] == (["dpo beta=3"] if stops else [])
    assert [run.name for run in found.runs if run.error] == ["dpo beta=4"]
    assert "the loss is NaN" in html(found)


def test_page_says_what_a_reader_has_to_know(sweep: Comparison, tmp_path: Path) -> None:
    write_comparison(sweep, tmp_path)
    page = (tmp_path / "report.html").read_text()
    for shown in (
        "dpo beta=1 is preferred to base on 75 % (",
        "It is not clearly better than dpo beta=2.",
        "<code>dpo beta=3</code> got no more seeds after 1 seed: -65 (",
        "After each seed, a contender got no more seeds if",
        "cover other prompts and other seeds",
        "its win rate is likely too high",
        "Win rate minus that of dpo beta=1, points",
        "20 prompts × 2 seeds",
        "Seed by seed",
        "stopped",
    ):
        assert shown in page, shown
    report = json.loads((tmp_path / "report.json").read_text())["over_seeds"]
    assert report["stopped"][0]["best"] == "dpo beta=1"
    assert report["rates"]["dpo beta=2"] == {"0": 0.65, "1": 0.65}
    assert "got no more seeds after 1 seed" in markdown(sweep)


def test_one_seed_is_not_said_to_cover_others(built: Build) -> None:
    verdicts = {"dpo beta=1": GOOD, "dpo beta=2": BAD}
    found = over_seeds([Round(0, [run_of(built, name, 0, one) for name, one in verdicts.items()])], stop_losers=False)
    assert found.over_seeds is not None
    assert "one seed says nothing about them" in html(found)
    assert "Seed by seed" not in html(found)
    assert headline(found.rows, found.over_seeds).endswith("judged by score."), "beta=2 is clearly worse"


@pytest.mark.parametrize("columns", [80, 120])
def test_terminal_shows_a_sweep_in_80_columns(
    sweep: Comparison, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert Console().width == columns
    show_comparison(sweep, Path("comparison"), Path("run.yaml"), as_json=False)
    printed = capsys.readouterr().out
    table = [line for line in printed.splitlines() if "│" in line]
    assert max(map(len, table)) <= 80
    assert [line.split("│")[1].strip() for line in table] == ["dpo beta=1", "dpo beta=2", "dpo beta=3"]
    assert "-65 (" in table[2]
    assert "1, stopped" in table[2]
    assert "Next, for dpo beta=1:" in printed


@pytest.mark.ci
def test_page_of_a_sweep_is_readable_everywhere(sweep: Comparison, tmp_path: Path, browser_page: BrowserPage) -> None:
    write_comparison(sweep, tmp_path)
    check_looks(browser_page.open((tmp_path / "report.html").as_uri()))


@pytest.mark.ci
@pytest.mark.usefixtures("prefect_server")
def test_a_whole_sweep_builds_every_shared_stage_once(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two values with two seeds: one data set, an SFT model and its log-probabilities per seed, four models."""
    builds: Counter[str] = Counter()

    def counted(call: Any, progress: Any) -> StageResult:
        found = build(call, progress)
        builds[call.stage] += not found.cached
        return found

    monkeypatch.setattr(alignment_flows.tasks, "build", counted)
    evaluation = {"max_prompts": 4, "max_new_tokens": 8, "evaluators": [{"name": "repetition"}]}
    config, out = load_config(write(isolation="inline", evaluation=evaluation)), tmp_path / "comparison"
    asked_for: Any = {"grid": ["optimizer.beta=0.1,0.5"], "seeds": 2, "folder": out}
    state = compare(config, **asked_for, return_state=True)
    assert state.is_completed(), state.message
    once = {"ingest": 1, "sft": 2, "reference": 2, "optimize": 4, "evaluate": 6, "head_to_head": 4}
    assert dict(builds) == once
    report = json.loads((out / "report.json").read_text())
    assert report["over_seeds"]["seeds"] == [0, 1]
    assert list(report["over_seeds"]["means"]) == ["dpo beta=0.1", "dpo beta=0.5"]
    assert {found["seeds"] for found in report["over_seeds"]["means"].values()} == {2}
    runs = leaderboard(ArtifactStore(config.store))
    assert sorted(tuple(line.settings.items()) for line in runs) == [
        (("optimizer.beta", beta), ("seed", seed)) for beta in ("0.1", "0.5") for seed in ("0", "1")
    ]
    api.compare(config, grid=["optimizer.beta=0.1,0.5"], seeds=2, folder=out)
    assert dict(builds) == once, "all of it is in the store"
