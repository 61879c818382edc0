"""Import every installed plugin. For each one that cannot be used, report why, with its package and version.

A plugin is a module named by an entry point of the group `alignment_core`. A broken plugin does not affect the others.
"""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, fields
from functools import reduce
from importlib.metadata import Distribution, EntryPoint, entry_points
from operator import or_
from types import ModuleType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import pluggy
from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

from alignment_core.artifacts.source_digest import source_digest
from alignment_core.config import Settings
from alignment_core.config.training import REWARD_MODEL
from alignment_core.config_file import did_you_mean
from alignment_core.data.sources.formats import FORMATS
from alignment_core.misplaced_plugins import misplaced_plugins
from alignment_core.plugin_api import (
    API_VERSION,
    AlignmentOptimizer,
    Evaluator,
    Listener,
    Needs,
    PairEvaluator,
    RecordFormat,
)
from alignment_core.plugin_api.hooks import PROJECT, Hooks
from alignment_core.plugin_calls import last_lines, summary
from alignment_core.plugin_shape import example_flaw, method_flaw

KINDS: dict[str, tuple[type, str]] = {
    "optimizer": (AlignmentOptimizer, "alignment_optimizers"),
    "format": (RecordFormat, "alignment_formats"),
    "evaluator": (Evaluator, "alignment_evaluators"),
    "pair_evaluator": (PairEvaluator, "alignment_pair_evaluators"),
    "listener": (Listener, "alignment_listeners"),
}
"""Base class and hook of each kind of plugin."""


@dataclass(frozen=True)
class Problem:
    """The reason why a plugin, or a part of one, cannot be used.

    Attributes:
        plugin: name of its entry point.
        package: distribution that provides it.
        version: version of the distribution.
        what: the problem.
        trace: the last lines of the traceback, if the plugin raised.
    """

    plugin: str
    package: str
    version: str
    what: str
    trace: str = ""

    def __str__(self) -> str:
        return f"plugin `{self.plugin}` of {self.package} {self.version}: {self.what}"


@dataclass(frozen=True)
class Plugin:
    """One installed optimizer, record format, evaluator or listener.

    Attributes:
        name: the name by which users select it.
        kind: one of `KINDS`.
        package: distribution that provides it.
        version: version of the distribution.
        cls: its class. Except for formats, the fields of the class are its settings.
        distribution: the distribution, for the source digest.
        entry_point: the entry point, for the source digest.
    """

    name: str
    kind: str
    package: str
    version: str
    cls: type[Any]
    distribution: Distribution
    entry_point: EntryPoint

    def identity(self) -> dict[str, str]:
        """Return what enters cache keys: package, version, and a source digest if the version does not fix the code."""
        identity = {"package": self.package, "version": self.version}
        # A distribution that was not installed from an index has this file (PEP 610): a folder, repository or wheel.
        if self.distribution.read_text("direct_url.json") is not None:
            identity["source"] = source_digest(self.entry_point.module)
        return identity

    def to_json(self) -> dict[str, Any]:
        """Return the description that `align plugins list --json` prints."""
        return {
            "name": self.name,
            "kind": self.kind,
            "version": self.version,
            "package": self.package,
            "description": inspect.getdoc(self.cls) or "",
            "needs": needs_of(self.cls) if self.kind == "optimizer" else [],
            "settings": [setting for setting in describe_settings(self.cls) if setting["name"] != "name"],
        }


def needs_of(cls: type[AlignmentOptimizer]) -> list[str]:
    """Return the names of what the optimizer needs with its defaults and `example`, in the order of `Needs`."""
    needs = example_of(cls).needs()
    return [field.name for field in fields(Needs) if getattr(needs, field.name)]


def example_of(cls: type[AlignmentOptimizer]) -> AlignmentOptimizer:
    """Return the optimizer with its defaults and the settings of its `example`.

    Required settings that `example` does not give are absent. Only an attempt to read them fails.
    """
    try:
        return cls.model_validate(cls.example)
    except ValidationError:
        return cls.model_construct(**cls.example)


def describe_settings(model: type) -> Iterator[dict[str, Any]]:
    """Describe each field of a model as plain JSON: name, type with bounds, default and description."""
    for name, field in getattr(model, "model_fields", {}).items():
        default = None if field.is_required() else field.get_default(call_default_factory=True, validated_data={})
        yield {
            "name": name,
            "type": ", ".join([_type_name(field.annotation), *map(_bound, field.metadata)]),
            "required": field.is_required(),
            "default": to_jsonable_python(default, fallback=str),
            "description": field.description or "",
        }


