"""Extended attributes as fids (H060 to H068)."""

from __future__ import annotations

import errno
import gc
import os
import struct
import threading
import tracemalloc
from collections.abc import Callable
from typing import TypeAlias

import pytest

from pyvirtfs.fsdev.entries import Node
from pyvirtfs.fsdev.local import LocalDriver
from pyvirtfs.p9 import constants as c
from tests.hostile.stack import Place, Stack, as_root, message, raw, sizes

Start: TypeAlias = Callable[..., Stack]


def begin(stack: Stack, nbytes: int, name: bytes = b"user.x", flags: int = 0) -> int:
    """A fid to write an attribute of `file` through."""
    fid = stack.fid(b"file")
    stack.do("Txattrcreate", fid=fid, name=name, attr_size=nbytes, flags=flags)
    return fid


def look(stack: Stack, name: bytes = b"user.x") -> int:
    """A fid to read an attribute of `file` through."""
    newfid = stack.new()
    stack.do("Txattrwalk", fid=stack.fid(b"file"), newfid=newfid, name=name)
    return newfid


def held(stack: Stack) -> int:
    """Bytes of attributes that the session holds."""
    return stack.device.server._session.fids.xattr_nbytes


@sizes(600, 10_000)
def test_h060_an_attribute_is_announced_once(stack: Stack, place: Place, count: int) -> None:
    """600 requests (10,000), 64 KiB each: the second announcement fails, and the memory is given back."""
    fid = begin(stack, c.XATTR_SIZE_MAX)
    stack.errno("Tclunk", fid=fid)
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(count // 4):
            fids = [begin(stack, c.XATTR_SIZE_MAX) for _ in range(2)]
            for fid in fids:
                assert stack.errno("Txattrcreate", fid=fid, attr_size=c.XATTR_SIZE_MAX) == errno.EINVAL
                assert stack.errno("Txattrcreate", fid=fid, attr_size=0) == errno.EINVAL
                assert stack.errno("Tlopen", fid=fid) == errno.EINVAL
            assert held(stack) == 2 * c.XATTR_SIZE_MAX
            for fid in fids:
                assert stack.errno("Tclunk", fid=fid) == errno.EINVAL  # nothing was written
        assert held(stack) == 0
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
        assert after - before < 4 * c.XATTR_SIZE_MAX
    finally:
        tracemalloc.stop()
    assert os.listxattr(place.export / "file") == []


def test_h061_an_attribute_to_be_written_is_not_read(stack: Stack) -> None:
    fid = begin(stack, 4096)
    for offset, count in ((0, 4096), (0, 1), (4095, 1), (4096, 1), (2**63, 100)):
        for wrote in (b"", b"some"):
            if wrote:
                stack.do("Twrite", fid=fid, data=wrote)
            reply = stack.ask("Tread", fid=fid, offset=offset, count=count)
            assert reply.errno == errno.EINVAL
            assert len(reply.body) == 4


OFFSETS = [0, 1, 4, 5, 6, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 2**32, 2**64 - 1]


@pytest.mark.parametrize("offset", OFFSETS)
def test_h062_offsets_and_counts(stack: Stack, place: Place, offset: int) -> None:
    os.setxattr(place.export / "file", "user.x", b"12345")
    value, listing, attribute = look(stack), look(stack, b""), begin(stack, 5, b"user.y")
    for fid, whole in ((value, b"12345"), (listing, b"user.x\0")):
        for count in (0, 1, 5, 100, 2**31, 2**32 - 12, 2**32 - 1):
            assert stack.do("Tread", fid=fid, offset=offset, count=count)["data"] == whole[offset : offset + count]
    for nbytes in (0, 1, 5, 100):
        reply = stack.ask("Twrite", fid=attribute, offset=offset, data=b"y" * nbytes)
        if offset > 5:
            assert reply.errno == errno.ENOSPC
        else:
            assert int.from_bytes(reply.body, "little") == min(nbytes, 5 - offset)
    for fid in (value, listing):
        assert stack.errno("Twrite", fid=fid, offset=offset, data=b"y") == errno.EINVAL
    whole_request = message("Twrite", fid=attribute, offset=offset, data=b"abcd")
    for count in (5, 2**31, 2**32 - 24, 2**32 - 1):  # more than there is: no message
        lie = whole_request[:19] + struct.pack("<I", count) + whole_request[23:]
        assert stack.send(lie) is None
        stack.remount()
        attribute = begin(stack, 5, b"user.y")
        whole_request = message("Twrite", fid=attribute, offset=offset, data=b"abcd")
    assert os.listxattr(place.export / "file") == ["user.x"]


def test_h062_bytes_behind_a_message_are_no_value(stack: Stack, place: Place) -> None:
    """A Twrite of four bytes in a request of more: four bytes are written."""
    fid = begin(stack, 8)
    assert stack.send(message("Twrite", fid=fid, data=b"four") + b"more") is not None
    assert stack.errno("Tclunk", fid=fid) == errno.EINVAL
    assert stack.send(raw(c.TCLUNK, struct.pack("<I", fid))) is not None
    assert os.listxattr(place.export / "file") == []


class Failing(LocalDriver):
    """A local export whose attributes cannot be had."""

    number = errno.ENOTSUP

    def getxattr(self, node: Node, name: bytes) -> bytes:
        raise OSError(self.number, os.strerror(self.number))

    def listxattr(self, node: Node) -> bytes:
        raise OSError(self.number, os.strerror(self.number))


@sizes(200, 5000)
@pytest.mark.parametrize("number", [errno.ENOTSUP, errno.EACCES, errno.EIO, errno.E2BIG, errno.ERANGE])
def test_h063_a_list_that_fails(start: Start, place: Place, number: int, count: int) -> None:
    """200 times each (5000)."""
    driver = place.driver(Failing)
    driver.number = number  # type: ignore[attr-defined]
    stack = start(driver, messages=0)
    file, newfid = stack.fid(b"file"), stack.new()
    before = stack.fids
    walks = (message("Txattrwalk", fid=file, newfid=newfid, name=(b"", b"user.x")[i % 2]) for i in range(count))
    assert {reply.errno for reply in stack.bulk(walks)} == {number}
    assert (stack.fids, held(stack)) == (before, 0)
    stack.do("Twalk", newfid=newfid)


def test_h063_a_list_where_the_host_has_none(start: Start) -> None:
    stack = start("local,path=/proc,security_model=none,readonly=on")
    newfid = stack.new()
    reply = stack.ask("Txattrwalk", fid=stack.fid(b"version"), newfid=newfid)
    assert reply.errno in {0, errno.EOPNOTSUPP}
    assert stack.errno("Txattrwalk", fid=stack.fid(b"version"), newfid=stack.new(), name=b"user.x") != 0
    assert held(stack) == 0


def test_h064_the_host_changes_the_value_between_size_and_read(stack: Stack, place: Place) -> None:
    path = place.export / "file"
    os.setxattr(path, "user.x", b"0123456789")
    for value in (b"", b"x", b"y" * 3000):
        fid = look(stack)
        os.setxattr(path, "user.x", value)
        assert stack.read(fid) == b"0123456789"
        assert stack.do("Tread", fid=fid, offset=10, count=4000)["data"] == b""
        os.setxattr(path, "user.x", b"0123456789")
    fid = look(stack)
    os.removexattr(path, "user.x")
    assert stack.read(fid) == b"0123456789"


@sizes(400, 20_000)
def test_h064_the_host_changes_the_value_all_the_time(stack: Stack, place: Place, count: int) -> None:
    """400 looks (20,000) at an attribute that a thread rewrites: each is one of its values, whole."""
    path = place.export / "file"
    values = [b"short", b"m" * 100, b"L" * 3000]
    os.setxattr(path, "user.x", values[0])
    stop = threading.Event()

    def rewrite() -> None:
        while not stop.is_set():
            for value in values:
                os.setxattr(path, "user.x", value)

    thread = threading.Thread(target=rewrite)
    thread.start()
    try:
        file = stack.fid(b"file")
        for _ in range(count):
            newfid = stack.new()
            size = stack.do("Txattrwalk", fid=file, newfid=newfid, name=b"user.x")["size"]
            value = stack.read(newfid)
            assert len(value) == size
            assert value in values
            stack.clunk(newfid)
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize(
    ("nbytes", "expected"),
    [(65536, 0), (65537, errno.E2BIG), (2**31, errno.E2BIG), (2**32, errno.E2BIG), (2**63, errno.E2BIG),
     (2**64 - 1, errno.E2BIG)],
)  # fmt: skip
def test_h065_sizes(stack: Stack, nbytes: int, expected: int) -> None:
    fid = stack.fid(b"file")
    tracemalloc.start()
    try:
        assert stack.errno("Txattrcreate", fid=fid, name=b"user.x", attr_size=nbytes) == expected
        assert tracemalloc.get_traced_memory()[1] < 1 << 20  # nothing was taken before that was checked
    finally:
        tracemalloc.stop()
    if expected:
        stack.do("Tlopen", fid=fid)  # it is what it was
    else:
        for offset in range(0, nbytes, 4096):
            stack.do("Twrite", fid=fid, offset=offset, data=b"v" * 4096)
        assert stack.errno("Tclunk", fid=fid) in {0, errno.ENOSPC, errno.E2BIG}  # some file systems hold less


def test_h065_sizes_of_names(stack: Stack, place: Place) -> None:
    longest = b"user." + b"n" * 250
    for name, expected in (
        (longest, 0), (longest + b"n", errno.ERANGE), (b"user." + b"n" * 60000, errno.ERANGE), (b"", errno.ERANGE),
        (b"user.a\0b", errno.EINVAL),
    ):  # fmt: skip
        fid = stack.fid(b"file")
        assert stack.errno("Txattrcreate", fid=fid, name=name, attr_size=1) == expected
        if not expected:
            stack.do("Twrite", fid=fid, data=b"1")
            stack.clunk(fid)
    assert os.getxattr(place.export / "file", longest) == b"1"
    assert stack.read(look(stack, longest)) == b"1"
    for name in (longest + b"n", b"user." + b"n" * 60000):
        assert stack.errno("Txattrwalk", fid=stack.fid(b"file"), newfid=stack.new(), name=name) == errno.ERANGE


def test_h065_no_bytes(stack: Stack, place: Place) -> None:
    """Without REPLACE they are a value, with it a removal, which is what Linux sends for one."""
    path = place.export / "file"
    stack.clunk(begin(stack, 0))
    assert os.getxattr(path, "user.x") == b""
    assert stack.read(look(stack)) == b""
    stack.clunk(begin(stack, 0, flags=c.XATTR_REPLACE))
    assert os.listxattr(path) == []
    assert stack.errno("Tclunk", fid=begin(stack, 0, flags=c.XATTR_REPLACE)) == errno.ENODATA
    stack.clunk(begin(stack, 0, flags=c.XATTR_CREATE))
    assert stack.errno("Tclunk", fid=begin(stack, 0, flags=c.XATTR_CREATE)) == errno.EEXIST
    for flags in (4, 0x80000000, 0xFFFFFFFF):
        assert stack.errno("Txattrcreate", fid=stack.fid(b"file"), flags=flags) == errno.EINVAL


@pytest.mark.parametrize(
    "writes", [[], [(0, b"abc")], [(3, b"de")], [(0, b"ab"), (3, b"de")], [(4, b"e"), (0, b"abc")], [(5, b"x")]]
)
def test_h066_an_attribute_of_which_not_all_came(stack: Stack, place: Place, writes: list[tuple[int, bytes]]) -> None:
    path = place.export / "file"
    os.setxattr(path, "user.x", b"old")
    fid = begin(stack, 5)
    for offset, data in writes:
        stack.do("Twrite", fid=fid, offset=offset, data=data)
    assert stack.errno("Tclunk", fid=fid) == errno.EINVAL
    assert os.getxattr(path, "user.x") == b"old"
    assert stack.errno("Tclunk", fid=fid) == errno.ENOENT
    assert held(stack) == 0


def test_h066_a_session_that_ends_sets_nothing(stack: Stack, place: Place) -> None:
    for end in ("Tversion", "reset"):
        stack.do("Twrite", fid=begin(stack, 5), data=b"abcde")  # whole, but no Tclunk
        if end == "Tversion":
            stack.do("Tversion", tag=c.NOTAG)
        stack.remount()
        assert held(stack) == 0
    assert os.listxattr(place.export / "file") == []


CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)
"""struct vfs_cap_data, revision 2, effective: CAP_NET_RAW."""


