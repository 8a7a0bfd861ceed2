"""The client: servers that break rules, and any PCI function over the socket."""

from __future__ import annotations

import array
import contextlib
import errno
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from pyvirtfs import GuestMemory
from pyvirtfs.errors import DeviceError
from pyvirtfs.guest import DirectMachine, VfioUserClient
from pyvirtfs.pci import Bar, BarKind, PciFunction, PciIdentity
from pyvirtfs.syscalls import memfd_create
from pyvirtfs.testing import ServedFunction, check_descriptors

REPLY, NO_REPLY, ERROR = 1, 0x10, 0x20
VERSION, DMA_MAP, DMA_UNMAP, GET_INFO, REGION_INFO, _, IRQ_INFO, SET_IRQS, READ, WRITE, DMA_READ, DMA_WRITE = range(
    1, 13
)
PAGE = 4096
MIB = 1 << 20
Served: TypeAlias = ServedFunction[PciFunction]
PATIENCE = 10.0


# --- a server that breaks rules ---


class Liar:
    """A server of no great use, written with `struct`, that answers some commands as the test wants."""

    def __init__(self, connection: socket.socket, lies: dict[int, Callable[[int, bytes], Any]]) -> None:
        self.connection = connection
        self.lies = lies
        self.seen: list[tuple[int, bytes, int]] = []
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while len(header := self.connection.recv(16, socket.MSG_WAITALL)) == 16:
                identifier, command, size, flags, _ = struct.unpack("<HHIII", header)
                body = self.connection.recv(size - 16, socket.MSG_WAITALL) if size > 16 else b""
                self.seen.append((command, body, flags))
                if not flags & REPLY:
                    lie = self.lies.get(command)
                    answer = self._truth(command, body) if lie is None else lie(identifier, body)
                    if isinstance(answer, bytes) and not flags & NO_REPLY:
                        self.send(identifier, command, answer)

    def half(self, identifier: int, body: bytes) -> None:
        self.send(identifier, GET_INFO, body, size=40)
        self.connection.shutdown(socket.SHUT_WR)

    def _truth(self, command: int, body: bytes) -> bytes:
        if command == VERSION:
            return struct.pack("<HH", 0, 1) + b'{"capabilities":{"max_msg_fds":8}}\0'
        if command == GET_INFO:
            return struct.pack("<IIII", 16, 3, 9, 5)
        if command == READ:
            return body + bytes(struct.unpack_from("<I", body, 12)[0])
        if command == WRITE:
            return body[:16]
        return body if command not in {DMA_MAP, SET_IRQS} else b""

    def send(
        self, identifier: int, command: int, body: bytes, *, flags: int = REPLY, size: int | None = None, fds: int = 0
    ) -> None:
        error = 22 if flags & ERROR else 0
        data = struct.pack("<HHIII", identifier, command, 16 + len(body) if size is None else size, flags, error) + body
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0] * fds))] if fds else []
        sent = self.connection.sendmsg([data], rights)
        if sent < len(data):
            self.connection.sendall(data[sent:])


class LiarBench:
    def __init__(self) -> None:
        self.lies: dict[int, Callable[[int, bytes], Any]] = {}
        self.machine = DirectMachine(GuestMemory.anonymous(MIB))
        ours, theirs = socket.socketpair()
        self.ours = ours
        self.liar = Liar(theirs, self.lies)

    def meet(self, **options: Any) -> VfioUserClient:
        return VfioUserClient(self.ours, self.machine.memory, self.machine.pin, **options)

    def close(self) -> None:
        self.ours.close()
        self.liar.connection.shutdown(socket.SHUT_RDWR)
        self.liar.thread.join(PATIENCE)
        self.liar.connection.close()
        assert not self.liar.thread.is_alive()


@pytest.fixture
def bench() -> Iterator[LiarBench]:
    with check_descriptors():
        found = LiarBench()
        yield found
        found.close()


def test_meeting(bench: LiarBench) -> None:
    with bench.meet(max_transfer=1000) as client:
        assert (client.minor, client.flags, client.capabilities) == (1, 3, {"max_msg_fds": 8})
        assert (len(client.regions), len(client.irqs), client.msix) == (9, 5, None)
        assert client.config_read(0, 4) == 0
        client.bar_write(2, 8, 4, 0x12345678)
        client.config_write(4, 2, 6)
    version = bench.liar.seen[0][1]
    assert version[:4] == struct.pack("<HH", 0, 1)
    assert b'"max_data_xfer_size": 1000' in version
    assert version[-1] == 0
    assert bench.liar.seen[1][:2] == (DMA_MAP, struct.pack("<IIQQQ", 32, 3, 0, 0, MIB))
    access = struct.pack("<QII", 8, 2, 4) + struct.pack("<I", 0x12345678)
    assert bench.liar.seen[-2:] == [(WRITE, access, NO_REPLY), (WRITE, struct.pack("<QIIH", 4, 7, 2, 6), 0)]


