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
from importlib.metadata import Distribution, EntryPoint, entry_points
from types import ModuleType
from typing import Any

import pluggy

from alignment_core.artifacts.source_digest import source_digest
from alignment_core.config_file import did_you_mean
from alignment_core.discovery.flaws import flaw_of, name_of
from alignment_core.discovery.misplaced import misplaced_plugins
from alignment_core.discovery.settings import describe_settings, example_of
from alignment_core.plugin_api import AlignmentOptimizer, Needs
from alignment_core.plugin_api.hooks import PROJECT, Hooks
from alignment_core.plugin_calls import KINDS, last_lines, summary


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
    for kind, (base, hook, noun) in KINDS.items():
        for cls in _answers(getattr(manager.hook, hook), faults):
            flaw = flaw_of(cls, base)
            if flaw is not None:
                faults.append(f"{getattr(cls, '__name__', repr(cls))} is not a usable {noun}: {flaw}")
                continue
            yield Plugin(name_of(cls), kind, distribution.name, distribution.version, cls, distribution, entry)


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
        got = ", ".join(type(answer).__name__ for answer in answers) or "None"
        faults.append(f"`{hook.name}` did not return a list, but {got}")
        return []
    return [settings for answer in answers for settings in answer]
