"""Settings that refer to Prefect's blocks and variables, in Prefect's own notation.

    {{ prefect.blocks.secret.NAME }}     the value of a Secret block
    {{ prefect.variables.NAME }}         the value of a variable

They are replaced where the flow runs, and never stored: the parameters of the run keep the reference. A block's value
is a secret, so a block may only be named where its value reaches neither a manifest, a cache key nor a report.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from alignment_core.config import PipelineConfig, SourceConfig
from alignment_core.config_file import settings_error
from alignment_core.errors import ConfigError
from alignment_core.feedback.data_source import is_store

REFERENCE = re.compile(r"{{\s*(prefect\.[\w.\-\[\]]+)\s*}}")
BLOCK, VARIABLE = "prefect.blocks.", "prefect.variables."
SOURCE = re.compile(r"data\.sources\.\d+\.path")


def refers_to_prefect(config: PipelineConfig) -> bool:
    """Return whether a setting refers to a block or a variable."""
    return any(REFERENCE.search(text) for _, text in _texts(config.model_dump(mode="json")))


def resolve(config: PipelineConfig) -> PipelineConfig:
    """Replace all references by the values that Prefect has for them. Settings without references need no server.

    Raises:
        ConfigError: there is no such block or variable, a block is named where its value would be stored, or a value
            does not fit the setting.
    """
    if not refers_to_prefect(config):
        return config
    _refuse_moved_secrets(config)
    from prefect.client.orchestration import get_client
    from prefect.utilities.asyncutils import run_coro_as_sync

    async def resolved() -> Any:
        async with get_client() as client:
            return await _resolved(config.model_dump(mode="json"), "", client)

    values = run_coro_as_sync(resolved())
    try:
        return PipelineConfig.model_validate(values)
    except ValidationError as error:
        raise settings_error(error, PipelineConfig) from None


def _refuse_moved_secrets(config: PipelineConfig) -> None:
    """Refuse a block whose value Prefect would store in clear, in the parameters of a run in another work pool."""
    for name, text in _texts(config.model_dump(mode="json")):
        reaches = config.where if name.startswith("listeners.") else "ingest" in config.where
        if reaches and any(found.startswith(BLOCK) for found in REFERENCE.findall(text)):
            raise ConfigError(
                "the value of a block is a secret, and stages in other work pools would show it in their parameters",
                where=name,
                got=text,
                do="Give the secret to the workers in an environment variable that the program itself reads, such as "
                "PGPASSWORD, or remove `where`",
            )


def _texts(value: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """Yield every text in the settings with its dotted name."""
    if isinstance(value, str):
        yield where, value
    elif isinstance(value, Mapping | list):
        for name, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _texts(inner, f"{where}.{name}".lstrip("."))


async def _resolved(value: Any, where: str, client: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: await _resolved(inner, f"{where}.{name}".lstrip("."), client) for name, inner in value.items()}
    if isinstance(value, list):
        return [await _resolved(inner, f"{where}.{index}", client) for index, inner in enumerate(value)]
    return await _text(value, where, client) if isinstance(value, str) else value


async def _text(text: str, where: str, client: Any) -> Any:
    """Return a setting with its references replaced. A reference alone may stand for a number or a list."""
    from prefect.exceptions import ObjectNotFound
    from prefect.utilities.templating import resolve_block_document_references, resolve_variables

    for name in REFERENCE.findall(text):
        if not name.startswith((BLOCK, VARIABLE)):
            expected = "{{ prefect.blocks.secret.NAME }} or {{ prefect.variables.NAME }}"
            raise ConfigError("unknown reference to Prefect", where=where, got=name, expected=expected)
        variable = name.removeprefix(VARIABLE)
        if name.startswith(VARIABLE) and await client.read_variable_by_name(variable) is None:
            raise ConfigError(
                "Prefect has no such variable",
                where=where,
                got=variable,
                do=f"Create it in the browser or with `prefect variable set {variable} VALUE`",
            )
    # First the variables, because a secret may contain anything.
    value = await resolve_variables(text, client=client)
    blocks = [name for name in REFERENCE.findall(value) if name.startswith(BLOCK)] if isinstance(value, str) else []
    if not blocks:
        return value
    try:
        secret = await resolve_block_document_references(value, client=client)
    except (ObjectNotFound, ValueError) as error:
        raise ConfigError(
            "Prefect has no such block",
            where=where,
            got=", ".join(blocks),
            do="Create the block in the browser, and name it as {{ prefect.blocks.TYPE.NAME }}",
        ) from error
    if not _keeps_secrets(where, secret):
        raise ConfigError(
            "the value of a block is a secret, but this setting would be stored with the results",
            where=where,
            got=", ".join(blocks),
            expected="a variable, or a block in `feedback`, in `listeners` or in the path of a feedback store",
        )
    return secret


def _keeps_secrets(where: str, value: Any) -> bool:
    """Return whether the value of a setting is stored nowhere. The password in a URL of a feedback store is removed."""
    if where.startswith("listeners."):
        return True
    if where != "feedback" and not SOURCE.fullmatch(where):
        return False
    return isinstance(value, str) and is_store(SourceConfig(path=value))
