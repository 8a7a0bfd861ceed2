"""Messages on a unix stream socket, and the descriptors that come with them (unix(7), SCM_RIGHTS)."""

from __future__ import annotations

import array
import errno
import os
import select
import socket
import time
from typing import Final, NamedTuple, TypeAlias

from pyvirtfs.vmm.vfio_user.messages import FLAG_ERROR, FLAG_REPLY, HEADER, MAX_TRANSFER, REGION_ACCESS

MAX_MESSAGE: Final = HEADER.size + REGION_ACCESS.size + MAX_TRANSFER
"""The largest message: one access of MAX_TRANSFER bytes."""

_SCM_MAX_FD: Final = 253
"""How many descriptors Linux lets one message carry; all are taken, so that those too many can be closed."""
_ANCILLARY_NBYTES: Final = socket.CMSG_SPACE(_SCM_MAX_FD * 4)
_RECEIVE_NBYTES: Final = 64 << 10
# Plain integers: an enum's operators cost more than the system call.
_MSG_CMSG_CLOEXEC: Final = int(socket.MSG_CMSG_CLOEXEC)
_MSG_CTRUNC: Final = int(socket.MSG_CTRUNC)
_MSG_DONTWAIT: Final = int(socket.MSG_DONTWAIT)

_pack_header = HEADER.pack
_unpack_header = HEADER.unpack_from


Header: TypeAlias = tuple[int, ...]
"""Id, command, size, flags, error."""


class Message(NamedTuple):
    """One message as it came."""

    header: Header
    body: bytes
    """What follows the header."""
    fds: list[int]
    """The descriptors that came with it; whoever takes one removes it, and what is left is closed (`close_all`)."""


class StreamError(Exception):
    """What follows in the stream cannot be told apart into messages any more.

    Args:
        problem: What is wrong.
        messages: Those that came whole before.
        header: Of the message that is wrong, if that is what it is.
    """

    def __init__(self, problem: str, messages: list[Message], header: Header | None = None) -> None:
        super().__init__(problem)
        self.messages = messages
        self.header = header


def close_all(fds: list[int]) -> None:
    """Close descriptors, and forget them."""
    while fds:
        os.close(fds.pop())


class MessageStream:
    """One end of a connection.

    Descriptors belong to the message that was sent with them. Linux ends a receive behind the bytes that they were sent
    with, so they belong to the last message of which anything has come then.

    Args:
        connection: A connected unix stream socket; it belongs to the stream from now on.
    """

    __slots__ = ("_buffer", "_end", "_fds", "socket")

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self._buffer = bytearray(_RECEIVE_NBYTES)
        self._end = 0  # of what is in the buffer: the beginning of a message
        self._fds: list[int] = []  # that came with it

    def fileno(self) -> int:
        """Of the socket."""
        return self.socket.fileno()

    def receive(self) -> list[Message] | None:
        """Receive once, without waiting, and take apart what is complete now.

        Returns:
            The messages, possibly none; None: the other end is closed. What it sent of a last message is dropped.

        Raises:
            StreamError: A size field that no message can have, or descriptors that got lost. `messages` of it holds
                those that came before.
            OSError: As recvmsg(2).
        """
        buffer = self._buffer
        view = memoryview(buffer)
        try:
            nbytes, ancillary, flags, _ = self.socket.recvmsg_into(
                (view[self._end :],), _ANCILLARY_NBYTES, _MSG_CMSG_CLOEXEC | _MSG_DONTWAIT
            )
        except BlockingIOError:  # somebody else has received what the caller was told of
            return []
        fds = _descriptors(ancillary) if ancillary else []
        if not nbytes:
            close_all(fds)
            return None
        end = self._end + nbytes
        messages: list[Message] = []
        begin = size = 0
        while end - begin >= HEADER.size:
            header = _unpack_header(buffer, begin)
            size = header[2]
            if not HEADER.size <= size <= MAX_MESSAGE:
                close_all(fds)
                raise StreamError(f"a message of {size} bytes", messages, header)
            if end - begin < size:
                break
            messages.append(Message(header, view[begin + HEADER.size : begin + size].tobytes(), self._fds))
            self._fds = []
            begin += size
        rest = end - begin
        (self._fds if rest else messages[-1].fds).extend(fds)
        if len(self._fds) > _SCM_MAX_FD:  # with one message, piece by piece
            raise StreamError("too many descriptors", messages)
        if flags & _MSG_CTRUNC:  # this process has no descriptors left
            raise StreamError("descriptors were lost on the way", messages)
        if begin:
            buffer[:rest] = buffer[begin:end]
        view.release()
        self._end = rest
        if rest >= HEADER.size and size > len(buffer):
            buffer.extend(bytes(size - len(buffer)))
        elif not rest and len(buffer) > _RECEIVE_NBYTES:
            del buffer[_RECEIVE_NBYTES:]
        return messages

    def send(self, data: bytes, deadline: float) -> None:
        """Send one message, whole.

        Args:
            data: The message.
            deadline: Until when the other end may make room for it, as time.monotonic().

        Raises:
            OSError: As send(2); EPIPE and ECONNRESET if the other end is closed, ETIMEDOUT if it does not read.
        """
        try:
            sent = self.socket.send(data, _MSG_DONTWAIT)
        except BlockingIOError:
            sent = 0
        if sent < len(data):
            self._send_rest(memoryview(data)[sent:], deadline)

    def _send_rest(self, data: memoryview, deadline: float) -> None:
        poll = select.poll()
        poll.register(self.socket, select.POLLOUT)
        while data:
            left = deadline - time.monotonic()
            if left <= 0 or not poll.poll(left * 1000):
                raise TimeoutError(errno.ETIMEDOUT, "it does not read what it is sent")
            try:
                data = data[self.socket.send(data, _MSG_DONTWAIT) :]
            except BlockingIOError:
                continue

    def close(self) -> None:
        """Close the socket, and descriptors of a message that will not be complete any more."""
        close_all(self._fds)
        self.socket.close()


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return fds.tolist()


def reply_to(header: Header, *parts: bytes | memoryview) -> bytes:
    """The reply to a command: its header, then the parts of its body."""
    size = HEADER.size
    for part in parts:
        size += len(part)
    return b"".join((_pack_header(header[0], header[1], size, FLAG_REPLY, 0), *parts))


def error_reply(header: Header, code: int) -> bytes:
    """The reply to a command that failed: a header with an errno."""
    return _pack_header(header[0], header[1], HEADER.size, FLAG_REPLY | FLAG_ERROR, code)
