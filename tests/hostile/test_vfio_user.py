"""A VMM that lies (H117): what it sends is checked as a guest's input is, and the device outlives it."""

from __future__ import annotations

import array
import contextlib
import errno
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import pytest

from pyvirtfs import GuestMemory, Virtio9pPci
from pyvirtfs.guest import DirectMachine, VfioUserClient, mount
from pyvirtfs.syscalls import memfd_create
from pyvirtfs.testing import ServedFunction, check_descriptors, open_descriptors
from tests.hostile.stack import Place, no_defects

Served: TypeAlias = ServedFunction[Virtio9pPci]

VERSION, DMA_MAP, DMA_UNMAP, GET_INFO, REGION_READ, REGION_WRITE = 1, 2, 3, 4, 9, 10
ERROR = 0x20
RAM = 8 << 20
PATIENCE = 10.0
EPOLL = "anon_inode:[eventpoll]"


class Liar:
    """A client that packs its messages by hand."""

    def __init__(self, path: str, *, hello: bool = True) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(PATIENCE)
        self.socket.connect(path)
        if hello:
            assert self.call(VERSION, struct.pack("<HH", 0, 1) + b'{"capabilities":{}}\0')[0] == 0

    def send(self, command: int, body: bytes = b"", *, size: int | None = None, fds: Sequence[int] = ()) -> None:
        header = struct.pack("<HHIII", 7, command, 16 + len(body) if size is None else size, 0, 0)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.socket.sendmsg([header + body], rights)

    def receive(self) -> tuple[int, bytes] | None:
        """(errno, body) of the next reply; None if there is none any more."""
        data, size = b"", 16
        try:
            while len(data) < size:
                got = self.socket.recv(size - len(data))
                if not got:
                    return None
                data += got
                if len(data) >= 16:
                    (size,) = struct.unpack_from("<I", data, 4)
        except ConnectionError:
            return None
        _, _, _, flags, number = struct.unpack_from("<HHIII", data)
        return (number if flags & ERROR else 0), data[16:]

    def call(self, command: int, body: bytes = b"", *, fds: Sequence[int] = ()) -> tuple[int, bytes]:
        self.send(command, body, fds=fds)
        found = self.receive()
        assert found is not None
        return found

    def map(self, address: int, nbytes: int, *, offset: int = 0, flags: int = 3, fds: Sequence[int] = ()) -> int:
        return self.call(DMA_MAP, struct.pack("<IIQQQ", 32, flags, offset, address, nbytes), fds=fds)[0]

    def unmap(self, address: int, nbytes: int) -> int:
        return self.call(DMA_UNMAP, struct.pack("<IIQQ", 24, 0, address, nbytes))[0]

    @property
    def is_parted_with(self) -> bool:
        """The server says what it has to say, and closes."""
        while self.receive() is not None:
            pass
        return True

    def close(self) -> None:
        self.socket.close()


