"""What one client can say, and what is answered. Names as those of libvfio-user's tests of the same behaviour."""

from __future__ import annotations

import errno
import os
import random
import struct
import threading
from collections.abc import Callable
from typing import Any

import pytest

from pyvirtfs.errors import MemoryAccessError
from pyvirtfs.pci import Bar, BarKind
from pyvirtfs.vmm.vfio_user import connection

REPLY, NO_REPLY, ERROR = 1, 0x10, 0x20
VERSION, DMA_MAP, DMA_UNMAP, GET_INFO, REGION_INFO, REGION_IO_FDS, IRQ_INFO, SET_IRQS = range(1, 9)
READ, WRITE, DMA_READ, DMA_WRITE, RESET, _, WRITE_MULTI, FEATURE, MIG_READ, MIG_WRITE = range(9, 19)
CONFIG = 7
PAGE = 4096
BASE = 0x100000
MIB = 1 << 20
IS_OPEN = b"\x34\x12"
"""The vendor id, from a connection that works."""


def access(region: int, offset: int, count: int) -> bytes:
    return struct.pack("<QII", offset, region, count)


# --- requests that are wrong ---


@pytest.mark.parametrize("size", [0, 1, 15])
def test_request_errors_too_small(bench: Any, size: int) -> None:
    bench.raw.send(GET_INFO, size=size)
    bench.raw.pump()
    reply = bench.raw.receive()
    assert (reply.flags, reply.error) == (REPLY | ERROR, errno.EINVAL)
    assert bench.hangup == f"a message of {size} bytes"  # where the next one begins is not known


@pytest.mark.parametrize("size", [MIB + 33, 1 << 31, 0xFFFFFFFF])
def test_request_errors_too_large(bench: Any, size: int) -> None:
    bench.raw.send(WRITE, access(2, 0, MIB), size=size)
    bench.raw.pump()
    reply = bench.raw.receive()
    assert (reply.flags, reply.error) == (REPLY | ERROR, errno.EINVAL)
    assert bench.hangup == f"a message of {size} bytes"


@pytest.mark.parametrize("command", [GET_INFO, DMA_READ, DMA_WRITE, READ, 99])
@pytest.mark.parametrize("flags", [REPLY, REPLY | ERROR, 2, 0xF])
def test_request_errors_unsolicited_reply(bench: Any, command: int, flags: int) -> None:
    identifier = bench.raw.send(command, bytes(16), flags=flags)
    bench.raw.pump()
    reply = bench.raw.receive()
    assert reply[:5] == (identifier, command, REPLY | ERROR, errno.EINVAL, b"")
    assert bench.raw.read(CONFIG, 0, 2) == IS_OPEN


@pytest.mark.parametrize("command", [0, DMA_READ, DMA_WRITE, 14, 19, 99, 0xFFFF])
def test_request_errors_bad_command(bench: Any, command: int) -> None:
    bench.raw.refused(command)
    bench.raw.refused(command, bytes(100))
    assert bench.raw.read(CONFIG, 0, 2) == IS_OPEN


@pytest.mark.parametrize(
    "command",
    [DMA_MAP, DMA_UNMAP, GET_INFO, REGION_INFO, REGION_IO_FDS, IRQ_INFO, SET_IRQS, READ, WRITE, WRITE_MULTI],
)
def test_request_errors_no_payload(bench: Any, command: int) -> None:
    bench.raw.refused(command)
    bench.raw.refused(command, bytes(4))
    assert bench.raw.read(CONFIG, 0, 2) == IS_OPEN


@pytest.mark.parametrize(
    ("command", "count"),
    [(GET_INFO, 1), (DMA_UNMAP, 1), (READ, 2), (WRITE, 1), (RESET, 3), (SET_IRQS, 16), (DMA_MAP, 2), (99, 1), (0, 200)],
)
@pytest.mark.parametrize("flags", [0, NO_REPLY])
def test_bad_request_closes_fds(bench: Any, command: int, count: int, flags: int) -> None:
    reader, writer = os.pipe()
    bench.raw.send(command, bytes(4), fds=[writer] * count, flags=flags)
    os.close(writer)
    bench.raw.pump()
    assert os.read(reader, 1) == b""  # nobody holds the other end
    os.close(reader)
    if not flags:
        assert bench.raw.receive().error == errno.EINVAL
    assert bench.raw.read(CONFIG, 0, 2) == IS_OPEN


