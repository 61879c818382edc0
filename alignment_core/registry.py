"""The installed plugins by name. Built-in plugins are found in the same way as third-party plugins."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from alignment_core.config import Settings
from alignment_core.config_file import did_you_mean, settings_error
from alignment_core.discovery.installed import Plugin, Problem, find_plugins
from alignment_core.discovery.settings import choices_of
from alignment_core.errors import ConfigError, PluginError
from alignment_core.plugin_api import AlignmentOptimizer, Evaluator, Listener, PairEvaluator, RecordFormat
from alignment_core.plugin_calls import needs_of, raised

Kind = TypeVar("Kind", AlignmentOptimizer, Evaluator, PairEvaluator, Listener)


class Registry:
    """The usable plugins, and the problems of the others."""

    def __init__(self, plugins: list[Plugin], problems: list[Problem]) -> None:
        count = Counter((plugin.kind, plugin.name) for plugin in plugins)
        self.plugins = sorted(
            (plugin for plugin in plugins if count[plugin.kind, plugin.name] == 1), key=lambda p: (p.kind, p.name)
        )
        # None of them is used. Only the user knows which one is meant.
        clashing = [plugin for plugin in plugins if count[plugin.kind, plugin.name] > 1]
        self._clashes = {plugin.name: [p for p in clashing if p.name == plugin.name] for plugin in clashing}
        self.problems = problems + [
            Problem(
                plugin.entry_point.name,
                plugin.package,
                plugin.version,
                f"the {_spoken(plugin.kind)} `{plugin.name}` is defined more than once, so none is used. "
                "Uninstall all but one",
            )
            for plugin in clashing
        ]

    def optimizer(self, raw: Mapping[str, Any]) -> AlignmentOptimizer:
        """Return the optimizer named `raw["name"]`, with the rest of `raw` as its settings.

        Raises:
            PluginError: no optimizer with this name is installed, or several are, or its own code fails.
            ConfigError: a setting is missing, misspelled or out of range.
        """
        made = self._make(AlignmentOptimizer, "optimizer", raw, "optimizer")
        needs_of(made)  # once here, so that later calls need not expect an error
        return made

    def plugin(self, name: str, kind: str | None = None) -> Plugin:
        """Return the plugin with this name, of any kind or of the given one.

        Raises:
            PluginError: no plugin with this name is installed, or several are.
            ConfigError: plugins of several kinds have this name, and no kind is given.
        """
        known = [plugin for plugin in self.plugins if kind in (None, plugin.kind)]
        found = [plugin for plugin in known if plugin.name == name]
        if not found:
            raise self._unknown(kind or "plugin", name, [plugin.name for plugin in known], "NAME")
        if len(found) > 1:
            kinds = ", ".join(plugin.kind for plugin in found)
            raise ConfigError(
                "plugins of several kinds have this name", where="NAME", got=name, expected=f"--kind, one of {kinds}"
            )
        return found[0]

    def evaluator(self, raw: Mapping[str, Any], where: str = "evaluator") -> Evaluator:
        """Return the evaluator named `raw["name"]`, with the rest of `raw` as its settings.

        Args:
            raw: name and settings.
            where: the setting that contains `raw`, for error messages.

        Raises:
            PluginError, ConfigError: as for `optimizer`.
        """
        return self._make(Evaluator, "evaluator", raw, where)

    def evaluators_of(self, optimizer: AlignmentOptimizer) -> dict[str, Evaluator]:
        """Return the evaluators that the settings of the optimizer choose, by their places (`choices_of`).

        Raises:
            PluginError, ConfigError: as for `optimizer`.
        """
        return {
            place: self.evaluator(raw, where=f"optimizer.{place}")
            for place, raw in choices_of(optimizer, optimizer.evaluators)
        }

    def pair_evaluators_of(self, optimizer: AlignmentOptimizer) -> dict[str, PairEvaluator]:
        """Return the pair evaluators that the settings of the optimizer choose, by their places (`choices_of`).

        Raises:
            PluginError, ConfigError: as for `optimizer`.
        """
        return {
            place: self._make(PairEvaluator, "pair_evaluator", raw, f"optimizer.{place}")
            for place, raw in choices_of(optimizer, optimizer.pair_evaluators)
        }

    def listener(self, raw: Mapping[str, Any], where: str = "listeners") -> Listener:
        """Return the listener named `raw["name"]`, with the rest of `raw` as its settings.

        Raises:
            PluginError, ConfigError: as for `optimizer`.
        """
        return self._make(Listener, "listener", raw, where)

    def formats(self) -> dict[RecordFormat, dict[str, str]]:
        """Return the record formats of plugins, each with the identity of its plugin."""
        return {plugin.cls(): plugin.identity() for plugin in self.plugins if plugin.kind == "format"}

    def identity(self, instance: Settings) -> dict[str, str]:
        """Return the package, the version and, if installed from source, a digest of the code behind `instance`."""
        return next(plugin for plugin in self.plugins if plugin.cls is type(instance)).identity()

    def _make(self, base: type[Kind], kind: str, raw: Any, where: str) -> Kind:
        known = self._known(kind)
        if not isinstance(raw, Mapping):  # a plugin may give its setting any type
            raise ConfigError(
                "this setting does not choose a plugin",
                where=where,
                got=repr(raw),
                expected=f"settings with a `name`, which is one of {', '.join(known)}",
            )
        if "name" not in raw:
            raise ConfigError("this setting is missing", where=f"{where}.name", expected=", ".join(known))
        name = str(raw["name"])
        settings = known.get(name)
        if settings is None:
            raise self._unknown(kind, name, list(known), f"{where}.name")
        try:
            made = settings.model_validate({**raw, "name": name})
        except ValidationError as error:
            raise settings_error(error, settings, prefix=where) from error
        except Exception as error:  # from a validator of the plugin
            raise raised(error, f"{where}, checked by the {kind} `{name}` ({settings.__module__})") from error
        assert isinstance(made, base)
        return made

    def _known(self, kind: str) -> dict[str, Any]:
        return {plugin.name: plugin.cls for plugin in self.plugins if plugin.kind == kind}

    def _unknown(self, kind: str, name: str, known: list[str], where: str) -> PluginError:
        if name in self._clashes:
            packages = " and ".join(sorted({f"{p.package} {p.version}" for p in self._clashes[name]}))
            return PluginError(
                f"the {_spoken(kind)} `{name}` is defined more than once",
                where=where,
                got=packages,
                do="Uninstall all but one",
            )
        hint = did_you_mean(name, known) or "Install the package that provides it, then check `align plugins list`"
        broken = f" Not usable: {'; '.join(map(str, self.problems))}" if self.problems else ""
        return PluginError(
            f"no installed {_spoken(kind)} has this name",
            where=where,
            got=name,
            expected=f"one of {', '.join(known)}",
            do=hint + broken,
        )


def _spoken(kind: str) -> str:
    return kind.replace("_", " ")


def load_registry() -> Registry:
    """Import every installed plugin and return the registry of them."""
    return Registry(*find_plugins())
