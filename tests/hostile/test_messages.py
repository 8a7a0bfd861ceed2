"""What replies look like, and what is no message (H130 to H140)."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable
from typing import Any, TypeAlias

import pytest

from pyvirtfs.fsdev.entries import Node
from pyvirtfs.fsdev.local import LocalDriver
from pyvirtfs.guest import COPYING, FEW_DESCRIPTORS, LINUX, OLD_LINUX, UNALIGNED
from pyvirtfs.p9 import constants as c
from pyvirtfs.p9 import frames
from pyvirtfs.p9.call import reply_size
from pyvirtfs.syscalls import StatFs
from tests.hostile.stack import NAMES, ROOT, Place, Stack, fields_of, message, ranges, raw, reply_of, running

Start: TypeAlias = Callable[..., Stack]

# --- walks ---


@pytest.mark.parametrize("count", range(1, 17))
def test_h130_walks_that_end_early(stack: Stack, place: Place, count: int) -> None:
    """Of 1 to 16 names the first, a later one, or none is missing."""
    names = [b"%d" % i for i in range(count)]
    os.makedirs(place.export / "/".join(map(os.fsdecode, names)))
    inodes = [
        os.stat(place.export / "/".join(map(os.fsdecode, names[: i + 1]))).st_ino for i in range(count)
    ]  # fmt: skip
    before = stack.fids
    for missing in range(count):
        newfid = stack.new()
        reply = stack.ask("Twalk", newfid=newfid, wnames=[*names[:missing], b"gone", *names[missing + 1 :]])
        if missing == 0:
            assert reply.errno == errno.ENOENT
        else:
            qids = frames.parse(raw(reply.kind, reply.body)).fields["wqids"]
            assert [qid[2] for qid in qids] == inodes[:missing]
        assert stack.fids == before
        assert stack.errno("Tgetattr", fid=newfid) == errno.ENOENT
        moved = stack.fid()
        stack.errno("Twalk", fid=moved, newfid=moved, wnames=[*names[:missing], b"gone"])
        assert stack.qid(moved) == place.export.stat().st_ino  # where it was
        stack.clunk(moved)
    newfid = stack.new()
    qids = stack.do("Twalk", newfid=newfid, wnames=names)["wqids"]
    assert [qid[2] for qid in qids] == inodes
    assert stack.qid(newfid) == inodes[-1]


def test_h130_no_names_and_too_many(stack: Stack) -> None:
    newfid = stack.new()
    assert stack.do("Twalk", newfid=newfid)["wqids"] == ()
    assert stack.qid(newfid) == stack.qid(ROOT)
    for count in (17, 100, 5000):
        assert stack.errno("Twalk", newfid=stack.new(), wnames=[b"."] * count) == errno.EINVAL


@pytest.mark.parametrize("ignore_cancel", [False, True])
@pytest.mark.parametrize("names", [[b"folder", b"below"], [b"folder", b"gone"], [b"gone"], []])
def test_h131_a_walk_that_is_flushed(start: Start, place: Place, names: list[bytes], ignore_cancel: bool) -> None:
    """It has no answer and makes no fid; or, if it was over already, it is answered before the Rflush and made one."""
    delayed = place.delayed(ignore_cancel=ignore_cancel)
    stack = start(delayed)
    newfid = stack.new()
    delayed.delay.add("walk")
    walk = stack.start("Twalk", tag=50, newfid=newfid, wnames=names)
    flush = stack.start("Tflush", tag=51, oldtag=50)
    stack.channel.deliver()
    assert flush.done is not ignore_cancel
    delayed.delay.clear()
    delayed.release_all()
    stack.device.run_pending()
    reply = reply_of(stack.channel.wait(walk))
    flushed = reply_of(stack.channel.wait(flush))
    assert flushed is not None
    assert flushed.kind == c.RFLUSH
    if ignore_cancel:
        assert reply is not None
        assert reply.errno == (errno.ENOENT if names[:1] == [b"gone"] else 0)
        assert (stack.errno("Tclunk", fid=newfid) == 0) is (b"gone" not in names)
    else:
        assert reply is None
        assert stack.errno("Tgetattr", fid=newfid) == errno.ENOENT
    stack.do("Twalk", newfid=newfid)  # the number is free


# --- figures ---


class OddBlocks(LocalDriver):
    """A local export that tells a block size of the test's own."""

    bsize = 4096

    def statfs(self, node: Node) -> StatFs:
        return super().statfs(node)._replace(bsize=self.bsize)