def find_plugins() -> tuple[list[Plugin], list[Problem]]:
    """Import every installed plugin. Return the usable plugins and the problems of the others."""
    plugins: list[Plugin] = []
    problems: list[Problem] = []
    installed: Any = entry_points()  # in Python 3.11 not yet `EntryPoints`, but with the same methods
    for entry in sorted(installed.select(group=PROJECT), key=lambda entry: entry.name):
        assert entry.dist is not None
        faults: list[str] = []
        plugins.extend(_load(entry, entry.dist, faults))
        problems.extend(
            Problem(entry.name, entry.dist.name, entry.dist.version, *fault.split("\n", 1)) for fault in faults
        )
    problems.extend(
        Problem(
            entry.name,
            distribution.name,
            distribution.version,
            f"it is registered in the group `{entry.group}` of entry points, so it is not found. Rename the group to "
            f"`{PROJECT}` in the package's pyproject.toml, and install the package again",
        )
        for entry, distribution in misplaced_plugins(installed)
    )
    return plugins, problems


def _load(entry: EntryPoint, distribution: Distribution, faults: list[str]) -> Iterator[Plugin]:
    try:
        with warnings.catch_warnings(), redirect_stdout(sys.stderr):  # keep plugin output out of command output
            # `_clash` reports such a setting with the name of the package.
            warnings.filterwarnings("ignore", "Field name .* shadows an attribute", UserWarning)
            module = entry.load()
    except (Exception, SystemExit) as error:
        faults.append(f"it cannot be imported: {summary(error)}\n{last_lines(error)}")
        return
    # With a separate manager for each plugin, a faulty plugin cannot affect the others.
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(Hooks)
    try:
        manager.register(module)
        _check_names(manager, module, faults)
    except (pluggy.PluginValidationError, ValueError) as error:
        faults.append(f"a hook has the wrong signature: {' '.join(str(error).split())}")
        return
    for kind, (base, hook) in KINDS.items():
        for cls in _answers(getattr(manager.hook, hook), faults):
            flaw = flaw_of(cls, base)
            if flaw is not None:
                faults.append(f"{getattr(cls, '__name__', repr(cls))} is not a usable {kind}: {flaw}")
                continue
            yield Plugin(_name(cls), kind, distribution.name, distribution.version, cls, distribution, entry)


def _check_names(manager: pluggy.PluginManager, module: ModuleType, faults: list[str]) -> None:
    callers = manager.get_hookcallers(module) or []
    specified = [name for name in vars(Hooks) if name.startswith("alignment_")]
    for caller in callers:
        if not caller.has_spec():
            hint = did_you_mean(caller.name, specified) or f"The hooks are {', '.join(specified)}."
            faults.append(f"unknown hook `{caller.name}`. {hint}")
    if not callers:
        faults.append(
            f"it implements no hook. Mark its functions with `@hookimpl`. The hooks are {', '.join(specified)}"
        )


def _answers(hook: pluggy.HookCaller, faults: list[str]) -> list[Any]:
    try:
        with redirect_stdout(sys.stderr):
            answers = hook()
    except (Exception, SystemExit) as error:
        faults.append(f"`{hook.name}` failed: {summary(error)}\n{last_lines(error)}")
        return []
    if len(answers) < len(hook.get_hookimpls()) or not all(isinstance(answer, list) for answer in answers):
        faults.append(f"`{hook.name}` did not return a list")
        return []
    return [settings for answer in answers for settings in answer]


def _name(cls: type[Any]) -> Any:
    """Return the fixed name of a plugin class. The result is not a string if the class does not fix its name."""
    if not issubclass(cls, Settings):
        return getattr(cls, "name", None)
    field = cls.model_fields["name"]
    return field.default if get_args(field.annotation) == (field.default,) else None


def flaw_of(cls: Any, base: type[Any]) -> str | None:
    """Return why the class cannot be used, or None if it can."""
    if not (inspect.isclass(cls) and issubclass(cls, base)):
        return f"it is not a subclass of {base.__name__}"
    if not isinstance(_name(cls), str):
        fixed = 'name: ClassVar[str] = "mine"' if base is RecordFormat else 'name: Literal["mine"] = "mine"'
        return f"it has no fixed name, such as `{fixed}`"
    flaw = _flaw_of_kind(cls) or method_flaw(cls, base)
    if flaw is None and issubclass(cls, Settings):
        flaw = example_flaw(cls) or _settings_flaw(cls)
    return flaw


def _flaw_of_kind(cls: type[Any]) -> str | None:
    if issubclass(cls, AlignmentOptimizer):
        return _optimizer_flaw(cls)
    if issubclass(cls, RecordFormat):
        return _format_flaw(cls)
    if issubclass(cls, Evaluator):
        return _evaluator_flaw(cls, Evaluator, "score", "scores") or _reserved_flaw(cls)
    if issubclass(cls, PairEvaluator):
        return _evaluator_flaw(cls, PairEvaluator, "prefer", "prefers")
    events = ("started", "step", "finished", "failed")
    ignores_all = all(getattr(cls, name) is getattr(Listener, name) for name in events)
    return f"it defines none of `{'`, `'.join(events)}`" if ignores_all else None


