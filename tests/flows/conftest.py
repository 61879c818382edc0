"""A small real run: pairs that prefer a short answer, and the tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from brake import Brake
from browser import BrowserPage, page_of
from playwright.sync_api import Browser
from prefect_pages import OWN_FAULTS
from served import ALIGN, Served, align_up


@pytest.fixture
def write(tmp_path: Path, tiny_model: Path) -> Callable[..., Path]:
    """Writes the settings of the run, with changes, and its data `pairs.jsonl` beside them."""
    return partial(small_run, tmp_path, tiny_model)


def small_run(folder: Path, model: Path, **changes: Any) -> Path:
    """The file of the run's settings in the folder, after its data."""
    rows = [
        {
            "prompt": f"What is {n} plus {n}?",
            "chosen": f"It is {2 * n}.",
            "rejected": f"I do not know about {n}, sorry!",
        }
        for n in range(24)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    step = {"batch_size": 8, "learning_rate": 1e-3}
    config = {
        "name": "small",
        "model": {"base": str(model), "load_in": "fp32", "max_length": 128, "lora": {"rank": 2}},
        "data": {"sources": [{"path": str(folder / "pairs.jsonl")}], "held_out_fraction": 0.25},
        "sft": step,
        "optimizer": {"name": "dpo", **step},
        "evaluation": {"max_prompts": 2, "max_new_tokens": 8},
        "store": str(folder / "store"),
        "device": "cpu",
        **changes,
    }
    path = folder / "run.yaml"
    path.write_text(json.dumps(config))
    return path


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """What `align up` starts, for every test that needs it; `align down` ends it. PYTHONPATH is an empty folder."""
    folder, home, site = (tmp_path_factory.mktemp(name) for name in ("workers", "prefect-home", "site"))
    with align_up(folder, home, PYTHONPATH=str(site)) as here:
        yield here


@pytest.fixture(scope="session")
def deployed_run(served: Served, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The small run as a deployment of its own, all in the flow's process, which saves the others' start."""
    path = small_run(tmp_path_factory.mktemp("deployed"), tiny_model, name="form", isolation="inline")
    done = served.run(ALIGN, "deploy", path)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[0]


@pytest.fixture
def prefect_page(browser: Browser, tmp_path: Path) -> Iterator[BrowserPage]:
    """A page in Chromium, for Prefect's own pages."""
    with page_of(browser, tmp_path, OWN_FAULTS) as opened:
        yield opened


@pytest.fixture(scope="module")
def shared_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for a module's runs: what one has built, the others find."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def brake(tmp_path: Path) -> Brake:
    """Holds stages of a worker's run in the middle of their work."""
    folder = tmp_path / "brake"
    folder.mkdir()
    return Brake(folder)
