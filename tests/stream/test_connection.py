"""One client: whatever it sends, however it is cut, and what is sent back when it takes nothing."""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyvirtfs.p9 import constants as c
from pyvirtfs.p9.codec import encode
from pyvirtfs.p9.results import LockRange
from pyvirtfs.stream import connection as connection_module
from pyvirtfs.stream.chunks import CHUNK_NBYTES

VERSION = encode(c.TVERSION, c.NOTAG, 1 << 20, b"9P2000.L")
ATTACH = encode(c.TATTACH, 0, 0, c.NOFID, b"", b"", 0)
WHOLE_FILE = LockRange(c.LOCK_TYPE_WRLCK, 0, 0, 1, b"test")


# --- well-formed streams ---


def test_a_session(service: Any, peer: Any, export: Path) -> None:
    root = peer.hello()
    fid = peer.open(root, "file", c.DOTL_RDWR)
    assert bytes(peer.answer(peer.client.read(fid, 0, 100))) == b"Hi Guest\n"
    assert peer.answer(peer.client.write(fid, 3, b"Host!\n")) == 6
    assert (export / "file").read_bytes() == b"Hi Host!\n"
    connection = service.only
    assert (connection.held, connection.in_flight) == (0, 0)  # a client that is silent has no memory


def test_every_way_to_cut_a_stream_in_two(service: Any) -> None:
    service.start()
    stream = VERSION + ATTACH + encode(c.TGETATTR, 1, 0, 0x7FF) + encode(c.TCLUNK, 2, 0)
    for cut in range(1, len(stream)):
        peer = service.add()
        peer.send(stream[:cut])
        service.step()
        peer.send(stream[cut:])
        assert [peer.receive()[4] for _ in range(4)] == [c.RVERSION, c.RATTACH, c.RGETATTR, c.RCLUNK], cut
        peer.close()
    assert set(service.reasons) == {""}


def test_byte_by_byte(peer: Any) -> None:
    peer.hello()
    for byte in encode(c.TGETATTR, 1, 0, 0x7FF):
        peer.send(bytes([byte]))
    assert peer.receive()[4] == c.RGETATTR


@pytest.mark.parametrize("nbytes", [1, 4096, CHUNK_NBYTES - 23, CHUNK_NBYTES, 500 * 1024, (1 << 20) - 24])
def test_large_payloads(peer: Any, export: Path, nbytes: int) -> None:
    """There and back, alone and one behind the other; twice, with memory that was used before."""
    (export / "file").write_bytes(b"")
    root = peer.hello()
    fid = peer.open(root, "file", c.DOTL_RDWR)
    for _ in range(2):
        data = os.urandom(nbytes)
        assert peer.answer(peer.client.write(fid, 0, data)) == nbytes
        calls = [peer.client.write(fid, nbytes * number, data) for number in range(5)]
        assert peer.answer(*calls) == nbytes
        assert (export / "file").read_bytes() == data * 5
        calls = [peer.client.read(fid, nbytes * number, nbytes) for number in range(5)]
        peer.answer(*calls)
        assert all(bytes(call.result()) == data for call in calls)
        (export / "file").write_bytes(b"")


def test_payloads_of_all_sizes_in_one_stream(peer: Any, export: Path) -> None:
    root = peer.hello()
    fid = peer.open(root, "file", c.DOTL_RDWR)
    data = os.urandom(1 << 20)
    sizes = [7, 70000, 100, 300000, 3, 65513, 65512, 262121, 262120, 1, 900000]
    calls = []
    at = 0
    for size in sizes:
        calls += [peer.client.write(fid, at, data[:size]), peer.client.read(fid, at, size), peer.client.getattr(fid)]
        at += size
    peer.answer(*calls)
    assert [bytes(call.result()) for call in calls[1::3]] == [data[:size] for size in sizes]
    assert (export / "file").stat().st_size == at


