"""The report pages of stages and runs in Prefect."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from alignment_core.artifacts import Artifact
from alignment_core.config import PipelineConfig
from alignment_core.evaluation.calibration import calibration
from alignment_core.evaluation.promotion import Promotion
from alignment_core.execution.build import StageResult, build
from alignment_core.execution.stage import StageCall
from alignment_core.progress import Silent
from alignment_flows.reports.curves import curve_charts, draw_curves, read_curves
from alignment_flows.reports.run import run_report
from alignment_flows.reports.stage import stage_report

PICTURE_BYTES = 80_000
"""A picture is in Prefect's database, and its pages load reports completely."""
PPO = ("loss", "score", "kl", "kl_coef", "response_length", "entropy", "value_loss", "grad_norm", "learning_rate")


def history(folder: Path, steps: int, names: tuple[str, ...] = PPO) -> Path:
    """Write a history of jagged curves, which compress worst."""
    file = folder / "metrics.jsonl"
    lines = (
        {"step": s + 1, **{n: (s * 7919 * (i + 1) % 101) / 101 for i, n in enumerate(names)}} for s in range(steps)
    )
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


@pytest.mark.parametrize("steps", [2, 60, 20_000])
def test_curves_are_a_small_inline_picture(tmp_path: Path, steps: int) -> None:
    picture = draw_curves(history(tmp_path, steps))
    assert len(picture) < PICTURE_BYTES
    image = base64.b64decode(picture.removeprefix("data:image/svg+xml;base64,")).decode()
    assert image.count("<polyline") == 6
    assert re.findall(r'class="title">([^<]*)', image) == [
        "Loss", "Score", "KL", "Response length", "Value loss", "Entropy",
    ]  # fmt: skip


def test_without_steps_there_is_no_picture(tmp_path: Path) -> None:
    assert draw_curves(history(tmp_path, 0)) == ""
    assert draw_curves(history(tmp_path, 1)) == ""