def test_descriptors_behind_a_fatal_message_are_closed(make_bench: Callable[..., Any]) -> None:
    bench = make_bench(hello=False)
    reader, writer = os.pipe()
    bench.raw.send(GET_INFO)
    bench.raw.send(SET_IRQS, bytes(20), fds=[writer])
    os.close(writer)
    bench.raw.pump()
    assert bench.hangup == "no version was agreed on"
    assert os.read(reader, 1) == b""
    os.close(reader)


def test_request_errors_disconnected_socket(bench: Any) -> None:
    """The client is gone before its reply: one hang-up, one reset."""
    bench.raw.send(READ, access(2, 0, MIB))
    bench.raw.close()
    bench.serve()
    assert bench.hangup is not None
    assert bench.function.resets == 0
    bench.connection.close()
    assert bench.function.resets == 1


@pytest.mark.parametrize("nbytes", [1, 15, 16, 20, 31])
def test_disconnect_in_the_middle_of_a_message(bench: Any, nbytes: int) -> None:
    whole = struct.pack("<HHIII", 1, READ, 32, 0, 0) + access(0, 0, 4)
    bench.raw.send_bytes(whole[:nbytes], fds=[0])
    bench.serve()
    bench.raw.close()
    bench.serve()
    assert bench.hangup == ""


def test_a_client_that_does_not_read_its_replies(make_bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "PATIENCE", 0.05)
    bench = make_bench()
    for _ in range(4):
        bench.raw.send(READ, access(2, 0, MIB))
    bench.serve()
    assert bench.hangup


@pytest.mark.parametrize("seed", range(20))
def test_random_messages(make_bench: Any, seed: int) -> None:
    """Well-framed nonsense is answered, one reply for each that wants one; nothing else happens."""
    generator = random.Random(seed)
    bench = make_bench()
    for _ in range(200):
        command = generator.choice([*range(20), 0xFFFF])
        words = [generator.choice([0, 1, 2, 3, 4, 7, 16, 20, 24, 32, 36, 255, 4096, 0xFFFFFFFF]) for _ in range(10)]
        body = struct.pack("<10I", *words)[: generator.choice([0, 4, 8, 16, 17, 20, 24, 32, 40])]
        fds = [0] * generator.choice([0, 0, 0, 1, 2, 16])
        flags = generator.choice([0, 0, 0, NO_REPLY, 1, 0x21, 0xFFFFFFFF])
        identifier = bench.raw.send(command, body, fds=fds, flags=flags)
        bench.raw.pump()
        if not flags & NO_REPLY:
            assert bench.raw.receive()[:2] == (identifier, command)
    assert bench.hangup is None
    assert bench.raw.read(CONFIG, 0, 2) == IS_OPEN


def test_ids_may_repeat(bench: Any) -> None:
    for _ in range(3):
        bench.raw.send(GET_INFO, struct.pack("<IIII", 16, 0, 0, 0), identifier=7)
    bench.raw.pump()
    assert [bench.raw.receive().identifier for _ in range(3)] == [7, 7, 7]


def test_commands_are_done_in_their_order(bench: Any) -> None:
    """Posted ones too: several in one receive, then one that sees them done."""
    bench.raw.send_bytes(
        b"".join(struct.pack("<HHIII", 0, WRITE, 33, NO_REPLY, 0) + access(0, i, 1) + bytes([i]) for i in range(100))
    )
    assert bench.raw.read(0, 0, 100) == bytes(range(100))
    assert bench.connection.received == 102  # VERSION and the read as well


# --- information ---


