"""Read the settings of a run from a YAML file and report mistakes in them as one paragraph.

`${VAR}` and `${VAR:-default}` in strings are replaced by environment variables. Relative paths, in the file and on the
command line, are relative to the working directory.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from alignment_core.addresses import hide_secrets
from alignment_core.config import PipelineConfig
from alignment_core.config.yaml_text import DEEPEST, LONGEST, parse
from alignment_core.errors import ConfigError

VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")
INPUT_CHARACTERS = 80
ODD = re.compile(r"[^\w.\-]")
"""A character that no name of a setting has. What follows it may be a part of an address, with its password."""
DIGITS = 9
"""Most digits of an index into a list."""
LARGEST = 2**63
"""Largest number of any setting. Infinity and NaN are no settings either."""


def load_config(path: Path, overrides: Sequence[str] = ()) -> PipelineConfig:
    """Read the settings of a run from a YAML file.

    Args:
        path: the YAML file.
        overrides: strings `a.b=value`, applied before validation. A number in the path is an index into a list.

    Raises:
        ConfigError: the file cannot be read, or a setting is missing, misspelled or out of range.
    """
    return check_config(read_config(path), overrides, file=path)


def check_config(raw: Mapping[str, Any], overrides: Sequence[str] = (), *, file: Path | None = None) -> PipelineConfig:
    """Validate plain values, from a file or from Prefect's run form, and return the settings of a run.

    Args:
        raw: the values. They are not modified.
        overrides: as for `load_config`.
        file: the file that the values are from, if any.

    Raises:
        ConfigError: a setting is missing, misspelled or out of range.
    """
    changed = deepcopy(dict(raw))
    for override in overrides:
        _override(changed, override)
    expanded = _expand(changed, str(file or "the settings"), "")
    try:
        return PipelineConfig.model_validate(expanded)
    except ValidationError as error:
        raise settings_error(error, PipelineConfig, file=file) from error


def parse_changes(overrides: Sequence[str]) -> dict[str, Any]:
    """Return the nested settings that the strings `a.b=value` describe.

    Raises:
        ConfigError: a value is missing or is not valid YAML.
    """
    raw: dict[str, Any] = {}
    for override in overrides:
        _override(raw, override)
    return raw


# --- the file -----------------------------------------------------------------------------------------------------


def read_config(path: Path) -> dict[str, Any]:
    """Return the values in a YAML file without validating them.

    Raises:
        ConfigError: the file cannot be read or is not a mapping.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:  # perhaps a pipe, or a device without an end
            raw = parse(file.read(LONGEST + 1))
    except FileNotFoundError as error:
        raise ConfigError("there is no such file", where=str(path), do="Check the path") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("the file cannot be read", where=str(path), got=error) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or error
        raise ConfigError(f"invalid YAML: {problem}", where=where) from error
    if not isinstance(raw, dict):
        expected = "a mapping with `model:`, `data:` and more"
        raise ConfigError("the file contains no settings", where=str(path), expected=expected)
    return raw


