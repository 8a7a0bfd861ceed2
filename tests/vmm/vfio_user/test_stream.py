from __future__ import annotations

import array
import contextlib
import os
import resource
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvirtfs.testing import check_descriptors
from pyvirtfs.vmm.vfio_user.stream import (
    MAX_MESSAGE,
    Message,
    MessageStream,
    StreamError,
    close_all,
    error_reply,
    reply_to,
)


@contextlib.contextmanager
def connected() -> Iterator[tuple[socket.socket, MessageStream]]:
    """A peer and a stream; nothing is left open."""
    with check_descriptors():
        peer, ours = socket.socketpair()
        stream = MessageStream(ours)
        try:
            yield peer, stream
        finally:
            stream.close()
            peer.close()


def message(identifier: int, body: bytes = b"", size: int | None = None) -> bytes:
    return struct.pack("<HHIII", identifier, 9, 16 + len(body) if size is None else size, 0, 0) + body


def send(peer: socket.socket, data: bytes, fds: list[int] | None = None) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    assert peer.sendmsg([data], rights) == len(data)


def drain(stream: MessageStream) -> list[Message]:
    """All that has arrived."""
    found: list[Message] = []
    while select.select([stream], [], [], 0)[0]:
        messages = stream.receive()
        if messages is None:
            break
        found += messages
    return found


def inode(fd: int) -> int:
    return os.fstat(fd).st_ino


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_fragmentation(data: st.DataObject) -> None:
    """Every message arrives whole, each with the descriptors that were sent with its first byte."""
    plan = data.draw(
        st.lists(
            st.tuples(st.sampled_from([0, 1, 16, 100, 5000, 40_000, 70_000]), st.integers(0, 4)),
            min_size=1,
            max_size=8,
        )
    )
    # All before there is a descriptor: hypothesis may end an example in the middle of a draw.
    wholes = [message(identifier, os.urandom(nbytes)) for identifier, (nbytes, _) in enumerate(plan)]
    all_cuts = [sorted(data.draw(st.sets(st.integers(1, len(whole) - 1), max_size=4))) for whole in wholes]
    drained = [data.draw(st.lists(st.booleans(), min_size=5, max_size=5)) for _ in wholes]
    received: list[Message] = []
    with connected() as (peer, stream):
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        expected = []
        for (_, count), whole, cuts, drains in zip(plan, wholes, all_cuts, drained, strict=True):
            pipes = [os.pipe() for _ in range(count)]
            ours = [reader for reader, _ in pipes]
            expected.append((whole, [inode(fd) for fd in ours]))
            for number, (begin, end) in enumerate(zip([0, *cuts], [*cuts, len(whole)], strict=True)):
                send(peer, whole[begin:end], ours if begin == 0 else None)
                if drains[number]:
                    received += drain(stream)
            for pair in pipes:
                close_all(list(pair))
        received += drain(stream)
        found = [
            (struct.pack("<HHIII", *each.header) + each.body, [inode(fd) for fd in each.fds]) for each in received
        ]  # fmt: skip
        for each in received:
            close_all(each.fds)
        assert found == expected


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.one_of(st.binary(min_size=1, max_size=200), st.just(message(1))), st.booleans())))
def test_garbage_is_a_stream_error_and_leaks_nothing(chunks: list[tuple[bytes, bool]]) -> None:
    with connected() as (peer, stream):
        null = os.open("/dev/null", os.O_RDONLY)
        for chunk, with_descriptor in chunks:
            send(peer, chunk, [null, null] if with_descriptor else None)
        os.close(null)
        peer.shutdown(socket.SHUT_WR)
        messages: list[Message] | None = []
        while messages is not None:
            try:
                messages = stream.receive()
            except StreamError as error:
                for each in error.messages:
                    close_all(each.fds)
                break
            for each in messages or []:
                assert 16 <= each.header[2] == 16 + len(each.body)
                close_all(each.fds)


@pytest.mark.parametrize("size", [0, 1, 15, MAX_MESSAGE + 1, 0xFFFFFFFF])
def test_sizes_that_no_message_has(size: int) -> None:
    with connected() as (peer, stream):
        null = os.open("/dev/null", os.O_RDONLY)
        send(peer, message(1) + message(2, b"abc") + message(3, size=size), [null])
        os.close(null)
        with pytest.raises(StreamError, match=f"a message of {size} bytes") as caught:
            stream.receive()
        assert [each.header[0] for each in caught.value.messages] == [1, 2]
        assert caught.value.header == (3, 9, size, 0, 0)


