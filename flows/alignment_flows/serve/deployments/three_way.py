"""Merge what is declared now with what a person changed on the server since the last deploy.

Values are nested dictionaries as in JSON. Each setting is compared by itself: one that differs from the last declared
value was changed by a person, and is kept.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from alignment_core.addresses import hide_secrets

Path = tuple[str, ...]


class _Absent:
    """Stands for a setting that is not there."""

    def __repr__(self) -> str:
        return "nothing"


class _Unknown(_Absent):
    """Stands for the last declared value if no deploy recorded it. It differs from every value."""


ABSENT, UNKNOWN = _Absent(), _Unknown()
WHOLE = {"schedule"}
"""Names of dictionaries that are kept or replaced as a whole, because their fields exclude each other."""


@dataclass(frozen=True)
class Difference:
    """A setting whose value on the server is not the declared one.

    Attributes:
        path: the names that lead to the setting.
        there: its value on the server.
        declared: the value that is declared now.
    """

    path: Path
    there: Any
    declared: Any

    def kept(self) -> str:
        """Describe a setting that stays as it is on the server."""
        return f"{self._name()} {self._shown(self.there)}, set on the server; declared is {self._shown(self.declared)}"

    def replaced(self) -> str:
        """Describe a setting that is overwritten."""
        return f"{self._name()} {self._shown(self.there)}, set on the server, by {self._shown(self.declared)}"

    def _name(self) -> str:
        return ".".join(self.path)

    def _shown(self, value: Any) -> str:
        """Return a value as JSON, without the secrets in it."""
        if isinstance(value, _Absent):
            return repr(value)
        return json.dumps(hide_secrets({self.path[-1]: value})[self.path[-1]], ensure_ascii=False)


def merge(
    last: Any, declared: Any, there: Any, replace: frozenset[Path] = frozenset(), path: Path = ()
) -> tuple[Any, list[Difference]]:
    """Return the value that the server should have, and what a person changed and therefore stays.

    Args:
        last: the value declared at the last deploy, or UNKNOWN: then every difference counts as a person's change.
        declared: the value declared now.
        there: the value on the server.
        replace: settings that get the declared value although a person changed them.
        path: the names that lead to the value.
    """
    if there == declared:
        return there, []
    if there == last or path in replace:
        return declared, []
    if not _is_group(last, declared, there, path):
        return there, [Difference(path, there, declared)]
    merged: dict[str, Any] = {}
    differences: list[Difference] = []
    for name in dict.fromkeys((*there, *declared)):
        before = last.get(name, ABSENT) if isinstance(last, Mapping) else last
        value, more = merge(before, declared.get(name, ABSENT), there.get(name, ABSENT), replace, (*path, name))
        differences += more
        if value is not ABSENT:
            merged[name] = value
    return merged, differences


def _is_group(last: Any, declared: Any, there: Any, path: Path) -> bool:
    """Return whether each setting inside is compared by itself.

    Not if the dictionaries choose different plugins by `name`: one plugin's settings do not fit another's.
    """
    if not (isinstance(declared, Mapping) and isinstance(there, Mapping)) or (path and path[-1] in WHOLE):
        return False
    groups = [group for group in (last, declared, there) if isinstance(group, Mapping)]
    return len({json.dumps(group["name"]) for group in groups if "name" in group}) <= 1
