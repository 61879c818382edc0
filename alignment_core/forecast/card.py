"""A card that this machine does not have, to plan for."""

from __future__ import annotations

import re

from alignment_core.errors import ConfigError

GIB = 2**30
CONTEXT_GIB = 0.6
"""What a CUDA context, its kernels and the allocator's rounding take of a card. An assumption, not yet measured."""
SIZE = re.compile(r"(\d+(?:\.\d+)?) *(?:gi?b)?", re.IGNORECASE)
ASSUMPTIONS = (
    f"a CUDA context takes {CONTEXT_GIB} GiB, nothing else uses the card, it computes in bf16, and attention is flash "
    "attention"
)


def card_size(text: str) -> float:
    """Return the memory of a card in GiB from text such as `12gb`.

    Raises:
        ConfigError: the text is not a size.
    """
    match = SIZE.fullmatch(text.strip())
    if match is None or float(match[1]) <= CONTEXT_GIB:
        raise ConfigError("not the memory of a card", where="--card", got=text, expected="a size in GB, such as 12gb")
    return float(match[1])


def free_memory(card: float) -> float:
    """Return the bytes that are free on an idle card of `card` GiB."""
    return (card - CONTEXT_GIB) * GIB
