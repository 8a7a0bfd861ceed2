"""Registers, rings and descriptor chains (H100 to H107, H112 to H115)."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TypeAlias

import pytest

from pyvirtfs.errors import GuestError, MemoryAccessError, QueueError
from pyvirtfs.guest.registers import fields_of
from pyvirtfs.p9 import constants as c
from pyvirtfs.testing import open_descriptors
from pyvirtfs.virtio import features, layout
from tests.hostile.stack import NAMES, ROOT, Place, Stack, message, ranges, reply_of, snapshot
from tests.hostile.stack import fields_of as usual_fields

Start: TypeAlias = Callable[..., Stack]
Descriptor: TypeAlias = tuple[int, int, int, int]

NEXT, WRITE, INDIRECT = layout.DESC_NEXT, layout.DESC_WRITE, layout.DESC_INDIRECT
DIRECT = features.mask(features.VERSION_1, features.EVENT_IDX)
RAM = 64 << 20
SOMEWHERE = 0x10000
"""RAM that belongs to somebody."""
NOWHERE = 1 << 40
SIZES = (1, 2, 4, 8)
MSIX_BAR, MODERN_BAR = 1, 4


@pytest.fixture
def direct(start: Start) -> Stack:
    """A guest without indirect tables: the descriptors of the ring itself."""
    return start(wanted=DIRECT)


def offer(stack: Stack, *descriptors: Descriptor, head: int = 0) -> None:
    """Write descriptors into the ring's table, make the first available, ring the doorbell."""
    ring = stack.channel.queue.ring
    for index, descriptor in enumerate(descriptors):
        ring.table.store(index, *descriptor)
    ring.publish(head)
    stack.channel.queue.notify()


def breaks(stack: Stack, kind: type[GuestError] = GuestError) -> None:
    """The device needs a reset, it is the guest's fault, it was told once, and nothing came back; then it is mended."""
    counters = stack.channel.driver.counters
    assert stack.needs_reset
    assert isinstance(stack.device.device.last_error, kind)
    assert counters.config_interrupts == 1
    assert not stack.channel.queue.ring.has_used()
    counters.config_interrupts = 0
    stack.remount()


# --- the doorbell ---


def test_h100_doorbells_of_no_queue(stack: Stack) -> None:
    found = stack.channel.driver.function.structure(layout.CFG_NOTIFY)
    values = [0, 1, 2, 127, 128, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, (1 << 64) - 1]
    offsets = [*range(16), 0x7FC, 0x800, found.nbytes - 8, *range(found.nbytes - 5, found.nbytes + 9)]
    for size in SIZES:
        for offset in offsets:
            for value in values:
                stack.device.bar_write(found.bar, found.offset + offset, size, value)
            stack.device.bar_read(found.bar, found.offset + offset, size)
    assert not stack.needs_reset
    assert stack.do("Tgetattr")["qid"]


def test_h100_doorbells_before_and_after_a_queue_exists(stack: Stack) -> None:
    driver, found = stack.channel.driver, stack.channel.driver.function.structure(layout.CFG_NOTIFY)

    def ring_all() -> None:
        for queue in (0, 1, 2, 1023):
            stack.device.bar_write(found.bar, found.offset + queue * found.multiplier, 2, queue)

    driver.reset()
    ring_all()
    driver.negotiate(1)
    ring_all()
    driver.driver_ok()
    ring_all()
    assert not driver.needs_reset
    stack.remount()


# --- the available ring ---


@pytest.mark.parametrize("jump", [129, 1000, 0x7FFF, 0x8000, 0xFF80, 0xFFFF])
def test_h101_available_index_jumps(stack: Stack, jump: int) -> None:
    before = open_descriptors()
    for _ in range(3):
        ring = stack.channel.queue.ring
        available = stack.pair.memory.view(ring.available_address, 4).cast("H")
        available[1] = (available[1] + jump) & 0xFFFF
        stack.channel.queue.notify()
        breaks(stack, QueueError)
    assert open_descriptors() == before


