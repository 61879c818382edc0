"""Register the work pools, the automations and the deployments with a Prefect server."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.exceptions import ObjectNotFound
from pydantic import TypeAdapter

from alignment_core.config_file import load_config, read_config
from alignment_core.own_code import trusted
from alignment_flows.form.parameters import in_clear, stored_secrets
from alignment_flows.serve.deployments.automations import ensure_zombie_automation
from alignment_flows.serve.deployments.declared import own, packaged, pools_of, stages_in
from alignment_flows.serve.deployments.registration import Outcome, register
from alignment_flows.serve.services import COUNTS_KEPT
from alignment_flows.serve.workers import POOLS

COUNT_DAYS = timedelta(days=30)
"""`align deploy` warns if the server forgets the count of votes earlier than this."""


def deploy(configs: Sequence[Path] = (), pools: Sequence[str] = ()) -> list[Outcome]:
    """Register or update the work pools, the automations and the deployments, and return what was done.

    Runs resolve relative paths against the current working directory of this call. What a person changed on the server
    is kept.

    Args:
        configs: config files. Each becomes two deployments of the pipeline under the run's name, with the complete
            form and with the quick one, and one of the retrain if it has a gate. The work pools in their `where` get
            a deployment that runs stages.
        pools: further work pools that get one. If there are neither config files nor pools, the deployments of
            `prefect.yaml` are registered.

    Raises:
        ConfigError: a setting is wrong, or Prefect refuses a deployment.
    """
    staged = sorted({*pools, *(pool for path in configs for pool in pools_of(path))})
    declarations = [each for path in configs for each in own(path)] if configs or pools else packaged()
    declarations += [stages_in(pool) for pool in staged]
    with get_client(sync_client=True) as client:
        create_pools(client, {**dict.fromkeys(staged), **POOLS})
        ensure_zombie_automation(client)
        return list(register(client, declarations))


def create_pools(client: SyncPrefectClient, pools: Mapping[str, int | None]) -> None:
    """Create the work pools that do not exist. Existing ones keep their type and limit.

    Args:
        client: the server.
        pools: the concurrency limit of each work pool by its name. None: no limit.
    """
    for name, limit in pools.items():
        try:
            client.read_work_pool(name)
        except ObjectNotFound:
            client.create_work_pool(WorkPoolCreate(name=name, type="process", concurrency_limit=limit))


def set_limit(pool: str, limit: int) -> None:
    """Let a work pool run so many flows at once."""
    with get_client(sync_client=True) as client:
        client.update_work_pool(pool, WorkPoolUpdate(concurrency_limit=limit))


def count_warning() -> str | None:
    """Return a warning if the server forgets the count of votes too early for a retrain, else None."""
    with get_client(sync_client=True) as client:
        answer = client.request("GET", "/admin/settings")
    kept = TypeAdapter(timedelta).validate_python(answer.json()["server"]["events"]["expired_bucket_buffer"])
    if kept >= COUNT_DAYS:
        return None
    variables = " ".join(f"{name}={value}" for name, value in COUNTS_KEPT.items())
    return (
        f"the Prefect server forgets the count of votes after {kept.total_seconds():.0f} s, so the retrain may never "
        f"start by itself. Start the server with {variables}, or give the retrain a schedule"
    )


def trust_warning(config: Path) -> str | None:
    """Return a warning if a config file trusts the code of a model, so that it has one deployment only, else None."""
    if not (places := trusted(load_config(config))):
        return None
    return (
        f"{config}: {' and '.join(places)} in it can only be said by the file itself, so only the quick form is "
        "deployed, whose runs read the file"
    )


def secrets_warning(config: Path) -> str | None:
    """Return a warning if a config file holds secrets, which its deployments would show to everyone, else None."""
    places = list(stored_secrets({"config": read_config(config)}))
    return f"{config}: {in_clear('these deployments', places)}" if places else None
