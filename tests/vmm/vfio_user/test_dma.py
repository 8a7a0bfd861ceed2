"""DMA_MAP and DMA_UNMAP. Names as those of libvfio-user's tests of the same behaviour."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyvirtfs.errors import MemoryAccessError
from pyvirtfs.syscalls import SEAL_SEAL, SEAL_SHRINK, get_seals
from pyvirtfs.testing import check_descriptors
from pyvirtfs.vmm.vfio_user import dma

MAP, UNMAP = 2, 3
READABLE, WRITABLE = 1, 2
DIRTY, ALL = 1, 2
PAGE = 4096
BASE = 0x100000


def map_body(address: int = BASE, nbytes: int = 4 * PAGE, *, offset: int = 0, flags: int = 3, argsz: int = 32) -> bytes:
    return struct.pack("<IIQQQ", argsz, flags, offset, address, nbytes)


def unmap_body(address: int = BASE, nbytes: int = 4 * PAGE, *, flags: int = 0, argsz: int = 24) -> bytes:
    return struct.pack("<IIQQ", argsz, flags, address, nbytes)


def memfd(nbytes: int, seals: int = 0) -> int:
    fd = os.memfd_create("ram-of-the-test", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, nbytes)
    if seals:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


@pytest.fixture
def ram() -> Iterator[int]:
    fd = memfd(16 * PAGE)
    yield fd
    os.close(fd)


def mapped_in_this_process() -> int:
    return Path("/proc/self/maps").read_text().count("ram-of-the-test")


# --- map ---


def test_shared_memory(bench: Any, ram: int) -> None:
    bench.raw.map(BASE, 4 * PAGE, ram, offset=2 * PAGE)
    os.pwrite(ram, b"from the client", 2 * PAGE + 5)
    assert bench.memory.read(BASE + 5, 15) == b"from the client"
    bench.memory.write(BASE + 6 * 1000, b"from the server")
    assert os.pread(ram, 15, 2 * PAGE + 6000) == b"from the server"
    assert mapped_in_this_process() == 1


def test_readonly(bench: Any, ram: int) -> None:
    bench.raw.map(BASE, PAGE, ram, flags=READABLE)
    assert bench.memory.read(BASE, 1) == b"\0"
    with pytest.raises(MemoryAccessError):
        bench.memory.write(BASE, b"x")


@pytest.mark.parametrize("flags", [0, WRITABLE])
def test_memory_that_may_not_be_read_is_no_memory(bench: Any, ram: int, flags: int) -> None:
    bench.raw.map(BASE, PAGE, ram, flags=flags)
    assert bench.memory.regions == ()
    bench.raw.refused(MAP, map_body(), code=errno.EEXIST)
    bench.raw.unmap(BASE, PAGE)


def test_without_a_descriptor(bench: Any) -> None:
    """Whatever the offset says then."""
    bench.raw.call(MAP, map_body(offset=17))
    ((region),) = bench.memory.remote_regions
    assert (region.address, region.nbytes, region.readonly) == (BASE, 4 * PAGE, False)


def test_the_largest_addresses(bench: Any) -> None:
    bench.raw.map((1 << 64) - PAGE, PAGE)
    bench.raw.map(0, PAGE)
    bench.raw.unmap((1 << 64) - PAGE, PAGE)


def test_the_same_again_is_taken(bench: Any, ram: int) -> None:
    for fd in (ram, None):
        for _ in range(2):
            bench.raw.map(BASE if fd else 0, 4 * PAGE, fd)
    assert (len(bench.memory.regions), len(bench.memory.remote_regions)) == (1, 1)


@pytest.mark.parametrize(
    "body",
    [
        map_body(BASE - PAGE, 2 * PAGE),
        map_body(BASE + 3 * PAGE),
        map_body(BASE + PAGE, PAGE),
        map_body(0, BASE + PAGE),
        map_body(nbytes=5 * PAGE),
        map_body(flags=1),
        map_body(0, 8 << 40),
    ],
)
@pytest.mark.parametrize("shared", [True, False])
def test_overlaps(bench: Any, ram: int, body: bytes, shared: bool) -> None:
    bench.raw.map(BASE, 4 * PAGE, ram if shared else None)
    bench.raw.refused(MAP, body, code=errno.EEXIST)
    bench.raw.map(BASE - PAGE, PAGE)
    bench.raw.map(BASE + 4 * PAGE, PAGE)


def test_the_same_range_of_another_file_overlaps(bench: Any, ram: int) -> None:
    other = memfd(16 * PAGE)
    bench.raw.map(BASE, 4 * PAGE, ram)
    bench.raw.refused(MAP, map_body(), fds=[other], code=errno.EEXIST)
    bench.raw.refused(MAP, map_body(offset=PAGE), fds=[ram], code=errno.EEXIST)
    bench.raw.refused(MAP, map_body(), code=errno.EEXIST)
    os.close(other)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        map_body()[:31],
        map_body(argsz=31),
        map_body(argsz=0),
        map_body(flags=4),  # MMAP
        map_body(flags=8 | 3),  # FILE_IO
        map_body(flags=0x80000003),
        map_body(nbytes=0),
        map_body(nbytes=1),
        map_body(nbytes=PAGE + 8),
        map_body(BASE + 1),
        map_body(BASE + 8),
        map_body((1 << 64) - PAGE, 2 * PAGE),
        map_body(PAGE, (1 << 64) - PAGE + 1),
        map_body((1 << 64) - PAGE, (1 << 64) - PAGE),
    ],
)
@pytest.mark.parametrize("shared", [True, False])
def test_wrong_maps(bench: Any, ram: int, body: bytes, shared: bool) -> None:
    bench.raw.refused(MAP, body, fds=[ram] if shared else [])
    assert bench.memory.regions == bench.memory.remote_regions == ()
    bench.raw.map(BASE, PAGE, ram)


@pytest.mark.parametrize(
    "body",
    [
        map_body(offset=1),
        map_body(offset=13 * PAGE),
        map_body(offset=16 * PAGE),
        map_body(offset=(1 << 64) - PAGE),
        map_body(offset=(1 << 63) - PAGE),
        map_body(nbytes=17 * PAGE),
        map_body(nbytes=1 << 40),
    ],
)
def test_a_descriptor_that_is_shorter_than_it_claims(bench: Any, ram: int, body: bytes) -> None:
    bench.raw.refused(MAP, body, fds=[ram])
    assert mapped_in_this_process() == 0


def test_region_too_big(bench: Any) -> None:
    bench.raw.refused(MAP, map_body(0, (8 << 40) + PAGE), code=errno.ENOSPC)
    bench.raw.map(0, 8 << 40)


def test_region_too_many(bench: Any, ram: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dma, "MAX_REGIONS", 3)
    for i in range(3):
        bench.raw.map(i * PAGE, PAGE, ram)
    bench.raw.refused(MAP, map_body(3 * PAGE, PAGE))
    bench.raw.unmap(0, PAGE)
    bench.raw.map(3 * PAGE, PAGE, ram)


def test_a_thousand_regions(bench: Any, ram: int) -> None:
    """More than there may be descriptors: none is kept where Python can do without."""
    for i in range(1100):
        bench.raw.map(2 * i * PAGE, PAGE, ram if i % 2 else None)
    assert len(os.listdir("/proc/self/fd")) < (200 if sys.version_info >= (3, 13) else 700)
    assert len(bench.memory.regions) + len(bench.memory.remote_regions) == 1100
    bench.raw.unmap(0, 0, flags=ALL)


@pytest.mark.parametrize("path", ["/dev/null", "/dev/zero", "/"])
def test_descriptors_that_are_no_memory(bench: Any, path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    bench.raw.refused(MAP, map_body(flags=READABLE), fds=[fd])
    os.close(fd)


def test_a_descriptor_that_cannot_be_written(bench: Any, ram: int) -> None:
    fd = os.open(f"/proc/self/fd/{ram}", os.O_RDONLY)
    bench.raw.refused(MAP, map_body(), fds=[fd], code=errno.EACCES)
    bench.raw.map(BASE, PAGE, fd, flags=READABLE)
    os.close(fd)


def test_descriptors_too_many(bench: Any, ram: int) -> None:
    bench.raw.refused(MAP, map_body(), fds=[ram, ram])
    assert mapped_in_this_process() == 0


def test_map_reply_fail(make_bench: Any, ram: int) -> None:
    """The client is gone before the reply: no mapping outlives it."""
    bench = make_bench()
    bench.raw.send(MAP, map_body(), fds=[ram])
    bench.raw.close()
    bench.serve()
    assert bench.hangup is not None
    bench.connection.close()
    assert mapped_in_this_process() == 0
    assert bench.memory.regions == ()


# --- memory that can shrink ---


def test_a_memfd_is_sealed_against_shrinking(bench: Any, ram: int) -> None:
    bench.raw.map(BASE, 4 * PAGE, ram)
    assert get_seals(ram) & SEAL_SHRINK
    with pytest.raises(PermissionError):
        os.ftruncate(ram, 0)
    os.ftruncate(ram, 32 * PAGE)  # growing does no harm
    assert bench.memory.read(BASE, 1) == b"\0"


def test_strict_takes_what_is_or_can_be_sealed(make_bench: Any, ram: int, caplog: pytest.LogCaptureFixture) -> None:
    bench = make_bench(strict=True)
    bench.raw.map(BASE, PAGE, ram)
    sealed = memfd(PAGE, SEAL_SHRINK | SEAL_SEAL)
    bench.raw.map(0, PAGE, sealed)
    os.close(sealed)
    assert not caplog.records


@pytest.mark.parametrize("kind", ["file", "sealed against seals", "not sealable"])
def test_memory_that_cannot_be_sealed(
    make_bench: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    if kind == "file":
        fd = os.open(tmp_path / "ram", os.O_RDWR | os.O_CREAT)
        os.ftruncate(fd, 4 * PAGE)
    elif kind == "not sealable":
        fd = os.memfd_create("ram-of-the-test")
        os.ftruncate(fd, 4 * PAGE)
    else:
        fd = memfd(4 * PAGE, SEAL_SEAL)
    bench = make_bench(strict=True)
    bench.raw.refused(MAP, map_body(), fds=[fd])
    assert bench.memory.regions == ()
    assert "can be taken away" in caplog.text
    caplog.clear()
    bench = make_bench()
    for i in range(3):
        bench.raw.map(i * PAGE, PAGE, fd, offset=i * PAGE)
    os.close(fd)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "can be taken away" in caplog.text


# --- unmap ---


@pytest.mark.parametrize("nbytes", [0, 4, 23])
def test_unmap_short_write(bench: Any, ram: int, nbytes: int) -> None:
    bench.raw.map(BASE, 4 * PAGE, ram)
    bench.raw.refused(UNMAP, unmap_body()[:nbytes])
    assert len(bench.memory.regions) == 1


@pytest.mark.parametrize("argsz", [0, 23, (1 << 20) + 1, 0xFFFFFFFF])
def test_unmap_bad_argsz(bench: Any, ram: int, argsz: int) -> None:
    bench.raw.map(BASE, 4 * PAGE, ram)
    bench.raw.refused(UNMAP, unmap_body(argsz=argsz))
    assert len(bench.memory.regions) == 1


def test_unmap_dirty_bitmap_is_refused(bench: Any, ram: int) -> None:
    """There is no migration, so that no pages are counted as dirty."""
    bench.raw.map(BASE, 4 * PAGE, ram)
    bench.raw.refused(UNMAP, unmap_body(flags=DIRTY, argsz=48) + struct.pack("<QQQ", PAGE, 8, 0))
    assert len(bench.memory.regions) == 1


@pytest.mark.parametrize("flags", [4, 0x80000000, DIRTY | ALL, ALL])
def test_unmap_invalid_flags(bench: Any, ram: int, flags: int) -> None:
    bench.raw.map(BASE, 4 * PAGE, ram)
    bench.raw.refused(UNMAP, unmap_body(flags=flags))
    assert len(bench.memory.regions) == 1


def test_unmap_ok(bench: Any, ram: int) -> None:
    """The memory really goes away."""
    bench.raw.map(BASE, 4 * PAGE, ram)
    bench.raw.map(0, PAGE)
    assert mapped_in_this_process() == 1
    bench.raw.unmap(BASE, 4 * PAGE)
    assert mapped_in_this_process() == 0
    bench.raw.unmap(0, PAGE)
    assert bench.memory.regions == bench.memory.remote_regions == ()
    bench.raw.map(BASE, 4 * PAGE, ram)


@pytest.mark.parametrize(
    ("address", "nbytes"),
    [
        (BASE + PAGE, 4 * PAGE), (BASE, PAGE), (BASE, 5 * PAGE), (0, PAGE), (BASE - PAGE, PAGE),
        (BASE + PAGE, 3 * PAGE), (BASE, 0), (0, (1 << 64) - 1),
    ],
)  # fmt: skip
def test_unmap_invalid_addr(bench: Any, ram: int, address: int, nbytes: int) -> None:
    bench.raw.map(BASE, 4 * PAGE, ram)
    bench.raw.refused(UNMAP, unmap_body(address, nbytes), code=errno.ENOENT)
    assert len(bench.memory.regions) == 1


def test_unmap_all(bench: Any, ram: int) -> None:
    for i in range(3):
        bench.raw.map(BASE + i * PAGE, PAGE, ram)
        bench.raw.map(i * PAGE, PAGE, flags=i)
    bench.raw.unmap(0, 0, flags=ALL)
    assert mapped_in_this_process() == 0
    assert bench.memory.regions == bench.memory.remote_regions == ()
    bench.raw.unmap(0, 0, flags=ALL)  # which is nothing now


@pytest.mark.parametrize(("address", "nbytes"), [(BASE, 4 * PAGE), (0, PAGE), (PAGE, 0)])
def test_unmap_all_invalid_addr(bench: Any, ram: int, address: int, nbytes: int) -> None:
    bench.raw.map(BASE, 4 * PAGE, ram)
    bench.raw.refused(UNMAP, unmap_body(address, nbytes, flags=ALL))
    assert len(bench.memory.regions) == 1


@pytest.mark.parametrize("flags", [ALL | DIRTY, ALL | 4])
def test_unmap_all_invalid_flags(bench: Any, ram: int, flags: int) -> None:
    bench.raw.map(BASE, 4 * PAGE, ram)
    bench.raw.refused(UNMAP, unmap_body(0, 0, flags=flags))
    assert len(bench.memory.regions) == 1


def test_firmware_maps_and_unmaps_all_the_time(bench: Any, ram: int) -> None:
    with check_descriptors():
        for i in range(200):
            bench.raw.map(BASE, 4 * PAGE, ram, offset=i % 8 * PAGE, flags=1 + 2 * (i % 2))
            bench.raw.unmap(BASE, 4 * PAGE)
    assert mapped_in_this_process() == 0


def test_sgl_get_put_across_regions(bench: Any, ram: int) -> None:
    """A buffer over two mappings of different files; then one over what can and what cannot be mapped."""
    other = memfd(PAGE)
    bench.raw.map(BASE, PAGE, ram, offset=15 * PAGE)
    bench.raw.map(BASE + PAGE, PAGE, other)
    os.close(other)
    data = os.urandom(2 * PAGE)
    bench.memory.buffers([(BASE, 2 * PAGE)], writable=True).write(0, data)
    assert os.pread(ram, PAGE, 15 * PAGE) == data[:PAGE]
    assert bench.memory.read(BASE, 2 * PAGE) == data
    with pytest.raises(MemoryAccessError):
        bench.memory.buffers([(BASE, 2 * PAGE + 1)])


def test_huge_pages_are_taken_with_a_warning(
    make_bench: Any, ram: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hole may be punched into them whether they are sealed or not. (There are none here: this only says so.)"""
    monkeypatch.setattr(dma, "is_on_huge_pages", lambda _: True)
    make_bench(strict=True).raw.refused(MAP, map_body(), fds=[ram])
    caplog.clear()
    make_bench().raw.map(BASE, PAGE, ram)
    assert "huge pages" in caplog.text


def test_all_mappings_together_are_limited(bench: Any) -> None:
    """A process has 128 TiB of addresses, and there are other clients."""
    fd = memfd(1 << 40)
    for i in range(8):
        bench.raw.map(i << 40, 1 << 40, fd)
    bench.raw.refused(MAP, map_body(address=8 << 40, nbytes=1 << 40), fds=[fd], code=errno.ENOSPC)
    bench.raw.unmap(0, 1 << 40)
    bench.raw.map(8 << 40, 1 << 40, fd)
    os.close(fd)
