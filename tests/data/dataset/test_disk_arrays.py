"""Arrays in files: a full disk is an error when they are made, and not the end of the process when they are written."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest
from small_disk import small_disk

from alignment_core.data.dataset.disk_arrays import disk_array


def test_array_is_zero_and_leaves_no_name(tmp_path: Path) -> None:
    made = disk_array(tmp_path, (3, 5), np.int16)
    assert (made.shape, made.dtype, made.any()) == ((3, 5), np.int16, False)
    made[2, 4] = 7
    assert made.sum() == 7
    assert disk_array(tmp_path, 0, np.uint64).shape == (0,)
    assert list(tmp_path.iterdir()) == []


def test_full_disk_is_an_error(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1) as disk:
        with pytest.raises(OSError, match="No space left on device") as caught:
            disk_array(disk, 2**21, np.uint8)
        assert caught.value.errno == errno.ENOSPC
        disk_array(disk, 2**19, np.uint8)[:] = 1
