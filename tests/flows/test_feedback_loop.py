"""From thumbs in the browser to the next model on the same page: a preference is learned, noise is not promoted.

The simulated rater likes answers that say "thank". The small real model learned from demonstrations that do so half of
the time, and the gate applies the same rule to held-out prompts. `pytest -m slow -k feedback_loop -s` prints the rates.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from browser import BrowserPage
from pages import served_page
from playwright.sync_api import Page, expect
from scipy.stats import binomtest, fisher_exact
from served import ALIGN, Served, until

from alignment_core.artifacts import ArtifactStore
from alignment_core.feedback import open_feedback

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

ROOT = Path(__file__).resolve().parents[2]
THINGS = (
    "cat dog bird fish tree car ball hat cake door boat bear frog star book box shoe bed cup bike duck pig leaf moon"
)
KINDS = (
    "big small red blue happy sad old new nice soft fast slow good bad green round tall warm cold funny white black "
    "wet dry long short kind quiet loud clean"
)
DEMONSTRATED = 560
VOTES = 64
FRESH = 64
TRIES = 20
ENDINGS = ("Thank you!", "Why do you ask?")


def thanks(answer: str) -> bool:
    """Return whether the rater likes the answer."""
    return "thank" in answer.lower()


@dataclass(frozen=True)
class World:
    """Settings whose store holds an SFT model that says "thank" half of the time, and questions it has not seen."""

    settings: dict[str, Any]
    questions: Sequence[str]


@pytest.fixture(scope="module")
def world(served: Served, stories260k: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    asked = list(product(KINDS.split(), THINGS.split()))
    random.Random(0).shuffle(asked)
    rows = [
        {"prompt": f"What about the {kind} {thing}?", "completion": f"The {thing} is {kind}. {ending}"}
        for kind, thing in asked[:DEMONSTRATED]
        for ending in ENDINGS
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    short = {"max_new_tokens": 24}
    settings = {
        "model": {
            "base": str(stories260k),
            "chat_template": str(ROOT / "deployments" / "configs" / "stories260k.jinja"),
            "load_in": "fp32",
            "max_length": 128,
            "lora": {"rank": 8},
        },
        "data": {
            "sources": [{"path": str(folder / "rows.jsonl")}],
            "held_out_fraction": 0.35,
            "near_duplicates": None,  # the questions are very similar
        },
        "sft": {"batch_size": 16, "epochs": 3, "learning_rate": 5e-3},
        "sample": {"responses_per_prompt": 2, "max_prompts": 4, **short},
        "optimizer": {"name": "kto", "batch_size": 16, "epochs": 4, "learning_rate": 3e-4},
        "evaluation": {"max_prompts": 256, **short, "evaluators": [{"name": "wordlist", "wanted": ["thank"]}]},
        "gate": {"to_production": True},
        "retrain": {"min_votes": VOTES, "replay": 0.0},
        "chat": short,
        "device": "cpu",
        "store": str(folder / "store"),
        "feedback": str(folder / "feedback.db"),
    }
    file = folder / "settings.yaml"
    file.write_text(json.dumps(settings))
    # Sampling trains only the SFT model, which is promoted only if it is named.
    assert served.run(ALIGN, "sample", file).returncode == 0
    assert served.run(ALIGN, "promote", "latest", "--store", settings["store"]).returncode == 2
    (sft,) = (folder / "store" / "sft").iterdir()
    assert served.run(ALIGN, "promote", sft.name, "--store", settings["store"]).returncode == 0
    return World(settings, [f"What about the {kind} {thing}?" for kind, thing in asked[DEMONSTRATED:]])


@dataclass(frozen=True)
class Chat:
    """The chat page in a browser, with a deployment that retrains once there are enough votes."""

    served: Served
    page: Page
    name: str
    store: Path
    file: Path

    def ask(self, question: str) -> str:
        """Ask the question in a new conversation and return the answer."""
        page = self.page
        answers, again = page.get_by_test_id("answer"), page.get_by_role("button", name="Retry", exact=True)
        page.get_by_role("button", name="New conversation").first.click()
        expect(answers).to_have_count(0)
        page.get_by_label("Your message").fill(question)
        page.keyboard.press("Enter")
        while True:
            expect(answers.or_(again)).to_have_count(1)
            if answers.count():
                return answers.text_content() or ""
            again.click()  # the answer was empty

    def vote(self, *, up: bool) -> None:
        """Give a thumb to the answer on the page."""
        self.page.get_by_label("Good answer" if up else "Bad answer").click()
        expect(self.page.get_by_label("Comment")).to_have_count(1)

    def retrained(self) -> tuple[str, dict[str, Any]]:
        """Wait until the one retrain that the votes start has ended. Return its id and final state."""
        name = f"retrain/{self.name}"
        events = {"event": {"prefix": ["alignment."]}}
        until(lambda: self.served.runs_of(name), lambda: self.served.post("events/filter", filter=events))
        (run,) = self.served.runs_of(name)
        return run["id"], self.served.ended(run["id"])

    def production(self) -> str:
        change = ArtifactStore(self.store).aliases.current("production")
        assert change is not None
        return f"{change.kind}/{change.key}"

    def serves(self, model: str) -> None:
        """Check that the page shows the model."""
        kind, key = model.split("/")
        trained_by = {"sft": "sft", "optimize": "kto"}[kind]
        expect(self.page.get_by_test_id("model")).to_have_text(f"production: {trained_by} {key[:8]}")


@pytest.fixture
def chat(served: Served, world: World, tmp_path: Path, browser_page: BrowserPage) -> Callable[[str], Any]:
    """Return a context manager that opens the page on a copy of the world's store."""

    @contextmanager
    def opened(name: str) -> Iterator[Chat]:
        store = tmp_path / "store"
        shutil.copytree(world.settings["store"], store)
        file = tmp_path / "settings.yaml"
        changes = {"name": name, "store": str(store), "feedback": str(tmp_path / "feedback.db")}
        file.write_text(json.dumps(world.settings | changes))
        deployed = served.run(ALIGN, "deploy", file)
        assert deployed.returncode == 0, deployed.stderr
        variables = {"PREFECT_API_URL": f"{served.url}/api", "PREFECT_HOME": str(served.home)}
        with served_page(tmp_path, "chat", file, **variables) as url:
            page = browser_page.open(url)
            page.get_by_label("Your name").fill("Ann")
            page.keyboard.press("Enter")
            yield Chat(served, page, name, store, file)
            page.goto("about:blank")

    return opened


