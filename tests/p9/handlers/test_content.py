"""Tlopen, Tlcreate, Tread, Twrite, Tfsync."""

from __future__ import annotations

import errno
import os
import stat
import tracemalloc
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest

from pyvirtfs.errors import MessageError
from pyvirtfs.p9 import codec
from pyvirtfs.p9 import constants as c

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvirtfs.memory.buffers import Buffers

Peer: TypeAlias = Any
Export: TypeAlias = Any


# --- Tlopen ---


def test_lopen(peer: Peer, export: Export) -> None:
    peer.walk(0, 1, b"file")
    assert peer.call(c.TLOPEN, 1, c.DOTL_RDWR) == (export.find("file").qid, 4096)


@pytest.mark.parametrize("flags", [c.DOTL_RDONLY, c.DOTL_WRONLY, c.DOTL_RDWR | c.DOTL_TRUNC, c.DOTL_DIRECTORY])
def test_folders_are_opened_for_reading_whatever_is_asked_for(peer: Peer, export: Export, flags: int) -> None:
    peer.walk(0, 1)
    assert peer.call(c.TLOPEN, 1, flags) == (export.root.qid, 0)
    assert export.calls[-1][:2] == ("open", os.O_RDONLY | os.O_DIRECTORY)


@pytest.mark.parametrize(
    ("flags", "host"),
    [
        (c.DOTL_RDWR | c.DOTL_LARGEFILE | c.DOTL_CLOEXEC, os.O_RDWR),
        (c.DOTL_WRONLY | c.DOTL_TRUNC | c.DOTL_APPEND, os.O_WRONLY | os.O_TRUNC | os.O_APPEND),
        (c.DOTL_CREATE | c.DOTL_EXCL | c.DOTL_NOCTTY | c.DOTL_FASYNC | c.DOTL_DIRECT, os.O_RDONLY),
        (c.DOTL_NOFOLLOW | c.DOTL_NONBLOCK | c.DOTL_NOATIME, os.O_NOATIME),
        (c.DOTL_DIRECTORY, os.O_DIRECTORY),
    ],
)
def test_open_flags_become_the_hosts(peer: Peer, export: Export, flags: int, host: int) -> None:
    peer.walk(0, 1, b"file")
    peer.call(c.TLOPEN, 1, flags)
    assert export.calls[-1] == ("open", host, 1000)


def test_neither_reading_nor_writing_is_no_way_to_open(peer: Peer) -> None:
    peer.walk(0, 1, b"file")
    assert peer.error(c.TLOPEN, 1, c.DOTL_NOACCESS) == errno.EINVAL


def test_a_fid_is_opened_once(peer: Peer, export: Export) -> None:
    """H040."""
    peer.open(1, b"file")
    assert peer.error(c.TLOPEN, 1, 0) == errno.EINVAL
    assert peer.error(c.TLCREATE, 1, b"new", 0, 0, 0) == errno.EINVAL
    assert peer.error(c.TXATTRCREATE, 1, b"user.x", 1, 0) == errno.EINVAL
    assert len(export.files) == 1


def test_a_fid_that_is_being_opened_cannot_be_opened(peer: Peer, export: Export) -> None:
    peer.walk(0, 1, b"file")
    export.later.add("open")
    first = peer.send(c.TLOPEN, 1, 0, tag=1)
    assert peer.error(c.TLOPEN, 1, 0, tag=2) == errno.EBUSY
    assert peer.error(c.TREAD, 1, 0, 1, tag=2) == errno.EINVAL
    peer.finish()
    assert peer.reply(first)[0] == c.RLOPEN
    assert peer.read(1, 0, 3) == b"012"


def test_a_failed_open_can_be_tried_again(peer: Peer, export: Export) -> None:
    peer.walk(0, 1, b"file")
    export.later.add("open")
    peer.send(c.TLOPEN, 1, 0)
    peer.finish(error=OSError(errno.EMFILE, "too many"))
    export.later.clear()
    peer.call(c.TLOPEN, 1, 0)


def test_an_open_whose_fid_is_clunked_meanwhile(peer: Peer, export: Export) -> None:
    peer.walk(0, 1, b"file")
    export.later.add("open")
    opens = peer.send(c.TLOPEN, 1, 0, tag=1)
    peer.call(c.TCLUNK, 1, tag=2)
    peer.finish()
    assert peer.error_of(opens) == errno.ENOENT
    assert not export.files
    assert len(export.nodes) == 1


def test_special_files_are_not_opened(peer: Peer, export: Export) -> None:
    export.add("fifo", mode=stat.S_IFIFO | 0o644)
    peer.walk(0, 1, b"fifo")
    assert peer.error(c.TLOPEN, 1, 0) == errno.ENXIO


