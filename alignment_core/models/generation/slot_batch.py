"""Generate in slots: the place of a finished response is taken by the next prompt, so that batches stay full."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from alignment_core.models.generation.choice import Sampling, choose, tokens_on_host
from alignment_core.models.generation.graph import can_capture
from alignment_core.models.generation.noise import uniforms
from alignment_core.models.generation.response import Response, TokenRecord
from alignment_core.models.generation.slots import Slots
from alignment_core.models.roles.shared_base import Roles

REFILLED = 8
"""Prompts are read when one slot in so many is free: fewer at a time would cost more than the slots that wait."""


class SlotBatch:
    """Responses that are generated in a number of slots."""

    def __init__(
        self,
        roles: Roles,
        role: str,
        prompts: Sequence[tuple[int, ...]],
        noise_keys: Sequence[str],
        sampling: Sampling,
        stop_ids: set[int],
        slots: int,
        argument: str,
    ) -> None:
        """
        Args:
            prompts: any number of prompts, longest first.
            slots: responses that are generated at a time.
            argument: name of the model's cache argument.
        """
        self.roles, self.role, self.sampling, self.stop_ids = roles, role, sampling, stop_ids
        self.prompts, self.noise_keys = prompts, noise_keys
        longest = max(map(len, prompts)) + sampling.max_new_tokens
        self.slots = Slots(roles.model, argument, slots, longest, fixed=can_capture(roles.device))
        self.waiting = list(range(len(prompts)))
        self.held: list[int | None] = [None] * slots
        self.responses: list[list[int]] = [[] for _ in prompts]
        self.running, self.drawn = (torch.zeros(slots, dtype=torch.long, device=roles.device) for _ in range(2))
        shape = slots, sampling.max_new_tokens
        self.noise = torch.zeros(shape, dtype=torch.float64, device=roles.device)
        self.record = TokenRecord(*shape, sampling.temperature, roles.device) if sampling.logps else None

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
        while self._arrange():
            on_step()
            with self.roles.use(self.role), self.roles.autocast():
                logits = self.slots.step()
            drawn = self.drawn.clamp_max(self.noise.shape[1] - 1)
            tokens = choose(logits, self.noise.gather(1, drawn.unsqueeze(1)).squeeze(1), self.sampling)
            if self.record is not None:
                self.record.add(logits, tokens, drawn)
            taken = [slot for slot, held in enumerate(self.held) if held is not None]
            self.slots.add(tokens, self.running, taken)
            self.drawn += self.running
            found = zip(taken, tokens_on_host(tokens, taken), strict=True)
            if ended := [slot for slot, token in found if self._record(slot, token, on_token, on_end)]:
                self.slots.clear(ended)
                self._set_running()

    def _arrange(self) -> bool:
        """Fill the free slots, or remove them if nothing waits. Returns whether there is anything left to generate."""
        free = [slot for slot, held in enumerate(self.held) if held is None]
        if self.waiting and REFILLED * len(free) >= len(self.held):
            self._fill(free)
        elif len(free) == len(self.held):
            return False
        elif free and not self.waiting:
            self._shrink(free)
        return True

    def _fill(self, free: Sequence[int]) -> None:
        taken, self.waiting = self.waiting[: len(free)], self.waiting[len(free) :]
        places = list(free[: len(taken)])
        with self.roles.use(self.role), self.roles.autocast():
            self.slots.put(places, [self.prompts[i] for i in taken])
        for slot, i in zip(places, taken, strict=True):
            self.held[slot] = i
        index = torch.tensor(places, device=self.noise.device)
        draws = uniforms([self.noise_keys[i] for i in taken], self.sampling.max_new_tokens)
        self.noise[index] = draws.to(self.noise.device)
        self.drawn[index] = 0
        self._set_running()

    def _set_running(self) -> None:
        running = [int(held is not None) for held in self.held]
        self.running = torch.tensor(running, device=self.running.device)

    def _shrink(self, free: Sequence[int]) -> None:
        """Remove free slots. Shapes that are fixed are only halved, because each new one is captured again."""
        rows, needed = len(self.held), len(self.held) - len(free)
        while self.slots.fixed and (half := -(-rows // 2)) >= needed and half < rows:
            rows = half
        removed = set(free[: len(self.held) - (rows if self.slots.fixed else needed)])
        if not removed:
            return
        kept = [slot for slot in range(len(self.held)) if slot not in removed]
        index = self.slots.keep(kept)
        self.held = [self.held[slot] for slot in kept]
        self.noise, self.drawn, self.running = self.noise[index], self.drawn[index], self.running[index]
        if self.record is not None:
            self.record.keep(index)

    def _record(
        self,
        slot: int,
        token: int,
        on_token: Callable[[int, int], None],
        on_end: Callable[[int, Response], None],
    ) -> bool:
        """Add a token to the response in a slot. Returns whether that is finished, and the slot free."""
        i = self.held[slot]
        assert i is not None
        response = self.responses[i]
        response.append(token)
        on_token(i, token)
        if token not in self.stop_ids and len(response) < self.sampling.max_new_tokens:
            return False
        self.held[slot] = None
        on_end(i, Response.of(self.prompts[i], response, self.record, slot))
        return True
