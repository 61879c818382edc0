"""Show the flow run of a command in its terminal."""

from collections.abc import Iterator
from contextlib import contextmanager

from alignment_flows.terminal.capability import can_redraw
from alignment_flows.terminal.live_view import LiveView
from alignment_flows.terminal.prefect_lines import shown_in
from alignment_flows.terminal.run_view import RunView, showing


@contextmanager
def shown_run(*, linked: bool) -> Iterator[None]:
    """Show the stages of the flow run that starts in this context on stderr.

    Inside another flow nothing is shown: the log of that flow has it.

    Args:
        linked: whether the server outlives the run, so that a link to the run's page stays valid.
    """
    from prefect.context import FlowRunContext

    if FlowRunContext.get() is not None:
        yield
        return
    view = LiveView(linked) if can_redraw() else RunView(linked)
    with showing(view), shown_in(view):
        yield
