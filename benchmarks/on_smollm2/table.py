"""The Markdown page of all results."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import fmean, median
from typing import Any

from alignment_core.evaluation.win_rate import WinRate, win_rate
from alignment_core.texts import percent
from on_smollm2.cells import EQUAL, OPTIMIZERS, Cell, Data, without_seed
from on_smollm2.real_data import REAL
from on_smollm2.rules import RULES

NAMES = {"ours": "ours", "trl": "TRL"}
Lines = Sequence[dict[str, Any]]

ABOUT = """
Every number is over all seeds. Intervals are exact (Clopper–Pearson, 95 %) and treat the answers of several seeds as
independent. *Right answers* is the share of answers to held-out prompts that follow the rule or that the data call
right. *Wins* compares each answer with that of the untouched model to the same prompt, drawn with the same noise; a tie
is half a win, which makes the interval conservative, and p is that of the two-sided exact sign test without ties.
*Held-out pairs* is the share of correctly ordered held-out comparisons, by the implicit reward or by the reward model's
score. KL is from the untouched model, in nats per answer. CPU seconds and peak memory (of the process) are those of the
training, means over the seeds.
""".strip()


class Found:
    """The results of one optimizer of one library with the same settings, of all seeds.

    Attributes:
        cell: the cell of the first seed.
        lines: the results by seed.
    """

    def __init__(self, cell: Cell) -> None:
        self.cell = cell
        self.lines: dict[int, dict[str, Any]] = {}

    def all(self, name: str) -> list[float]:
        """Return one kind of verdict of all seeds, in the order of seeds and prompts."""
        return [value for _, line in sorted(self.lines.items()) for value in line["judged"].get(name, [])]

    def mean(self, name: str) -> float | None:
        values = [line["judged"].get(name, line.get(name)) for line in self.lines.values()]
        return None if None in values else fmean(values)


def found_in(lines: Lines) -> dict[Data, list[Found]]:
    """Return the results that did not fail by their data without the seed, in the order of the file."""
    groups: dict[Data, dict[str, Found]] = {}
    for line in lines:
        if not line["ok"]:
            continue
        cell = Cell.from_case(line["case"])
        group = groups.setdefault(replace(cell.data, seed=0), {})
        same = group.setdefault(without_seed(line["case"]), Found(cell))
        same.lines[cell.data.seed] = line
    return {data: list(group.values()) for data, group in groups.items()}


def share(verdicts: Iterable[float]) -> WinRate | None:
    """Return a share of successes (1; a half counts half) with its exact interval; None if there are none."""
    signs = [(value > 0.5) - (value < 0.5) for value in verdicts]
    return win_rate(signs) if signs else None


def wins(one: Found, other: Found) -> WinRate | None:
    """Compare two models on the same prompts and seeds; None if they have none in common."""
    found = signs(one, other)
    return win_rate(found) if found else None


def signs(one: Found, other: Found) -> list[int]:
    """Return for each prompt of each common seed whether only `one` is right (1), only `other` (-1), or neither (0)."""
    pairs: list[tuple[int, int]] = []
    for seed in sorted(one.lines.keys() & other.lines.keys()):
        ours, theirs = (found.lines[seed]["judged"].get("right") for found in (one, other))
        if ours and theirs:
            pairs += zip(ours, theirs, strict=True)
    return [a - b for a, b in pairs]


def ratio(one: Found, other: Found, name: str) -> float:
    """Return the median of `one` / `other` over the seeds that both have, at least one."""
    both = one.lines.keys() & other.lines.keys()
    return float(median(one.lines[seed][name] / other.lines[seed][name] for seed in both))


def page(lines: Lines) -> str:
    """Return the page: one section per data, with a table of all models and one against TRL."""
    text = ["# Optimizers on SmolLM2-135M-Instruct", "", ABOUT, ""]
    groups = found_in(lines)
    if overall := all_tasks(groups):
        text += ["## Ours against TRL, all tasks with a rule", "", *overall, ""]
    for data, group in groups.items():
        text += section(data, group)
    failed = [line for line in lines if not line["ok"]]
    for line in failed:
        cell = Cell.from_case(line["case"])
        text += [f"Failed: {NAMES[cell.side]} {cell.optimizer}, seed {cell.data.seed}: {line['error']}", ""]
    return "\n".join(text).rstrip() + "\n" + footer(lines)


def footer(lines: Lines) -> str:
    if not lines:
        return ""
    dates = sorted(line["date"][:10] for line in lines if "date" in line)
    used = ", ".join(f"{name} {number}" for name, number in lines[-1].get("versions", {}).items())
    trl = sorted({line["trl"] for line in lines if "trl" in line})
    return (
        f"\n{dates[0]} to {dates[-1]}; {lines[-1]['device']}, {os.cpu_count()} cores, {platform.machine()}, with other "
        f"load on the machine; Python {platform.python_version()}, {used}, TRL {' and '.join(trl) or 'none'}.\n"
        "Made by `python benchmarks/smollm2.py`; every line with its settings is in `results.jsonl`.\n"
    )


def section(data: Data, group: Sequence[Found]) -> list[str]:
    if data.task in REAL:
        head = f"## {REAL[data.task][0]}: {data.pairs} pairs"
    else:
        head = (
            f"## {RULES[data.task][0]}: {data.pairs} comparisons, {percent(data.noise)} of them reversed, "
            f"answers of at most {data.new_tokens} tokens, {data.split} prompts"
        )
    order = list(OPTIMIZERS)
    group = sorted(group, key=lambda found: (order.index(found.cell.optimizer), found.cell.side))
    text = [head, "", *table(group), ""]
    if data.split == "test" and (compared := against_trl(group)):
        text += ["Ours against TRL, on the same prompts and seeds:", "", *compared, ""]
    return text


def table(group: Sequence[Found]) -> list[str]:
    columns = (
        "model", "seeds", "settings", "right answers, %", "by seed", "wins over the untouched, %",
        "held-out pairs, %", "KL", "tokens", "CPU, s", "peak, MiB",
    )  # fmt: skip
    text = [f"| {' | '.join(columns)} |", "|" + " --- |" * len(columns)]
    untouched = next((found for found in group if found.cell.optimizer == "untouched"), None)
    for found in group:
        cell = found.cell
        name = "untouched" if found is untouched else f"{cell.optimizer}, {NAMES[cell.side]}"
        won = None if untouched is None or found is untouched else wins(found, untouched)
        cells = (
            name,
            ", ".join(map(str, sorted(found.lines))),
            shown_settings(cell),
            rate_percent(share(found.all("right"))),
            by_seed(found),
            "–" if won is None else f"{rate_percent(won)}, {p_value(won)}",
            rate_percent(share(found.all("ordered"))),
            number(found.mean("kl"), 2),
            number(found.mean("length"), 1),
            number(found.mean("cpu"), 0),
            number(found.mean("peak"), 0, 2**20),
        )
        text.append(f"| {' | '.join(cells)} |")
    return text


def peers(group: Sequence[Found]) -> Iterator[tuple[Found, Found]]:
    """Yield what both libraries trained with the same settings: ours, TRL's."""
    for ours in (found for found in group if found.cell.side == "ours"):
        same = (ours.cell.optimizer, ours.cell.all_settings)
        for theirs in (found for found in group if found.cell.side == "trl"):
            if (theirs.cell.optimizer, theirs.cell.all_settings) == same and ours.lines.keys() & theirs.lines.keys():
                yield ours, theirs


