"""A complete session on the chat page in a browser, with a real model."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from browser import BrowserPage
from pages import served_page
from playwright.sync_api import expect
from safetensors.torch import load_file, save_file
from served import ALIGN, PATIENCE, until

from alignment_core.artifacts import ArtifactStore
from alignment_core.config_file import load_config
from alignment_core.execution.build import build_here
from alignment_core.feedback import open_feedback
from alignment_core.planning.pipeline import plan_pipeline
from alignment_core.planning.untouched_base import untouched_base
from alignment_core.progress import Silent
from alignment_core.registry import load_registry

pytestmark = [pytest.mark.ci, pytest.mark.timeout(3600)]

expect.set_options(timeout=1000 * PATIENCE)

ENDLESS = ("--set", "chat.max_new_tokens=100000", "--set", "chat.temperature=0")
"""Settings for an endless answer: no greedy answer of the model in `settings` ends."""


@pytest.fixture
def settings(tmp_path: Path, tiny_model: Path) -> Path:
    """Write a config file whose store holds two SFT models, the first of them in production."""
    rows = [{"prompt": f"What is {n} plus {n}?", "completion": f"It is {2 * n}."} for n in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    endless = _without_end(tiny_model, tmp_path / "endless")
    config = {
        "model": {"base": str(endless), "load_in": "fp32", "max_length": 512, "lora": {"rank": 2}},
        "data": {"sources": [{"path": str(tmp_path / "rows.jsonl")}], "held_out_fraction": 0.3},
        "sft": {"batch_size": 8},
        "store": str(tmp_path / "store"),
        "feedback": str(tmp_path / "feedback.db"),
        "device": "cpu",
        "chat": {"max_new_tokens": 40, "system": "Be brief."},
    }
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(config))
    for number, changes in enumerate(([], ["seed=1"])):
        plan = plan_pipeline(load_config(file, changes), load_registry())
        assert plan.sft is not None
        for call in (plan.ingest, plan.sft):
            build_here(call, Silent())
        ArtifactStore(tmp_path / "store").aliases.promote(
            "production" if number == 0 else "next", "sft", plan.sft.key, by="test", reason="test"
        )
    return file


def _without_end(model: Path, folder: Path) -> Path:
    """Copy a model such that no greedy answer ends: the logit of its end token is 0, and the largest is positive."""
    shutil.copytree(model, folder)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"][json.loads((folder / "config.json").read_text())["eos_token_id"]] = 0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def key_of(folder: Path, alias: str) -> str:
    change = ArtifactStore(folder / "store").aliases.current(alias)
    assert change is not None
    return change.key


def test_chat_and_thumbs(settings: Path, tmp_path: Path, browser_page: BrowserPage) -> None:
    first, second = key_of(tmp_path, "production"), key_of(tmp_path, "next")
    with served_page(tmp_path, "chat", settings) as url:
        port = int(url.rpartition(":")[2])
        page = browser_page.open(url)
        page.get_by_label("Your name").fill("Ann")
        page.keyboard.press("Enter")
        expect(page.get_by_test_id("model")).to_have_text(f"production: sft/{first[:8]}")
        answers = page.get_by_test_id("answer")
        for number in (1, 2):
            page.get_by_label("Your message").fill(f"What is {number} plus {number}?")
            page.keyboard.press("Enter")
            expect(answers).to_have_count(number)
            expect(page.get_by_role("button", name="Send")).to_be_visible()  # the page scrolls no more
        first_answers = answers.all_text_contents()
        page.get_by_label("Good answer").nth(1).click()
        page.get_by_label("Comment").fill("right, and short")
        page.keyboard.press("Enter")
        expect(page.get_by_text("Comment saved.")).to_be_visible()
        page.get_by_label("Bad answer").first.click()
        expect(page.get_by_label("Comment")).to_have_count(2)
        browser_page.picture("chat")
        with open_feedback(str(tmp_path / "feedback.db")) as store:
            votes = list(store.votes())
        assert [(vote.up, vote.comment, vote.rater.name) for vote in votes] == [
            (True, "right, and short", "Ann"), (False, "", "Ann"),
        ]  # fmt: skip
        assert [vote.responses[0].text for vote in votes] == first_answers[::-1]
        assert {vote.responses[0].model for vote in votes} == {first}
        # The prompt of a vote is the complete conversation before the answer.
        assert [message["role"] for message in votes[0].prompt] == ["system", "user", "assistant", "user"]
        assert votes[0].prompt[2]["content"] == first_answers[0]

        # A newly promoted model answers the next message, and the page shows its key.
        moved = subprocess.run([*ALIGN, "promote", second, "--store", str(tmp_path / "store")], check=False)
        assert moved.returncode == 0
        expect(page.get_by_test_id("model")).to_have_text(f"production: sft/{second[:8]}")
        page.get_by_label("Your message").fill("And three?")
        page.keyboard.press("Enter")
        expect(answers).to_have_count(3)
        expect(page.get_by_role("button", name="Send")).to_be_visible()
        page.get_by_label("Good answer").nth(2).click()
        expect(page.get_by_label("Comment")).to_have_count(3)
        with open_feedback(str(tmp_path / "feedback.db")) as store:
            assert list(store.votes())[-1].responses[0].model == second
    with served_page(tmp_path, "chat", settings, port=port):
        page.reload()
        expect(answers).to_have_count(3)
        assert answers.all_text_contents()[:2] == first_answers
        browser_page.expected("ERR_CONNECTION_REFUSED|WebSocket|ERR_EMPTY_RESPONSE|ERR_CONNECTION_RESET|ERR_SOCKET")
        page.set_viewport_size({"width": 360, "height": 740})
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        browser_page.picture("chat-phone")
        # A second click withdraws the thumb.
        page.get_by_label("Good answer").nth(2).click()
        expect(page.get_by_label("Comment")).to_have_count(2)
        page.get_by_role("button", name="New conversation").click()
        expect(answers).to_have_count(0)
        page.goto("about:blank")
    with open_feedback(str(tmp_path / "feedback.db")) as store:
        assert store.count() == 2


def test_two_models_answer_side_by_side(settings: Path, tmp_path: Path, browser_page: BrowserPage) -> None:
    """Each keeps its own conversation, and a thumb says which of them wrote the answer."""
    key = key_of(tmp_path, "production")
    with served_page(tmp_path, "chat", settings, "--beside", "base") as url:
        page = browser_page.open(url)
        page.get_by_label("Your name").fill("Ann")
        page.keyboard.press("Enter")
        expect(page.get_by_test_id("model")).to_have_text([f"production: sft/{key[:8]}", "base: endless"])
        answers = page.get_by_test_id("answer")
        for number in (1, 2):
            page.get_by_label("Your message").fill(f"What is {number} plus {number}?")
            page.keyboard.press("Enter")
            expect(answers).to_have_count(2 * number)
            expect(page.get_by_role("button", name="Send")).to_be_visible()
        left, right = answers.nth(2).bounding_box(), answers.nth(3).bounding_box()
        assert left is not None
        assert right is not None
        assert left["y"] == right["y"]
        assert left["x"] + left["width"] < right["x"]
        texts = answers.all_text_contents()
        page.get_by_label("Good answer").nth(2).click()
        expect(page.get_by_label("Comment")).to_have_count(1)
        page.get_by_label("Bad answer").nth(3).click()
        expect(page.get_by_label("Comment")).to_have_count(2)
        browser_page.picture("chat-beside")
        page.reload()
        expect(answers).to_have_text(texts)
        page.set_viewport_size({"width": 360, "height": 740})
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        browser_page.picture("chat-beside-phone")
        page.goto("about:blank")
    with open_feedback(str(tmp_path / "feedback.db")) as store:
        votes = list(store.votes())
    assert [(vote.up, vote.responses[0].text) for vote in votes] == [(True, texts[2]), (False, texts[3])]
    assert [vote.prompt[2]["content"] for vote in votes] == texts[:2], "each model sees only its own answers"
    base = untouched_base(load_config(settings), load_registry()).key
    assert [vote.responses[0].model for vote in votes] == [key, base]
    assert list((tmp_path / "store/.pages/chat").glob("storage-user-*.json")), "the conversation is in the store"
    assert not (tmp_path / ".nicegui").exists()


def test_stopped_answer_is_kept_and_killed_model_is_reported(
    settings: Path, tmp_path: Path, browser_page: BrowserPage
) -> None:
    with served_page(tmp_path, "chat", settings, *ENDLESS) as url:
        page = browser_page.open(url)
        page.get_by_label("Your name").fill("Ann")
        page.keyboard.press("Enter")
        page.get_by_label("Your message").fill("Tell me a long story.")
        page.keyboard.press("Enter")
        message = page.locator(".words").nth(1)
        expect(message).to_have_text(re.compile(r"\w{2}"))
        page.get_by_role("button", name="Stop").click()
        expect(page.get_by_test_id("answer")).to_have_count(1)
        expect(page.get_by_role("button", name="Send")).to_be_visible()
        page.get_by_label("Your message").fill("And another one.")
        page.keyboard.press("Enter")
        expect(page.locator(".words").nth(3)).to_have_text(re.compile(r"\w{2}"))
        os.kill(_model_process(), signal.SIGKILL)
        expect(page.get_by_text("the model process exited")).to_be_visible()
        page.get_by_label("Your message").fill("Are you there?")
        page.keyboard.press("Enter")
        expect(page.locator(".words").nth(5)).to_have_text(re.compile(r"\w{2}"))
        model = _model_process()
        page.goto("about:blank")
    until(lambda: not Path(f"/proc/{model}").exists())


def _model_process() -> int:
    """Return the id of the process that holds the model, a grandchild of this process."""
    import psutil

    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it has ended
            if "alignment_core.feedback.pages.chat_process" in process.cmdline():
                found.append(process.pid)
    (model,) = found
    return int(model)