def test_h101_one_head_twice(start: Start, place: Place) -> None:
    delayed = place.delayed(ignore_cancel=True)
    stack = start(delayed)
    fid = stack.opened(b"file")
    delayed.delay.add("read")
    stack.start("Tread", fid=fid)
    ring = stack.channel.queue.ring
    head = next(index for index, entry in enumerate(ring._tokens) if entry is not None)
    ring.publish(head)
    stack.channel.queue.notify()
    assert stack.needs_reset
    assert isinstance(stack.device.device.last_error, QueueError)
    assert not ring.has_used()
    delayed.delay.clear()
    delayed.release_all()
    stack.device.run_pending()
    assert not ring.has_used()


def test_h101_as_many_as_fit_and_one_that_was_given_back(stack: Stack) -> None:
    requests = [stack.start("Tgetattr", tag=tag, kick=False) for tag in range(128)]
    stack.channel.queue.kick()
    assert all(reply_of(stack.channel.wait(request)) for request in requests)
    assert not stack.needs_reset


# --- chains ---

CHAINS: dict[str, list[Descriptor]] = {
    "points to itself": [(SOMEWHERE, 16, NEXT, 0)],
    "circle": [(SOMEWHERE, 16, NEXT, 1), (SOMEWHERE, 16, NEXT, 0)],
    "circle of writable ones": [(SOMEWHERE, 16, NEXT | WRITE, 1), (SOMEWHERE, 16, NEXT | WRITE, 0)],
    "points to itself, empty": [(SOMEWHERE, 0, NEXT, 0)],
    "circle of empty ones": [(SOMEWHERE, 0, NEXT, 1), (SOMEWHERE, 0, NEXT, 0)],
    "circle of empty ones nowhere": [(NOWHERE, 0, NEXT, 1), (0, 0, NEXT, 0)],
    "next is the size": [(SOMEWHERE, 16, NEXT, 128)],
    "next is far out": [(SOMEWHERE, 16, NEXT, 0xFFFF)],
    "empty": [(SOMEWHERE, 0, 0, 0)],
    "two empty ones": [(SOMEWHERE, 0, NEXT, 1), (SOMEWHERE, 0, WRITE, 0)],
    "only writable": [(SOMEWHERE, 100, WRITE, 0)],
    "only readable": [(SOMEWHERE, 23, 0, 0)],
    "readable behind writable": [(SOMEWHERE, 100, WRITE | NEXT, 1), (SOMEWHERE, 16, 0, 0)],
    "indirect, which was not agreed on": [(SOMEWHERE, 32, INDIRECT, 0)],
}


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
def test_h102_chains_that_are_none(direct: Stack, chain: list[Descriptor]) -> None:
    for _ in range(2):
        offer(direct, *chain)
        breaks(direct)


def test_h102_empty_descriptors_in_between(direct: Stack) -> None:
    """They hold nothing and harm nothing, wherever they point."""
    data = message("Tgetattr")
    buffer = direct.pair.mount.allocate(512)
    buffer.write(0, data)
    pieces = [(0, 0), *buffer.slice(0, 5), (SOMEWHERE, 0), *buffer.slice(5, len(data) - 5)]
    request = ranges(direct, pieces, [(SOMEWHERE, 0), *buffer.slice(256, 200), (0, 0)])
    assert direct.channel.wait(request).nbytes == 160
    assert buffer.read(256 + 4, 1) == bytes([c.RGETATTR])


@pytest.mark.parametrize("head", [128, 129, 0x7FFF, 0x8000, 0xFFFF])
def test_h102_heads_out_of_the_ring(stack: Stack, head: int) -> None:
    offer(stack, head=head)
    breaks(stack, QueueError)


# --- queues ---

ADDRESSES: dict[str, dict[str, int]] = {
    "descriptors not aligned": {"queue_desc": 0x10001},
    "available ring not aligned": {"queue_driver": 0x10001},
    "used ring not aligned": {"queue_device": 0x10002},
    "descriptors out of RAM": {"queue_desc": NOWHERE},
    "available ring out of RAM": {"queue_driver": NOWHERE},
    "used ring out of RAM": {"queue_device": NOWHERE},
    "descriptors across the end": {"queue_desc": RAM - 16},
    "used ring across the end": {"queue_device": RAM - 4},
    "wraps around": {"queue_desc": (1 << 64) - 16},
    "used ring wraps around": {"queue_device": (1 << 64) - 4},
    "size 0": {"queue_size": 0},
    "size 3": {"queue_size": 3},
    "size 129": {"queue_size": 129},
    "size 256": {"queue_size": 256},
    "size 0xffff": {"queue_size": 0xFFFF},
    "enabled with 2": {"queue_enable": 2},
    "enabled with 0xffff": {"queue_enable": 0xFFFF},
}


