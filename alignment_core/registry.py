"""Finds the installed plugins. The built-in ones are found like a stranger's, and a broken one harms no other.

A plugin is a module named by an entry point of the group `alignment_core`; see `plugin_api`.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from importlib.metadata import Distribution, EntryPoint, entry_points
from operator import or_
from types import ModuleType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import pluggy
from pydantic import ValidationError
from pydantic_core import to_jsonable_python

from alignment_core.artifacts.source import source_digest
from alignment_core.config import Settings
from alignment_core.config_file import did_you_mean, settings_error
from alignment_core.errors import ConfigError, PluginError
from alignment_core.plugin_api import API_VERSION, PROJECT, AlignmentOptimizer, Evaluator, Hooks

NEEDS = ("preferences", "feedback", "prompts", "reward_model", "reference")
ROLES = ("policy", "value")

Kind = TypeVar("Kind", AlignmentOptimizer, Evaluator)


@dataclass(frozen=True)
class Problem:
    """Why a plugin, or a part of one, cannot be used.

    Attributes:
        plugin: name of its entry point.
        package: distribution that brought it.
        version: that distribution's version.
        what: the fault.
    """

    plugin: str
    package: str
    version: str
    what: str

    def __str__(self) -> str:
        return f"plugin `{self.plugin}` of {self.package} {self.version}: {self.what}"


@dataclass(frozen=True)
class Plugin:
    """One installed optimizer or evaluator.

    Attributes:
        name: what it is chosen by.
        kind: `optimizer` or `evaluator`.
        package: distribution that brought it.
        version: that distribution's version.
        settings_class: its class, which is its settings.
        distribution: for the source digest.
        entry_point: how it was found.
    """

    name: str
    kind: str
    package: str
    version: str
    settings_class: type[Settings]
    distribution: Distribution
    entry_point: EntryPoint

    def identity(self) -> dict[str, str]:
        """What enters the cache keys: package and version, and the source where the version does not tell it."""
        identity = {"package": self.package, "version": self.version}
        # Only what was installed from a folder or a repository, editable or not, has this file (PEP 610).
        if self.distribution.read_text("direct_url.json") is not None:
            identity["source"] = source_digest(self.entry_point.module)
        return identity

    def to_json(self) -> dict[str, Any]:
        """All about it, as `align plugins list --json` prints it."""
        return {
            "name": self.name,
            "kind": self.kind,
            "version": self.version,
            "package": self.package,
            "description": inspect.getdoc(self.settings_class) or "",
            "needs": [need for need in NEEDS if getattr(self.settings_class, need, False)],
            "trains": list(getattr(self.settings_class, "trains", ())),
            "settings": list(self._settings()),
        }

    def _settings(self) -> Iterator[dict[str, Any]]:
        for name, field in self.settings_class.model_fields.items():
            if name == "name":
                continue
            default = None if field.is_required() else field.get_default(call_default_factory=True, validated_data={})
            yield {
                "name": name,
                "type": ", ".join([_type_name(field.annotation), *map(_bound, field.metadata)]),
                "required": field.is_required(),
                "default": to_jsonable_python(default, fallback=str),
                "description": field.description or "",
            }


class Registry:
    """The plugins that work, and the problems of those that do not."""

    def __init__(self, plugins: list[Plugin], problems: list[Problem]) -> None:
        count = Counter((plugin.kind, plugin.name) for plugin in plugins)
        self.plugins = sorted(
            (plugin for plugin in plugins if count[plugin.kind, plugin.name] == 1), key=lambda p: (p.kind, p.name)
        )
        # Neither wins: which one was meant is for the user to say.
        clashing = [plugin for plugin in plugins if count[plugin.kind, plugin.name] > 1]
        self._clashes = {plugin.name: [p for p in clashing if p.name == plugin.name] for plugin in clashing}
        self.problems = problems + [
            Problem(
                plugin.entry_point.name,
                plugin.package,
                plugin.version,
                f"the {plugin.kind} `{plugin.name}` is defined more than once; none is used. Uninstall all but one",
            )
            for plugin in clashing
        ]

    def optimizer(self, raw: Mapping[str, Any]) -> AlignmentOptimizer:
        """The optimizer that `raw["name"]` chooses, with the rest of `raw` as its settings.

        Raises:
            PluginError: none of that name is installed, or two are.
            ConfigError: a setting is missing, misspelt or out of range.
        """
        return self._make(AlignmentOptimizer, "optimizer", raw, "optimizer")

    def evaluator(self, raw: Mapping[str, Any], where: str = "evaluator") -> Evaluator:
        """The evaluator that `raw["name"]` chooses; `where` is the setting that `raw` stands in.

        Raises:
            PluginError, ConfigError: as for `optimizer`.
        """
        return self._make(Evaluator, "evaluator", raw, where)

    def identity(self, instance: AlignmentOptimizer | Evaluator) -> dict[str, str]:
        """Package, version and, if installed from source, a digest of the code that `instance` is made of."""
        return next(plugin for plugin in self.plugins if plugin.settings_class is type(instance)).identity()

    def _make(self, base: type[Kind], kind: str, raw: Mapping[str, Any], where: str) -> Kind:
        known = {plugin.name: plugin.settings_class for plugin in self.plugins if plugin.kind == kind}
        if "name" not in raw:
            raise ConfigError("this setting is missing", where=f"{where}.name", expected=", ".join(known))
        name = str(raw["name"])
        settings = known.get(name)
        if settings is None:
            raise self._unknown(kind, name, list(known), where)
        try:
            made = settings.model_validate({**raw, "name": name})
        except ValidationError as error:
            raise settings_error(error, settings, prefix=where) from error
        assert isinstance(made, base)
        return made

    def _unknown(self, kind: str, name: str, known: list[str], where: str) -> PluginError:
        if name in self._clashes:
            packages = " and ".join(sorted({f"{p.package} {p.version}" for p in self._clashes[name]}))
            return PluginError(
                f"the {kind} `{name}` is defined more than once",
                where=f"{where}.name",
                got=packages,
                do="Uninstall all but one",
            )
        hint = did_you_mean(name, known) or "Install the package that brings it, then look at `align plugins list`"
        broken = f" Not usable: {'; '.join(map(str, self.problems))}" if self.problems else ""
        return PluginError(
            f"no installed {kind} has this name",
            where=f"{where}.name",
            got=name,
            expected=f"one of {', '.join(known)}",
            do=hint + broken,
        )


def load_registry() -> Registry:
    """Import every installed plugin and sort the usable from the others."""
    plugins: list[Plugin] = []
    problems: list[Problem] = []
    for entry in sorted(entry_points(group=PROJECT), key=lambda entry: entry.name):
        assert entry.dist is not None
        faults: list[str] = []
        plugins.extend(_load(entry, entry.dist, faults))
        problems.extend(Problem(entry.name, entry.dist.name, entry.dist.version, fault) for fault in faults)
    return Registry(plugins, problems)


def _load(entry: EntryPoint, distribution: Distribution, faults: list[str]) -> Iterator[Plugin]:
    try:
        module = entry.load()
    except (Exception, SystemExit) as error:
        faults.append(f"it cannot be imported: {type(error).__name__}: {error}")
        return
    # A manager of its own for each plugin keeps one's faults from the others.
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(Hooks)
    try:
        manager.register(module)
        _check_names(manager, module, faults)
    except (pluggy.PluginValidationError, ValueError) as error:
        faults.append(f"a hook has the wrong signature: {' '.join(str(error).split())}")
        return
    for kind, base, call in (
        ("optimizer", AlignmentOptimizer, manager.hook.alignment_optimizers),
        ("evaluator", Evaluator, manager.hook.alignment_evaluators),
    ):
        for settings in _answers(call, faults):
            flaw = _flaw(settings, base)
            if flaw is not None:
                faults.append(f"{getattr(settings, '__name__', repr(settings))} is no usable {kind}: {flaw}")
                continue
            name = settings.model_fields["name"].default
            yield Plugin(name, kind, distribution.name, distribution.version, settings, distribution, entry)


def _check_names(manager: pluggy.PluginManager, module: ModuleType, faults: list[str]) -> None:
    callers = manager.get_hookcallers(module) or []
    specified = [name for name in vars(Hooks) if name.startswith("alignment_")]
    for caller in callers:
        if not caller.has_spec():
            hint = did_you_mean(caller.name, specified) or f"The hooks are {', '.join(specified)}."
            faults.append(f"there is no hook `{caller.name}`. {hint}")
    if not callers:
        faults.append(
            f"it implements no hook. Mark its functions with `@hookimpl`; the hooks are {', '.join(specified)}"
        )


def _answers(hook: pluggy.HookCaller, faults: list[str]) -> list[Any]:
    try:
        answers = hook()
    except (Exception, SystemExit) as error:
        faults.append(f"`{hook.name}` failed: {type(error).__name__}: {error}")
        return []
    if len(answers) < len(hook.get_hookimpls()) or not all(isinstance(answer, list) for answer in answers):
        faults.append(f"`{hook.name}` returned no list")
        return []
    return [settings for answer in answers for settings in answer]


def _flaw(settings: Any, base: type[Settings]) -> str | None:
    """Why the class cannot be used; None if it can."""
    if not (inspect.isclass(settings) and issubclass(settings, base)):
        return f"it is not a subclass of {base.__name__}"
    field = settings.model_fields["name"]
    if get_args(field.annotation) != (field.default,) or not isinstance(field.default, str):
        return 'it has no fixed name such as `name: Literal["mine"] = "mine"`'
    if issubclass(settings, Evaluator):
        return "it does not define `score`" if settings.score is Evaluator.score else None
    assert issubclass(settings, AlignmentOptimizer)
    if settings.api_version != API_VERSION:
        return (
            f"it was made for plugin API {settings.api_version}, and this is {API_VERSION}; update the older of the two"
        )
    if unknown := set(settings.trains) - set(ROLES):
        return f"it trains {', '.join(sorted(unknown))}, which is none of {', '.join(ROLES)}"
    missing = [name for name in ("batches", "loss") if getattr(settings, name) is getattr(AlignmentOptimizer, name)]
    return f"it does not define `{'` and `'.join(missing)}`" if missing else None


def _type_name(annotation: Any) -> str:
    return inspect.formatannotation(_bare(annotation)).replace("typing.", "")


def _bare(annotation: Any) -> Any:
    """A type without what `Annotated` adds to it or to its parts."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _bare(parts[0])
    if origin in (list, dict, tuple, set):
        return origin[tuple(map(_bare, parts))]
    return reduce(or_, map(_bare, parts)) if origin in (Union, UnionType) else annotation


def _bound(constraint: Any) -> str:
    """A bound of annotated-types as people write it: `> 0`."""
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    for attribute, sign in signs.items():
        if hasattr(constraint, attribute):
            return f"{sign} {getattr(constraint, attribute):g}"
    return str(constraint)
