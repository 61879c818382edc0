"""The parameters of a flow run as Prefect stores them and shows them to everyone: without secrets.

A run that is started here receives the settings themselves, so Prefect needs their secrets for nothing. A run that is
started from the form or from a deployment receives what Prefect has stored, so the secret is in its database already,
and all that is left is to say so.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

import yaml
from prefect import Flow
from prefect.context import FlowRunContext
from prefect.logging import get_run_logger

from alignment_core.addresses import hide_secrets, secret_places
from alignment_core.config.yaml_text import parse

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

CHANGES = ("changes", "grid")
"""The parameters with changed settings, such as `feedback=postgresql://…`."""
ADVICE = (
    "Change the secret, and name a Secret block as {{ prefect.blocks.secret.NAME }}, or an environment variable of the "
    "worker as ${NAME}, instead"
)


class SecretFlow(Flow[Parameters, Result]):
    """A flow that hides the secrets in its settings from Prefect."""

    def serialize_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Return the parameters as Prefect stores them."""
        given = super().serialize_parameters(parameters)
        stored: dict[str, Any] = hide_secrets(given)
        for name in CHANGES:
            if isinstance(changes := given.get(name), list):
                stored[name] = [hide_in_change(change) for change in changes]
        return stored

    def with_options(self, *args: Any, **kwargs: Any) -> "SecretFlow[Parameters, Result]":
        """Return a copy with other options of Prefect, which hides the secrets as well."""
        changed: Any = super().with_options(*args, **kwargs)
        changed.__class__ = SecretFlow
        return changed  # type: ignore[no-any-return]


def secret_flow(**options: Any) -> Callable[[Callable[Parameters, Result]], SecretFlow[Parameters, Result]]:
    """Decorate a function as a `SecretFlow`. The options are those of Prefect's `flow`."""
    return lambda function: SecretFlow(function, **options)


def hide_in_change(change: str) -> str:
    """Return a changed setting `a.b=value` without the secrets in its value, which is YAML."""
    name, equals, value = change.partition("=")
    try:
        given = {name: parse(value)}
    except yaml.YAMLError:  # reading the settings reports it
        return f"{name}{equals}…"
    hidden = hide_secrets(given)
    return change if hidden == given else f"{name}={json.dumps(hidden[name], ensure_ascii=False, default=str)}"


def warn_of_stored_secrets() -> None:
    """Warn if Prefect has stored a secret in the parameters of the current flow run. The warning names the settings."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return
    if places := sorted(set(stored_secrets(context.flow_run.parameters))):
        get_run_logger().warning(in_clear("this run", places))


def in_clear(what: str, places: Sequence[str]) -> str:
    """Return the warning that Prefect stores these settings of a run or deployment in clear."""
    holds = "holds a password or another secret" if len(places) == 1 else "hold passwords or other secrets"
    return f"Prefect stores the parameters of {what} in clear, and {', '.join(places)} in them {holds}. {ADVICE}"


def stored_secrets(parameters: Mapping[str, Any]) -> Iterator[str]:
    """Yield the dotted name of each setting with a secret in the parameters of a flow."""
    for name, value in parameters.items():
        if name in CHANGES and isinstance(value, Sequence):
            yield from (change.partition("=")[0] for change in value if hide_in_change(change) != change)
        else:
            yield from secret_places(value, "" if name == "config" else name)
