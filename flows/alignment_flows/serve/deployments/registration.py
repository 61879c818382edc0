"""Register a deployment with a Prefect server: send what differs, and keep what a person changed there.

Each deploy leaves a record of what it declared on the server: an artifact without a key, which the user interface does
not list. A setting that differs from the record was changed by a person.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient
from prefect.exceptions import PrefectHTTPStatusError

from alignment_core.errors import ConfigError
from alignment_flows.serve.deployments.automations import declared_rule, of_deployment, rule, write
from alignment_flows.serve.deployments.declared import Declaration
from alignment_flows.serve.deployments.three_way import UNKNOWN, Difference, merge

RECORD = "align-deploy"
PAGE = 200
"""Number of rows that Prefect's API returns at most."""

SHOWN = 8
"""Number of kept settings of a deployment that are shown."""

APART = {"schedules", "triggers"}
"""Settings that the server keeps outside the deployment."""


@dataclass(frozen=True)
class Outcome:
    """What a deploy did with one deployment.

    Attributes:
        name: `flow/deployment`.
        created: whether it is new.
        updated: names of the fields that were sent.
        kept: settings that a person changed and that stay.
        replaced: settings that a person changed and that the new form no longer accepts.
    """

    name: str
    created: bool = False
    updated: tuple[str, ...] = ()
    kept: tuple[Difference, ...] = ()
    replaced: tuple[Difference, ...] = ()

    def line(self) -> str:
        """Return the outcome as a line of text."""
        if self.created:
            return f"{self.name}: created"
        return f"{self.name}: updated ({', '.join(self.updated)})" if self.updated else f"{self.name}: unchanged"

    def notes(self) -> list[str]:
        """Return a line of text for each setting that a person changed. Many that are kept are only counted."""
        kept = [f"kept: {self.name} {difference.kept()}" for difference in self.kept[:SHOWN]]
        if (more := len(self.kept) - SHOWN) > 0:
            kept.append(f"kept: {self.name} {more} more")
        return kept + [f"replaced: {self.name} {difference.replaced()}" for difference in self.replaced]


def register(client: SyncPrefectClient, declarations: Sequence[Declaration]) -> Iterator[Outcome]:
    """Create or update the deployments, one after the other.

    Raises:
        ConfigError: Prefect refuses a deployment.
    """
    names = {"flows": {"name": {"any_": sorted({each.flow for each in declarations})}}}
    flows = {flow["name"]: UUID(flow["id"]) for flow in _rows(client, "/flows/filter", **names)}
    wanted = {"name": {"any_": sorted({each.name.partition("/")[2] for each in declarations})}}
    rows = _rows(client, "/deployments/filter", deployments=wanted, **names)
    existing = {(UUID(row["flow_id"]), row["name"]): row for row in rows}
    records = {
        record["data"]["name"]: record
        for record in _rows(client, "/artifacts/filter", artifacts={"type": {"any_": [RECORD]}})
    }
    for declaration in declarations:
        if declaration.flow not in flows:
            flows[declaration.flow] = client.create_flow_from_name(declaration.flow)
        there = existing.get((flows[declaration.flow], declaration.name.partition("/")[2]))
        record = records.get(declaration.name)
        with _refusal(declaration.name):
            if there is None:
                yield _create(client, declaration, flows[declaration.flow], record)
            else:
                yield _Update(client, declaration, there, record).outcome()


def _create(
    client: SyncPrefectClient, declaration: Declaration, flow: UUID, record: Mapping[str, Any] | None
) -> Outcome:
    name = declaration.name.partition("/")[2]
    fields = _fields(declaration.settings)
    # Left out, both get Prefect's default, which is the declared value: the pool's default work queue, and an enforced
    # form. If it is given, the server checks the large schema twice, although the settings have been validated here.
    del fields["work_queue_name"], fields["enforce_parameter_schema"]
    schedules = [{**schedule, "slug": slug} for slug, schedule in declaration.settings["schedules"].items()]
    body = {**declaration.fixed, **fields, "flow_id": str(flow), "name": name, "schedules": schedules}
    identity = UUID(client.request("POST", "/deployments/", json=body).json()["id"])
    rules = {name: declared_rule(each, identity) for name, each in declaration.settings["triggers"].items()}
    for trigger, content in rules.items():
        write(client, trigger, content, identity, None)
    _remember(client, declaration.name, identity, {**declaration.settings, "triggers": rules}, record)
    return Outcome(declaration.name, created=True)


