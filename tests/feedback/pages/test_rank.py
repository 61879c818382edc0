"""A complete session on the ranking page in a browser."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from accessible import check_looks
from browser import BrowserPage
from pages import served_page
from playwright.sync_api import expect

from alignment_core.feedback import Rater, open_feedback

pytestmark = [pytest.mark.ci, pytest.mark.timeout(1800)]


PROMPTS = [({"role": "user", "content": f"Which letter is number {number}?"},) for number in (1, 2, 3)]
TEXTS = ["It is <b>A</b>.", "It is B.", "I do not know."]


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    place = str(tmp_path / "feedback.db")
    with open_feedback(place) as store:
        store.add_ranking_tasks([(prompt, [(text, "secret-model") for text in TEXTS]) for prompt in PROMPTS])
        for task in store.ranking_tasks():
            store.rank(Rater("Ben"), task, (1, 2, 3))
    file = tmp_path / "run.yaml"
    config = {"model": {"base": "x"}, "data": {"sources": [{"path": "x"}]}, "feedback": place, "store": str(tmp_path)}
    file.write_text(json.dumps(config | {"guidelines": "Prefer what is true.\nThen what is short."}))
    return file


def test_ranking_with_the_keyboard(settings: Path, tmp_path: Path, browser_page: BrowserPage) -> None:
    place = str(tmp_path / "feedback.db")
    with served_page(tmp_path, "rank", settings) as url:
        port = int(url.rpartition(":")[2])
        page = browser_page.open(url)
        expect(page.get_by_label("Your name")).to_be_visible()
        check_looks(page)
        page.get_by_label("Your name").fill("Ann")
        page.keyboard.press("Enter")
        progress = page.get_by_test_id("progress")
        expect(progress).to_have_text("0 of 3 ranked")
        assert "secret-model" not in page.content()
        shown = page.get_by_test_id("words").all_text_contents()
        assert sorted(shown) == sorted(TEXTS)  # tags are shown as text
        first = page.get_by_test_id("prompt").text_content()
        save = page.get_by_role("button", name="Save")
        expect(save).to_be_disabled()
        page.keyboard.press("Enter")  # nothing is ranked yet, so nothing is saved
        for key in ("2", "=", "1"):
            page.keyboard.press(key)
        expect(page.get_by_text("rank 1")).to_have_count(2)
        expect(save).to_be_enabled()
        page.keyboard.press("Backspace")
        expect(page.get_by_text("rank 1")).to_have_count(1)
        page.keyboard.press("=")
        page.keyboard.press("1")
        expect(page.get_by_text("rank 1")).to_have_count(2)
        check_looks(page)
        page.keyboard.press("Enter")
        expect(progress).to_have_text("1 of 3 ranked")
        with open_feedback(place) as store:
            (vote,) = [vote for vote in store.votes() if vote.rater.name == "Ann"]
        ranks = {response.text: rank for response, rank in zip(vote.responses, vote.ranks, strict=True)}
        assert ranks == {shown[0]: 1, shown[1]: 1, shown[2]: 2}
        assert vote.prompt[0]["content"] == first
        page.keyboard.press("u")
        expect(progress).to_have_text("0 of 3 ranked")
        expect(page.get_by_test_id("prompt")).to_have_text(first or "")
        page.keyboard.press("s")
        expect(progress).to_have_text("1 of 3 ranked")
        page.evaluate("window.opened = true")
    with served_page(tmp_path, "rank", settings, port=port):
        # After a restart of the server, the page reloads itself, and still knows the rater and the progress.
        page.wait_for_function("!window.opened")
        expect(progress).to_have_text("1 of 3 ranked")
        browser_page.expected("ERR_CONNECTION_REFUSED|WebSocket|ERR_EMPTY_RESPONSE|ERR_CONNECTION_RESET|ERR_SOCKET")
        page.set_viewport_size({"width": 360, "height": 740})
        for done in (2, 3):
            for position in (0, 1):
                page.get_by_test_id("response").nth(position).click()
            expect(save).to_be_enabled()
            assert page.evaluate("document.documentElement.scrollWidth") <= 360
            browser_page.picture(f"rank-phone-{done}")
            save.click()
            expect(page.get_by_text("All responses are ranked" if done == 3 else "2 of 3 ranked")).to_be_visible()
        expect(page.get_by_test_id("agreement")).to_contain_text("Ben")
        page.goto("about:blank")
    with open_feedback(place) as store:
        mine = [vote.ranks for vote in store.votes() if vote.rater.name == "Ann"]
        assert sorted(map(bool, mine)) == [False, True, True]


def test_comment_edit_all_bad_and_the_other_raters(settings: Path, tmp_path: Path, browser_page: BrowserPage) -> None:
    """Everything by keyboard, and typed at once: no letter of a text is taken for a command."""
    with served_page(tmp_path, "rank", settings) as url:
        page = browser_page.open(url)
        page.get_by_label("Your name").fill("Ann")
        page.keyboard.press("Enter")
        progress = page.get_by_test_id("progress")
        expect(page.get_by_test_id("guidelines")).to_have_text("Prefer what is true.\nThen what is short.")
        first = page.get_by_test_id("words").all_text_contents()
        for key in ("e", "3", "2"):  # nothing to edit before there is a best one
            page.keyboard.press(key)
        expect(page.locator(".editor.ready")).to_have_count(1)
        page.keyboard.type("cbusy, said Ben")
        expect(progress).to_have_text("0 of 3 ranked")
        page.keyboard.press("Tab")
        page.evaluate("document.activeElement.blur()")
        page.keyboard.press("e")
        page.keyboard.press("End")
        page.keyboard.type(" Use 26 letters, see.")
        check_looks(page)
        page.keyboard.press("Control+Enter")
        expect(progress).to_have_text("1 of 3 ranked")
        page.keyboard.press("u")  # undo brings back what was written
        expect(page.get_by_label("Comment (optional)")).to_have_value("busy, said Ben")
        expect(page.get_by_label("Your better version")).to_have_value(f"{first[2]} Use 26 letters, see.")
        expect(page.get_by_label("Your better version")).to_be_focused()  # later, it would take the keys
        page.evaluate("document.activeElement.blur()")
        for key in ("2", "Enter"):
            page.keyboard.press(key)
        expect(progress).to_have_text("1 of 3 ranked")
        page.get_by_role("button", name="Got it").click()
        expect(page.get_by_test_id("guidelines")).to_be_hidden()
        page.keyboard.press("b")
        expect(progress).to_have_text("2 of 3 ranked")
        # A response that has the focus is picked by Enter, which then saves.
        for place in (2, 0):
            page.get_by_test_id("response").nth(place).focus()
            page.keyboard.press("Enter")
        expect(page.get_by_label("Response 3, rank 1")).to_be_visible()
        expect(page.get_by_label("Response 1, rank 2")).to_be_visible()
        page.keyboard.press("Enter")
        expect(page.get_by_text("All responses are ranked")).to_be_visible()
        page.keyboard.press("t")
        expect(page.get_by_test_id("rater")).to_have_text(["Ann3 of 3, 1 all bad", "Ben3 of 3"])
        check_looks(page)
        page.keyboard.press("u")  # what is not shown is not undone
        page.keyboard.press("t")
        expect(page.get_by_text("All responses are ranked")).to_be_visible()
        page.reload()
        expect(progress).to_have_text("3 of 3 ranked")
        expect(page.get_by_test_id("guidelines")).to_be_hidden()
        page.goto("about:blank")
    with open_feedback(str(tmp_path / "feedback.db")) as store:
        edited, bad, last = [vote for vote in store.votes() if vote.rater.name == "Ann"]
    by_text = {response.text: rank for response, rank in zip(edited.responses, edited.ranks, strict=True)}
    assert by_text == {f"{first[2]} Use 26 letters, see.": 1, first[2]: 2, first[1]: 3, first[0]: 4}
    assert (edited.comment, bad.bad, sorted(last.ranks)) == ("busy, said Ben", True, [1, 2, 3])


def test_page_on_all_interfaces_asks_for_the_password(
    settings: Path, tmp_path: Path, browser_page: BrowserPage
) -> None:
    with served_page(tmp_path, "rank", settings, "--host", "0.0.0.0", ALIGN_PASSWORD="open sesame") as url:
        page = browser_page.open(url.replace("0.0.0.0", "127.0.0.1"))
        password = page.get_by_label("Password")
        for given in ("wrong", "open sesame"):
            expect(page.get_by_label("Your name")).to_have_count(0)
            password.fill(given)
            page.keyboard.press("Enter")
            if given == "wrong":
                expect(page.get_by_text("Wrong password.")).to_be_visible()
                check_looks(page)
                browser_page.expected("403")
        expect(page.get_by_label("Your name")).to_be_visible()
        page.goto("about:blank")


LATE_TEXT = """() => {
    const emit = socket.emit.bind(socket);
    let first = true;
    socket.emit = (...event) => {
        setTimeout(() => emit(...event), first ? 1000 : 0);
        first = false;
    };
}"""


def test_name_is_what_was_typed_also_if_the_key_reaches_the_server_first(
    settings: Path, tmp_path: Path, browser_page: BrowserPage
) -> None:
    with served_page(tmp_path, "rank", settings) as url:
        page = browser_page.open(url)
        page.wait_for_function("window.did_handshake")
        page.evaluate(LATE_TEXT)
        page.get_by_label("Your name").fill("Ann")
        page.keyboard.press("Enter")
        progress = page.get_by_test_id("progress")
        expect(progress).to_have_text("0 of 3 ranked")
        page.keyboard.press("s")
        expect(progress).to_have_text("1 of 3 ranked")
        page.goto("about:blank")
    with open_feedback(str(tmp_path / "feedback.db")) as store:
        assert {vote.rater.name for vote in store.votes()} == {"Ann", "Ben"}


def test_another_person_goes_on_at_the_same_browser(settings: Path, tmp_path: Path, browser_page: BrowserPage) -> None:
    name = 'Zoë; "D\'Arc" \\ 愛=1'
    with served_page(tmp_path, "rank", settings) as url:
        page = browser_page.open(url)
        progress = page.get_by_test_id("progress")
        for given in ("Ann", name):
            page.get_by_label("Your name").fill(given)
            page.keyboard.press("Enter")
            expect(progress).to_have_text("0 of 3 ranked")
            page.keyboard.press("s")
            expect(progress).to_have_text("1 of 3 ranked")
            page.reload()
            expect(progress).to_have_text("1 of 3 ranked")
            page.get_by_role("button", name="Vote under another name").click()
        expect(page.get_by_label("Your name")).to_be_visible()
        page.goto("about:blank")
    with open_feedback(str(tmp_path / "feedback.db")) as store:
        assert {vote.rater.name for vote in store.votes()} == {"Ann", "Ben", name}