def test_a_read_of_more_than_fits_a_message(peer: Any, export: Path) -> None:
    (export / "file").write_bytes(bytes(2 << 20))
    root = peer.hello()
    fid = peer.open(root, "file")
    peer.send(encode(c.TREAD, 1, fid, 0, 0xFFFFFFFF))
    assert len(peer.receive()) == 1 << 20


def test_msize_is_kept_to(service: Any) -> None:
    service.start(msize_limit=65536)
    peer = service.add(msize=8192)
    root = peer.hello()
    fid = peer.open(root, "file", c.DOTL_RDWR)
    peer.send(encode(c.TREADDIR, 1, root, 0, 1 << 30))
    peer.receive()
    assert not peer.is_closed
    peer.send(struct.pack("<IBHIQI", 8193, c.TWRITE, 1, fid, 0, 8193 - 23) + bytes(8193 - 23))
    assert peer.is_closed
    assert service.reasons == ["malformed: a message whose size says 8193, and msize is 8192"]


def test_a_tversion_raises_msize_for_what_follows_it(peer: Any) -> None:
    peer.send(encode(c.TVERSION, c.NOTAG, 4096, b"9P2000.L"))
    peer.receive()
    long = encode(c.TWALK, 1, 9, 10, (b"x" * 250,) * 16) + encode(c.TWRITE, 2, 9, 0, 0)
    peer.send(VERSION + long[: len(long) - 23] + struct.pack("<IBHIQI", 10023, c.TWRITE, 2, 9, 0, 10000) + bytes(10000))
    assert [peer.receive()[4] for _ in range(3)] == [c.RVERSION, c.RLERROR, c.RLERROR]


def test_replies_come_as_they_are_ready(service: Any, peer: Any) -> None:
    root = peer.hello()
    fid = peer.open(root, "file")
    service.driver.delay = {"read"}
    slow = [peer.client.read(fid, number, 3) for number in range(3)]
    for call in slow:
        peer.send(call.request + bytes(call.payload))
    peer.answer(peer.client.getattr(fid))
    assert not any(call.done for call in slow)
    service.driver.release_reversed()
    peer.wait(*slow)
    assert [bytes(call.result()) for call in slow] == [b"Hi ", b"i G", b" Gu"]


def test_a_payload_is_not_overwritten_while_the_driver_works(service: Any, peer: Any, export: Path) -> None:
    root = peer.hello()
    fid = peer.open(root, "file", c.DOTL_RDWR)
    service.driver.delay = {"write"}
    data = [os.urandom(60000) for _ in range(20)]
    calls = [peer.client.write(fid, 60000 * number, each) for number, each in enumerate(data)]
    for call in calls:
        peer.send(call.request + bytes(call.payload))
        peer.answer(peer.client.getattr(fid))
    service.driver.release_reversed()
    peer.wait(*calls)
    assert (export / "file").read_bytes() == b"".join(data)
    connection = service.only
    assert (connection.held, connection.in_flight) == (0, 0)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_order_of_slow_and_fast_requests(service: Any, data: st.DataObject) -> None:
    """Each request is answered once, with its own data, and no memory stays in use."""
    service.begin_again()
    peer = service.add()
    root = peer.hello()
    fid = peer.open(root, "file", c.DOTL_RDWR)
    content = bytearray(200_000)
    peer.answer(peer.client.write(fid, 0, bytes(content)))
    waiting = []
    for number in range(data.draw(st.integers(1, 25))):
        service.driver.delay = data.draw(st.sampled_from([set(), {"read"}, {"write"}, {"read", "write"}, {"getattr"}]))
        nbytes = data.draw(st.sampled_from([0, 1, 5000, 70000]))
        kind = data.draw(st.sampled_from(["read", "write", "getattr"]))
        if kind == "read":
            call = peer.client.read(fid, 0, nbytes)
        elif kind == "write":
            call = peer.client.write(fid, 200_000 + number * 70000, bytes([number]) * nbytes)
        else:
            call = peer.client.getattr(fid)
        waiting.append((kind, nbytes, number, call))
        peer.send(call.request + bytes(call.payload))
        if data.draw(st.integers(0, 3)) == 0:
            service.driver.release_all()
    service.driver.delay = set()  # of what waits in the socket until replies are taken, nothing is slow
    service.driver.release_reversed()
    peer.wait(*[call for *_, call in waiting])
    for kind, nbytes, number, call in waiting:
        if kind == "read":
            assert bytes(call.result()) == bytes(nbytes)
        elif kind == "write":
            assert call.result() == nbytes
            written = peer.answer(peer.client.read(fid, 200_000 + number * 70000, nbytes))
            assert bytes(written) == bytes([number]) * nbytes
    connection = service.only
    service.step()
    assert (connection.held, connection.in_flight) == (0, 0)
    peer.close()
    service.step()


