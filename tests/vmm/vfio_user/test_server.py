"""The socket file, clients in turn, and clients that do harm."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyvirtfs.guest import DirectMachine, Mount, VfioUserClient, mount
from pyvirtfs.memory import GuestMemory
from pyvirtfs.p9 import constants as c
from pyvirtfs.p9.results import LockRange
from pyvirtfs.syscalls import memfd_create
from pyvirtfs.testing import check_descriptors, fake_clock
from pyvirtfs.unix_socket import UnixListener
from pyvirtfs.vmm.vfio_user import Server, connection

NO_REPLY = 0x10
DMA_MAP, SET_IRQS, READ, WRITE, DMA_READ, RESET = 2, 8, 9, 10, 11, 13
CONFIG = 7
PAGE = 4096
RAM_NBYTES = 16 << 20
LOG = "pyvirtfs.vmm.vfio_user.server"


# --- the socket file ---


def test_close_removes_the_file_unless_it_is_another_ones(served: Any, toy: Any) -> None:
    server = served.add(toy())
    os.rename(server.path, server.path + ".old")
    Path(server.path).write_text("another one's")
    server.close()
    assert Path(server.path).read_text() == "another one's"
    os.unlink(server.path)
    again = Server(toy(), GuestMemory(), server.path)
    assert Path(again.path).is_socket()
    again.close()
    assert not Path(again.path).exists()
    again.close()


def test_no_descriptor_for_a_client(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told once, and does not spin."""

    def fail(_listener: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    path = str(tmp_path / "s")
    line = f"{path}: no client can be accepted: Too many open files"
    server = Server(toy(), GuestMemory(), path)
    (listening,) = server.filenos()
    with contextlib.closing(server), fake_clock() as clock:
        for times in (1, 2):
            with monkeypatch.context() as patch, socket.socket(socket.AF_UNIX) as client:
                client.connect(path)
                patch.setattr(UnixListener, "accept", fail)
                for _ in range(20):
                    assert server.step(listening) == clock.now + 0.1
                    assert server.filenos() == []
                    clock.advance(0.1)
                    assert server.step() is None
                    assert server.filenos() == [listening]
                assert [record.getMessage() for record in caplog.records] == [line] * times
            server.step(listening)
            gone = server.connection
            assert gone is not None
            server.step(gone.fileno())


# --- one client after the other ---


@contextlib.contextmanager
def mounted(path: str) -> Iterator[tuple[VfioUserClient, Mount]]:
    """A guest of its own that has mounted what a server offers."""
    fd = memfd_create("guest", RAM_NBYTES)
    try:
        memory = GuestMemory.from_fd(fd, RAM_NBYTES)
        machine = DirectMachine(memory)
        with VfioUserClient(path, memory, machine.pin, memory_fd=fd) as client:
            yield client, mount(machine.open_channel(machine.attach(client, client.progress)))
    finally:
        os.close(fd)


def test_clients_in_turn(served: Any, virtfs: Any, export: Path) -> None:
    """The next one waits until the one before is gone, and finds a device that was reset and the locks released."""
    server = served.add(virtfs)
    served.start()
    lock = LockRange(c.LOCK_TYPE_WRLCK, 0, 0, 1, b"first")
    (export / "file").write_text("Hi Guest")
    with mounted(server.path) as (_, first):
        assert (first.root / "file").read_text() == "Hi Guest"
        session = first.session
        fid = session.walk(first.root_fid, [b"file"])
        session.run(session.client.lopen(fid, c.DOTL_RDWR))
        assert session.run(session.client.lock(fid, lock)) == c.LOCK_SUCCESS
        waiting = socket.socket(socket.AF_UNIX)
        waiting.connect(server.path)
        waiting.sendall(struct.pack("<HHIIIHH", 1, 1, 20, 0, 0, 0, 1))
        waiting.settimeout(0.1)
        with pytest.raises(TimeoutError):
            waiting.recv(1)
    waiting.settimeout(10)
    assert waiting.recv(1)
    waiting.close()
    with mounted(server.path) as (client, second):
        assert client.bar_read(4, 20, 1) == 15
        session = second.session
        fid = session.walk(second.root_fid, [b"file"])
        session.run(session.client.lopen(fid, c.DOTL_RDWR))
        assert session.run(session.client.lock(fid, lock._replace(client_id=b"second"))) == c.LOCK_SUCCESS
        with pytest.raises(BlockingIOError), (export / "file").open("r+") as other:
            fcntl.lockf(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    served.wait_for_hangups(3)
    deadline = time.monotonic() + 10
    with (export / "file").open("r+") as other:
        while True:  # the reset, and with it the locks' end, comes right after the hangup was told
            try:
                fcntl.lockf(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                assert time.monotonic() < deadline
                time.sleep(0.01)
    assert served.hangups[0] == served.hangups[2] == ""


def test_between_clients_the_function_is_reset_and_has_no_ram(served: Any, virtfs: Any) -> None:
    served.add(virtfs)
    served.start()
    for _ in range(3):
        client = served.connect()
        assert client.read(4, 20, 1) == b"\0"
        assert client.read(CONFIG, 4, 2) == b"\0\0"
        client.map(0, PAGE)
        client.write(CONFIG, 4, b"\x06\0")
        client.write(4, 20, b"\x01", posted=True)
        assert client.read(4, 20, 1) == b"\x01"
        client.close()
    served.wait_for_hangups(3)
    assert served.memories[0].remote_regions == ()


def test_on_hangup_sees_the_connection_before_the_reset(served: Any, toy: Any) -> None:
    seen: list[tuple[int, int, int, str]] = []
    function = toy()

    def note(gone: Any, reason: str) -> None:
        seen.append((gone.received, gone.refused, function.resets, reason))

    served.add(function, on_hangup=note)
    served.start()
    client = served.connect()
    client.refused(99)
    client.close()
    served.assert_serves()
    assert seen[0] == (2, 1, 0, "")


# --- bad clients: each is followed by one that is served ---


def _wrong_version(client: Any) -> None:
    client.send(1, struct.pack("<HH", 1, 0) + b"{}\0")


def _garbage_json(client: Any) -> None:
    client.send(1, struct.pack("<HH", 0, 1) + b"{\xff\0")


def _no_version(client: Any) -> None:
    client.send(READ, bytes(16))


def _short_header(client: Any) -> None:
    client.hello()
    client.send(4, bytes(16), size=8)


def _oversized(client: Any) -> None:
    client.hello()
    client.send(WRITE, bytes(16), size=1 << 30)


def _random_bytes(client: Any) -> None:
    client.send_bytes(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")


@pytest.mark.parametrize(
    "misbehave", [_wrong_version, _garbage_json, _no_version, _short_header, _oversized, _random_bytes]
)
def test_what_ends_a_connection(
    served: Any, toy: Any, caplog: pytest.LogCaptureFixture, misbehave: Callable[[Any], None]
) -> None:
    """With one line in the log; the client is told by an error, or by the end."""
    served.add(toy())
    served.start()
    client = served.connect(hello=False)
    misbehave(client)
    assert client.is_closed
    served.wait_for_hangups(1)
    served.assert_serves()
    assert [record.levelno for record in caplog.records if record.levelno >= logging.WARNING] == [logging.WARNING]


def _unknown_command(client: Any) -> None:
    client.refused(99)


def _out_of_bounds(client: Any) -> None:
    client.refused(READ, struct.pack("<QII", 255, 0, 4))
    client.refused(WRITE, struct.pack("<QII", 255, 0, 4) + bytes(4))


def _odd_sizes(client: Any) -> None:
    for size in (3, 5, 7, 9):
        assert len(client.read(CONFIG, 1, size)) == size
        client.write(0, 1, bytes(size))


def _bad_maps(client: Any) -> None:
    client.map(PAGE, PAGE)
    client.refused(DMA_MAP, struct.pack("<IIQQQ", 32, 3, 0, PAGE, 2 * PAGE), code=17)
    client.refused(DMA_MAP, struct.pack("<IIQQQ", 32, 3, 0, 1, PAGE))
    client.refused(DMA_MAP, struct.pack("<IIQQQ", 32, 3, 0, (1 << 64) - PAGE, 2 * PAGE))


def _descriptors_too_many(client: Any) -> None:
    client.refused(DMA_MAP, struct.pack("<IIQQQ", 32, 3, 0, 0, PAGE), fds=[0, 0])
    client.refused(SET_IRQS, struct.pack("<IIIII", 20, 0x24, 2, 0, 1), fds=[0] * 3)
    client.refused(READ, struct.pack("<QII", 0, 0, 4), fds=[0])


def _descriptors_too_few(client: Any) -> None:
    with contextlib.closing(socket.socket()) as other:
        client.refused(SET_IRQS, struct.pack("<IIIII", 20, 0x24, 2, 0, 4), fds=[other.fileno()] * 3)


def _short_file(client: Any) -> None:
    fd = memfd_create("short", PAGE)
    client.refused(DMA_MAP, struct.pack("<IIQQQ", 32, 3, 0, 0, 2 * PAGE), fds=[fd])
    os.close(fd)


def _replies_to_nothing(client: Any) -> None:
    for _ in range(50):
        client.send(DMA_READ, bytes(24), flags=1)
        assert client.receive().error == 22


def _leaves_in_the_middle(client: Any) -> None:
    client.send_bytes(struct.pack("<HHIII", 1, READ, 32, 0, 0)[:7], fds=[0])


def _leaves_mid_request(client: Any) -> None:
    client.send(READ, struct.pack("<QII", 0, 2, 1 << 20))


@pytest.mark.parametrize(
    "misbehave",
    [
        _unknown_command, _out_of_bounds, _odd_sizes, _bad_maps, _descriptors_too_many, _descriptors_too_few,
        _short_file, _replies_to_nothing, _leaves_in_the_middle, _leaves_mid_request,
    ],
)  # fmt: skip
def test_what_does_not_harm(served: Any, toy: Any, misbehave: Callable[[Any], None]) -> None:
    served.add(toy())
    served.start()
    client = served.connect()
    misbehave(client)
    if "leaves" not in misbehave.__name__:
        assert client.read(CONFIG, 0, 2) == b"\x34\x12"
    client.close()
    served.assert_serves()


def test_a_client_that_does_not_read(served: Any, toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is left after some time; others are served."""
    served.add(toy())
    served.start()
    deaf = served.connect()
    monkeypatch.setattr(connection, "PATIENCE", 0.05)
    for _ in range(5):
        deaf.send(READ, struct.pack("<QII", 0, 2, 1 << 20))
    served.wait_for_hangups(1)
    monkeypatch.undo()
    served.assert_serves()


def test_a_client_that_says_nothing(served: Any, toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not keep the device for ever; one that has said hello may be as quiet as it likes."""
    monkeypatch.setattr(connection, "PATIENCE", 1.0)
    served.add(toy())
    served.start()
    with socket.socket(socket.AF_UNIX) as mute:
        mute.connect(served.loop.servers[0].path)
        quiet = served.connect()  # answered when the other one has been sent away
        time.sleep(1.5)
        assert quiet.read(CONFIG, 0, 2) == b"\x34\x12"
        assert mute.recv(1) == b""
    assert served.hangups == ["it sends no version, and others may wait"]


def test_a_client_that_reads_slowly(served: Any, toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """All its messages of one turn together may take so long, and not each of them."""
    served.add(toy())
    served.start()
    slow = served.connect()
    monkeypatch.setattr(connection, "PATIENCE", 0.3)
    slow.send_bytes((struct.pack("<HHIII", 1, READ, 32, 0, 0) + struct.pack("<QII", 0, 2, 1 << 20)) * 50)
    begin = time.monotonic()
    while not served.hangups and time.monotonic() - begin < 10:
        with contextlib.suppress(OSError):
            slow.socket.recv(1 << 19)
        time.sleep(0.02)
    assert served.hangups
    assert time.monotonic() - begin < 8  # and not 50 times 0.3
    monkeypatch.undo()
    served.assert_serves()


def test_a_function_that_fails_when_its_client_leaves(served: Any, toy: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Neither the loop nor the other server of it ends, and nothing of the client is left."""
    function = toy()
    served.add(function, on_hangup=lambda *_: 1 // 0)
    served.add(toy())
    served.start()
    client = served.connect(0)
    client.map(0, 4096, fd := memfd_create("ram", 4096))
    os.close(fd)

    def fail() -> None:
        function.function_reset = lambda: None
        raise ZeroDivisionError

    function.function_reset = fail
    client.close()
    served.assert_serves(1)
    served.assert_serves(0)
    assert served.memories[0].regions == ()
    assert caplog.text.count("ZeroDivisionError") >= 2


def test_a_client_that_stops_in_the_middle_of_a_message(served: Any, toy: Any) -> None:
    """Nobody else has to wait for the rest of it, but those behind the same socket."""
    for _ in range(2):
        served.add(toy())
    served.start()
    slow = served.connect(0)
    message = struct.pack("<HHIII", 77, READ, 32, 0, 0) + struct.pack("<QII", 0, CONFIG, 2)
    slow.send_bytes(message[:20])
    served.assert_serves(1)
    slow.send_bytes(message[20:])
    assert slow.receive().body[16:] == b"\x34\x12"


def test_a_bug_in_a_function_does_not_end_the_server(served: Any, toy: Any, caplog: pytest.LogCaptureFixture) -> None:
    function = toy()
    served.add(function)
    served.start()
    function._reads[0] = (lambda offset, size: 1 // 0, 256)
    client = served.connect()
    client.send(READ, struct.pack("<QII", 0, 0, 4))
    assert client.is_closed
    served.assert_serves()
    assert "a bug in the server" in caplog.text
    assert "ZeroDivisionError" in caplog.text


def test_many_clients_leave_nothing_behind(served: Any, virtfs: Any) -> None:
    served.add(virtfs)
    served.start()
    served.assert_serves()
    served.wait_for_hangups(1)
    with check_descriptors():
        for i in range(20):
            client = served.connect()
            fd = memfd_create("ram", 4 * PAGE)
            event = os.eventfd(0)
            client.map(0, 4 * PAGE, fd)
            client.set_irqs(0x24, 2, 0, 2, fds=[event, event])
            for each in (fd, event):
                os.close(each)
            client.close()
            served.wait_for_hangups(2 + i)
        served.raws.clear()
        deadline = time.monotonic() + 5
        while "/memfd:ram" in Path("/proc/self/maps").read_text():
            assert time.monotonic() < deadline


# --- a client that does not serve its RAM ---


def _start_a_request(client: Any) -> Any:
    """Bring the device up with rings in RAM that only messages reach, and ring; returns the server's question."""
    client.write(CONFIG, 4, b"\x06\0")
    for value in (1, 3):
        client.write(4, 20, bytes([value]))
    client.write(4, 8, struct.pack("<I", 1))
    client.write(4, 12, struct.pack("<I", 1))
    client.write(4, 20, b"\x0b")
    for offset, address in ((32, 0x1000), (40, 0x2000), (48, 0x3000)):
        client.write(4, offset, struct.pack("<Q", address))
    client.write(4, 28, b"\1\0")
    client.write(4, 20, b"\x0f", posted=True)
    client.write(4, 0x3000, b"\0\0", posted=True)
    question = client.receive()
    assert question.command == DMA_READ
    return question


def test_a_client_that_never_answers(served: Any, virtfs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    served.add(virtfs)
    served.start()
    client = served.connect()
    client.map(0, 16 * PAGE)
    monkeypatch.setattr(connection, "PATIENCE", 0.3)
    _start_a_request(client)
    assert client.is_closed
    served.wait_for_hangups(1)
    assert served.hangups == ["it does not answer"]
    monkeypatch.undo()
    served.assert_serves()


def test_a_client_that_goes_away_instead_of_answering(served: Any, virtfs: Any) -> None:
    served.add(virtfs)
    served.start()
    client = served.connect()
    client.map(0, 16 * PAGE)
    _start_a_request(client)
    client.close()
    served.assert_serves()


def test_ram_that_is_refused_needs_a_reset(served: Any, virtfs: Any) -> None:
    """An error is the guest's fault: the client stays, and the device is well again after a reset."""
    served.add(virtfs)
    served.start()
    client = served.connect()
    client.map(0, 16 * PAGE)
    for _ in range(2):
        question = _start_a_request(client)
        client.send(DMA_READ, flags=0x21, identifier=question.identifier)
        deadline = time.monotonic() + 5
        while not client.read(4, 20, 1)[0] & 0x40:
            assert time.monotonic() < deadline
        client.call(RESET)
        assert client.read(4, 20, 1) == b"\0"


def test_closing_with_a_client_says_goodbye(served: Any, toy: Any) -> None:
    """What the client still sends is read, so that it does not find a connection that was reset."""
    server = served.add(toy())
    client = served.connect(hello=False)
    server.step(server.filenos()[0])
    client.send(1, struct.pack("<HH", 0, 1))
    server.step(server.filenos()[0])
    client.receive()
    client.send(READ, struct.pack("<QII", 0, CONFIG, 2))
    begun = time.monotonic()
    server.close()
    assert time.monotonic() - begun < 2
    with pytest.raises(ConnectionError, match="closed"):
        client.receive()
    assert not Path(server.path).exists()