@pytest.mark.parametrize("msize", [4096, 8192, 131072, 512000])
@pytest.mark.parametrize("bsize", [1, 512, 4096, 1 << 20])
def test_h132_blksize_is_the_iounit(start: Start, place: Place, bsize: int, msize: int) -> None:
    driver = place.driver(OddBlocks)
    driver.bsize = bsize  # type: ignore[attr-defined]
    stack = start(driver)
    assert stack.do("Tversion", tag=c.NOTAG, msize=msize)["msize"] == msize
    stack.do("Tattach", fid=ROOT)
    expected = (msize - 24) // bsize * bsize or msize - 24
    fid = stack.fid(b"file")
    assert stack.do("Tgetattr", fid=fid)["blksize"] == expected
    assert stack.do("Tlopen", fid=fid)["iounit"] == expected
    created = stack.fid(b"folder")
    assert stack.do("Tlcreate", fid=created)["iounit"] == expected
    assert stack.do("Tlopen", fid=stack.fid(b"folder"))["iounit"] == 0
    found = stack.do("Tstatfs")
    assert found["bsize"] == bsize
    assert found["blocks"] == os.statvfs(place.export).f_blocks


@pytest.mark.parametrize("nbytes", [1, 2, 254, 255])
def test_h133_directory_entries_end_where_they_end(stack: Stack, place: Place, nbytes: int) -> None:
    """Behind the last entry that is whole nothing is written, whatever fits."""
    names = {(b"%c" % (65 + i)) * nbytes for i in range(20)}
    folder = place.export / "names"
    folder.mkdir()
    for name in names:
        os.close(os.open(os.fsencode(folder) + b"/" + name, os.O_CREAT, 0o600))
    fid = stack.opened(b"names", flags=0)
    whole = bytes(stack.do("Treaddir", 16384, fid=fid, count=16000)["data"])
    assert {name for *_, name in frames.parse_directory(whole)} == {*names, b".", b".."}
    for count in (*range(24 + nbytes, 24 + nbytes + 40, 3), 700, 3000, len(whole) - 1, len(whole), len(whole) + 1):
        data = message("Treaddir", fid=fid, count=count)
        buffer = stack.pair.mount.allocate(20480)
        buffer.write(0, data)
        buffer.write(4096, b"\xee" * 16384)
        request = stack.channel.wait(ranges(stack, buffer.slice(0, len(data)), buffer.slice(4096, count + 11)))
        assert request.nbytes is not None
        reply = buffer.read(4096, request.nbytes)
        assert buffer.read(4096 + request.nbytes, 2000) == b"\xee" * 2000
        if reply[4] == c.RLERROR:
            assert count < 24 + max(nbytes, 2)
        else:
            assert 0 < len(reply) - 11 <= count
            assert whole.startswith(reply[11:])
            frames.parse_directory(reply[11:])


@pytest.mark.parametrize(("kind", "status"), [(c.LOCK_TYPE_WRLCK, 1), (c.LOCK_TYPE_RDLCK, 1), (c.LOCK_TYPE_UNLCK, 0)])
def test_h134_an_rlock_has_8_bytes(stack: Stack, kind: int, status: int) -> None:
    one, two = stack.opened(b"file"), stack.opened(b"file")
    assert stack.ask("Tlock", fid=one) == (c.RLOCK, b"\0")
    assert stack.ask("Tlock", 8 + 3, fid=two, type=kind, proc_id=2) == (c.RLOCK, bytes([status]))
    request = stack.start("Tlock", fid=two, type=kind, proc_id=2)
    assert stack.channel.wait(request).nbytes == 8


def test_h135_a_sync_with_and_without_its_field(stack: Stack) -> None:
    """The form of before `datasync` was added ends early: it is no message, and nothing hangs."""
    for datasync in (0, 1, 2, 0xFFFFFFFF):
        stack.do("Tfsync", fid=stack.opened(b"file"), datasync=datasync)
        stack.do("Tfsync", fid=stack.opened(flags=0), datasync=datasync)
    for rest in (b"", b"\0", b"\0\0\0"):
        for size in (None, 15):
            assert stack.send(raw(c.TFSYNC, struct.pack("<I", stack.opened(b"file")) + rest, size=size)) is None
            stack.remount()
    assert stack.send(raw(c.TFSYNC, struct.pack("<I", stack.opened(b"file")) + bytes(8), size=11)) is None


def test_h136_the_id_of_a_file_system(place: Place) -> None:
    found = set()
    for _ in range(3):
        with running(place.fsdev) as stack:
            for _ in range(2):
                found |= {stack.do("Tstatfs", fid=fid)["fsid"] for fid in (ROOT, stack.fid(b"folder", b"below"))}
                stack.remount()
    assert len(found) == 1
    assert found != {0}


