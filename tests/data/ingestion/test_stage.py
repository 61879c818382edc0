"""The ingest stage, called as the flow calls it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from alignment_core.artifacts import ArtifactStore, key_of
from alignment_core.config import DataConfig, SourceConfig
from alignment_core.data.dataset.splits import read_dataset
from alignment_core.data.sources.identity import source_identity
from alignment_core.execution.build import build_here
from alignment_core.execution.stage import Runtime, StageCall
from alignment_core.outcome.names import name_of
from alignment_core.planning.pipeline import VERSIONS
from alignment_core.progress import Silent


def call(folder: Path, model: Path, source: SourceConfig) -> StageCall:
    data = DataConfig(sources=[source])
    config = {
        "data": data.model_dump(mode="json", exclude={"sources"}),
        "sources": [source_identity(source).key],
        "tokenizer": "digest",
        "chat_template": None,
        "thoughts": "text",
        "template_date": "2024-07-26",
        "max_length": 64,
    }
    return StageCall(
        stage="ingest",
        key=key_of(stage="ingest", version=VERSIONS["ingest"], config=config, parents={}),
        label="ingest",
        config=config,
        parents={},
        inputs={"sources": [source.model_dump(mode="json")], "model": {"path": str(model), "revision": None}},
        runtime=Runtime(store=folder / "store", isolation="inline"),
    )


def test_stage_builds_an_artifact_and_keeps_the_shards(tmp_path: Path, tiny_model: Path) -> None:
    rows = [{"prompt": f"q {i * 77}?", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(30)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    artifact, cached = build_here(call(tmp_path, tiny_model, SourceConfig(path=str(path))), Silent())
    assert not cached
    metrics = artifact.manifest().metrics
    train = read_dataset(artifact.path).train
    assert metrics["rows"]["train"]["preferences"] == len(train.preferences) >= 25
    assert metrics["balance"]["suggested"] == {"lambda_D": 1.0, "lambda_U": 1.0}
    assert "samples" not in metrics
    assert {"report.json", "report.html", "report.md", "quarantine.jsonl"} <= {
        item.name for item in artifact.path.iterdir()
    }
    assert not [item for item in artifact.path.rglob("*") if item.name.startswith(".")]
    (shard,) = (each for each in ArtifactStore(tmp_path / "store").artifacts() if each.kind == "shard")
    assert name_of(shard.manifest()) == "rows.jsonl"
    again, _ = build_here(call(tmp_path, tiny_model, SourceConfig(path=str(path), weight=2.0)), Silent())
    assert json.loads((again.path / "report.json").read_text())["files"][0]["reused"]


def test_modules_for_cache_keys_import_neither_torch_nor_transformers() -> None:
    script = (
        "import sys, alignment_core.data.sources.identity, alignment_core.data.rendering.renderer,"
        " alignment_core.data.dataset.splits,"
        " alignment_core.data.ingestion.check, alignment_core.stages.ingest;"
        "print([name for name in ('torch', 'transformers', 'matplotlib', 'pandas') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
