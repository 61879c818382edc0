"""What a person must know about an ingestion besides the counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alignment_core.data.ingestion.counts import counted
from alignment_core.data.ingestion.remedies import remedies
from alignment_core.data.ingestion.report.tables import LEFT_OUT

MUCH = 0.1
"""A warning is given if more than this fraction of the records is cut, too long or a near-duplicate."""


def warnings(report: Mapping[str, Any], train: int, held_out: int) -> list[str]:
    """Return the warnings that the rest of the report gives reason for.

    Args:
        report: the other parts of the report.
        train: number of training rows.
        held_out: number of held-out rows.
    """
    messages = []
    if report["ignored"]:
        named = ", ".join(f"`{name}` ({counted(count, 'row')})" for name, count in report["ignored"].items())
        messages.append(f"Not read, and left out: {named}. To read a column, map it with data.sources[].columns")
    for reason in ("no_threshold", "bad_label"):
        if count := report["quarantined"].get(reason):
            messages += [
                f"Left out {counted(count, 'row')}. {do}" for do in remedies({reason: 1}, report["thresholds"])
            ]
    balance, fit, duplicates = report["balance"], report["fit"], report["duplicates"]
    if (balance["desirable"] == 0) != (balance["undesirable"] == 0):
        messages.append("All labels are of one class, but KTO needs desirable and undesirable responses")
    if train and not held_out:
        messages.append("No rows are held out: add data or raise data.held_out_fraction")
    records = max(1, fit["records"])
    limit = f"model.max_length ({fit['max_length']})"
    if fit["too_long"] > MUCH * records:
        messages.append(f"Left out {fit['too_long']} of {counted(records, 'record')} that cannot be cut to {limit}")
    if fit["truncated"] > MUCH * records:
        messages.append(f"Cut {fit['truncated']} of {counted(records, 'record')} to {limit}")
    messages += _rendering_warnings(report["rendering"])
    removed = duplicates.get("near", 0)
    if removed > MUCH * records:
        messages.append(
            f"Removed {removed} of {counted(records, 'record')} as near-duplicates (threshold: data.near_duplicates)"
        )
    if fit["without_mismatch"]:
        messages.append("All labelled responses have the same prompt, but KTO's reference point needs several prompts")
    if overlap := {name: count for name, count in report["overlap"].items() if count}:
        shared = ", ".join(f"{name}: {count}" for name, count in overlap.items())
        messages.append(f"Training and held-out rows overlap ({shared})")
    return messages


def _rendering_warnings(rendering: Mapping[str, Any]) -> list[str]:
    messages = []
    if left_out := rendering["left_out"]:
        reasons = ", ".join(f"{count} {LEFT_OUT[reason]}" for reason, count in left_out.items())
        messages.append(f"Assistant turns that are read but not learned: {reasons}")
    thoughts, setting = rendering["thoughts"], "the chat template has no place for them: model.thoughts"
    if count := thoughts.get("as_text"):
        messages.append(f"Thoughts that are kept as <think> text: {count} ({setting})")
    if count := thoughts.get("left_out"):
        messages.append(f"Thoughts that are left out: {count} ({setting})")
    return messages
