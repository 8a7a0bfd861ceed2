from __future__ import annotations

import errno
import os
from typing import Any

import pytest

from pyvirtfs.fsdev.local import LocalDriver

Good: Any = LocalDriver


def normal_target(self: Any, directory: Any, name: bytes, target: bytes, uid: int, gid: int) -> Any:
    return Good.symlink(self, directory, name, os.path.normpath(target), uid, gid)


def following(self: Any, node: Any, names: Any) -> Any:
    if node.entry.kind == 0o120000 and names:
        return Good.walk(self, node.parent and self.attach(b"", 0)[0], [Good.readlink(self, node), *names])
    return Good.walk(self, node, names)


def link_copies(self: Any, directory: Any, node: Any, name: bytes) -> None:
    new, file, _ = Good.create(self, directory, name, os.O_RDWR, 0o644, 0, 0)
    Good.close_file(self, file)
    Good.release(self, new)


def link_replaces(self: Any, directory: Any, node: Any, name: bytes) -> None:
    if os.path.lexists(os.path.join(directory.entry.proc_path, name)):
        Good.unlinkat(self, directory, name, folder=False)
    Good.link(self, directory, node, name)


def mknod_files(self: Any, directory: Any, name: bytes, mode: int, *rest: Any) -> Any:
    return Good.mknod(self, directory, name, mode & 0o7777 | 0o100000, *rest)


def mknod_exactly_not(self: Any, directory: Any, name: bytes, mode: int, *rest: Any) -> Any:
    return Good.mknod(self, directory, name, mode & ~0o022, *rest)


def mknod_folders(self: Any, directory: Any, name: bytes, mode: int, *rest: Any) -> Any:
    if mode & 0o170000 == 0o040000:
        return Good.mkdir(self, directory, name, mode & 0o7777, 0, 0)
    return Good.mknod(self, directory, name, mode, *rest)


def open_fifos(self: Any, node: Any, flags: int, uid: int) -> Any:
    try:
        return Good.open(self, node, flags, uid)
    except OSError as error:
        raise OSError(errno.EINVAL, "not that") from error


@pytest.mark.parametrize(
    ("check", "method", "fault", "seen"),
    [
        ("targets_are_kept", "symlink", normal_target, "the target of a symbolic link"),
        ("symlinks_are_not_followed", "walk", following, "expected ENOTDIR or ELOOP, but it succeeded"),
        ("links_are_names_of_one_object", "link", link_copies, "the attributes under both names"),
        ("link_refusals", "link", link_replaces, ""),
        ("special_files", "mknod", mknod_files, "type and mode of"),
        ("special_files", "mknod", mknod_exactly_not, "type and mode of"),
        ("mknod_refusals", "mknod", mknod_folders, "expected EPERM or EINVAL"),
        ("special_files", "open", open_fifos, "expected ENXIO, saw EINVAL"),
    ],
)
def test_faults_are_found(faulty: Any, check: str, method: str, fault: Any, seen: str) -> None:
    assert seen in faulty.failure(f"links.{check}", {method: fault})
