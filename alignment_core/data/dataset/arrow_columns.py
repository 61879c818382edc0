"""Convert Python values and numpy arrays to Arrow arrays, and Arrow arrays to numpy arrays.

pyarrow's own conversions import pandas, to recognise its arrays, which takes longer than reading a small file.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, chain
from typing import Any

import numpy as np


def arrow_array(values: Any, kind: Any) -> Any:
    """Return what `pyarrow.array(values, kind)` returns.

    Args:
        values: a sequence of values, with None for null, or a numpy array.
        kind: a numeric or boolean type, `string`, or a list (of fixed size or not) of numbers or booleans.

    Raises:
        OverflowError: a number is outside the range of the type.
    """
    import pyarrow as pa
    from pyarrow import types

    missing = 0 if isinstance(values, np.ndarray) else sum(value is None for value in values)
    valid = _bits(np.array([value is not None for value in values])) if missing else None
    if types.is_fixed_size_list(kind):
        items = arrow_array(_joined(values, kind.value_type), kind.value_type)
        return pa.Array.from_buffers(kind, len(values), [valid], missing, children=[items])
    if types.is_list(kind):
        items = arrow_array(_joined(values, kind.value_type), kind.value_type)
        return pa.Array.from_buffers(kind, len(values), [valid, _offsets(values)], missing, children=[items])
    if types.is_string(kind):
        texts = [None if value is None else value.encode() for value in values]
        text = pa.py_buffer(b"".join(part for part in texts if part is not None))
        return pa.Array.from_buffers(kind, len(values), [valid, _offsets(texts), text], missing)
    numbers = values if isinstance(values, np.ndarray) else _numbers(values, kind)
    data = _bits(numbers) if types.is_boolean(kind) else pa.py_buffer(np.ascontiguousarray(numbers, _dtype(kind)))
    return pa.Array.from_buffers(kind, len(values), [valid, data], missing)


def numpy_array(array: Any) -> Any:
    """Return what `array.to_numpy(zero_copy_only=False)` returns: a numeric or boolean array, with NaN for null.

    Only floating-point arrays may have nulls.
    """
    from pyarrow import types

    valid, data = array.buffers()
    if types.is_boolean(array.type):
        return _unpacked(data, array)
    numbers = np.frombuffer(data, _dtype(array.type), len(array), array.offset * _dtype(array.type).itemsize)
    return np.where(_unpacked(valid, array), numbers, np.nan) if array.null_count else numbers


def _unpacked(bits: Any, array: Any) -> Any:
    end = array.offset + len(array)
    return np.unpackbits(np.frombuffer(bits, np.uint8), count=end, bitorder="little")[array.offset :].view(bool)


def _dtype(kind: Any) -> Any:
    """Return numpy's type of a numeric or boolean Arrow type."""
    return np.dtype(kind.to_pandas_dtype())


def _numbers(values: Sequence[Any], kind: Any) -> Any:
    """Return the numbers as an array, with 0 for null."""
    return np.array([0 if value is None else value for value in values], _dtype(kind))


def _joined(values: Sequence[Any], kind: Any) -> Any:
    """Return the items of all lists, one after the other."""
    lists = [value for value in values if value is not None]
    if any(isinstance(value, np.ndarray) for value in lists):
        return np.concatenate(lists).astype(_dtype(kind), copy=False)
    return np.fromiter(chain.from_iterable(lists), _dtype(kind), sum(map(len, lists)))


def _offsets(values: Sequence[Any]) -> Any:
    import pyarrow as pa

    lengths = (0 if value is None else len(value) for value in values)
    return pa.py_buffer(np.array([0, *accumulate(lengths)], np.int32))


def _bits(values: Any) -> Any:
    import pyarrow as pa

    return pa.py_buffer(np.packbits(values, bitorder="little"))
