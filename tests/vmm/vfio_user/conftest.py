"""A client by hand, which shares no code with the package (it packs with `struct`), and things to be served."""

from __future__ import annotations

import array
import contextlib
import errno
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pyvirtfs import GuestMemory, Virtio9pPci
from pyvirtfs.pci import Bar, BarKind, PciFunction, PciIdentity
from pyvirtfs.testing import check_descriptors
from pyvirtfs.vmm.vfio_user import Connection, Loop, Server
from pyvirtfs.vmm.vfio_user.connection import Hangup
from pyvirtfs.vmm.vfio_user.irqs import Irqs
from pyvirtfs.vmm.vfio_user.regions import Regions

REPLY, NO_REPLY, ERROR = 1, 0x10, 0x20
VERSION, DMA_MAP, DMA_UNMAP, GET_INFO, REGION_INFO, REGION_IO_FDS, IRQ_INFO, SET_IRQS = range(1, 9)
READ, WRITE, DMA_READ, DMA_WRITE, RESET = range(9, 14)
CONFIG = 7
PATIENCE = 10.0
"""Seconds that anything here waits for what must come."""


class Reply(NamedTuple):
    identifier: int
    command: int
    flags: int
    error: int
    body: bytes
    fds: list[int]


class Raw:
    """The client's end of a connection."""

    def __init__(self, connection: socket.socket, pump: Callable[[], None] = lambda: None) -> None:
        self.socket = connection
        self.pump = pump
        """Called after each command: lets the server work if it has no thread."""
        self.identifier = 0
        connection.settimeout(PATIENCE)

    def send(
        self,
        command: int,
        body: bytes = b"",
        *,
        fds: Sequence[int] = (),
        flags: int = 0,
        size: int | None = None,
        identifier: int | None = None,
    ) -> int:
        """Send a message, whatever it looks like; returns its id."""
        if identifier is None:
            identifier = self.identifier = (self.identifier + 1) & 0xFFFF
        header = struct.pack("<HHIII", identifier, command, 16 + len(body) if size is None else size, flags, 0)
        self.send_bytes(header + body, fds=fds)
        return identifier

    def send_bytes(self, data: bytes, *, fds: Sequence[int] = ()) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        sent = self.socket.sendmsg([data], rights)
        if sent < len(data):
            self.socket.sendall(data[sent:])

    def receive(self) -> Reply:
        """The next message from the server. ConnectionError when there is none any more."""
        data, fds = b"", array.array("i")
        size = 16
        while len(data) < size:
            got, ancillary, _, _ = self.socket.recvmsg(size - len(data), 1024)
            for _, _, payload in ancillary:
                fds.frombytes(payload)
            if not got:
                raise ConnectionError("closed")
            data += got
            if len(data) >= 16:
                size = struct.unpack_from("<I", data, 4)[0]
        identifier, command, _, flags, error = struct.unpack_from("<HHIII", data)
        return Reply(identifier, command, flags, error, data[16:], fds.tolist())

    def call(self, command: int, body: bytes = b"", *, fds: Sequence[int] = (), flags: int = 0) -> bytes:
        """Send a command and return the body of its reply; OSError if that is an error."""
        identifier = self.send(command, body, fds=fds, flags=flags)
        self.pump()
        reply = self.receive()
        assert (reply.identifier, reply.command) == (identifier, command)
        if reply.flags & ERROR:
            assert reply.flags == REPLY | ERROR
            assert not reply.body
            raise OSError(reply.error, os.strerror(reply.error))
        assert reply.flags == REPLY
        assert reply.error == 0
        return reply.body

    def refused(self, command: int, body: bytes = b"", *, code: int = errno.EINVAL, fds: Sequence[int] = ()) -> None:
        """Send a command, which must be answered with an error."""
        with pytest.raises(OSError, match=r".") as caught:
            self.call(command, body, fds=fds)
        assert caught.value.errno == code

    @property
    def is_closed(self) -> bool:
        """Whether the server closes the connection, now or soon; what it has said before is dropped."""
        with contextlib.suppress(ConnectionError):
            while self.socket.recv(1 << 20):
                pass
        return True

    # --- commands ---

    def hello(self, text: bytes = b'{"capabilities":{"write_multiple":true}}\0') -> bytes:
        return self.call(VERSION, struct.pack("<HH", 0, 1) + text)

    def map(self, address: int, nbytes: int, fd: int | None = None, *, offset: int = 0, flags: int = 3) -> None:
        body = struct.pack("<IIQQQ", 32, flags, offset, address, nbytes)
        assert self.call(DMA_MAP, body, fds=[] if fd is None else [fd]) == b""

    def unmap(self, address: int, nbytes: int, *, flags: int = 0) -> None:
        body = struct.pack("<IIQQ", 24, flags, address, nbytes)
        assert self.call(DMA_UNMAP, body) == body

    def read(self, region: int, offset: int, nbytes: int) -> bytes:
        access = struct.pack("<QII", offset, region, nbytes)
        body = self.call(READ, access)
        assert body[:16] == access
        return body[16:]

    def write(self, region: int, offset: int, data: bytes, *, posted: bool = False) -> None:
        access = struct.pack("<QII", offset, region, len(data))
        if posted:
            self.send(WRITE, access + data, flags=NO_REPLY)
            self.pump()
        else:
            assert self.call(WRITE, access + data) == access

    def set_irqs(
        self, flags: int, index: int, start: int, count: int, data: bytes = b"", fds: Sequence[int] = ()
    ) -> None:
        body = struct.pack("<IIIII", 20 + len(data), flags, index, start, count)
        assert self.call(SET_IRQS, body + data, fds=fds) == b""

    def serve_dma(self, ram: bytearray, until: Callable[[], bool], *, base: int = 0) -> int:
        """Answer the server's DMA messages from `ram` until a condition holds; returns how many there were."""
        served = 0
        deadline = time.monotonic() + PATIENCE
        while not until():
            assert time.monotonic() < deadline
            if select.select([self.socket], [], [], 0.02)[0]:
                self.answer_dma(self.receive(), ram, base=base)
                served += 1
        return served

    def answer_dma(self, message: Reply, ram: bytearray, *, base: int = 0) -> None:
        address, count = struct.unpack_from("<QQ", message.body)
        start = address - base
        assert message.flags == 0
        assert 0 <= start <= start + count <= len(ram)
        answer = message.body[:16]
        if message.command == DMA_READ:
            answer += bytes(ram[start : start + count])
        else:
            assert message.command == DMA_WRITE
            ram[start : start + count] = message.body[16:]
        self.send(message.command, answer, flags=REPLY, identifier=message.identifier)

    def close(self) -> None:
        self.socket.close()


