from __future__ import annotations

import os
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from pyvirtfs.errors import DeviceError
from pyvirtfs.fsdev import registry
from pyvirtfs.guest import COPYING, FEW_DESCRIPTORS, LINUX, OLD_LINUX, UNALIGNED, Channel, Shapes, mount, progress_of
from pyvirtfs.guest.dma import PAGE
from pyvirtfs.testing import DelayedDriver, Pair, RecordingSink, pair
from pyvirtfs.virtio.layout import CFG_COMMON

Bench = Any  # of conftest.py, which cannot be imported


def chains_of(both: Pair) -> list[tuple[list[tuple[int, int]], list[tuple[int, int]]]]:
    """From now on, the (readable, writable) ranges of every chain that the channel adds."""
    found: list[tuple[list[tuple[int, int]], list[tuple[int, int]]]] = []
    add = both.channel.queue.add

    def record(readable: Any, writable: Any, token: Any) -> int:
        found.append((list(readable), list(writable)))
        return add(readable, writable, token)

    both.channel.queue.add = record  # type: ignore[method-assign]  # a spy
    return found


def lengths(ranges: list[tuple[int, int]]) -> list[int]:
    return [nbytes for _, nbytes in ranges]


def export_of(folder: Path, nbytes: int = 20_000) -> str:
    (folder / "file").write_bytes(bytes(nbytes))
    return f"local,path={folder},security_model=none"


