from __future__ import annotations

import errno
from typing import Any, TypeAlias

import pytest

from pyvirtfs.p9.constants import NOFID
from pyvirtfs.p9.fids import FILE, XATTR_READ, Fid, FidTable

Export: TypeAlias = Any


@pytest.fixture
def fids(export: Export) -> FidTable:
    return FidTable(export, 3, 100)


def add(fids: FidTable, export: Export, number: int) -> Fid:
    node, _ = export.attach(b"", 0)
    fids.table[number] = fid = Fid(number, node, 0, is_folder=True)
    return fid


def test_unknown_numbers(fids: FidTable) -> None:
    for code in (errno.ENOENT, errno.EINVAL):
        with pytest.raises(OSError, match="unknown") as raised:
            fids.find(1, code)
        assert raised.value.errno == code


def test_new_numbers(fids: FidTable, export: Export) -> None:
    add(fids, export, 1)
    fids.reserve(2)
    for number in (1, 2, NOFID):
        with pytest.raises(OSError, match="in use"):
            fids.check_new(number)
    fids.check_new(3)
    fids.reserve(3)
    with pytest.raises(OSError, match="at most 3"):
        fids.check_new(4)
    fids.unreserve(2)
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
    old, new = add(fids, export, 1), Fid(1, export.attach(b"", 0)[0], 0, is_folder=True)
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
