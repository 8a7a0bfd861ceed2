"""What a guest can use up: memory, descriptors, time, numbers (H080 to H091)."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import resource
import shutil
import struct
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest

from pyvirtfs.fsdev.entries import Node
from pyvirtfs.fsdev.local import LocalDriver
from pyvirtfs.fsdev.qids import QidPaths
from pyvirtfs.memory import GuestMemory
from pyvirtfs.p9 import constants as c
from pyvirtfs.p9 import frames
from pyvirtfs.syscalls import StatFs
from pyvirtfs.testing import FakeClock, fake_clock, open_descriptors
from tests.hostile.stack import ROOT, Place, Stack, message, ranges, raw, reply_of, running, sizes, snapshot

Start: TypeAlias = Callable[..., Stack]


@pytest.fixture
def roomy(tmp_path: Path) -> Iterator[Place]:
    """A place for many files: in memory, if the host has that. Name it before `start`: its folder goes at the end."""
    shm = Path("/dev/shm")
    top = Path(tempfile.mkdtemp(dir=shm if os.access(shm, os.W_OK) else tmp_path, prefix="pyvirtfs-"))
    try:
        place = Place(top)
        yield place
        place.check()
    finally:
        shutil.rmtree(top)


@contextlib.contextmanager
def flat_memory(allowed: int) -> Iterator[None]:
    """What Python has allocated at the end is, but for `allowed` bytes, what it had at the beginning."""
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        yield
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
        assert after - before < allowed, f"{after - before} bytes more than before"
    finally:
        tracemalloc.stop()


# --- reads and writes ---


@sizes(3000, 10_000)
def test_h080_reads_leave_nothing_behind(start: Start, count: int) -> None:
    """3000 Treads (10,000) that work and as many that fail."""
    stack = start(messages=0)
    fid, folder, unopened = stack.opened(b"file"), stack.opened(flags=0), stack.fid(b"file")
    kinds = [
        message("Tread", fid=fid, count=8), message("Tread", fid=fid, offset=2**63, count=8),
        message("Tread", fid=fid, offset=8, count=8), message("Tread", fid=folder, count=100),
        message("Tread", fid=unopened, count=8), message("Tread", fid=c.NOFID, count=8),
    ]  # fmt: skip
    expected = [0, errno.EINVAL, 0, errno.EOPNOTSUPP, errno.EINVAL, errno.EINVAL]
    assert [reply.errno for reply in stack.bulk(kinds)] == expected
    before = open_descriptors()
    with flat_memory(200_000):
        for index, reply in enumerate(stack.bulk(kinds[i % 6] for i in range(2 * count))):
            assert reply.errno == expected[index % 6]
    assert open_descriptors() == before


@pytest.mark.parametrize("room", range(11))
def test_h081_a_write_whose_reply_has_no_room(stack: Stack, place: Place, room: int) -> None:
    tree, before = snapshot(place.export), open_descriptors()
    for nbytes in (4, 3000):
        fid = stack.opened(b"file")
        data = message("Twrite", fid=fid, data=b"x" * nbytes)
        buffer = stack.pair.mount.allocate(4096)
        buffer.write(0, data)
        pieces = buffer.slice(0, len(data))
        ranges(stack, pieces, [(buffer.address, room)] if room else [])
        assert stack.needs_reset
        assert snapshot(place.export) == tree  # nothing was written
        stack.remount()
    assert open_descriptors() == before


def test_h081_memory_of_such_writes(stack: Stack) -> None:
    data = message("Twrite", fid=stack.opened(b"file"), data=b"x" * 3000)
    assert stack.send(data, 7) is None
    stack.remount()
    with flat_memory(100_000):
        for _ in range(50):
            fid = stack.opened(b"file")
            assert stack.send(message("Twrite", fid=fid, data=b"x" * 3000), 7) is None
            stack.remount()


# --- descriptors ---


@contextlib.contextmanager
def exhausted() -> Iterator[None]:
    """The process has no descriptor left."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, max(open_descriptors()) + 20), hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        yield
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_h083_without_descriptors_a_listing_is_whole_or_an_error(stack: Stack, place: Place) -> None:
    names = [b"%04d" % i for i in range(500)]
    for name in names:
        (place.export / "folder" / os.fsdecode(name)).touch()
    whole = sorted([b".", b"..", b"below", *names])
    listing, fresh, file = stack.opened(b"folder", flags=0), stack.fid(b"folder"), stack.fid(b"file")
    for count in (300, 4000):
        with exhausted():
            seen: list[bytes] = []
            offset, error = 0, 0
            while True:
                reply = stack.ask("Treaddir", fid=listing, offset=offset, count=count)
                entries = [] if reply.errno else frames.parse_directory(reply.body[4:])
                error = reply.errno
                if not entries:
                    break
                seen += [name for *_, name in entries]
                offset = entries[-1][1]
            opened = stack.ask("Tlopen", fid=fresh).errno
            walked = [stack.ask("Twalk", newfid=stack.new(), wnames=[b"folder", name]).errno for name in names[:20]]
            known = stack.ask("Tgetattr", fid=file).errno
            made = stack.ask("Tlcreate", fid=stack.fid(), name=b"new").errno
        assert error in {errno.EMFILE, errno.ENFILE} or sorted(seen) == whole
        assert opened in {errno.EMFILE, errno.ENFILE}
        assert set(walked) <= {errno.EMFILE, errno.ENFILE}  # and no partial walk, which means ENOENT
        assert known == 0
        assert made in {errno.EMFILE, errno.ENFILE}
        assert sorted(stack.listing(listing)) == whole
    assert not (place.export / "new").exists()


