"""Tgetattr, Tsetattr, Tstatfs."""

from __future__ import annotations

import errno
import stat
from typing import Any, TypeAlias

import pytest

from pyvirtfs.fsdev.driver import NOW, SetAttributes, StatFs
from pyvirtfs.p9 import constants as c
from pyvirtfs.p9.handlers.attributes import encode_device
from pyvirtfs.p9.messages import MESSAGES

Peer: TypeAlias = Any
Export: TypeAlias = Any

RGETATTR_FIELDS = MESSAGES[c.RGETATTR].fields


def getattr_(peer: Peer, fid: int, mask: int = c.GETATTR_BASIC) -> dict[str, Any]:
    return dict(zip(RGETATTR_FIELDS, peer.call(c.TGETATTR, fid, mask), strict=True))


# --- Tgetattr ---


def test_getattr(peer: Peer, export: Export) -> None:
    inode = export.find("file")
    inode.uid, inode.gid, inode.nlink = 5, 6, 7
    peer.walk(0, 1, b"file")
    assert getattr_(peer, 1) == {
        "valid": c.GETATTR_BASIC,
        "qid": tuple(inode.qid),
        "mode": stat.S_IFREG | 0o644,
        "uid": 5,
        "gid": 6,
        "nlink": 7,
        "rdev": 0,
        "size": 10,
        "blksize": 4096,
        "blocks": 1,
        "atime_sec": 1,
        "atime_nsec": 1,
        "mtime_sec": 2,
        "mtime_nsec": 2,
        "ctime_sec": 3,
        "ctime_nsec": 3,
        "btime_sec": 0,
        "btime_nsec": 0,
        "gen": 0,
        "data_version": 0,
    }


@pytest.mark.parametrize("mask", [0, 0x7FF, 0x3FFF, 2**64 - 1])
def test_whatever_is_asked_for_stat_is_told(peer: Peer, mask: int) -> None:
    valid = getattr_(peer, 0, mask)["valid"]
    assert valid & c.GETATTR_BASIC == c.GETATTR_BASIC
    assert not valid & (c.GETATTR_GEN | c.GETATTR_DATA_VERSION)


def test_the_time_of_birth_is_told_if_it_is_known(peer: Peer, export: Export) -> None:
    found = getattr_(peer, 0, c.GETATTR_ALL)
    assert found["valid"] & c.GETATTR_BTIME
    assert (found["btime_sec"], found["btime_nsec"]) == (4, 4)
    export.root.times["btime"] = 0
    assert not getattr_(peer, 0, c.GETATTR_ALL)["valid"] & c.GETATTR_BTIME


def test_times_before_1970(peer: Peer, export: Export) -> None:
    export.root.times["mtime"] = -1
    found = getattr_(peer, 0)
    assert (found["mtime_sec"], found["mtime_nsec"]) == (-1, 999_999_999)


@pytest.mark.parametrize(
    ("major", "minor", "rdev"),
    [(0, 0, 0), (8, 1, 0x801), (8, 0x12345, 0x12300845), (0xFFF, 0xFFFFF, 0xFFFFFFFF), (0, 256, 0x100000)],
)
def test_device_numbers(peer: Peer, export: Export, major: int, minor: int, rdev: int) -> None:
    export.root.device = (major, minor)
    assert getattr_(peer, 0)["rdev"] == rdev == encode_device(major, minor)


def test_attributes_of_any_kind_of_fid(peer: Peer, export: Export) -> None:
    export.root.xattrs[b"user.x"] = b"value"
    peer.open(1, b"file")
    peer.open(2, b"folder")
    peer.walk(0, 3, b"link")
    peer.walk(0, 4, b"file")
    peer.call(c.TXATTRCREATE, 4, b"user.y", 0, 0)
    for fid in (1, 2, 3, 4):
        getattr_(peer, fid)
    peer.call(c.TXATTRWALK, 0, 5, b"user.x")
    assert peer.error(c.TGETATTR, 5, 0) == errno.EINVAL
    for kind, fields in ((c.TSTATFS, ()), (c.TREADLINK, ()), (c.TSETATTR, (0,) * 9)):
        assert peer.error(kind, 5, *fields) == errno.EINVAL


# --- Tsetattr ---


def changes(peer: Peer, export: Export, valid: int, **fields: int) -> SetAttributes:
    values = [
        fields.get(name, 0)
        for name in ("mode", "uid", "gid", "size", "atime_sec", "atime_nsec", "mtime_sec", "mtime_nsec")
    ]
    peer.walk(0, 1, b"file")
    peer.call(c.TSETATTR, 1, valid, *values)
    peer.call(c.TCLUNK, 1)
    name, found, uid = export.calls[-1]
    assert (name, uid) == ("setattr", 1000)
    assert isinstance(found, SetAttributes)
    return found


