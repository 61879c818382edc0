"""Change an alias by hand, in a terminal or from Python, and tell Prefect."""

import os
import warnings
from pathlib import Path

from alignment_core.account import account_name
from alignment_core.artifacts import PRODUCTION, ArtifactStore, Change, models
from alignment_core.artifacts.layout import check_exists
from alignment_core.config import PipelineConfig
from alignment_core.markdown import unmarked
from alignment_core.outcome.leaderboard import losses_to_start
from alignment_core.outcome.sentences import against

STORE: Path = PipelineConfig.model_fields["store"].default


def promote(reference: str, alias: str = PRODUCTION, *, reason: str = "by hand", store: Path = STORE) -> Change:
    """Give a trained model an alias.

    Args:
        reference: an alias, the name of a run for its newest aligned model, a key, a key prefix, or `latest` for the
            newest aligned model, which must have passed the gate.
        alias: the alias, such as `production`.
        reason: recorded in the alias's history.
        store: folder of the artifact store.

    Prefect's server, if one is configured or running, gets the event `alignment.model.promoted`.

    Raises:
        ArtifactError: there is no such model, it is damaged, or it is `latest` and has not passed the gate.
    """
    opened = ArtifactStore(store)
    check_exists(opened.root)
    before = opened.aliases.current(alias)
    change, model = models.promote(opened, reference, alias, by=account_name(), reason=reason)
    _tell(opened, alias, change, new=change != before)
    if model.warning is not None:
        warnings.warn(model.warning, stacklevel=2)
    for rate in losses_to_start(opened, change.key):
        warnings.warn(f"the model {unmarked(against(rate))}. `align runs` lists all models", stacklevel=2)
    return change


def rollback(alias: str = PRODUCTION, *, reason: str = "by hand", store: Path = STORE) -> Change:
    """Return an alias to the model that held it before the last promotion.

    Args:
        alias: the alias.
        reason: recorded in the alias's history.
        store: folder of the artifact store.

    Prefect's server, if one is configured or running, gets the event `alignment.model.rolled-back`.

    Raises:
        ArtifactError: there is no earlier model.
    """
    opened = ArtifactStore(store)
    change = models.rollback(opened, alias, by=account_name(), reason=reason)
    _tell(opened, alias, change, new=True)
    return change


def _tell(store: ArtifactStore, alias: str, change: Change, *, new: bool) -> None:
    if (problem := _tell_prefect(store, alias, change if new else None)) is not None:
        warnings.warn(problem, stacklevel=3)


def _tell_prefect(store: ArtifactStore, alias: str, change: Change | None) -> str | None:
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

    from alignment_flows.serve.local.server import configure_prefect

    configure_prefect()
    from alignment_flows.promotion import send_history
    from alignment_flows.promotion.model_events import change_event, emit_to

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
