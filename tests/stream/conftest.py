"""A server that works when its client waits for it, in one thread, and clients with real sockets."""

from __future__ import annotations

import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyvirtfs.fsdev.local import LocalDriver
from pyvirtfs.p9 import constants as c
from pyvirtfs.p9.call import Call
from pyvirtfs.p9.client import Client
from pyvirtfs.stream import Connection, Server
from pyvirtfs.testing import DelayedDriver, check_descriptors

PATIENCE = 10.0


def message(call: Call[Any]) -> bytes:
    """A request as it is sent."""
    return call.request + bytes(call.payload)


class Peer:
    """A client's end: its socket, and a 9P client to make messages and to check replies with."""

    def __init__(self, client: socket.socket, step: Callable[[], None], msize: int = 1 << 20) -> None:
        self.socket = client
        self.client = Client(msize)
        self.step = step
        self.taken = bytearray()
        client.setblocking(False)

    def send(self, data: bytes) -> None:
        """All of it; where the socket is full the server works, and its replies are taken to be looked at later."""
        deadline = time.monotonic() + PATIENCE
        view = memoryview(data)
        while view:
            assert time.monotonic() < deadline
            try:
                view = view[self.socket.send(view) :]
            except BlockingIOError:
                self.take()
            self.step()

    def take(self) -> bool:
        """Keep what the server has sent; whether that was anything. ConnectionError if it has closed."""
        try:
            part = self.socket.recv(1 << 20)
        except BlockingIOError:
            return False
        if not part:
            raise ConnectionError("closed")
        self.taken += part
        return True

    def push(self, data: bytes) -> int:
        """As much as goes, without the server's help; how much that is."""
        try:
            return self.socket.send(data)
        except BlockingIOError:
            return 0

    def receive_bytes(self, nbytes: int) -> bytes:
        """ConnectionError if the server closes before."""
        deadline = time.monotonic() + PATIENCE
        while len(self.taken) < nbytes:
            assert time.monotonic() < deadline, "no answer"
            if not self.take():
                self.step()
        found = bytes(self.taken[:nbytes])
        del self.taken[:nbytes]
        return found

    def receive(self) -> bytes:
        """The next message."""
        head = self.receive_bytes(4)
        return head + self.receive_bytes(struct.unpack("<I", head)[0] - 4)

    def answer(self, *calls: Call[Any]) -> Any:
        """Send the requests, receive until all are answered; the result of the first one."""
        for call in calls:
            self.send(message(call))
        self.wait(*calls)
        return calls[0].result()

    def wait(self, *calls: Call[Any]) -> None:
        while not all(call.done for call in calls):
            self.client.receive(self.receive())

    def hello(self) -> int:
        """Version and attach; the root's fid."""
        self.answer(self.client.version())
        attach = self.client.attach()
        self.answer(attach)
        assert attach.fid is not None
        return attach.fid

    def open(self, root: int, name: str, flags: int = c.DOTL_RDONLY) -> int:
        walk = self.client.walk(root, [name.encode()])
        self.answer(walk)
        assert walk.fid is not None
        self.answer(self.client.lopen(walk.fid, flags))
        return walk.fid

    @property
    def is_closed(self) -> bool:
        """Whether the server has closed, now or after what it still sends, which is dropped."""
        self.step()
        try:
            while self.socket.recv(1 << 20):
                pass
        except BlockingIOError:
            return False
        except ConnectionError:
            pass
        return True

    def close(self) -> None:
        self.socket.close()


class Service:
    """An export that is served, step by step."""

    def __init__(self, export: Path) -> None:
        self.driver = DelayedDriver(LocalDriver(export, security_model="none"))
        self.gone: list[tuple[Connection, str]] = []
        self.servers: list[Server] = []
        self.peers: list[Peer] = []

    def start(self, *args: Any, **options: Any) -> Server:
        options.setdefault("on_hangup", lambda connection, reason: self.gone.append((connection, reason)))
        self.servers.append(Server(self.driver, *args, **options))
        return self.servers[-1]

    def begin_again(self) -> None:
        """For the next example: one server without clients, whatever became of the last one."""
        for peer in self.peers:
            peer.close()
        self.peers.clear()
        self.driver.delay = set()
        self.driver.release_all()
        if not self.servers:
            self.start()
        self.step()

    def step(self) -> None:
        """All that the servers can do now."""
        for server in self.servers:
            for _ in range(10000):
                deadline = server.step() if not server.closed else None
                if server.closed or (deadline != 0.0 and not select.select([server], [], [], 0)[0]):
                    break
            else:
                raise AssertionError("the server is never done")

    def add(self, server: Server | None = None, *, msize: int = 1 << 20) -> Peer:
        """A client by a pair of sockets."""
        ours, theirs = socket.socketpair()
        (server or self.servers[0]).add(theirs, "the test")
        return self.peer(ours, msize)

    def peer(self, ours: socket.socket, msize: int = 1 << 20) -> Peer:
        self.peers.append(Peer(ours, self.step, msize))
        return self.peers[-1]

    @property
    def only(self) -> Connection:
        """The one client that there is."""
        (connection,) = self.servers[0].connections
        return connection

    @property
    def reasons(self) -> list[str]:
        """Why clients are gone."""
        self.step()
        return [reason for _, reason in self.gone]

    def close(self) -> None:
        for peer in self.peers:
            peer.close()
        for server in self.servers:
            server.close()
            server.close()
        self.driver.close()


@pytest.fixture
def export(tmp_path: Path) -> Path:
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "file").write_bytes(b"Hi Guest\n")
    return folder


@pytest.fixture
def service(export: Path) -> Iterator[Service]:
    """Nothing is left open at the end."""
    with check_descriptors():
        service = Service(export)
        yield service
        service.close()


@pytest.fixture
def peer(service: Service) -> Peer:
    """One client of one server."""
    service.start()
    return service.add()
