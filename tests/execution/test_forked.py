"""Stages in forked processes give the same results as in new Python processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from alignment_core.config_file import load_config
from alignment_core.execution.build import build
from alignment_core.planning.pipeline import plan_pipeline
from alignment_core.processes import start
from alignment_core.progress import Silent
from alignment_core.registry import load_registry


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_forked_and_spawned_stages_write_the_same_files(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = []
    for way in ("forked", "spawned"):
        if way == "spawned":
            monkeypatch.setattr(start, "fork_module", lambda *_, **__: None)
        plan = plan_pipeline(load_config(write(store=str(tmp_path / way)), ()), load_registry())
        built = {}
        for call in filter(None, (plan.ingest, plan.sft, plan.reference, plan.optimize, plan.evaluate_sft)):
            manifest = build(call, Silent()).artifact.manifest()
            built |= {f"{call.stage}/{name}": file.sha256 for name, file in manifest.files.items()}
        files.append(built)
    assert files[0] == files[1]
    assert "optimize/adapter_model.safetensors" in files[0]
