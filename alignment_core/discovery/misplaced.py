"""Find distributions that meant to register plugins, but name another group of entry points."""

from __future__ import annotations

import re
from collections.abc import Iterator
from difflib import SequenceMatcher
from importlib.metadata import Distribution, EntryPoint, EntryPoints

from alignment_core.plugin_api.hooks import PROJECT

DISTRIBUTION = "alignment-flows"
SIMILAR = 0.85
"""Similarity from which a group counts as a misspelling of ours. `alignment_tools` is 0.74 similar."""


def misplaced_plugins(installed: EntryPoints) -> Iterator[tuple[EntryPoint, Distribution]]:
    """Yield entry points in a group that is a misspelling of ours, or that looks like it in a package that requires us.

    `alignmentcore`, `alignment-core` and `alignment_cor` are misspellings. `alignment_flows.plugins` only looks like
    our group, so it counts only if the package requires Alignment Flows.
    """
    for group in sorted(installed.groups - {PROJECT}):
        misspelt = SequenceMatcher(None, _letters(group), _letters(PROJECT)).ratio() >= SIMILAR
        if misspelt or _letters(group).startswith("align"):
            for entry in installed.select(group=group):
                if entry.dist is not None and (misspelt or _requires_us(entry.dist)):
                    yield entry, entry.dist


def _letters(name: str) -> str:
    return re.sub(r"[^a-z]", "", name.lower())


def _requires_us(distribution: Distribution) -> bool:
    names = (re.match(r"[\w.-]+", requirement) for requirement in distribution.requires or ())
    return any(name and _letters(name[0]) == _letters(DISTRIBUTION) for name in names)
