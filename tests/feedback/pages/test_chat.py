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
from accessible import check_looks
from browser import BrowserPage
from pages import served_page
from playwright.sync_api import expect
from safetensors.torch import load_file, save_file
from served import ALIGN, until

from alignment_core.artifacts import ArtifactStore
from alignment_core.config_file import load_config
from alignment_core.execution.build import build_here
from alignment_core.feedback import open_feedback
from alignment_core.planning.pipeline import plan_pipeline
from alignment_core.planning.untouched_base import untouched_base
from alignment_core.progress import Silent
from alignment_core.registry import load_registry

pytestmark = [pytest.mark.ci, pytest.mark.timeout(900)]


ENDLESS = ("--set", "chat.max_new_tokens=100000", "--set", "chat.temperature=0")
"""Settings for an endless answer: no greedy answer of the model in `settings` ends."""

BEGUN = re.compile(r"^(?!Waiting)(?=.*\w{2})", re.DOTALL)
"""The beginning of an answer, after the note that it waits for the model."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """Folder of a config file and a store with two SFT models, the first of them in production."""
    folder = tmp_path_factory.mktemp("trained")
    rows = [{"prompt": f"What is {n} plus {n}?", "completion": f"It is {2 * n}."} for n in range(12)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "model": {
            "base": str(_without_end(tiny_model, folder / "endless")), "load_in": "fp32", "max_length": 512,
            "lora": {"rank": 2},
        },
        "data": {"sources": [{"path": str(folder / "rows.jsonl")}], "held_out_fraction": 0.3},
        "sft": {"batch_size": 8},
        "store": str(folder / "store"),
        "device": "cpu",
        "chat": {"max_new_tokens": 40, "system": "Be brief."},
    }  # fmt: skip
    file = folder / "run.yaml"
    file.write_text(json.dumps(config))
    for alias, changes in (("production", []), ("next", ["seed=1"])):
        plan = plan_pipeline(load_config(file, changes), load_registry())
        assert plan.sft is not None
        for call in (plan.ingest, plan.sft):
            build_here(call, Silent())
        ArtifactStore(folder / "store").aliases.promote(alias, "sft", plan.sft.key, by="test", reason="test")
    return folder


@pytest.fixture
def settings(trained: Path, tmp_path: Path) -> Path:
    """Write a config file for a copy of the store, without votes."""
    shutil.copytree(trained / "store", tmp_path / "store")
    config = json.loads((trained / "run.yaml").read_text())
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(config | {"store": str(tmp_path / "store"), "feedback": str(tmp_path / "feedback.db")}))
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
        expect(page.get_by_test_id("model")).to_have_text(f"production: sft {first[:8]}")
        answers, hint = page.get_by_test_id("answer"), page.get_by_text("Ask the model something.")
        expect(hint).to_be_visible()
        for number in (1, 2):
            page.get_by_label("Your message").fill(f"What is {number} plus {number}?")
            page.keyboard.press("Enter")
            expect(answers).to_have_count(number)
            expect(page.get_by_role("button", name="Send")).to_be_visible()  # the page scrolls no more
        expect(hint).to_be_hidden()
        first_answers = answers.all_text_contents()
        page.get_by_label("Good answer").nth(1).click()
        page.get_by_label("Comment").fill("right, and short")
        page.keyboard.press("Enter")
        expect(page.get_by_text("Comment saved.")).to_be_visible()
        page.get_by_label("Bad answer").first.click()
        expect(page.get_by_label("Comment")).to_have_count(2)
        check_looks(page)
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
        expect(page.get_by_test_id("model")).to_have_text(f"production: sft {second[:8]}")
        page.get_by_label("Your message").fill("And three?")
        page.keyboard.press("Enter")
        expect(answers).to_have_count(3)
        expect(page.get_by_role("button", name="Send")).to_be_visible()
        page.get_by_label("Good answer").nth(2).click()
        expect(page.get_by_label("Comment")).to_have_count(3)
        with open_feedback(str(tmp_path / "feedback.db")) as store:
            assert list(store.votes())[-1].responses[0].model == second
        page.evaluate("window.opened = true")
    with served_page(tmp_path, "chat", settings, port=port):
        page.wait_for_function("!window.opened")  # it reloads itself as soon as the server is back
        expect(answers).to_have_count(3)
        assert answers.all_text_contents()[:2] == first_answers
        browser_page.expected("ERR_CONNECTION_REFUSED|WebSocket|ERR_EMPTY_RESPONSE|ERR_CONNECTION_RESET|ERR_SOCKET")
        page.set_viewport_size({"width": 360, "height": 740})
        page.reload()  # a panel that was open on a wide screen may stay open when the window shrinks
        expect(answers).to_have_count(3)
        page.wait_for_function("document.documentElement.scrollWidth <= 360")
        browser_page.picture("chat-phone")
        # A second click withdraws the thumb.
        page.get_by_label("Good answer").nth(2).click()
        expect(page.get_by_label("Comment")).to_have_count(2)
        page.get_by_role("button", name="New conversation").first.click()
        expect(answers).to_have_count(0)
        expect(hint).to_be_visible()
        page.set_viewport_size({"width": 1280, "height": 900})
        page.reload()
        talk = page.get_by_role("button", name="What is 1 plus 1?", exact=True)
        talk.click()
        expect(answers).to_have_count(3)
        page.goto("about:blank")
    with open_feedback(str(tmp_path / "feedback.db")) as store:
        assert store.count() == 2

    # Served with other models, it opens a conversation with those. The earlier ones are in the list.
    with served_page(tmp_path, "chat", settings, "--model", "next", "--beside", "base", port=port):
        page.goto(url)
        expect(page.get_by_test_id("model")).to_have_text([f"next: sft {second[:8]}", "base: endless"])
        expect(answers).to_have_count(0)
        talk.click()
        expect(answers).to_have_count(3)
        page.reload()
        expect(answers).to_have_count(3)
        page.goto("about:blank")


def test_two_models_answer_side_by_side(settings: Path, tmp_path: Path, browser_page: BrowserPage) -> None:
    """Their names are hidden until a vote, which is a pair: both have seen the same conversation."""
    key = key_of(tmp_path, "production")
    base = untouched_base(load_config(settings), load_registry()).key
    with served_page(tmp_path, "chat", settings, "--beside", "base") as url:
        page = browser_page.open(url)
        page.get_by_label("Your name").fill("Ann")
        page.keyboard.press("Enter")
        labels = [f"production: sft {key[:8]}", "base: endless"]
        expect(page.get_by_test_id("model")).to_have_text(labels)
        answers, authors = page.get_by_test_id("answer"), page.get_by_test_id("author")
        page.get_by_label("Your message").fill("What is 1 plus 1?")
        page.keyboard.press("Enter")
        expect(page.get_by_text("Which is better?")).to_be_visible()
        expect(answers).to_have_count(2)
        expect(authors).to_have_count(0)
        left, right = answers.nth(0).bounding_box(), answers.nth(1).bounding_box()
        assert left is not None
        assert right is not None
        assert left["y"] == right["y"]
        assert left["x"] + left["width"] < right["x"]
        check_looks(page)
        first = answers.all_text_contents()
        page.get_by_role("button", name="A is better").click()
        expect(authors).to_have_count(2)
        assert sorted(text.partition(" · ")[0] for text in authors.all_text_contents()) == sorted(labels)
        expect(authors.nth(0)).to_contain_text("goes on with this one")
        page.get_by_label("Your message").fill("And 2 plus 2?")
        page.keyboard.press("Enter")
        expect(page.get_by_text("Which is better?")).to_be_visible()
        expect(answers).to_have_count(4)
        page.get_by_role("button", name="Both are bad").click()
        expect(page.get_by_role("button", name="Both are bad")).to_have_attribute("aria-pressed", "true")
        page.get_by_label("Bad answer").nth(3).click()
        expect(page.get_by_label("Comment")).to_have_count(1)
        texts = answers.all_text_contents()
        page.reload()
        expect(answers).to_have_text(texts)
        page.goto("about:blank")
    with open_feedback(str(tmp_path / "feedback.db")) as store:
        pair, bad, thumb = store.votes()
        assert store.ranking_tasks() == [], "nobody else is asked to rank a chat"
    assert [response.text for response in pair.responses] == first == texts[:2]
    assert (pair.ranks, {response.model for response in pair.responses}) == ((1, 2), {key, base})
    assert (bad.bad, bad.ranks, {response.text for response in bad.responses}) == (True, (), set(texts[2:]))
    assert (thumb.up, thumb.responses[0].text) == (False, texts[3])
    for vote in (bad, thumb):
        assert [message["content"] for message in vote.prompt] == [
            "Be brief.", "What is 1 plus 1?", first[0], "And 2 plus 2?",
        ]  # fmt: skip
    assert list((tmp_path / "store/.pages/chat").glob("storage-user-*.json")), "the conversation is in the store"
    assert not (tmp_path / ".nicegui").exists()


def test_answers_are_regenerated_and_edited_and_models_chosen(
    settings: Path, tmp_path: Path, browser_page: BrowserPage
) -> None:
    first, second = key_of(tmp_path, "production"), key_of(tmp_path, "next")
    with served_page(tmp_path, "chat", settings) as url:
        page = browser_page.open(url)
        page.get_by_label("Your name").fill("Ann")
        page.keyboard.press("Enter")
        answers = page.get_by_test_id("answer")
        page.get_by_label("Your message").fill("What is 1 plus 1?")
        page.keyboard.press("Enter")
        expect(page.get_by_text("Waiting for the model: it is being loaded")).to_be_visible()
        expect(answers).to_have_count(1)
        page.get_by_role("button", name="Regenerate").click()
        expect(answers).to_have_count(2)
        old, new = answers.all_text_contents()
        page.get_by_role("button", name="B is better").click()
        expect(page.get_by_test_id("author").nth(1)).to_contain_text("goes on with this one")
        page.get_by_role("button", name="Edit answer").nth(1).click()
        field = page.get_by_label("Your better version")
        expect(field).not_to_have_value("")
        assert field.input_value().split() == new.split()  # a browser changes the ends of lines
        field.fill("It is two.")
        page.keyboard.press("Control+Enter")
        expect(answers).to_have_text(["It is two."])
        # A browser may wait for ever before it lets a page read the real clipboard.
        page.evaluate("navigator.clipboard.writeText = async text => { window.copied = text }")
        page.get_by_role("button", name="Copy").click()
        expect(page.get_by_text("Copied.")).to_be_visible()
        page.wait_for_function("window.copied === 'It is two.'")

        # Another model answers from the next message on, and sees the edited answer.
        page.get_by_label("Model", exact=True).click()
        page.get_by_role("option", name="next").click()
        expect(page.get_by_test_id("model")).to_have_text(f"next: sft {second[:8]}")
        page.get_by_label("Your message").fill("And three?")
        page.keyboard.press("Enter")
        expect(page.get_by_role("button", name="Regenerate")).to_be_visible()
        expect(answers).to_have_count(2)
        page.get_by_label("Good answer").click()
        expect(page.get_by_label("Comment")).to_have_count(1)

        page.get_by_role("button", name="New conversation").first.click()
        expect(answers).to_have_count(0)
        expect(page.get_by_test_id("model")).to_have_text(f"next: sft {second[:8]}")
        talk = page.get_by_role("button", name="What is 1 plus 1?", exact=True)
        talk.click()
        expect(answers).to_have_count(2)
        check_looks(page)

        # A deleted conversation is gone from the list, its votes are not: see below.
        delete = page.get_by_role("button", name="Delete What is 1 plus 1?")
        delete.click()
        expect(page.get_by_text("Your votes on its answers stay")).to_be_visible()
        check_looks(page)
        page.get_by_role("button", name="Cancel").click()
        expect(answers).to_have_count(2)
        delete.click()
        page.get_by_role("button", name="Delete", exact=True).click()
        expect(answers).to_have_count(0)
        expect(talk).to_have_count(0)
        page.reload()
        expect(page.get_by_role("button", name="New conversation")).to_have_count(2)
        expect(talk).to_have_count(0)
        page.goto("about:blank")
    with open_feedback(str(tmp_path / "feedback.db")) as store:
        pair, edit, thumb = store.votes()
    assert {response.text: rank for response, rank in zip(pair.responses, pair.ranks, strict=True)} == {new: 1, old: 2}
    assert {response.model for response in pair.responses} == {first}
    assert {response.text: rank for response, rank in zip(edit.responses, edit.ranks, strict=True)} == {
        "It is two.": 1, new: 2,
    }  # fmt: skip
    assert edit.prompt == pair.prompt
    assert (thumb.up, thumb.responses[0].model) == (True, second)
    assert [message["content"] for message in thumb.prompt] == [
        "Be brief.", "What is 1 plus 1?", "It is two.", "And three?",
    ]  # fmt: skip


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
        expect(message).to_have_text(BEGUN)
        page.get_by_role("button", name="Stop").click()
        expect(page.get_by_test_id("answer")).to_have_count(1)
        expect(page.get_by_role("button", name="Send")).to_be_visible()
        page.get_by_label("Your message").fill("And another one.")
        page.keyboard.press("Enter")
        expect(page.locator(".words").nth(3)).to_have_text(BEGUN)
        os.kill(_model_process(), signal.SIGKILL)
        expect(page.get_by_text("the model process exited")).to_be_visible()
        page.get_by_label("Your message").fill("Are you there?")
        page.keyboard.press("Enter")
        expect(page.locator(".words").nth(5)).to_have_text(BEGUN)
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
