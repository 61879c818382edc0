"""Shared fixtures: a tiny real model, the real test data, and a Prefect server that only this test run sees."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import BrowserPage, chromium, page_of
from hypothesis import settings
from playwright.sync_api import Browser
from postgres import Postgres, temporary_postgres

# Prefect, Hugging Face and OpenMP read these when they are first imported, so they are set before any test module is.
_PREFECT_HOME = tempfile.mkdtemp(prefix="align-tests-prefect-")
atexit.register(shutil.rmtree, _PREFECT_HOME, ignore_errors=True)
os.environ["PREFECT_HOME"] = _PREFECT_HOME
os.environ.pop("PREFECT_API_URL", None)
os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
os.environ["DO_NOT_TRACK"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Sums over several threads differ from run to run; exact comparisons need one.
os.environ["OMP_NUM_THREADS"] = "1"

# The first call of a library is slow, and the machine may be busy: an example may take its time.
settings.register_profile("align", deadline=None)
settings.load_profile("align")

ROOT = Path(__file__).resolve().parent.parent

SENTENCES = (
    "Once upon a time there was a little dog who liked to play in the park with a red ball.",
    "The weather is sunny today, so we can walk to the river and look at the boats.",
    "Please tell me how to bake bread. Mix flour, water, salt and yeast, then wait and bake it.",
    "No, I do not think that is right. Yes, you are right, thank you very much!",
    "What is two plus three? Two plus three is five.",
    "Human: Can you help me? Assistant: Of course, what would you like to know?",
)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A `gpu` test is skipped where there is no CUDA device."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real test data, named by ALIGN_SHARED_DATA."""
    folder = Path(os.environ.get("ALIGN_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        reason = f"no real test data at {folder}: set ALIGN_SHARED_DATA"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return folder.resolve()


@pytest.fixture(scope="session")
def stories260k(shared_data: Path) -> Path:
    """Folder of stories260K: a real Llama of 260,032 parameters that tells English stories."""
    return shared_data / "models" / "stories260k"


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random Llama (2 layers, width 32, context 512) with its byte-level BPE tokenizer.

    The tokenizer knows `<pad>` = 0, `<s>` = 1 (put in front) and `</s>` = 2, and has no chat template.
    """
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny-llama")
    tokenizer = _tiny_tokenizer()
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
        # Weights of the usual 0.02 give almost uniform logits at this width, which would hide most mistakes.
        initializer_range=0.2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    model.save_pretrained(folder)
    return folder


def _tiny_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<pad>", "<s>", "</s>"]
    bpe.train_from_iterator(
        SENTENCES,
        trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """A Prefect server with an empty database, for the tests that ask for it: it takes about 14 s to start."""
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
    from prefect.testing.utilities import prefect_test_harness

    # At its end every flow waits a second for its heartbeat thread.
    with (
        temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}),
        prefect_test_harness(server_startup_timeout=120),
    ):
        yield


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    """A PostgreSQL server that ends with the tests; see `postgres` for a database in it."""
    with temporary_postgres() as server:
        yield server


@pytest.fixture
def postgres(postgres_server: Postgres) -> str:
    """URL of an empty PostgreSQL database, `postgresql://USER:PASSWORD@HOST:PORT/DATABASE`, for one test."""
    return postgres_server.create_database()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Headless Chromium. Not for the whole session, because asyncio is out of reach in this thread while it is open."""
    with chromium() as opened:
        yield opened


@pytest.fixture
def browser_page(browser: Browser, tmp_path: Path) -> Iterator[BrowserPage]:
    """A page in Chromium; errors in its console and requests to other machines fail the test."""
    with page_of(browser, tmp_path) as opened:
        yield opened


@pytest.fixture
def probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Makes calls of the stage `probe`, which does what `do` says, here and in every stage process."""
    import alignment_core.stages
    from alignment_core.artifacts import key_of
    from alignment_core.stages.base import Runtime, StageCall

    probes = ROOT / "tests" / "stages" / "probes"
    site = tmp_path / "site"
    site.mkdir()
    line = f"import alignment_core.stages; alignment_core.stages.__path__.append({str(probes)!r})\n"
    (site / "sitecustomize.py").write_text(line)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")])))
    monkeypatch.setattr(alignment_core.stages, "__path__", [*alignment_core.stages.__path__, str(probes)])

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
    """Lays a distribution with one module and its entry point where Python finds it, here and in child processes."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")])))

    def put(package: str, source: str, *, version: str = "1.2", direct_url: str | None = None) -> None:
        module = package.replace("-", "_")
        (tmp_path / f"{module}.py").write_text(textwrap.dedent(source))
        info = tmp_path / f"{module}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[alignment_core]\n{module}_entry = {module}\n")
        if direct_url is not None:
            (info / "direct_url.json").write_text(direct_url)
        monkeypatch.delitem(sys.modules, module, raising=False)

    return put