@pytest.mark.parametrize("wrong", ADDRESSES.values(), ids=ADDRESSES)
@pytest.mark.parametrize("is_running", [False, True])
def test_h103_queues_that_cannot_be(stack: Stack, wrong: dict[str, int], is_running: bool) -> None:
    driver = stack.channel.driver
    driver.negotiate(1)
    if is_running:
        driver.driver_ok()
    values = {"queue_size": 128, "queue_desc": 0x10000, "queue_driver": 0x11000, "queue_device": 0x12000}
    driver.common.write("queue_select", 0)
    for name, value in {**values, "queue_enable": 1, **wrong}.items():
        driver.common.write(name, value)
    if is_running:
        stack.device.bar_write(MODERN_BAR, 0x3000, 2, 0)
    assert driver.needs_reset
    assert isinstance(stack.device.device.last_error, GuestError)
    stack.remount()


def test_h103_a_queue_without_addresses_lies_at_0(stack: Stack) -> None:
    """Which is RAM here: zeros, so there is nothing to do; and without RAM at 0 it is an error (above)."""
    driver = stack.channel.driver
    driver.negotiate(1)
    driver.common.write("queue_select", 0)
    driver.common.write("queue_enable", 1)
    driver.driver_ok()
    stack.device.bar_write(MODERN_BAR, 0x3000, 2, 0)
    assert not driver.needs_reset
    for queue in (1, 2, 0x7FFF, 0xFFFF):
        driver.common.write("queue_select", queue)
        for name in ("queue_size", "queue_msix_vector", "queue_enable", "queue_reset", "queue_desc", "queue_device"):
            driver.common.write(name, 1)
            assert driver.common.read(name) == 0
    assert not driver.needs_reset
    stack.remount()


# --- MSI-X ---


@pytest.mark.parametrize("value", [0, (1 << 64) - 1, 0x0123456789ABCDEF])
def test_h104_the_msix_region_in_every_width(stack: Stack, value: int) -> None:
    msix = stack.channel.driver.function.msix
    assert msix is not None
    for size in SIZES:
        for offset in (*range(80), *range(0x7F0, 0x820), 0xFF8, 0xFFF, 0x1000, 0x3FFFF, -1):
            stack.device.bar_write(msix.table_bar, offset, size, value)
            stack.device.bar_read(msix.table_bar, offset, size)
    for name in ("Tgetattr", "Tstatfs"):  # interrupts go wherever the table says now, or nowhere
        stack.channel.submit(message(name), 4096)
    pending = bytes(stack.device.msix.pending if stack.device.msix else b"")
    for size in SIZES:
        stack.device.bar_write(msix.table_bar, 0x800, size, (1 << 64) - 1)  # pending bits are read-only
    assert bytes(stack.device.msix.pending if stack.device.msix else b"") in {pending, bytes(len(pending))}
    stack.remount()


# --- descriptors that point into the machine ---


def bars(stack: Stack) -> list[tuple[int, int]]:
    """(address, nbytes) of the device's own BARs, as the guest has placed them."""
    addresses = [(stack.device.bar_address(index), bar.nbytes) for index, bar in stack.device.bars.items()]
    return [(address, nbytes) for address, nbytes in addresses if address is not None]


def test_h105_descriptors_that_point_to_the_device_itself(direct: Stack) -> None:
    data = message("Tgetattr")
    buffer = direct.pair.mount.allocate(64)
    buffer.write(0, data)
    assert len(bars(direct)) == 2
    for address, nbytes in bars(direct):
        for where in (address, address + 0x20, address + nbytes - 8):
            offer(direct, (buffer.address, len(data), NEXT, 1), (where, 256, WRITE, 0))
            breaks(direct, MemoryAccessError)
            offer(direct, (where, 16, NEXT, 1), (SOMEWHERE, 256, WRITE, 0))
            breaks(direct, MemoryAccessError)
            buffer = direct.pair.mount.allocate(64)
            buffer.write(0, data)


