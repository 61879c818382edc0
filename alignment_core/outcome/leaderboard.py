"""The runs of a store, the best first, with the settings in which they differ."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from alignment_core.artifacts import ArtifactStore, Manifest
from alignment_core.artifacts.catalogue import ALIGNED, Entry, catalogue
from alignment_core.outcome.result import REPORT, Result, WinRate, result_from, start_of, win_rates_of

KINDS = (ALIGNED, "sft", "adapter", "ingest", "reward", "evaluate", "head_to_head", "gate")
"""Kinds of the artifacts that a line is made from. The manifests of other kinds are not read."""
COMMON = ("load_in", "max_length", "seed", "chat_template", "lora")
"""Settings of the stage `optimize` that a line may show, besides those of the optimizer."""


@dataclass(frozen=True)
class Line:
    """One run of a store: the training of one aligned model, and how it was evaluated last.

    Attributes:
        result: what it achieved.
        base: name of the base model.
        data: names of the sources that it learned from.
        settings: the settings in which it differs from other runs of the store, as text. Those of an optimizer are
            compared with other runs of that optimizer.
        created: when the model was trained, ISO 8601, UTC.
    """

    result: Result
    base: str
    data: tuple[str, ...]
    settings: Mapping[str, str]
    created: str

    def to_json(self) -> dict[str, Any]:
        own = {"base": self.base, "data": list(self.data), "settings": dict(self.settings), "created": self.created}
        return {**self.result.to_json(), **own}


def leaderboard(store: ArtifactStore) -> list[Line]:
    """Return the runs of a store: those with the highest win rate over their start first, then those without one.

    Raises:
        ArtifactError: there is no store, or an alias is damaged.
    """
    found = _Artifacts(catalogue(store, KINDS))
    runs = [(entry, found.of_model(entry)) for entry in found.entries if entry.artifact.kind == ALIGNED]
    settings = [_settings(stages) for _, stages in runs]
    values = _values(settings)
    lines = [
        Line(
            result_from(stages, aliases=entry.aliases, data_report=_data_report(store, stages)),
            base=_base(stages["optimize"]),
            data=tuple(sources_of(stages["ingest"])) if "ingest" in stages else (),
            settings=_differing(own, values),
            created=entry.created,
        )
        for (entry, stages), own in zip(runs, settings, strict=True)
    ]
    return sorted(lines, key=_place)


def losses_to_start(store: ArtifactStore, key: str) -> list[WinRate]:
    """Return the win rates by which a model is surely worse than the one that its training started from."""
    found = _Artifacts(catalogue(store, KINDS))
    lost = []
    for entry in found.entries:
        if (entry.artifact.kind, entry.artifact.key) == (ALIGNED, key):
            stages = found.of_model(entry)
            start = start_of(stages)
            lost += [rate for rate in win_rates_of(stages) if rate.opponent == start and rate.high < 0.5]
    return lost


def _data_report(store: ArtifactStore, stages: Mapping[str, Manifest]) -> Path | None:
    return store.root / "ingest" / stages["ingest"].key / REPORT if "ingest" in stages else None


def _place(line: Line) -> float:
    """Return the sort key. Lines that are equal stay in the order of the catalogue, the newest first."""
    over_start = [rate.rate for rate in line.result.win_rates if rate.opponent == line.result.start]
    return -over_start[0] if over_start else 1.0


class _Artifacts:
    """The artifacts of a store by what they were made from. The newest comes first everywhere."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self.entries = [entry for entry in entries if entry.manifest is not None]
        self.manifests = {entry.artifact.key: entry.manifest for entry in self.entries if entry.manifest is not None}
        self._of_policy: dict[tuple[str, str], list[Manifest]] = defaultdict(list)
        for manifest in self.manifests.values():
            if (policy := manifest.parents.get("policy")) is not None:
                self._of_policy[manifest.kind, policy].append(manifest)

    def of_model(self, entry: Entry) -> dict[str, Manifest]:
        """Return the manifests behind a model and its last evaluation, by their names in the plan."""
        policy = self.manifests[entry.artifact.key]
        stages = {"ingest": "data", "reward": "reward"}
        found = {name: made for name, role in stages.items() if (made := self._parent(policy, role)) is not None}
        evaluation = self._evaluation(policy.key)
        # A retrain starts from the model in production, and is compared with the SFT model all the same.
        start = self._parent(evaluation or policy, "sft")
        if start is not None and start.kind in ("sft", "adapter"):
            found[start.kind] = start
        found["optimize"] = policy
        if evaluation is not None:
            found |= {"evaluate": evaluation, **self._verdicts_on(evaluation)}
        return found

    def _parent(self, manifest: Manifest, role: str) -> Manifest | None:
        return self.manifests.get(manifest.parents.get(role, ""))

    def _evaluation(self, policy: str) -> Manifest | None:
        """Return the newest evaluation by a run that made the model, rather than one that had it as a rival."""
        found = self._of_policy["evaluate", policy]
        own = [each for each in found if self._of_policy["head_to_head", each.key]]
        return next(iter(own or found), None)

    def _verdicts_on(self, evaluation: Manifest) -> dict[str, Manifest]:
        """Return the comparisons of the evaluated model with others, and the verdict of the gate on it."""
        found: dict[str, Manifest] = {}
        for versus in self._of_policy["head_to_head", evaluation.key]:
            rival = self._parent(versus, "opponent")
            if rival is not None:
                start = "policy" not in rival.parents and rival.parents.get("sft") == evaluation.parents.get("sft")
                found.setdefault("over_sft" if start else "over_production", versus)
        for verdict in self._of_policy["gate", evaluation.key][:1]:
            found["gate"] = verdict
        return found


def sources_of(ingest: Manifest) -> list[str]:
    """Return the names of the sources of a data set, without their folders."""
    return [PurePath(source["path"]).name or source["path"] for source in ingest.inputs.get("sources", ())]


def _base(policy: Manifest) -> str:
    return PurePath(policy.inputs.get("model", {}).get("path", "")).name


def _settings(stages: Mapping[str, Manifest]) -> dict[str, str]:
    """Return the settings of a run that another run may have chosen differently, as text by dotted name."""
    policy = stages["optimize"].config
    found: dict[str, Any] = {"optimizer": policy["optimizer"], "base": _base(stages["optimize"])}
    found |= {name: policy[name] for name in COMMON if name in policy}
    found["sft"] = stages["sft"].config.get("sft") if "sft" in stages else None
    if "reward" in stages:
        found["reward"] = stages["reward"].config.get("reward")
    if "ingest" in stages:
        found["data"] = stages["ingest"].config.get("data")
    return dict(_flat(found))


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _values(settings: Iterable[Mapping[str, str]]) -> dict[tuple[str, str], set[str]]:
    """Return the values of each setting by optimizer and name. Those of stages that all may share have no optimizer."""
    found: dict[tuple[str, str], set[str]] = defaultdict(set)
    for own in settings:
        for name, value in own.items():
            found[_group(name, own), name].add(value)
    return found


def _group(name: str, settings: Mapping[str, str]) -> str:
    return settings["optimizer.name"] if name.startswith("optimizer.") else ""


def _differing(own: Mapping[str, str], values: Mapping[tuple[str, str], set[str]]) -> dict[str, str]:
    return {name: value for name, value in own.items() if len(values[_group(name, own), name]) > 1}
