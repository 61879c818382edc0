"""Record formats and listeners that each violate one rule of the contract."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from alignment_core.plugin_api import (
    BadRow,
    Dropped,
    Listener,
    Prompt,
    Quarantined,
    RawRow,
    Reading,
    RecordFormat,
    SourceConfig,
    StageInfo,
)

ROWS = (
    {"asked_of_us": "Why?", "flavour": "tea"},
    {"asked_of_us": "How?", "flavour": "tea"},
    {"asked_of_us": "", "flavour": ""},
)


class SoundFormat(RecordFormat):
    """A table of questions."""

    name: ClassVar[str] = "sound-format"
    shape: ClassVar[str] = "{asked_of_us, flavour}"
    example: ClassVar = ROWS

    def matches(self, row: Mapping[str, Any]) -> bool:
        return "asked_of_us" in row

    def read(self, row: Mapping[str, Any], origin: str, source: SourceConfig) -> Iterable[Reading | Dropped]:
        if not row["asked_of_us"]:
            return [Dropped("blank", origin)]
        if not isinstance(row["asked_of_us"], str):
            raise BadRow("no_text", "expected text")
        return [Reading(self.record(str(row["asked_of_us"]), row, origin))]

    def record(self, text: str, row: Mapping[str, Any], origin: str) -> Prompt:
        return Prompt(({"role": "user", "content": f"{row['flavour']}: {text}"},), origin=origin)


class NoRows(SoundFormat):
    """Has no example."""

    example: ClassVar = ()


class TakesAll(SoundFormat):
    """Matches the rows of other formats."""

    def matches(self, row: Mapping[str, Any]) -> bool:
        return True


class FailsOnOthers(SoundFormat):
    """Reads a column in `matches` that other rows do not have."""

    def matches(self, row: Mapping[str, Any]) -> bool:
        return bool(row["asked_of_us"] is not None)


class MatchesVaguely(SoundFormat):
    """Does not say yes or no."""

    def matches(self, row: Mapping[str, Any]) -> Any:
        return row.get("asked_of_us")


class MatchesTooLittle(SoundFormat):
    """Does not recognize one of its rows."""

    def matches(self, row: Mapping[str, Any]) -> bool:
        return bool(row.get("asked_of_us"))


class Quarantines(SoundFormat):
    """Cannot read its own example."""

    def read(self, row: Mapping[str, Any], origin: str, source: SourceConfig) -> Iterable[Reading | Dropped]:
        raise BadRow("always", "never reads")


class ReadsNothing(SoundFormat):
    """Drops everything."""

    def read(self, row: Mapping[str, Any], origin: str, source: SourceConfig) -> Iterable[Reading | Dropped]:
        return [Dropped("blank", origin), Dropped(str(row["flavour"]), origin)]


class LeavesColumns(SoundFormat):
    """Does not read a column."""

    def record(self, text: str, row: Mapping[str, Any], origin: str) -> Prompt:
        return Prompt(({"role": "user", "content": text},), origin=origin)


class NoOrigin(SoundFormat):
    """Does not say where a record comes from."""

    def record(self, text: str, row: Mapping[str, Any], origin: str) -> Prompt:
        return super().record(text, row, "")


class Random(SoundFormat):
    """Reads something else each time."""

    def record(self, text: str, row: Mapping[str, Any], origin: str) -> Prompt:
        return super().record(f"{text} {random.random()}", row, origin)


class ChangesRows(SoundFormat):
    """Changes the rows that it is given."""

    def records(self, rows: Iterable[RawRow], source: SourceConfig) -> Iterator[Any]:
        for row in rows:
            yield from self.outcomes(row, source)
            if isinstance(row.value, dict):
                row.value["flavour"] = "changed"


class EndsOnBadRows(SoundFormat):
    """Joins rows, and fails on a row that lacks a column."""

    def records(self, rows: Iterable[RawRow], source: SourceConfig) -> Iterator[Any]:
        for row in rows:
            if row.value["flavour"]:
                yield from self.outcomes(row, source)


class EndsWell(SoundFormat):
    """Joins rows, and quarantines those that it cannot use."""

    def records(self, rows: Iterable[RawRow], source: SourceConfig) -> Iterator[Any]:
        for row in rows:
            if isinstance(row.value, dict) and "flavour" in row.value:
                yield from self.outcomes(row, source)
            else:
                yield Quarantined(row.origin, "no_flavour", "expected a flavour", row.value)


class OddContent(SoundFormat):
    """Makes a turn whose content is no text."""

    def record(self, text: str, row: Mapping[str, Any], origin: str) -> Prompt:
        return Prompt(({"role": "user", "content": {"text": text, "flavour": row["flavour"]}},), origin=origin)


FORMAT_FAULTS: dict[type[RecordFormat], tuple[str, str]] = {
    NoRows: ("recognizes its rows", "there are no rows to read. Give the class some: `example: ClassVar = "),
    TakesAll: ("leaves other rows", "`matches` is true for a row of another format: {}. Ask for columns that only"),
    FailsOnOthers: ("leaves other rows", "a row of another format, {}: it raised KeyError: 'asked_of_us'"),
    MatchesVaguely: ("recognizes its rows", "`matches` returns str, not bool, for row 1 of the example"),
    MatchesTooLittle: ("recognizes its rows", "false for row 3 of the example, with the columns asked_of_us, flavour"),
    Quarantines: ("reads its rows", "rows.jsonl:1 is quarantined: always, never reads"),
    ReadsNothing: ("reads its rows", "no record comes of the example"),
    NoOrigin: ("reads its rows", "the origin of a record is not that of a row. got ''"),
    Random: ("repeats", "the same rows give other records when they are read again"),
    ChangesRows: ("repeats", "it changes the rows that it reads"),
    EndsOnBadRows: ("bad rows", "(faulty_kinds), rows.jsonl:1: it raised KeyError: 'flavour'"),
    OddContent: (
        "reads its rows",
        "rows.jsonl:1 is quarantined: not_text, the content of a turn in `messages` is dict",
    ),
}
"""The check that must find each fault, and part of its message."""


class SoundListener(Listener):
    """Writes a line per event."""

    example: ClassVar[Mapping[str, Any]] = {"events": "events.txt"}
    name: Literal["sound-listener"] = "sound-listener"
    events: Path
    """File to append to."""

    def write(self, text: str) -> None:
        with self.events.open("a") as file:
            file.write(f"{text}\n")

    def started(self, stage: StageInfo) -> None:
        self.write(stage.stage)

    def step(self, stage: StageInfo, done: int, total: int, metrics: Mapping[str, float]) -> None:
        self.write(f"{done} {total} {len(metrics)}")

    def finished(self, stage: StageInfo, metrics: Mapping[str, Any], *, cached: bool) -> None:
        self.write(f"{len(metrics)} {cached}")

    def failed(self, stage: StageInfo, error: str) -> None:
        self.write(error)


class NoPath(SoundListener):
    """Cannot be checked by its name alone."""

    example: ClassVar[Mapping[str, Any]] = {}


class WantsTheLoss(SoundListener):
    """Expects metrics in the first report."""

    def step(self, stage: StageInfo, done: int, total: int, metrics: Mapping[str, float]) -> None:
        self.write(str(metrics["loss"]))


class WantsAStart(SoundListener):
    """Expects that every stage that is finished was started."""

    def finished(self, stage: StageInfo, metrics: Mapping[str, Any], *, cached: bool) -> None:
        self.write(str(1 / (not cached)))


class FailsOnFailures(SoundListener):
    """Expects one line."""

    def failed(self, stage: StageInfo, error: str) -> None:
        (line,) = error.splitlines()
        self.write(line)


class SharesAFile(SoundListener):
    """Opens a file that only one stage may have open."""

    opened: ClassVar[set[str]] = set()

    def started(self, stage: StageInfo) -> None:
        assert not self.opened, "another stage is running"
        self.opened.add(stage.stage)

    def finished(self, stage: StageInfo, metrics: Mapping[str, Any], *, cached: bool) -> None:
        self.opened.discard(stage.stage)

    def failed(self, stage: StageInfo, error: str) -> None:
        self.opened.discard(stage.stage)


class Slow(SoundListener):
    """Waits for a service in every step."""

    def step(self, stage: StageInfo, done: int, total: int, metrics: Mapping[str, float]) -> None:
        time.sleep(0.11)


LISTENER_FAULTS: dict[type[Listener], tuple[str, str]] = {
    NoPath: ("defaults", "no default for events. Give it one, or a value in `example: ClassVar = {…}`, with which"),
    WantsTheLoss: (
        "a stage is built",
        "`step` of the listener `sound-listener` (faulty_kinds): it raised KeyError",
    ),
    WantsAStart: (
        "a stage is found",
        "`finished` of the listener `sound-listener` (faulty_kinds): it raised ZeroDiv",
    ),
    FailsOnFailures: ("a stage fails", "it raised ValueError: too many values to unpack"),
    SharesAFile: ("two stages at a time", "it raised AssertionError: another stage is running"),
    Slow: ("fast", " s, and training waits for it"),
}
