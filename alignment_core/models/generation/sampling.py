"""Sample in batches of similar length, with a KV cache. Rows leave the batch when they stop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import DynamicCache

from alignment_core.errors import ModelError
from alignment_core.models.generation.decoding import Decoding, choose_decoding
from alignment_core.models.generation.kv_cache import cache_for
from alignment_core.models.passes.batching import group_by_budget
from alignment_core.models.roles.logps import Budget
from alignment_core.models.roles.shared_base import Roles
from alignment_core.plugin_api import TokenSequence
from alignment_core.seeds import seed_of

CHOSEN_TOGETHER = 2**22
"""Most logits from which tokens are chosen at a time: 128 MiB, including all intermediate tensors."""


_ways: WeakKeyDictionary[Roles, Decoding] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        max_new_tokens: longest response.
        temperature: divides the logits; 0 is greedy.
        top_p: keep the smallest set of tokens whose probability reaches this; 1 keeps all.
        top_k: keep the k likeliest tokens; 0 keeps all.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0


def generate(
    roles: Roles,
    role: str,
    prompts: Sequence[TokenSequence],
    *,
    noise_keys: Sequence[str],
    sampling: Sampling,
    stop_ids: Sequence[int],
    pad_id: int,
    budget: Budget,
    on_step: Callable[[int], None],
    on_token: Callable[[int, int], None] = lambda row, token: None,
) -> list[TokenSequence]:
    """Sample one response per prompt, ending with its stop token if it reached one.

    The noise of a row depends only on its key, so batch, padding and order do not change the response (within float
    tolerance).

    Args:
        noise_keys: one string per prompt, e.g. seed, step, row and sample number.
        budget: one batch may hold `Roles.generation_cache_factor` times its tokens (prompts and responses, padding
            included).
        on_step: called before every token with the number of finished responses; may raise to stop.
        on_token: called with the index of the prompt and each new token of its response. After an out-of-memory
            error, the rows of that batch start over.

    Returns:
        Prompt and response of each row. `start` is the prompt's length.
    """
    results: dict[int, TokenSequence] = {}
    room = [TokenSequence((*p.ids, *([pad_id] * sampling.max_new_tokens)), len(p.ids)) for p in prompts]
    roles.reach.check(max((len(one.ids) for one in room), default=0))

    def remaining() -> None:
        todo = [i for i in range(len(prompts)) if i not in results]
        way = decoding_of(roles, role)
        tokens = budget.tokens * roles.generation_cache_factor() if way.together else 1
        together = [i for i in todo if len(room[i].ids) <= roles.reach.batched]
        places = group_by_budget([room[i] for i in together], tokens, lambda sequence: (sequence,))
        groups = [[together[place] for place in group] for group in places]
        for group in [*groups, *([i] for i in todo if len(room[i].ids) > roles.reach.batched)]:
            noise = torch.stack([_uniforms(noise_keys[i], sampling.max_new_tokens) for i in group]).to(roles.device)
            # A cache would keep what a longer row changes.
            reading = way.alone() if len(room[group[0]].ids) > roles.reach.batched else way
            batch = _Batch(
                roles, role, [prompts[i].ids for i in group], noise, sampling, set(stop_ids), pad_id, reading
            )
            responses = batch.run(partial(on_step, len(results)), partial(_report_token, on_token, group))
            for i, response in zip(group, responses, strict=True):
                results[i] = TokenSequence((*prompts[i].ids, *response), len(prompts[i].ids))
            on_step(len(results))

    budget.fit(remaining)
    return [results[i] for i in range(len(prompts))]


def decoding_of(roles: Roles, role: str) -> Decoding:
    """Return how the model is generated from, tried when it is first asked for."""
    if roles not in _ways:
        with roles.use(role), roles.autocast():
            _ways[roles] = choose_decoding(roles.model, roles.reach)
    return _ways[roles]


def _report_token(on_token: Callable[[int, int], None], group: Sequence[int], row: int, token: int) -> None:
    on_token(group[row], token)


def _uniforms(key: str, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed_of(key))
    return torch.rand(count, generator=generator, dtype=torch.float64)


class _Batch:
    """Rows that are generated together, left-padded. Finished rows are removed at once to save work."""

    def __init__(
        self,
        roles: Roles,
        role: str,
        prompts: Sequence[tuple[int, ...]],
        noise: Tensor,
        sampling: Sampling,
        stop_ids: set[int],
        pad_id: int,
        way: Decoding,
    ) -> None:
        self.way = way
        self.roles, self.role, self.noise, self.sampling, self.stop_ids = roles, role, noise, sampling, stop_ids
        width = max(map(len, prompts))
        self.ids = torch.tensor([[pad_id] * (width - len(p)) + list(p) for p in prompts], device=roles.device)
        self.mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=roles.device)
        self.alive = list(range(len(prompts)))
        self.responses: list[list[int]] = [[] for _ in prompts]

    @torch.no_grad()
    def run(self, on_step: Callable[[], None], on_token: Callable[[int, int], None]) -> list[list[int]]:
        cache = cache_for(self.roles.model, self.ids.shape[1] + self.sampling.max_new_tokens)
        ids, positions = self.ids, (self.mask.cumsum(1) - 1).clamp_min(0)
        for t in range(self.sampling.max_new_tokens):
            on_step()
            token = self._choose(self._last_logits(ids, positions, cache), self.noise[self.alive, t])
            keep = self._record(token.tolist(), on_token)
            if not keep:
                break
            if len(keep) < len(token):
                index = torch.tensor(keep, device=token.device)
                cache.reorder_cache(index)
                self.alive = [self.alive[k] for k in keep]
                token, ids, positions, self.mask = (part[index] for part in (token, ids, positions, self.mask))
            new, place = token.unsqueeze(1), positions[:, -1:] + 1
            self.mask = torch.cat([self.mask, torch.ones_like(new)], dim=1)
            if not self.way.cached:  # read the complete row again
                new, place = torch.cat([ids, new], dim=1), torch.cat([positions, place], dim=1)
            ids, positions = new, place
        return self.responses

    def _last_logits(self, ids: Tensor, positions: Tensor, cache: DynamicCache) -> Tensor:
        with self.roles.use(self.role), self.roles.autocast():
            output = self.roles.model(
                input_ids=ids,
                logits_to_keep=1,
                **self.way.arguments(cache, self.mask, positions),
            )
        return output.logits[:, -1].float()  # type: ignore[no-any-return]

    def _choose(self, logits: Tensor, noise: Tensor) -> Tensor:
        """Choose tokens for a few rows at a time, because this takes several times the memory of the logits."""
        rows = max(1, CHOSEN_TOGETHER // logits.shape[-1])
        parts = zip(torch.split(logits, rows), torch.split(noise, rows), strict=True)
        return torch.cat([choose(some, its_noise, self.sampling) for some, its_noise in parts])

    def _record(self, tokens: Sequence[int], on_token: Callable[[int, int], None]) -> list[int]:
        """Append the tokens to the responses and return the batch positions that continue."""
        for row, token in zip(self.alive, tokens, strict=True):
            self.responses[row].append(token)
            on_token(row, token)
        return [place for place, token in enumerate(tokens) if token not in self.stop_ids]


def choose(logits: Tensor, uniform: Tensor, sampling: Sampling) -> Tensor:
    """Return the next token of each row: greedy, or by inverting the cumulative distribution at the row's uniform.

    Args:
        logits: shape (rows, vocabulary).
        uniform: shape (rows,), in [0, 1), float64.
        sampling: temperature is applied first, then top-k, then top-p, as in transformers.

    Returns:
        Token ids, shape (rows,).

    Raises:
        ModelError: a logit is NaN, from which an arbitrary token would be chosen.
    """
    if torch.isnan(logits).any():
        raise ModelError(
            "the model's logits contain NaN",
            where="generation",
            do="Check the base model and the adapter for broken weights, or choose another `model.load_in`",
        )
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    probabilities = torch.softmax(logits / sampling.temperature, dim=-1, dtype=torch.float64)
    if sampling.top_k > 0:
        least = probabilities.topk(min(sampling.top_k, probabilities.shape[-1])).values[:, -1:]
        probabilities = probabilities.where(probabilities >= least, 0.0)
    if sampling.top_p < 1:
        probabilities = _nucleus(probabilities / probabilities.sum(-1, keepdim=True), sampling.top_p)
    cumulative = probabilities.cumsum(dim=-1)
    threshold = uniform.unsqueeze(1) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, threshold, right=True).squeeze(1).clamp_max(logits.shape[-1] - 1)


def _nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    ordered, index = probabilities.sort(dim=-1, descending=True)
    before = ordered.cumsum(dim=-1) - ordered
    return torch.zeros_like(probabilities).scatter(1, index, ordered.where(before < top_p, 0.0))
