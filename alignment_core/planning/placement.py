"""Check where the stages of a run take place: in the flow's process, in processes of this machine, or on others."""

from __future__ import annotations

from alignment_core.artifacts import ArtifactStore
from alignment_core.config import PipelineConfig
from alignment_core.errors import ConfigError
from alignment_core.own_code import SETTING, trusted


def check_placement(config: PipelineConfig) -> None:
    """Check that the stages can run where the settings send them.

    Raises:
        ConfigError: stages run on other machines and there is no remote where they find what they read, or stages that
            would run the code of a model are not in processes of this machine.
    """
    _check_trust(config)
    if config.where and ArtifactStore(config.store, config.remote).remote is None:
        raise ConfigError(
            "stages run in other work pools, and no remote is set over which they get and give artifacts",
            where="where",
            got=", ".join(f"{stage}: {pool}" for stage, pool in config.where.items()),
            do="Set `remote` to a bucket or folder that all machines reach, or remove `where`",
        )


def _check_trust(config: PipelineConfig) -> None:
    """Check that the code of a model runs only in the processes of stages, on the machine whose user trusts it.

    Raises:
        ConfigError: it would run in the flow's process, or on other machines, which read stages from Prefect.
    """
    trusting = trusted(config)
    if not trusting:
        return
    for name, unfit, do in (
        ("isolation", config.isolation == "inline", "Set `isolation: process`"),
        ("where", bool(config.where), "Remove `where`"),
    ):
        if unfit:
            raise ConfigError(
                "the code of a model runs only in the processes of stages on this machine",
                where=name,
                got=f"{trusting[0]}: true",
                do=f"{do}, or `{SETTING}`",
            )
