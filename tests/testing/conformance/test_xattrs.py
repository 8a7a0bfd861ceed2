from __future__ import annotations

import errno
from typing import Any

import pytest

from pyvirtfs.fsdev.local import LocalDriver

Good: Any = LocalDriver


def set_any(self: Any, node: Any, name: bytes, value: bytes, flags: int, uid: int) -> None:
    Good.setxattr(self, node, name, value, 0, uid)


def set_by_removing_first(self: Any, node: Any, name: bytes, value: bytes, flags: int, uid: int) -> None:
    if not value:
        Good.removexattr(self, node, name, uid)
    else:
        Good.setxattr(self, node, name, value, flags, uid)


def set_short(self: Any, node: Any, name: bytes, value: bytes, flags: int, uid: int) -> None:
    Good.setxattr(self, node, name[:255], value[:1000], flags, uid)


def get_or_nothing(self: Any, node: Any, name: bytes) -> Any:
    try:
        return Good.getxattr(self, node, name)
    except OSError:
        return b""


def get_of_a_name(self: Any, node: Any, name: bytes) -> Any:
    if node.name == b"two" and name == b"user.before":
        raise OSError(errno.ENODATA, "none")
    return Good.getxattr(self, node, name)


def list_of_a_name(self: Any, node: Any) -> Any:
    return b"user.after\0" if node.name == b"two" else Good.listxattr(self, node)


def list_without_end(self: Any, node: Any) -> Any:
    return Good.listxattr(self, node)[:-1]


def remove_all(self: Any, node: Any, name: bytes, uid: int) -> None:
    for known in Good.listxattr(self, node).split(b"\0")[:-1]:
        Good.removexattr(self, node, known, uid)


def remove_quietly(self: Any, node: Any, name: bytes, uid: int) -> None:
    try:
        Good.removexattr(self, node, name, uid)
    except OSError:
        return


@pytest.mark.parametrize(
    ("check", "method", "fault", "seen"),
    [
        ("create_and_replace", "setxattr", set_any, "expected ENODATA, but it succeeded"),
        ("an_empty_value_is_a_value", "setxattr", set_by_removing_first, "saw ENODATA"),
        ("large_values", "setxattr", set_short, "a value of 2000 bytes"),
        ("long_names", "setxattr", set_short, "expected ERANGE"),
        ("attributes_belong_to_the_object", "getxattr", get_or_nothing, "expected ENODATA, but it succeeded"),
        ("removing", "removexattr", remove_all, "the names after one was removed"),
        ("removing", "removexattr", remove_quietly, "expected ENODATA, but it succeeded"),
        ("attributes_are_kept", "listxattr", lambda *_: b"", "the names of the attributes"),
        ("attributes_are_kept", "listxattr", list_without_end, "does not end with NUL"),
        ("links_share_them", "listxattr", list_of_a_name, "the names at each of two hard links"),
        ("links_share_them", "getxattr", get_of_a_name, "saw ENODATA"),
    ],
)
def test_faults_are_found(faulty: Any, check: str, method: str, fault: Any, seen: str) -> None:
    assert seen in faulty.failure(f"xattrs.{check}", {method: fault})