def test_device_get_info(bench: Any) -> None:
    assert bench.raw.call(GET_INFO, struct.pack("<IIII", 16, 0, 0, 0)) == struct.pack("<IIII", 16, 3, 9, 5)
    assert bench.raw.call(GET_INFO, struct.pack("<IIII", 100, 0, 0, 0)) == struct.pack("<IIII", 16, 3, 9, 5)
    bench.raw.refused(GET_INFO, struct.pack("<IIII", 15, 0, 0, 0))
    bench.raw.refused(GET_INFO, struct.pack("<III", 16, 0, 0))


def region_info(argsz: int, index: int) -> bytes:
    return struct.pack("<IIIIQQ", argsz, 0, index, 0, 0, 0)


def test_device_get_region_info_short_write(bench: Any) -> None:
    bench.raw.refused(REGION_INFO, region_info(32, 0)[:31])


@pytest.mark.parametrize("argsz", [0, 31])
def test_device_get_region_info_bad_argsz(bench: Any, argsz: int) -> None:
    bench.raw.refused(REGION_INFO, region_info(argsz, 0))


@pytest.mark.parametrize("index", [9, 0xFFFFFFFF])
def test_device_get_region_info_bad_index(bench: Any, index: int) -> None:
    bench.raw.refused(REGION_INFO, region_info(32, index))


@pytest.mark.parametrize("argsz", [32, 33, 64, 0xFFFFFFFF])
def test_device_get_region_info_larger_argsz(bench: Any, argsz: int) -> None:
    """What is sent is the fixed part, since no region has capabilities, and argsz says so."""
    for index, size in enumerate([256, PAGE, 2 * MIB, 0, 0, 0, 0, 256, 0]):
        expected = struct.pack("<IIIIQQ", 32, 3 if size else 0, index, 0, size, 0)
        assert bench.raw.call(REGION_INFO, region_info(argsz, index)) == expected


def test_device_get_region_info_zero_size(bench: Any) -> None:
    for index in (3, 4, 5, 6, 8):
        assert bench.raw.call(REGION_INFO, region_info(32, index)) == region_info(32, index)


@pytest.mark.parametrize(("express", "nbytes"), [(False, 256), (True, 4096)])
def test_device_get_region_info_pci_config_region(make_bench: Any, toy: Any, express: bool, nbytes: int) -> None:
    bench = make_bench(toy(express=express))
    assert struct.unpack("<IIIIQQ", bench.raw.call(REGION_INFO, region_info(32, 7)))[4] == nbytes
    assert len(bench.raw.read(CONFIG, 0, nbytes)) == nbytes


def io_fds(argsz: int, index: int, flags: int = 0, count: int = 0) -> bytes:
    return struct.pack("<IIII", argsz, flags, index, count)


def test_region_io_fds_no_fds(bench: Any) -> None:
    """Each doorbell is a message."""
    for argsz in (16, 56, MIB):
        assert bench.raw.call(REGION_IO_FDS, io_fds(argsz, 0)) == io_fds(16, 0)


@pytest.mark.parametrize("flags", [1, 0xFFFFFFFF])
def test_region_io_fds_bad_flags(bench: Any, flags: int) -> None:
    bench.raw.refused(REGION_IO_FDS, io_fds(512, 0, flags=flags))


@pytest.mark.parametrize("count", [1, 0xFFFFFFFF])
def test_region_io_fds_bad_count(bench: Any, count: int) -> None:
    bench.raw.refused(REGION_IO_FDS, io_fds(512, 0, count=count))


@pytest.mark.parametrize("argsz", [0, 15])
def test_region_io_fds_buffer_too_small(bench: Any, argsz: int) -> None:
    bench.raw.refused(REGION_IO_FDS, io_fds(argsz, 0))


@pytest.mark.parametrize("argsz", [MIB + 1, 0xFFFFFFFF])
def test_region_io_fds_buffer_too_large(bench: Any, argsz: int) -> None:
    bench.raw.refused(REGION_IO_FDS, io_fds(argsz, 0))


