"""The content address of an artifact."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def key_of(*, stage: str, version: int, config: Mapping[str, Any], parents: Mapping[str, str]) -> str:
    """Key of what a stage makes of these settings and parents: 32 hexadecimal digits (128 bits of SHA-256).

    Args:
        stage: name of the stage.
        version: the stage's version, raised when the same settings give another result.
        config: everything else that decides the result, as plain JSON; the order of its keys does not count.
        parents: keys of the artifacts that the stage reads, by role.

    Raises:
        TypeError, ValueError: `config` is not plain JSON (NaN and infinity are not).
    """
    identity = {"stage": stage, "version": version, "config": config, "parents": parents}
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
