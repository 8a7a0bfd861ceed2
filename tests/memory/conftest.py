from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(params=["tmp_path", "/dev/shm"])
def fd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[int]:
    """An open, empty file on a disk file system and on tmpfs."""
    folder = tmp_path if request.param == "tmp_path" else Path(request.param)
    descriptor = os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o600)
    yield descriptor
    os.close(descriptor)