@pytest.mark.parametrize("index", [3, 6, 8])
def test_region_io_fds_no_regions_setup(bench: Any, index: int) -> None:
    bench.raw.refused(REGION_IO_FDS, io_fds(512, index))


@pytest.mark.parametrize("index", [9, 0xFFFFFFFF])
def test_region_io_fds_region_out_of_range(bench: Any, index: int) -> None:
    bench.raw.refused(REGION_IO_FDS, io_fds(512, index))


# --- regions ---


def test_access_region_zero_count(bench: Any) -> None:
    """Header-only replies."""
    assert bench.raw.call(READ, access(0, 0, 0)) == b""
    assert bench.raw.call(WRITE, access(0, 0, 0)) == b""


def test_access_region_large_count(bench: Any) -> None:
    bench.raw.refused(READ, access(2, 0, MIB + 1))
    bench.raw.refused(READ, access(2, 0, 0xFFFFFFFF))
    data = os.urandom(2 * MIB)
    for offset in (0, MIB):
        bench.function.large.data[offset : offset + MIB] = data[offset : offset + MIB]
    bench.raw.send(READ, access(2, MIB, MIB))  # the reply does not fit into the socket: read it meanwhile
    worker = threading.Thread(target=bench.serve)
    worker.start()
    reply = bench.raw.receive()
    worker.join()
    assert reply.body == access(2, MIB, MIB) + data[MIB:]


def test_region_offset_too_short(bench: Any) -> None:
    bench.raw.refused(READ, access(0, 0, 4)[:15])
    bench.raw.refused(WRITE, access(0, 0, 4)[:15])


@pytest.mark.parametrize(("count", "nbytes"), [(4, 0), (4, 3), (4, 5), (0, 1), (0xFFFFFFFF, 4)])
def test_a_write_of_another_length(bench: Any, count: int, nbytes: int) -> None:
    bench.raw.refused(WRITE, access(0, 0, count) + bytes(nbytes))
    bench.raw.send(WRITE, access(0, 0, count) + bytes(nbytes), flags=NO_REPLY)
    assert bench.raw.read(CONFIG, 0, 2) == IS_OPEN
    assert bench.function.small.accesses == []


@pytest.mark.parametrize(("region", "offset", "nbytes"), [(0, 255, 2), (0, 256, 1), (3, 0, 4), (9, 0, 4), (8, 0, 1)])
def test_region_offset_overflow(bench: Any, region: int, offset: int, nbytes: int) -> None:
    bench.raw.refused(READ, access(region, offset, nbytes))
    bench.raw.refused(WRITE, access(region, offset, nbytes) + bytes(nbytes))
    bench.raw.send(WRITE, access(region, offset, nbytes) + bytes(nbytes), flags=NO_REPLY)
    assert bench.raw.read(CONFIG, 0, 2) == IS_OPEN


def test_large_64bit_bar_sizes(make_bench: Any, toy: Any) -> None:
    function = toy()
    huge = type(function.small)(16)
    function.add_bar(Bar(4, BarKind.MEMORY_64, 1 << 40, huge))
    bench = make_bench(function)
    assert struct.unpack("<IIIIQQ", bench.raw.call(REGION_INFO, region_info(32, 4)))[4] == 1 << 40
    bench.raw.read(4, (1 << 40) - 8, 8)
    bench.raw.refused(READ, access(4, (1 << 40) - 7, 8))
    assert huge.accesses == [("read", (1 << 40) - 8, 8)]


@pytest.mark.parametrize("trace", [False, True])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 6, 8, 16])
def test_posted_writes(make_bench: Any, trace: bool, size: int) -> None:
    lines: list[str] = []
    bench = make_bench(trace=lines.append if trace else None)
    data = bytes(range(1, 1 + size))
    bench.raw.write(0, 8, data, posted=True)
    assert bench.function.small.data[:32] == bytes(8) + data + bytes(24 - size)
    assert bench.raw.read(0, 8, size) == data
    assert bool(lines) is trace
    assert bench.connection.received == 3


