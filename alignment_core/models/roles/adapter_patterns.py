"""Check the regular expressions in the configuration of a saved adapter, which peft matches with names of modules."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator

from peft import LoraConfig as PeftLoraConfig

from alignment_core.errors import ModelError

SECONDS = 10
"""How long all patterns may take with the names of one model. A useful one takes milliseconds."""
SPECIAL = frozenset("*+?{(|[\\")
"""Characters that make more of a text than a name."""
SHOWN = 80
"""Number of characters of a pattern that are shown."""
MATCH = """
import json, re, sys
patterns, names = json.load(sys.stdin)
for pattern in patterns:
    for name in names:
        re.match(pattern, name), re.match(rf"(.*\\.)?({pattern})$", name), re.fullmatch(pattern, name)
"""


def check_patterns(config: PeftLoraConfig, names: Iterable[str], where: str) -> None:
    """Check that the patterns of an adapter are regular expressions that can be matched with the names of a model.

    Some expressions take time that doubles with each character, and nothing in the process can stop them. So they are
    tried in a process that can be ended.

    Args:
        config: the configuration of the adapter.
        names: the names of the model's modules.
        where: the folder of the adapter.

    Raises:
        ModelError: one is no regular expression, or they take too long.
    """
    patterns = [pattern for pattern in _patterns(config) if SPECIAL & set(pattern)]
    if not patterns:
        return
    request, found = json.dumps([patterns, list(names)]), f"{patterns[0][:SHOWN]} in adapter_config.json"
    command = [sys.executable, "-I", "-S", "-c", MATCH]
    try:
        done = subprocess.run(command, input=request, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise _refused("the patterns of the adapter take too long", where, found) from error
    if done.returncode != 0:
        reason = done.stderr.strip().rpartition("\n")[2]
        raise _refused("a pattern of the adapter is no regular expression", where, f"{found}: {reason}")


def _patterns(config: PeftLoraConfig) -> Iterator[str]:
    """Yield every value that peft may use as a regular expression."""
    for value in (config.target_modules, config.exclude_modules):
        if isinstance(value, str):
            yield value
    layers = config.layers_pattern or []
    yield from (str(pattern) for pattern in ([layers] if isinstance(layers, str) else layers))
    for ranks in (config.rank_pattern, config.alpha_pattern):
        yield from map(str, ranks or ())


def _refused(problem: str, where: str, got: str) -> ModelError:
    return ModelError(problem, where=where, got=got, do="Name the modules in a list, as `peft` writes it")