def test_flush_of_a_slow_request(service: Any, peer: Any) -> None:
    root = peer.hello()
    fid = peer.open(root, "file")
    service.driver.delay = {"read"}
    read = peer.client.read(fid, 0, 5)
    peer.send(read.request)
    flush = peer.client.flush(read)
    peer.answer(flush)
    assert read.cancelled
    connection = service.only
    assert connection.in_flight == 0


# --- malformed streams ---


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (struct.pack("<I", 0), "a message whose size says 0"),
        (struct.pack("<I", 6), "a message whose size says 6"),
        (struct.pack("<I", (1 << 20) + 1), "a message whose size says 1048577, and msize is 1048576"),
        (b"\xff\xff\xff\xff", "a message whose size says 4294967295"),
        (b"GET / HTTP/1.1\r\n\r\n", "a message whose size says 542393671"),
        (struct.pack("<IBHI", 11, c.TCLUNK, 0, 0)[:-1] + b"", None),  # not whole yet
        (struct.pack("<IBH", 7, c.TCLUNK, 0), "Tclunk"),
        (struct.pack("<IBHIB", 12, c.TCLUNK, 0, 0, 0), "Tclunk"),
        (struct.pack("<IBHIQI", 23, c.TWRITE, 0, 0, 0, 5), "Twrite"),
        (struct.pack("<IBHIQI", 33, c.TWRITE, 0, 0, 0, 5) + bytes(10), "Twrite"),
        (struct.pack("<IBHIIH", 17, c.TWALK, 0, 0, 1, 0xFFFF), "Twalk"),
        (struct.pack("<IBHIIHH", 19, c.TWALK, 0, 0, 1, 1, 9), "Twalk"),
        (struct.pack("<IBHIH", 13, c.TVERSION, 0, 8192, 400), "Tversion"),
    ],
)
def test_what_is_no_message_ends_the_connection(service: Any, peer: Any, data: bytes, reason: str | None) -> None:
    peer.send(data)
    if reason is None:
        assert not peer.is_closed
        return
    assert peer.is_closed
    (told,) = service.reasons
    assert told.startswith("malformed: ")
    assert reason in told


def test_what_came_before_a_malformed_message_is_answered(service: Any, peer: Any) -> None:
    """As far as the client is there to take it: the replies of one turn are sent at its end."""
    peer.hello()
    call = peer.client.getattr(0)
    peer.answer(call)
    peer.send(b"\0\0\0\0")
    assert peer.is_closed
    connection = service.gone[0][0]
    assert connection.server.fids == 0


@pytest.mark.parametrize("kind", range(256))
def test_every_type_with_no_body(service: Any, peer: Any, kind: int) -> None:
    """It is answered, or it ends the connection; nothing else."""
    peer.hello()
    peer.send(struct.pack("<IBH", 7, kind, 5))
    if peer.is_closed:
        assert service.reasons[0].startswith("malformed: ")
    else:
        assert not service.reasons


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(min_size=1, max_size=60), min_size=1, max_size=20), st.booleans())
def test_garbage(service: Any, garbage: list[bytes], framed: bool) -> None:
    service.begin_again()
    peer = service.add()
    peer.hello()
    for each in garbage:
        if peer.is_closed:
            break
        try:
            peer.send(struct.pack("<I", 4 + len(each)) + each if framed else each)
        except (BrokenPipeError, ConnectionResetError):
            break
    peer.close()
    service.step()
    assert not service.servers[0].connections
    assert not any("bug" in reason for reason in service.reasons)


