"""Runs on a base model that is a GGUF file: it is unpacked once, as a stage, and every artifact names it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from shown import task_runs
from tiny_gguf import needs_gguf, write_gguf

from alignment_core.artifacts import ArtifactStore
from alignment_core.artifacts.prune import prune
from alignment_core.config import PipelineConfig
from alignment_core.config_file import load_config
from alignment_core.errors import ModelError
from alignment_core.execution.build import StageResult, build
from alignment_core.execution.stage import StageCall
from alignment_core.planning.pipeline import plan_pipeline
from alignment_core.planning.unpacked_base import base_of_run
from alignment_core.progress import Progress, Silent
from alignment_core.registry import load_registry
from alignment_flows import api, data_checks
from alignment_flows.pipeline import align

MakeRun = Callable[..., PipelineConfig]


@pytest.fixture
def settings(write: Callable[..., Path], tiny_model: Path, tmp_path: Path) -> MakeRun:
    """Return a function that returns the settings of a small run on a GGUF file, with changes."""
    needs_gguf()
    path = write_gguf(tiny_model, tmp_path / "tiny.Q8_0.gguf", "Q8_0")

    def make(*changes: str) -> PipelineConfig:
        return load_config(write(), [f"model.base=gguf:{path}", "isolation=inline", "sft=null", *changes])

    return make


def unpacked(config: PipelineConfig) -> StageResult:
    call = base_of_run(config)
    assert call is not None
    return build(call, Silent())


def keys(config: PipelineConfig) -> dict[str, str]:
    unpacked(config)
    return {name: call.key for name, call in plan_pipeline(config, load_registry()).calls().items()}


@pytest.mark.usefixtures("prefect_server")
def test_flow_unpacks_once_and_keeps_what_a_model_needs(settings: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def pruned(call: StageCall, progress: Progress) -> StageResult:
        if call.runtime.store.exists():
            prune(ArtifactStore(call.runtime.store))
        return build(call, progress)

    monkeypatch.setattr("alignment_flows.tasks.build", pruned)
    config = settings()
    state = align(config, return_state=True)
    built = state.result()
    names = [task.name for task in task_runs(state, len(built) + 1)]
    assert sum(name.startswith("base · tiny.Q8_0.gguf · ") for name in names) == 1
    store = ArtifactStore(config.store)
    base = unpacked(config)
    assert base.cached
    for name, result in built.items():
        manifest = result.artifact.manifest()
        assert manifest.parents["base"] == base.artifact.key, name
        origin = manifest.inputs["model"]["unpacked_from"]
        assert (origin["file"], origin["quantization"]) == ("tiny.Q8_0.gguf", "Q8_0")
    policy = built["optimize"].artifact
    store.aliases.promote("production", policy.kind, policy.key, by="", reason="")
    prune(store)
    assert store.find(base.artifact.key) is not None
    assert align(config, return_state=True).result()["optimize"].cached


def test_keys_depend_on_the_content_of_the_file(settings: MakeRun, tiny_model: Path, tmp_path: Path) -> None:
    first = keys(settings())
    moved = shutil.copyfile(tmp_path / "tiny.Q8_0.gguf", tmp_path / "moved.gguf")
    assert keys(settings(f"model.base=gguf:{moved}")) == first
    other = write_gguf(tiny_model, tmp_path / "tiny.F32.gguf")
    assert not set(keys(settings(f"model.base=gguf:{other}")).values()) & set(first.values())


def test_plan_and_data_check_unpack_and_say_so(
    settings: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = settings(f"store={tmp_path / 'artifacts'}")
    with pytest.raises(ModelError, match=r"has not been unpacked.*align plan"):
        plan_pipeline(config, load_registry())
    planned = api.plan(config)
    assert list(planned.calls)[:2] == ["base", "ingest"], "as a run shows them"
    assert planned.to_build == list(planned.calls)[1:]
    said = capsys.readouterr().err
    assert "unpacking gguf:" in said
    assert "Q8_0" in said
    monkeypatch.chdir(tmp_path)
    report = data_checks.check_data("pairs.jsonl", model=config.model.base)
    assert sum(file["rows"] for file in report["files"]) == 24
    assert not capsys.readouterr().err, "the file must be unpacked once"


def test_revision_and_missing_file_are_refused_before_anything_is_built(settings: MakeRun, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"model\.revision.*no revisions"):
        api.plan(settings("model.revision=main"))
    with pytest.raises(ModelError, match="no such file"):
        api.plan(settings("model.base=gguf:./missing.gguf"))
    assert not (tmp_path / "store").exists()


@pytest.mark.ci
def test_exported_model_names_the_file(settings: MakeRun, tmp_path: Path) -> None:
    config = settings()
    unpacked(config)
    built = {name: build(call, Silent()) for name, call in plan_pipeline(config, load_registry()).calls().items()}
    made = api.export(built["optimize"].artifact.key, "merged", tmp_path / "out", store=config.store)
    card = (tmp_path / "out" / "README.md").read_text()
    assert made is not None
    assert "tiny.Q8_0.gguf" in card
    assert "Q8_0" in card
