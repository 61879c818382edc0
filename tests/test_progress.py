"""The count of work that a stage without optimizer steps reports."""

from __future__ import annotations

from alignment_core.progress import Silent, Work


class Steps(Silent):
    """Progress that keeps what was reported."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def step(self, done: int, total: int, metrics: object = None) -> None:
        self.seen.append((done, total))


def test_work_is_counted_when_it_is_finished_and_each_unit_is_told_once() -> None:
    steps = Steps()
    work = Work(steps, 10)
    work.begin(3)  # nothing is finished yet
    work.begin(2)  # the three are
    for part in (0.4, 0.9, 1.2, 1.9):  # the two are unfinished while others are counted by shares
        work.at(part)
    work.add(4)  # two and four more
    assert steps.seen == [(3, 10), (4, 10), (9, 10)]
    work.end()
    assert steps.seen[3:] == [(10, 10)]


def test_work_that_is_repeated_stays_within_the_total() -> None:
    steps = Steps()
    work = Work(steps, 0)
    work.expect(4)
    for _ in range(3):
        work.begin(3)
    work.end()
    work.end()
    assert steps.seen == [(3, 4), (4, 4)]
