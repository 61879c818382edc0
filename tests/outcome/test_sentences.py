"""The result of a run in words: what was measured, what was not, and what to do next."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from alignment_core.artifacts import Manifest
from alignment_core.outcome.result import Result, result_from
from alignment_core.outcome.sentences import achieved, lines, next_steps

KEY = "0123456789abcdef0123456789abcdef"


def made(kind: str, metrics: dict[str, Any] | None = None, **config: Any) -> Manifest:
    return Manifest(kind=kind, key=KEY, version=1, config=config, parents={}, metrics=metrics or {}, run="mine")


def rate(wins: int, ties: int, losses: int, low: float, high: float) -> dict[str, float]:
    share = (wins + ties / 2) / (wins + ties + losses)
    return {"wins": wins, "ties": ties, "losses": losses, "rate": share, "low": low, "high": high}


OPTIMIZE = made("optimize", optimizer={"name": "kto"})
STAGES = {
    "ingest": made("ingest", {"used": {"records": 70, "of": 99}, "warnings": ["one", "two"]}),
    "sft": made("sft"),
    "optimize": OPTIMIZE,
    "evaluate": made("evaluate", {"kl": 2.13}),
    "over_sft": made(
        "head_to_head",
        {"length_ratio": 1.081, "win_rate": {"rule": rate(9, 0, 1, 0.55, 0.99), "judge": rate(6, 1, 3, 0.54, 0.68)}},
    ),
    "gate": made("gate", {"passed": True, "judge": "judge", "reasons": ["passed: a rule"]}),
}


def test_a_complete_run() -> None:
    result = result_from(STAGES, aliases=("candidate",))
    assert list(lines(result)) == [
        "`kto` beats the SFT model on 65 % of 10 held-out prompts (54–68, judge `judge`); KL 2.1 nats per response, "
        "answers 8 % longer.",
        "It beats the SFT model on 90 % of 10 held-out prompts (55–99, judge `rule`).",
        "Used 70 of 99 records (29 left out).",
        "Gate: passed; the model is `candidate`.",
        "Warning of ingest: one",
        "Warning of ingest: two",
    ]


def without(*names: str) -> Result:
    return result_from({name: made for name, made in STAGES.items() if name not in names})


def test_a_chat_model_is_compared_with_itself_before() -> None:
    assert achieved(without("sft")).startswith("`kto` beats the base model on 65 % of 10")
    assert "the adapter that it started from" in achieved(
        result_from({"adapter": made("adapter"), **{k: v for k, v in STAGES.items() if k != "sft"}})
    )


def test_a_run_without_judge_gate_or_evaluation() -> None:
    bare = result_from({"optimize": OPTIMIZE})
    assert list(lines(bare)) == [
        "`kto` was trained, and no judge compared it.",
        "To learn how good it is, set `evaluation.evaluators`, `evaluation.reward_model` or `evaluation.endpoint`.",
    ]
    measured = without("over_sft", "gate", "ingest")
    assert next(lines(measured)) == "`kto` was trained, and no judge compared it; KL 2.1 nats per response."
    for kl, shown in ((99.4, "99"), (99.6, "100"), (162.3, "162"), (0.0523, "0.052")):
        assert f"KL {shown} nats" in achieved(replace(measured, kl=kl))


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.51, 0.6, "`kto` beats the SFT model on 55 % of 20 held-out prompts (51–60, judge `a`)."),
        (0.4, 0.49, "`kto` loses to the SFT model: it is better on 55 % of 20 held-out prompts (40–49, judge `a`)."),
        (0.5, 0.6, "`kto` is not clearly better or worse than the SFT model: better on 55 % of 20"),
    ],
)
def test_only_an_interval_beside_one_half_decides(low: float, high: float, words: str) -> None:
    over = made("head_to_head", {"win_rate": {"a": rate(11, 0, 9, low, high)}})
    stages = {"sft": STAGES["sft"], "optimize": OPTIMIZE, "over_sft": over}
    assert achieved(result_from(stages)).startswith(words)


@pytest.mark.parametrize(
    ("ratio", "words"), [(1.081, "8 % longer"), (0.9, "10 % shorter"), (1.004, "answers as long as before")]
)
def test_length(ratio: float, words: str) -> None:
    assert words in achieved(replace(without(), length_ratio=ratio))


def test_a_refusal_says_why_and_proposes_no_promotion(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    verdict = made("gate", {"passed": False, "judge": "judge", "reasons": ["failed: a", "failed: b"]})
    refused = result_from({**STAGES, "gate": verdict})
    assert "Gate: not passed: a; b." in lines(refused)
    store = tmp_path / "artifacts"
    assert list(next_steps(refused, store, "my.yaml")) == ["`align chat my.yaml --model 0123456789ab`"]
    chat, promote = next_steps(without("gate"), tmp_path / "other")
    assert (chat, promote) == (
        "`align chat CONFIG --model 0123456789ab`", "`align promote 0123456789ab --store other`",
    )  # fmt: skip
    in_production = replace(without(), aliases=("candidate", "production"))
    assert list(next_steps(in_production, store))[1] == "`align export production --to merged --out my-model`"


def test_the_data_report_is_named_if_records_were_left_out(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.touch()
    assert f"Used 70 of 99 records (29 left out: see {page})." in lines(result_from(STAGES, data_report=page))
    all_used = {**STAGES, "ingest": made("ingest", {"used": {"records": 1000, "of": 1000}})}
    assert "Used 1,000 of 1,000 records." in lines(result_from(all_used, data_report=page))


def test_more_warnings_than_fit_are_counted() -> None:
    warned = made("ingest", {"warnings": list("abcde")})
    assert list(lines(result_from({"optimize": OPTIMIZE, "ingest": warned})))[-2:] == [
        "Warning of ingest: c", "2 more warnings: see the pages of the stages.",
    ]  # fmt: skip
