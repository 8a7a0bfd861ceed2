"""The whole device: requests wait in the ring, then the doorbell rings; beside each the bare system calls as its floor.

`depth` is the number of requests that one doorbell finds: 1 is a guest that waits for every answer, 64 a busy one. The
export is on tmpfs. Times are for one operation (a walk and its clunk are one).
"""

from __future__ import annotations

import contextlib
import os
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.ring_feeder import PAGE, Request, RingFeeder
from pyvirtfs import GuestMemory, Virtio9pPci
from pyvirtfs.p9 import codec
from pyvirtfs.p9 import constants as p9
from pyvirtfs.syscalls import read_directory

RAM = 192 << 20
MSIZE = 1 << 20
BIG = 500 * 1024
SPREAD = 64  # payloads in turn, in the file and in guest RAM: more than a processor's cache holds
ROOT, FILE, FOLDER, OUT = 0, 1, 2, 3
DEPTHS = [1, 64]
PAYLOAD = 32 << 20  # where the payload pages begin
BATCH = 64  # requests in a round, at depth 1 too: one by one, but not from cold caches
ROUNDS = 300
NEVER_REACHED = ",throttling.bps-read=1000000000000,throttling.iops-total=1000000000"


class Sink:
    """Interrupts go nowhere."""

    def msix(self, vector: int, address: int, data: int) -> None:
        """Drop it."""

    def intx(self, level: bool) -> None:
        """Drop it."""


@pytest.fixture
def feeder(export: Path, request: pytest.FixtureRequest) -> Iterator[RingFeeder]:
    """A device on `export` with fids for a file, a folder of 1000 entries and a file opened for writing.

    Its parameter is what else stands in the export's options.
    """
    more = getattr(request, "param", "")
    (export / "file").write_bytes(os.urandom(BIG) * SPREAD)
    (export / "out").write_bytes(bytes(BIG) * SPREAD)
    (export / "folder").mkdir()
    for number in range(998):  # and . and ..
        (export / "folder" / f"entry-{number:04d}").touch()
    memory = GuestMemory.anonymous(RAM)
    memory.write(PAYLOAD, bytes(RAM - PAYLOAD))  # touch the pages once
    with Virtio9pPci(
        f"local,path={export},security_model=none{more}", mount_tag="bench", memory=memory, interrupts=Sink()
    ) as device:
        feeder = RingFeeder(device, memory)
        call, encode = feeder.call_once, codec.encode
        call(encode(p9.TVERSION, p9.NOTAG, MSIZE, b"9P2000.L"))
        call(encode(p9.TATTACH, 0, ROOT, p9.NOFID, b"root", b"", 0))
        for fid, name, flags in ((FILE, b"file", 0), (FOLDER, b"folder", 0o200000), (OUT, b"out", 1)):
            call(encode(p9.TWALK, 0, ROOT, fid, (name,)))
            reply = call(encode(p9.TLOPEN, 0, fid, flags))
            if reply[4] != p9.RLOPEN:
                raise RuntimeError(f"cannot open {name!r}: {reply!r}")
        yield feeder


