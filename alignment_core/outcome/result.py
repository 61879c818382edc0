"""The result of a run, from the manifests of its stages."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from alignment_core.artifacts import Artifact, ArtifactStore, Manifest

START_IN_WORDS = {"sft": "the SFT model", "adapter": "the adapter that it started from", "base": "the base model"}
OPPONENTS = ("over_sft", "over_production")
"""The comparisons of a run with other models, by their names in the plan."""
REPORT = "report.html"


@dataclass(frozen=True)
class WinRate:
    """How often a judge prefers the model's answer.

    Attributes:
        opponent: the other model, in words.
        judge: name of the judge.
        rate, low, high: share of prompts, where a tie counts half, with its 95 % interval.
        prompts: number of prompts.
    """

    opponent: str
    judge: str
    rate: float
    low: float
    high: float
    prompts: int


@dataclass(frozen=True)
class Result:
    """What a run achieved. None: it was not measured.

    Attributes:
        run: name of the run.
        key: key of the aligned model.
        optimizer: name of the optimizer.
        start: the model that training started from, in words.
        win_rates: those over the start come first, and among them that by the judge who decides.
        kl: KL from the start per response, in nats.
        length_ratio: characters of the answers divided by those of the start.
        used, of: number of records that were used, and of all records.
        data_report: the page that says what became of the others.
        passed: whether the model passed the gate; None without a gate.
        reasons: the rules of the gate, as text: those that failed, or all if none did.
        aliases: the aliases of the model.
        warnings: the warnings of the stages, with the names of the stages.
    """

    run: str
    key: str
    optimizer: str
    start: str
    win_rates: tuple[WinRate, ...]
    kl: float | None
    length_ratio: float | None
    used: int | None
    of: int | None
    data_report: str | None
    passed: bool | None
    reasons: tuple[str, ...]
    aliases: tuple[str, ...]
    warnings: tuple[tuple[str, str], ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def result_of(artifacts: Mapping[str, Artifact], run: str | None = None) -> Result:
    """Return the result of a run.

    Args:
        artifacts: the artifacts of the run by their names in the plan. Only `optimize` must be there.
        run: name of the run. None: of the run that trained the model.
    """
    manifests = {name: artifact.manifest() for name, artifact in artifacts.items()}
    policy = artifacts["optimize"]
    aliases = ArtifactStore(policy.path.parents[1]).aliases.of(policy.key)
    report = artifacts["ingest"].path / REPORT if "ingest" in artifacts else None
    return result_from(manifests, run, aliases=tuple(aliases), data_report=report)


def result_from(
    manifests: Mapping[str, Manifest],
    run: str | None = None,
    *,
    aliases: tuple[str, ...] = (),
    data_report: Path | None = None,
) -> Result:
    """Return the result of a run from the manifests of its stages, by their names in the plan."""
    policy, gate = manifests["optimize"], manifests.get("gate")
    used = _metric(manifests, "ingest", "used") or {}
    return Result(
        run=policy.run if run is None else run,
        key=policy.key,
        optimizer=policy.config["optimizer"]["name"],
        start=start_of(manifests),
        win_rates=tuple(win_rates_of(manifests)),
        kl=_metric(manifests, "evaluate", "kl"),
        length_ratio=_metric(manifests, "over_sft", "length_ratio"),
        used=used.get("records"),
        of=used.get("of"),
        data_report=str(data_report) if data_report is not None and data_report.is_file() else None,
        passed=None if gate is None else bool(gate.metrics["passed"]),
        reasons=() if gate is None else tuple(gate.metrics["reasons"]),
        aliases=aliases,
        warnings=tuple((name, text) for name, each in manifests.items() for text in each.metrics.get("warnings", ())),
    )


def start_name(stages: Container[str]) -> str:
    """Return a short name for the model that an optimizer started from, given the names of the stages of its run."""
    return next((name for name in ("sft", "adapter") if name in stages), "base")


def start_of(manifests: Mapping[str, Manifest]) -> str:
    """Return in words which model an optimizer started from and is compared with."""
    return START_IN_WORDS[start_name(manifests)]


def win_rates_of(manifests: Mapping[str, Manifest]) -> list[WinRate]:
    """Return the win rates of a model over others: those over its start first, by the judge who decides first."""
    gate = manifests.get("gate")
    decides = None if gate is None else gate.metrics.get("judge")
    found = []
    for name, opponent in zip(OPPONENTS, (start_of(manifests), "the production model"), strict=True):
        rates = _metric(manifests, name, "win_rate") or {}
        for judge in sorted(rates, key=lambda judge: judge != decides):
            rate = rates[judge]
            prompts = rate["wins"] + rate["ties"] + rate["losses"]
            found.append(WinRate(opponent, judge, rate["rate"], rate["low"], rate["high"], prompts))
    return found


def _metric(manifests: Mapping[str, Manifest], stage: str, name: str) -> Any:
    return manifests[stage].metrics.get(name) if stage in manifests else None
