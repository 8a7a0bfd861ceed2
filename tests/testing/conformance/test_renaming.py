from __future__ import annotations

import errno
import os
from typing import Any

import pytest

from pyvirtfs.fsdev.local import LocalDriver

Good: Any = LocalDriver


def renameat_unless_there(self: Any, old: Any, old_name: bytes, new: Any, new_name: bytes) -> None:
    try:
        Good.release(self, Good.walk(self, new, [new_name]).node)
    except OSError:
        Good.renameat(self, old, old_name, new, new_name)
    else:
        raise OSError(errno.EEXIST, "there is one")


def renameat_behind_its_back(self: Any, old: Any, old_name: bytes, new: Any, new_name: bytes) -> None:
    os.rename(old_name, new_name, src_dir_fd=old.entry.fd, dst_dir_fd=new.entry.fd)


def renameat_copies(self: Any, old: Any, old_name: bytes, new: Any, new_name: bytes) -> None:
    node, file, _ = Good.create(self, new, new_name, os.O_RDWR, 0o644, 0, 0)
    Good.close_file(self, file)
    Good.release(self, node)
    Good.unlinkat(self, old, old_name, folder=False)


def renameat_of_what_is_not_there(self: Any, old: Any, old_name: bytes, new: Any, new_name: bytes) -> None:
    try:
        Good.renameat(self, old, old_name, new, new_name)
    except FileNotFoundError:
        return


def renameat_of_one_link(self: Any, old: Any, old_name: bytes, new: Any, new_name: bytes) -> None:
    Good.renameat(self, old, old_name, new, new_name)
    if old_name != new_name and os.path.lexists(os.path.join(old.entry.proc_path, old_name)):
        os.unlink(old_name, dir_fd=old.entry.fd)


def place_where_it_was(self: Any, node: Any) -> Any:
    """Where a node was when somebody asked first."""
    if not hasattr(self, "places"):
        self.places = {}
    folder, name = Good.place(self, node)
    return folder, self.places.setdefault(node, name)


def place_elsewhere(self: Any, node: Any) -> Any:
    folder, name = Good.place(self, node)
    Good.release(self, folder)
    return Good.attach(self, b"", 0)[0], name


def place_of_the_object(self: Any, node: Any) -> Any:
    """One place for each object, however many names it has."""
    if not hasattr(self, "places"):
        self.places = {}
    folder, name = Good.place(self, node)
    return folder, self.places.setdefault(node.entry, name)


def rename_by_name(self: Any, node: Any, directory: Any, name: bytes) -> None:
    Good._rename(self, node.parent, node.name, directory.entry, name)


def rename_any(self: Any, node: Any, directory: Any, name: bytes) -> None:
    if node.parent is not None:
        Good.rename(self, node, directory, name)


@pytest.mark.parametrize(
    ("check", "method", "fault", "seen"),
    [
        ("files_are_replaced", "renameat", renameat_unless_there, "expected to succeed, saw EEXIST"),
        ("a_renamed_node_knows_its_place", "renameat", renameat_behind_its_back, "saw ESTALE"),
        ("files_move", "renameat", renameat_copies, "the path of the object at its new place"),
        ("rename_refusals", "renameat", renameat_of_what_is_not_there, "expected ENOENT, but it succeeded"),
        ("rename_onto_another_link", "renameat", renameat_of_one_link, "the names of the object"),
        ("rename_of_what_is_not_there", "rename", rename_by_name, "expected ESTALE, saw ENOENT"),
        ("place_tells_where_it_is_now", "place", place_where_it_was, "the name that place tells of b'renamed'"),
        ("place_tells_where_it_is_now", "place", place_elsewhere, "the path of the folder that place tells"),
        ("place_tells_the_name_that_was_walked_to", "place", place_of_the_object, "the name that place tells"),
        ("rename_refuses_the_root", "rename", rename_any, "expected an OSError, but it succeeded"),
    ],
)
def test_faults_are_found(faulty: Any, check: str, method: str, fault: Any, seen: str) -> None:
    assert seen in faulty.failure(f"renaming.{check}", {method: fault})