def test_posted_commands_that_fail_are_silent(bench: Any) -> None:
    for command in (GET_INFO, 99, READ, SET_IRQS):
        bench.raw.send(command, flags=NO_REPLY)
    assert bench.raw.read(CONFIG, 0, 2) == IS_OPEN
    assert bench.connection.refused == 4


# --- write multiple ---


def single(region: int, offset: int, data: bytes, count: int | None = None) -> bytes:
    return access(region, offset, len(data) if count is None else count) + data.ljust(8, b"\xee")


def test_write_multi(bench: Any) -> None:
    writes = [single(0, 0, b"12345678"), single(0, 8, b"ab"), single(CONFIG, 0x3C, b"\x0b"), single(2, 4, b"wxyz")]
    body = struct.pack("<Q", 4) + b"".join(writes)
    assert bench.raw.call(WRITE_MULTI, body) == struct.pack("<Q", 4)
    assert bench.raw.read(0, 0, 12) == b"12345678ab\0\0"
    assert bench.raw.read(CONFIG, 0x3C, 1) == b"\x0b"
    assert bench.raw.read(2, 4, 4) == b"wxyz"
    assert bench.raw.call(WRITE_MULTI, struct.pack("<Q", 0)) == struct.pack("<Q", 0)


@pytest.mark.parametrize(
    "body",
    [
        struct.pack("<Q", 2) + single(0, 0, b"1"),
        struct.pack("<Q", 0) + single(0, 0, b"1"),
        struct.pack("<Q", 1 << 63),
        struct.pack("<Q", 1) + single(0, 0, b"1")[:-1],
        struct.pack("<Q", 1) + single(0, 0, b"12345678", count=9),
        struct.pack("<Q", 1) + single(0, 255, b"12"),
        struct.pack("<Q", 1) + single(9, 0, b"1"),
    ],
)
def test_write_multi_that_is_wrong(bench: Any, body: bytes) -> None:
    bench.raw.refused(WRITE_MULTI, body)
    assert bench.function.small.accesses == []


def test_write_multi_needs_an_agreement(make_bench: Any) -> None:
    bench = make_bench(hello=False)
    bench.raw.hello(b"{}\0")
    bench.raw.refused(WRITE_MULTI, struct.pack("<Q", 1) + single(0, 0, b"1"))


# --- the device ---


def test_reset(bench: Any) -> None:
    bench.raw.map(BASE, PAGE)
    bench.raw.write(CONFIG, 4, b"\x06")
    assert bench.raw.call(RESET) == b""
    assert bench.function.resets == 1
    assert bench.raw.read(CONFIG, 4, 1) == b"\0"
    assert len(bench.memory.remote_regions) == 1


@pytest.mark.parametrize("command", [FEATURE, MIG_READ, MIG_WRITE])
@pytest.mark.parametrize("body", [b"", struct.pack("<II", 8, 1 << 16 | 1), struct.pack("<IIQ", 16, 1 << 17 | 6, 0)])
def test_migration_and_dirty_pages_are_not_supported(bench: Any, command: int, body: bytes) -> None:
    bench.raw.refused(command, body, code=errno.EOPNOTSUPP)


def test_destroy(make_bench: Any) -> None:
    """With everything in use; fixtures see that nothing is left."""
    bench = make_bench()
    bench.enable_msix()
    fd = os.eventfd(0)
    bench.raw.set_irqs(0x24, 2, 0, 4, fds=[fd] * 4)
    os.close(fd)
    bench.raw.map(BASE, PAGE)
    bench.connection.close()
    assert bench.memory.remote_regions == ()
    with pytest.raises(MemoryAccessError):
        bench.connection.read(BASE, 1)


# --- RAM by messages ---


