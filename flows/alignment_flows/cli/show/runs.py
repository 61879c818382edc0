"""Output of `align runs`."""

from collections.abc import Sequence
from datetime import UTC, datetime

from alignment_core.artifacts import ArtifactStore
from alignment_core.outcome.leaderboard import Line
from alignment_core.outcome.sentences import JUDGES, percent_range
from alignment_flows.cli.show.run import SHORT_KEY, print_json, show_sentence
from alignment_flows.cli.show.store import aligned

HEADS = ("run", "optimizer", "win rate", "gate", "alias", "age", "model", "data", "differs in")
GATE = {None: "", True: "passed", False: "not passed"}
UNITS = ((86400, "d"), (3600, "h"), (60, "min"))


def show_runs(store: ArtifactStore, lines: Sequence[Line], *, as_json: bool) -> None:
    """Print the runs of a store as a table."""
    if as_json:
        print_json({"store": str(store.root), "runs": [line.to_json() for line in lines]})
        return
    print(store.root)
    if not lines:
        print("No run has trained a model in this store yet.")
        return
    now = datetime.now(UTC)
    # A table of rich takes seconds for thousands of runs.
    for row in aligned([HEADS, *(_cells(line, now) for line in lines)]):
        print(row)
    judges = sorted({rate.judge for line in lines for rate in line.result.win_rates})
    if judges:
        print(f"Win rate over the model that a run started from, in percent, by {', '.join(judges)}.")
    else:
        show_sentence(f"There is no win rate, because nothing judged these runs. For the next one, set {JUDGES}.")


def _cells(line: Line, now: datetime) -> tuple[str, ...]:
    result = line.result
    settings = ", ".join(f"{name}={value}" for name, value in line.settings.items())
    aliases, data = ", ".join(result.aliases), ", ".join(line.data)
    return (
        result.run, result.optimizer, _win_rate(line), GATE[result.passed], aliases,
        age(now, line.created), result.key[:SHORT_KEY], data, settings,
    )  # fmt: skip


def _win_rate(line: Line) -> str:
    over_start = [rate for rate in line.result.win_rates if rate.opponent == line.result.start]
    if not over_start:
        return "–"
    rate = over_start[0]
    return f"{100 * rate.rate:.0f} ({percent_range(rate.low, rate.high)}) {rate.judge}"


def age(now: datetime, created: str) -> str:
    """Return how long ago a time was, such as `3 h`."""
    seconds = (now - datetime.fromisoformat(created)).total_seconds()
    for unit, name in UNITS:
        if seconds >= unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{max(0, seconds):.0f} s"