LIES: dict[str, tuple[int, Callable[[Liar], Callable[[int, bytes], Any]]]] = {
    "another id": (GET_INFO, lambda liar: lambda i, body: liar.send(i + 1, GET_INFO, body)),
    "another command": (GET_INFO, lambda liar: lambda i, body: liar.send(i, IRQ_INFO, body)),
    "a command": (GET_INFO, lambda liar: lambda i, body: liar.send(i, GET_INFO, body, flags=0)),
    "a type that is none": (GET_INFO, lambda liar: lambda i, body: liar.send(i, GET_INFO, body, flags=2)),
    "too small": (GET_INFO, lambda liar: lambda i, body: liar.send(i, GET_INFO, body, size=15)),
    "too large": (GET_INFO, lambda liar: lambda i, body: liar.send(i, GET_INFO, body, size=1 << 24)),
    "an error with a body": (GET_INFO, lambda liar: lambda i, body: liar.send(i, GET_INFO, body, flags=REPLY | ERROR)),
    "descriptors": (GET_INFO, lambda liar: lambda i, body: liar.send(i, GET_INFO, body, fds=1)),
    "a flood of descriptors": (GET_INFO, lambda liar: lambda i, body: liar.send(i, GET_INFO, body, fds=100)),
    "the end": (GET_INFO, lambda liar: lambda _, __: liar.connection.shutdown(socket.SHUT_WR)),
    "half a reply": (GET_INFO, lambda liar: liar.half),
    "nothing": (GET_INFO, lambda _: lambda _, __: None),
    "major version": (VERSION, lambda _: lambda _, __: struct.pack("<HH", 1, 0)),
    "minor version": (VERSION, lambda _: lambda _, __: struct.pack("<HH", 0, 2)),
    "short version": (VERSION, lambda _: lambda _, __: b"\0\0"),
    "no NUL": (VERSION, lambda _: lambda _, body: body[:4] + b"{}"),
    "no JSON": (VERSION, lambda _: lambda _, body: body[:4] + b"{\0"),
    "no object": (VERSION, lambda _: lambda _, body: body[:4] + b"[]\0"),
    "no PCI device": (GET_INFO, lambda _: lambda _, __: struct.pack("<IIII", 16, 1, 9, 5)),
    "few regions": (GET_INFO, lambda _: lambda _, __: struct.pack("<IIII", 16, 3, 7, 5)),
    "few interrupts": (GET_INFO, lambda _: lambda _, __: struct.pack("<IIII", 16, 3, 9, 2)),
    "short information": (GET_INFO, lambda _: lambda _, __: struct.pack("<III", 16, 3, 9)),
    "small argsz": (REGION_INFO, lambda _: lambda _, body: b"\x1f" + body[1:]),
    "another index": (IRQ_INFO, lambda _: lambda _, body: body[:8] + b"\x09" + body[9:]),
    "another region": (READ, lambda _: lambda _, body: body[:8] + b"\x09" + body[9:] + bytes(2)),
    "fewer bytes": (READ, lambda _: lambda _, body: body + bytes(1)),
    "more bytes": (READ, lambda _: lambda _, body: body + bytes(3)),
}


@pytest.mark.parametrize("lie", LIES)
def test_servers_that_break_a_rule(bench: LiarBench, lie: str) -> None:
    command, make = LIES[lie]
    bench.lies[command] = make(bench.liar)
    with pytest.raises(DeviceError):
        bench.meet(timeout=0.3 if lie == "nothing" else PATIENCE)
    assert bench.ours.fileno() == -1


def test_errors_are_os_errors(bench: LiarBench) -> None:
    with bench.meet() as client:
        bench.lies[READ] = lambda i, body: bench.liar.send(i, READ, b"", flags=REPLY | ERROR)
        with pytest.raises(OSError, match="REGION_READ") as caught:
            client.bar_read(0, 0, 4)
        assert caught.value.errno == 22
        del bench.lies[READ]
        assert client.bar_read(0, 0, 4) == 0


def test_descriptors_that_are_allowed_are_closed(bench: LiarBench) -> None:
    bench.lies[REGION_INFO] = lambda i, body: bench.liar.send(i, REGION_INFO, body, fds=2)
    bench.meet().close()