class Ram:
    """A BAR that remembers what was done to it."""

    def __init__(self, nbytes: int) -> None:
        self.data = bytearray(nbytes)
        self.accesses: list[tuple[str, int, int]] = []

    def read(self, offset: int, size: int) -> int:
        self.accesses.append(("read", offset, size))
        return int.from_bytes(self.data[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        self.accesses.append(("write", offset, size))
        self.data[offset : offset + size] = value.to_bytes(size, "little")


class Toy(PciFunction):
    """A function with two BARs of RAM, MSI-X in a third one, and a pin."""

    def __init__(self, *, vectors: int = 4, interrupt_pin: int = 1, express: bool = False) -> None:
        super().__init__(PciIdentity(0x1234, 0x5678), interrupt_pin=interrupt_pin, express=express)
        self.small, self.large = Ram(256), Ram(1 << 21)
        self.add_bar(Bar(0, BarKind.MEMORY_32, 256, self.small))
        self.add_bar(Bar(2, BarKind.MEMORY_64, 1 << 21, self.large))
        self.add_msix(vectors, 1)
        self.resets = 0

    def function_reset(self) -> None:
        self.resets += 1


class Bench:
    """One connection over a pair of sockets, without a thread: the server works when the client waits for it."""

    def __init__(self, function: PciFunction | None = None, *, hello: bool = True, **options: Any) -> None:
        self.function = Toy() if function is None else function
        self.memory = GuestMemory()
        self.irqs = Irqs(self.function)
        ours, theirs = socket.socketpair()
        self.connection = Connection(
            theirs, self.function, self.memory, self.irqs, Regions(self.function), **options
        )  # fmt: skip
        self.hangup: str | None = None
        """Why the server has left, if it has."""
        self.raw = Raw(ours, self.serve)
        if hello:
            self.raw.hello()

    def serve(self) -> None:
        """Let the server take what has arrived."""
        while self.hangup is None and select.select([self.connection], [], [], 0)[0]:
            self.connection.begin_turn()
            try:
                self.connection.serve()
            except Hangup as reason:
                self.hangup = str(reason)

    def enable_msix(self) -> None:
        """Bus mastering, and MSI-X in its capability."""
        self.raw.write(CONFIG, 4, struct.pack("<H", 6))
        self.raw.write(CONFIG, self.capability(0x11) + 2, struct.pack("<H", 0x8000))

    def capability(self, number: int) -> int:
        config = self.raw.read(CONFIG, 0, 256)
        where = config[0x34]
        while where and config[where] != number:
            where = config[where + 1]
        assert where
        return where

    def close(self) -> None:
        self.connection.close()
        self.raw.close()


@pytest.fixture
def make_bench() -> Iterator[Callable[..., Bench]]:
    """Makes benches; all are closed at the end, and nothing is left open."""
    made: list[Bench] = []

    def make(*args: Any, **options: Any) -> Bench:
        made.append(Bench(*args, **options))
        return made[-1]

    with check_descriptors():
        yield make
        for each in made:
            each.close()


@pytest.fixture
def bench(make_bench: Callable[..., Bench]) -> Bench:
    return make_bench()


@pytest.fixture(scope="session")
def toy() -> type[Toy]:
    return Toy


@pytest.fixture(scope="session")
def raw() -> type[Raw]:
    return Raw


class Served:
    """Functions served by a loop in a thread."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.loop = Loop()
        self.thread = threading.Thread(target=self.loop.run)
        self.servers: list[Server] = []
        self.memories: list[GuestMemory] = []
        self.devices: list[PciFunction] = []
        self.raws: list[Raw] = []
        self.hangups: list[str] = []

    def add(self, function: PciFunction | Callable[[GuestMemory], PciFunction], **options: Any) -> Server:
        """Serve one more; before `start`."""
        memory = GuestMemory()
        device = function if isinstance(function, PciFunction) else function(memory)
        path = str(self.folder / f"socket{len(self.loop.servers)}")
        options.setdefault("on_hangup", lambda _, reason: self.hangups.append(reason))
        server = Server(device, memory, path, **options)
        self.loop.servers.append(server)
        self.servers.append(server)
        self.memories.append(memory)
        self.devices.append(device)
        return server

    def start(self) -> None:
        self.thread.start()

    def connect(self, which: int = 0, *, hello: bool = True) -> Raw:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.connect(self.servers[which].path)
        raw = Raw(client)
        self.raws.append(raw)
        if hello:
            raw.hello()
        return raw

    def assert_serves(self, which: int = 0) -> None:
        """A client that comes now is served."""
        with contextlib.closing(self.connect(which)) as client:
            assert client.read(CONFIG, 0, 2) == struct.pack("<H", self.devices[which].identity.vendor)

    def wait_for_hangups(self, count: int) -> None:
        deadline = time.monotonic() + PATIENCE
        while len(self.hangups) < count:
            assert time.monotonic() < deadline
            time.sleep(0.002)

    def close(self) -> None:
        for each in self.raws:
            each.close()
        self.loop.stop()
        if self.thread.ident is not None:
            self.thread.join(PATIENCE)
        assert not self.thread.is_alive()
        self.loop.close()
        for device in self.devices:
            if isinstance(device, Virtio9pPci):
                device.close()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """Functions served by a loop in a thread; nothing is left open at the end."""
    with check_descriptors():
        found = Served(tmp_path)
        yield found
        found.close()


@pytest.fixture
def export(tmp_path: Path) -> Path:
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "file").write_text("Hi Guest")
    return folder


@pytest.fixture
def virtfs(export: Path) -> Callable[[GuestMemory], Virtio9pPci]:
    """Makes the device, for `Served.add`."""

    def make(memory: GuestMemory) -> Virtio9pPci:
        options = f"local,path={export},security_model=none"
        return Virtio9pPci(options, mount_tag="tag", memory=memory, defer=True)

    return make
