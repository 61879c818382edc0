"""What the terminal shows of a run. `RunView` keeps what is known of the run and shows it as plain lines."""

import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from alignment_core.markdown import unmarked
from alignment_flows.terminal.plots import leading

STEP_SECONDS = 10.0
"""Seconds between two lines about the steps of a stage."""
MOST_METRICS = 4

_current: ContextVar["RunView | None"] = ContextVar("run view", default=None)


def current_view() -> "RunView | None":
    """Return the view of the run in this context, or None if the log alone shows it, as in a worker."""
    return _current.get()


@contextmanager
def showing(view: "RunView") -> Iterator[None]:
    """Show the stages that run in this context in the view."""
    token = _current.set(view)
    try:
        yield
    finally:
        _current.reset(token)
        view.close()


@dataclass
class StageState:
    """A stage that is running.

    Attributes:
        label: its label, e.g. `sft · stories260k · 3f2a`.
        started: when it began, on the clock of `time.monotonic`.
        done, total: finished and all units of its work. A total of 0 means that it has not reported any.
        left: the time that it will still take, as text.
        curves: its metrics by step, as its `metrics.jsonl` will hold them.
    """

    label: str
    started: float
    done: int = 0
    total: int = 0
    left: str = ""
    curves: dict[str, dict[int, float]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The label without model and key."""
        return name_of(self.label)

    def leading(self) -> dict[str, list[tuple[float, float]]]:
        """Return the curves that say how the training goes."""
        found = leading({name: curve.values() for name, curve in self.curves.items()})
        return {name: list(self.curves[name].items()) for name in found}


class RunView:
    """Plain lines on stderr."""

    arrow = "->"

    def __init__(self, linked: bool) -> None:
        """
        Args:
            linked: whether to name the page of the run in Prefect: its server outlives the run.
        """
        self.linked = linked
        self.planned: dict[str, None] = {}
        self.ended: dict[str, None] = {}
        self.stage: StageState | None = None
        self._told = 0.0

    def plan(self, labels: Iterable[str], page: str | None) -> None:
        """Add stages to those that the run will build or find, and say where Prefect shows the run."""
        if self.linked and page and not self.planned:
            self.line(f"This run in Prefect: {page}")
        self.planned |= dict.fromkeys(labels)

    def begin(self, label: str) -> None:
        """Show that a stage begins."""
        self.planned.setdefault(label)
        self.stage = StageState(label, time.monotonic())
        self._told = self.stage.started

    def step(self, done: int, total: int, left: str, metrics: Mapping[str, float]) -> None:
        """Show the progress of the stage."""
        if (stage := self.stage) is None:
            return
        stage.done, stage.total, stage.left = done, total, left
        for name, value in metrics.items():
            if value == value and abs(value) != float("inf"):
                stage.curves.setdefault(name, {})[done] = value
        self.stepped(stage)

    def stepped(self, stage: StageState) -> None:
        """Show the newest step of the stage."""
        if stage.done and time.monotonic() - self._told > STEP_SECONDS:
            self._told = time.monotonic()
            left = f", {stage.left}" if stage.left else ""
            self.line(f"{self._place(stage)}: {stage.done}/{stage.total}{left}  {_newest(stage)}".rstrip())

    def log(self, message: str) -> None:
        """Show a line of the stage's log."""
        text = unmarked(message)
        self.line(text if self.stage is None else f"{self._place(self.stage)}: {text}")

    def end(self, outcome: str, *, well: bool = True) -> None:
        """Show how the stage ended, such as `cached` or `built in 12 s`."""
        if (stage := self.stage) is None:
            return
        self.ended[stage.label] = None
        self.stage_line(stage, f"{outcome}{_changes(stage, self.arrow)}", well)
        self.stage = None

    def stage_line(self, stage: StageState, outcome: str, well: bool) -> None:
        """Show a line about a finished stage."""
        self.line(f"{self._place(stage)}: {outcome}")

    def line(self, text: str) -> None:
        """Show a line that stays."""
        print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """End the view."""

    def number(self, label: str) -> int:
        """Return the place of a stage in the run, from 1."""
        return list(self.planned).index(label) + 1

    def _place(self, stage: StageState) -> str:
        return f"[{self.number(stage.label)}/{len(self.planned)}] {stage.name}"


def name_of(label: str) -> str:
    """Return the name of a stage in its label."""
    return label.partition(" · ")[0]


def _newest(stage: StageState) -> str:
    """Format the newest values of the metrics, those first that say most."""
    names = list(dict.fromkeys([*stage.leading(), *stage.curves]))[:MOST_METRICS]
    return "  ".join(f"{name} {list(stage.curves[name].values())[-1]:.4g}" for name in names)


def _changes(stage: StageState, arrow: str) -> str:
    """Format the first and the last value of the metrics that say most, or the only one."""
    shown = []
    for name, points in stage.leading().items():
        values = [f"{value:.3g}" for _, value in (points if len(points) == 1 else (points[0], points[-1]))]
        shown.append(f"  {name} {f' {arrow} '.join(values)}")
    return "".join(shown)
