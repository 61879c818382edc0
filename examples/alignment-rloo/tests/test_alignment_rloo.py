from types import SimpleNamespace

import pytest
import torch
from alignment_rloo import RLOO

from alignment_core.plugin_api import Row, TokenSequence
from alignment_core.testing import check


def test_baseline_is_the_mean_of_the_other_responses():
    prompt = Row("prompt", {"prompt": TokenSequence((1,), 1)})
    sequence = TokenSequence((1, 2), 1)
    rollouts = [SimpleNamespace(sequence=sequence, finished=finished) for finished in (True, True, False)]
    run = SimpleNamespace(
        prompts=[prompt],
        shuffled=lambda rows, batch_size, epochs: iter([rows]),
        generate=lambda prompts, **settings: rollouts,
        policy=SimpleNamespace(logps=lambda sequences: torch.tensor([-1.0, -2.0, -3.0])),
        reference=SimpleNamespace(logps=lambda sequences: torch.tensor([-2.0, -2.0, -2.0])),
        reward=SimpleNamespace(scores=lambda sequences: torch.tensor([3.5, 5.0, 0.5])),
        report=lambda metrics: None,
    )
    (batch,) = RLOO(samples=3, kl_coef=0.5, missing_end_penalty=2.0).batches(run)
    # KL 1, 0, -1. Rewards 3.5 - 0.5 = 3, 5 - 0 = 5, 0.5 - 2 + 0.5 = -1. The mean of the others is subtracted.
    assert [row.values["advantage"] for row in batch.rows] == pytest.approx([3 - 2, 5 - 1, -1 - 4])


def test_conformance():
    check(RLOO).assert_passed()
