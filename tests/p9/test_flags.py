"""Open flags, bit by bit."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvirtfs.p9 import constants as c
from pyvirtfs.p9.flags import flag_names, from_host, to_host

SAME = [
    (c.DOTL_WRONLY, os.O_WRONLY),
    (c.DOTL_RDWR, os.O_RDWR),
    (c.DOTL_EXCL, os.O_EXCL),
    (c.DOTL_TRUNC, os.O_TRUNC),
    (c.DOTL_APPEND, os.O_APPEND),
    (c.DOTL_NONBLOCK, os.O_NONBLOCK),
    (c.DOTL_DSYNC, os.O_DSYNC),
    (c.DOTL_SYNC | c.DOTL_DSYNC, os.O_SYNC),
    (c.DOTL_DIRECTORY, os.O_DIRECTORY),
    (c.DOTL_NOFOLLOW, os.O_NOFOLLOW),
    (c.DOTL_NOATIME, os.O_NOATIME),
]
STRIPPED = [
    c.DOTL_CREATE,
    c.DOTL_NOCTTY,
    c.DOTL_FASYNC,
    c.DOTL_DIRECT,
    c.DOTL_LARGEFILE,
    c.DOTL_CLOEXEC,
    0o10000000,  # O_PATH
    0o20000000,  # O_TMPFILE
    1 << 31,
]


@pytest.mark.parametrize(("dotl", "host"), SAME)
def test_bits_that_mean_the_same(dotl: int, host: int) -> None:
    assert to_host(dotl) == host
    assert from_host(host) == dotl


@pytest.mark.parametrize("bit", STRIPPED)
def test_bits_that_never_reach_the_host(bit: int) -> None:
    assert to_host(bit) == os.O_RDONLY
    assert to_host(bit | c.DOTL_RDWR) == os.O_RDWR


def test_the_second_bit_of_o_sync_alone_is_o_sync() -> None:
    assert to_host(c.DOTL_SYNC) == os.O_SYNC


@pytest.mark.parametrize(
    ("host", "dotl"),
    [
        (os.O_CREAT, c.DOTL_CREATE),
        (os.O_NOCTTY, c.DOTL_NOCTTY),
        (os.O_DIRECT, c.DOTL_DIRECT),
        (os.O_CLOEXEC, c.DOTL_CLOEXEC),
        (os.O_ASYNC, c.DOTL_FASYNC),
        (os.O_PATH, 0),
    ],
)
def test_bits_that_only_clients_send(host: int, dotl: int) -> None:
    assert from_host(host) == dotl


@given(st.integers(0, 2**32 - 1))
def test_any_flags_are_subsets_of_what_is_allowed(flags: int) -> None:
    allowed = os.O_ACCMODE
    for _, host in SAME:
        allowed |= host
    assert to_host(flags) & ~allowed == 0
    assert to_host(from_host(to_host(flags))) == to_host(flags)


@given(st.integers(0, 2**32 - 1))
def test_names_are_complete(flags: int) -> None:
    names = flag_names(flags).split("|")
    assert names[0] in {"O_RDONLY", "O_WRONLY", "O_RDWR", "O_NOACCESS"}
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        (0, "O_RDONLY"),
        (0o3, "O_NOACCESS"),
        (0o100001, "O_WRONLY|O_LARGEFILE"),
        (0o4010002, "O_RDWR|O_SYNC"),
        (0o10002, "O_RDWR|O_DSYNC"),
        (0o4000002, "O_RDWR|0o4000000"),
        (0o10000000, "O_RDONLY|0o10000000"),
    ],
)
def test_names(flags: int, names: str) -> None:
    assert flag_names(flags) == names
