"""The key (content address) of an artifact."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def key_of(*, stage: str, version: int, config: Mapping[str, Any], parents: Mapping[str, str]) -> str:
    """Return the key of the artifact that a stage builds: 32 hexadecimal digits (128 bits of SHA-256).

    Args:
        stage: name of the stage.
        version: version of the stage, incremented when the same inputs give a different result.
        config: everything else that determines the result, as plain JSON. The order of its keys does not matter.
        parents: keys of the artifacts that the stage reads, by role.

    Raises:
        TypeError, ValueError: `config` is not plain JSON. NaN and infinity are not allowed.
    """
    identity = {"stage": stage, "version": version, "config": config, "parents": parents}
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
