"""Show that a command is at work before it has anything to print."""

from collections.abc import Iterator
from contextlib import contextmanager

from alignment_flows.terminal.capability import can_redraw


@contextmanager
def at_work(what: str) -> Iterator[None]:
    """Show in a terminal what is being done, with a spinner, until the block ends."""
    if not can_redraw():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(f"{what} …"):
        yield