def run(
    benchmark: Any,
    feeder: RingFeeder,
    requests: list[Request],
    depth: int,
    per_operation: int = 1,
    beside: Callable[[], Any] | None = None,
) -> None:
    """Measure `requests`, published `depth` at a time, one doorbell each.

    `beside` does the same with bare system calls and is timed between the rounds: where a copy takes most of the time,
    the machine's memory bandwidth drifts by more than what the device adds.
    """
    count = len(requests)
    bells = range(count // depth)
    floors: list[float] = []

    def ring_all() -> None:
        for _ in bells:
            feeder.ring(depth)

    feeder.stage(requests)
    ring_all()
    for request in requests:  # every reply once: the benchmark measures work that was done
        reply = feeder.memory.read(request.reply_address, 7)
        if reply[4] == p9.RLERROR:
            raise RuntimeError(f"a request failed: {feeder.memory.read(request.reply_address, 11)!r}")
    benchmark.extra_info["operations"] = count // per_operation

    def between() -> None:
        if beside is not None:
            start = time.perf_counter()
            beside()
            floors.append(time.perf_counter() - start)
        feeder.stage(requests)

    benchmark.pedantic(ring_all, setup=between, rounds=ROUNDS, warmup_rounds=10)
    if floors:
        benchmark.extra_info["beside"] = sorted(floors)[len(floors) // 10]


def floor(benchmark: Any, call: Callable[[], Any], operations: int = 1) -> None:
    """Measure the bare system calls of a group; `call` does them for so many operations."""
    benchmark.extra_info["floor"] = True
    benchmark.extra_info["operations"] = operations
    benchmark.extra_info["label"] = "bare system calls"
    benchmark.pedantic(call, rounds=ROUNDS, iterations=1 if operations > 1 else 64, warmup_rounds=10)


def expect(benchmark: Any, group: str, label: str, expected: str = "") -> None:
    """Name a row of the table."""
    benchmark.group = group
    benchmark.extra_info["label"] = label
    benchmark.extra_info["expected"] = expected


@pytest.mark.parametrize("depth", DEPTHS)
def test_getattr(benchmark: Any, feeder: RingFeeder, depth: int) -> None:
    """Tgetattr of a file by its fid."""
    expect(benchmark, "getattr", f"device, depth {depth}", "≤ 8 µs")
    message = codec.encode(p9.TGETATTR, 1, FILE, 0x7FF)
    run(benchmark, feeder, [feeder.add(message) for _ in range(BATCH)], depth)


def test_getattr_floor(benchmark: Any, export: Path) -> None:
    """fstat(2) on an O_PATH descriptor."""
    benchmark.group = "getattr"
    descriptor = os.open(export, os.O_PATH)
    floor(benchmark, lambda: os.fstat(descriptor))
    os.close(descriptor)


@pytest.mark.parametrize("depth", DEPTHS)
def test_walk_clunk(benchmark: Any, feeder: RingFeeder, depth: int) -> None:
    """Twalk of one name, then Tclunk."""
    expect(benchmark, "walk+clunk", f"device, depth {depth}", "≤ 16 µs")
    requests = []
    for number in range(BATCH // 2):
        requests.append(feeder.add(codec.encode(p9.TWALK, 2 * number, ROOT, 100 + number, (b"out",))))
        requests.append(feeder.add(codec.encode(p9.TCLUNK, 2 * number + 1, 100 + number)))
    run(benchmark, feeder, requests, depth, per_operation=2)


def test_walk_clunk_floor(benchmark: Any, feeder: RingFeeder, export: Path) -> None:
    """openat(2) with O_PATH, then close(2)."""
    benchmark.group = "walk+clunk"
    folder = os.open(export, os.O_PATH)
    floor(benchmark, lambda: os.close(os.open("out", os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)))
    os.close(folder)


def payload(count: int, pages: int, number: int) -> list[tuple[int, int]]:
    """Guest ranges of the payload `number`, `count` bytes: one range, or `pages` pages that do not adjoin."""
    where = PAYLOAD + number * 2 * count
    if pages == 1:
        return [(where, count)]
    return [(where + 2 * PAGE * number, PAGE) for number in range(pages)]


@contextlib.contextmanager
def bare(
    call: Callable[[int, list[memoryview], int], int], feeder: RingFeeder, path: Path, count: int, pages: int
) -> Iterator[Callable[[], object]]:
    """What moves all payloads of a file by `call`, preadv(2) or pwritev(2), between it and the guest's pages."""
    descriptor = os.open(path, os.O_RDWR)
    turns = [(feeder.memory.buffers(payload(count, pages, n)).views(), n * count) for n in range(SPREAD)]
    yield lambda: [call(descriptor, views, offset) for views, offset in turns]
    os.close(descriptor)


READS = [
    pytest.param(4096, 1, 1, "4 KiB", "depth 1", "≤ 9 µs", id="4k-1"),
    pytest.param(4096, 1, 64, "4 KiB", "depth 64", "≤ 9 µs", id="4k-64"),
    pytest.param(BIG, 1, 1, "500 KiB, one buffer", "depth 1", "≤ 1.11 x", id="500k-few-1"),
    pytest.param(BIG, 1, 64, "500 KiB, one buffer", "depth 64", "≤ 1.11 x", id="500k-few-64"),
    pytest.param(BIG, 125, 1, "500 KiB, 125 pages", "depth 1", "≤ 1.67 x", id="500k-pages-1"),
    pytest.param(BIG, 125, 64, "500 KiB, 125 pages", "depth 64", "≤ 1.67 x", id="500k-pages-64"),
]


@pytest.mark.parametrize("feeder", [NEVER_REACHED], indirect=True, ids=["throttled"])
@pytest.mark.parametrize("depth", DEPTHS)
def test_read_below_its_limits(benchmark: Any, feeder: RingFeeder, depth: int) -> None:
    """Tread of a throttled export whose limits of bytes and of requests are out of reach."""
    expect(benchmark, "read 4 KiB", f"device, throttled, depth {depth}")
    requests = []
    for number in range(SPREAD):
        message = codec.encode(p9.TREAD, 1, FILE, number * 4096, 4096)
        requests.append(feeder.add(message, room=11, writable=payload(4096, 1, number)))
    run(benchmark, feeder, requests, depth)


FLOORS = [(4096, 1, "4 KiB"), (BIG, 1, "500 KiB, one buffer"), (BIG, 125, "500 KiB, 125 pages")]


@pytest.mark.parametrize(("count", "pages", "depth", "size", "label", "expected"), READS)
def test_read(
    benchmark: Any,
    feeder: RingFeeder,
    export: Path,
    count: int,
    pages: int,
    depth: int,
    size: str,
    label: str,
    expected: str,
) -> None:
    """Tread into the guest's pages."""
    expect(benchmark, f"read {size}", f"device, {label}", expected)
    requests = []
    for number in range(SPREAD):
        message = codec.encode(p9.TREAD, 1, FILE, number * count, count)
        requests.append(feeder.add(message, room=11, writable=payload(count, pages, number)))
    with bare(os.preadv, feeder, export / "file", count, pages) as beside:
        run(benchmark, feeder, requests, depth, beside=beside if count == BIG else None)
    for request in requests:
        header: tuple[int, ...] = struct.unpack("<IBHI", feeder.memory.read(request.reply_address, 11))
        if header[3] != count:
            raise RuntimeError(f"a short read: {header}")


@pytest.mark.parametrize(("count", "pages", "size"), FLOORS, ids=["4k", "500k-few", "500k-pages"])
def test_read_floor(benchmark: Any, feeder: RingFeeder, export: Path, count: int, pages: int, size: str) -> None:
    """preadv(2) into the same pages, the list of views made once."""
    benchmark.group = f"read {size}"
    with bare(os.preadv, feeder, export / "file", count, pages) as call:
        floor(benchmark, call, SPREAD)


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize(("pages", "expected"), [(1, "≤ 1.11 x"), (125, "≤ 1.67 x")], ids=["few", "pages"])
def test_write(benchmark: Any, feeder: RingFeeder, export: Path, pages: int, expected: str, depth: int) -> None:
    """Twrite of 500 KiB out of the guest's pages."""
    size = "one buffer" if pages == 1 else f"{pages} pages"
    expect(benchmark, f"write 500 KiB, {size}", f"device, depth {depth}", expected)
    requests = []
    for number in range(SPREAD):
        message = codec.encode(p9.TWRITE, 1, OUT, number * BIG, BIG)
        requests.append(feeder.add(message, readable=payload(BIG, pages, number)))
    with bare(os.pwritev, feeder, export / "out", BIG, pages) as beside:
        run(benchmark, feeder, requests, depth, beside=beside)
    for request in requests:
        header: tuple[int, ...] = struct.unpack("<IBHI", feeder.memory.read(request.reply_address, 11))
        if header[3] != BIG:
            raise RuntimeError(f"a short write: {header}")


@pytest.mark.parametrize("pages", [1, 125])
def test_write_floor(benchmark: Any, feeder: RingFeeder, export: Path, pages: int) -> None:
    """pwritev(2) from the same pages, the list of views made once."""
    size = "one buffer" if pages == 1 else f"{pages} pages"
    benchmark.group = f"write 500 KiB, {size}"
    with bare(os.pwritev, feeder, export / "out", BIG, pages) as call:
        floor(benchmark, call, SPREAD)


def listing(feeder: RingFeeder, count: int, entries: int) -> list[Any]:
    """The requests of a whole listing of `FOLDER`; RuntimeError if it does not have so many entries."""
    room = feeder.allocate(count, PAGE)
    requests: list[Any] = []
    offset = seen = 0
    while True:
        request = feeder.add(codec.encode(p9.TREADDIR, 1, FOLDER, offset, count), room=11, writable=[(room, count)])
        nbytes = struct.unpack_from("<I", feeder.call(request), 7)[0]
        requests.append(request)
        if not nbytes:
            break
        data, at = feeder.memory.read(room, nbytes), 0
        while at < nbytes:
            offset, name = struct.unpack_from("<Q", data, at + 13)[0], struct.unpack_from("<H", data, at + 22)[0]
            at += 24 + name
            seen += 1
    if seen != entries:
        raise RuntimeError(f"{seen} entries")
    return requests


@pytest.mark.parametrize("count", [8192, 131072])
def test_listing(benchmark: Any, feeder: RingFeeder, count: int) -> None:
    """Treaddir until all 1000 entries were seen; one operation is the whole listing."""
    expect(benchmark, "list 1000 entries", f"device, count {count // 1024} KiB")
    requests = listing(feeder, count, 1000)
    run(benchmark, feeder, requests, 1, per_operation=len(requests))


def test_listing_floor(benchmark: Any, feeder: RingFeeder, export: Path) -> None:
    """lseek(2) and getdents64(2) over the same folder, entries as Python tuples."""
    benchmark.group = "list 1000 entries"
    descriptor = os.open(export / "folder", os.O_RDONLY | os.O_DIRECTORY)

    def call() -> None:
        os.lseek(descriptor, 0, os.SEEK_SET)
        while read_directory(descriptor):
            pass

    floor(benchmark, call)
    os.close(descriptor)


@pytest.mark.parametrize("depth", DEPTHS)
def test_create_clunk_unlink(benchmark: Any, feeder: RingFeeder, depth: int) -> None:
    """Twalk (a clone), Tlcreate, Tclunk, Tunlinkat: four requests, one operation."""
    expect(benchmark, "create+clunk+unlink", f"device, depth {depth}")
    requests = []
    for number in range(BATCH // 4):
        name, fid = b"new-%d" % number, 100 + number
        requests += [
            feeder.add(codec.encode(p9.TWALK, 1, ROOT, fid, ())),
            feeder.add(codec.encode(p9.TLCREATE, 1, fid, name, 0o102, 0o100644, 0)),
            feeder.add(codec.encode(p9.TCLUNK, 1, fid)),
            feeder.add(codec.encode(p9.TUNLINKAT, 1, ROOT, name, 0)),
        ]
    run(benchmark, feeder, requests, depth, per_operation=4)


def test_create_clunk_unlink_floor(benchmark: Any, feeder: RingFeeder, export: Path) -> None:
    """openat(2) with O_CREAT, close(2), unlinkat(2)."""
    benchmark.group = "create+clunk+unlink"
    folder = os.open(export, os.O_PATH)

    def call() -> None:
        os.close(os.open("bare", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=folder))
        os.unlink("bare", dir_fd=folder)

    floor(benchmark, call)
    os.close(folder)
