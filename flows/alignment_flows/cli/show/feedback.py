"""Output of `align feedback`."""

import json
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from alignment_core.feedback import open_feedback
from alignment_core.feedback.data_source import check_exists
from alignment_core.texts import percent

COLUMNS = ("thumbs", "rankings", "all_bad", "skipped")


def show_imported(place: str, counts: Mapping[str, int]) -> None:
    """Print how many votes of files are now in a feedback store, and what became of the others."""
    added = {name: counts.get(name, 0) for name in ("thumbs", "rankings")}
    left = {name: count for name, count in counts.items() if name not in (*added, "known")}
    words = [f"{count} {name.removesuffix('s') if count == 1 else name}" for name, count in added.items() if count]
    print(f"{place}: imported {' and '.join(words) or 'nothing'}")
    if known := counts.get("known", 0):
        print(f"Already there: {known} {'vote' if known == 1 else 'votes'}")
    for reason, count in left.items():
        print(f"Left out: {count}, {reason.replace('_', ' ')}")


def show_feedback(place: str, *, as_json: bool) -> None:
    """Print the votes of each rater and the agreement of each pair of raters.

    Raises:
        DataError, FeedbackError: the store does not exist or cannot be read.
    """
    check_exists(place)
    with open_feedback(place) as store:
        counts, agreed = store.count_by_rater(), store.agreements()
        count, newest, where = store.count(), store.newest(), store.place
    if as_json:
        raters = [{"rater": name, "kind": kind, **counted} for (name, kind), counted in sorted(counts.items())]
        pairs = [
            {"raters": [pair.first, pair.second], "agreed": pair.agreed, "opposed": pair.opposed} for pair in agreed
        ]
        found: dict[str, Any] = {"store": where, "votes": count, "newest": newest}
        print(json.dumps({**found, "raters": raters, "agreement": pairs}))
        return
    console = Console(markup=False)
    console.print(f"{where}: {count} {'vote' if count == 1 else 'votes'}")
    table = Table("rater", "kind", *(name.replace("_", " ") for name in COLUMNS))
    for (name, kind), counted in sorted(counts.items()):
        table.add_row(name, kind, *(str(counted.get(column, 0)) for column in COLUMNS))
    console.print(table)
    for pair in agreed:
        shared = pair.agreed + pair.opposed
        judgments = "1 judgment" if shared == 1 else f"{shared} judgments"
        console.print(f"{pair.first} and {pair.second} agree on {percent(pair.agreed / shared)} of {judgments}")
