from __future__ import annotations

import os

import pytest

from pyvirtfs.guest.stat import decode_device, stat_result, statvfs_result
from pyvirtfs.p9.results import Attributes, FileSystem, Qid


def test_stat_result() -> None:
    fields = dict.fromkeys(Attributes._fields, 0)
    fields |= {"mode": 0o100644, "uid": 1, "gid": 2, "nlink": 3, "rdev": 0x103, "size": 4, "blksize": 5, "blocks": 6}
    fields |= {"atime_sec": -1, "atime_nsec": 500_000_000, "mtime_sec": 2**33, "mtime_nsec": 999_999_999}
    result = stat_result(Attributes(**{**fields, "qid": Qid(0, 1, 77)}))  # type: ignore[arg-type]  # one is no int
    assert tuple(result)[:7] == (0o100644, 77, 0, 3, 1, 2, 4)
    assert (result.st_atime_ns, result.st_mtime_ns, result.st_ctime_ns) == (
        -500_000_000,
        2**33 * 10**9 + 999_999_999,
        0,
    )
    assert (result.st_atime, result[7]) == (-0.5, -1)
    assert (result.st_blksize, result.st_blocks, result.st_rdev) == (5, 6, os.makedev(1, 3))


@pytest.mark.parametrize(("major", "minor"), [(0, 0), (1, 3), (259, 70000), (4095, 255), (8, 0xFFFFF)])
def test_device_numbers(major: int, minor: int) -> None:
    encoded = (minor & 0xFF) | major << 8 | (minor & ~0xFF) << 12
    device = decode_device(encoded)
    assert (os.major(device), os.minor(device)) == (major, minor)


def test_statvfs_result() -> None:
    result = statvfs_result(FileSystem(0x01021994, 4096, 100, 50, 40, 30, 20, 7, 255))
    assert (result.f_bsize, result.f_frsize, result.f_blocks, result.f_bfree, result.f_bavail) == (
        4096,
        4096,
        100,
        50,
        40,
    )
    assert (result.f_files, result.f_ffree, result.f_namemax) == (30, 20, 255)