@as_root
@pytest.mark.parametrize("model", ["passthrough", "none", "mapped-xattr", "mapped-file"])
@pytest.mark.parametrize("uid", [0, 1000])
@pytest.mark.parametrize("how", ["write", "truncate", "open with truncation", "chown"])
def test_h068_a_file_capability_ends_with_a_write(start: Start, place: Place, how: str, uid: int, model: str) -> None:
    """By whomever, as on the host. In mapped-xattr a new owner is none on the host, and changes nothing there."""
    stack = start(f"local,path={place.export},security_model={model}")
    path = place.export / "file"
    path.chmod(0o777)
    os.setxattr(path, "security.capability", CAPABILITY)
    root = stack.new()
    stack.do("Tattach", fid=root, n_uname=uid)
    if how == "write":
        stack.do("Twrite", fid=stack.opened(b"file", base=root), data=b"evil")
    elif how == "truncate":
        stack.do("Tsetattr", fid=stack.fid(b"file", base=root), valid=c.SETATTR_SIZE, size=3)
    elif how == "chown":
        stack.do("Tsetattr", fid=stack.fid(b"file", base=root), valid=c.SETATTR_UID, uid=1001)
    else:
        stack.opened(b"file", base=root, flags=c.DOTL_RDWR | c.DOTL_TRUNC)
    assert ("security.capability" in os.listxattr(path)) is (how == "chown" and model == "mapped-xattr")


def test_h068_the_guest_sets_no_file_capability(stack: Stack, place: Place) -> None:
    fid = begin(stack, len(CAPABILITY), b"security.capability")
    stack.do("Twrite", fid=fid, data=CAPABILITY)
    assert stack.errno("Tclunk", fid=fid) == errno.EOPNOTSUPP
    assert os.listxattr(place.export / "file") == []
