"""Whose word is enough to run the code of a model: a config file on this machine, its command line, or Python.

What comes from Prefect is not: everybody who can open its pages can type it.
"""

from alignment_core.config import PipelineConfig
from alignment_core.errors import ConfigError
from alignment_core.own_code import trusted


def refuse_trust(settings: PipelineConfig, before: PipelineConfig | None = None) -> None:
    """Refuse settings from Prefect that trust the code of a model.

    Args:
        settings: the settings.
        before: the settings before the changes from Prefect; None if all of them are from there.

    Raises:
        ConfigError: they do, and those before did not.
    """
    for name in trusted(settings):
        if before is None or name not in trusted(before):
            raise ConfigError(
                "a value from a form, a schedule or the list of changes does not make a run execute a model's code",
                where=name,
                got="true",
                do="Set it in a config file on the machine that runs the flow. Start the run with `align` and that "
                "file, or in the browser with the quick form that names the file",
            )