# --- clients that take no replies ---


def test_a_flood_of_requests_whose_replies_nobody_takes(service: Any, peer: Any, export: Path) -> None:
    (export / "file").write_bytes(bytes(1 << 20))
    root = peer.hello()
    fid = peer.open(root, "file")
    request = encode(c.TREAD, 1, fid, 0, 500_000)
    sent = idle = 0
    while idle < 50:
        pushed = peer.push(request * 100)
        sent += pushed
        idle = 0 if pushed else idle + 1
        service.step()
    connection = service.only
    assert connection.held <= 2 * (1 << 20) + CHUNK_NBYTES
    assert sent > 1000 * len(request)
    before = connection.server.counters.by_type[c.TREAD]
    service.step()
    assert connection.server.counters.by_type[c.TREAD] == before <= 4
    for _ in range(20):  # and when it takes them, it goes on
        assert len(peer.receive()) == 500_011
    assert not peer.is_closed


def test_a_flood_of_small_requests(service: Any, peer: Any) -> None:
    root = peer.hello()
    connection = service.only
    stream = memoryview(encode(c.TGETATTR, 1, root, 0x7FF) * 30000)
    idle = 0
    while idle < 20:
        pushed = peer.push(stream)
        stream = stream[pushed:]
        idle = 0 if pushed else idle + 1
        service.step()
    assert stream
    assert connection.held <= 3 * CHUNK_NBYTES
    assert connection.events == select.EPOLLOUT
    for _ in range(30000):
        if stream:
            stream = stream[peer.push(stream) :]
        assert peer.receive()[4] == c.RGETATTR
    service.step()
    assert (connection.held, connection.events) == (0, select.EPOLLIN)


def test_requests_that_wait_for_the_driver_are_bounded(service: Any, export: Path) -> None:
    """A client that pipelines finds its socket full."""
    service.start(msize_limit=65536)
    peer = service.add(msize=65536)
    root = peer.hello()
    fid = peer.open(root, "file", c.DOTL_RDWR)
    service.driver.delay = {"write"}
    calls = [peer.client.write(fid, 0, bytes(60000)) for _ in range(400)]
    stream = memoryview(b"".join(call.request + bytes(call.payload) for call in calls))
    idle = 0
    while idle < 20:
        pushed = peer.push(stream)
        stream = stream[pushed:]
        idle = 0 if pushed else idle + 1
        service.step()
    connection = service.only
    assert stream
    assert 8 << 20 < connection.held <= (8 << 20) + 2 * CHUNK_NBYTES
    assert connection.events == 0
    while stream or service.driver.held:
        service.driver.release_all()
        service.step()
        stream = stream[peer.push(stream) :]
        peer.take()
    peer.wait(*calls)
    assert (connection.held, connection.in_flight) == (0, 0)
    assert [call.result() for call in calls] == [60000] * 400


# --- clients that leave ---


def test_half_of_a_connection_is_closed(service: Any, peer: Any) -> None:
    """What has come is served and answered, slow ones too; then the other half is closed."""
    root = peer.hello()
    fid = peer.open(root, "file")
    service.driver.delay = {"read"}
    peer.send(encode(c.TREAD, 1, fid, 0, 9) + encode(c.TGETATTR, 2, fid, 0x7FF))
    peer.socket.shutdown(socket.SHUT_WR)
    assert peer.receive()[4] == c.RGETATTR
    assert service.reasons == []
    service.driver.release_all()
    assert peer.receive()[11:] == b"Hi Guest\n"
    assert peer.is_closed
    assert service.reasons == [""]