def _settings_flaw(cls: type[Any]) -> str | None:
    try:
        list(describe_settings(cls))
        if issubclass(cls, AlignmentOptimizer):
            return _needs_flaw(cls)
    except Exception as error:
        return f"its settings cannot be described: {summary(error)}\n{last_lines(error)}"
    return None


def _optimizer_flaw(cls: type[AlignmentOptimizer]) -> str | None:
    if cls.api_version != API_VERSION:
        return (
            f"it was written for plugin API {cls.api_version}, but alignment-flows has plugin API {API_VERSION}. "
            "Update the older of the two"
        )
    for listed in ("evaluators", "pair_evaluators"):
        if unknown_settings := [name for name in getattr(cls, listed) if name not in cls.model_fields]:
            return f"its `{listed}` contains {', '.join(unknown_settings)}, but it has no such setting"
    return _missing(cls, AlignmentOptimizer, "needs", "batches", "loss") or _clash(cls)


def _needs_flaw(cls: type[AlignmentOptimizer]) -> str | None:
    try:
        needs = example_of(cls).needs()
    except Exception as error:
        return (
            f"`needs` failed with the default settings and those in `example`: {summary(error)}. "
            f"Give settings that have no default a value in `example`\n{last_lines(error)}"
        )
    return None if isinstance(needs, Needs) else f"`needs` returned {type(needs).__name__}, not `Needs`"


def _evaluator_flaw(cls: type[Any], base: type[Any], one: str, several: str) -> str | None:
    own = [name for name in (one, several) if getattr(cls, name) is not getattr(base, name)]
    if not own:
        return f"it defines neither `{one}` nor `{several}`"
    for name in own:
        wanted = list(inspect.signature(getattr(base, name)).parameters)[1:]
        try:
            inspect.signature(getattr(cls, name)).bind(cls, *wanted)
        except TypeError:
            return f"its `{name}` does not take `({', '.join(wanted)})`"
    return None


def _reserved_flaw(cls: type[Evaluator]) -> str | None:
    if _name(cls) == REWARD_MODEL:
        return f"`{REWARD_MODEL}` is the name of the reward model in `reward.by`"
    taken = sorted({"weight", "plugin"} & cls.model_fields.keys())
    return f"its setting `{taken[0]}` conflicts with the key of that name in `reward.by`" if taken else None


def _format_flaw(cls: type[RecordFormat]) -> str | None:
    if cls.name in {known.name for known in FORMATS}:
        return f"`{cls.name}` is the name of a built-in record format"
    if not isinstance(getattr(cls, "shape", None), str):
        return "it has no `shape: ClassVar[str]`, which describes its rows"
    try:
        cls()
    except Exception as error:
        return f"it cannot be created without arguments: {summary(error)}\n{last_lines(error)}"
    if cls.records is not RecordFormat.records:
        return _missing(cls, RecordFormat, "matches")
    return _missing(cls, RecordFormat, "matches", "read")


def _missing(cls: type[Any], base: type[Any], *names: str) -> str | None:
    missing = [name for name in names if getattr(cls, name) is getattr(base, name)]
    return f"it does not define `{'` and `'.join(missing)}`" if missing else None


def _clash(cls: type[AlignmentOptimizer]) -> str | None:
    """Describe the first setting whose name has another meaning in the base class. Return None if there is none."""
    for name, field in cls.model_fields.items():
        known = AlignmentOptimizer.model_fields.get(name)
        if known is None and hasattr(AlignmentOptimizer, name):
            return f"its setting `{name}` conflicts with the base class's attribute of that name. Rename the setting"
        if known is None or field.is_required():
            continue
        try:
            TypeAdapter(known.rebuild_annotation()).validate_python(field.get_default(call_default_factory=True))
        except ValidationError:
            expected = ", ".join([_type_name(known.annotation), *map(_bound, known.metadata)])
            return f"its setting `{name}` has the default {field.default!r}, but every optimizer needs {expected}"
    return None


def _type_name(annotation: Any) -> str:
    return inspect.formatannotation(_bare(annotation)).replace("typing.", "")


def _bare(annotation: Any) -> Any:
    """Return the type with all `Annotated` metadata removed, also from its type arguments."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _bare(parts[0])
    if origin in (list, dict, tuple, set):
        return origin[tuple(map(_bare, parts))]
    return reduce(or_, map(_bare, parts)) if origin in (Union, UnionType) else annotation


def _bound(constraint: Any) -> str:
    """Format a constraint of annotated-types, for example `> 0`."""
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    for attribute, sign in signs.items():
        if hasattr(constraint, attribute):
            return f"{sign} {getattr(constraint, attribute):g}"
    return str(constraint)
