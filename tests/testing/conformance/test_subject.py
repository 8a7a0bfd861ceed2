from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import Any

import pytest

from pyvirtfs.fsdev.completion import Completion
from pyvirtfs.fsdev.driver import SetAttributes
from pyvirtfs.fsdev.local import LocalDriver
from pyvirtfs.testing import DelayedDriver
from pyvirtfs.testing.conformance.subject import CheckError, Subject, error_name, expect, require


@pytest.fixture
def export(faulty: Any) -> Iterator[Subject]:
    driver = faulty.factory()()
    yield Subject(driver)
    driver.close()


def test_messages_name_what_was_expected_and_seen() -> None:
    with pytest.raises(CheckError, match=r"the size: expected 3, saw 4"):
        expect(4, 3, "the size")
    with pytest.raises(CheckError, match=r"saw b'x+'… \(1000 bytes\)"):
        expect(b"x" * 1000, b"", "the content")
    with pytest.raises(CheckError, match="so it is"):
        require(0, "so it is")
    expect(1, 1, "nothing")
    require(1, "nothing")
    assert error_name(errno.ENOENT) == "ENOENT"
    assert error_name(12345) == "errno 12345"
    assert error_name(None) == "an OSError without errno"


def test_messages_name_the_changes_that_were_asked_for(export: Subject) -> None:
    node = export.make_file(b"file")
    export.setattr(node, SetAttributes(size=0, mtime_ns=0, touch_ctime=True), 0)
    assert export.last == "setattr(Node, SetAttributes(size=0, mtime_ns=0, touch_ctime=True), 0)"


def test_refuses(export: Subject) -> None:
    with export.refuses(errno.ENOENT), export.unchanged():
        export.walk(export.root, [b"missing"])
    with (
        pytest.raises(CheckError, match=r"walk\(Node, \[b'missing'\]\): expected EPERM or EIO, saw ENOENT"),
        export.refuses(errno.EPERM, errno.EIO),
    ):
        export.walk(export.root, [b"missing"])
    with pytest.raises(CheckError, match="expected ENOENT, but it succeeded"), export.refuses(errno.ENOENT):
        export.walk(export.root, [])


def test_unchanged_tells_where_something_changed(export: Subject) -> None:
    folder = export.make_folder(b"folder")
    node = export.make_file(b"file", b"one", at=folder)
    with pytest.raises(CheckError, match="/folder/file after a call that failed"), export.unchanged():
        export.fill(node, b"two")
    with pytest.raises(CheckError, match="/ after a call"), export.unchanged():
        export.make_link(b"new", b"target")


@pytest.mark.parametrize("error", [ValueError("v"), TypeError("t"), RuntimeError("r"), KeyError("k"), StopIteration()])
def test_other_exceptions_fail_the_check(export: Subject, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def statfs(_node: Any) -> None:
        raise error

    monkeypatch.setattr(export.driver, "statfs", statfs)
    with pytest.raises(CheckError, match=type(error).__name__):
        export.statfs(export.root)


def test_an_error_needs_a_number(export: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    def statfs(_node: Any) -> None:
        raise OSError("no number")

    monkeypatch.setattr(export.driver, "statfs", statfs)
    with pytest.raises(CheckError, match="has no errno"):
        export.statfs(export.root)


def test_answers_that_come_later_are_waited_for(faulty: Any) -> None:
    driver = DelayedDriver(faulty.factory()(), {"getattr", "walk"}, after=0.001)
    export = Subject(driver)
    assert export.qid(export.root) == export.root_qid
    with export.refuses(errno.ENOENT):
        export.walk(export.root, [b"missing"])
    driver.close()


def test_answers_that_do_not_come_fail_the_check(faulty: Any) -> None:
    driver = DelayedDriver(faulty.factory()(), {"getattr"})
    export = Subject(driver, 0.01)
    with pytest.raises(CheckError, match="no answer within"):
        export.getattr(export.root)
    driver.close()


def test_what_answers_at_once_must(export: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export.driver, "release", lambda _node: Completion())
    with pytest.raises(CheckError, match="release always answers at once"):
        export.release(export.root)


def test_private_names_are_no_methods(export: Subject) -> None:
    with pytest.raises(AttributeError):
        _ = export._table
    with pytest.raises(AttributeError):
        _ = export.no_such_method


def test_put_insists(export: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    node = export.make_file(b"file")
    with export.opened(node, os.O_RDWR) as file:
        write = export.driver.write
        monkeypatch.setattr(export.driver, "write", lambda file, at, data: write(file, at, data.slice(0, 1)))
        export.put(file, 0, b"content")
        assert export.get(file, 0, 10) == b"content"
        for count in (0, -1, 100):
            monkeypatch.setattr(export.driver, "write", lambda *_, count=count: count)
            with pytest.raises(CheckError, match=f"returned {count}"):
                export.put(file, 0, b"content")


@pytest.mark.parametrize("offset", [lambda _at: 0, lambda at: at % 7])
def test_content_that_goes_on_behind_its_end_is_noticed(
    export: Subject, offset: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = export.make_file(b"file", b"content")
    read = export.driver.read
    monkeypatch.setattr(export.driver, "read", lambda file, at, data: read(file, offset(at), data))
    with pytest.raises(CheckError, match="the read before it gave less"):
        export.content(node)


def test_content_without_end_is_noticed(export: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    node = export.make_file(b"file", b"content")
    monkeypatch.setattr(export.driver, "read", lambda _file, _at, data: data.nbytes)
    with pytest.raises(CheckError, match="a file has no end"):
        export.content(node)


def test_entries_without_end_are_noticed(export: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    def readdir(_file: Any, cookie: int) -> Any:
        return [((0, 0, 5), number, 8, b"%d" % number) for number in range(cookie + 1, cookie + 1000)]

    monkeypatch.setattr(export.driver, "readdir", readdir)
    with pytest.raises(CheckError, match="a listing has no end"):
        export.entries(export.root)


def test_a_snapshot_of_a_large_tree_ends(export: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one of a folder that holds itself."""
    export.make_folder(b"folder")
    entries = [((0x80, 0, 5), number, 4, b"%d" % number) for number in range(1, 1000)]
    monkeypatch.setattr(export.driver, "readdir", lambda _file, cookie: entries[cookie:])
    walk = export.driver.walk
    monkeypatch.setattr(export.driver, "walk", lambda node, names: walk(node, [b"." for _ in names]))
    assert len(export.snapshot()) == 500


def test_a_snapshot_shows_the_beginning_of_large_files(export: Subject) -> None:
    node = export.make_file(b"file", b"content")
    export.fill(node, b"end", 100 << 20)
    shown: Any = export.snapshot()[b"/file"]
    assert shown[1][5] == (100 << 20) + 3
    assert shown[2] == b"content".ljust(1 << 20, b"\0")


def test_a_listing_without_end_is_noticed(export: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = ((0, 0, 5), 1, 8, b"again")
    monkeypatch.setattr(export.driver, "readdir", lambda *_: [entry] * 64)
    with pytest.raises(CheckError, match="has no end"):
        export.entries(export.root)


def test_find_says_what_is_missing(export: Subject) -> None:
    export.make_folder(b"folder")
    with pytest.raises(OSError, match="not found") as caught:
        export.find(b"folder", b"missing")
    assert caught.value.errno == errno.ENOENT
    assert isinstance(export.driver, LocalDriver)