def measured(name: str, good: int, asked: int) -> str:
    low, high = binomtest(good, asked).proportion_ci()
    return f"{name}: {good} of {asked} follow the rule ({low:.0%} to {high:.0%})"


def test_next_model_follows_the_thumbs_and_the_page_serves_it(
    chat: Callable[[str], Any], world: World, served: Served, tmp_path: Path, browser_page: BrowserPage
) -> None:
    with chat("thanks") as talk:
        first = talk.production()
        assert first.startswith("sft/")
        talk.serves(first)
        before = []
        for question in world.questions[:VOTES]:
            before.append(thanks(talk.ask(question)))
            talk.vote(up=before[-1])
        with open_feedback(str(tmp_path / "feedback.db")) as store:
            assert store.count() == VOTES
            assert {vote.responses[0].model for vote in store.votes()} == {first.split("/")[1]}
        run, state = talk.retrained()
        assert state["type"] == "COMPLETED", served.state_and_log(run)
        second = talk.production()
        assert second.startswith("optimize/"), served.reports(run)
        assert any("## Promoted" in page for page in served.reports(run))
        talk.serves(second)
        # The page answers questions that neither model has seen.
        after = [thanks(talk.ask(question)) for question in world.questions[VOTES : VOTES + FRESH]]
        browser_page.picture("retrained")
        print(f"\n{measured('before', sum(before), VOTES)}; {measured('after', sum(after), FRESH)}")
        table = [[sum(after), FRESH - sum(after)], [sum(before), VOTES - sum(before)]]
        assert fisher_exact(table, alternative="greater").pvalue < 0.01, table
        # The page also follows a rollback.
        undone = served.run(ALIGN, "rollback", "--store", talk.store)
        assert undone.returncode == 0, undone.stderr
        assert talk.production() == first
        talk.serves(first)


def test_contradictory_thumbs_promote_nothing(
    chat: Callable[[str], Any], world: World, served: Served, browser_page: BrowserPage
) -> None:
    """Both kinds of answer get a thumb up on every other question and a thumb down on the rest, so there is no rule.

    Whichever questions are held out, answers that say "thank" get as many thumbs up as the others.
    """
    with chat("noise") as talk:
        first = talk.production()
        questions, given = iter(enumerate(world.questions)), 0
        while given < VOTES:
            (number, question), seen = next(questions), set()
            for _ in range(TRIES):
                kind = thanks(talk.ask(question))
                if kind not in seen:
                    talk.vote(up=number % 2 == 0)
                    given += 1
                seen.add(kind)
                if len(seen) == 2:
                    break
        run, state = talk.retrained()
        assert state["type"] == "COMPLETED", served.state_and_log(run)
        (page,) = [page for page in served.reports(run) if "## Not promoted" in page]
        assert "failed: the lower bound of the win rate over the production model must be above 0.5" in page
        assert talk.production() == first
        talk.ask(next(questions)[1])
        talk.serves(first)
        browser_page.picture("not-promoted")
