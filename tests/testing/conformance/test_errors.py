from __future__ import annotations

import os
from typing import Any

import pytest

from pyvirtfs.fsdev.driver import SetAttributes
from pyvirtfs.fsdev.local import LocalDriver

Good: Any = LocalDriver


def mkdir_and_fail(self: Any, directory: Any, name: bytes, mode: int, uid: int, gid: int) -> Any:
    try:
        return Good.mkdir(self, directory, name, mode, uid, gid)
    except FileExistsError:
        os.chmod(os.path.join(directory.entry.proc_path, name), mode ^ 0o011)
        raise


def setattr_before_it_looks(self: Any, node: Any, changes: SetAttributes, uid: int) -> None:
    Good.setattr(self, node, changes._replace(size=None), uid)
    if changes.size is not None:
        Good.setattr(self, node, SetAttributes(size=changes.size), uid)


def write_before_it_looks(self: Any, file: Any, offset: int, buffers: Any) -> Any:
    os.utime(file.fd)
    return Good.write(self, file, offset, buffers)


@pytest.mark.parametrize(
    ("check", "method", "fault", "seen"),
    [
        ("failures_change_nothing", "mkdir", mkdir_and_fail, "after a call that failed"),
        ("failures_change_nothing", "setattr", setattr_before_it_looks, "after a call that failed"),
        ("failed_writes_leave_the_file", "write", write_before_it_looks, "after a call that failed"),
    ],
)
def test_faults_are_found(faulty: Any, check: str, method: str, fault: Any, seen: str) -> None:
    assert seen in faulty.failure(f"errors.{check}", {method: fault})
