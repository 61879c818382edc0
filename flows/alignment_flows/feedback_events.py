"""Tells the Prefect server of votes as they come in, so that an automation can retrain once there are enough."""

import os
from collections.abc import Callable
from contextlib import suppress

RECORDED = "alignment.feedback.recorded"
"""Name of the event: one for each vote."""

COUNTS_KEPT = {"PREFECT_SERVER_EVENTS_EXPIRED_BUCKET_BUFFER": "P3650D"}
"""What the server's environment needs: by default it forgets a count a minute after the first of its events, and votes
take days."""


def resource_of(place: str) -> str:
    """Prefect's name of a feedback store, for which an automation counts."""
    return f"alignment.feedback.{place}"


def tell_prefect(place: str) -> Callable[[int], None]:
    """What the store at `place` calls for every vote; it does nothing where no server is configured.

    Args:
        place: the feedback store as people see it, without a password.
    """
    from prefect.settings import PREFECT_API_URL

    from alignment_flows.services import running_server

    url = PREFECT_API_URL.value() or running_server()
    if url is None:
        return lambda count: None
    os.environ["PREFECT_API_URL"] = url
    from prefect.events import emit_event
    from prefect.settings import temporary_settings

    def recorded(count: int) -> None:
        # A vote is safe without it: the schedule finds it, too.
        with suppress(Exception), temporary_settings({PREFECT_API_URL: url}):
            for _ in range(count):
                emit_event(RECORDED, resource={"prefect.resource.id": resource_of(place)})

    return recorded