class Asking:
    """A client without descriptors, and its RAM. It answers the server's questions in the order that a test gives.

    The server asks in the test's thread, so what the client does meanwhile is written into its socket in advance.
    """

    def __init__(self, bench: Any) -> None:
        self.bench = bench
        self.raw = bench.raw
        self.raw.map(BASE, 16 * PAGE)
        self.next_id = 0

    def reply(self, command: int, address: int, count: int, data: bytes = b"", *, flags: int = REPLY) -> None:
        self.next_id += 1
        body = b"" if flags & ERROR else struct.pack("<QQ", address, count) + data
        self.raw.send(command, body, flags=flags, identifier=self.next_id)

    def question(self) -> tuple[int, int, int, bytes]:
        message = self.raw.receive()
        assert message.flags == 0
        return (message.command, *struct.unpack_from("<QQ", message.body), message.body[16:])


@pytest.fixture
def asking(bench: Any) -> Asking:
    return Asking(bench)


def test_sgl_read_write(asking: Asking) -> None:
    asking.reply(DMA_READ, BASE + 5, 3, b"abc")
    assert asking.bench.memory.read(BASE + 5, 3) == b"abc"
    assert asking.question() == (DMA_READ, BASE + 5, 3, b"")
    asking.reply(DMA_WRITE, BASE + 9, 4)
    asking.bench.memory.write(BASE + 9, b"wxyz")
    assert asking.question() == (DMA_WRITE, BASE + 9, 4, b"wxyz")


def test_sgl_read_write_in_turns(make_bench: Any) -> None:
    """No more than the client takes at once."""
    bench = make_bench(hello=False)
    bench.raw.hello(b'{"capabilities":{"max_data_xfer_size":1000}}\0')
    bench.raw.map(BASE, 16 * PAGE)
    ram = bytearray(os.urandom(5000))
    asked: list[tuple[int, int, int]] = []

    def answer() -> None:
        for _ in range(6):
            message = bench.raw.receive()
            asked.append((message.command, *struct.unpack_from("<QQ", message.body)))
            bench.raw.answer_dma(message, ram, base=BASE)

    client = threading.Thread(target=answer)
    client.start()
    data = os.urandom(2500)
    assert bench.memory.read(BASE, 2500) == ram[:2500]
    bench.memory.write(BASE + 2500, data)
    client.join()
    assert ram[2500:] == data
    assert [each[0] for each in asked] == [DMA_READ] * 3 + [DMA_WRITE] * 3
    assert [each[1] - BASE for each in asked] == [0, 1000, 2000, 2500, 3500, 4500]
    assert [each[2] for each in asked] == [1000, 1000, 500] * 2


def test_sgl_error_reply(asking: Asking) -> None:
    acts: dict[int, Callable[[], object]] = {
        DMA_READ: lambda: asking.bench.memory.read(BASE, 8),
        DMA_WRITE: lambda: asking.bench.memory.write(BASE, bytes(8)),
    }
    for command, act in acts.items():
        asking.reply(command, BASE, 8, flags=REPLY | ERROR)
        with pytest.raises(MemoryAccessError):
            act()
    assert asking.bench.hangup is None
    asking.reply(DMA_READ, BASE, 1, b"x")
    assert asking.bench.memory.read(BASE, 1) == b"x"


@pytest.mark.parametrize("data", [b"", b"1234567", b"123456789"])
def test_a_reply_with_another_number_of_bytes(asking: Asking, data: bytes) -> None:
    asking.reply(DMA_READ, BASE, 8, data)
    with pytest.raises(MemoryAccessError):
        asking.bench.memory.read(BASE, 8)


def test_commands_are_answered_while_the_server_waits(asking: Asking) -> None:
    asking.raw.send(WRITE, access(0, 0, 4) + b"data", flags=NO_REPLY)
    identifier = asking.raw.send(READ, access(0, 0, 4))
    asking.reply(DMA_READ, BASE, 1, b"x")
    later = asking.raw.send(GET_INFO, struct.pack("<IIII", 16, 0, 0, 0))
    assert asking.bench.memory.read(BASE, 1) == b"x"
    assert asking.question()[0] == DMA_READ
    assert asking.raw.receive()[:5] == (identifier, READ, REPLY, 0, access(0, 0, 4) + b"data")
    assert asking.raw.receive().identifier == later


