"""Who samples the responses of a run: its own process, or an engine beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from alignment_core.models.generation.choice import Sampling
from alignment_core.models.generation.response import Response
from alignment_core.models.generation.sampling import generate
from alignment_core.models.roles.logps import Budget
from alignment_core.models.roles.shared_base import Roles
from alignment_core.models.roles.shares import share_of
from alignment_core.plugin_api import TokenSequence


class Engine(Protocol):
    """Samples responses of the roles of a run."""

    def generate(
        self,
        role: str,
        prompts: Sequence[TokenSequence],
        sampling: Sampling,
        noise_keys: Sequence[str],
        on_step: Callable[[float], None],
    ) -> list[Response]:
        """Sample one response per prompt, ending with its stop token if it reached one.

        Args:
            role: the role, with its present weights.
            noise_keys: one string per prompt, which determines its noise.
            on_step: called again and again with the number of finished responses, to which those at work may add their
                shares; may raise to stop.

        Returns:
            The response to each prompt. An engine that cannot keep log-probabilities leaves them out.
        """


@dataclass(frozen=True)
class OwnEngine:
    """Samples with the model of the run, in its processes. The noise of a row depends only on its key.

    Attributes:
        roles: the model and its roles.
        stop_ids: tokens that end a response.
        pad_id: padding token.
        budget: shared with everything that runs the model.
    """

    roles: Roles
    stop_ids: Sequence[int]
    pad_id: int
    budget: Budget

    def generate(
        self,
        role: str,
        prompts: Sequence[TokenSequence],
        sampling: Sampling,
        noise_keys: Sequence[str],
        on_step: Callable[[float], None],
    ) -> list[Response]:
        ranks = self.budget.ranks
        room = [len(prompt.ids) + sampling.max_new_tokens for prompt in prompts]
        share = share_of(ranks, room, prompts)
        found = generate(
            self.roles,
            role,
            [prompts[i] for i in share],
            noise_keys=[noise_keys[i] for i in share],
            sampling=sampling,
            stop_ids=self.stop_ids,
            pad_id=self.pad_id,
            budget=self.budget,
            on_step=on_step,
        )
        if ranks.apart:
            return found
        parts = ranks.gather("responses", list(zip(share, found, strict=True)))
        by_index = dict(pair for part in parts for pair in part)
        return [by_index[i] for i in range(len(prompts))]
