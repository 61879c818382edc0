"""The rows that ranking sampled responses can add to the data, before any response has been sampled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

from alignment_core.config import SampleConfig
from alignment_core.plugin_api import Row, TokenSequence


def ranked_rows(kind: str, prompts: Sequence[Row], settings: SampleConfig, new: int) -> Iterator[Row]:
    """Yield the most and longest rows of a kind that `rank` can make of the responses to the prompts.

    It makes a pair of every two responses of a prompt that it scores differently, and a label of every response whose
    score differs from the prompt's mean.

    Args:
        kind: `preferences` or `feedback`. Ranking gives no rows of any other kind.
        prompts: the training prompts, in their order.
        settings: how many responses are sampled.
        new: the maximum length of a response in tokens.
    """
    count = settings.responses_per_prompt
    for prompt in prompts[: settings.max_prompts]:
        responses = [longest(prompt, new, token) for token in range(count)]
        if kind == "preferences":
            for a, b in combinations(range(count), 2):
                both = {"chosen": responses[a], "rejected": responses[b]}
                yield Row(f"{prompt.id} {a} {b}", both, {"margin": 0.0})
        elif kind == "feedback":
            for i, response in enumerate(responses):
                both = {"response": response, "mismatched": longest(prompt, new, count + i)}
                yield Row(f"{prompt.id} {i}", both, {"desirable": float(i % 2 == 0), "weight": 1.0})


def longest(prompt: Row, new: int, token: int = 0) -> TokenSequence:
    """Return the prompt with a response of `new` tokens, which are all the same."""
    ids = prompt.sequences["prompt"].ids
    return TokenSequence((*ids, *([token] * new)), len(ids))
