from __future__ import annotations

import os
from typing import Any

import pytest

from pyvirtfs.fsdev.driver import NOW, SetAttributes
from pyvirtfs.fsdev.local import LocalDriver

Good: Any = LocalDriver


def setattr_of(change: Any) -> Any:
    def setattr_(self: Any, node: Any, changes: SetAttributes, uid: int) -> None:
        Good.setattr(self, node, change(changes), uid)

    return setattr_


def size_first(self: Any, node: Any, changes: SetAttributes, uid: int) -> None:
    if changes.size is not None:
        Good.setattr(self, node, SetAttributes(size=changes.size), uid)
    Good.setattr(self, node, changes._replace(size=None), uid)


def step_by_step(self: Any, node: Any, changes: SetAttributes, uid: int) -> None:
    Good.setattr(self, node, changes._replace(size=None), uid)
    Good.setattr(self, node, SetAttributes(size=changes.size), uid)


def as_root(self: Any, node: Any, changes: SetAttributes, uid: int) -> None:
    mode = Good.getattr(self, node)[1].mode & 0o7777
    Good.setattr(self, node, changes, 0)
    if changes.mode is None:
        os.chmod(node.entry.proc_path, mode)


def microseconds(changes: SetAttributes) -> SetAttributes:
    return changes._replace(mtime_ns=changes.mtime_ns and changes.mtime_ns // 1000 * 1000)


def after_1970(changes: SetAttributes) -> SetAttributes:
    return changes._replace(
        mtime_ns=changes.mtime_ns if changes.mtime_ns in {None, NOW} else abs(changes.mtime_ns or 0)
    )


def through_the_link(self: Any, node: Any, changes: SetAttributes, uid: int) -> None:
    if node.entry.kind == 0o120000 and changes.mtime_ns is not None:
        name = os.path.join(node.parent.proc_path, node.name)
        os.utime(name, ns=(changes.mtime_ns, changes.mtime_ns))
    else:
        Good.setattr(self, node, changes, uid)


def open_as_root(self: Any, node: Any, flags: int, uid: int) -> Any:
    mode = Good.getattr(self, node)[1].mode & 0o7777
    found = Good.open(self, node, flags, 0)
    if flags & os.O_TRUNC:
        os.chmod(node.entry.proc_path, mode)
    return found


def write_as_root(self: Any, file: Any, offset: int, buffers: Any) -> Any:
    mode = os.fstat(file.fd).st_mode & 0o7777
    done = Good.write(self, file, offset, buffers)
    os.fchmod(file.fd, mode)
    return done


def statfs_of_each(self: Any, node: Any) -> Any:
    return Good.statfs(self, node)._replace(fsid=node.entry.path)


@pytest.mark.parametrize(
    ("check", "method", "fault", "seen"),
    [
        (
            "modes_are_exact",
            "setattr",
            setattr_of(lambda c: c._replace(mode=c.mode and c.mode & 0o777)),
            "the mode that was set",
        ),
        ("times_are_exact", "setattr", setattr_of(microseconds), "access and modification time"),
        ("times_are_exact", "setattr", setattr_of(after_1970), "access and modification time"),
        (
            "now",
            "setattr",
            setattr_of(lambda c: c._replace(mtime_ns=c.mtime_ns if c.mtime_ns is None else 1)),
            "NOW set the modification time",
        ),
        (
            "sizes",
            "setattr",
            setattr_of(lambda c: c._replace(size=c.size if c.size is None else max(c.size, 1))),
            "the size that was set",
        ),
        ("size_comes_last", "setattr", size_first, "the size was not set after the times"),
        ("only_files_have_sizes", "setattr", step_by_step, "after a call that failed"),
        ("truncating_clears_set_ids", "setattr", as_root, "after a user set the size"),
        ("chown_clears_set_ids", "setattr", as_root, "after a change of the owner"),
        ("truncating_clears_set_ids", "open", open_as_root, "opened the file with O_TRUNC"),
        ("writing_clears_set_ids", "write", write_as_root, "after a user wrote"),
        ("symlinks_have_attributes", "setattr", through_the_link, "the times of a symbolic link"),
        ("statfs_is_one_file_systems", "statfs", statfs_of_each, "the fsid of a file"),
    ],
)
def test_faults_are_found(faulty: Any, check: str, method: str, fault: Any, seen: str) -> None:
    assert seen in faulty.failure(f"attributes.{check}", {method: fault})
