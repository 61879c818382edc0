"""Say why a plugin class cannot be used."""

from __future__ import annotations

import inspect
from typing import Any, get_args

from pydantic import TypeAdapter, ValidationError

from alignment_core.config import Settings
from alignment_core.config.training import REWARD_MODEL
from alignment_core.data.sources.formats import FORMATS
from alignment_core.discovery.settings import bound, describe_settings, example_of, type_name
from alignment_core.discovery.shape import example_flaw, method_flaw
from alignment_core.plugin_api import (
    API_VERSION,
    AlignmentOptimizer,
    Evaluator,
    Listener,
    Needs,
    PairEvaluator,
    RecordFormat,
)
from alignment_core.plugin_calls import last_lines, summary


def name_of(cls: type[Any]) -> Any:
    """Return the fixed name of a plugin class. The result is not a string if the class does not fix its name."""
    if not issubclass(cls, Settings):
        return getattr(cls, "name", None)
    field = cls.model_fields["name"]
    return field.default if get_args(field.annotation) == (field.default,) else None


def flaw_of(cls: Any, base: type[Any]) -> str | None:
    """Return why the class cannot be used, or None if it can."""
    if isinstance(cls, base):
        return "it is an instance, and the hook must return classes"
    if not (inspect.isclass(cls) and issubclass(cls, base)):
        return f"it is not a subclass of {base.__name__}"
    if not isinstance(name_of(cls), str):
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
            f"it was written for plugin API {cls.api_version!r}, but alignment-flows has plugin API {API_VERSION}. "
            "Update the older of the two"
        )
    for listed in ("evaluators", "pair_evaluators"):
        if not isinstance(getattr(cls, listed), tuple):
            return f'its `{listed}` is no tuple of names of settings, such as `("judge",)`'
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
    defines_any = any(getattr(cls, name) is not getattr(base, name) for name in (one, several))
    return None if defines_any else f"it defines neither `{one}` nor `{several}`"


def _reserved_flaw(cls: type[Evaluator]) -> str | None:
    if name_of(cls) == REWARD_MODEL:
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
            expected = ", ".join([type_name(known.annotation), *map(bound, known.metadata)])
            return f"its setting `{name}` has the default {field.default!r}, but every optimizer needs {expected}"
    return None
