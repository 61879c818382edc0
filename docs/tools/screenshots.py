"""Make pictures of the pages in light, in dark and at the width of a phone, to look at them.

    python docs/tools/screenshots.py OUT [NAME...]     # all pages, or those with these names
    python docs/tools/screenshots.py --docs            # the pictures of the documentation

Each picture is OUT/NAME-light.png, -dark.png or -phone.png. Add a page: write a context manager that brings a browser's
page into the state to be shown, and add it to PAGES. Needs the extra `test` and Chromium, and no model.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from io import BytesIO
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path += [str(ROOT / "tests" / "support" / "services"), str(Path(__file__).parent)]

from browser import PATIENCE_MS, SCREEN, chromium, save_small  # noqa: E402 - from tests/support/services
from example_reports import EXAMPLES, write_examples  # noqa: E402
from pages import served_page  # noqa: E402
from playwright.sync_api import Page  # noqa: E402

from alignment_core.feedback import Rater, open_feedback  # noqa: E402

PHONE = {"width": 360, "height": 740}
LOOKS = {"-light": ("light", SCREEN), "-dark": ("dark", SCREEN), "-phone": ("light", PHONE)}
ANSWERS = {
    "How do I keep basil alive on a window sill?": (
        "Give it at least six hours of light, water it when the top of the soil is dry, and pinch off the tips every "
        "week so that it grows bushy.",
        "Basil is a herb. Many people like basil. It is used in many dishes.",
        "1. Choose a bright window.\n2. Water from below.\n3. Never let it stand in water overnight.",
    ),
    "What is the difference between weather and climate?": (
        "Weather is what happens today; climate is what to expect over thirty years.",
        "Climate is the weather of other countries.",
        "There is no difference.",
    ),
    "Write one line to thank a colleague for covering my shift.": (
        "Thank you for covering my shift: you saved my week, and I owe you one!",
        "Dear Sir or Madam, I am writing to express my gratitude.",
        "thx",
    ),
}


def make_votes(place: str) -> None:
    """Fill a feedback store with prompts, answers and the rankings of two people and a model."""
    with open_feedback(place) as store:
        asked = [(({"role": "user", "content": text},), [(one, "m") for one in said]) for text, said in ANSWERS.items()]
        tasks = store.add_ranking_tasks(asked)
        for rater, ranks in (
            (Rater("Ben"), [(1, 3, 2), (1, 2, 3), (1, 2, 2)]),
            (Rater("Chloe"), [(2, 3, 1), (1, 2, 3)]),
            (Rater("reward/3f2a1b", "ai"), [(1, 3, 2), (1, 3, 2), (2, 1, 3)]),
        ):
            for task, given in zip(tasks, ranks, strict=False):
                store.rank(rater, task, given)


def settings(folder: Path) -> Path:
    place, file = str(folder / "feedback.db"), folder / "run.yaml"
    make_votes(place)
    config = {"model": {"base": "x"}, "data": {"sources": [{"path": "x"}]}, "store": str(folder)}
    guidelines = "Prefer answers that are true, then those that help, then those that are short."
    file.write_text(json.dumps(config | {"feedback": place, "guidelines": guidelines}))
    return file


def enter(page: Page, url: str) -> None:
    """Open a page and give a name."""
    page.goto(url)
    page.get_by_label("Your name").fill("Ann")
    page.keyboard.press("Enter")


@contextmanager
def ranking(folder: Path, page: Page) -> Iterator[None]:
    """Open the rank page under a name."""
    with served_page(folder, "rank", settings(folder)) as url:
        enter(page, url)
        yield


@contextmanager
def chatting(folder: Path, page: Page) -> Iterator[None]:
    """Open the chat page of scripted models under a name."""
    program = (sys.executable, "-P", str(ROOT / "docs" / "tools" / "scripted_chat.py"))
    with served_page(folder, folder, program=program) as url:
        enter(page, url)
        yield


@contextmanager
def login(folder: Path, page: Page) -> Iterator[None]:
    with served_page(folder, "rank", settings(folder), ALIGN_PASSWORD="open sesame") as url:
        page.goto(url)
        page.get_by_label("Password").fill("not this one")
        page.keyboard.press("Enter")
        page.get_by_text("Wrong password").wait_for()
        yield


@contextmanager
def name(folder: Path, page: Page) -> Iterator[None]:
    with served_page(folder, "rank", settings(folder)) as url:
        page.goto(url)
        page.get_by_label("Your name").wait_for()
        yield


@contextmanager
def rank(folder: Path, page: Page) -> Iterator[None]:
    """The second response is the best so far, and is being edited."""
    with ranking(folder, page):
        page.get_by_role("button", name="Got it").click()
        page.get_by_test_id("response").nth(1).click()
        page.get_by_text("rank 1").wait_for()
        page.keyboard.press("e")
        page.get_by_label("Your better version").wait_for()
        yield


@contextmanager
def instructions(folder: Path, page: Page) -> Iterator[None]:
    with ranking(folder, page):
        page.get_by_text("How to rank").wait_for()
        yield


@contextmanager
def raters(folder: Path, page: Page) -> Iterator[None]:
    with ranking(folder, page):
        page.get_by_text("0 of 3 ranked").wait_for()
        for done in range(3):
            for key in ("2", "1", "3", "Enter"):
                page.keyboard.press(key)
            page.get_by_text(f"{done + 1} of 3 ranked").wait_for()
        page.keyboard.press("t")
        page.get_by_text("Where raters disagree").wait_for()
        yield


@contextmanager
def chat(folder: Path, page: Page) -> Iterator[None]:
    """Two models, after a vote on the first question and before one on the second."""
    with chatting(folder, page):
        say(page, "How do I keep basil alive on a window sill?")
        page.get_by_role("button", name="A is better").click()
        page.get_by_text("goes on with this one").wait_for()
        say(page, "And in winter?")
        page.get_by_text("Which is better?").wait_for()
        yield


@contextmanager
def waiting(folder: Path, page: Page) -> Iterator[None]:
    with chatting(folder, page):
        say(page, "Wait for me, please.")
        page.get_by_text("it is being loaded (2 s)").first.wait_for()
        yield


@contextmanager
def delete(folder: Path, page: Page) -> Iterator[None]:
    """The question whether to delete a conversation."""
    with chatting(folder, page):
        say(page, "How do I keep basil alive on a window sill?")
        page.get_by_text("Which is better?").wait_for()
        page.get_by_role("button", name="Delete How do I").click()
        page.get_by_text("Delete this conversation?").wait_for()
        yield


def say(page: Page, message: str) -> None:
    page.get_by_label("Your message").fill(message)
    page.keyboard.press("Enter")


def report(name: str) -> Callable[[Path, Page], AbstractContextManager[None]]:
    """Return what shows a report with invented numbers."""

    @contextmanager
    def shown(folder: Path, page: Page) -> Iterator[None]:
        page.goto(write_examples(folder, [name])[name].as_uri())
        yield

    return shown


PAGES: dict[str, Callable[[Path, Page], AbstractContextManager[None]]] = {
    "login": login,
    "name": name,
    "instructions": instructions,
    "rank": rank,
    "raters": raters,
    "chat": chat,
    "waiting": waiting,
    "delete": delete,
    **{f"report-{each}": report(each) for each in EXAMPLES},
}


IN_DOCS = {"rank": 700, "chat": 560}
"""Pages in `docs/images`, and the height of the window."""


def save(page: Page, path: Path) -> None:
    """Save what the window shows."""
    save_small(Image.open(BytesIO(page.screenshot(animations="disabled"))), path)
    print(path)


def main(out: Path, names: Sequence[str], *, docs: bool) -> None:
    out.mkdir(parents=True, exist_ok=True)
    with chromium() as browser:
        for name in names:
            page = browser.new_page(viewport=SCREEN, timezone_id="UTC", locale="en-GB", reduced_motion="reduce")
            page.set_default_timeout(PATIENCE_MS)
            with tempfile.TemporaryDirectory() as folder, PAGES[name](Path(folder), page):
                looks = {"": ("light", SCREEN | {"height": IN_DOCS[name]})} if docs else LOOKS
                for look, (scheme, size) in looks.items():
                    page.emulate_media(color_scheme=scheme)
                    page.set_viewport_size(size)
                    page.wait_for_timeout(500)  # colors fade
                    save(page, out / f"{name}{look}.png")
                page.goto("about:blank")
            page.close()


if __name__ == "__main__":
    if sys.argv[1:] == ["--docs"]:
        main(ROOT / "docs" / "images", [*IN_DOCS], docs=True)
    else:
        main(Path(sys.argv[1]), sys.argv[2:] or [*PAGES], docs=False)
