"""The first thing to know about an ingestion: how many of the records are used."""

from __future__ import annotations

from collections.abc import Mapping

from alignment_core.data.ingestion.counts import counted
from alignment_core.texts import percent


def used_line(used: Mapping[str, int]) -> str:
    """Return the one line that a plan, a run and the report repeat."""
    share = f" ({percent(used['records'] / used['of'])})" if used["of"] and used["records"] < used["of"] else ""
    return f"used {used['records']:,} of {counted(used['of'], 'record')}{share}"