@pytest.mark.parametrize("part", ["used_address", "available_address", "descriptor_address"])
def test_h105_a_request_or_a_reply_over_the_ring(stack: Stack, part: str) -> None:
    """The guest has only itself to blame: the device does as it is told, keeps its own counts, and can be reset."""
    for _ in range(3):
        where = getattr(stack.channel.queue.ring, part)
        ranges(stack, [(where, 64)], [(where, 64)])
        assert stack.needs_reset
        stack.remount()
    data = message("Tgetattr")
    buffer = stack.pair.mount.allocate(64)
    buffer.write(0, data)
    where = getattr(stack.channel.queue.ring, part)
    stack.channel.queue.ring.disable_interrupts()
    ranges(stack, buffer.slice(0, len(data)), [(where, 160)])
    stack.device.run_pending()
    stack.remount()


def test_h105_readable_and_writable_are_the_same_memory(direct: Stack) -> None:
    for shift in (0, 1, 7, 16):
        data = message("Tgetattr")
        buffer = direct.pair.mount.allocate(512)
        buffer.write(0, data)
        start = buffer.slice(0, 1)[0][0]
        request = ranges(direct, [(start, len(data))], [(start + shift, 160)])
        assert direct.channel.wait(request).nbytes == 160
        assert buffer.read(shift + 4, 1) == bytes([c.RGETATTR])
    write = message("Twrite", fid=direct.opened(b"file"), data=b"D" * 100)
    buffer = direct.pair.mount.allocate(512)
    buffer.write(0, write)
    start = buffer.slice(0, 1)[0][0]
    request = ranges(direct, [(start, len(write)), (start, 0)], [(start + 23, 11)])  # the reply over the data
    assert direct.channel.wait(request).nbytes == 11
    assert direct.read(direct.opened(b"file")) == b"D" * 100


# --- room ---


@pytest.mark.parametrize("nbytes", range(7))
def test_h106_shorter_than_a_header(stack: Stack, nbytes: int) -> None:
    data = message("Tgetattr")
    for readable, writable in ((len(data), nbytes), (nbytes, 256), (nbytes, nbytes)):
        buffer = stack.pair.mount.allocate(512)
        buffer.write(0, data)
        pieces = buffer.slice(0, readable), buffer.slice(256, writable)
        if not any(pieces):
            continue
        ranges(stack, *pieces)
        breaks(stack)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "Tauth"])  # which is only ever an error
def test_h107_room_for_less_than_the_reply(stack: Stack, place: Place, name: str) -> None:
    """One byte short, room for an error, for a header, for nothing: nothing is written behind it, nothing is done."""
    whole = stack.ask(name, **usual_fields(stack)[name])
    assert whole.errno == 0
    need = 7 + len(whole.body)
    restore(place)
    for room in sorted({need - 1, 11, 10, 7, 1} - {need}):
        if room >= need:
            continue
        stack.remount()
        data = message(name, **usual_fields(stack)[name])
        before = snapshot(place.export)
        buffer = stack.pair.mount.allocate(4096)
        buffer.write(0, data)
        buffer.write(2048, b"\xee" * 2048)
        request = ranges(stack, buffer.slice(0, len(data)), buffer.slice(2048, room))
        stack.channel.deliver()
        if request.nbytes is None:
            assert stack.needs_reset
            assert buffer.read(2048, 7)[:1] == b"\xee"
        else:
            assert request.nbytes <= room
            kind = buffer.read(2048 + 4, 1)[0]
            assert kind == c.RLERROR or name in {"Tread", "Treaddir"}
        assert buffer.read(2048 + room, 64) == b"\xee" * 64
        assert snapshot(place.export) == before


