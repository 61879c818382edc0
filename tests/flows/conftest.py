"""A Prefect server with workers, a browser for its pages, and a brake that holds runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from brake import Brake
from browser import BrowserPage, page_of
from playwright.sync_api import Browser
from prefect_pages import OWN_FAULTS
from served import ALIGN, Served, align_up
from small_run import small_run

from alignment_core.artifacts import ArtifactStore, Manifest, key_of
from alignment_core.execution.build import StageResult
from alignment_core.progress import Silent


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Run `align up` once for all tests that need it, then `align down`. PYTHONPATH is an empty folder."""
    folder, home, site = (tmp_path_factory.mktemp(name) for name in ("workers", "prefect-home", "site"))
    with align_up(folder, home, PYTHONPATH=str(site)) as here:
        yield here


@pytest.fixture(scope="session")
def deployed_run(served: Served, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Deploy the small run and return the deployment's name. Stages run in the flow's process to save time."""
    path = small_run(tmp_path_factory.mktemp("deployed"), tiny_model, name="form", isolation="inline")
    done = served.run(ALIGN, "deploy", path)
    assert done.returncode == 0, done.stderr
    return done.stdout.partition(":")[0]


@pytest.fixture
def prefect_page(browser: Browser, tmp_path: Path) -> Iterator[BrowserPage]:
    """Open a page in Chromium for Prefect's UI."""
    with page_of(browser, tmp_path, OWN_FAULTS) as opened:
        yield opened


@pytest.fixture(scope="module")
def shared_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return one store for all runs of a module, so that later runs find the artifacts of earlier ones."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def brake(tmp_path: Path) -> Brake:
    """Return a brake that holds stages of a worker's run in the middle of their work."""
    folder = tmp_path / "brake"
    folder.mkdir()
    return Brake(folder)


@pytest.fixture
def built(tmp_path: Path) -> Callable[..., StageResult]:
    """Return a function that puts an artifact with metrics and files into a store."""

    def put(kind: str, name: str, metrics: dict[str, Any] | None = None, **more: Any) -> StageResult:
        config = more.pop("config", {"of": name})
        files = more.pop("files", {})
        key = key_of(stage=kind, version=1, config=config, parents=more.get("parents", {}))
        manifest = Manifest(
            kind=kind, key=key, version=1, config=config, metrics=metrics or {}, **{"parents": {}, **more}
        )
        with ArtifactStore(tmp_path / "store").building(kind, key, Silent()) as building:
            for file, lines in files.items():
                (building.out / file).write_text("".join(json.dumps(line) + "\n" for line in lines))
            artifact = building.publish(manifest)
        return StageResult(artifact, False, 1.0, manifest.metrics)

    return put