class _Update:
    """The comparison of a declaration with the deployment on the server, and the requests that follow from it."""

    def __init__(
        self,
        client: SyncPrefectClient,
        declaration: Declaration,
        there: Mapping[str, Any],
        record: Mapping[str, Any] | None,
    ) -> None:
        self.client, self.name, self.deployed, self.record = client, declaration.name, there, record
        self.id = UUID(there["id"])
        self.last: Any = UNKNOWN
        if record is not None and record["data"]["id"] == there["id"]:
            self.last = record["data"]["declared"]
        self.fixed = {key: value for key, value in declaration.fixed.items() if there[key] != value}
        rules = {name: declared_rule(each, self.id) for name, each in declaration.settings["triggers"].items()}
        self.declared = {**declaration.settings, "triggers": rules}
        known = self.last["triggers"] if self.last is not UNKNOWN else {}
        self.automations = of_deployment(client, {**known, **rules}, self.id)
        self.there = self._there()

    def _there(self) -> dict[str, Any]:
        row = self.deployed
        limit = row.get("global_concurrency_limit")
        rules = {name: rule(automation) for name, automation in self.automations.items()}
        if self.last is UNKNOWN:  # `prefect deploy` registered it, and may have left out an automation
            rules = {**{name: rule for name, rule in self.declared["triggers"].items() if name not in rules}, **rules}
        return {
            **{key: row[key] for key in ("description", "enforce_parameter_schema", "job_variables", "parameters")},
            **{key: row[key] for key in ("paused", "tags")},
            "concurrency_limit": limit["limit"] if limit else None,
            "work_queue": {"pool": row["work_pool_name"], "queue": row["work_queue_name"]},
            # A schedule that was made in the browser may have no name.
            "schedules": {
                schedule["slug"] or schedule["id"]: {
                    part: schedule[part] for part in ("schedule", "active", "parameters")
                }
                for schedule in row["schedules"]
            },
            "triggers": rules,
        }

    def outcome(self) -> Outcome:
        """Send what differs, and record what is declared."""
        merged, kept = merge(self.last, self.declared, self.there)
        replaced: list[Difference] = []
        try:
            updated = self._send(merged)
        except PrefectHTTPStatusError as error:
            replaced = self._refused(merged, kept)
            if error.response.status_code != httpx.codes.CONFLICT or not replaced:
                raise
            merged, kept = merge(self.last, self.declared, self.there, frozenset(each.path for each in replaced))
            updated = self._send(merged)
        if self.last != self.declared:
            _remember(self.client, self.name, self.id, self.declared, self.record)
        return Outcome(self.name, False, tuple(updated), tuple(kept), tuple(replaced))

    def _refused(self, merged: Mapping[str, Any], kept: Sequence[Difference]) -> list[Difference]:
        """Return the parameters set by a person that the declared form does not accept among the declared ones."""
        from prefect.utilities.schema_tools.validation import validate

        schema = self.fixed.get("parameter_openapi_schema", self.deployed["parameter_openapi_schema"])
        parameters = [each for each in kept if each.path[0] == "parameters"]

        def accepted(replace: Sequence[Difference]) -> bool:
            paths = frozenset(each.path for each in replace)
            tried, _ = merge(self.last, self.declared, self.there, paths)
            return not validate(tried["parameters"], schema, ignore_required=True)

        others = [[each for each in parameters if each is not one] for one in parameters]
        refused = [one for one, rest in zip(parameters, others, strict=True) if not accepted(rest)]
        return refused if accepted(refused) else parameters

    def _send(self, merged: Mapping[str, Any]) -> list[str]:
        """Send the fields that differ from those on the server, and return their names."""
        changed = [key for key, value in merged.items() if value != self.there.get(key)]
        fields = {**self.fixed, **_fields({key: merged[key] for key in changed if key not in APART})}
        if fields:
            self._request("PATCH", "/deployments/{id}", json=fields)
        if "schedules" in changed:
            self._send_schedules(merged["schedules"])
        for trigger in self.automations.keys() - merged["triggers"].keys():
            self.client.delete_automation(self.automations[trigger].id)
        for trigger, content in merged["triggers"].items():
            old = self.automations.get(trigger)
            if old is None or rule(old) != content:
                write(self.client, trigger, content, self.id, old)
                changed = [*dict.fromkeys([*changed, "triggers"])]
        return sorted([*self.fixed, *changed])

    def _send_schedules(self, merged: Mapping[str, Any]) -> None:
        identities = {each["slug"] or each["id"]: each["id"] for each in self.deployed["schedules"]}
        for name in identities.keys() - merged.keys():
            path = {"schedule_id": identities[name]}
            self._request("DELETE", "/deployments/{id}/schedules/{schedule_id}", path_params=path)
        for name, schedule in merged.items():
            if name not in identities:
                self._request("POST", "/deployments/{id}/schedules", json=[{**schedule, "slug": name}])
            elif schedule != self.there["schedules"][name]:
                path = {"schedule_id": identities[name]}
                self._request("PATCH", "/deployments/{id}/schedules/{schedule_id}", path_params=path, json=schedule)

    def _request(self, method: Any, path: Any, path_params: Mapping[str, Any] | None = None, **more: Any) -> None:
        self.client.request(method, path, path_params={"id": str(self.id), **(path_params or {})}, **more)


def _fields(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as fields of a request about a deployment."""
    fields = {key: value for key, value in settings.items() if key not in {"work_queue", *APART}}
    if "work_queue" in settings:
        fields["work_pool_name"] = settings["work_queue"]["pool"]
        fields["work_queue_name"] = settings["work_queue"]["queue"]
    return fields


def _remember(
    client: SyncPrefectClient, name: str, identity: UUID, declared: Mapping[str, Any], old: Mapping[str, Any] | None
) -> None:
    """Record the declared settings. Last of all, so that an interrupted deploy is repeated by the next one."""
    data = {"name": name, "id": str(identity), "declared": declared}
    if old is None:
        body = {"type": RECORD, "description": "What `align deploy` declared.", "data": data}
        client.request("POST", "/artifacts/", json=body)
    else:
        client.request("PATCH", "/artifacts/{id}", path_params={"id": old["id"]}, json={"data": data})


def _rows(client: SyncPrefectClient, path: Any, **chosen: Any) -> list[dict[str, Any]]:
    """Return all rows of a filter request."""
    found: list[dict[str, Any]] = []
    while True:
        page = client.request("POST", path, json={**chosen, "limit": PAGE, "offset": len(found)}).json()
        found += page
        if len(page) < PAGE:
            return found


@contextmanager
def _refusal(name: str) -> Iterator[None]:
    """Turn the server's refusal of a deployment into an error that says which one."""
    try:
        yield
    except PrefectHTTPStatusError as error:
        got = error.response.json().get("detail") if error.response.is_client_error else None
        raise ConfigError("Prefect refuses the deployment", where=name, got=str(got or error)) from error
