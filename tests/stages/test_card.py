"""What is set on a GPU before a stage uses it. CUDA's functions are replaced by ones that note their calls."""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any

import pytest
import torch

from alignment_core.errors import ModelError
from alignment_core.models.base.loading import choose_device
from alignment_core.stages.shared.card import use_card

GIB = 2**30


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Return the calls on a card with 24 GiB, of which 20 are free."""
    noted: list[tuple[Any, ...]] = []

    def note(name: str) -> Callable[..., None]:
        return lambda *given: noted.append((name, *given))

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (20 * GIB, 24 * GIB))
    for name in ("set_device", "set_per_process_memory_fraction"):
        monkeypatch.setattr(torch.cuda, name, note(name))
    monkeypatch.setattr(platform, "release", lambda: "6.1.0-amd64")
    return noted


def test_memory_gb_is_the_limit_of_the_chosen_card(calls: list[tuple[Any, ...]]) -> None:
    card = torch.device("cuda:1")
    use_card(card, 6)
    assert calls == [("set_device", card), ("set_per_process_memory_fraction", 0.25, card)]


def test_limit_is_at_most_the_card(calls: list[tuple[Any, ...]]) -> None:
    card = torch.device("cuda")
    use_card(card, 100)
    assert calls == [("set_per_process_memory_fraction", 1.0, card)]


def test_without_memory_gb_only_wsl_has_a_limit(calls: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    card = torch.device("cuda")
    use_card(card, None)
    assert calls == []
    monkeypatch.setattr(platform, "release", lambda: "5.15.153.1-microsoft-standard-WSL2")
    use_card(card, None)
    use_card(card, 12)
    assert calls == [("set_per_process_memory_fraction", share, card) for share in (20 / 24, 0.5)]


def test_cpu_has_none(calls: list[tuple[Any, ...]]) -> None:
    use_card(torch.device("cpu"), 6)
    assert calls == []


def test_card_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [choose_device(name) for name in ("cuda", "cuda:1")] == [torch.device("cuda"), torch.device("cuda:1")]
    with pytest.raises(ModelError, match=r"there is no such GPU\. got cuda:2, expected cuda:0 to cuda:1\."):
        choose_device("cuda:2")