def test_any_metric_is_a_curve_and_both_sides_of_a_judgment_are_one_chart(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    names = ("zeal", "reward_rejected", "reward_chosen", "chosen", "text")
    lines = [{"step": n, **dict.fromkeys(names[:-1], float(n)), "text": "x", "once": 1.0} for n in (1, 2)]
    del lines[1]["once"]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_curves(file)["zeal"] == [(1, 1.0), (2, 2.0)]
    charts = curve_charts({"strange": read_curves(file)}, {"strange": 0})
    assert [chart.title for chart in charts] == ["Reward", "Chosen", "Zeal"]
    assert [row[0] for row in charts[0].rows] == ["chosen", "rejected"]


def test_curves_need_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from alignment_flows.reports.curves import draw_curves\n"
        f"assert draw_curves(Path({str(history(tmp_path, 30))!r}))\n"
        "print({'torch', 'transformers', 'matplotlib.pyplot'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


def test_report_shows_curves_and_samples_as_text(probe: object, tmp_path: Path) -> None:
    call: StageCall = probe("write", isolation="inline")  # type: ignore[operator]
    built = build(call, Silent())
    folder = built.artifact.path
    history(folder, 20)
    rows = [
        {"prompt": [{"role": "user", "content": "Say\n# no"}], "response": "![x](http://evil)", "reward": 0.25},
        {"prompt": [{"role": "user", "content": "More?"}], "responses": ["one\0", "two"]},
    ]
    (folder / "responses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = stage_report(call, built)
    assert "## Curves\n\n![curves](data:image/svg+xml;base64," in report
    assert "**Prompt** \n\n    Say\n    # no\n" in report
    assert "**Response** reward 0.25\n\n    ![x](http://evil)\n" in report
    assert "    one\N{REPLACEMENT CHARACTER}\n" in report
    assert "    two\n" not in report
    cached = StageResult(built.artifact, True, 0.0, built.metrics)
    assert "## Curves" not in stage_report(call, cached)


def test_long_digest_is_shortened(probe: object) -> None:
    call: StageCall = probe("write", isolation="inline", base="0123456789ab" + 52 * "f", revision="0123abc")  # type: ignore[operator]
    report = stage_report(call, build(call, Silent()))
    assert "| base | 0123456789ab… |" in report
    assert "| revision | 0123abc |" in report


def test_report_of_a_reward_model_has_the_reliability_plot(probe: object) -> None:
    call: StageCall = probe("write", isolation="inline")  # type: ignore[operator]
    built = build(call, Silent())
    found = calibration([2.0, 1.0, -0.5, 0.1])
    (built.artifact.path / "calibration.json").write_text(json.dumps(found.to_json()))
    report = stage_report(call, built)
    picture = report.split("![reliability](data:image/svg+xml;base64,")[1].split(")")[0]
    image = base64.b64decode(picture).decode()
    # 0.1 and 0.5 the wrong way, 1 and 2: confidences of 0.52, 0.62, 0.73 and 0.88 are in different bins
    assert image.count('class="mark s1"') == 4
    assert image.count('class="equal"') == 1


def test_head_to_head_report_shows_both_responses_as_text(probe: object) -> None:
    call: StageCall = probe("write", isolation="inline")  # type: ignore[operator]
    built = build(call, Silent())
    line = {
        "prompt": [{"role": "user", "content": "Say # no"}],
        "response": "no",
        "opponent": "![x](http://evil)",
        "verdicts": {"rule": 1, "reward": -1, "endpoint": None},
    }
    (built.artifact.path / "verdicts.jsonl").write_text(json.dumps(line) + "\n")
    report = stage_report(call, built)
    assert "**The model** \n\n    no\n" in report
    assert "**The opponent** \n\n    ![x](http://evil)\n" in report
    assert "Preferred: the model (rule), the opponent (reward), no verdict (endpoint)" in report


def test_run_report_has_adapter_metrics_lineage_and_promotion(probe: object) -> None:
    calls = {"ingest": probe("write", isolation="inline")}  # type: ignore[operator]
    parents = {"data": calls["ingest"].key}
    calls["optimize"] = probe("report", isolation="inline", parents=parents, optimizer={"name": "dpo"})  # type: ignore[operator]
    built = {name: build(call, Silent()) for name, call in calls.items()}
    for name, accuracy in (("evaluate_sft", 0.5), ("evaluate", 0.75)):
        made: Artifact = built["optimize"].artifact
        built[name] = StageResult(made, False, 1.0, {"accuracy": accuracy, "warnings": []})
    config = PipelineConfig.model_validate(
        {"name": "mine", "model": {"base": "a/model"}, "data": {"sources": [{"path": "x.jsonl"}]}}
    )
    report = run_report(config, built, None)
    place = str(built["optimize"].artifact.path)
    assert f'Path("{place}")' in report
    store, key = Path(place).parents[1], calls["optimize"].key
    assert f"align export {key[:12]} --store {store} --out my-model --to vllm" in report
    assert "| accuracy | 0.5 | 0.75 |" in report
    assert "from ingest |" in report
    assert "romoted" not in report
    rate = {"rate": 0.75, "low": 0.6, "high": 0.9, "wins": 7, "ties": 1, "losses": 2}
    built["over_sft"] = StageResult(made, False, 1.0, {"win_rate": {"rule": rate}})
    failed = run_report(config, built, Promotion(False, (), ("failed: too long",), {}))
    assert "## Not promoted\n\n- failed: too long" in failed
    assert "| the SFT model | rule | 75.0 % | 60.0 to 90.0 % | 7 / 1 / 2 |" in failed
    passed = run_report(config, built, Promotion(True, ("candidate",), ("passed: it",), {}))
    assert "## Promoted\n\nThe model is now `candidate`.\n\n- passed: it" in passed
    assert "Listener errors" not in passed
    built["sft"] = StageResult(made, False, 1.0, {}, ("`tracker`: OSError: away",))
    assert "## Listener errors\n\n- sft: `tracker`: OSError: away\n\n## The adapter" in run_report(config, built, None)
    cached = {name: StageResult(stage.artifact, True, 0.0, stage.metrics) for name, stage in built.items()}
    assert "**Nothing to do**" in run_report(config, cached, None)
    assert "**Nothing to do**" not in report
