from __future__ import annotations

import errno
import os
from typing import Any

import pytest

from pyvirtfs.fsdev.local import LocalDriver

Good: Any = LocalDriver


def mkdir_with_umask(self: Any, directory: Any, name: bytes, mode: int, uid: int, gid: int) -> Any:
    return Good.mkdir(self, directory, name, mode & 0o755, uid, gid)


def mkdir_of_anyone(self: Any, directory: Any, name: bytes, mode: int, uid: int, gid: int) -> Any:
    return Good.mkdir(self, directory, name, mode, 0, 0)


def mkdir_twice(self: Any, directory: Any, name: bytes, mode: int, uid: int, gid: int) -> Any:
    try:
        return Good.mkdir(self, directory, name, mode, uid, gid)
    except FileExistsError:
        return Good.walk(self, directory, [name]).qids[0]


def walk_in_lower_case(self: Any, node: Any, names: Any) -> Any:
    return Good.walk(self, node, [name.lower() for name in names])


def walk_by_path(self: Any, node: Any, names: Any) -> Any:
    # ".." takes the name before it away
    simple: list[bytes] = []
    for name in names:
        if name == b".." and simple:
            simple.pop()
        else:
            simple.append(name)
    return Good.walk(self, node, simple)


def unlinkat_of_anything(self: Any, directory: Any, name: bytes, *, folder: bool) -> None:
    node = Good.walk(self, directory, [name]).node
    Good.remove(self, node)
    Good.release(self, node)


def unlinkat_as_posix_has_it(self: Any, directory: Any, name: bytes, *, folder: bool) -> None:
    try:
        Good.unlinkat(self, directory, name, folder=folder)
    except IsADirectoryError as error:
        raise PermissionError(errno.EPERM, "a folder") from error


def unlinkat_of_what_is_open(self: Any, directory: Any, name: bytes, *, folder: bool) -> None:
    if self._files:
        raise OSError(errno.EBUSY, "in use")
    Good.unlinkat(self, directory, name, folder=folder)


def remove_by_name(self: Any, node: Any) -> None:
    os.unlink(node.name, dir_fd=node.parent.fd)


def remove_the_root(self: Any, node: Any) -> None:
    if node.parent is not None:
        Good.remove(self, node)


def create_long_names(self: Any, directory: Any, name: bytes, *rest: Any) -> Any:
    return Good.create(self, directory, name[:255], *rest)


def getattr_of_an_old_name(self: Any, node: Any) -> Any:
    qid, attributes = Good.getattr(self, node)
    return qid, attributes._replace(nlink=max(attributes.nlink, 1))


@pytest.mark.parametrize(
    ("check", "method", "fault", "seen"),
    [
        ("folders_have_exact_modes", "mkdir", mkdir_with_umask, "the mode of a folder"),
        ("mkdir_refusals", "mkdir", mkdir_twice, "expected EEXIST, but it succeeded"),
        ("odd_names", "walk", walk_in_lower_case, "cannot be found"),
        ("folders_in_folders", "walk", walk_by_path, "the paths on the way up"),
        ("unlinkat_tells_folders_from_files", "unlinkat", unlinkat_of_anything, "expected EISDIR, saw ENOTEMPTY"),
        ("unlinkat_tells_folders_from_files", "unlinkat", unlinkat_as_posix_has_it, "expected EISDIR, saw EPERM"),
        ("unlinked_files_stay_usable", "unlinkat", unlinkat_of_what_is_open, "saw EBUSY"),
        ("remove_of_what_is_not_there", "remove", remove_by_name, "expected ESTALE"),
        ("the_root_cannot_be_removed", "remove", remove_the_root, "expected an OSError, but it succeeded"),
        ("longest_names", "create", create_long_names, "expected ENAMETOOLONG"),
        ("folders_count_links", "getattr", getattr_of_an_old_name, "expected 0, saw 1"),
        ("a_name_that_was_removed_is_free", "getattr", getattr_of_an_old_name, "expected 0, saw 1"),
    ],
)
def test_faults_are_found(faulty: Any, check: str, method: str, fault: Any, seen: str) -> None:
    assert seen in faulty.failure(f"names.{check}", {method: fault})
