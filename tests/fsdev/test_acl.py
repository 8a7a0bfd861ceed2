from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvirtfs.fsdev.acl import translate

USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 1, 2, 4, 8, 16, 32
NO_ID = 0xFFFFFFFF


def acl(*entries: tuple[int, int, int]) -> bytes:
    return b"\2\0\0\0" + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def plus(number: int) -> int:
    return number + 1000


def plus_more(number: int) -> int:
    return number + 2000


def test_named_users_and_groups_only() -> None:
    before = acl(
        (USER_OBJ, 6, NO_ID), (USER, 4, 1), (USER, 5, 2), (GROUP_OBJ, 4, NO_ID), (GROUP, 7, 1), (MASK, 7, NO_ID),
        (OTHER, 0, NO_ID),
    )  # fmt: skip
    assert translate(before, plus, plus_more) == acl(
        (USER_OBJ, 6, NO_ID), (USER, 4, 1001), (USER, 5, 1002), (GROUP_OBJ, 4, NO_ID), (GROUP, 7, 2001),
        (MASK, 7, NO_ID), (OTHER, 0, NO_ID),
    )  # fmt: skip


@pytest.mark.parametrize(
    "value", [b"", b"\2", b"\1\0\0\0", acl((USER, 4, 1))[:-1], b"\3\0\0\0" + acl((USER, 4, 1))[4:]]
)
def test_what_is_no_list_stays_as_it_is(value: bytes) -> None:
    assert translate(value, plus, plus) == value


@given(st.binary(max_size=64))
def test_any_bytes(value: bytes) -> None:
    assert len(translate(value, plus_nothing, plus_nothing)) == len(value)
    assert translate(value, plus_nothing, plus_nothing) == value


def plus_nothing(number: int) -> int:
    return number


def test_an_id_that_cannot_be() -> None:
    def none(number: int) -> int:
        raise OSError(22, str(number))

    with pytest.raises(OSError, match="7"):
        translate(acl((USER, 4, 7)), none, plus)
    assert translate(acl((MASK, 4, 7)), none, none) == acl((MASK, 4, 7))


def test_the_kernel_takes_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    name = "system.posix_acl_access"
    mine = acl(
        (USER_OBJ, 6, NO_ID),
        (USER, 4, 1234),
        (GROUP_OBJ, 4, NO_ID),
        (GROUP, 6, 77),
        (MASK, 6, NO_ID),
        (OTHER, 0, NO_ID),
    )
    try:
        os.setxattr(path, name, mine)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        pytest.skip("no POSIX ACLs on the file system of temporary files")
    value = translate(os.getxattr(path, name), plus, plus_more)
    os.setxattr(path, name, value)
    assert struct.pack("<HHI", USER, 4, 2234) in value
    assert struct.pack("<HHI", GROUP, 6, 2077) in value
    assert os.getxattr(path, name) == value