@pytest.fixture
def served(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The device behind a socket; afterwards a decent client mounts it, and nothing is left open."""
    path = tmp_path_factory.mktemp("vfio") / "socket"
    already = epolls()
    with check_descriptors(), no_defects():
        memory = GuestMemory()
        with (
            Virtio9pPci(place.fsdev, mount_tag="tag", memory=memory, defer=True) as device,
            ServedFunction(device, memory, path) as found,
        ):
            wait_for(lambda: epolls() > already)  # the server's thread has begun
            before = open_descriptors()
            yield found
            decent(found.path)
            with contextlib.suppress(AssertionError):
                wait_for(lambda: open_descriptors() == before)
            assert open_descriptors() == before
            assert device.server.fids == 0
            assert not memory.regions


def epolls() -> int:
    """How many epoll instances the process has."""
    return list(open_descriptors().values()).count(EPOLL)


def wait_for(condition: Callable[[], object]) -> None:
    """Until the server has parted from whoever has left."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def decent(path: str) -> None:
    """A client as it should be: mounts and reads."""
    fd = memfd_create("ram", RAM)
    try:
        machine = DirectMachine(GuestMemory.from_fd(fd, RAM))
        client = VfioUserClient(path, machine.memory, machine.pin, memory_fd=fd)
        try:
            channel = machine.open_channel(machine.attach(client, client.progress))
            assert mount(channel).path("file").read_bytes() == b"Hi Guest"
        finally:
            client.close()
    finally:
        os.close(fd)


@contextlib.contextmanager
def liar(served: Served, *, hello: bool = True) -> Iterator[Liar]:
    found = Liar(served.path, hello=hello)
    try:
        yield found
    finally:
        found.close()


@pytest.mark.parametrize("size", [0, 1, 15, 0x7FFFFFFF, 0xFFFFFFF0, 0xFFFFFFFF])
@pytest.mark.parametrize("hello", [False, True])
def test_h117_sizes_that_cannot_be(served: Served, size: int, hello: bool) -> None:
    with liar(served, hello=hello) as client:
        client.send(GET_INFO, bytes(16), size=size)
        assert client.is_parted_with


@pytest.mark.parametrize("nbytes", [1, 8, 15, 16, 20, 40])
def test_h117_truncated_messages(served: Served, nbytes: int) -> None:
    whole = struct.pack("<HHIII", 7, REGION_WRITE, 48, 0, 0) + struct.pack("<QII", 0, 4, 16) + bytes(16)
    for hello in (False, True):
        with liar(served, hello=hello) as client:
            client.socket.sendall(whole[:nbytes])


@pytest.mark.parametrize("size", [17, 24, 31, 33, 100])
def test_h117_sizes_that_do_not_fit_the_command(served: Served, size: int) -> None:
    for command in range(1, 20):
        with liar(served) as client:
            client.send(command, bytes(size - 16))
            found = client.receive()
            assert found is None or found[0] in {0, errno.EINVAL, errno.ENOTSUP, errno.ENOENT}


@pytest.mark.parametrize(
    "text",
    [b"", b"\0", b"{", b"{}", b"[]\0", b"null\0", b'{"capabilities":[]}\0', b'{"capabilities":{"max_msg_fds":-1}}\0',
     b'{"capabilities":{"max_data_xfer_size":1e999}}\0', b"[" * 5000 + b"\0", b"\xff\xfe\0", b"{}\0{}\0",
     b'{"capabilities":{"migration":{"pgsize":0}}}\0', b'{"a":' * 3000 + b"1" + b"}" * 3000 + b"\0"],
    ids=lambda text: repr(text[:20]),
)  # fmt: skip
def test_h117_what_is_no_json(served: Served, text: bytes) -> None:
    with liar(served, hello=False) as client:
        client.send(VERSION, struct.pack("<HH", 0, 1) + text)
        found = client.receive()
        assert found is None or found[0] in {0, errno.EINVAL}


@pytest.mark.parametrize("version", [(1, 0), (0xFFFF, 0xFFFF), (0, 0xFFFF)])
def test_h117_other_versions(served: Served, version: tuple[int, int]) -> None:
    with liar(served, hello=False) as client:
        client.send(VERSION, struct.pack("<HH", *version) + b"{}\0")
        found = client.receive()
        assert found is None or found[0] == (0 if version[0] == 0 else errno.EINVAL)


@pytest.mark.parametrize("command", [VERSION, DMA_MAP, DMA_UNMAP, GET_INFO, REGION_READ, 99])
def test_h117_a_flood_of_descriptors(served: Served, command: int) -> None:
    null = os.open("/dev/null", os.O_RDWR)
    try:
        before = len(open_descriptors())
        with liar(served) as client:
            for _ in range(20):
                try:
                    client.send(command, bytes(32), fds=[null] * 200)
                    found = client.receive()
                except OSError:
                    break
                if found is None:
                    break
                assert len(open_descriptors()) < before + 50
    finally:
        os.close(null)


def test_h117_memory_maps_that_overlap_or_wrap(served: Served) -> None:
    fd = memfd_create("ram", RAM)
    try:
        with liar(served) as client:
            assert client.map(0, RAM, fds=[fd]) == 0
            for address, nbytes in ((0, 4096), (RAM - 4096, 8192), (4096, RAM), (0, RAM + 4096)):
                assert client.map(address, nbytes, fds=[fd]) != 0
                assert client.map(address, nbytes) != 0
            for address, nbytes, offset in (
                ((1 << 64) - 4096, 8192, 0), ((1 << 64) - 1, 2, 0), (1 << 63, 1 << 63, 0), (1 << 40, 0, 0),
                (1 << 40, (1 << 64) - 1, 0), (1 << 40, 4096, RAM), (1 << 40, RAM, 4096), (1 << 40, 4096, 1),
                (1 << 40, 4096, (1 << 64) - 4096), (1 << 40, 1 << 60, 0),
            ):  # fmt: skip
                assert client.map(address, nbytes, offset=offset, fds=[fd]) != 0
            for flags in (4, 8, 0x80000000):
                assert client.map(1 << 40, 4096, flags=flags, fds=[fd]) != 0
            assert client.map(1 << 40, 4096, fds=[fd, fd]) != 0
            for address, nbytes in ((0, 4096), (4096, RAM - 4096), (1 << 40, 4096), (0, RAM + 1), (0, 0)):
                assert client.unmap(address, nbytes) != 0
            assert client.unmap(0, RAM) == 0
            assert client.unmap(0, RAM) != 0
        for path in ("/dev/null", "/", "/dev/zero"):
            other = os.open(path, os.O_RDONLY)
            with liar(served) as client:
                assert client.map(0, 4096, fds=[other]) != 0
            os.close(other)
    finally:
        os.close(fd)


@pytest.mark.parametrize("share", [True, False])
def test_h117_memory_unmapped_while_the_device_uses_it(served: Served, share: bool) -> None:
    """The ring goes away under a running guest: the device needs a reset, and the next client finds it well."""
    fd = memfd_create("ram", RAM)
    try:
        machine = DirectMachine(GuestMemory.from_fd(fd, RAM))
        client = VfioUserClient(served.path, machine.memory, machine.pin, memory_fd=fd if share else None)
        try:
            channel = machine.open_channel(machine.attach(client, client.progress), timeout=1)
            mounted = mount(channel)
            assert mounted.path("file").read_bytes() == b"Hi Guest"
            unmap(client)
            with contextlib.suppress(Exception):
                channel.submit(b"whatever", 4096)
                client.progress(0.2)
        finally:
            client.close()
    finally:
        os.close(fd)


def unmap(client: VfioUserClient) -> None:
    """Take the guest's RAM away, as the client itself never would."""
    body = struct.pack("<IIQQ", 24, 0, 0, RAM)
    client._socket.setblocking(True)
    client._socket.sendall(struct.pack("<HHIII", 0x7777, DMA_UNMAP, 16 + len(body), 0, 0) + body)
    time.sleep(0.05)
    client._socket.setblocking(False)


def test_h117_clients_that_leave_in_the_middle(served: Served) -> None:
    fd = memfd_create("ram", RAM)
    try:
        for share in (True, False):
            machine = DirectMachine(GuestMemory.from_fd(fd, RAM))
            client = VfioUserClient(served.path, machine.memory, machine.pin, memory_fd=fd if share else None)
            channel = machine.open_channel(machine.attach(client, client.progress), timeout=1)
            mounted = mount(channel)
            with mounted.path("file").open_raw() as file:
                session = mounted.session
                for _ in range(20):
                    session.start(session.client.read(file.fid, 0, 4000), kick=False)
                channel.queue.notify()
                client.close()
                file.fid = 0xFFFFFFFF
                with contextlib.suppress(Exception):
                    file.close()
    finally:
        os.close(fd)


def test_h117_accesses_out_of_the_regions(served: Served) -> None:
    with liar(served) as client:
        for region in (*range(10), 0xFFFFFFFF):
            for offset in (0, 0x3FFF, 0x4000, 1 << 31, (1 << 64) - 1, (1 << 64) - 4):
                for count in (0, 1, 3, 4, 8, 4096, (1 << 20) + 1, 0xFFFFFFFF):
                    found = client.call(REGION_READ, struct.pack("<QII", offset, region, count))
                    assert found[0] in {0, errno.EINVAL}
        assert client.call(GET_INFO, struct.pack("<IIII", 16, 0, 0, 0))[0] == 0
