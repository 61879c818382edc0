"""A run that finds every stage in the store is finished without Prefect, unless a server should record it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from small_run import small_run

from alignment_core.config import PipelineConfig
from alignment_core.config_file import load_config
from alignment_core.execution.build import build_here
from alignment_core.planning.pipeline import Plan, plan_pipeline
from alignment_core.progress import Silent
from alignment_core.registry import load_registry
from alignment_flows.serve import cached_run
from alignment_flows.serve.cached_run import find_cached_run
from alignment_flows.serve.service_record import RECORD

RUN = """
import sys
from alignment_flows.cli.app import main
try:
    main()
finally:
    print("prefect" in sys.modules, file=sys.stderr)
"""


@pytest.fixture(scope="module")
def built(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config file whose stages are all in the store."""
    path = small_run(tmp_path_factory.mktemp("built"), tiny_model, evaluation={"max_prompts": 2, "max_new_tokens": 4})
    for call in plan_pipeline(load_config(path), load_registry()).calls().values():
        build_here(call, Silent())
    return path


def planned(path: Path, *changes: str) -> tuple[PipelineConfig, Plan]:
    config = load_config(path, changes)
    return config, plan_pipeline(config, load_registry())


def test_cached_run_needs_no_prefect(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    command = [sys.executable, "-c", RUN, "run", str(built), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "False\n")
    found = json.loads(done.stdout)
    assert found["flow_run_id"] is None
    assert [stage["name"] for stage in found["stages"] if not stage["cached"]] == []
    assert "optimize" in {stage["name"] for stage in found["stages"]}


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("home/profiles.toml", '[profiles.team]\nPREFECT_API_URL = "http://127.0.0.1:9/api"\n'),
        ("prefect.toml", '[api]\nurl = "http://127.0.0.1:9/api"\n'),
        ("pyproject.toml", '[tool.prefect.api]\nurl = "http://127.0.0.1:9/api"\n'),
        (".env", "PREFECT_API_URL=http://127.0.0.1:9/api\n"),
        (f"home/{RECORD}", "{}"),
    ],
)
def test_server_that_may_be_there_is_noticed_without_prefect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, text: str
) -> None:
    monkeypatch.delitem(sys.modules, "prefect", raising=False)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home").mkdir()
    (tmp_path / "pyproject.toml").write_text("[tool.ruff]\nline-length = 120\n")
    assert not cached_run.has_server()
    (tmp_path / file).write_text(text)
    assert cached_run.has_server()


def test_anything_to_do_needs_prefect(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached_run, "has_server", lambda: False)
    assert find_cached_run(*planned(built)) is not None
    assert find_cached_run(*planned(built, "optimizer.beta=0.7")) is None
    config, plan = planned(built)
    assert find_cached_run(config.model_copy(update={"gate": {}}), plan) is None, "the gate may promote the model"
    found = find_cached_run(config, plan)
    assert found is not None
    (found["sft"].artifact.path / "adapter_config.json").write_text("{}")
    assert find_cached_run(config, plan) is None, "the damaged stage is built again"
