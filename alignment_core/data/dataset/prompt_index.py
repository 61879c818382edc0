"""Look up the conversation that a prompt was rendered from by the prompt's token ids."""

from __future__ import annotations

import json
from array import array
from collections.abc import Sequence
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from alignment_core.data.dataset.splits import SPLITS
from alignment_core.data.dataset.stored_rows import TOKENS, Tokens
from alignment_core.records import Conversation

PARTS = ("prompt", "head")
"""Parts that a sequence may start with: the prompt alone, or the completions' prompt, which may be cut further."""


class PromptIndex:
    """The prompts of all splits of one or more data sets, stored on disk with a RAM index of 13 bytes per prompt."""

    def __init__(self, *folders: Path) -> None:
        paths = [folder / split / TOKENS for folder in folders for split in SPLITS]
        self._tables = [Tokens(path) for path in paths if path.exists()]

    def find(self, prompt: Sequence[int]) -> Conversation | None:
        """Return the turns of the prompt with these token ids, or None if no record has it."""
        hashes, tables, records = self._index
        wanted = _hash(array("i", prompt).tobytes())
        for place in range(*(int(np.searchsorted(hashes, wanted, side)) for side in ("left", "right"))):
            table, record = self._tables[tables[place]], int(records[place])
            turns = json.loads(table.value(record, "messages") or "[]")
            if turns and tuple(prompt) in [table.ids(record, name) for name in PARTS]:
                return tuple(turns)
        return None

    @cached_property
    def _index(self) -> tuple[Any, Any, Any]:
        entries = (
            (_hash(content), number, record)
            for number, table in enumerate(self._tables)
            for name in PARTS
            for record, content in table.contents(name)
        )
        found = np.fromiter(entries, dtype=[("hash", np.uint64), ("table", np.uint8), ("record", np.uint32)])
        found = found[np.argsort(found["hash"], kind="stable")]
        return found["hash"], found["table"], found["record"]


def _hash(content: bytes) -> Any:
    return np.uint64(int.from_bytes(blake2b(content, digest_size=8).digest(), "little"))
