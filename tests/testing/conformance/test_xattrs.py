from __future__ import annotations

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
    ],
)
def test_faults_are_found(faulty: Any, check: str, method: str, fault: Any, seen: str) -> None:
    assert seen in faulty.failure(f"xattrs.{check}", {method: fault})
