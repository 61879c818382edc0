"""A model with code of its own: trained, asked and exported where it is trusted, and refused everywhere else."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from command import align_here
from own_model import SAYS, processes, save_own_model

from alignment_core.artifacts import ArtifactStore
from alignment_core.errors import ConfigError
from alignment_core.execution.build import build
from alignment_core.inference.model_parts import trained_model
from alignment_core.planning.pipeline import plan_pipeline
from alignment_core.progress import Silent
from alignment_core.registry import load_registry
from alignment_flows import api

ENDINGS = {
    "os._exit(0)": r"ended by code that runs in it.*exit code 0",
    "os._exit(7)": r"ended by code that runs in it.*exit code 7",
    "sys.exit()": r"the code that the model brings along failed.*SystemExit",
    "1 / 0": r"the code that the model brings along failed.*ZeroDivisionError",
    "open(1, 'w', closefd=False).write('{\"error\": 1}\\n' * 999)": None,
    "import atexit; atexit.register(print, '}')": None,
}


@pytest.fixture
def config(tiny_model: Path, tmp_path: Path, write: Callable[..., Path]) -> Path:
    folder = save_own_model(tiny_model, tmp_path / "own")
    path = write()
    settings = json.loads(path.read_text())
    settings["model"] |= {"base": str(folder), "trust_remote_code": True}
    path.write_text(json.dumps(settings))
    return path


@pytest.mark.slow
def test_own_model_is_trained_asked_and_exported(config: Path, tmp_path: Path) -> None:
    settings = api.load_settings(config)
    calls = plan_pipeline(settings, load_registry()).calls()
    built = {name: build(call, Silent()) for name, call in calls.items()}
    assert built["optimize"].artifact.manifest().config["optimizer"]["name"] == "dpo"
    ran = processes(tmp_path / "own")
    assert len(ran) > 2, "in the process of each stage"
    assert os.getpid() not in ran, "never in the flow's process"
    key = built["optimize"].artifact.key

    for refused in (
        lambda: api.load_model(key, settings.store, "cpu"),
        lambda: api.export(key, "merged", tmp_path / "out", store=settings.store),
        lambda: trained_model(ArtifactStore(settings.store), key),
    ):
        with pytest.raises(ConfigError, match=r"code of its own.*If you trust it"):
            refused()
    assert processes(tmp_path / "own") == ran
    api.export(key, "merged", tmp_path / "out", store=settings.store, trust_remote_code=True)
    assert (tmp_path / "out" / "modeling_own.py").is_file()
    assert os.getpid() not in processes(tmp_path / "own")
    answer = api.load_model(key, settings.store, "cpu", trust_remote_code=True).generate("What?", max_new_tokens=4)
    assert isinstance(answer, str)
    with (tmp_path / "own" / "traces.py").open("a") as file:
        file.write("# changed\n")
    with pytest.raises(Exception, match="no longer the one"):
        api.load_model(key, settings.store, "cpu", trust_remote_code=True)


@pytest.mark.ci
@pytest.mark.parametrize("line", ENDINGS)
def test_whatever_the_code_does_the_plan_answers_or_says_why(config: Path, tmp_path: Path, line: str) -> None:
    with (tmp_path / "own" / "configuration_own.py").open("a") as file:
        file.write(f"import os, sys\n{line}\n")
    done = align_here("plan", config, "--json")
    expected = ENDINGS[line]
    if expected is None:
        assert done.returncode == 0, done.stderr
        assert "ingest" in json.dumps(json.loads(done.stdout))
        assert SAYS not in done.stdout
    else:
        assert done.returncode == 2, done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
        assert re.search(expected, done.stderr), done.stderr