# --- Tlcreate ---


def test_lcreate_turns_the_fid_into_the_file(peer: Peer, export: Export) -> None:
    peer.walk(0, 1, b"folder")
    qid, iounit = peer.call(c.TLCREATE, 1, b"new", c.DOTL_RDWR | c.DOTL_CREATE | c.DOTL_EXCL, 0o100640, 77)
    assert (qid, iounit) == (export.find("folder/new").qid, 4096)
    assert export.calls[-1] == ("create", b"new", os.O_RDWR | os.O_EXCL, 0o640, 1000, 77)
    assert peer.call(c.TGETATTR, 1, 0)[1] == qid
    assert peer.write(1, 0, b"hello") == 5
    assert len(export.nodes) == 2


def test_files_are_created_in_folders(peer: Peer) -> None:
    peer.walk(0, 1, b"file")
    assert peer.error(c.TLCREATE, 1, b"new", 0, 0o644, 0) == errno.ENOTDIR


def test_a_create_whose_fid_is_clunked_meanwhile(peer: Peer, export: Export) -> None:
    peer.walk(0, 1, b"folder")
    export.later.add("create")
    creates = peer.send(c.TLCREATE, 1, b"new", 0, 0o644, 0, tag=1)
    reads = peer.send(c.TGETATTR, 1, 0, tag=3)
    peer.call(c.TCLUNK, 1, tag=2)
    peer.finish()
    assert peer.error_of(creates) == errno.ENOENT
    assert peer.reply(reads)[0] == c.RGETATTR
    assert not export.files
    assert len(export.nodes) == 1


def test_an_aborted_create_gives_back_what_it_got(peer: Peer, export: Export) -> None:
    export.later.add("create")
    peer.send(c.TLCREATE, 0, b"new", 0, 0o644, 0)
    peer.server.reset()
    peer.finish()
    assert not export.files
    assert not export.nodes


# --- Tread ---


@pytest.mark.parametrize(("offset", "count", "data"), [(0, 4, b"0123"), (8, 4, b"89"), (10, 4, b""), (0, 0, b"")])
def test_read(peer: Peer, offset: int, count: int, data: bytes) -> None:
    peer.open(1, b"file")
    assert peer.read(1, offset, count) == data


@pytest.mark.parametrize("count", [8181, 8182, 8192, 2**31, 2**32 - 1])
def test_a_read_is_limited_to_msize_and_to_the_room(peer: Peer, export: Export, count: int) -> None:
    """H085: count + 11 in 32 bits."""
    export.add("large", bytes(range(256)) * 64)
    peer.open(1, b"large")
    assert len(peer.read(1, 0, count, room=65536)) == 8192 - 11
    assert len(peer.read(1, 0, count, room=100)) == 100 - 11
    assert peer.read(1, 0, count, room=11) == b""


@pytest.mark.parametrize("offset", [2**63 - 1, 2**63, 2**64 - 1])
def test_no_file_is_that_long(peer: Peer, offset: int) -> None:
    peer.open(1, b"file")
    assert peer.error(c.TREAD, 1, offset, 10) == errno.EINVAL
    assert peer.error(c.TWRITE, 1, offset, 1, data=b"x") == errno.EFBIG
    assert peer.read(1, 2**63 - 12, 10) == b""


def test_what_cannot_be_read(peer: Peer) -> None:
    peer.walk(0, 1, b"file")
    assert peer.error(c.TREAD, 1, 0, 10) == errno.EINVAL
    peer.open(2, b"folder")
    assert peer.error(c.TREAD, 2, 0, 10) == errno.EOPNOTSUPP
    assert peer.error(c.TREAD, 99, 0, 10) == errno.EINVAL


def test_a_failed_read_leaves_an_error_only(peer: Peer, export: Export) -> None:
    peer.open(1, b"file")
    export.failing["read"] = OSError(errno.EIO, "io")
    token = peer.send(c.TREAD, 1, 0, 10)
    assert peer.nbytes(token) == 11
    assert peer.error_of(token) == errno.EIO


# --- Twrite ---


def test_write(peer: Peer, export: Export) -> None:
    peer.open(1, b"file")
    assert peer.write(1, 8, b"abcd") == 4
    assert peer.write(1, 0, b"") == 0
    assert export.find("file").content == b"01234567abcd"


def test_a_short_write_is_told(peer: Peer, export: Export) -> None:
    peer.open(1, b"file")
    export.write = lambda _file, _offset, buffers: buffers.nbytes - 1
    assert peer.write(1, 0, b"abcd") == 3