# --- counts ---


@pytest.mark.parametrize("msize", [4096, 8192, 131072])
def test_h084_counts_of_a_listing(stack: Stack, place: Place, msize: int) -> None:
    for i in range(700):
        (place.export / "folder" / f"{i:060}").touch()
    stack.do("Tversion", tag=c.NOTAG, msize=msize)
    stack.do("Tattach", fid=ROOT)
    fid = stack.opened(b"folder", flags=0)
    for count in (0, 1, 23, 24):
        assert stack.errno("Treaddir", fid=fid, count=count) == errno.EINVAL  # 0 bytes would mean the end
    for count in (25, 26, 100, msize - 24, msize - 11, msize - 10, msize, 2**31, 2**32 - 12, 2**32 - 1):
        for room in (msize, 4096):
            reply = stack.ask("Treaddir", room, fid=fid, count=count)
            (said,) = struct.unpack_from("<I", reply.body)
            assert 0 < said == len(reply.body) - 4 <= min(count, msize - 11, room - 11)
            assert frames.parse_directory(reply.body[4:])


@pytest.mark.parametrize("count", [2**32 - 24, 2**32 - 23, 2**32 - 12, 2**32 - 11, 2**32 - 7, 2**32 - 1])
def test_h085_counts_that_overflow_with_their_header(stack: Stack, place: Place, count: int) -> None:
    fid = stack.opened(b"file")
    for offset in (0, 3, 2**32 - 1):
        data = stack.do("Tread", fid=fid, offset=offset, count=count)["data"]
        assert data == b"Hi Guest"[offset:]
    assert stack.errno("Tread", fid=fid, offset=2**63 - 8, count=count) == errno.EINVAL
    body = struct.pack("<IQI", fid, 0, count) + b"data"
    for size in (7 + len(body), (count + 23) & 0xFFFFFFFF, 2**32 - 1):
        assert stack.send(raw(c.TWRITE, body, size=size)) is None
        stack.remount()
    assert (place.export / "file").read_bytes() == b"Hi Guest"


# --- large folders ---


def fill(folder: Path, count: int, nbytes: int) -> set[bytes]:
    """So many empty files with names of so many bytes."""
    parent = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    names = {b"%06d" % i + b"n" * (nbytes - 6) for i in range(count)}
    for name in names:
        os.close(os.open(name, os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=parent))
    os.close(parent)
    return names


