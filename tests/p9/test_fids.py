from __future__ import annotations

import errno
from typing import Any, TypeAlias

import pytest

from pyvirtfs.fsdev.completion import Completion
from pyvirtfs.fsdev.driver import LockHolder
from pyvirtfs.p9.constants import NOFID
from pyvirtfs.p9.fids import FILE, XATTR_READ, Fid, FidTable

Export: TypeAlias = Any


@pytest.fixture
def fids(export: Export) -> FidTable:
    return FidTable(export, 3, 100)


def add(fids: FidTable, export: Export, number: int) -> Fid:
    node, _ = export.attach(b"", 0)
    fids.table[number] = fid = Fid(number, node, 0, True)
    return fid


def test_unknown_numbers(fids: FidTable) -> None:
    for code in (errno.ENOENT, errno.EINVAL):
        with pytest.raises(OSError, match="unknown") as raised:
            fids.find(1, code)
        assert raised.value.errno == code


def test_new_numbers(fids: FidTable, export: Export) -> None:
    add(fids, export, 1)
    reserved = fids.reserve(2)
    for number in (1, 2, NOFID):
        with pytest.raises(OSError, match="in use"):
            fids.check_new(number)
    fids.check_new(3)
    fids.reserve(3)
    with pytest.raises(OSError, match="at most 3"):
        fids.check_new(4)
    reserved.discard(2)
    fids.check_new(2)


def test_what_a_fid_holds_is_given_back_when_its_last_user_ends(fids: FidTable, export: Export) -> None:
    fid = add(fids, export, 1)
    fid.kind, (fid.file, _) = FILE, export.open(fid.node, 0, 0)
    fids.use(fid)
    fids.use(fid)
    assert fids.remove(fid) is None
    assert len(fids) == 0
    fids.unuse(fid)
    assert export.nodes
    assert export.files
    fids.unuse(fid)
    assert not export.nodes
    assert not export.files


def test_replacing_gives_the_old_one_back(fids: FidTable, export: Export) -> None:
    old, new = add(fids, export, 1), Fid(1, export.attach(b"", 0)[0], 0, True)
    fids.replace(old, new)
    assert fids.find(1) is new
    assert export.nodes == {new.node}
    fids.clear()
    assert not export.nodes


def test_the_error_of_closing_is_told_and_the_rest_given_back(fids: FidTable, export: Export) -> None:
    fid = add(fids, export, 1)
    fid.file, _ = export.open(fid.node, 0, 0)
    failure = export.failing["close_file"] = OSError(errno.EIO, "io")
    assert fids.remove(fid) is failure
    assert not export.nodes


def test_attributes_are_accounted(fids: FidTable) -> None:
    fids.add_xattr(1, bytes(60), 0)
    assert fids.find(1).kind == XATTR_READ
    with pytest.raises(OSError, match="at most 100") as raised:
        fids.add_xattr(2, bytes(41), 0)
    assert raised.value.errno == errno.ENOMEM
    fids.add_xattr(2, bytes(40), 0)
    fids.clear()
    assert fids.xattr_nbytes == 0


def test_a_number_reserved_before_the_end_of_a_session_is_not_taken_from_the_next(fids: FidTable) -> None:
    old = fids.reserve(1)
    fids.clear()
    fids.check_new(1)
    fids.reserve(1)
    old.discard(1)
    with pytest.raises(OSError, match="in use"):
        fids.check_new(1)


@pytest.mark.parametrize("method", ["close_file", "release_locks", "release"])
def test_a_driver_that_raises_anything_does_not_keep_other_fids(
    fids: FidTable, export: Export, method: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        fid = add(fids, export, number)
        fid.file, _ = export.open(fid.node, 0, 0)
        fid.holder = LockHolder(fids)
    real = getattr(export, method)

    def broken(*arguments: Any) -> None:
        real(*arguments)
        raise KeyError("bug")

    monkeypatch.setattr(export, method, broken)
    told = fids.remove(fids.find(0))
    assert isinstance(told, OSError)
    assert told.errno == errno.EIO
    fids.clear()
    assert not export.nodes
    assert not export.files
    assert [record.getMessage() for record in caplog.records] == [
        f"driver FakeExport broke its contract in {method}"
    ] * 3


def test_an_error_of_a_file_that_closes_late_is_logged(
    fids: FidTable, export: Export, caplog: pytest.LogCaptureFixture
) -> None:
    export.later.add("close_file")
    for number in range(2):
        fid = add(fids, export, number)
        fid.file, _ = export.open(fid.node, 0, 0)
    fids.clear()
    assert not export.nodes
    export.complete()
    assert not caplog.records
    export.complete(error=OSError(errno.ENOSPC, "no space"))
    assert "no space" in caplog.text


def test_one_completion_for_two_files_is_no_reason_to_stop(
    fids: FidTable, export: Export, caplog: pytest.LogCaptureFixture
) -> None:
    completion: Completion[None] = Completion()
    export.close_file = lambda _file: completion
    for number in range(2):
        add(fids, export, number).file = object()
    fids.clear()
    assert not export.nodes
    assert "close_file" in caplog.text
