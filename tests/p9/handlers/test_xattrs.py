"""Txattrwalk, Txattrcreate, and what Tread, Twrite and Tclunk do with their fids."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest

from pyvirtfs.p9 import constants as c
from pyvirtfs.p9.limits import Limits

if TYPE_CHECKING:
    from collections.abc import Callable

Peer: TypeAlias = Any
Export: TypeAlias = Any

VALUE = bytes(range(256))


# --- reading ---


def test_a_value_is_read_through_a_fid(peer: Peer, export: Export) -> None:
    export.root.xattrs[b"user.x"] = VALUE
    assert peer.call(c.TXATTRWALK, 0, 1, b"user.x") == 256
    assert peer.read(1, 0, 1000) == VALUE
    assert peer.read(1, 250, 1000) == VALUE[250:]
    assert peer.read(1, 10, 3) == VALUE[10:13]
    assert peer.error(c.TWRITE, 1, 0, 1, data=b"x") == errno.EINVAL
    peer.call(c.TCLUNK, 1)


def test_the_empty_name_is_the_list(peer: Peer, export: Export) -> None:
    assert peer.call(c.TXATTRWALK, 0, 1, b"") == 0
    export.root.xattrs.update({b"user.a": b"1", b"user.b": b"2"})
    assert peer.call(c.TXATTRWALK, 0, 2, b"") == 14
    assert peer.read(2, 0, 100) == b"user.a\0user.b\0"
    assert peer.read(1, 0, 100) == b""


def test_the_value_is_what_it_was(peer: Peer, export: Export) -> None:
    """H064: the host changes it meanwhile."""
    export.root.xattrs[b"user.x"] = VALUE
    peer.call(c.TXATTRWALK, 0, 1, b"user.x")
    export.root.xattrs[b"user.x"] = b"changed"
    assert peer.read(1, 0, 1000) == VALUE


@pytest.mark.parametrize("offset", [255, 256, 257, 2**63, 2**64 - 1])
@pytest.mark.parametrize("count", [0, 1, 2**32 - 1])
def test_any_range_can_be_read(peer: Peer, export: Export, offset: int, count: int) -> None:
    """H062."""
    export.root.xattrs[b"user.x"] = VALUE
    peer.call(c.TXATTRWALK, 0, 1, b"user.x")
    assert peer.read(1, offset, count) == VALUE[offset : offset + count]


def test_what_does_not_exist(peer: Peer, export: Export) -> None:
    assert peer.error(c.TXATTRWALK, 0, 1, b"user.x") == errno.ENODATA
    export.failing["listxattr"] = OSError(errno.ENOTSUP, "no")
    assert peer.error(c.TXATTRWALK, 0, 1, b"") == errno.EOPNOTSUPP
    assert peer.error(c.TCLUNK, 1) == errno.ENOENT


def test_an_attribute_has_no_attributes_and_nothing_below(peer: Peer) -> None:
    peer.call(c.TXATTRWALK, 0, 1, b"")
    assert peer.error(c.TXATTRWALK, 1, 2, b"") == errno.EINVAL
    assert peer.error(c.TWALK, 1, 2, ()) == errno.EINVAL
    assert peer.error(c.TREMOVE, 1) == errno.EINVAL
    assert peer.error(c.TCLUNK, 1) == errno.ENOENT


# --- writing ---


def create(peer: Peer, name: bytes = b"user.x", size: int = 5, flags: int = 0) -> None:
    peer.walk(0, 1, b"file")
    peer.call(c.TXATTRCREATE, 1, name, size, flags)


def test_a_value_is_set_by_the_clunk(peer: Peer, export: Export) -> None:
    create(peer, flags=c.XATTR_CREATE)
    assert peer.write(1, 0, b"val") == 3
    assert peer.write(1, 3, b"ues") == 2
    assert not export.find("file").xattrs
    peer.call(c.TCLUNK, 1)
    assert export.calls[-1] == ("setxattr", b"user.x", b"value", c.XATTR_CREATE, 1000)
    assert export.find("file").xattrs == {b"user.x": b"value"}
    assert len(export.nodes) == 1


def test_a_value_that_is_not_whole_is_not_set(peer: Peer, export: Export) -> None:
    """H066."""
    for written in (b"", b"valu"):
        create(peer)
        peer.write(1, 0, written)
        assert peer.error(c.TCLUNK, 1) == errno.EINVAL
        assert peer.error(c.TCLUNK, 1) == errno.ENOENT
    create(peer)
    peer.write(1, 4, b"e")
    peer.write(1, 0, b"val")
    assert peer.error(c.TCLUNK, 1) == errno.EINVAL, "a byte is missing"
    assert not export.find("file").xattrs
    assert len(export.nodes) == 1


def test_overlapping_writes(peer: Peer, export: Export) -> None:
    create(peer)
    peer.write(1, 0, b"val")
    peer.write(1, 0, b"va")
    peer.write(1, 2, b"lue")
    peer.call(c.TCLUNK, 1)
    assert export.find("file").xattrs == {b"user.x": b"value"}


@pytest.mark.parametrize(("offset", "taken"), [(0, 5), (4, 1), (5, 0)])
def test_writes_are_cut_at_the_announced_size(peer: Peer, offset: int, taken: int) -> None:
    create(peer)
    assert peer.write(1, offset, b"0123456789") == taken
    for beyond in (6, 2**63, 2**64 - 1):
        assert peer.error(c.TWRITE, 1, beyond, 1, data=b"x") == errno.ENOSPC


def test_an_error_of_the_host_comes_with_the_clunk(peer: Peer, export: Export) -> None:
    """H048."""
    create(peer, size=0)
    export.failing["setxattr"] = OSError(errno.ENOSPC, "full")
    assert peer.error(c.TCLUNK, 1) == errno.ENOSPC
    peer.walk(0, 1, b"file")


def test_a_deferred_clunk_frees_the_number_at_once_and_the_node_later(peer: Peer, export: Export) -> None:
    create(peer, size=0)
    export.later.add("setxattr")
    clunk = peer.send(c.TCLUNK, 1, tag=1)
    assert peer.server.fids == 1
    assert len(export.nodes) == 2
    peer.finish()
    assert peer.reply(clunk)[0] == c.RCLUNK
    assert len(export.nodes) == 1


def test_nothing_with_replace_removes_and_without_it_is_an_empty_value(peer: Peer, export: Export) -> None:
    xattrs = export.find("file").xattrs
    create(peer, size=0)
    peer.call(c.TCLUNK, 1)
    assert xattrs == {b"user.x": b""}
    create(peer, size=0, flags=c.XATTR_REPLACE)
    assert xattrs
    peer.call(c.TCLUNK, 1)
    assert not xattrs
    create(peer, size=0, flags=c.XATTR_REPLACE)
    assert peer.error(c.TCLUNK, 1) == errno.ENODATA


def test_a_fid_becomes_an_attribute_once(peer: Peer) -> None:
    """H060."""
    create(peer)
    assert peer.error(c.TXATTRCREATE, 1, b"user.y", 5, 0) == errno.EINVAL
    assert peer.error(c.TLOPEN, 1, 0) == errno.EINVAL
    assert peer.error(c.TREAD, 1, 0, 5) == errno.EINVAL


@pytest.mark.parametrize("size", [65537, 2**32, 2**64 - 1])
def test_a_value_has_a_largest_size(peer: Peer, size: int) -> None:
    assert peer.error(c.TXATTRCREATE, 0, b"user.x", size, 0) == errno.E2BIG
    peer.call(c.TXATTRCREATE, 0, b"user.x", 65536, 0)


@pytest.mark.parametrize(
    ("name", "code"), [(b"", errno.ERANGE), (b"x" * 256, errno.ERANGE), (b"user.\0", errno.EINVAL)]
)
def test_names_of_attributes(peer: Peer, name: bytes, code: int) -> None:
    assert peer.error(c.TXATTRCREATE, 0, name, 0, 0) == code
    if name:
        assert peer.error(c.TXATTRWALK, 0, 1, name) == code


@pytest.mark.parametrize("flags", [4, 7, 2**31])
def test_flags_of_attributes(peer: Peer, flags: int) -> None:
    assert peer.error(c.TXATTRCREATE, 0, b"user.x", 0, flags) == errno.EINVAL


# --- caps ---


def test_a_session_holds_only_so_much(make_peer: Callable[..., Peer], export: Export) -> None:
    peer = make_peer(limits=Limits(xattr_bytes=1000)).version().attach()
    export.root.xattrs[b"user.x"] = bytes(300)
    for fid in (1, 2):
        peer.walk(0, fid, b"file")
    peer.call(c.TXATTRCREATE, 1, b"user.y", 600, 0)
    assert peer.error(c.TXATTRCREATE, 2, b"user.y", 401, 0) == errno.ENOMEM
    peer.call(c.TXATTRWALK, 0, 3, b"user.x")
    assert peer.error(c.TXATTRWALK, 0, 4, b"user.x") == errno.ENOMEM
    peer.call(c.TCLUNK, 3)
    peer.call(c.TXATTRWALK, 0, 4, b"user.x")
    peer.error(c.TCLUNK, 1)
    peer.call(c.TXATTRCREATE, 2, b"user.y", 700, 0)


def test_repeated_attributes_cost_nothing(make_peer: Callable[..., Peer]) -> None:
    peer = make_peer(limits=Limits(xattr_bytes=1000)).version().attach()
    for _ in range(100):
        create(peer, size=900)
        assert peer.error(c.TCLUNK, 1) == errno.EINVAL
    peer.version().attach()
    create(peer, size=900)