def test_replies_to_something_else_while_the_server_waits(asking: Asking) -> None:
    for identifier, command in ((99, DMA_READ), (1, DMA_WRITE), (1, READ)):
        asking.raw.send(command, bytes(17), flags=REPLY, identifier=identifier)
    asking.reply(DMA_READ, BASE, 1, b"x")
    assert asking.bench.memory.read(BASE, 1) == b"x"
    asking.question()
    assert [asking.raw.receive().error for _ in range(3)] == [errno.EINVAL] * 3


@pytest.mark.parametrize("what", ["reset", "unmap", "unmap all", "map"])
def test_what_the_client_takes_away_while_the_server_waits(asking: Asking, what: str) -> None:
    """Nothing of what was asked for is used."""
    bodies = {
        "reset": (RESET, b""),
        "unmap": (DMA_UNMAP, struct.pack("<IIQQ", 24, 0, BASE, 16 * PAGE)),
        "unmap all": (DMA_UNMAP, struct.pack("<IIQQ", 24, 2, 0, 0)),
        "map": (DMA_MAP, struct.pack("<IIQQQ", 32, 3, 0, 0, PAGE)),
    }
    asking.raw.send(*bodies[what])
    asking.reply(DMA_READ, BASE, 1, b"x")
    with pytest.raises(MemoryAccessError):
        asking.bench.memory.read(BASE, 1)
    asking.question()
    assert not asking.raw.receive().flags & ERROR
    assert asking.bench.hangup is None


def test_two_questions_at_once(asking: Asking) -> None:
    """A device may need RAM to answer a command that comes while it waits for RAM."""
    inner = []

    def read(offset: int, size: int) -> int:
        asking.reply(DMA_READ, BASE + 8, 4, b"more")
        inner.append(asking.bench.memory.read(BASE + 8, 4))
        return 0

    asking.bench.function.small.read = read
    asking.bench.connection._regions._function._reads[0] = (read, 256)
    asking.raw.send(READ, access(0, 0, 4))
    asking.reply(DMA_READ, BASE, 5, b"outer")
    assert asking.bench.memory.read(BASE, 5) == b"outer"
    assert inner == [b"more"]


@pytest.mark.parametrize("noise", [False, True])
def test_a_client_that_never_answers(asking: Asking, monkeypatch: pytest.MonkeyPatch, noise: bool) -> None:
    """Also one that goes on talking."""
    monkeypatch.setattr(connection, "PATIENCE", 0.05)
    if noise:
        receive = asking.bench.connection._stream.receive

        def noisy() -> Any:
            found = receive()
            asking.raw.send(WRITE, access(0, 0, 1) + b"x", flags=NO_REPLY)
            return found

        monkeypatch.setattr(type(asking.bench.connection._stream), "receive", lambda _: noisy())
        asking.raw.send(WRITE, access(0, 0, 1) + b"x", flags=NO_REPLY)
    with pytest.raises(MemoryAccessError):
        asking.bench.memory.read(BASE, 1)
    with pytest.raises(connection.Hangup, match="it does not answer"):
        asking.bench.connection.check()
    with pytest.raises(MemoryAccessError):  # and it is not asked again
        asking.bench.memory.write(BASE, b"x")


def test_a_client_that_goes_away_instead_of_answering(asking: Asking) -> None:
    asking.raw.close()
    with pytest.raises(MemoryAccessError):
        asking.bench.memory.read(BASE, 1)
    with pytest.raises(connection.Hangup):
        asking.bench.connection.check()


def test_parting_from_a_client_that_goes_on_talking(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    receive = bench.connection._stream.receive

    def noisy() -> Any:
        found = receive()
        bench.raw.send(WRITE, access(0, 0, 1) + b"x", flags=NO_REPLY)
        return found

    monkeypatch.setattr(type(bench.connection._stream), "receive", lambda _: noisy())
    bench.raw.send(WRITE, access(0, 0, 1) + b"x", flags=NO_REPLY)
    bench.connection.part(0.05)
    assert bench.raw.is_closed
