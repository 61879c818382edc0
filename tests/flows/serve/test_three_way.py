"""The three-way comparison of settings: the last declared, the declared and those on the server."""

from __future__ import annotations

from typing import Any

import pytest

from alignment_flows.serve.deployments.three_way import UNKNOWN, merge

DPO = {"name": "dpo", "beta": 0.1}
KTO = {"name": "kto", "weight": 2}


@pytest.mark.parametrize(
    ("last", "declared", "there", "merged", "kept"),
    [
        ({"a": 1}, {"a": 1}, {"a": 1}, {"a": 1}, []),
        ({"a": 1}, {"a": 2}, {"a": 1}, {"a": 2}, []),
        ({"a": 1}, {"a": 1}, {"a": 3}, {"a": 3}, ["a"]),
        ({"a": 1}, {"a": 2}, {"a": 3}, {"a": 3}, ["a"]),
        ({"a": 1}, {"a": 3}, {"a": 3}, {"a": 3}, []),
        ({"a": 1}, {"a": 1, "b": 2}, {"a": 3}, {"a": 3, "b": 2}, ["a"]),
        ({"a": 1, "b": 2}, {"a": 1}, {"a": 1, "b": 2}, {"a": 1}, []),
        ({"a": 1, "b": 2}, {"a": 1, "b": 2}, {"a": 1}, {"a": 1}, ["b"]),
        ({"a": 1}, {"a": 1}, {"a": 1, "b": 2}, {"a": 1, "b": 2}, ["b"]),
        ({"a": {"x": 1, "y": 1}}, {"a": {"x": 2, "y": 1}}, {"a": {"x": 1, "y": 3}}, {"a": {"x": 2, "y": 3}}, ["a.y"]),
        ({"a": [1]}, {"a": [2]}, {"a": [1, 3]}, {"a": [1, 3]}, ["a"]),
        ({"a": DPO}, {"a": DPO | {"beta": 0.2}}, {"a": KTO}, {"a": KTO}, ["a"]),
        ({"a": DPO}, {"a": KTO}, {"a": DPO | {"beta": 0.2}}, {"a": DPO | {"beta": 0.2}}, ["a"]),
        ({"a": DPO}, {"a": KTO}, {"a": DPO}, {"a": KTO}, []),
        ({"schedule": {"cron": "x"}}, {"schedule": {"cron": "y"}}, {"schedule": {"interval": 1}},
         {"schedule": {"interval": 1}}, ["schedule"]),
        (UNKNOWN, {"a": 1, "b": 1}, {"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 2, "c": 3}, ["b", "c"]),
        (UNKNOWN, {"a": {"x": 1, "y": 1}}, {"a": {"x": 2}}, {"a": {"x": 2}}, ["a.x", "a.y"]),
    ],
)  # fmt: skip
def test_what_a_person_changed_is_kept(last: Any, declared: Any, there: Any, merged: Any, kept: list[str]) -> None:
    found, differences = merge(last, declared, there)
    assert found == merged
    assert [".".join(each.path) for each in differences] == kept


def test_named_settings_are_replaced() -> None:
    last, declared, there = {"a": {"x": 1, "y": 1}}, {"a": {"x": 2, "y": 2}}, {"a": {"x": 3, "y": 3}}
    found, differences = merge(last, declared, there, frozenset({("a", "x")}))
    assert found == {"a": {"x": 2, "y": 3}}
    assert [each.kept() for each in differences] == ["a.y 3, set on the server; declared is 2"]
    assert differences[0].replaced() == "a.y 3, set on the server, by 2"


def test_missing_values_are_described() -> None:
    removed = merge({"a": 1}, {"a": 1}, {})[1][0]
    assert removed.kept() == "a nothing, set on the server; declared is 1"
