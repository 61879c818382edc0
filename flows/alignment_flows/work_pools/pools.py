"""Check that the work pools of stages exist, before a run builds anything."""

from collections.abc import Iterable

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import ObjectNotFound

from alignment_core.addresses import secret_places
from alignment_core.errors import ConfigError
from alignment_core.execution.stage import StageCall

FLOW = "build"
"""Name of the flow whose deployments run stages. Each deployment has the name of its work pool."""


def deployment_of(pool: str) -> str:
    """Return the name of the deployment that runs stages in a work pool."""
    return f"{FLOW}/{pool}"


def check_pools(calls: Iterable[StageCall]) -> None:
    """Check that every stage of another work pool can run there.

    Raises:
        ConfigError: the server has no such pool, or the pool runs no stages, or the call of a stage holds a secret.
    """
    moved = [call for call in calls if call.runtime.pool is not None]
    for call in moved:
        _refuse_secrets(call)
    pools = {call.runtime.pool.name: call for call in moved if call.runtime.pool is not None}
    if not pools:
        return
    with get_client(sync_client=True) as client:
        for pool, call in pools.items():
            _check_pool(client, pool, call.stage)


def _check_pool(client: SyncPrefectClient, pool: str, stage: str) -> None:
    where, do = f"where.{stage}", _advice(pool)
    try:
        client.read_work_pool(pool)
    except ObjectNotFound:
        what = f"the Prefect server at {client.api_url} has no such work pool"
        raise ConfigError(what, where=where, got=pool, do=do) from None
    try:
        deployment = client.read_deployment_by_name(deployment_of(pool))
    except ObjectNotFound:
        raise no_deployment(pool, stage) from None
    if deployment.work_pool_name != pool:
        raise ConfigError(
            f"the deployment `{deployment_of(pool)}` runs in another work pool",
            where=where,
            got=deployment.work_pool_name,
            expected=pool,
            do="Set its work pool in the browser",
        )


def no_deployment(pool: str, stage: str) -> ConfigError:
    """Return the error about a work pool that runs no stages."""
    what = f"the work pool has no deployment `{deployment_of(pool)}`, so it runs no stages"
    return ConfigError(what, where=f"where.{stage}", got=pool, do=_advice(pool))


def _advice(pool: str) -> str:
    start = f"`prefect worker start --pool {pool} --limit 1`"
    return f"Run `align deploy --pool {pool}` with this server, and start a worker: {start}"


def _refuse_secrets(call: StageCall) -> None:
    parts = {"settings": call.config, "inputs": call.inputs, "listeners": list(call.runtime.listeners)}
    places = sorted(set(secret_places(parts)))
    if places:
        raise ConfigError(
            "the stage runs in another work pool, and Prefect would store a secret of it in clear",
            where=f"where.{call.stage}",
            got=", ".join(places),
            do="Give the secret to the workers of both pools in an environment variable that the program itself reads, "
            "such as PGPASSWORD, or let the stage run where the flow runs",
        )