def test_a_bit_that_is_clear_leaves_a_field_alone(peer: Peer, export: Export) -> None:
    everything = {"mode": 0o777, "uid": 1, "gid": 2, "size": 3, "atime_sec": 4, "mtime_sec": 5}
    assert changes(peer, export, 0, **everything) == SetAttributes()


def test_each_bit_changes_its_field(peer: Peer, export: Export) -> None:
    assert changes(peer, export, c.SETATTR_MODE, mode=0o107755) == SetAttributes(mode=0o7755)
    assert changes(peer, export, c.SETATTR_UID, uid=7) == SetAttributes(uid=7)
    assert changes(peer, export, c.SETATTR_GID, gid=7) == SetAttributes(gid=7)
    assert changes(peer, export, c.SETATTR_SIZE, size=7) == SetAttributes(size=7)
    assert changes(peer, export, c.SETATTR_ATIME, atime_sec=7) == SetAttributes(atime_ns=NOW)
    assert changes(peer, export, c.SETATTR_MTIME, mtime_sec=7) == SetAttributes(mtime_ns=NOW)
    assert changes(peer, export, c.SETATTR_ATIME | c.SETATTR_ATIME_SET, atime_sec=7, atime_nsec=1) == SetAttributes(
        atime_ns=7_000_000_001
    )
    assert changes(peer, export, c.SETATTR_MTIME | c.SETATTR_MTIME_SET, mtime_sec=-1, mtime_nsec=1) == SetAttributes(
        mtime_ns=-999_999_999
    )
    assert changes(peer, export, c.SETATTR_ATIME_SET | c.SETATTR_MTIME_SET, atime_sec=7) == SetAttributes()


def test_ctime_alone_touches_and_is_ignored_otherwise(peer: Peer, export: Export) -> None:
    assert changes(peer, export, c.SETATTR_CTIME) == SetAttributes(touch_ctime=True)
    assert changes(peer, export, c.SETATTR_CTIME | c.SETATTR_MODE, mode=0o600) == SetAttributes(mode=0o600)


def test_minus_one_is_no_owner(peer: Peer, export: Export) -> None:
    both = c.SETATTR_UID | c.SETATTR_GID
    assert changes(peer, export, both, uid=0xFFFFFFFF, gid=3) == SetAttributes(gid=3)
    assert changes(peer, export, both, uid=3, gid=0xFFFFFFFF) == SetAttributes(uid=3)


@pytest.mark.parametrize(
    ("valid", "values"),
    [
        (c.SETATTR_SIZE, (0, 0, 0, 2**63, 0, 0, 0, 0)),
        (c.SETATTR_ATIME | c.SETATTR_ATIME_SET, (0, 0, 0, 0, 0, 10**9, 0, 0)),
        (c.SETATTR_MTIME | c.SETATTR_MTIME_SET, (0, 0, 0, 0, 0, 0, 0, 2**64 - 1)),
    ],
)
def test_impossible_values(peer: Peer, export: Export, valid: int, values: tuple[int, ...]) -> None:
    calls = len(export.calls)
    assert peer.error(c.TSETATTR, 0, valid, *values) == errno.EINVAL
    assert len(export.calls) == calls


# --- Tstatfs ---


def test_statfs_counts_in_the_blocks_of_the_file_system(make_peer: Any) -> None:
    """Whatever a payload can be: larger ones would round the size of a small export, and what is free, by up to one."""
    peer = make_peer().version(131096).attach()
    assert peer.call(c.TSTATFS, 0) == (0x01021994, 4096, 1000, 500, 400, 300, 200, 0xABCDEF0123, 255)


@pytest.mark.parametrize(("block", "told"), [(-1, 0), (0, 0), (1, 1), (8169, 8169), (2**31, 2**31), (2**40, 2**32 - 1)])
def test_any_block_size(peer: Peer, export: Export, block: int, told: int) -> None:
    """H088: a file system may say 0."""
    export.block_nbytes = block
    assert peer.call(c.TSTATFS, 0)[1:3] == (told, 1000)


def test_a_type_that_is_negative_on_the_host(peer: Peer, export: Export) -> None:
    export.statfs = lambda _node: StatFs(-0x6EDC97C2, 4096, 1, 1, 1, 1, 1, 1, 255)  # btrfs on some processors
    assert peer.call(c.TSTATFS, 0)[0] == 0x9123683E
