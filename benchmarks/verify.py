"""Run every tier of tests, and write how many passed, which failed, what was skipped and why, and how long it took.

    python benchmarks/verify.py [--tiers default ci slow peer gpu] [--workers 2] [--out results/verify.md] [PYTEST ...]

The long tiers run folder by folder. What has run on this commit is kept in `.verify/` and not run again when the
command is started again; `--again` begins anew. Every further argument is passed to pytest.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import xml.etree.ElementTree as xml
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from report import circumstances_line

ROOT = Path(__file__).resolve().parent.parent
TIERS = {
    "default": "not (ci or slow or peer or gpu)",
    "ci": "ci and not slow",
    "slow": "slow",
    "peer": "peer",
    "gpu": "gpu",
}
WHOLE = ("default", "ci")
"""Tiers that run at once, because they are short."""
NO_TESTS, RAN = 5, (0, 1, 5)
"""Exit codes of pytest: no test was found; all ran, whether or not they passed."""


@dataclass
class Outcome:
    """What came out of some tests.

    Attributes:
        count: number of tests by outcome: passed, failed, skipped.
        failed: names of the failed tests, and folders in which pytest itself ended early.
        skipped: number of skipped tests by reason.
        seconds: how long they took.
        missing: folders that have not run.
    """

    count: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    seconds: float = 0
    missing: list[str] = field(default_factory=list)


def pieces(root: Path, tier: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the parts in which a tier runs: a name, and what pytest is given."""
    tests = root / "tests"
    if tier in WHOLE:
        yield tier, ["tests"]
        return
    for folder in sorted(path for path in tests.iterdir() if path.is_dir() and any(path.rglob("test_*.py"))):
        yield f"{tier}-{folder.name}", [f"tests/{folder.name}"]
    if files := sorted(f"tests/{path.name}" for path in tests.glob("test_*.py")):
        yield f"{tier}-files", files


def run_piece(root: Path, tier: str, paths: Sequence[str], out: Path, options: Sequence[str]) -> None:
    """Run some tests of a tier, and write pytest's own report to the file `out`."""
    partial = out.with_suffix(".partial")
    command = [sys.executable, "-m", "pytest", "-m", TIERS[tier], f"--junitxml={partial}", *options, *paths]
    code = subprocess.run(command, cwd=root).returncode
    if code == NO_TESTS:
        partial.write_text("<testsuites/>")
    elif code not in RAN or not partial.exists():
        what = f"pytest ended with {code}"
        partial.write_text(f'<testsuites><testcase name="{what}"><error/></testcase></testsuites>')
        if code < 0 or code == 2:  # interrupted: it runs again
            raise SystemExit(f"{' '.join(paths)}: {what}")
    partial.rename(out)


def read(file: Path, outcome: Outcome) -> None:
    """Add the tests in pytest's report to an outcome."""
    tree = xml.parse(file).getroot()
    outcome.seconds += sum(float(suite.get("time", 0)) for suite in tree.iter("testsuite"))
    for case in tree.iter("testcase"):
        name = f"{case.get('classname', '')}::{case.get('name')}".removeprefix("::")
        if case.find("failure") is not None or case.find("error") is not None:
            outcome.count["failed"] += 1
            outcome.failed.append(name)
        elif (skipped := case.find("skipped")) is not None:
            outcome.count["skipped"] += 1
            outcome.skipped[skipped.get("message") or "no reason given"] += 1
        else:
            outcome.count["passed"] += 1


def collect(root: Path, kept: Path) -> dict[str, Outcome]:
    """Return what came out so far, by tier."""
    found: dict[str, Outcome] = {}
    for tier in TIERS:
        found[tier] = Outcome()
        for name, _ in pieces(root, tier):
            if (kept / f"{name}.xml").exists():
                read(kept / f"{name}.xml", found[tier])
            else:
                found[tier].missing.append(name.removeprefix(f"{tier}-"))
    return found


def table(found: Mapping[str, Outcome], commit: str) -> str:
    """Return the outcome as Markdown."""
    lines = [
        "# Every tier of the tests",
        "",
        "Made by `make verify`, which is `python benchmarks/verify.py` after the linters.",
        "",
        circumstances_line("prefect", "torch", "transformers", commit=commit),
        "",
        "| tier | passed | failed | skipped | minutes | |",
        "|---|--:|--:|--:|--:|---|",
    ]
    for tier, outcome in found.items():
        numbers = [outcome.count[name] for name in ("passed", "failed", "skipped")]
        left = f"not run yet: {', '.join(outcome.missing)}" if outcome.missing else ""
        lines.append(f"| {tier} | {' | '.join(map(str, numbers))} | {outcome.seconds / 60:.1f} | {left} |")
    for title, listed in (
        ("Failed", [f"{tier}: `{name}`" for tier, outcome in found.items() for name in outcome.failed]),
        ("Skipped", [f"{tier}: {n} × {why}" for tier, o in found.items() for why, n in o.skipped.most_common()]),
    ):
        lines += ["", f"{title}: none" if not listed else f"{title}:", *([""] if listed else [])]
        lines += [f"- {line}" for line in listed]
    return "\n".join(lines) + "\n"


def verify(root: Path, tiers: Sequence[str], out: Path, options: Sequence[str], *, again: bool = False) -> bool:
    """Run what has not run on this commit, and write the table after each part. Return whether nothing failed."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True, check=True
    ).stdout.strip()
    kept = root / ".verify" / commit
    kept.mkdir(parents=True, exist_ok=True)
    for tier in tiers:
        for name, paths in pieces(root, tier):
            file = kept / f"{name}.xml"
            if again or not file.exists():
                run_piece(root, tier, paths, file, options)
                out.write_text(table(collect(root, kept), commit))
    found = collect(root, kept)
    out.write_text(table(found, commit))
    return not any(found[tier].failed for tier in tiers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiers", nargs="+", choices=TIERS, default=list(TIERS))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/verify.md")
    arguments, options = parser.parse_known_args()
    options = [f"--numprocesses={arguments.workers}", "--dist=loadfile", "--no-loadscope-reorder", *options]
    if not verify(ROOT, arguments.tiers, arguments.out, options, again=arguments.again):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