def test_h136_a_file_system_without_an_id(start: Start) -> None:
    stack = start("local,path=/proc/self,security_model=none,readonly=on")
    assert stack.do("Tstatfs")["fsid"] != 0


# --- counts and lengths ---


@pytest.mark.parametrize("lie", [1, 2, 0xFF, 0x7FFF, 0xFFF0])
def test_h137_strings_longer_than_their_message(stack: Stack, place: Place, lie: int) -> None:
    before = sorted(os.listdir(place.export))
    name = b"name"
    one, two = struct.pack("<I", ROOT), struct.pack("<II", ROOT, ROOT)
    for request, body in (
        ("Tmkdir", one), ("Tlcreate", one), ("Tsymlink", one), ("Tmknod", one), ("Tunlinkat", one), ("Trenameat", one),
        ("Tlink", two), ("Trename", two), ("Txattrwalk", struct.pack("<II", ROOT, 99)), ("Txattrcreate", one),
        ("Twalk", struct.pack("<IIH", ROOT, 99, 1)), ("Tattach", struct.pack("<II", 99, c.NOFID)),
        ("Tversion", struct.pack("<I", 8192)),
    ):  # fmt: skip
        kind = message(request)[4]
        for size in (None, 7 + len(body) + 2 + len(name) + lie):
            data = raw(kind, body + struct.pack("<H", len(name) + lie) + name, size=size)
            assert stack.send(data) is None, request
            stack.remount()
    assert sorted(os.listdir(place.export)) == before


@pytest.mark.parametrize("count", [2, 3, 16, 17, 0x7FFF, 0xFFFF])
def test_h137_more_names_than_there_are(stack: Stack, count: int) -> None:
    names = struct.pack("<H", 4) + b"file"
    for body in (names, b"", names[:3]):
        assert stack.send(raw(c.TWALK, struct.pack("<IIH", ROOT, 99, count) + body)) is None
        stack.remount()


@pytest.mark.parametrize("count", [5, 100, 1 << 16, 1 << 31, (1 << 32) - 24, (1 << 32) - 1])
def test_h137_more_data_than_there_is(stack: Stack, place: Place, count: int) -> None:
    for opened in (True, False):
        fid = stack.opened(b"file") if opened else 4711
        body = struct.pack("<IQI", fid, 0, count) + b"data"
        for size in (None, (23 + count) & 0xFFFFFFFF):
            assert stack.send(raw(c.TWRITE, body, size=size)) is None
            stack.remount()
            fid = stack.opened(b"file") if opened else 4711
            body = struct.pack("<IQI", fid, 0, count) + b"data"
    assert (place.export / "file").read_bytes() == b"Hi Guest"


def test_h137_less_data_than_there_is(stack: Stack, place: Place) -> None:
    body = struct.pack("<IQI", stack.opened(b"file"), 0, 2) + b"data"
    assert stack.send(raw(c.TWRITE, body)) is None
    assert (place.export / "file").read_bytes() == b"Hi Guest"


# --- Tversion ---

MSIZES: dict[int, int] = {  # msize -> what is agreed to, or -errno
    0: -errno.EMSGSIZE, 7: -errno.EMSGSIZE, 23: -errno.EMSGSIZE, 24: -errno.EMSGSIZE, 4095: -errno.EMSGSIZE,
    4096: 4096, 4097: 4097, 131072: 131072, 1022 * 4096: 1022 * 4096, 1022 * 4096 + 1: 1022 * 4096,
    2**31: 1022 * 4096, 2**32 - 1: 1022 * 4096,
}  # fmt: skip


@pytest.mark.parametrize(("msize", "agreed"), MSIZES.items())
def test_h138_msizes(stack: Stack, msize: int, agreed: int) -> None:
    reply = stack.ask("Tversion", tag=c.NOTAG, msize=msize)
    assert stack.fids == 0  # whatever the answer
    if agreed < 0:
        assert reply.errno == -agreed
        assert stack.errno("Tattach", fid=ROOT) != 0  # there is no session
    else:
        assert frames.parse(raw(reply.kind, reply.body)).fields == {"msize": agreed, "version": b"9P2000.L"}
        stack.do("Tattach", fid=ROOT)
    unknown = stack.do("Tversion", tag=c.NOTAG, msize=msize, version=b"nonsense")
    assert unknown["version"] == b"unknown"
    stack.remount()


