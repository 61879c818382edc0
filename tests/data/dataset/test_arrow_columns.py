"""Conversions to and from Arrow give the same arrays, and the same files, as pyarrow's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment_core.data.dataset.arrow_columns import arrow_array, numpy_array

VALUES: dict[Any, st.SearchStrategy[Any]] = {
    pa.string(): st.text(),
    pa.bool_(): st.booleans(),
    pa.int8(): st.integers(-128, 127),
    pa.uint64(): st.integers(0, 2**64 - 1),
    pa.float64(): st.floats(),
    pa.list_(pa.int32()): st.lists(st.integers(-(2**31), 2**31 - 1), max_size=5),
    pa.list_(pa.bool_()): st.lists(st.booleans(), max_size=5).map(tuple),
    pa.list_(pa.uint32(), 3): st.lists(st.integers(0, 2**32 - 1), min_size=3, max_size=3),
}
FIXED = pa.list_(pa.uint32(), 3)


def as_file(array: Any) -> bytes:
    batch = pa.record_batch([array], names=["column"])
    target = pa.BufferOutputStream()
    with pa.ipc.new_file(target, batch.schema) as writer:
        writer.write_batch(batch)
    return bytes(target.getvalue().to_pybytes())


@pytest.mark.parametrize("kind", VALUES, ids=str)
@given(data=st.data())
def test_arrays_and_files_are_those_of_pyarrow(kind: Any, data: st.DataObject) -> None:
    one = VALUES[kind] if kind == FIXED else VALUES[kind] | st.none()
    values = data.draw(st.lists(one, max_size=40))
    ours = arrow_array(values, kind)
    ours.validate(full=True)
    assert as_file(ours) == as_file(pa.array(values, kind))


def test_numpy_arrays_are_converted_and_lists_of_them_joined() -> None:
    numbers = np.arange(5, dtype=np.int64)[::2]
    assert arrow_array(numbers, pa.uint32()).to_pylist() == [0, 2, 4]
    rows = [np.array([1, 2, 3], np.uint32), [0, 0, 0], np.array([4, 5, 6], np.uint32)]
    assert arrow_array(rows, FIXED).to_pylist() == [[1, 2, 3], [0, 0, 0], [4, 5, 6]]


def test_numbers_outside_the_range_are_refused() -> None:
    with pytest.raises(OverflowError):
        arrow_array([128], pa.int8())


@pytest.mark.parametrize("kind", [pa.bool_(), pa.int8(), pa.uint64(), pa.float64()], ids=str)
@given(data=st.data())
def test_numpy_arrays_are_those_of_pyarrow(kind: Any, data: st.DataObject) -> None:
    one = VALUES[kind] | st.none() if kind == pa.float64() else VALUES[kind]
    values = data.draw(st.lists(one, max_size=40))
    array = pa.array(values, kind)[data.draw(st.integers(0, len(values))) :]
    ours, theirs = numpy_array(array), array.to_numpy(zero_copy_only=False)
    assert ours.dtype == theirs.dtype
    np.testing.assert_array_equal(ours, theirs)
