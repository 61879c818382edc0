"""A separate reward model reads long texts alone if they would change the others in their batch."""

import torch
from every_architecture import small_config
from transformers import AutoModelForSequenceClassification

from alignment_core.models.roles.classifier import ClassifierReward
from alignment_core.models.roles.logps import Budget


def test_scores_do_not_depend_on_the_batch() -> None:
    config = small_config("phi3 longrope")
    config.num_labels = 1
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_config(config).eval().requires_grad_(False)
    reward = ClassifierReward[list[int]](model, lambda ids: ids, 0, Budget(10_000))
    texts = [list(range(3, 3 + length)) for length in (9, 40, 24, 25, 5)]
    alone = torch.cat([model(input_ids=torch.tensor([text])).logits[:, 0] for text in texts])
    torch.testing.assert_close(reward.scores(texts), alone, rtol=1e-4, atol=1e-4)