def test_the_servers_questions(bench: LiarBench) -> None:
    """While another command waits for its reply, too; those for what is no RAM are refused."""
    bench.machine.memory.write(0x1000, b"from the guest")
    with bench.meet() as client:

        def ask(identifier: int, body: bytes) -> bytes:
            bench.liar.send(900, DMA_READ, struct.pack("<QQ", 0x1000, 14), flags=0)
            bench.liar.send(901, DMA_WRITE, struct.pack("<QQ", 0x2000, 5) + b"hello", flags=0)
            bench.liar.send(902, DMA_READ, struct.pack("<QQ", MIB - 4, 8), flags=0)
            return body[:16] + bytes(4)

        bench.lies[READ] = ask
        assert client.bar_read(0, 0, 4) == 0
        del bench.lies[READ]
        bench.liar.send(903, DMA_WRITE, struct.pack("<QQ", 0x2005, 6) + b" later", flags=0)
        assert client.progress(PATIENCE)
        assert bench.machine.memory.read(0x2000, 11) == b"hello later"
        client.map(MIB, PAGE, writable=False)
        bench.liar.send(904, DMA_WRITE, struct.pack("<QQ", MIB, 1) + b"x", flags=0)
        assert client.progress(PATIENCE)
        assert not client.progress(0.0)
        client.config_read(0, 4)  # the server has seen all by then
        assert (client.reads_served, client.writes_served, client.refused) == (1, 2, 2)
    answers = [(command, body, flags) for command, body, flags in bench.liar.seen if command in {DMA_READ, DMA_WRITE}]
    assert answers == [
        (DMA_READ, struct.pack("<QQ", 0x1000, 14) + b"from the guest", REPLY),
        (DMA_WRITE, struct.pack("<QQ", 0x2000, 5), REPLY),
        (DMA_READ, b"", REPLY | ERROR),
        (DMA_WRITE, struct.pack("<QQ", 0x2005, 6), REPLY),
        (DMA_WRITE, b"", REPLY | ERROR),
    ]


@pytest.mark.parametrize(
    ("command", "body", "flags"),
    [
        (READ, bytes(16), 0),
        (99, b"", 0),
        (DMA_READ, bytes(15), 0),
        (DMA_READ, struct.pack("<QQ", 0, 1001), 0),
        (DMA_READ, struct.pack("<QQ", 0, 1) + b"x", 0),
        (DMA_WRITE, struct.pack("<QQ", 0, 2) + b"x", 0),
        (DMA_READ, struct.pack("<QQ", 0, 1), REPLY),
        (READ, bytes(16), REPLY),
    ],
)
def test_questions_that_break_a_rule(bench: LiarBench, command: int, body: bytes, flags: int) -> None:
    with bench.meet(max_transfer=1000) as client:
        bench.liar.send(1, command, body, flags=flags)
        with pytest.raises(DeviceError):
            client.progress(PATIENCE)


def test_both_send_at_once(bench: LiarBench) -> None:
    """Neither waits for the other to read first."""
    count, nbytes = 40, 64 << 10
    with bench.meet() as client:

        def flood(identifier: int, body: bytes) -> None:
            del bench.lies[WRITE]
            for i in range(count):
                bench.liar.send(i, DMA_WRITE, struct.pack("<QQ", 0, nbytes) + bytes([i]) * nbytes, flags=0)

        bench.lies[WRITE] = flood  # does not read meanwhile
        for _ in range(count):
            client.write_region(2, 0, bytes(nbytes), posted=True)
        while client.writes_served < count:
            assert client.progress(PATIENCE)
    assert bench.machine.memory.read(0, nbytes) == bytes([count - 1]) * nbytes


def test_nobody_is_there(tmp_path: Path) -> None:
    machine = DirectMachine(GuestMemory.anonymous(MIB))
    with check_descriptors(), pytest.raises(FileNotFoundError):
        VfioUserClient(tmp_path / "nothing", machine.memory, machine.pin)


# --- any function ---