def test_small_messages_are_one_buffer_each_way(export: Path) -> None:
    with pair(export_of(export)) as both:
        chains = chains_of(both)
        both.session.run(both.session.client.getattr(both.mount.root_fid))
        fid = both.session.walk(both.mount.root_fid, [b"file"])
        both.session.run(both.session.client.lopen(fid))
        both.session.run(both.session.client.read(fid, 0, 1024))
        both.session.clunk(fid)
        assert [lengths(readable) for readable, _ in chains] == [[19], [23], [15], [23], [11]]
        assert [lengths(writable) for _, writable in chains] == [[4096], [22], [4096], [1035], [4096]]


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        (LINUX, [11, 4096, 4096, 1808]),
        (UNALIGNED, [11, 3096, 4096, 2808]),
        (FEW_DESCRIPTORS, [11, 10000]),
        (Shapes(scattered=False), [11, 4096, 4096, 1808]),
    ],
    ids=["linux", "unaligned", "few", "contiguous pages"],
)
def test_payloads_lie_in_pages(export: Path, shapes: Shapes, expected: list[int]) -> None:
    with pair(export_of(export), shapes=shapes) as both:
        with both.mount.path("file").open_raw(os.O_RDWR) as file:
            buffer = both.mount.allocate(10_000)
            chains = chains_of(both)
            assert file.readinto_dma(buffer, offset=0) == 10_000
            assert file.write_dma(buffer, offset=0) == 10_000
            [read, write] = chains
        assert (lengths(read[0]), lengths(read[1])) == ([23], expected)
        assert (lengths(write[0]), lengths(write[1])) == ([23, *expected[1:]], [4096])
        if shapes.by_page:
            for address, nbytes in [*read[1], *write[0]]:
                assert address // PAGE == (address + nbytes - 1) // PAGE
        if shapes.scattered:
            pages = [address // PAGE for address, _ in read[1][1:]]
            assert all(abs(a - b) > 1 for a, b in pairwise(pages))


def test_old_kernels_give_msize_to_every_reply(export: Path) -> None:
    with pair(export_of(export), shapes=OLD_LINUX, msize=16384) as both:
        chains = chains_of(both)
        both.session.walk(both.mount.root_fid)
        assert sum(lengths(chains[0][1])) == 16384
        assert lengths(chains[0][1]) == [4096] * 4


def test_copied_payloads(export: Path) -> None:
    with pair(export_of(export), shapes=COPYING) as both:
        chains = chains_of(both)
        assert both.mount.path("file").read_bytes() == bytes(20_000)
        assert max(sum(lengths(writable)) for _, writable in chains) > 20_000


def test_the_tag(bench: Bench) -> None:
    channel: Channel = bench.machine.open_channel(bench.function)
    assert channel.tag == b"tag"
    bench.function.device = 0x1041
    with pytest.raises(DeviceError, match="not a virtio 9P"):
        bench.machine.open_channel(bench.function)


def test_a_device_without_a_tag_is_refused(bench: Bench) -> None:
    bench.lies["device_feature"] = lambda value: value & ~1 if value >> 29 & 1 else value  # of the lower half
    with pytest.raises(DeviceError, match="mount tag"):
        bench.machine.open_channel(bench.function)


def test_waiting_ends(export: Path) -> None:
    driver = DelayedDriver(registry.create(export_of(export)), {"statfs"})
    with pair(driver, timeout=0.05) as both:
        sent = both.session.start(both.session.client.statfs(both.mount.root_fid))
        start = time.monotonic()
        with pytest.raises(DeviceError, match=r"does not answer$"):
            both.session.finish(sent)
        assert 0.04 < time.monotonic() - start < 2
        driver.release_all()
        assert both.session.finish(sent).bsize > 0
    driver.close()


def test_an_interrupt_that_never_comes_is_told(export: Path) -> None:
    sink = RecordingSink()
    with (
        pytest.raises(DeviceError, match="no interrupt came"),
        pair(export_of(export), bus=False, interrupts=sink, timeout=0.05),
    ):
        pass
    assert sink.vectors == [1]


def test_polling_needs_no_interrupt(export: Path) -> None:
    sink = RecordingSink()
    with pair(export_of(export), bus=False, interrupts=sink, polling=True) as both:
        assert both.mount.path("file").exists()
    assert len(sink.messages) <= 1


def test_a_full_ring_waits_for_room(export: Path) -> None:
    driver = DelayedDriver(registry.create(export_of(export)))
    with pair(driver, guest_queue_size=4, timeout=0.05) as both:
        session = both.session
        driver.delay = {"statfs"}
        sent = [session.start(session.client.statfs(both.mount.root_fid)) for _ in range(4)]
        with pytest.raises(DeviceError, match="ring is full"):
            session.start(session.client.statfs(both.mount.root_fid))
        driver.release_all()
        driver.delay = set()
        session.start(session.client.statfs(both.mount.root_fid))
        assert all(session.finish(one) for one in sent)
    driver.close()


def test_a_device_that_needs_a_reset(export: Path) -> None:
    with pair(export_of(export)) as both:
        with pytest.raises(DeviceError, match="needs a reset"):
            both.channel.wait(both.channel.submit(b"short", 100))
        with pytest.raises(DeviceError, match="needs a reset"):
            both.session.walk(both.mount.root_fid)
        both.channel.start()
        with pytest.raises(DeviceError, match="session is over"):
            both.session.walk(both.mount.root_fid)
        both.mount = mount(both.channel)
        both.channel.stop()
        assert both.device.bar_read(4, both.channel.driver.function.structure(CFG_COMMON).offset + 20, 1) == 0
        with pytest.raises(DeviceError, match="session is over"):
            both.session.walk(both.mount.root_fid)


def test_buffers_are_used_again(export: Path) -> None:
    with pair(export_of(export)) as both:
        both.mount.path("file").read_bytes()
        before = both.guest.dma.pages_in_use
        for _ in range(20):
            both.mount.path("file").read_bytes()
            both.mount.path("file").stat()
        assert both.guest.dma.pages_in_use == before


class Passive:
    def __init__(self) -> None:
        self.work = 0
        self.deadline: float | None = None
        self.fileno: int | None = None

    def run_pending(self) -> int:
        done, self.work = self.work, 0
        return done

    def next_deadline(self) -> float | None:
        return self.deadline

    def wakeup_fileno(self) -> int | None:
        return self.fileno


def test_progress() -> None:
    device = Passive()
    progress = progress_of(device)
    assert not progress(10)  # nothing to wait for
    device.work = 1
    assert progress(10)
    device.fileno = os.eventfd(1)
    start = time.monotonic()
    assert progress(10)
    os.eventfd_read(device.fileno)
    device.deadline = time.monotonic() + 0.02
    assert progress(10)
    device.deadline = None
    assert progress(0.02)
    assert time.monotonic() - start < 5
    os.close(device.fileno)


def test_buffers_of_forgotten_requests_are_used_again(export: Path) -> None:
    inner = registry.create(export_of(export))
    driver: DelayedDriver[Any, Any] = DelayedDriver(inner)
    with pair(driver) as both:
        pages = set()
        for _ in range(5):
            driver.delay = {"getattr"}
            for _ in range(20):
                both.session.start(both.session.client.getattr(both.mount.root_fid))
            driver.delay = set()
            both.remount()
            pages.add(both.guest.dma.pages_in_use)
        assert len(pages) == 1
    driver.close()
