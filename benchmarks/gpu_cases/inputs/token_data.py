"""Rows of random token ids, and what stands for a tokenizer."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from alignment_core.plugin_api import Row, TokenSequence
from alignment_core.training.rows import Rows, Vocabulary

PAD, FIRST = 0, 3
NEVER = (-1,)
"""Stop tokens with which every response has its full length, so that every token counts."""
SHORTEST = 4
"""A length is between the longest divided by this and the longest."""


@dataclass(frozen=True)
class Lengths:
    """The longest prompt and completion, in tokens. The first row has these lengths."""

    prompt: int
    completion: int

    @property
    def longest(self) -> int:
        return self.prompt + self.completion


class NoText:
    """A tokenizer that decodes every response as nothing. No objective reads it."""

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        return ""


def vocabulary(stop_ids: Sequence[int] = NEVER) -> Vocabulary:
    """Return what generation needs to know."""
    return Vocabulary(NoText(), PAD, stop_ids)


def make_rows(count: int, lengths: Lengths, words: int, seed: int = 0) -> Rows:
    """Return `count` rows of each kind, of ids below `words`."""
    pairs = token_pairs(count, lengths, words, seed)
    preferences = [Row(str(i), pair, {"margin": 0.0}) for i, pair in enumerate(pairs)]
    feedback = []
    for i, pair in enumerate(pairs):
        response = pair["chosen" if i % 2 == 0 else "rejected"]
        other = pairs[i - 1]["rejected" if i % 2 == 0 else "chosen"].completion
        both = {"response": response, "mismatched": TokenSequence((*response.prompt, *other), response.start)}
        feedback.append(Row(str(i), both, {"desirable": float(i % 2 == 0), "weight": 1.0}))
    prompts = [TokenSequence(pair["chosen"].prompt, pair["chosen"].start) for pair in pairs]
    return Rows(
        demonstrations=[Row(str(i), {"demonstration": pair["chosen"]}) for i, pair in enumerate(pairs)],
        preferences=preferences,
        feedback=feedback,
        prompts=[Row(str(i), {"prompt": prompt}) for i, prompt in enumerate(prompts)],
    )


def token_pairs(count: int, lengths: Lengths, words: int, seed: int = 0) -> list[dict[str, TokenSequence]]:
    """Return pairs of completions of the same prompt, `chosen` and `rejected`."""
    source = random.Random(seed)

    def tokens(longest: int, full: bool) -> tuple[int, ...]:
        size = longest if full else source.randint(max(1, longest // SHORTEST), longest)
        return tuple(source.randrange(FIRST, words) for _ in range(size))

    pairs = []
    for i in range(count):
        prompt = tokens(lengths.prompt, i == 0)
        both = {side: (*prompt, *tokens(lengths.completion, i == 0)) for side in ("chosen", "rejected")}
        pairs.append({side: TokenSequence(ids, len(prompt)) for side, ids in both.items()})
    return pairs
