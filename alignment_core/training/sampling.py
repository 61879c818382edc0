"""What sampling needs besides an engine: prompts to answer, noise for each response, and rollouts of the result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from alignment_core.errors import PluginError
from alignment_core.models.generation.response import Response
from alignment_core.plugin_api import Rollout, Row
from alignment_core.training.rows import Vocabulary


def check_prompts(rows: Sequence[Row]) -> None:
    """Check that responses can be sampled for the rows.

    Raises:
        PluginError: a row has no prompt.
    """
    for row in rows:
        if "prompt" not in row.sequences:
            raise PluginError(
                "a row to sample from has no sequence `prompt`",
                got=f"the row {row.id} with {', '.join(row.sequences)}",
                expected="rows of `run.prompts`, or others with such a sequence",
            )


def noise_keys(seed: int, step: int, prompts: Sequence[Row], role: str) -> list[str]:
    """Return keys of seed, step, row and its earlier occurrences, so that a repeated prompt gets fresh noise.

    Other roles than the policy get noise of their own. Otherwise equal weights would give equal responses.
    """
    of_role = "" if role == "policy" else f"/{role}"
    seen: Counter[str] = Counter()
    keys = []
    for prompt in prompts:
        keys.append(f"{seed}/{step}/{prompt.id}/{seen[prompt.id]}{of_role}")
        seen[prompt.id] += 1
    return keys


def rollouts_of(prompts: Sequence[Row], responses: Sequence[Response], vocabulary: Vocabulary) -> list[Rollout]:
    """Return the responses with their prompts and texts. One that ends with a stop token is finished."""
    stops = set(vocabulary.stop_ids)
    return [
        Rollout(
            prompt,
            one.sequence,
            finished=one.sequence.ids[-1] in stops,
            text=vocabulary.tokenizer.decode(list(one.sequence.completion), skip_special_tokens=True),
            logps=one.logps,
            entropies=one.entropies,
        )
        for prompt, one in zip(prompts, responses, strict=True)
    ]
