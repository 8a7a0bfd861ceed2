from __future__ import annotations

import os
import stat

import pytest

from pyvirtfs.p9 import constants as c

TYPES = {name: value for name, value in vars(c).items() if name[0] in "TR" and "_" not in name}


def test_types_come_in_pairs() -> None:
    requests = {name[1:]: number for name, number in TYPES.items() if name[0] == "T"}
    replies = {name[1:]: number for name, number in TYPES.items() if name[0] == "R"}
    assert len(requests) == 32
    assert {name: number - 1 for name, number in replies.items() if name not in {"LERROR", "ERROR"}} == requests
    assert len(set(TYPES.values())) == len(TYPES)
    assert all(number % 2 == 0 for number in requests.values())


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="on the wire the flags are those of x86")
@pytest.mark.parametrize(
    ("flag", "number"),
    [
        ("O_CREAT", c.DOTL_CREATE), ("O_EXCL", c.DOTL_EXCL), ("O_NOCTTY", c.DOTL_NOCTTY), ("O_TRUNC", c.DOTL_TRUNC),
        ("O_APPEND", c.DOTL_APPEND), ("O_NONBLOCK", c.DOTL_NONBLOCK), ("O_DSYNC", c.DOTL_DSYNC),
        ("O_DIRECT", c.DOTL_DIRECT), ("O_DIRECTORY", c.DOTL_DIRECTORY), ("O_NOFOLLOW", c.DOTL_NOFOLLOW),
        ("O_NOATIME", c.DOTL_NOATIME), ("O_CLOEXEC", c.DOTL_CLOEXEC), ("O_SYNC", c.DOTL_SYNC | c.DOTL_DSYNC),
        ("O_RDONLY", c.DOTL_RDONLY), ("O_WRONLY", c.DOTL_WRONLY), ("O_RDWR", c.DOTL_RDWR),
        ("O_ACCMODE", c.DOTL_ACCMODE),
    ],
)  # fmt: skip
def test_open_flags(flag: str, number: int) -> None:
    assert getattr(os, flag) == number


def test_types_of_entries_are_the_bits_of_modes() -> None:
    modes = {"FIFO": stat.S_IFIFO, "CHR": stat.S_IFCHR, "DIR": stat.S_IFDIR, "BLK": stat.S_IFBLK, "REG": stat.S_IFREG,
             "LNK": stat.S_IFLNK, "SOCK": stat.S_IFSOCK}  # fmt: skip
    assert {name: getattr(c, f"DT_{name}") << 12 for name in modes} == modes


def test_masks_are_the_sum_of_their_bits() -> None:
    bits = {name: value for name, value in vars(c).items() if name.startswith("GETATTR_")}
    basic, everything = bits.pop("GETATTR_BASIC"), bits.pop("GETATTR_ALL")
    assert sum(bits.values()) == everything
    assert basic | c.GETATTR_BTIME | c.GETATTR_GEN | c.GETATTR_DATA_VERSION == everything
    assert (c.XATTR_CREATE, c.XATTR_REPLACE) == (os.XATTR_CREATE, os.XATTR_REPLACE)
