"""Check the shape of a plugin class before anything calls it: the arguments of its methods, and its example."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

KEYWORD = inspect.Parameter.KEYWORD_ONLY


def method_flaw(cls: type, base: type) -> str | None:
    """Return which of its methods cannot be called like those of the base class, or None if all can."""
    return next((flaw for name in _methods(base) if (flaw := _flaw(cls, base, name)) is not None), None)


def _methods(base: type) -> Iterator[str]:
    return (name for name, value in vars(base).items() if inspect.isfunction(value) and not name.startswith("_"))


def _flaw(cls: type, base: type, name: str) -> str | None:
    theirs, ours = inspect.getattr_static(cls, name), vars(base)[name]
    if theirs is ours:
        return None
    if not callable(getattr(cls, name)):
        return f"its `{name}` is not a method, but {type(theirs).__name__}"
    if inspect.iscoroutinefunction(theirs):
        return f"its `{name}` is `async`, but it is called without `await`"
    by_position, by_keyword = _arguments(ours)
    given = by_position if isinstance(theirs, staticmethod | classmethod) else ["self", *by_position]
    try:
        inspect.signature(getattr(cls, name)).bind(*given, **dict.fromkeys(by_keyword))
    except TypeError:
        taken = ", ".join(parameter for parameter in inspect.signature(theirs).parameters if parameter != "self")
        called = ", ".join([*by_position, *(f"{keyword}=…" for keyword in by_keyword)])
        return f"its `{name}` takes ({taken}), but it is called with ({called})"
    return None


def _arguments(method: Any) -> tuple[list[str], list[str]]:
    """Return the names of the arguments that a method gets by position and by keyword, without `self`."""
    _, *parameters = inspect.signature(method).parameters.values()
    by_position = [parameter.name for parameter in parameters if parameter.kind is not KEYWORD]
    return by_position, [parameter.name for parameter in parameters if parameter.kind is KEYWORD]


def example_flaw(cls: Any) -> str | None:
    """Return what is wrong with the settings in `example`, or None if they are settings of the class."""
    if not isinstance(cls.example, Mapping):
        return f"its `example` is {type(cls.example).__name__}, but it must map settings to values"
    unknown = sorted(cls.example.keys() - cls.model_fields.keys())
    return f"its `example` contains {', '.join(unknown)}, but it has no such setting" if unknown else None
