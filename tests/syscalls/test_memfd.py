from __future__ import annotations

import mmap
import os

import pytest

from pyvirtfs.syscalls import SEAL_GROW, SEAL_SEAL, SEAL_SHRINK, SEAL_WRITE, add_seals, get_seals, memfd_create


def test_sealed_by_default() -> None:
    fd = memfd_create("guest-ram", 1 << 20)
    try:
        assert os.fstat(fd).st_size == 1 << 20
        assert not os.get_inheritable(fd)
        assert os.readlink(f"/proc/self/fd/{fd}").startswith("/memfd:guest-ram")
        assert get_seals(fd) == SEAL_SHRINK | SEAL_GROW | SEAL_SEAL
        for size in (0, 1 << 21):
            with pytest.raises(PermissionError):
                os.ftruncate(fd, size)
        with pytest.raises(PermissionError):
            add_seals(fd, SEAL_WRITE)
    finally:
        os.close(fd)


def test_seals_one_by_one() -> None:
    fd = memfd_create("x", 4096, seals=0)
    try:
        assert get_seals(fd) == 0
        mapping = mmap.mmap(fd, 4096)
        with pytest.raises(OSError, match="busy"):
            add_seals(fd, SEAL_WRITE)
        mapping.close()
        add_seals(fd, SEAL_WRITE)
        assert get_seals(fd) == SEAL_WRITE
        with pytest.raises(PermissionError):
            os.write(fd, b"x")
    finally:
        os.close(fd)


def test_failure_leaks_no_descriptor() -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        memfd_create("x", -1)
    with pytest.raises(OSError, match="Invalid argument"):
        memfd_create("x", 4096, seals=1 << 20)


def test_no_memfd(tmp_path: object) -> None:
    fd = os.open(str(tmp_path), os.O_TMPFILE | os.O_RDWR)
    try:
        with pytest.raises(OSError, match="Invalid argument"):
            get_seals(fd)
    finally:
        os.close(fd)
