from __future__ import annotations

import errno
import os
import unittest
from typing import Any

import pytest

from pyvirtfs.fsdev.local import LocalDriver
from pyvirtfs.testing.conformance import driver_checks
from pyvirtfs.testing.conformance.check import missing
from pyvirtfs.testing.conformance.subject import CheckError, Subject


def unsupported(*_: Any, **__: Any) -> None:
    raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


def test_names_are_unique_and_every_check_says_what_it_is_for() -> None:
    checks = driver_checks()
    assert len({check.name for check in checks}) == len(checks) > 180
    for check in checks:
        assert check.promise.endswith(".")
        assert str(check) == check.name


@pytest.mark.parametrize(
    ("method", "need"),
    [
        ("mkdir", "mkdir"), ("symlink", "symlink"), ("mknod", "mknod"), ("link", "link"), ("rename", "rename"),
        ("renameat", "renameat"), ("unlinkat", "unlinkat"), ("remove", "remove"), ("setattr", "chmod"),
        ("setattr", "utimes"), ("setattr", "truncate"), ("setattr", "owners"), ("setxattr", "xattrs"),
        ("getxattr", "acls"), ("lock", "locks"), ("place", "place"), ("create", "create"), ("write", "write"),
        ("create", "write"),
    ],
)  # fmt: skip
def test_what_is_not_offered_is_skipped_with_the_reason(faulty: Any, method: str, need: str) -> None:
    assert missing((need,), faulty.factory({method: unsupported}), 1.0) == f"{need} is not offered"


def test_who_does_not_know_places_does_not_offer_them(faulty: Any) -> None:
    assert missing(("place",), faulty.factory(), 1.0) == ""
    assert missing(("place",), faulty.factory({"place": lambda *_: (None, b"")}), 1.0) == "place is not offered"


def test_a_skipped_check_says_why(faulty: Any) -> None:
    (check,) = (check for check in driver_checks() if check.name == "links.targets_are_kept")
    with pytest.raises(unittest.SkipTest, match="symlink is not offered"):
        check(faulty.factory({"symlink": unsupported}))


def test_other_errors_of_a_probe_are_no_excuse(faulty: Any) -> None:
    def mkdir(*_: Any) -> None:
        raise OSError(errno.EIO, "broken")

    assert missing(("mkdir",), faulty.factory({"mkdir": mkdir}), 1.0) == ""
    assert "EIO" in faulty.failure("listings.empty_folders", {"mkdir": mkdir})


def test_an_unprivileged_process_skips_devices(faulty: Any) -> None:
    def mknod(*_: Any) -> None:
        raise OSError(errno.EPERM, "no")

    assert "privileges" in missing(("devices",), faulty.factory({"mknod": mknod}), 1.0)
    assert missing(("mknod",), faulty.factory({"mknod": mknod}), 1.0) == ""


def test_readonly_exports_are_told_apart(faulty: Any) -> None:
    make = faulty.factory()
    assert missing(("readonly",), make, 1.0) == "the export is not read-only"
    readonly = faulty.factory({"__init__": lambda self, path, _: LocalDriver.__init__(self, path, readonly=True)})
    assert missing(("readonly",), readonly, 1.0) == ""
    assert missing(("mkdir",), readonly, 1.0) == "the export is read-only"


def test_a_leaked_descriptor_is_found(faulty: Any) -> None:
    leaked: list[int] = []

    class Leaky:
        def close(self) -> None:
            leaked.append(os.open("/", os.O_RDONLY))
            LocalDriver.close(self)  # type: ignore[arg-type]

    try:
        assert "leaked" in faulty.failure("tree.walk_no_names", {"close": Leaky.close})
    finally:
        for fd in leaked:
            os.close(fd)


def test_close_must_be_idempotent(faulty: Any) -> None:
    closed: set[int] = set()

    def close(self: Any) -> None:
        LocalDriver.close(self)
        if id(self) in closed:
            raise CheckError("closed twice")
        closed.add(id(self))

    assert faulty.failure("tree.walk_no_names", {"close": close}) == "closed twice"


def test_answers_of_the_wrong_shape_fail_the_check(faulty: Any) -> None:
    text = faulty.failure("tree.walk_no_names", {"walk": lambda *_: None})
    assert text.startswith("walk(Node, []): its answer is not what the contract says")
    text = faulty.failure("tree.walk_no_names", {"attach": lambda *_: (1, 2, 3)})
    assert text.startswith("attach: its answer")


def test_an_unexpected_error_names_the_call(faulty: Any) -> None:
    def statfs(*_: Any) -> None:
        raise OSError(errno.EIO, "broken")

    text = faulty.failure("tree.statfs_is_well_formed", {"statfs": statfs})
    assert text == "statfs(Node): expected to succeed, saw EIO"


def test_every_check_can_fail(faulty: Any) -> None:
    """Not one of them passes on a driver all of whose methods are broken in one of a few ways."""

    def broken(*_: Any, **__: Any) -> None:
        raise OSError(errno.EIO, "broken")

    def leaky_walk(self: Any, node: Any, names: Any) -> Any:
        self.leaked = [*getattr(self, "leaked", []), os.dup(0)]
        return LocalDriver.walk(self, node, names)

    def close(self: Any) -> None:
        LocalDriver.close(self)
        for fd in getattr(self, "leaked", []):
            os.close(fd)
        self.leaked = []

    names = ("walk", "open", "getattr", "readdir", "create", "mkdir", "symlink", "mknod", "statfs", "lock", "readlink")
    drivers: list[Any] = [{name: broken} for name in (*names, "listxattr", "getxattr", "setxattr", "setattr")]
    drivers.append({"walk": leaky_walk, "close": close})
    drivers += [{"attach": broken}]
    for check in driver_checks():
        if check.name == "tree.readonly_exports_refuse_changes":
            continue  # test_tree has it
        outcomes = (faulty.outcome(check.name, faulty.factory(faults)) for faults in drivers)
        if missing(check.needs, faulty.factory(), 1.0):
            continue
        assert "failed" in outcomes, check.name


def test_the_subject_is_attached(faulty: Any) -> None:
    driver = faulty.factory()()
    export = Subject(driver)
    assert export.root_qid.type == 0x80
    driver.close()