def _override(raw: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    if not equals or not name:
        start = re.match(r"[\w.\-]*", override)  # what follows may be a secret
        where = f"--set {start.group() if start else ''}".strip()
        raise ConfigError("the value is missing", where=where, expected="--set a.b=value")
    try:
        value = parse(text)
    except yaml.YAMLError as error:  # the text is not shown: what in it is a secret is not clear
        problem = getattr(error, "problem", None) or error
        mark = getattr(error, "problem_mark", None)
        place = f" at character {mark.index + 1}" if mark else ""
        raise ConfigError(f"the value is not valid YAML: {problem}{place}", where=f"--set {name}") from error
    if (odd := ODD.search(name)) is not None:
        where, got = f"--set {_short(name[: odd.start()])}", repr(odd.group())
        raise ConfigError("this is not the name of a setting", where=where, got=got, expected="--set a.b=value")
    *parents, last = name.split(".")
    if len(parents) > DEEPEST:
        raise ConfigError(f"more than {DEEPEST} levels", where=f"--set {_short(name)}")
    here: Any = raw
    for part in parents:
        child = _child(here, part, override)
        if child is None:
            child = {}
            _assign(here, part, child, override)
        here = child
    _assign(here, last, value, override)


def _child(here: Any, part: str, override: str) -> Any:
    if isinstance(here, list):
        return here[_index(here, part, override)]
    if isinstance(here, dict):
        return here.get(part)
    raise _no_place(override, part)


def _assign(here: Any, part: str, value: Any, override: str) -> None:
    if isinstance(here, list):
        here[_index(here, part, override)] = value
    elif isinstance(here, dict):
        here[part] = value
    else:
        raise _no_place(override, part)


def _index(here: list[Any], part: str, override: str) -> int:
    if part.isdecimal() and len(part) <= DIGITS and int(part) < len(here):
        return int(part)
    where, expected = f"--set {_short(_without_secret(override))}", f"0 to {len(here) - 1}"
    raise ConfigError("the list has no entry with this index", where=where, got=_short(part), expected=expected)


def _no_place(override: str, part: str) -> ConfigError:
    where = f"--set {_short(_without_secret(override))}"
    return ConfigError(f"`{_short(part)}` cannot be set inside a plain value", where=where, do="Check the path")


def _without_secret(override: str) -> str:
    name, _, text = override.partition("=")
    return f"{name}={hide_secrets({name: text})[name]}"


def _expand(value: Any, file: str, where: str) -> Any:
    if isinstance(value, dict):
        for key in value:
            if isinstance(key, str):
                _check_text(key, file, where)
        return {key: _expand(inner, file, f"{where}.{key}".lstrip(".")) for key, inner in value.items()}
    if isinstance(value, list):
        return [_expand(inner, file, f"{where}.{index}") for index, inner in enumerate(value)]
    if isinstance(value, str):
        value = VARIABLE.sub(lambda match: _variable(match, file, where), value)
        _check_text(value, file, where)
    elif isinstance(value, int | float) and not -LARGEST <= value <= LARGEST:
        got = f"{value}" if isinstance(value, float) else f"a number of {value.bit_length()} bits"
        raise ConfigError("the number is too large, infinite or no number", where=f"{file}: {where}", got=got)
    return value


def _check_text(text: str, file: str, where: str) -> None:
    """Check that files, databases and other programs can hold the text.

    Raises:
        ConfigError: it contains a null character, or bytes of an environment variable that are no UTF-8.
    """
    if "\0" in text:
        raise ConfigError("the text contains a null character", where=f"{file}: {where}", got=_shown(where, text))
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConfigError("the text is not valid Unicode", where=f"{file}: {where}", got=_shown(where, text)) from None


def _variable(match: re.Match[str], file: str, where: str) -> str:
    name, default = match.groups()
    if value := os.environ.get(name):
        return value
    if default is not None:
        return str(default)
    raise ConfigError(
        f"the environment variable {name} is not set",
        where=f"{file}: {where}",
        do=f"Set it, or add a default: ${{{name}:-…}}",
    )


# --- pydantic's errors as `ConfigError` ---------------------------------------------------------------------------


def settings_error(
    error: ValidationError, model: type[BaseModel], *, prefix: str = "", file: Path | None = None
) -> ConfigError:
    """Convert pydantic's errors to one `ConfigError` about the first of them, followed by the others.

    Args:
        error: the validation error.
        model: the class of the settings that were validated.
        prefix: the setting that contains them, e.g. `optimizer`.
        file: the file that the settings are from, if known.
    """
    faults: dict[str, ConfigError] = {}
    for detail in error.errors(include_url=False):
        fault = _fault(detail, model, prefix)
        known = faults.setdefault(fault.where or "", fault)
        # A union reports one error per member. Together they say what was expected.
        if known.expected and fault.expected and fault.expected not in known.expected:
            known.expected += f" or {fault.expected}"
    first, *others = faults.values()
    do = " ".join(text for text in (first.do, *(f"Also {other}" for other in others)) if text)
    where = f"{file}: {first.where}" if file else first.where
    return ConfigError(first.what, where=where, got=first.got, expected=first.expected, do=do or None)


def _fault(detail: Any, model: type[BaseModel], prefix: str) -> ConfigError:
    path, owner, unknown = _locate(model, detail["loc"])
    if detail["type"] == "extra_forbidden" and owner is not None and unknown is not None:
        return _unknown_setting(".".join(filter(None, [prefix, *path, unknown])), unknown, owner)
    where = ".".join(filter(None, [prefix, *path]))
    if detail["type"] == "missing":
        return ConfigError("this setting is missing", where=where)
    if detail["type"] in ("value_error", "assertion_error"):
        return ConfigError(detail["msg"].partition(", ")[2], where=where)
    shown = _shown(where, detail["input"])
    message = detail["msg"].removeprefix("Input should be ")
    expected = "a mapping of settings" if detail["type"] == "model_type" else message
    return ConfigError("invalid value", where=where, got=shown, expected=expected)


def _shown(name: str, value: Any) -> str:
    """Return the start of a setting's value for a message. Its secrets are hidden before it is cut."""
    return _short(repr(hide_secrets({name: value})[name]))


def _short(text: str) -> str:
    return text if len(text) <= INPUT_CHARACTERS else text[:INPUT_CHARACTERS] + "…"


def _unknown_setting(where: str, name: str, owner: type[BaseModel]) -> ConfigError:
    close = did_you_mean(name, owner.model_fields)
    known = None if close else ", ".join(owner.model_fields)
    return ConfigError("unknown setting", where=where, expected=known and f"one of {known}", do=close)


def did_you_mean(name: str, known: Iterable[str]) -> str | None:
    """Return "Did you mean …?" with the closest known name, or None if none is close."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"Did you mean `{close[0]}`?" if close else None


def _locate(model: type[BaseModel], loc: Sequence[int | str]) -> tuple[list[str], type[BaseModel] | None, str | None]:
    """Resolve pydantic's `loc`: the path of the setting, the model that contains it, and a name unknown to that model.

    The name is None if all names are known.
    """
    path: list[str] = []
    here: Any = model
    for part in loc:
        owner = _model_in(here)
        if isinstance(part, int) or get_origin(here) is dict:
            path.append(str(part))
        elif owner is not None and part in owner.model_fields:
            path.append(part)
            here = owner.model_fields[part].annotation
        else:  # an unknown name, or pydantic's label for a member of a union
            return path, owner, part
    return path, _model_in(here), None


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for inner in get_args(annotation) if (found := _model_in(inner))), None)
