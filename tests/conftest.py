"""Shared fixtures: a tiny real model, the real test data, and a Prefect server that is private to this test run."""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from browser import BrowserPage, chromium, page_of
from hypothesis import settings
from playwright.sync_api import Browser
from postgres import Postgres, temporary_postgres
from small_run import small_run
from tiny_tokenizer import tiny_tokenizer

from alignment_core.temporary import temporary_folder

# Prefect, Hugging Face and OpenMP read these variables on first import, so set them before any test module is imported.
_temporary = ExitStack()
atexit.register(_temporary.close)
_PREFECT_HOME = str(_temporary.enter_context(temporary_folder("tests-prefect")))
os.environ["PREFECT_HOME"] = _PREFECT_HOME
os.environ.pop("PREFECT_API_URL", None)
os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
os.environ["DO_NOT_TRACK"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
# What this package remembers of earlier runs: digests of files and predictions.
os.environ["XDG_CACHE_HOME"] = str(_temporary.enter_context(temporary_folder("tests-cache")))
os.environ["HF_MODULES_CACHE"] = str(_temporary.enter_context(temporary_folder("tests-modules")))
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Multi-threaded sums differ from run to run. Exact comparisons need a single thread.
os.environ["OMP_NUM_THREADS"] = "1"

ROOT = Path(__file__).resolve().parent.parent

# New processes know the stage `probe`. They all have this PYTHONPATH, so that they can use the fork server below.
_PROBE_SITE = str(ROOT / "tests" / "support" / "faults" / "probe_site")
_PATHS = os.environ.get("PYTHONPATH", "").split(os.pathsep)
if _PROBE_SITE not in _PATHS:
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [_PROBE_SITE, *_PATHS]))

# The first call into a library is slow and the machine may be busy, so examples have no deadline.
settings.register_profile("align", deadline=None)
settings.load_profile("align")


_fork_servers: list[subprocess.Popen[bytes]] = []


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort files by how long their tests may take, so that no process waits for the last of them at the end.

    pytest-xdist keeps this order with `--no-loadscope-reorder`. Otherwise it begins with the files of most tests.
    """
    longest: dict[Path, float] = {}
    for item in items:
        mark = item.get_closest_marker("timeout")
        longest[item.path] = max(longest.get(item.path, 0), mark.args[0] if mark is not None else 0)
    items.sort(key=lambda item: -longest[item.path])


def pytest_configure(config: pytest.Config) -> None:
    """Start a fork server for the runs that tests start, as `align up` starts one. All test processes share it."""
    if sys.platform != "linux" or hasattr(config, "workerinput"):
        return
    from alignment_core.processes.fork_client import COMMAND, SHARED
    from alignment_core.processes.start import ENVIRONMENT

    path = os.path.join(_PREFECT_HOME, "stages.socket")
    _fork_servers.append(subprocess.Popen([*COMMAND, path], env=ENVIRONMENT | dict(os.environ)))
    os.environ[SHARED] = path


def pytest_unconfigure() -> None:
    """Stop the fork server."""
    for server in _fork_servers:
        server.terminate()
        server.wait()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests marked `gpu` if there is no CUDA device."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real test data, taken from ALIGN_SHARED_DATA."""
    folder = Path(os.environ.get("ALIGN_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        reason = f"no real test data at {folder}: set ALIGN_SHARED_DATA"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return folder.resolve()


@pytest.fixture(scope="session")
def stories260k(shared_data: Path) -> Path:
    """Folder of stories260K, a real Llama with 260,032 parameters trained on English stories."""
    return shared_data / "models" / "stories260k"


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random Llama (2 layers, width 32, context 512) with its byte-level BPE tokenizer.

    The tokenizer has `<pad>` = 0, `<s>` = 1 (prepended to every text) and `</s>` = 2, and no chat template.
    """
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny-llama")
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        # The usual 0.02 gives almost uniform logits at this width, which would hide most mistakes.
        initializer_range=0.2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def write(tmp_path: Path, tiny_model: Path) -> Callable[..., Path]:
    """Return a function that writes a small run's config file, with changes, and its data `pairs.jsonl` next to it."""
    return partial(small_run, tmp_path, tiny_model)


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """A Prefect server with an empty database. It takes about 14 s to start."""
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
    from prefect.testing.utilities import prefect_test_harness

    # With heartbeats, every flow waits a second for its heartbeat thread when it ends.
    with (
        temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}),
        prefect_test_harness(server_startup_timeout=120),
    ):
        yield


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    """A PostgreSQL server that runs until the tests end. See `postgres` for a database in it."""
    with temporary_postgres() as server:
        yield server


@pytest.fixture
def postgres(postgres_server: Postgres) -> str:
    """URL of an empty PostgreSQL database, `postgresql://USER:PASSWORD@HOST:PORT/DATABASE`, for one test."""
    return postgres_server.create_database()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Headless Chromium. Its scope is the module, because asyncio cannot be used in this thread while it is open."""
    with chromium() as opened:
        yield opened


@pytest.fixture
def browser_page(browser: Browser, tmp_path: Path) -> Iterator[BrowserPage]:
    """A page in Chromium. Console errors and requests to other machines fail the test."""
    with page_of(browser, tmp_path) as opened:
        yield opened


@pytest.fixture
def probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Return a function that makes calls of the stage `probe`, whose action is `do`, here and in stage processes."""
    import alignment_core.stages
    from alignment_core.artifacts import key_of
    from alignment_core.execution.stage import Runtime, StageCall

    probes = str(ROOT / "tests" / "stages" / "probes")
    monkeypatch.setattr(alignment_core.stages, "__path__", [*alignment_core.stages.__path__, probes])

    def make(do: str, isolation: str = "process", parents: dict[str, str] | None = None, **more: Any) -> StageCall:
        config = {"do": do, "seed": 3, **more}
        return StageCall(
            stage="probe",
            key=key_of(stage="probe", version=1, config=config, parents=parents or {}),
            label=f"probe · {do}",
            config=config,
            parents=parents or {},
            inputs={},
            runtime=Runtime(store=tmp_path / "store", isolation=isolation),
        )

    return make


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that installs a distribution of one module with an entry point, here and in child processes."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")])))

    def put(
        package: str,
        source: str,
        *,
        version: str = "1.2",
        direct_url: str | None = None,
        group: str = "alignment_core",
        requires: str | None = None,
    ) -> None:
        module = package.replace("-", "_")
        (tmp_path / f"{module}.py").write_text(textwrap.dedent(source))
        info = tmp_path / f"{module}-{version}.dist-info"
        info.mkdir()
        needed = f"Requires-Dist: {requires}\n" if requires else ""
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n{needed}")
        (info / "entry_points.txt").write_text(f"[{group}]\n{module}_entry = {module}\n")
        if direct_url is not None:
            (info / "direct_url.json").write_text(direct_url)
        monkeypatch.delitem(sys.modules, module, raising=False)

    return put