class Buttons:
    """A BAR whose registers do things to its function."""

    def __init__(self) -> None:
        self.function: PciFunction | None = None
        self.data = bytearray(64)

    def read(self, offset: int, size: int) -> int:
        return int.from_bytes(self.data[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        assert self.function is not None
        if offset == 0:
            self.function.set_intx(bool(value))
        elif offset == 4 and self.function.msix is not None:
            self.function.msix.raise_vector(value)
        else:
            self.data[offset : offset + size] = value.to_bytes(size, "little")


@pytest.fixture
def buttons(tmp_path: Path) -> Iterator[Served]:
    with check_descriptors():
        function = PciFunction(PciIdentity(0x1234, 0x5678))
        bar = Buttons()
        bar.function = function
        function.add_bar(Bar(0, BarKind.MEMORY_32, 64, bar))
        function.add_msix(3, 1)
        with ServedFunction(function, GuestMemory(), tmp_path / "socket") as served:
            yield served


class Guest:
    """A machine with a client that nothing is brought up for."""

    def __init__(self, path: str, **options: Any) -> None:
        self.machine = DirectMachine(GuestMemory.anonymous(MIB))
        self.client = VfioUserClient(path, self.machine.memory, self.machine.pin, **options)
        self.events: list[int] = []

    def take(self, *, idle: float = 0.0) -> list[int]:
        """The vectors whose handlers ran since the last call."""
        while self.client.progress(idle):
            pass
        self.machine.interrupts.deliver()
        events = self.events.copy()
        self.events.clear()
        return events

    def program(self, vector: int) -> None:
        """Claim a message and write it to the table, masked."""
        address, data = self.machine.interrupts.allocate(lambda: self.events.append(vector))
        for i, value in enumerate((address, 0, data, 1)):
            self.client.bar_write(1, 16 * vector + 4 * i, 4, value)

    def mask(self, vector: int, *, masked: bool) -> None:
        self.client.bar_write(1, 16 * vector + 12, 4, int(masked))

    def control(self, value: int) -> None:
        assert self.client.msix is not None
        self.client.config_write(self.client.msix.control, 2, value)

    def fire(self, vector: int) -> None:
        """Let the function raise a vector; it has when this returns."""
        self.client.bar_write(0, 4, 4, vector)
        self.client.config_read(0, 4)


@pytest.fixture
def guest(buttons: Served) -> Iterator[Guest]:
    found = Guest(buttons.path)
    with found.client:
        found.client.config_write(4, 2, 6)
        yield found


def test_information(guest: Guest) -> None:
    client = guest.client
    assert client.flags == 3
    assert [(region.flags, region.nbytes) for region in client.regions] == [
        (3, 64), (3, PAGE), (0, 0), (0, 0), (0, 0), (0, 0), (0, 0), (3, 256), (0, 0),
    ]  # fmt: skip
    assert client.irqs == [(7, 1), (1, 0), (9, 3), (1, 1), (1, 1)]
    assert client.capabilities["write_multiple"] is True
    assert client.msix is not None
    assert (client.msix.vectors, client.msix.bar, client.msix.offset) == (3, 1, 0)


def test_accesses(guest: Guest) -> None:
    client = guest.client
    assert client.config_read(0, 4) == 0x56781234
    assert client.config_read(1, 1) == 0x12
    for size in (1, 2, 4, 8):
        client.bar_write(0, 16, size, 0x1122334455667788)
        assert client.bar_read(0, 16, size) == 0x1122334455667788 & (1 << 8 * size) - 1
    client.bar_write(0, 16, 4, -1)
    assert client.bar_read(0, 16, 4) == 0xFFFFFFFF
    client.config_write(0x3C, 1, 0x10B)
    assert client.config_read(0x3C, 1) == 0x0B
    assert client.write_several([(0, 32, b"12345678"), (7, 0x3C, b"\7"), (0, 40, b"ab")]) == 3
    assert client.read_region(0, 32, 10) == b"12345678ab"
    assert client.read_region(0, 32, 0) == b""
    client.write_region(0, 32, b"")
    with pytest.raises(OSError, match="REGION_READ") as caught:
        client.bar_read(0, 62, 4)
    assert caught.value.errno == errno.EINVAL
    client.bar_write(0, 62, 4, 0)  # posted: nobody says that it was wrong
    assert client.config_read(0, 2) == 0x1234


def test_msix(guest: Guest, buttons: Served) -> None:
    for vector in range(3):
        guest.program(vector)
    assert buttons.function.msix is not None
    assert buttons.function.msix.entries[:12] == bytes(12)  # the table never leaves the guest
    guest.control(0x8000)
    guest.mask(0, masked=False)
    guest.mask(2, masked=False)
    for vector in (0, 1, 2, 2):
        guest.fire(vector)
    assert sorted(guest.take()) == [0, 2]  # events merge in an eventfd
    assert guest.machine.interrupts.messages == 2
    guest.mask(1, masked=False)
    assert guest.take(idle=0.0) == [1]  # it was pending


def test_msix_masked_vectors_stay_pending(guest: Guest) -> None:
    guest.program(0)
    guest.mask(0, masked=False)
    guest.control(0x8000)
    guest.mask(0, masked=True)
    guest.fire(0)
    assert guest.take() == []
    assert guest.client.bar_read(1, 0x800, 8) == 1  # the pending bits are the server's
    guest.mask(0, masked=False)
    assert guest.take() == [0]
    assert guest.client.bar_read(1, 0x800, 8) == 0


def test_msix_an_event_that_is_masked_before_it_is_taken(guest: Guest) -> None:
    """The eventfd is signalled, and the guest masks the vector before it looks: nothing is lost."""
    guest.program(1)
    guest.mask(1, masked=False)
    guest.control(0x8000)
    guest.fire(1)
    guest.mask(1, masked=True)
    assert guest.take() == []
    guest.mask(1, masked=False)
    assert guest.take() == [1]
    assert guest.take() == []


def test_msix_function_mask(guest: Guest) -> None:
    guest.program(0)
    guest.mask(0, masked=False)
    guest.control(0xC000)
    guest.fire(0)
    assert guest.take() == []
    guest.control(0x8000)
    assert guest.take() == [0]
    guest.control(0xC000)
    guest.fire(0)
    assert guest.take() == []
    guest.control(0x8000)
    assert guest.take() == [0]


def test_msix_disabled(guest: Guest) -> None:
    guest.program(0)
    guest.mask(0, masked=False)
    guest.control(0x8000)
    guest.control(0)
    guest.fire(0)
    assert guest.take() == []
    guest.control(0x8000)
    assert guest.take() == []
    guest.fire(0)
    assert guest.take() == [0]


def test_msix_table_reads(guest: Guest) -> None:
    assert [guest.client.bar_read(1, 16 * i + 12, 4) for i in range(3)] == [1, 1, 1]
    guest.client.bar_write(1, 16, 8, 0x1_FEE0_0000)
    assert guest.client.bar_read(1, 16, 4) == 0xFEE00000
    assert guest.client.bar_read(1, 20, 4) == 1


def test_intx(guest: Guest) -> None:
    """It is signalled as long as the level is high, after each access of a BAR."""
    client, line = guest.client, guest.machine.pin.line
    client.bar_write(0, 0, 4, 1)
    client.config_read(0, 4)
    for _ in range(3):
        assert client.progress(PATIENCE)
        assert line.level
        client.bar_read(0, 16, 4)  # which is not what lowers it
        assert not line.level
    assert client.progress(PATIENCE)
    client.bar_write(0, 0, 4, 0)
    assert not line.level
    assert not client.progress(0.0)
    client.bar_write(0, 0, 4, 1)
    client.config_read(0, 4)
    assert client.progress(PATIENCE)
    assert line.raised == 5


def test_intx_gives_way_to_msix_and_comes_back(guest: Guest) -> None:
    client, line = guest.client, guest.machine.pin.line
    client.bar_write(0, 0, 4, 1)
    client.config_read(0, 4)
    assert client.progress(PATIENCE)
    guest.control(0x8000)
    assert not line.level
    assert not client.progress(0.0)
    guest.control(0)
    assert client.progress(PATIENCE)
    assert line.level


def test_reset(guest: Guest, buttons: Served) -> None:
    guest.program(0)
    guest.mask(0, masked=False)
    guest.control(0x8000)
    guest.client.bar_write(0, 0, 4, 1)
    guest.client.reset()
    assert guest.client.config_read(4, 2) == 0
    assert guest.client.bar_read(1, 12, 4) == 1
    assert guest.take() == []
    assert len(buttons.memory.remote_regions) == 1
    guest.client.config_write(4, 2, 6)
    guest.program(1)
    guest.mask(1, masked=False)
    guest.control(0x8000)
    guest.fire(1)
    assert guest.take() == [1]


def test_map_and_unmap(guest: Guest, buttons: Served) -> None:
    fd = memfd_create("ram", 4 * PAGE)
    guest.client.map(1 << 32, 2 * PAGE, fd=fd, offset=PAGE)
    os.pwrite(fd, b"shared", PAGE)
    assert buttons.memory.read(1 << 32, 6) == b"shared"
    with pytest.raises(FileExistsError):
        guest.client.map(1 << 32, PAGE)
    guest.client.unmap(1 << 32, 2 * PAGE)
    with pytest.raises(FileNotFoundError):
        guest.client.unmap(1 << 32, 2 * PAGE)
    os.close(fd)


def test_the_server_goes_away(guest: Guest, buttons: Served) -> None:
    buttons.stop()
    buttons.server.close()
    with pytest.raises(DeviceError, match=r"closed|gone"):
        guest.client.config_read(0, 4)
    with pytest.raises(DeviceError):
        guest.client.bar_write(0, 0, 4, 0)
