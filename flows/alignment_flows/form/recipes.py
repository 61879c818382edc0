"""The files that are installed with this project: the recipes and the list of the deployments."""

from pathlib import Path

from alignment_core.config_file import did_you_mean
from alignment_core.errors import ConfigError


def packaged_file(name: str) -> Path:
    """Return the path of a file or folder of `deployments/`, in the installed package or in the checkout."""
    installed = Path(__file__).parents[1] / "deployments" / name
    return installed if installed.exists() else Path(__file__).parents[3] / "deployments" / name


def config_file(config: str) -> Path:
    """Return the config file that the name of a recipe or a path refers to.

    Raises:
        ConfigError: there is neither a recipe nor a file of this name.
    """
    recipes = {path.stem: path for path in sorted(packaged_file("configs").glob("*.yaml"))}
    if config in recipes:
        return recipes[config]
    if (path := Path(config)).is_file():
        return path
    raise ConfigError(
        "there is no such recipe or config file",
        where="config",
        got=config,
        expected=f"a path on the machine that runs the flow, or one of {', '.join(recipes)}",
        do=did_you_mean(config, recipes),
    )
