"""The report of a comparison: numbers by hand, tables for any width, and a self-contained page."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from alignment_core.errors import AlignmentError, ConfigError, StageCrashed
from alignment_core.execution.build import StageResult
from alignment_flows.cli.show.comparison import comparison_tables, show_comparison
from alignment_flows.reports.comparison import Comparison, Estimate, OptimizerRun, Row, compare_results, estimate
from alignment_flows.reports.comparison_page import check_folder, columns, headline, html, markdown, write_comparison
from alignment_flows.reports.curves import in_order
from alignment_flows.reports.result import best_of

Write = Callable[..., Path]


def answers(word: str, scores: list[float]) -> dict[str, list[dict[str, Any]]]:
    asked = [[{"role": "user", "content": f"Question {n} <b>?"}] for n in range(len(scores))]
    return {
        "responses.jsonl": [
            {"prompt": prompt, "response": f"{word} {n} <script>", "reward": score, "good": float(score > 0)}
            for n, (prompt, score) in enumerate(zip(asked, scores, strict=True))
        ]
    }


def moved(evaluated: StageResult, **metrics: float) -> StageResult:
    return replace(evaluated, metrics={**evaluated.metrics, **metrics})


@pytest.fixture
def comparison(built: Callable[..., StageResult]) -> Comparison:
    """Compare DPO, which wins on three of four prompts, with PPO, whose training crashed."""
    data = built("ingest", "data", {"rows": {"train": {"preferences": 30, "feedback": 60, "prompts": 20}}})
    sft = built("sft", "sft", seconds=12.0, peak_memory_bytes=2**30)
    start = built(
        "evaluate", "start", {"prompts": 4, "kl": 0.0, "kl_standard_error": 0.0}, files=answers("Sft", [0, 0, 0, 1])
    )
    reference = built("reference", "reference", seconds=3.0)
    trained = built(
        "optimize", "dpo", seconds=20.0, peak_memory_bytes=3 * 2**29, config={"optimizer": {"name": "dpo"}},
        parents={"reference": reference.artifact.key},
        files={"metrics.jsonl": [{"step": n, "loss": 1 / n, "margin": float(n)} for n in range(1, 6)]},
    )  # fmt: skip
    metrics = {"prompts": 4, "kl": 2.0, "kl_standard_error": 0.5, "response_length": 9.0, "perplexity": None}
    after = built("evaluate", "after", metrics, files=answers("Dpo", [1, 2, 3, 0]))
    rate = {"wins": 3, "ties": 0, "losses": 1, "rate": 0.75, "low": 0.19412, "high": 0.99369, "p_value": 0.625}
    over = built("head_to_head", "over", {"win_rate": {"reward": rate}})
    shared = {"ingest": data, "sft": sft, "evaluate_sft": start}
    dpo = {**shared, "reference": reference, "optimize": trained, "evaluate": after, "over_sft": over}
    error = StageCrashed("the stage's process was killed by SIGKILL", where="ppo · model")
    return compare_results(
        [OptimizerRun("dpo", {"name": "dpo", "beta": 0.1}, dpo), OptimizerRun("ppo", {"name": "ppo"}, shared, error)]
    )


def test_interval_of_a_mean_by_hand() -> None:
    # 1, 2, 3: mean 2, sample variance 1, standard error 1/√3.
    found = estimate([1.0, 2.0, 3.0])
    assert (found.mean, found.low, found.high) == pytest.approx((2, 2 - 1.96 / 3**0.5, 2 + 1.96 / 3**0.5))
    assert estimate([5.0]) == Estimate(5, -float("inf"), float("inf"))


def test_rows_contain_quality_cost_and_training_rows(comparison: Comparison) -> None:
    sft, dpo, ppo = comparison.rows
    assert (sft.model, sft.seconds, sft.scores["reward"].mean, sft.scores["good"].mean) == ("sft", 12.0, 0.25, 0.25)
    assert (dpo.scores["reward"].mean, dpo.scores["good"].mean, dpo.metrics["kl"]) == (1.5, 0.75, 2.0)
    assert (dpo.seconds, dpo.seconds_before, dpo.peak_memory) == (20.0, 3.0, 3 * 2**29)
    assert dpo.learnt_from == {"preferences": 30}
    assert dpo.win_rate["reward"]["rate"] == 0.75
    assert (ppo.artifact, ppo.scores, ppo.seconds) == (None, {}, None)
    assert "killed by SIGKILL" in (ppo.error or "")
    assert comparison.curves["dpo"]["loss"][:2] == [(1, 1.0), (2, 0.5)]
    assert comparison.samples[0]["answers"]["sft"]["response"] == "Sft 0 <script>"
    assert list(comparison.samples[0]["answers"]) == ["sft", "dpo"]


def test_without_sft_the_models_are_compared_with_the_base(comparison: Comparison) -> None:
    runs = [
        replace(run, built={name: one for name, one in run.built.items() if name != "sft"}) for run in comparison.runs
    ]
    found = compare_results(runs)
    assert [(row.model, row.is_start) for row in found.rows] == [("base", True), ("dpo", False), ("ppo", False)]
    assert found.rows[0].seconds is None, "nothing was trained for it"
    assert list(found.samples[0]["answers"]) == ["base", "dpo"]
    for shown in (html(found), markdown(found)):
        assert "dpo is preferred to base on 75 %" in shown
        assert "sft" not in shown


def test_rows_of_the_data_and_of_the_ranking_are_counted_together(built: Callable[..., StageResult]) -> None:
    """PPO learns from the prompts, which only the ingested data have, and its reward model from the pairs of both."""
    reward = built("reward", "reward")
    parents = {"reward": reward.artifact.key}
    stages = {
        "ingest": built("ingest", "data", {"rows": {"train": {"preferences": 30, "feedback": 60, "prompts": 20}}}),
        "rank": built("rank", "ranked", {"rows": {"train": {"preferences": 5, "feedback": 9}}}),
        "reward": reward,
        "optimize": built("optimize", "ppo", config={"optimizer": {"name": "ppo"}}, parents=parents),
    }
    (row,) = compare_results([OptimizerRun("ppo", {"name": "ppo"}, stages)]).rows
    assert row.learnt_from == {"preferences": 35, "prompts": 20}


def test_table_has_a_cell_with_an_interval_for_each_model(comparison: Comparison) -> None:
    table = columns(comparison.rows)
    assert table["preferred to sft by reward"] == {"dpo": ("75.0 %", "19.4 % to 99.4 %")}
    assert table["KL, nats"] == {"sft": ("0", ""), "dpo": ("2", "± 0.98")}
    assert table["length, tokens"] == {"dpo": ("9", "")}
    assert "perplexity" not in table


@pytest.mark.parametrize(("width", "groups"), [(60, 3), (80, 2), (200, 1)])
def test_terminal_shows_whole_numbers_of_as_many_models_as_fit(width: int, groups: int) -> None:
    """26 columns are for the measures. With gaps of 2, `sft` takes 5, `ppo` ("failed") 8, the others 18.

    Of 60 columns, `sft` and `kto` take 49, `online_dpo` and `ppo` 52. Of 80, all but `grpo` take 75.
    """
    rate = {"rate": 0.712, "low": 0.624, "high": 0.79}
    rows = [
        Row("sft", is_start=True, metrics={"kl": 0.0}),
        Row("kto", win_rate={"a very long name of a judge": rate}, metrics={"kl": 2.5}, seconds=12.0),
        Row("online_dpo", win_rate={"a very long name of a judge": rate}, metrics={"kl": 1.5}, peak_memory=2**30),
        Row("ppo", error="killed"),
        Row("grpo", win_rate={"a very long name of a judge": rate}),
    ]
    shown = StringIO()
    console = Console(width=width, file=shown, highlight=False)
    tables = list(comparison_tables(rows, width))
    for table in tables:
        console.print(table)
    lines = shown.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert len(tables) == groups
    heads = [line.split() for line in lines if not line[:26].strip()]
    assert [name for head in heads for name in head if name.isidentifier()] == [row.model for row in rows]
    text = "\n".join(lines)
    assert text.count("62.4 % to 79.0 %") == 3
    assert "…" not in text
    assert text.count("failed") == 2, "of the win rate and the KL; its cost is unknown"


def test_page_is_complete_and_self_contained(comparison: Comparison, tmp_path: Path) -> None:
    write_comparison(comparison, tmp_path / "report")
    page = (tmp_path / "report" / "report.html").read_text()
    assert not re.search(r"(?:src|href)=[\"'](?!data:)|@import|url\(", page)
    assert page.count("<figure>") == 6, "win rate, two scores against KL, length, and two curves"
    assert "dpo is preferred to sft on 75 % (19 to 99) of the prompts, judged by the reward model." in page
    assert "<script>" not in page, "an answer is text, not markup"
    assert "<mark>Dpo</mark> 0 &lt;script&gt;" in page
    assert "<bdi>ppo</bdi> failed:" in page
    assert "name: &#34;dpo&#34;\nbeta: 0.1" in page
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert [model["model"] for model in report["models"]] == ["sft", "dpo", "ppo"]
    text = markdown(comparison, tmp_path / "report")
    places = [
        text.index(shown) for shown in ("75 % (19 to 99)", "report.html", "ppo failed", "data:image/svg", "| dpo |")
    ]
    assert places == sorted(places), "the result comes first"
    assert "| dpo | 75.0 % (19.4 % to 99.4 %) |" in text
    assert len(text.encode()) < 2**19, "Prefect stores it in its database"
    assert "<script" not in html(comparison)


def test_comparison_in_which_everything_failed(tmp_path: Path) -> None:
    write_comparison(compare_results([OptimizerRun("ppo", {}, {}, AlignmentError("all failed"))]), tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "all failed" in page
    assert "No win rates: no judge compared the responses." in page
    assert "<figure>" not in page


def test_headline_says_what_is_certain() -> None:
    def rows(**rates: tuple[float, float, float]) -> list[Row]:
        found = ((name, dict(zip(("rate", "low", "high"), rate, strict=True))) for name, rate in rates.items())
        return [Row("sft", is_start=True), *(Row(name, win_rate={"rule": rate}) for name, rate in found)]

    first = "kto is preferred to sft on 70 % (60 to 80) of the prompts, judged by rule."
    assert headline(rows(dpo=(0.5, 0.4, 0.59), kto=(0.7, 0.6, 0.8))) == first
    assert headline(rows(dpo=(0.6, 0.5, 0.65), kto=(0.7, 0.6, 0.8))) == (
        f"{first} These prompts cannot tell it apart from dpo: the intervals overlap."
    )
    assert headline(rows(kto=(0.5, 0.4, 0.6))).endswith("That may be chance: the interval contains 50 %.")


def test_report_goes_into_a_folder_that_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(ConfigError, match=r"--out: there is a file in the place of the folder\. got .*notes"):
        check_folder(tmp_path / "notes")
    with pytest.raises(ConfigError, match=r"--out: the report is a folder, not one page\. got .*report\.HTML"):
        check_folder(tmp_path / "report.HTML")
    check_folder(tmp_path)
    check_folder(tmp_path / "new" / "v1.2")


def test_sentences_of_a_comparison(comparison: Comparison) -> None:
    assert comparison.sentences() == [
        "`dpo` is not clearly better or worse than the SFT model: better on 75 % of 4 held-out prompts (19–99, judge "
        "`reward`); KL 2 nats per response."
    ], "nothing was trained by PPO"
    assert best_of(comparison.trained) == "dpo"
    assert "`dpo` is not clearly better" in markdown(comparison)


def test_advice_names_the_runs_that_it_is_for(comparison: Comparison, capsys: pytest.CaptureFixture[str]) -> None:
    """Both learned from the same data, only one moved. PPO crashed and gets no advice."""
    dpo = comparison.trained["dpo"]
    kto = OptimizerRun("kto", {"name": "kto"}, {**dpo, "evaluate": moved(dpo["evaluate"], kl=0.01)})
    both = compare_results([*comparison.runs, kto])
    found = {(names, one.rule) for names, one in both.advice()}
    assert found == {("", "few-held-out-prompts"), ("kto", "hardly-moved")}
    assert next(line for line in markdown(both).splitlines() if "hardly-moved" in line).startswith(
        "- **kto:** The KL from"
    )
    assert "<strong><bdi>kto</bdi>:</strong> <strong>The KL" in html(both)
    assert {tuple(one["models"]) for one in both.to_json()["advice"]} == {("dpo", "kto"), ("kto",)}
    show_comparison(both, Path("there"), Path("my.yaml"), as_json=False)
    shown = capsys.readouterr().out
    assert "\nAdvice for kto: The KL from the start is only 0.01 nats per response: " in shown
    assert "\nAdvice: The model is evaluated on 4 held-out prompts: " in shown
    assert "raise optimizer.learning_rate" in shown, "names stand without backticks"


def test_each_kind_of_curve_is_drawn_before_a_second_one_of_a_kind() -> None:
    """Only two of PPO's five losses and scores come before the metrics that DPO reports. All follow in the end."""
    one = [(1, 0.0), (2, 1.0)]
    names = ("policy_loss", "value_loss", "loss", "raw_score", "score", "kl", "grad_norm", "zeal")
    curves = [
        dict.fromkeys(names, one),
        dict.fromkeys(("loss", "accuracy", "margin", "kl"), one) | {"response_length": [(1, 0.0)]},
    ]
    first = ["loss", "score", "kl", "accuracy", "margin"]
    assert in_order(curves) == [*first, "policy_loss", "raw_score", "value_loss", "zeal", "grad_norm"]
