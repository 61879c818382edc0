"""Checks of a plugin's class and settings that need no model."""

from __future__ import annotations

import inspect
import math
import pickle
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from alignment_core.config import Settings
from alignment_core.discovery.flaws import flaw_of
from alignment_core.discovery.installed import find_plugins
from alignment_core.testing.report import Doubt, Fault, Report


def check_settings(report: Report, plugin: type[Settings], base: type[Settings], settings: dict[str, Any]) -> bool:
    """Run the checks and add their results to `report`. Return whether the plugin can be used.

    Args:
        report: the report.
        plugin: the class.
        base: the base class of its kind, whose settings are not checked again.
        settings: settings of the checked instance. The others have their defaults.
    """
    check_declaration(report, plugin, base)
    with report.checking("defaults"):
        made = _defaults(plugin, settings)
    if any(result.outcome == "failed" for result in report.results):
        return False
    with report.checking("settings are validated") as shown:
        shown.append(f"invalid values rejected: {_wrong_values(plugin, made, settings)}")
    with report.checking("settings serialize"):
        _serializes(plugin, made)
    with report.checking("settings are described"):
        _described(plugin, base)
    with report.checking("told apart in forms"):
        _told_apart(plugin, base)
    check_import(report, plugin)
    return True


def check_declaration(report: Report, plugin: type, base: type) -> None:
    """Check that the class could be registered."""
    with report.checking("declaration"):
        if (flaw := flaw_of(plugin, base)) is not None:
            raise Fault(flaw)


def check_import(report: Report, plugin: type) -> None:
    """Check that importing the module of the class does not import torch."""
    with report.checking("light import"):
        if _imports_torch(plugin.__module__):
            slow = "the module imports torch at the top level, which slows down every `align` command"
            raise Doubt(f"{slow}. Import it inside the functions that use it")


def _defaults(plugin: type[Settings], settings: dict[str, Any]) -> Settings:
    lacking = [name for name, field in plugin.model_fields.items() if field.is_required() and name not in settings]
    if lacking:
        raise Fault(
            f"no default for {', '.join(lacking)}. Give it one, or a value in `example: ClassVar = {{…}}`, with which "
            "the plugin is described and checked"
        )
    made = plugin(**settings)
    try:
        # pydantic does not validate defaults by default.
        plugin.model_validate(made.model_dump())
    except ValidationError as error:
        first = error.errors()[0]
        raise Fault(f"the default of `{first['loc'][0]}` violates its own bounds: {first['msg']}") from error
    return made


def _wrong_values(plugin: type[Settings], made: Settings, settings: dict[str, Any]) -> int:
    """Check that invalid values are rejected. Return how many were tried."""
    if _accepted(plugin, settings, "no_such_setting", 1):
        raise Fault('an unknown setting is accepted. Keep `extra="forbid"`')
    try:
        setattr(made, "name", "other")  # noqa: B010  # must fail: settings are frozen
    except ValidationError:
        pass
    else:
        raise Fault("settings can be changed after the run has started. Keep `frozen=True`")
    tried = 1
    for name, field in plugin.model_fields.items():
        for value in _outside(field):
            tried += 1
            if _accepted(plugin, settings, name, value):
                raise Fault(f"`{name}` accepts {value!r}, although its declaration excludes it")
    return tried


def _outside(field: FieldInfo) -> Iterator[Any]:
    """Yield values that the field's declaration excludes."""
    if field.annotation in (int, float, bool):
        yield "a word"
    for bound in field.metadata:
        if (limit := getattr(bound, "gt", None)) is not None:
            yield limit
        if (limit := getattr(bound, "ge", None)) is not None:
            yield limit - 1
        if (limit := getattr(bound, "lt", None)) is not None:
            yield limit
        if (limit := getattr(bound, "le", None)) is not None:
            yield limit + 1


def _accepted(plugin: type[Settings], settings: dict[str, Any], name: str, value: Any) -> bool:
    try:
        plugin.model_validate({**settings, name: value})
    except ValidationError:
        return False
    return True


def _serializes(plugin: type[Settings], made: Settings) -> None:
    """Check that settings survive JSON, for stage processes, cache keys and manifests, and pickle, for workers."""
    try:
        same = plugin.model_validate_json(made.model_dump_json()) == made
    except Exception as error:
        raise Fault(f"the settings are not plain JSON: {type(error).__name__}: {error}") from error
    if not same:
        raise Fault("the settings change in a JSON round trip")
    if not all(math.isfinite(value) for value in made.model_dump().values() if isinstance(value, float)):
        raise Fault("a setting is infinite or NaN, which a cache key cannot contain. Use None")
    plugin.model_json_schema()
    if "<locals>" in plugin.__qualname__:
        raise Fault("the class is defined inside a function, where pickle cannot find it")
    try:
        same = pickle.loads(pickle.dumps(made)) == made
    except Exception as error:
        raise Fault(f"the settings cannot be pickled: {type(error).__name__}: {error}") from error
    if not same:
        raise Fault("the settings change when they are pickled and unpickled")


def _described(plugin: type[Settings], base: type[Settings]) -> None:
    undescribed = [
        name
        for name, field in plugin.model_fields.items()
        if name != "name" and field is not base.model_fields.get(name) and not field.description
    ]
    if undescribed:
        raise Fault(f"no docstring under {', '.join(undescribed)}. It is the description in forms and tables")
    if inspect.getdoc(plugin) == inspect.getdoc(base):
        raise Fault("the class has no docstring. It describes the plugin to users")


def _told_apart(plugin: type[Settings], base: type[Settings]) -> None:
    """Check that a form can open each of two plugins. It chooses by the names of the given settings alone."""
    for other in find_plugins()[0]:
        if other.cls is plugin or not issubclass(other.cls, base) or other.name == plugin.model_fields["name"].default:
            continue
        # A form opens the first plugin that has most of the given settings. Those with fewer defaults come first.
        first, later = sorted((plugin, other.cls), key=lambda cls: (len(_filled(cls)), len(cls.model_fields)))
        given = _filled(later) | {name for name, field in later.model_fields.items() if field.is_required()}
        if given <= first.model_fields.keys():
            raise Doubt(
                f"a form of Prefect cannot tell it from `{other.name}` of {other.package}. It goes by the names of "
                f"settings, and those of one ({', '.join(sorted(given))}) are also settings of the other. Rename one"
            )


def _filled(plugin: type[Settings]) -> set[str]:
    """Return the settings whose default is a value, not null."""
    defaults = {
        name: field.get_default(call_default_factory=True, validated_data={})
        for name, field in plugin.model_fields.items()
        if not field.is_required()
    }
    return {name for name, default in defaults.items() if default is not None}


@cache
def _imports_torch(module: str) -> bool:
    code = f"import sys, alignment_core.plugin_api, {module}; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    return done.returncode == 1 and not done.stderr
