"""The workers of `align up`: one per work pool, or one per card."""

from __future__ import annotations

import pytest

from alignment_core.errors import ConfigError
from alignment_core.ranks import cards
from alignment_flows.serve.workers import Worker, cards_for_workers, workers_for


def test_one_worker_per_pool_or_per_card() -> None:
    assert workers_for([]) == [Worker("gpu", "gpu"), Worker("cpu", "cpu")]
    assert workers_for(["0", "GPU-8b"]) == [
        Worker("gpu-0", "gpu", {"CUDA_VISIBLE_DEVICES": "0"}),
        Worker("gpu-GPU-8b", "gpu", {"CUDA_VISIBLE_DEVICES": "GPU-8b"}),
        Worker("cpu", "cpu"),
    ]


def test_each_card_that_cuda_may_use_gets_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cards, "_present", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert cards_for_workers() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ConfigError, match=r"--gpus: this machine has no card .* got CUDA_VISIBLE_DEVICES=\."):
        cards_for_workers()


def test_machine_without_a_card_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cards, "_present", lambda: 0)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(ConfigError, match="got no NVIDIA driver, or no card"):
        cards_for_workers()
