"""The simulation of retrains on cards against queueing theory, and that the committed result is what it computes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import scaling


def test_one_card_waits_as_pollaczek_and_khinchine_say() -> None:
    """Half busy, the mean wait is (1 + variation²) ρ / (2 (1 - ρ)) of a retrain: a half, and one."""
    seconds, per_day = 864.0, 50.0
    equal = scaling.waits(1, seconds, per_day, variation=0.0, days=4000)
    assert sum(equal) / len(equal) == pytest.approx(0.5 * seconds, rel=0.05)
    varied = scaling.waits(1, seconds, per_day, variation=1.0, days=4000)
    assert sum(varied) / len(varied) == pytest.approx(seconds, rel=0.1)


def test_all_at_midnight_wait_for_their_turn() -> None:
    """Six retrains of ten minutes on two cards: starts after 0, 0, 10, 10, 20 and 20 minutes, every night."""
    found = scaling.waits(2, 600.0, 6, nightly=True, variation=0.0)
    assert found[:6] == [0.0, 0.0, 600.0, 600.0, 1200.0, 1200.0]
    assert len(found) == 6 * (scaling.DAYS - scaling.WARM_UP)


def test_adapter_has_the_size_that_peft_saves() -> None:
    """Llama-3.1-8B with rank 16 on all linear layers has 41,943,040 trainable parameters, in float32."""
    assert scaling.lora_bytes(4096, 14336, 1024, 32) == 4 * 41_943_040


def test_committed_result_is_what_is_computed() -> None:
    committed = json.loads((Path(scaling.__file__).parent / "results" / "scaling.json").read_text())
    assert json.loads(json.dumps(scaling.computed())) == committed
