from __future__ import annotations

import errno
import os
from typing import Any

import pytest

from pyvirtfs.fsdev.local import LocalDriver
from pyvirtfs.testing import ConformanceError, DelayedDriver, check_driver, driver_checks


def test_a_good_driver_passes(faulty: Any) -> None:
    report = check_driver(faulty.factory())
    assert not report.failed
    assert set(report.skipped) >= {"tree.readonly_exports_refuse_changes"}
    assert len(report.passed) > 140
    assert [result.name for result in report.results] == [check.name for check in driver_checks()]


def test_the_report_is_a_table(faulty: Any) -> None:
    report = check_driver(faulty.factory(), skip={"links.devices": "my driver has none"})
    lines = str(report).splitlines()
    assert len(lines) == len(report.results) + 1
    assert lines[-1] == f"{len(report.passed)} passed, {len(report.skipped)} skipped, 0 failed"
    (line,) = (line for line in lines if "links.devices" in line)
    assert line.split(maxsplit=2) == ["skipped", "links.devices", "my driver has none"]


def test_all_failures_are_listed(faulty: Any) -> None:
    def readlink(*_: Any) -> bytes:
        return b"nonsense"

    with pytest.raises(ConformanceError) as caught:
        check_driver(faulty.factory({"readlink": readlink}))
    assert set(caught.value.report.failed) >= {"links.targets_are_kept", "tree.readlink_is_for_links"}
    text = str(caught.value)
    assert text.startswith(f"{len(caught.value.report.failed)} of {len(driver_checks())} checks failed:")
    for name, reason in caught.value.report.failed.items():
        assert name in text
        assert reason in text
    assert "expected b'target', saw b'nonsense'" in text


def test_a_driver_that_cannot_be_made_fails_the_checks() -> None:
    def factory() -> LocalDriver:
        raise RuntimeError("out of order")

    with pytest.raises(ConformanceError, match="RuntimeError: out of order"):
        check_driver(factory)


def test_unknown_names_are_refused(faulty: Any) -> None:
    with pytest.raises(ValueError, match=r"there are no checks no\.such"):
        check_driver(faulty.factory(), skip={"no.such": "x"})


def test_a_driver_that_answers_later_passes(faulty: Any) -> None:
    methods = {
        "attach",
        "walk",
        "getattr",
        "open",
        "close_file",
        "read",
        "readdir",
        "statfs",
        "create",
        "write",
        "lock",
    }
    make = faulty.factory()
    report = check_driver(lambda: DelayedDriver(make(), methods, after=0.0), skip=SLOW)
    assert not report.failed


SLOW = {
    check.name: "many calls, a thread for each"
    for check in driver_checks()
    if check.name.startswith(("handles.", "listings.", "qids.")) or "many" in check.name
}


def test_a_driver_that_never_answers_fails_in_time(faulty: Any) -> None:
    make = faulty.factory()
    with pytest.raises(ConformanceError, match=r"no answer within 0\.01 s"):
        check_driver(lambda: DelayedDriver(make(), {"getattr"}), patience=0.01)


def test_a_driver_that_offers_nothing_is_skipped(faulty: Any) -> None:
    def no(*_: Any, **__: Any) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    names = ("create", "mkdir", "symlink", "mknod", "setattr")
    report = check_driver(faulty.factory(dict.fromkeys(names, no)))
    assert all(name.startswith(("tree.", "handles.")) for name in report.passed)
    assert set(report.skipped.values()) >= {"create is not offered", "mkdir is not offered"}
