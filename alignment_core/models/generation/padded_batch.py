"""Generate rows that begin together: padded on the left, or of equal length. For models that have no slots."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import DynamicCache

from alignment_core.models.generation.choice import Sampling, choose, tokens_on_host
from alignment_core.models.generation.decoding import Decoding
from alignment_core.models.generation.distinct import distinct
from alignment_core.models.generation.kv_cache import cache_for
from alignment_core.models.generation.noise import uniforms
from alignment_core.models.generation.response import Response, TokenRecord
from alignment_core.models.roles.shared_base import Roles


class PaddedBatch:
    """Rows that are generated together. Finished rows are removed at once to save work."""

    def __init__(
        self,
        roles: Roles,
        role: str,
        prompts: Sequence[tuple[int, ...]],
        noise_keys: Sequence[str],
        sampling: Sampling,
        stop_ids: set[int],
        pad_id: int,
        way: Decoding,
    ) -> None:
        self.way = way
        self.roles, self.role, self.sampling, self.stop_ids = roles, role, sampling, stop_ids
        self.prompts = prompts
        width = max(map(len, prompts))
        self.ids = torch.tensor([[pad_id] * (width - len(p)) + list(p) for p in prompts], device=roles.device)
        self.mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=roles.device)
        self.noise = uniforms(noise_keys, sampling.max_new_tokens).to(roles.device)
        shape = len(prompts), sampling.max_new_tokens
        self.record = TokenRecord(*shape, sampling.temperature, roles.device) if sampling.logps else None
        self.alive = list(range(len(prompts)))
        self.responses: list[list[int]] = [[] for _ in prompts]

    @torch.no_grad()
    def run(
        self,
        on_step: Callable[[], None],
        on_token: Callable[[int, int], None],
        on_end: Callable[[int, Response], None],
    ) -> None:
        """Generate the responses.

        Args:
            on_step: called before every token.
            on_token: called with the index of a prompt and each new token of its response.
            on_end: called with the index of a prompt and its response as soon as that is finished.
        """
        cache = cache_for(self.roles.model, self.ids.shape[1] + self.sampling.max_new_tokens)
        ids, positions = self.ids, (self.mask.cumsum(1) - 1).clamp_min(0)
        for t in range(self.sampling.max_new_tokens):
            on_step()
            logits = self._last_logits(ids, positions, cache) if t else self._read_prompts(positions, cache)
            token = choose(logits, self.noise[:, t], self.sampling)
            if self.record is not None:
                self.record.add(logits, token, torch.full_like(token, t))
            keep = self._record(tokens_on_host(token, range(len(token))), on_token, on_end)
            if not keep:
                break
            if len(keep) < len(token):
                index = torch.tensor(keep, device=token.device)
                cache.reorder_cache(index)
                self.alive = [self.alive[k] for k in keep]
                if self.record is not None:
                    self.record.keep(index)
                kept = (part[index] for part in (token, ids, positions, self.mask, self.noise))
                token, ids, positions, self.mask, self.noise = kept
            new, place = token.unsqueeze(1), positions[:, -1:] + 1
            self.mask = torch.cat([self.mask, torch.ones_like(new)], dim=1)
            if not self.way.cached:  # read the complete row again
                new, place = torch.cat([ids, new], dim=1), torch.cat([positions, place], dim=1)
            ids, positions = new, place

    def _read_prompts(self, positions: Tensor, cache: DynamicCache) -> Tensor:
        """Read each distinct prompt once, and return the logits of the first token of every row."""
        first, taken = distinct(self.prompts)
        logits = self._last_logits(self.ids[first], positions[first], cache, self.mask[first])
        cache.reorder_cache(torch.tensor(taken, device=self.ids.device))
        return logits[taken]

    def _last_logits(self, ids: Tensor, positions: Tensor, cache: DynamicCache, mask: Tensor | None = None) -> Tensor:
        mask = self.mask if mask is None else mask
        with self.roles.use(self.role), self.roles.autocast():
            output = self.roles.model(input_ids=ids, logits_to_keep=1, **self.way.arguments(cache, mask, positions))
        return output.logits[:, -1].float()  # type: ignore[no-any-return]

    def _record(
        self, tokens: Sequence[int], on_token: Callable[[int, int], None], on_end: Callable[[int, Response], None]
    ) -> list[int]:
        """Append the tokens to the responses and return the batch positions that continue."""
        going = []
        for place, (row, token) in enumerate(zip(self.alive, tokens, strict=True)):
            response = self.responses[row]
            response.append(token)
            on_token(row, token)
            if token in self.stop_ids or len(response) == self.sampling.max_new_tokens:
                on_end(row, Response.of(self.prompts[row], response, self.record, place))
            else:
                going.append(place)
        return going