def test_the_largest_message() -> None:
    with connected() as (peer, stream):
        whole = message(1, os.urandom(MAX_MESSAGE - 16))
        found: list[Message] = []
        view = memoryview(whole)
        peer.setblocking(False)
        while view:
            with contextlib.suppress(BlockingIOError):
                view = view[peer.send(view) :]
            found += drain(stream)
        assert [each.body for each in found] == [whole[16:]]
        peer.setblocking(True)
        send(peer, message(2) + message(3))
        assert [each.header[0] for each in drain(stream)] == [2, 3]


def test_several_messages_are_taken_at_once() -> None:
    with connected() as (peer, stream):
        send(peer, b"".join(message(i, b"x" * i) for i in range(50)) + message(50, b"half")[:-1])
        found = stream.receive()
        assert found is not None
        assert [(each.header[0], each.body) for each in found] == [(i, b"x" * i) for i in range(50)]
        send(peer, b"f")
        assert [each.body for each in stream.receive() or []] == [b"half"[:-1] + b"f"]


def test_nothing_to_read_is_no_message() -> None:
    """Also on a blocking socket: who asks may have been told of what somebody else has taken since."""
    with connected() as (_, stream):
        assert stream.receive() == []


def test_the_end_in_the_middle_of_a_message_closes_its_descriptors() -> None:
    with connected() as (peer, stream):
        reader, writer = os.pipe()
        send(peer, message(1, bytes(100))[:50], [writer])
        os.close(writer)
        assert stream.receive() == []
        assert not select.select([reader], [], [], 0)[0]
        peer.close()
        assert stream.receive() is None
        stream.close()
        assert os.read(reader, 1) == b""  # nobody has the other end any more
        os.close(reader)


def test_descriptors_that_do_not_fit_into_this_process() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with connected() as (peer, stream):
        send(peer, message(1), [0] * 20)
        top = os.dup(0)
        os.close(top)
        resource.setrlimit(resource.RLIMIT_NOFILE, (top + 5, hard))
        try:
            with pytest.raises(StreamError, match="descriptors were lost") as caught:
                stream.receive()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for each in caught.value.messages:
            close_all(each.fds)


def test_a_flood_of_descriptors() -> None:
    with connected() as (peer, stream):
        for i in range(20):
            send(peer, message(i), [0] * 253)
            (found,) = stream.receive() or []
            assert len(found.fds) == 253
            close_all(found.fds)


def test_send() -> None:
    with connected() as (peer, stream):
        stream.send(b"message", time.monotonic() + 1)
        assert peer.recv(100) == b"message"
        peer.close()
        with pytest.raises(OSError, match=r"[Pp]ipe"):
            stream.send(b"nobody", time.monotonic() + 1)


def test_send_of_more_than_the_socket_holds() -> None:
    data = os.urandom(1 << 20)
    with connected() as (peer, stream):
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        received = bytearray()

        def read() -> None:
            while len(received) < len(data):
                received.extend(peer.recv(1 << 16))

        reader = threading.Thread(target=read)
        reader.start()
        stream.send(data, time.monotonic() + 10)
        reader.join()
        assert received == data


@pytest.mark.parametrize("reads", [False, True], ids=["reads nothing", "reads a little now and then"])
def test_send_to_somebody_who_does_not_read(reads: bool) -> None:
    with connected() as (peer, stream):
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        over = threading.Event()

        def read() -> None:
            while reads and not over.wait(0.005):
                peer.recv(100)

        reader = threading.Thread(target=read)
        reader.start()
        begin = time.monotonic()
        with pytest.raises(TimeoutError):
            stream.send(bytes(1 << 20), begin + 0.1)
        assert time.monotonic() - begin < 5  # however often a little of it goes away
        over.set()
        reader.join()


def test_replies() -> None:
    header = (7, 9, 32, 0x10, 0)
    assert reply_to(header) == struct.pack("<HHIII", 7, 9, 16, 1, 0)
    assert reply_to(header, b"ab", memoryview(b"cd")) == struct.pack("<HHIII", 7, 9, 20, 1, 0) + b"abcd"
    assert error_reply(header, 22) == struct.pack("<HHIII", 7, 9, 16, 0x21, 22)


def test_descriptors_piece_by_piece() -> None:
    """One message may not bring more and more of them."""
    with connected() as (peer, stream):
        data = message(0, bytes(200))
        send(peer, data[:1], [0] * 200)
        assert stream.receive() == []
        send(peer, data[1:2], [0] * 200)
        with pytest.raises(StreamError, match="too many descriptors"):
            stream.receive()