def test_a_message_that_ends_in_the_middle(service: Any, peer: Any) -> None:
    peer.hello()
    peer.send(encode(c.TGETATTR, 1, 0, 0x7FF)[:-1])
    peer.close()
    assert service.reasons == [""]
    connection = service.gone[0][0]
    assert connection.server.fids == 0


@pytest.mark.parametrize("ignore_cancel", [False, True])
@pytest.mark.parametrize("method", ["read", "write", "open", "walk", "attach", "close_file"])
def test_a_client_leaves_while_the_driver_works(service: Any, peer: Any, method: str, ignore_cancel: bool) -> None:
    root = peer.hello()
    fid = peer.open(root, "file", c.DOTL_RDWR)
    service.driver.ignore_cancel = ignore_cancel
    service.driver.delay = {method}
    client = peer.client
    call = {
        "read": lambda: client.read(fid, 0, 9),
        "write": lambda: client.write(fid, 0, b"x" * 9),
        "open": lambda: client.lopen(client.walk(root).fid or 0),
        "walk": lambda: client.walk(root, [b"file"]),
        "attach": client.attach,
        "close_file": lambda: client.clunk(fid),
    }[method]()
    for each in [*peer.client.calls.values()]:  # the walk before an open, too
        peer.send(each.request + bytes(each.payload))
    service.step()
    assert service.driver.held
    peer.close()
    assert service.reasons == [""]
    connection = service.gone[0][0]
    assert not call.done
    assert (service.servers[0].leaving == 1) is ignore_cancel
    assert connection.server.fids == 0
    service.driver.delay = set()
    service.driver.release_all()
    service.step()
    assert service.servers[0].leaving == 0
    assert service.add().hello() == 0


def test_locks_end_with_their_client(service: Any, peer: Any) -> None:
    other = service.add()
    for each, expected in ((peer, c.LOCK_SUCCESS), (other, c.LOCK_BLOCKED)):
        fid = each.open(each.hello(), "file", c.DOTL_RDWR)
        assert each.answer(each.client.lock(fid, WHOLE_FILE)) == expected
    peer.send(b"\1\0\0")
    peer.close()
    assert other.answer(other.client.lock(fid, WHOLE_FILE)) == c.LOCK_SUCCESS


def test_what_a_late_driver_writes_into_is_nobody_elses(service: Any, peer: Any, export: Path) -> None:
    """The memory of a request that was forgotten goes to no other client."""
    (export / "file").write_bytes(b"x" * 100_000)
    fid = peer.open(peer.hello(), "file")
    service.driver.ignore_cancel = True
    service.driver.delay = {"read"}
    peer.send(encode(c.TREAD, 1, fid, 0, 100_000))
    peer.close()
    service.step()
    service.driver.delay = set()
    (export / "other").write_bytes(b"y" * 100_000)
    other = service.add()
    fid = other.open(other.hello(), "other")
    service.driver.delay = {"read"}
    other.send(encode(c.TREAD, 1, fid, 0, 100_000))
    first, second = service.driver.held
    second.release()
    first.release()
    assert other.receive()[11:] == b"y" * 100_000


def test_a_turn_ends_after_some_requests(service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two clients with much to do take turns."""
    monkeypatch.setattr(connection_module, "_BATCH", 4)
    server = service.start()
    one, two = service.add(), service.add()
    for each in (one, two):
        each.hello()
    for each in (one, two):
        each.push(encode(c.TGETATTR, 1, 0, 0x7FF) * 20)
    assert server.step() == 0.0
    done = [each.server.counters.by_type[c.TGETATTR] for each in server.connections]
    assert done == [4, 4]
    service.step()
    assert [each.server.counters.by_type[c.TGETATTR] for each in server.connections] == [20, 20]


def test_times(service: Any) -> None:
    """Only here is a real clock: deadlines of the server and of the driver."""
    server = service.start()
    peer = service.add()
    deadline = server.step()
    assert deadline is not None
    assert 0 < deadline - time.monotonic() <= 10
    peer.hello()
    assert server.step() is None
