"""A view of a run that is redrawn in place at the bottom of the terminal. Lines that stay are printed above it."""

import time
from collections.abc import Iterator

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from alignment_core.markdown import unmarked
from alignment_flows.terminal.plots import panel
from alignment_flows.terminal.run_view import RunView, StageState, name_of

REFRESHES = 4
"""Times per second that the view is redrawn."""
PLOT_LINES, MOST_PLOT_COLUMNS, LEAST_LINES = 4, 52, 16
MOST_BAR_COLUMNS = 40
INDENT = 2


class LiveView(RunView):
    """The stage that runs with its bar, the time that it still takes and its curves; and the stages that follow."""

    arrow = "→"

    def __init__(self, linked: bool) -> None:
        super().__init__(linked)
        self.console = Console(stderr=True, highlight=False)
        self.started = time.monotonic()
        self._live: Live | None = None

    def begin(self, label: str) -> None:
        super().begin(label)
        if self._live is None:
            self._live = Live(
                get_renderable=self._render, console=self.console, refresh_per_second=REFRESHES, transient=True
            )
            self._live.start()

    def stepped(self, stage: StageState) -> None:
        """The view is redrawn by itself."""

    def log(self, message: str) -> None:
        name = "" if self.stage is None else f"{self.stage.name}: "
        self.console.print(Text(f"{' ' * INDENT}{name}{unmarked(message)}", style="dim"))

    def end(self, outcome: str, *, well: bool = True) -> None:
        super().end(outcome, well=well)
        if len(self.ended) == len(self.planned):
            self.close()  # what follows may ask something

    def stage_line(self, stage: StageState, outcome: str, well: bool) -> None:
        mark, style = ("✓", "green") if well else ("✗", "red")
        self.console.print(Text.assemble((mark, style), f" {stage.name}  ", (outcome, "dim" if well else style)))

    def line(self, text: str) -> None:
        self.console.print(Text(text))

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _render(self) -> RenderableType:
        size = self.console.size
        return Group(*(Text(line, no_wrap=True, overflow="ellipsis") for line in self.lines(size.width, size.height)))

    def lines(self, width: int, height: int) -> Iterator[str]:
        """Yield the lines of the view for a terminal of this size."""
        if (stage := self.stage) is not None:
            place = f"stage {self.number(stage.label)} of {len(self.planned)}"
            yield f"{place} · {_clock(time.monotonic() - self.started)}"
            yield _bar(stage, width)
            if height >= LEAST_LINES:
                yield from _plots(stage, width)
        later = [name_of(label) for label in self.planned if label not in self.ended and label != _label(stage)]
        if later:
            yield f"{' ' * INDENT}then {', '.join(later)}"


def _label(stage: StageState | None) -> str:
    return "" if stage is None else stage.label


def _bar(stage: StageState, width: int) -> str:
    if not stage.total:
        return f"▸ {stage.name}  {_clock(time.monotonic() - stage.started)}"
    text = f"  {stage.done}/{stage.total}" + (f"  {stage.left}" if stage.left else "")
    columns = max(0, min(MOST_BAR_COLUMNS, width - len(stage.name) - len(text) - 4))
    full = round(columns * min(1.0, stage.done / stage.total))
    return f"▸ {stage.name}  {'━' * full}{'─' * (columns - full)}{text}"


def _plots(stage: StageState, width: int) -> Iterator[str]:
    curves = {name: points for name, points in stage.leading().items() if len(points) > 1}
    columns = min(MOST_PLOT_COLUMNS, (width - 2 * INDENT) // 2 - 1)
    panels = [panel(name, points, columns, PLOT_LINES) for name, points in curves.items()]
    for parts in zip(*panels, strict=True):
        yield " " * INDENT + (" " * INDENT).join(parts)


def _clock(seconds: float) -> str:
    hours, rest = divmod(int(seconds), 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
