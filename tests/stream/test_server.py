"""Many clients of an export: how they come, how long they may take, and how they go."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyvirtfs.errors import ConfigError
from pyvirtfs.fsdev.throttling import Limit, Throttle, Throttling
from pyvirtfs.loop import Loop
from pyvirtfs.p9 import constants as c
from pyvirtfs.p9.codec import encode
from pyvirtfs.stream import Limits, Server, TcpListener, UnixListener
from pyvirtfs.testing import fake_clock

PATIENCE = 10.0
LOG = "pyvirtfs.stream.server"
VERSION = encode(c.TVERSION, c.NOTAG, 8192, b"9P2000.L")


@pytest.fixture
def connect(service: Any, tmp_path: Path) -> Callable[[], Any]:
    """Makes clients of a unix socket."""

    def connect() -> Any:
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(tmp_path / "socket"))
        return service.peer(client)

    return connect


@pytest.fixture
def listen(service: Any, tmp_path: Path) -> Callable[..., Server]:
    def listen(**options: Any) -> Server:
        return service.start(UnixListener(str(tmp_path / "socket")), name="data", **options)  # type: ignore[no-any-return]

    return listen


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == LOG]


def test_clients_on_a_unix_socket(listen: Any, connect: Any, service: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    server = listen()
    clients = [connect() for _ in range(50)]  # more than are accepted in one turn
    for client in clients:
        fid = client.open(client.hello(), "file")
        assert bytes(client.answer(client.client.read(fid, 0, 8))) == b"Hi Guest"
    assert len(server.connections) == 50
    for client in clients:
        client.close()
    assert service.reasons == [""] * 50
    assert told(caplog).count(f"data: a client has connected: process {os.getpid()} of user {os.geteuid()}") == 50
    assert told(caplog).count(f"data: a client is gone: process {os.getpid()} of user {os.geteuid()}") == 50


def test_clients_on_a_tcp_port(service: Any) -> None:
    listener = TcpListener()
    service.start(listener)
    peers = [service.peer(socket.create_connection((listener.host, listener.port), 10)) for _ in range(3)]
    for peer in peers:
        peer.hello()
    reset, shut, closed = peers
    reset.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    for peer in (reset, closed):
        peer.close()
    shut.socket.shutdown(socket.SHUT_WR)
    assert shut.is_closed
    assert service.reasons == [""] * 3


def test_a_thousand_clients_one_after_the_other(listen: Any, connect: Any, service: Any) -> None:
    """Some are silent, some leave a message behind, some end in the middle of one."""
    server = listen()
    for number in range(1000):
        client = connect()
        data = (b"", VERSION, VERSION[:9], b"\0\0\0\0")[number % 4]
        client.push(data)
        client.close()
        if number % 10 == 9:
            service.step()
    service.step()
    assert (len(server.connections), server.leaving) == (0, 0)
    assert len(service.gone) == 1000


def test_too_many_clients(listen: Any, connect: Any, service: Any, caplog: pytest.LogCaptureFixture) -> None:
    server = listen(limits=Limits(connections=3))
    clients = [connect() for _ in range(3)]
    for client in clients:
        client.hello()
    for _ in range(5):
        assert connect().is_closed
    line = f"data: process {os.getpid()} of user {os.geteuid()} is sent away: there are 3 clients already"
    assert told(caplog) == [line]  # once
    clients[0].close()
    service.step()
    connect().hello()
    assert connect().is_closed
    assert told(caplog) == [line, line]
    assert len(server.connections) == 3


def read_and_take_nothing(client: Any) -> None:
    """Ask for more than the socket holds."""
    fid = client.open(client.hello(), "file")
    client.send(client.client.read(fid, 0, 1 << 20).request)


def test_one_that_takes_no_replies_loses_its_place_to_another(
    listen: Any, connect: Any, service: Any, export: Path
) -> None:
    (export / "file").write_bytes(bytes(1 << 20))
    with fake_clock() as clock:
        server = listen(limits=Limits(connections=3))
        silent, stalled, later = (connect() for _ in range(3))
        silent.hello()
        read_and_take_nothing(stalled)
        clock.advance(59)
        read_and_take_nothing(later)
        assert connect().is_closed
        clock.advance(1)
        service.step()
        assert service.reasons == []  # nobody needs its place
        newcomer = connect()
        newcomer.hello()
        assert service.reasons == ["it did not take its replies, and another client needs its place"]
        assert stalled.is_closed
        assert connect().is_closed
        clock.advance(58)
        later.receive_bytes(500_000)  # it goes on
        service.step()
        clock.advance(59)
        assert connect().is_closed
        later.receive_bytes((1 << 20) - 500_000)
        clock.advance(1e6)
        assert connect().is_closed  # those that are silent stay
        for each in (silent, later, newcomer):
            each.answer(each.client.getattr(0))
        assert len(server.connections) == 3
        assert len(service.reasons) == 1


def test_no_place_is_won_while_a_driver_works_for_the_one_that_goes(
    listen: Any, connect: Any, service: Any, export: Path
) -> None:
    (export / "file").write_bytes(bytes(1 << 20))
    with fake_clock() as clock:
        server = listen(limits=Limits(connections=1, stalled=5))
        client = connect()
        fid = client.open(client.hello(), "file")
        service.driver.delay, service.driver.ignore_cancel = {"getattr"}, True
        client.send(client.client.getattr(0).request)
        client.send(client.client.read(fid, 0, 1 << 20).request)
        clock.advance(5)
        assert connect().is_closed
        assert (len(server.connections), server.leaving) == (0, 1)
        service.driver.release_all()
        service.driver.delay = set()
        service.step()
        connect().hello()


def test_one_that_is_gone_counts_while_a_driver_works_for_it(listen: Any, connect: Any, service: Any) -> None:
    server = listen(limits=Limits(connections=1))
    first = connect()
    root = first.hello()
    service.driver.delay, service.driver.ignore_cancel = {"getattr"}, True
    first.send(first.client.getattr(root).request)
    first.close()
    service.step()
    assert (len(server.connections), server.leaving) == (0, 1)
    assert connect().is_closed
    service.driver.release_all()
    service.driver.delay = set()
    service.step()
    connect().hello()


def test_a_refused_client_is_one_line(service: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = str(tmp_path / "socket")
    server = service.start(UnixListener(path, uids=()), name="data")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        service.step()
        assert client.recv(1) == b""
    who = f"process {os.getpid()} is user {os.geteuid()}'s, who may not connect"
    assert told(caplog) == [f"data: a client is refused at unix:{path}: {who}"]
    assert not server.connections


def test_a_first_message_that_does_not_come(listen: Any, connect: Any, service: Any) -> None:
    with fake_clock() as clock:
        server = listen()
        silent, partial, greeted = (connect() for _ in range(3))
        service.step()
        partial.send(VERSION[:-1])
        greeted.hello()
        assert server.step() == clock.now + 10
        clock.advance(9.99)
        service.step()
        assert not silent.is_closed
        assert not partial.is_closed
        clock.advance(0.01)
        service.step()
        assert silent.is_closed
        assert partial.is_closed
        assert service.reasons == ["no message has come"] * 2
        assert server.step() is None
        clock.advance(1e6)
        greeted.answer(greeted.client.getattr(0))


def test_a_goodbye_that_takes_too_long(listen: Any, connect: Any, service: Any, export: Path) -> None:
    (export / "file").write_bytes(bytes(1 << 20))
    with fake_clock() as clock:
        server = listen()
        client, waiting = connect(), connect()
        fid = client.open(client.hello(), "file")
        root = waiting.hello()
        service.driver.delay = {"read", "getattr"}
        for each, call in ((client, client.client.read(fid, 0, 1 << 20)), (waiting, waiting.client.getattr(root))):
            each.send(call.request)
            each.socket.shutdown(socket.SHUT_WR)
        service.step()
        service.driver.held[0].release()
        service.step()
        assert service.reasons == []
        clock.advance(5)
        service.step()
        assert service.reasons == ["it did not take its replies", "a driver has not answered"]
        assert (len(server.connections), server.leaving) == (0, 0)


def test_a_goodbye_lasts_as_long_as_something_happens(listen: Any, connect: Any, service: Any) -> None:
    with fake_clock() as clock:
        listen()
        client = connect()
        root = client.hello()
        service.driver.delay = {"getattr"}
        calls = [client.client.getattr(root) for _ in range(4)]
        client.send(b"".join(call.request for call in calls))
        client.socket.shutdown(socket.SHUT_WR)
        service.step()
        for held, call in zip(service.driver.held, calls, strict=True):
            clock.advance(4)
            service.step()
            held.release()
            client.wait(call)
        assert client.is_closed
        assert service.reasons == [""]


def test_a_goodbye_at_a_throttled_export(listen: Any, connect: Any, service: Any) -> None:
    """Each read has to wait for longer than a driver may take."""
    with fake_clock() as clock:
        service.driver.throttle = Throttle(Throttling(bps_read=Limit(10)))
        server = listen()
        client = connect()
        fid = client.open(client.hello(), "file")
        calls = [client.client.read(fid, 0, 100) for _ in range(4)]
        client.send(b"".join(call.request for call in calls))
        client.socket.shutdown(socket.SHUT_WR)
        start = deadline = clock.now
        for call, seconds in zip(calls, (0, 9.9, 19.9, 29.9), strict=True):
            while not client.take():
                clock.now = max(clock.now, deadline)
                deadline = server.step()
            client.wait(call)
            assert clock.now - start == pytest.approx(seconds)
        assert client.is_closed
        assert [bytes(call.result()) for call in calls] == [b"Hi Guest\n"] * 4
        assert service.reasons == [""]


def test_a_throttled_client_that_takes_no_replies_is_not_waited_for(
    listen: Any, connect: Any, service: Any, export: Path
) -> None:
    (export / "file").write_bytes(bytes(1 << 20))
    with fake_clock() as clock:
        service.driver.throttle = Throttle(Throttling(bps_read=Limit(10)))
        listen()
        client = connect()
        fid = client.open(client.hello(), "file")
        service.driver.delay = {"read"}
        client.send(client.client.read(fid, 0, 1 << 20).request + client.client.read(fid, 0, 1 << 20).request)
        client.socket.shutdown(socket.SHUT_WR)
        service.step()
        service.driver.release_all()
        service.step()
        clock.advance(5)
        assert service.reasons == ["it did not take its replies"]


def test_no_descriptor_for_a_client(
    listen: Any, connect: Any, service: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with fake_clock() as clock:
        server = listen()
        client = connect()

        def fail(_listener: object) -> None:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        with monkeypatch.context() as patch:
            patch.setattr(UnixListener, "accept", fail)
            assert server.step() == clock.now + 0.1
            assert not select.select([server], [], [], 0)[0]  # and it does not spin
            for _ in range(20):
                clock.advance(0.1)
                service.step()
            line = "data: no client can be accepted: Too many open files"
            assert told(caplog) == [line]  # once
        clock.advance(0.1)
        client.hello()
        with monkeypatch.context() as patch:
            patch.setattr(UnixListener, "accept", fail)
            connect()
            service.step()
            assert told(caplog) == [line, line]


def test_no_descriptor_to_be_woken_by(service: Any, peer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a driver answers is looked for again and again then."""
    root = peer.hello()
    service.driver.delay = {"getattr"}

    def fail(*_args: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with fake_clock() as clock, monkeypatch.context() as patch:
        patch.setattr(os, "eventfd", fail)
        call = peer.client.getattr(root)
        peer.send(call.request)
        assert service.servers[0].step() == clock.now + 0.1
        service.driver.release_all()
        clock.advance(0.1)
        peer.wait(call)
        assert service.servers[0].step() is None


def test_a_bug_ends_one_client_only(
    listen: Any, connect: Any, service: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server = listen()
    one, two = connect(), connect()
    one.hello()
    two.hello()
    (connection,) = [
        each for each in server.connections if each.fileno() == max(e.fileno() for e in server.connections)
    ]

    def fail(*_args: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(connection.server, "submit", fail)
    two.send(VERSION)
    assert two.is_closed
    one.answer(one.client.getattr(0))
    assert service.reasons == ["a bug: a bug"]
    assert "a bug in the server" in caplog.text


def test_a_bug_in_what_is_called(listen: Any, connect: Any, service: Any, caplog: pytest.LogCaptureFixture) -> None:
    def fail(*_args: object) -> None:
        raise ZeroDivisionError

    server = listen(on_hangup=fail)
    client = connect()
    client.hello()
    client.close()
    service.step()
    assert not server.connections
    assert "a bug in what is called when a client is gone" in caplog.text
    connect().hello()


def test_servers_share_a_driver(service: Any) -> None:
    one, two = service.start(), service.start(msize_limit=8192)
    first, second = service.add(one), service.add(two)
    fid = first.open(first.hello(), "file", c.DOTL_RDWR)
    first.answer(first.client.write(fid, 0, b"Hi there"))
    fid = second.open(second.hello(), "file")
    assert bytes(second.answer(second.client.read(fid, 0, 8))) == b"Hi there"
    assert second.client.msize == 8192


def test_an_msize_that_cannot_be(service: Any) -> None:
    with pytest.raises(ConfigError, match="msize_limit: 4095 is less than 4096"):
        service.start(msize_limit=4095)


def test_close_with_clients_and_their_requests(listen: Any, connect: Any, service: Any, tmp_path: Path) -> None:
    server = listen()
    client = connect()
    root = client.hello()
    service.driver.delay, service.driver.ignore_cancel = {"getattr"}, True
    client.send(client.client.getattr(root).request)
    gone = connect()
    root = gone.hello()
    gone.send(gone.client.getattr(root).request)
    gone.close()
    service.step()
    assert server.leaving == 1
    server.close()
    assert server.closed
    assert client.is_closed
    assert not (tmp_path / "socket").exists()
    service.driver.release_all()


def test_messages_are_traced(listen: Any, connect: Any) -> None:
    lines: list[str] = []
    listen(trace=lines.append)
    connect().hello()
    assert len(lines) == 4
    assert "9P2000.L" in lines[0]


def test_in_a_loop(service: Any, tmp_path: Path) -> None:
    """With a driver that answers from another thread: only the loop's own waiting brings it to work."""
    paths = [str(tmp_path / name) for name in "ab"]
    loop = Loop()
    for path in paths:
        loop.servers.append(service.start(UnixListener(path)))
    thread = threading.Thread(target=loop.run)
    thread.start()
    service.driver.after = 0.01
    service.driver.delay = {"read", "walk"}
    try:
        for path in paths * 2:
            client = socket.socket(socket.AF_UNIX)
            client.connect(path)
            peer = service.peer(client)
            client.settimeout(PATIENCE)
            peer.step = lambda: None
            fid = peer.open(peer.hello(), "file")
            assert bytes(peer.answer(peer.client.read(fid, 0, 8))) == b"Hi Guest"
    finally:
        loop.stop()
        thread.join(PATIENCE)
        assert not thread.is_alive()
        with contextlib.suppress(OSError):
            loop.close()
