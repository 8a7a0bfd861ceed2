from __future__ import annotations

import os
from typing import Any

import pytest

from pyvirtfs.fsdev.driver import SetAttributes
from pyvirtfs.fsdev.local import LocalDriver

Good: Any = LocalDriver


def keeping_times(method: str, *which: int) -> Any:
    """A method after which objects have their old modification times: those of the arguments at these places."""

    def fault(self: Any, *arguments: Any, **options: Any) -> Any:
        paths = [arguments[index].entry.proc_path for index in which]
        before = [os.stat(path) for path in paths]
        answer = getattr(Good, method)(self, *arguments, **options)
        for path, status in zip(paths, before, strict=True):
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        return answer

    return fault


def keeping_change_time(method: str, place: int, when: Any = lambda *_: True) -> Any:
    """A method after which getattr tells the change time that an object had before it."""

    def fault(self: Any, *arguments: Any, **options: Any) -> Any:
        node = arguments[place]
        attributes = Good.getattr(self, node)[1]
        answer = getattr(Good, method)(self, *arguments, **options)
        if when(*arguments):
            self.kept = {node.entry: (attributes.ctime_sec, attributes.ctime_nsec)}
        return answer

    return fault


def getattr_of_kept(self: Any, node: Any) -> Any:
    qid, attributes = Good.getattr(self, node)
    seconds, nanoseconds = getattr(self, "kept", {}).get(node.entry, attributes[11:13])
    return qid, attributes._replace(ctime_sec=seconds, ctime_nsec=nanoseconds)


def write_without_time(self: Any, file: Any, offset: int, buffers: Any) -> Any:
    status = os.fstat(file.fd)
    done = Good.write(self, file, offset, buffers)
    os.utime(file.fd, ns=(status.st_atime_ns, status.st_mtime_ns))
    return done


def open_without_time(self: Any, node: Any, flags: int, uid: int) -> Any:
    status = os.stat(node.entry.proc_path)
    opened = Good.open(self, node, flags, uid)
    if flags & os.O_TRUNC:
        os.utime(node.entry.proc_path, ns=(status.st_atime_ns, status.st_mtime_ns))
    return opened


def setattr_without_time(self: Any, node: Any, changes: SetAttributes, uid: int) -> None:
    status = os.stat(node.entry.proc_path)
    Good.setattr(self, node, changes, uid)
    if changes.size is not None:
        os.utime(node.entry.proc_path, ns=(status.st_atime_ns, status.st_mtime_ns))


def setattr_of(change: Any) -> Any:
    def setattr_(self: Any, node: Any, changes: SetAttributes, uid: int) -> None:
        Good.setattr(self, node, change(changes), uid)

    return setattr_


def link_and_touch(self: Any, directory: Any, node: Any, name: bytes) -> None:
    Good.link(self, directory, node, name)
    os.utime(node.entry.proc_path)


def unlinkat_and_touch(self: Any, directory: Any, name: bytes, *, folder: bool) -> None:
    path = os.path.join(directory.entry.proc_path, name)
    fd = os.open(path, os.O_RDONLY)
    Good.unlinkat(self, directory, name, folder=folder)
    os.utime(fd)
    os.close(fd)


def renameat_and_touch(self: Any, old: Any, old_name: bytes, new: Any, new_name: bytes) -> None:
    Good.renameat(self, old, old_name, new, new_name)
    os.utime(os.path.join(new.entry.proc_path, new_name))


def getattr_of_one_time(self: Any, node: Any) -> Any:
    """The change time is the modification time, as in a driver that keeps only one."""
    qid, attributes = Good.getattr(self, node)
    return qid, attributes._replace(ctime_sec=attributes.mtime_sec, ctime_nsec=attributes.mtime_nsec)


UNMODIFIED = "the modification time is 1 ns after"


@pytest.mark.parametrize(
    ("check", "method", "fault", "seen"),
    [
        ("writing_changes_times", "write", write_without_time, UNMODIFIED),
        ("truncating_changes_times", "setattr", setattr_without_time, UNMODIFIED),
        ("truncating_changes_times", "open", open_without_time, UNMODIFIED),
        ("folders_change_with_their_entries", "create", keeping_times("create", 0), UNMODIFIED),
        ("folders_change_with_their_entries", "mkdir", keeping_times("mkdir", 0), UNMODIFIED),
        ("folders_change_with_their_entries", "unlinkat", keeping_times("unlinkat", 0), UNMODIFIED),
        ("folders_change_with_symlinks", "symlink", keeping_times("symlink", 0), UNMODIFIED),
        ("folders_change_with_special_files", "mknod", keeping_times("mknod", 0), UNMODIFIED),
        ("links_change_times", "link", keeping_times("link", 0), UNMODIFIED),
        ("links_change_times", "unlinkat", keeping_times("unlinkat", 0), UNMODIFIED),
        ("links_change_times", "unlinkat", unlinkat_and_touch, "whose content is the same"),
        ("renaming_changes_folders", "renameat", keeping_times("renameat", 0), UNMODIFIED),
        ("renaming_changes_folders", "renameat", keeping_times("renameat", 2), UNMODIFIED),
        ("renaming_changes_folders", "renameat", renameat_and_touch, "whose content is the same"),
        ("renaming_a_node_changes_folders", "rename", keeping_times("rename", 1), UNMODIFIED),
        ("change_time", "setattr", setattr_of(lambda c: c._replace(touch_ctime=False)), "touch_ctime=True"),
        ("change_time", "setattr", setattr_of(lambda c: c._replace(touch_ctime=True)), "after a call that failed"),
        ("setting_times_is_a_change", "getattr", getattr_of_one_time, "the change time is 5000000000 ns after"),
    ],
)
def test_faults_are_found(faulty: Any, check: str, method: str, fault: Any, seen: str) -> None:
    assert seen in faulty.failure(f"times.{check}", {method: fault})


@pytest.mark.parametrize(
    ("check", "method", "fault"),
    [
        ("links_change_times", "link", keeping_change_time("link", 1)),
        ("truncating_changes_times", "setattr", keeping_change_time("setattr", 0, lambda _n, c, _u: c.size == 100)),
        ("change_time", "setattr", keeping_change_time("setattr", 0)),
        ("setting_times_is_a_change", "setattr", keeping_change_time("setattr", 0)),
    ],
)
def test_change_times_that_stand_still_are_found(faulty: Any, check: str, method: str, fault: Any) -> None:
    text = faulty.failure(f"times.{check}", {method: fault, "getattr": getattr_of_kept})
    assert "and was" in text
