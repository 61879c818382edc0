"""Cache keys: equal settings give the same key in any order, and any difference gives another key."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment_core.artifacts import key_of

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def test_key_is_the_digest_of_the_canonical_json() -> None:
    text = '{"config":{"a":1,"b":"ü"},"parents":{"data":"k"},"stage":"sft","version":2}'
    expected = hashlib.sha256(text.encode()).hexdigest()[:32]
    assert key_of(stage="sft", version=2, config={"b": "ü", "a": 1}, parents={"data": "k"}) == expected


@given(st.dictionaries(st.text(max_size=5), PLAIN, max_size=4))
def test_order_of_settings_does_not_matter(config: dict[str, Any]) -> None:
    reordered = dict(reversed(config.items()))
    assert key_of(stage="s", version=1, config=config, parents={}) == key_of(
        stage="s", version=1, config=reordered, parents={}
    )


@pytest.mark.parametrize(
    "changed",
    [{"stage": "reward"}, {"version": 2}, {"config": {"beta": 0.2}}, {"parents": {"data": "other"}}],
)
def test_any_difference_gives_another_key(changed: dict[str, Any]) -> None:
    call: dict[str, Any] = {"stage": "sft", "version": 1, "config": {"beta": 0.1}, "parents": {"data": "k"}}
    assert key_of(**call) != key_of(**{**call, **changed})


def test_nan_has_no_key() -> None:
    with pytest.raises(ValueError, match="JSON"):
        key_of(stage="s", version=1, config={"a": float("nan")}, parents={})
