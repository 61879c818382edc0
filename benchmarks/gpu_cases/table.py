"""The results as a Markdown page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from alignment_core.texts import percent
from gpu_cases.goals import Lines, effective_speed, goals, prediction_error, used_bytes

Line = Mapping[str, Any]
NONE = "–"


def table(lines: Iterable[Line]) -> str:
    """Return a page with a section per device."""
    devices: dict[str, dict[str, Line]] = {}
    for line in lines:
        devices.setdefault(line["device"], {})[line["case"]] = line
    return "\n".join(row for device, found in devices.items() for row in _page(device, found)) + "\n"


def _page(device: str, lines: Lines) -> Iterator[str]:
    newest = max(lines.values(), key=lambda line: line.get("date", ""))
    versions = ", ".join(f"{name} {version}" for name, version in newest["versions"].items())
    yield from (f"# Measured on {device}", "", f"{newest.get('date', '')[:10]}; {versions}.", "")
    if device == "cpu":
        yield "Tiny models on a CPU: this shows that the cases run. No number says anything about a card."
    else:
        yield f"Speed is that of {device}, also where a memory cap stands for a smaller card. Memory is in GiB."
    yield from ("", *_rows("Goals", ["goal", "measured", ""], _goals(lines)))
    header = ["case", "", "differences from the CPU, or between runs"]
    yield from _rows("Correctness", header, _correctness(lines))
    header = ["case", "tokens/s", "of the roofline", "token budget", "recomputing", "predicted", "allocated", "error"]
    yield from _rows("Memory and speed", [*header, "reserved and context"], _training(lines))
    yield from _rows("PPO, seconds per rollout", ["case", "learning", "scoring", "sampling"], _split(lines))
    header = ["case", "launches", "host syncs", "reads by the host", "attention"]
    yield from _rows("Kernels, per optimizer step or sampled token", header, _kernels(lines))
    header = ["case", "tokens/s", "ours", "ours / theirs", "allocated", "ours", "settings"]
    yield from _rows("Other libraries", header, _peers(lines))
    rest = [line for line in lines.values() if line["ok"] is not True]
    yield from _rows("Failed and skipped", ["case", ""], [[line["case"], _reason(line)] for line in rest])


def _rows(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    rows = list(rows)
    if not rows:
        return
    yield from (f"## {title}", "", f"| {' | '.join(header)} |", f"|{' --- |' * len(header)}")
    yield from (f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows)
    yield ""


def _goals(lines: Lines) -> Iterator[list[str]]:
    for goal in goals(lines):
        yield [goal.target, _short(goal.measured), goal.verdict]


def _correctness(lines: Lines) -> Iterator[list[str]]:
    for name, line in lines.items():
        if name.startswith(("train/", "peer/", "kernels/")):
            continue
        details = line["details"]
        by_precision = {k: v for k, v in details.items() if isinstance(v, dict) and "gradient" in v}
        shown = [
            f"{precision}: loss {found['loss']:.1e}, gradient {found['gradient']:.1e}, split {found['split']:.1e}"
            for precision, found in by_precision.items()
        ]
        others = [f"{key} {value}" for key, value in details.items() if key not in by_precision]
        yield [name, "yes" if line["ok"] else "NO", _short("; ".join(shown + others))]


def _training(lines: Lines) -> Iterator[list[str]]:
    for name, line in _of(lines, "train/"):
        settings, error = line["settings"], prediction_error(line)
        budget = str(settings["token_budget"])
        if settings["token_budget_at_end"] != settings["token_budget"]:
            budget += f", then {settings['token_budget_at_end']}"
        yield [
            name,
            _number(line["tokens_per_s"], ".0f"),
            _share(line["details"]["roofline_share"]),
            budget,
            _which_layers(int(settings["gradient_checkpointing"])),
            _gib(line["predicted"]),
            _gib(line["peak_allocated"]),
            NONE if error is None else percent(error, 1, sign="+"),
            _gib(used_bytes(line)),
        ]


def _which_layers(every: int) -> str:
    return {0: "no", 1: "yes"}.get(every, f"1 of {every} layers")


def _split(lines: Lines) -> Iterator[list[str]]:
    for name, line in _of(lines, "train/ppo/"):
        split = line["details"]["split"]
        yield [name, *(_number(split[part], ".2f") for part in ("learning", "scoring", "sampling"))]


def _kernels(lines: Lines) -> Iterator[list[str]]:
    for name, line in _of(lines, "kernels/"):
        found = line["details"]
        ran = ", ".join(f"{kernel} {count:g}" for kernel, count in found["attention"].items())
        numbers = [_number(found[key], ".4g") for key in ("launches", "syncs", "reads_by_host")]
        yield [name, *numbers, _short(ran)]


def _peers(lines: Lines) -> Iterator[list[str]]:
    for name, line in _of(lines, "peer/"):
        _, _, rest = name.split("/", 2)
        ours = lines.get(f"train/{rest}")
        theirs_speed, our_speed = effective_speed(line), None if ours is None else effective_speed(ours)
        ratio = our_speed / theirs_speed if our_speed and theirs_speed else None
        yield [
            name,
            _number(theirs_speed, ".0f"),
            _number(our_speed, ".0f"),
            _number(ratio, ".2f"),
            _gib(line["peak_allocated"]),
            _gib(None if ours is None else ours["peak_allocated"]),
            ", ".join(f"{key} {value}" for key, value in line["settings"].items()),
        ]


def _of(lines: Lines, prefix: str) -> Iterator[tuple[str, Line]]:
    """Yield the successful cases whose name begins like this."""
    yield from ((name, line) for name, line in lines.items() if name.startswith(prefix) and line["ok"])


def _reason(line: Line) -> str:
    return _short(line["error"] or str(line["details"]))


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 300 else f"{text[:300]}…"


def _number(value: float | None, form: str) -> str:
    return NONE if value is None else format(value, form)


def _share(value: float | None) -> str:
    return NONE if value is None else percent(value)


def _gib(size: int | None) -> str:
    return NONE if size is None else f"{size / 2**30:.2f}"
