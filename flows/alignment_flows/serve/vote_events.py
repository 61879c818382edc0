"""Send an event to the Prefect server for each vote, so that an automation can start a retrain."""

import os
from collections.abc import Callable
from contextlib import suppress

from alignment_flows.serve.services import running_server

RECORDED = "alignment.feedback.recorded"
"""Name of the event that is sent for each vote."""


def resource_of(place: str) -> str:
    """Return the Prefect resource id of a feedback store. Automations count votes per resource."""
    return f"alignment.feedback.{place}"


def vote_notifier(place: str) -> Callable[[int], None]:
    """Return a function that the feedback store calls with the number of new votes.

    The function does nothing if no server is configured or running.

    Args:
        place: the feedback store, without a password.
    """
    from prefect.settings import PREFECT_API_URL

    url = PREFECT_API_URL.value() or running_server()
    if url is None:
        return lambda count: None
    os.environ["PREFECT_API_URL"] = url
    from prefect.events import emit_event
    from prefect.settings import temporary_settings

    def recorded(count: int) -> None:
        # The vote is already saved, and a scheduled retrain finds it without the event.
        with suppress(Exception), temporary_settings({PREFECT_API_URL: url}):
            for _ in range(count):
                emit_event(RECORDED, resource={"prefect.resource.id": resource_of(place)})

    return recorded