def all_tasks(groups: Mapping[Data, Sequence[Found]]) -> list[str]:
    """Return the table that adds up the prompts of all data; empty if no optimizer has more than one."""
    found: dict[str, list[list[int]]] = {}
    for data, group in groups.items():
        for ours, theirs in peers(group) if data.split == "test" else ():
            if compared := signs(ours, theirs):
                found.setdefault(ours.cell.optimizer, []).append(compared)
    rows = [
        (name, str(len(parts)), win_rate([sign for part in parts for sign in part]))
        for name, parts in found.items()
        if len(parts) > 1
    ]
    text = [
        f"| {name} | {tasks} | {rate_percent(won)} | {won.wins} / {won.ties} / {won.losses}, {p_value(won)} |"
        for name, tasks, won in rows
    ]
    columns = ("optimizer", "data sets", "wins of ours, %", "won / tied / lost")
    return [f"| {' | '.join(columns)} |", "|" + " --- |" * len(columns), *text] if text else []


def against_trl(group: Sequence[Found]) -> list[str]:
    rows = []
    for ours, theirs in peers(group):
        won, faster = wins(ours, theirs), ratio(theirs, ours, "cpu")
        memory, added = ratio(ours, theirs, "peak"), ratio(ours, theirs, "peak_above_model")
        verdict = "–" if won is None else f"{won.wins} / {won.ties} / {won.losses}, {p_value(won)}"
        cells = (
            ours.cell.optimizer, str(len(ours.lines.keys() & theirs.lines.keys())), rate_percent(won), verdict,
            f"{faster:.1f} ×", percent(memory), percent(added),
        )  # fmt: skip
        rows.append(f"| {' | '.join(cells)} |")
    columns = (
        "optimizer", "seeds", "wins of ours, %", "won / tied / lost", "speedup, CPU time",
        "peak memory, ours / TRL", "above the loaded models, ours / TRL",
    )  # fmt: skip
    return [f"| {' | '.join(columns)} |", "|" + " --- |" * len(columns), *rows] if rows else []


def shown_settings(cell: Cell) -> str:
    usual = OPTIMIZERS[cell.optimizer]
    names = [*usual, *(name for name, value in cell.all_settings.items() if (usual | EQUAL).get(name) != value)]
    names = list(dict.fromkeys(names))
    return ", ".join(f"{name} {cell.all_settings[name]:g}" for name in names) or "–"


def by_seed(found: Found) -> str:
    """Return how many answers are right, for each seed."""
    counts = [line["judged"].get("right", []) for _, line in sorted(found.lines.items())]
    return ", ".join(f"{sum(count)}/{len(count)}" for count in counts if count) or "–"


def rate_percent(rate: WinRate | None) -> str:
    return "–" if rate is None else f"{100 * rate.rate:.1f} ({100 * rate.low:.1f}–{100 * rate.high:.1f})"


def p_value(rate: WinRate) -> str:
    return "p < 0.001" if rate.p_value < 0.001 else f"p = {rate.p_value:.3f}"


def number(value: float | None, digits: int, unit: float = 1) -> str:
    return "–" if value is None else f"{value / unit:.{digits}f}"
