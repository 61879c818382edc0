"""The workers of `align up`: one per work pool, or one per card."""

from __future__ import annotations

from pathlib import Path

import pytest

from alignment_core.errors import ConfigError
from alignment_flows.serve.workers import Worker, visible_cards, workers_for

THREE = """\
GPU 0: NVIDIA GeForce RTX 4090 (UUID: GPU-8a)
GPU 1: NVIDIA GeForce RTX 4090 (UUID: GPU-8b)
GPU 2: NVIDIA A100 (UUID: GPU-8c)
  MIG 1g.10gb Device 0: (UUID: MIG-1)
"""


def test_one_worker_per_pool_or_per_card() -> None:
    assert workers_for([]) == [Worker("gpu", "gpu"), Worker("cpu", "cpu")]
    assert workers_for(["0", "GPU-8b"]) == [
        Worker("gpu-0", "gpu", {"CUDA_VISIBLE_DEVICES": "0"}),
        Worker("gpu-GPU-8b", "gpu", {"CUDA_VISIBLE_DEVICES": "GPU-8b"}),
        Worker("cpu", "cpu"),
    ]


def test_cards_are_those_that_cuda_may_use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f'#!/bin/sh\ntest "$1" = --list-gpus && cat <<EOF\n{THREE}EOF\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_cards() == ["0", "1", "2"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, GPU-8a")
    assert visible_cards() == ["2", "GPU-8a"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,-1,1")
    assert visible_cards() == ["0"], "CUDA ignores what follows a -1"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ConfigError, match=r"--gpus: this machine has no card .* got CUDA_VISIBLE_DEVICES=\."):
        visible_cards()


def test_machine_without_a_card_is_told_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="got no nvidia-smi"):
        visible_cards()
