from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvirtfs.p9 import names

if TYPE_CHECKING:
    from collections.abc import Callable


def check_name(name: bytes) -> None:
    names.check_names((b"fine", name))


CHECKS = [check_name, names.check_new_name, names.check_moved_name, names.check_removed_name]


def code(check: Callable[[bytes], None], name: bytes) -> int | None:
    """The errno that a check raises, 0 if it does not."""
    try:
        check(name)
    except OSError as error:
        return error.errno
    return 0


@given(name=st.binary(max_size=300))
@pytest.mark.parametrize("check", CHECKS)
def test_a_name_is_one_component(check: Callable[[bytes], None], name: bytes) -> None:
    bad = not name or b"/" in name or b"\0" in name
    assert (code(check, name) == errno.ENOENT) == bad
    if not bad and name not in {b".", b".."}:
        assert code(check, name) == 0


@pytest.mark.parametrize(
    ("check", "dot", "dotdot"),
    [
        (check_name, 0, 0),
        (names.check_new_name, errno.EEXIST, errno.EEXIST),
        (names.check_moved_name, errno.EISDIR, errno.EISDIR),
        (names.check_removed_name, errno.EINVAL, errno.ENOTEMPTY),
    ],
)
def test_dots(check: Callable[[bytes], None], dot: int, dotdot: int) -> None:
    assert (code(check, b"."), code(check, b"..")) == (dot, dotdot)
    assert code(check, b"...") == 0


def test_names_of_attributes() -> None:
    assert code(names.check_xattr_name, b"x" * 255) == 0
    assert code(names.check_xattr_name, b"user.a/b..") == 0
    assert code(names.check_xattr_name, b"x" * 256) == errno.ERANGE
    assert code(names.check_xattr_name, b"") == errno.ERANGE
    assert code(names.check_xattr_name, b"\0") == errno.EINVAL