@pytest.mark.parametrize("count", [5, 2**32 - 24, 2**32 - 1])
def test_a_count_beyond_the_data_is_no_request(peer: Peer, count: int) -> None:
    """H137, H085."""
    peer.open(1, b"file")
    message = codec.encode(c.TWRITE, 1, 1, 0, 4)
    for size in (27, (23 + count) % 2**32):
        with pytest.raises(MessageError):
            peer.submit(size.to_bytes(4, "little") + message[4:19] + count.to_bytes(4, "little") + b"abcd")


@pytest.mark.parametrize("nbytes", [4, 600])
def test_a_write_whose_data_is_missing_is_no_request(peer: Peer, export: Export, nbytes: int) -> None:
    peer.open(1, b"file")
    with pytest.raises(MessageError):
        peer.send(c.TWRITE, 1, 0, nbytes + 1, data=bytes(nbytes))
    assert export.find("file").content == b"0123456789"


def test_what_cannot_be_written(peer: Peer) -> None:
    peer.walk(0, 1, b"file")
    assert peer.error(c.TWRITE, 1, 0, 1, data=b"x") == errno.EINVAL
    peer.open(2, b"folder")
    assert peer.error(c.TWRITE, 2, 0, 1, data=b"x") == errno.EINVAL
    assert peer.error(c.TWRITE, 99, 0, 1, data=b"x") == errno.EINVAL


def test_a_payload_is_never_allocated(make_peer: Callable[..., Peer], export: Export) -> None:
    peer = make_peer().version(1 << 20).attach()
    peer.open(1, b"file")

    def nothing(_file: Any, _offset: int, buffers: Buffers) -> int:
        return buffers.nbytes

    export.read = export.write = nothing
    nbytes = 500_000
    for kind in (c.TREAD, c.TWRITE):
        message = codec.encode(kind, 1, 1, 0, nbytes) + (bytes(nbytes) if kind == c.TWRITE else b"")
        peer.submit(message, nbytes + 11)
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            peer.server.submit(
                _of(message), _of(peer.rooms[-1]), lambda token, nbytes: peer.ended.append((token, nbytes)), None
            )
            peak = tracemalloc.get_traced_memory()[1] - before
        finally:
            tracemalloc.stop()
        assert peak < 20_000


def _of(data: Any) -> Buffers:
    from pyvirtfs.memory.buffers import ViewBuffers

    return ViewBuffers.of(data)


# --- Tfsync ---


@pytest.mark.parametrize("datasync", [0, 1, 7])
def test_fsync(peer: Peer, export: Export, datasync: int) -> None:
    for fid, name in ((1, b"file"), (2, b"folder")):
        peer.open(fid, name)
        peer.call(c.TFSYNC, fid, datasync)
        assert export.calls[-1] == ("fsync", bool(datasync))


def test_fsync_needs_an_open_fid(peer: Peer) -> None:
    assert peer.error(c.TFSYNC, 0, 0) == errno.EINVAL


def test_the_old_form_of_fsync_is_malformed(peer: Peer) -> None:
    """H135."""
    peer.open(1, b"file")
    message = codec.encode(c.TFSYNC, 1, 1, 0)[:-4]
    with pytest.raises(MessageError):
        peer.submit(len(message).to_bytes(4, "little") + message[4:])


@pytest.mark.parametrize("answer", [-1, 11, 2**32 - 1, 2**64])
@pytest.mark.parametrize("kind", [c.TREAD, c.TWRITE])
@pytest.mark.parametrize("later", [False, True])
def test_a_driver_whose_count_lies_broke_its_contract(
    peer: Peer, export: Export, caplog: pytest.LogCaptureFixture, answer: int, kind: int, later: bool
) -> None:
    peer.open(1, b"file")
    name, data = ("read", b"") if kind == c.TREAD else ("write", bytes(10))
    if later:
        export.later.add(name)
    setattr(export, name, lambda *_: export._answer(name, lambda: answer))
    token = peer.send(kind, 1, 0, 10, data=data)
    if later:
        peer.finish()
    assert peer.error_of(token) == errno.EIO
    assert f"driver FakeExport broke its contract in a T{name}" in caplog.text
    assert (peer.server.counters.bytes_read, peer.server.counters.bytes_written) == (0, 0)


def test_a_discarded_file_whose_close_breaks_does_not_keep_the_node(peer: Peer, export: Export) -> None:
    export.later.add("create")
    peer.send(c.TLCREATE, 0, b"new", 0, 0o644, 0)
    export.failing["close_file"] = KeyError("bug")
    peer.server.reset()
    peer.finish()
    assert not export.nodes
