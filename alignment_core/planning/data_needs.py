"""Check that ingested data have the rows that the later stages of a run need, before any of these stages runs."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignment_core.data.ingestion.counts import counted
from alignment_core.errors import DataError
from alignment_core.execution.stage import StageCall
from alignment_core.models.base.base_checks import positions_made_for
from alignment_core.models.base.identity import ModelIdentity
from alignment_core.plugin_api import Needs
from alignment_core.registry import load_registry

KINDS = {
    "preferences": "preference pairs",
    "feedback": "labelled responses",
    "demonstrations": "demonstrations",
    "prompts": "prompts",
}
"""The kinds of rows that an optimizer can need, and how messages call them."""
RANKED = ("preferences", "feedback")
"""The kinds of rows that a ranking of sampled responses adds to the data. A retrain learns only those of new votes."""
MANY = 1000
"""With this many rows, both parts of a fold have some."""

logger = logging.getLogger(__name__)


def check_data(calls: Mapping[str, StageCall], folders: Mapping[str, Path]) -> None:
    """Check the data sets of a run. Warn of rows that are longer than what the base model was made for.

    Args:
        calls: the calls of the run, by their names in the plan.
        folders: the artifacts of `Plan.data_stages`, by the same names.

    Raises:
        DataError: a later stage would find no rows of a kind that it needs.
    """
    reports = {name: _report(folder) for name, folder in folders.items()}
    needs = load_registry().optimizer(calls["optimize"].config["optimizer"]).needs()
    _check_held_out(calls["ingest"], reports["ingest"]["rows"])
    _warn_of_long_rows(calls["ingest"], max(report["fit"].get("longest", 0) for report in reports.values()))
    own = reports["ingest"]["rows"]["train"]
    if "sft" in calls and not own["demonstrations"]:
        raise _lacking("demonstrations", calls["sft"], "set `sft: null` to skip SFT")
    total: Counter[str] = Counter()
    for report in reports.values():
        total.update(report["rows"]["train"])
    for name in ("reward", "judge"):
        if name in calls and not total["preferences"] and "rank" not in calls:
            raise _lacking(KINDS["preferences"], calls[name], "set `sample` and `rank` to make them")
    learned = reports.get("votes", {"rows": {"train": total}})["rows"]["train"]
    for kind, noun in KINDS.items():
        count = (learned if kind in RANKED else total)[kind]
        if getattr(needs, kind) and not count and not ("rank" in calls and kind in RANKED):
            raise _lacking(noun, calls["optimize"], "choose an optimizer that does not need them")
    if needs.both_labels and "rank" not in calls:
        _check_labels(calls["optimize"], [report["balance"] for report in reports.values()])
    if "votes" not in calls and "rank" not in calls:
        _check_folds(calls, folders["ingest"], needs)


def _report(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return found


def _check_held_out(call: StageCall, rows: Mapping[str, Mapping[str, int]]) -> None:
    if rows["held_out"]["prompts"]:
        return
    prompts = rows["train"]["prompts"]
    raise DataError(
        "no prompt is held out, so that the trained model could not be evaluated",
        where=call.label,
        got=f"{counted(prompts, 'prompt')} in all",
        expected="at least 2 that are not near-duplicates of each other",
        do="Raise `data.held_out_fraction`" if prompts > 1 else "Add records with other prompts",
    )


def _warn_of_long_rows(call: StageCall, longest: int) -> None:
    place = call.inputs["model"]
    model = ModelIdentity(call.label, place["path"], place["revision"], weights="", tokenizer="")
    positions = positions_made_for(model)
    if positions is not None and longest > positions:
        logger.warning(
            "%s: the longest row has %d tokens, and the model was made for %d positions: lower `model.max_length`",
            call.label,
            longest,
            positions,
        )


def _lacking(noun: str, call: StageCall, otherwise: str) -> DataError:
    return DataError(
        f"the training data contain no {noun}",
        where=call.label,
        do=f"Add a source that contains {noun}, or {otherwise}",
    )


def _check_labels(call: StageCall, balances: list[Mapping[str, int]]) -> None:
    found = {name: sum(balance[name] for balance in balances) for name in ("desirable", "undesirable")}
    for name, count in found.items():
        if not count:
            raise DataError(
                f"{call.config['optimizer']['name']} needs desirable and undesirable responses to learn from",
                where=call.label,
                got=f"{found['desirable']} desirable and {found['undesirable']} undesirable in the training data",
                do=f"Add feedback with {name} responses, or choose another optimizer",
            )


def _check_folds(calls: Mapping[str, StageCall], data: Path, needs: Needs) -> None:
    """Check that neither part of the feedback is empty if the judge has a part of its own."""
    if "judge" not in calls:
        return
    from alignment_core.data.dataset.folds import rows_in_fold  # these read tables, which takes a while to import
    from alignment_core.data.dataset.splits import read_dataset

    train = read_dataset(data).train
    if max(len(train.preferences), len(train.feedback)) >= MANY:
        return
    for name in ("judge", "reward", "optimize"):
        fold = calls[name].config.get("fold") if name in calls else None
        if fold is None:
            continue
        part = rows_in_fold(train, **fold)
        kinds = ("preferences",) if name != "optimize" else tuple(kind for kind in KINDS if getattr(needs, kind))
        for kind in kinds:
            if not getattr(part, kind):
                raise DataError(
                    f"the part of the data for this stage contains no {KINDS[kind]}",
                    where=calls[name].label,
                    got=f"{counted(len(getattr(train, kind)), 'row')}, shared by prompt",
                    do="Change `evaluation.judge_fraction`, or add records with other prompts",
                )
        if name == "optimize" and needs.both_labels:
            signs = Counter("desirable" if row.number("desirable") else "undesirable" for row in part.feedback)
            _check_labels(calls[name], [signs])
