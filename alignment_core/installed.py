"""Imports every installed plugin, and says of each that cannot be used why, by package and version.

A plugin is a module named by an entry point of the group `alignment_core`; a broken one harms no other.
"""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import reduce
from importlib.metadata import Distribution, EntryPoint, entry_points
from operator import or_
from types import ModuleType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import pluggy
from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

from alignment_core.artifacts.source import source_digest
from alignment_core.config import Settings
from alignment_core.config_file import did_you_mean
from alignment_core.data.formats import FORMATS
from alignment_core.plugin_api import (
    API_VERSION,
    PROJECT,
    AlignmentOptimizer,
    Evaluator,
    Hooks,
    Listener,
    RecordFormat,
)

KINDS: dict[str, tuple[type, str]] = {
    "optimizer": (AlignmentOptimizer, "alignment_optimizers"),
    "format": (RecordFormat, "alignment_formats"),
    "evaluator": (Evaluator, "alignment_evaluators"),
    "listener": (Listener, "alignment_listeners"),
}
"""Base class and hook of each kind of plugin."""
NEEDS = ("preferences", "feedback", "prompts", "reward_model", "reference")
ROLES = ("policy", "value")


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
    """One installed optimizer, record format, evaluator or listener.

    Attributes:
        name: what it is chosen by.
        kind: one of `KINDS`.
        package: distribution that brought it.
        version: that distribution's version.
        cls: its class; that of all but formats is its settings.
        distribution: for the source digest.
        entry_point: how it was found.
    """

    name: str
    kind: str
    package: str
    version: str
    cls: type[Any]
    distribution: Distribution
    entry_point: EntryPoint

    def identity(self) -> dict[str, str]:
        """What enters the cache keys: package and version, and the source where the version does not tell it."""
        identity = {"package": self.package, "version": self.version}
        # Whatever did not come from an index has this file (PEP 610): a folder, editable or not, a repository, a wheel.
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
            "description": inspect.getdoc(self.cls) or "",
            "needs": [need for need in NEEDS if getattr(self.cls, need, False)],
            "trains": list(getattr(self.cls, "trains", ())),
            "settings": list(self._settings()),
        }

    def _settings(self) -> Iterator[dict[str, Any]]:
        for name, field in getattr(self.cls, "model_fields", {}).items():
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


def find_plugins() -> tuple[list[Plugin], list[Problem]]:
    """Import every installed plugin and sort the usable from the others."""
    plugins: list[Plugin] = []
    problems: list[Problem] = []
    for entry in sorted(entry_points(group=PROJECT), key=lambda entry: entry.name):
        assert entry.dist is not None
        faults: list[str] = []
        plugins.extend(_load(entry, entry.dist, faults))
        problems.extend(Problem(entry.name, entry.dist.name, entry.dist.version, fault) for fault in faults)
    return plugins, problems


def _load(entry: EntryPoint, distribution: Distribution, faults: list[str]) -> Iterator[Plugin]:
    try:
        with warnings.catch_warnings(), redirect_stdout(sys.stderr):  # what a plugin prints is no part of our output
            # pydantic's word on a setting that clashes; ours names the package.
            warnings.filterwarnings("ignore", "Field name .* shadows an attribute", UserWarning)
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
    for kind, (base, hook) in KINDS.items():
        for cls in _answers(getattr(manager.hook, hook), faults):
            flaw = flaw_of(cls, base)
            if flaw is not None:
                faults.append(f"{getattr(cls, '__name__', repr(cls))} is no usable {kind}: {flaw}")
                continue
            yield Plugin(_name(cls), kind, distribution.name, distribution.version, cls, distribution, entry)


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
        with redirect_stdout(sys.stderr):
            answers = hook()
    except (Exception, SystemExit) as error:
        faults.append(f"`{hook.name}` failed: {type(error).__name__}: {error}")
        return []
    if len(answers) < len(hook.get_hookimpls()) or not all(isinstance(answer, list) for answer in answers):
        faults.append(f"`{hook.name}` returned no list")
        return []
    return [settings for answer in answers for settings in answer]


def _name(cls: type[Any]) -> Any:
    """What a plugin's class is chosen by; something else than a text where the author did not fix it."""
    if not issubclass(cls, Settings):
        return getattr(cls, "name", None)
    field = cls.model_fields["name"]
    return field.default if get_args(field.annotation) == (field.default,) else None


def flaw_of(cls: Any, base: type[Any]) -> str | None:
    """Why the class cannot be used; None if it can."""
    if not (inspect.isclass(cls) and issubclass(cls, base)):
        return f"it is not a subclass of {base.__name__}"
    if not isinstance(_name(cls), str):
        fixed = 'name: ClassVar[str] = "mine"' if base is RecordFormat else 'name: Literal["mine"] = "mine"'
        return f"it has no fixed name such as `{fixed}`"
    if issubclass(cls, AlignmentOptimizer):
        return _optimizer_flaw(cls)
    if issubclass(cls, RecordFormat):
        return _format_flaw(cls)
    if issubclass(cls, Evaluator):
        return _missing(cls, Evaluator, "score")
    told = ("started", "step", "finished", "failed")
    deaf = all(getattr(cls, name) is getattr(Listener, name) for name in told)
    return f"it defines none of `{'`, `'.join(told)}`" if deaf else None


def _optimizer_flaw(cls: type[AlignmentOptimizer]) -> str | None:
    if cls.api_version != API_VERSION:
        return f"it was made for plugin API {cls.api_version}, and this is {API_VERSION}; update the older of the two"
    if unknown := set(cls.trains) - set(ROLES):
        return f"it trains {', '.join(sorted(unknown))}, which is none of {', '.join(ROLES)}"
    if strange := [name for name in cls.evaluators if name not in cls.model_fields]:
        return f"it says that {', '.join(strange)} chooses an evaluator, which is none of its settings"
    return _missing(cls, AlignmentOptimizer, "batches", "loss") or _clash(cls)


def _format_flaw(cls: type[RecordFormat]) -> str | None:
    if cls.name in {known.name for known in FORMATS}:
        return f"`{cls.name}` is the name of a built-in record format"
    if not isinstance(getattr(cls, "shape", None), str):
        return "it has no `shape: ClassVar[str]`, which says how a row looks"
    if cls.records is not RecordFormat.records:
        return _missing(cls, RecordFormat, "matches")
    return _missing(cls, RecordFormat, "matches", "read")


def _missing(cls: type[Any], base: type[Any], *names: str) -> str | None:
    missing = [name for name in names if getattr(cls, name) is getattr(base, name)]
    return f"it does not define `{'` and `'.join(missing)}`" if missing else None


def _clash(cls: type[AlignmentOptimizer]) -> str | None:
    """A setting that means something else to the pipeline."""
    for name, field in cls.model_fields.items():
        known = AlignmentOptimizer.model_fields.get(name)
        if known is None and hasattr(AlignmentOptimizer, name):
            return f"its setting `{name}` clashes with the declaration of that name; rename the setting"
        if known is None or field.is_required():
            continue
        try:
            TypeAdapter(known.rebuild_annotation()).validate_python(field.get_default(call_default_factory=True))
        except ValidationError:
            expected = ", ".join([_type_name(known.annotation), *map(_bound, known.metadata)])
            return f"its setting `{name}` is by default {field.default!r}, and for every optimizer it is {expected}"
    return None


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
