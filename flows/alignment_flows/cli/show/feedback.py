"""Output of `align feedback show`."""

import json
from typing import Any

from rich.console import Console
from rich.table import Table

from alignment_core.feedback import open_feedback
from alignment_core.feedback.data_source import check_exists
from alignment_core.texts import percent

COLUMNS = ("thumbs", "rankings", "all_bad", "skipped")


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