def restore(place: Place) -> None:
    """The export as it was, after a request that has worked."""
    for path in sorted(place.export.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink()
    (place.export / "file").write_bytes(b"Hi Guest")
    (place.export / "folder").mkdir()
    (place.export / "folder" / "below").write_bytes(b"deep")
    (place.export / "link").symlink_to("../sentinel/secret")


# --- registers ---


def test_h112_reads_and_writes_around_every_register(start: Start) -> None:
    stack = start(bus=False)
    edges = {field.offset + d for field in fields_of(layout.CommonConfig).values() for d in (-1, 0, 1, field.nbytes)}
    edges |= {base + d for base in (0, 0x1000, 0x2000, 0x3000, 0x4000) for d in range(-9, 48)}
    edges |= {0x4000 - 1, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 32, (1 << 64) - 1, -1}
    for bar in (*range(7), 255, -1):
        for offset in sorted(edges):
            for size in (*SIZES, 0, 3, 5, 16):
                stack.device.bar_read(bar, offset, size)
    for value in (0, 1, 0x80, 0xFF, 0xFFFF, (1 << 64) - 1):
        for offset in sorted(edges):
            for size in (*SIZES, 0, 3, 5, 16):
                stack.device.bar_write(MODERN_BAR, offset, size, value)
        stack.remount()


def test_h112_the_whole_configuration_space(start: Start) -> None:
    stack = start(bus=False)
    image = [stack.device.config_read(offset, 4) for offset in range(0, 256, 4)]
    for value in (0xFFFFFFFF, 0, 0xA5A5A5A5):
        for size in (1, 2, 4, 0, 3, 8):
            for offset in (*range(-4, 270), 0xFFF, 0x1000, 1 << 31):
                stack.device.config_read(offset, size)
                stack.device.config_write(offset, size, value)
    for index, word in enumerate(image):  # as the firmware had left it
        stack.device.config_write(4 * index, 4, word)
    stack.remount()


def test_h112_the_device_configuration_and_behind_it(stack: Stack) -> None:
    tag = b"\x0a\0test_mount"
    found = stack.channel.driver.function.structure(layout.CFG_DEVICE)
    for size in SIZES:
        for offset in (*range(64), found.nbytes - size, found.nbytes - 1):
            value = stack.device.bar_read(found.bar, found.offset + offset, size)
            if offset + size <= found.nbytes:
                assert value == int.from_bytes(tag[offset : offset + size], "little")
            stack.device.bar_write(found.bar, found.offset + offset, size, 0xFF)
    assert stack.channel.read_tag() == b"test_mount"


@pytest.mark.parametrize("bar", [0, 1, 2, 4, 5, 6, 0xFF])
def test_h113_the_window_in_configuration_space(stack: Stack, bar: int) -> None:
    function = stack.device
    at = function.config_read(0x34, 1)
    while function.config_read(at, 1) != layout.CAP_ID_VENDOR or function.config_read(at + 3, 1) != layout.CFG_PCI:
        at = function.config_read(at + 1, 1)
    status = stack.channel.driver.status
    for length in (0, 1, 2, 3, 4, 5, 8, 0x80000000, 0xFFFFFFFF):
        for offset in (0, 1, 2, 3, 20, 0x1000, 0x2000, 0x3000, 0x3FFC, 0x3FFF, 0x4000, 0xFFFFFFFC, 0xFFFFFFFF):
            function.config_write(at + 4, 1, bar)
            function.config_write(at + 8, 4, offset)
            function.config_write(at + 12, 4, length)
            makes_sense = bar in {1, 4} and length in {1, 2, 4} and offset % length == 0
            for size in (1, 2, 4):
                function.config_read(at + 16, size)
                if not makes_sense:
                    function.config_write(at + 16, size, 0)  # which would be a reset at offset 20 of BAR 4
            assert stack.channel.driver.status == status
    function.config_write(at + 4, 1, 4)
    function.config_write(at + 8, 4, at)  # its own place, as if it were in the BAR
    function.config_write(at + 12, 4, 4)
    function.config_read(at + 16, 4)
    assert stack.channel.driver.status == status
    assert stack.do("Tgetattr")["qid"]


# --- indirect tables ---

TABLES: dict[str, Descriptor] = {
    "no bytes": (SOMEWHERE, 0, INDIRECT, 0),
    "1 byte": (SOMEWHERE, 1, INDIRECT, 0),
    "15 bytes": (SOMEWHERE, 15, INDIRECT, 0),
    "17 bytes": (SOMEWHERE, 17, INDIRECT, 0),
    "4 GiB": (SOMEWHERE, 0xFFFFFFF0, INDIRECT, 0),
    "4 GiB less 1": (SOMEWHERE, 0xFFFFFFFF, INDIRECT, 0),
    "out of RAM": (NOWHERE, 32, INDIRECT, 0),
    "across the end of RAM": (RAM - 16, 32, INDIRECT, 0),
    "wraps around": ((1 << 64) - 16, 32, INDIRECT, 0),
    "indirect and next": (SOMEWHERE, 32, INDIRECT | NEXT, 1),
    "1025 entries": (SOMEWHERE, 16 * 1025, INDIRECT, 0),
}
ENTRIES: dict[str, list[Descriptor]] = {
    "points to itself": [(SOMEWHERE, 16, NEXT, 0)],
    "circle": [(SOMEWHERE, 16, NEXT, 1), (SOMEWHERE, 16, NEXT, 0)],
    "circle of empty ones": [(SOMEWHERE, 0, NEXT, 1), (SOMEWHERE, 0, NEXT, 0)],
    "next is out of the table": [(SOMEWHERE, 16, NEXT, 2), (SOMEWHERE, 16, WRITE, 0)],
    "next is far out": [(SOMEWHERE, 16, NEXT, 0xFFFF), (SOMEWHERE, 16, WRITE, 0)],
    "nested": [(SOMEWHERE, 32, INDIRECT, 0), (SOMEWHERE, 16, WRITE, 0)],
    "nested behind": [(SOMEWHERE, 16, NEXT, 1), (SOMEWHERE, 32, INDIRECT, 0)],
    "out of RAM": [(NOWHERE, 16, NEXT, 1), (SOMEWHERE, 16, WRITE, 0)],
    "writable out of RAM": [(SOMEWHERE, 16, NEXT, 1), (NOWHERE, 16, WRITE, 0)],
    "across the end": [(RAM - 8, 16, NEXT, 1), (SOMEWHERE, 16, WRITE, 0)],
    "wraps around": [((1 << 64) - 8, 16, NEXT, 1), (SOMEWHERE, 16, WRITE, 0)],
    "4 GiB long": [(SOMEWHERE, 0xFFFFFFFF, NEXT, 1), (SOMEWHERE, 0xFFFFFFFF, WRITE, 0)],
    "readable behind writable": [(SOMEWHERE, 16, WRITE | NEXT, 1), (SOMEWHERE, 16, 0, 0)],
}


@pytest.mark.parametrize("descriptor", TABLES.values(), ids=TABLES)
def test_h115_indirect_tables_that_are_none(stack: Stack, descriptor: Descriptor) -> None:
    for _ in range(2):
        offer(stack, descriptor)
        breaks(stack)


@pytest.mark.parametrize("filler", [0, 3, 20, 60])
@pytest.mark.parametrize("entries", ENTRIES.values(), ids=ENTRIES)
def test_h115_entries_of_indirect_tables(stack: Stack, entries: list[Descriptor], filler: int) -> None:
    """Behind some good ones, since short and long tables are read in other ways."""
    buffer = stack.channel.driver.dma.allocate(4096)
    good = [(SOMEWHERE, 16, NEXT, index + 1) for index in range(filler)]
    last = entries[-1]
    shifted = [
        (address, nbytes, flags, following if following in {2, 0xFFFF} and len(entries) == 2 else following + filler)
        for address, nbytes, flags, following in entries
    ]
    if entries[0][3] == 2:  # "out of the table"
        shifted[0] = (*shifted[0][:3], filler + 2)
    assert last[2] == shifted[-1][2]
    for index, entry in enumerate([*good, *shifted]):
        buffer.write(16 * index, struct.pack("<QIHH", *entry))
    offer(stack, (buffer.address, 16 * (filler + len(entries)), INDIRECT, 0))
    breaks(stack)


def test_h115_a_table_that_is_its_own_entry(stack: Stack) -> None:
    ring = stack.channel.queue.ring
    for nbytes in (16, 32, 128 * 16):
        offer(stack, (stack.channel.queue.ring.descriptor_address, nbytes, INDIRECT, 0))
        breaks(stack)
    table = stack.channel.driver.dma.allocate(64)
    table.write(0, struct.pack("<QIHHQIHH", table.address, 32, NEXT, 1, table.address, 32, WRITE, 0))
    offer(stack, (table.address, 32, INDIRECT, 0))  # its bytes are no message
    breaks(stack)
    assert ring is not stack.channel.queue.ring
    assert stack.qid(ROOT)
