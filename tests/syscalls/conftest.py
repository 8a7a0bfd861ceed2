from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(params=["disk", "tmpfs"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """An empty folder on a disk file system and on tmpfs."""
    if request.param == "disk":
        yield tmp_path
        return
    there = Path(tempfile.mkdtemp(dir="/dev/shm"))
    yield there
    shutil.rmtree(there)


@pytest.fixture
def opened() -> Iterator[Callable[..., int]]:
    """Opens paths, as os.open does, and closes the descriptors at the end."""
    descriptors: list[int] = []

    def open_path(path: Path | str, flags: int = os.O_PATH | os.O_NOFOLLOW) -> int:
        descriptors.append(os.open(path, flags))
        return descriptors[-1]

    yield open_path
    for descriptor in descriptors:
        os.close(descriptor)


@pytest.fixture
def capabilities() -> set[str]:
    """Those of capabilities(7) that tests here depend on and this process has."""
    with open("/proc/self/status", encoding="ascii") as status:
        effective = next(int(line.split()[1], 16) for line in status if line.startswith("CapEff"))
    numbers = {"CAP_CHOWN": 0, "CAP_SYS_ADMIN": 21}
    return {name for name, number in numbers.items() if effective >> number & 1}


@pytest.fixture(autouse=True)
def no_descriptor_is_left() -> Iterator[None]:
    before = sorted(os.listdir("/proc/self/fd"))
    yield
    assert sorted(os.listdir("/proc/self/fd")) == before