@pytest.mark.parametrize("version", [b"", b"9", b"unknown", b"9P2001.L", b"9p2000.l", b"9P2000L", b"\0", b"x" * 60000])
def test_h138_unknown_versions(stack: Stack, version: bytes) -> None:
    fid = stack.opened(b"file")
    assert stack.do("Tversion", tag=c.NOTAG, version=version)["version"] == b"unknown"
    assert stack.fids == 0
    for name in NAMES:
        if name not in {"Tversion", "Tflush"}:
            assert stack.errno(name) != 0
    assert stack.errno("Tread", fid=fid) != 0
    assert stack.do("Tversion", tag=c.NOTAG)["version"] == b"9P2000.L"
    stack.do("Tattach", fid=ROOT)


@pytest.mark.parametrize(
    ("version", "agreed"),
    [
        (b"9P2000.L.x", b"9P2000.L"), (b"9P2000.u.L", b"9P2000.u"), (b"9P2000.L\0", b"9P2000"),
        (b"9P2000.", b"9P2000"), (b"9P2000." + b"x" * 60000, b"9P2000"),
    ],
)  # fmt: skip
def test_h138_versions_that_a_period_ends(stack: Stack, version: bytes, agreed: bytes) -> None:
    """version(5): what is asked for up to one of its periods is spoken, and the session begins anew."""
    assert stack.do("Tversion", tag=c.NOTAG, version=version)["version"] == agreed
    assert stack.fids == 0


@pytest.mark.parametrize("ignore_cancel", [False, True])
@pytest.mark.parametrize("version", [b"9P2000.L", b"nonsense"])
def test_h138_a_version_amidst_requests(start: Start, place: Place, version: bytes, ignore_cancel: bool) -> None:
    """They end without an answer, before it is answered; none of what they would have made is there."""
    delayed = place.delayed(ignore_cancel=ignore_cancel)
    stack = start(delayed)
    fid = stack.opened(b"file")
    delayed.delay |= {"read", "walk", "open", "create", "getattr"}
    sent = [
        stack.start("Tread", tag=1, fid=fid), stack.start("Twalk", tag=2, newfid=500, wnames=[b"file"]),
        stack.start("Tlcreate", tag=4, fid=ROOT), stack.start("Tgetattr", tag=5),
        stack.start("Tflush", tag=6, oldtag=1),
    ]  # fmt: skip
    again = [stack.start("Tversion", tag=tag, version=version, msize=8192) for tag in (c.NOTAG, 1)]
    delayed.delay.clear()
    delayed.release_all()
    stack.device.run_pending()
    stack.channel.deliver()
    assert all(request.done for request in (*sent, *again))
    assert not any(request.nbytes for request in sent[1:4])
    reply = reply_of(again[1])
    assert reply is not None
    assert reply.kind == c.RVERSION
    assert stack.fids == 0
    stack.remount()


# --- room as Linux gives it ---


@pytest.mark.parametrize("shapes", [LINUX, OLD_LINUX, COPYING, FEW_DESCRIPTORS, UNALIGNED])
@pytest.mark.parametrize("msize", [4096, 8192, 131072, 512000])
def test_h139_replies_in_the_room_that_linux_gives(place: Place, shapes: Any, msize: int) -> None:
    """Since 6.1 that is what the reply may need and mostly 4096 bytes, not msize."""
    (place.export / "big").write_bytes(os.urandom(600_000))
    (place.export / "long").symlink_to("t" * 4000)
    names = [b"n%d" % i for i in range(16)]
    os.makedirs(place.export / "/".join(map(os.fsdecode, names)))
    os.setxattr(place.export / "file", "user.x", b"v" * 3000)
    with running(place.fsdev, shapes=shapes, msize=msize) as stack:
        session, client = stack.pair.session, stack.pair.session.client
        big = session.walk(ROOT, [b"big"])
        session.run(client.lopen(big))
        most = session.max_io
        content = (place.export / "big").read_bytes()
        assert session.run(client.read(big, 0, most)) == content[:most]
        assert len(session.run(client.walk(ROOT, names))) == 16
        link = session.walk(ROOT, [b"long"])
        assert session.run(client.readlink(link)) == b"t" * 4000 if msize > 4096 else True
        value = client.xattrwalk(session.walk(ROOT, [b"file"]), b"user.x")
        assert session.run(value) == 3000
        assert session.run(client.read(value.fid, 0, 3000)) == b"v" * 3000
        listing = session.walk(ROOT)
        session.run(client.lopen(listing))
        assert session.run(client.readdir(listing, 0, most))
        for name, fields in fields_of(stack).items():
            if name in {"Tauth", "Tversion"}:
                continue
            room = reply_size(name, fields, msize)
            assert stack.send(message(name, **fields), room) is not None, name
