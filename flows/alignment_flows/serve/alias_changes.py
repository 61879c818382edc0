"""Tell Prefect that an alias was changed by hand, in a terminal or from Python."""

import os

from alignment_core.artifacts import ArtifactStore, Change


def tell_prefect(store: ArtifactStore, alias: str, change: Change | None) -> str | None:
    """Update the alias's page and send the event about its change, if a server is configured or running.

    Args:
        store: the artifact store.
        alias: the alias.
        change: its change. None if the alias is as it was.

    Returns:
        What could not be sent and why, or None. The change itself is in the store in any case.
    """
    from alignment_flows.serve.services import running_server

    if (api := os.environ.get("PREFECT_API_URL") or running_server()) is None:
        return None
    import httpx

    from alignment_flows.serve.local import configure_prefect

    configure_prefect()
    from alignment_flows.model_events import change_event, emit_to
    from alignment_flows.promotion import send_history

    try:
        send_history(store, alias, api)
    except httpx.HTTPError as error:
        return f"could not update the alias's page in Prefect, and sent no event: {error}"
    if change is not None:
        event = change_event(store, alias, change)
        try:
            emit_to(api, event)
        except Exception as error:
            return f"could not send the event {event.event} to Prefect: {error}"
    return None