@sizes(20_000, 100_000)
def test_h086_a_large_folder_in_portions(roomy: Place, start: Start, count: int) -> None:
    """20,000 names (100,000) of 255 bytes, some removed meanwhile: what stays is seen once, in bounded memory."""
    (roomy.export / "many").mkdir()
    names = fill(roomy.export / "many", count, 255)
    stack = start(roomy.fsdev, msize=512_000, messages=0)
    fid = stack.opened(b"many", flags=0)
    assert stack.errno("Treaddir", fid=fid, count=200) in {0, errno.EINVAL}  # "." may fit, and may come first
    seen: list[bytes] = []
    gone: set[bytes] = set()
    offset, portions, refused = 0, 0, 0
    tracemalloc.start()
    try:
        while True:
            portions += 1
            if portions % 50 == 0:  # one entry does not fit: an error, and nothing is lost by it
                refused += stack.errno("Treaddir", fid=fid, offset=offset, count=270) == errno.EINVAL
            reply = stack.ask("Treaddir", 8192 if portions % 2 else 128_000, fid=fid, offset=offset, count=128_000)
            entries = frames.parse_directory(reply.body[4:])
            if not entries:
                break
            seen += [name for *_, name in entries]
            offset = entries[-1][1]
            for name in (entries[0][3], entries[len(entries) // 2][3]):
                if name in names and name not in gone:
                    stack.do("Tunlinkat", dirfid=fid, name=name)
                    gone.add(name)
        assert tracemalloc.get_traced_memory()[1] < 4_000_000 + 400 * count  # mostly what `seen` holds
    finally:
        tracemalloc.stop()
    assert refused > 0
    assert len(seen) == len(set(seen))
    assert names | {b".", b".."} == set(seen)
    assert sorted(stack.listing(fid, 128_000, 128_000)) == sorted({*names, b".", b".."} - gone)


def test_h087_a_listing_takes_linear_time(roomy: Place, start: Start) -> None:
    """10,000 and 40,000 entries: less than 6 times the processor time, the best of three."""
    stack = start(roomy.fsdev, messages=0)
    best = []
    for name, count in (("few", 10_000), ("many", 40_000)):
        (roomy.export / name).mkdir()
        fill(roomy.export / name, count, 12)
        fid = stack.opened(os.fsencode(name), flags=0)
        times = []
        for _ in range(3):
            begun = time.process_time()
            offset, entries = 0, 0
            while body := stack.ask("Treaddir", fid=fid, offset=offset, count=8000).body[4:]:
                at = 0
                while at < len(body):
                    offset, _, nbytes = struct.unpack_from("<QBH", body, at + 13)
                    at += 24 + nbytes
                    entries += 1
            times.append(time.process_time() - begun)
            assert entries == count + 2
        best.append(min(times))
    assert best[1] < 6 * best[0]


# --- odd file systems ---


class OddBlocks(LocalDriver):
    """A local export that tells a block size of the test's own."""

    bsize = 0

    def statfs(self, node: Node) -> StatFs:
        return super().statfs(node)._replace(bsize=self.bsize)


@pytest.mark.parametrize("bsize", [0, 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, -1])
def test_h088_block_sizes(start: Start, place: Place, bsize: int) -> None:
    driver = place.driver(OddBlocks)
    driver.bsize = bsize  # type: ignore[attr-defined]
    stack = start(driver)
    found = stack.do("Tstatfs")
    assert found["fsid"] != 0
    assert 0 <= found["bsize"] < 2**32
    fid = stack.fid(b"file")
    assert 0 < stack.do("Tlopen", fid=fid)["iounit"] <= 131072 - 24
    assert 0 < stack.do("Tgetattr", fid=fid)["blksize"] <= 131072 - 24
    assert stack.read(fid) == b"Hi Guest"


def every_file_a_device(driver: LocalDriver) -> None:
    """From now on each object but the root looks as if it were on a device of its own, its inode number huge."""
    table = driver._table
    real, buffer, root = table.statx, table.buffer, table.root.path

    def statx(fd: int, name: bytes = b"") -> None:
        real(fd, name)
        (inode,) = struct.unpack_from("=Q", buffer, 32)
        if inode != root:
            struct.pack_into("=Q", buffer, 32, inode | 0xFFFF << 48)
            struct.pack_into("=II", buffer, 136, 0x7000 + inode % 4096, inode // 4096)

    table.statx = statx


def test_h089_more_devices_than_prefixes(start: Start, place: Place) -> None:
    """When the prefixes are used up objects are numbered one by one, and when those are, ENFILE; none twice."""
    for i in range(200):
        (place.export / f"{i}").touch()
    driver = place.driver()
    stack = start(driver)
    device = driver._table.device
    qids = driver._table.qids = QidPaths(device, singles=60)
    every_file_a_device(driver)
    paths: set[int] = set()
    for number in range(0x7FFF - 40):  # devices that the guest has seen before
        paths.add(qids.path(1 << 40 | number, 1))
    refused = 0
    for i in range(200):
        newfid = stack.new()
        reply = stack.ask("Twalk", newfid=newfid, wnames=[b"%d" % i])
        if reply.errno:
            assert reply.errno == errno.ENFILE
            refused += 1
            continue
        path = stack.qid(newfid)
        assert path not in paths
        paths.add(path)
    assert refused == 200 - 40 - 60
    for i in range(0, 200, 20):  # the numbers stay
        reply = stack.ask("Twalk", newfid=stack.new(), wnames=[b"%d" % i])
        assert reply.errno or int.from_bytes(reply.body[7:15], "little") in paths
    assert stack.qid(ROOT) == place.export.stat().st_ino


# --- many at once ---


@pytest.mark.parametrize("name", ["Tread", "Twrite"])
def test_h090_a_ring_full_of_the_largest_messages(place: Place, name: str) -> None:
    """128 requests of half a megabyte each wait: the device holds none of their bytes."""
    nbytes = 512_000 - 24
    delayed = place.delayed(ignore_cancel=True)
    with running(delayed, memory=GuestMemory.anonymous(128 << 20), msize=512_000, messages=0) as stack:
        fid = stack.opened(b"file")
        payload = stack.pair.mount.allocate(nbytes)
        client = stack.pair.session.client
        delayed.delay |= {"read", "write"}
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            sent = []
            for _ in range(128):
                if name == "Tread":
                    call = client.read(fid, 0, nbytes)
                else:
                    call = client.request("Twrite", fid=fid, offset=0, count=nbytes)  # type: ignore[assignment]
                sent.append(stack.pair.session.start(call, lent=payload))
            assert stack.device.server.busy == 128
            during, peak = tracemalloc.get_traced_memory()
            assert peak - before < 8 << 20  # that is 64 KiB each, most of it the guest's own
        finally:
            tracemalloc.stop()
        assert during - before < 8 << 20
        delayed.release_all()
        for one in sent:
            stack.channel.wait(one.request)
        delayed.delay.clear()
        for one in sent:
            stack.pair.session.finish(one)
    delayed.close()
    assert (place.export / "file").stat().st_size == (nbytes if name == "Twrite" else 8)


def test_h090_requests_that_wait_are_bounded_by_the_ring(start: Start, place: Place) -> None:
    delayed = place.delayed(ignore_cancel=True)
    stack = start(delayed, queue_size=16, timeout=0.2)
    fid = stack.opened(b"file")
    delayed.delay.add("read")
    sent = [stack.start("Tread", tag=100 + i, fid=fid) for i in range(16)]
    assert stack.device.server.busy == 16
    assert stack.channel.queue.ring.free == 0
    with pytest.raises(Exception, match="the ring is full"):
        stack.start("Tread", tag=200, fid=fid)
    assert stack.device.server.busy == 16
    delayed.release_all()
    replies = [reply_of(stack.channel.wait(request)) for request in sent]
    assert all(reply is not None and reply.kind == c.RREAD for reply in replies)
    delayed.delay.clear()


# --- throttling ---


@pytest.fixture
def still() -> Iterator[FakeClock]:
    """No time passes."""
    with fake_clock() as clock:
        yield clock


@pytest.mark.usefixtures("still")
@pytest.mark.parametrize("option", ["iops-total", "iops-read", "bps-total", "bps-read"])
@pytest.mark.parametrize("how", ["flush", "clunk", "version", "queue", "reset"])
def test_h091_what_a_throttled_request_does_not_hold_up(start: Start, place: Place, option: str, how: str) -> None:
    """One read, or one byte, a second, of which none passes: all else is answered at once."""
    stack = start(f"{place.fsdev},throttling.{option}=1", timeout=1.0)
    fid, other = stack.opened(b"file"), stack.opened(b"folder", b"below")
    reads = [stack.start("Tread", tag=100 + i, fid=fid, count=8) for i in range(60)]
    stack.channel.deliver()
    waiting = [request for request in reads if not request.done]
    assert len(waiting) > 50
    for name in ("Tgetattr", "Tstatfs", "Twalk", "Tmkdir", "Tlopen"):
        stack.ask(name, **({"fid": stack.fid(b"folder")} if name == "Tlopen" else {}))  # these do not wait
    if how == "flush":
        for index in (50, 10, 59):
            assert stack.ask("Tflush", tag=9, oldtag=100 + index).kind == c.RFLUSH
            assert reads[index].nbytes == 0
        assert not reads[20].done
    elif how == "clunk":
        stack.clunk(other)
        stack.clunk(fid)
        assert stack.errno("Tread", fid=fid) == errno.EINVAL
    elif how == "version":
        stack.do("Tversion", tag=c.NOTAG)
        assert all(request.nbytes == 0 for request in waiting)
        stack.do("Tattach", fid=ROOT)
    elif how == "queue":
        common = stack.channel.driver.common
        common.write("queue_select", 0)
        common.write("queue_reset", 1)
        assert common.read("queue_reset") == 0
    else:
        stack.channel.driver.common.write("device_status", 0)
        assert stack.channel.driver.status == 0
    if how in {"queue", "reset"}:
        stack.remount()
    stack.do("Tversion", tag=c.NOTAG)  # nothing waits at the end
    stack.do("Tattach", fid=ROOT)
