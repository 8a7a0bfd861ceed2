"""One client of a stream: its bytes taken apart into requests, its replies in the order in which they are ready.

Requests are handed to the 9P server where they were received, replies are made where they are sent from: between the
socket and the driver nothing is copied. While replies wait to be taken, or too much memory is in use, nothing more is
received, and the client finds its socket full.

A client that sends no more (shutdown(2)) is served to the end: all that has come is done and answered. One that closes
its socket is gone, and nobody waits for answers: of the requests that it has none to, any may have been done or not.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, Final, TypeAlias

from pyvirtfs.errors import GuestError
from pyvirtfs.memory.buffers import IOV_MAX, ViewBuffers
from pyvirtfs.p9 import constants as c
from pyvirtfs.p9.constants import HEADER_SIZE, READ_HEADER_SIZE
from pyvirtfs.stream.chunks import CHUNK_NBYTES, Chunk, Pool

if TYPE_CHECKING:
    from pyvirtfs.p9.server import Server

_BATCH: Final = 64
"""Requests served in one turn, before other clients have theirs."""
_ENOUGH: Final = 128 << 10
"""Bytes of replies that are worth a system call."""
_ROOM: Final = 8192
"""Bytes for the reply to a request that does not say how many it wants: Linux gives as many where a path or a stat
comes."""
_SIZE_NBYTES: Final = 4
_COUNT_AT: Final = 19
"""Where Tread and Treaddir have their count, which ends them."""
_COUNTED_NBYTES: Final = 23
_LARGE: Final = 64 << 10
"""A message of that many bytes is received by itself, so that the next one begins where it need not be moved."""

_LEFT: Final = frozenset({0, errno.EPIPE, errno.ECONNRESET})

_NO_SIGNAL: Final = int(socket.MSG_NOSIGNAL)  # an enum's operators cost more than the system call

_unpack_number = struct.Struct("<I").unpack_from

Token: TypeAlias = tuple[Chunk, int, Chunk | None]
"""What a request is known by: where its reply lies, and the chunk that its payload is in, if it has one."""


class Hangup(Exception):  # noqa: N818 (not an error: clients come and go)
    """The connection ends. Its text says why; it is empty if the client has just left."""


def _gone(number: int | None) -> Hangup:
    """Why a socket does not work any more; that its other end is closed is no mishap."""
    return Hangup("" if number in _LEFT else os.strerror(number or 0))


class _Segment:
    """Replies that lie one behind the other."""

    __slots__ = ("begin", "chunk", "end")

    def __init__(self, chunk: Chunk, begin: int, end: int) -> None:
        self.chunk = chunk
        self.begin = begin
        self.end = end


class Connection:
    """One client and its session.

    Args:
        client: A connected stream socket; it belongs to the connection from now on.
        server: Of this client alone; it belongs to the connection as well.
        pool: Where memory comes from, enough for the server's msize.
        peer: Who the client is, for people.
        buffered: Bytes of memory in use beyond which no request is begun.

    Attributes:
        peer: As above.
        server: As above.
        in_flight: How many requests were begun and have not ended.
        greeted: Whether a whole message has come.
        is_ended: Whether the client sends no more.
        held: Bytes of memory in use.
        moved: A reply was taken, at least in part, or a request that waited has ended, since this was last made False.
    """

    def __init__(self, client: socket.socket, server: Server, pool: Pool, peer: str, buffered: int) -> None:
        client.setblocking(False)
        self.peer: Final = peer
        self.server: Final = server
        self.in_flight = 0
        self.greeted = False
        self.is_ended = False
        self.held = 0
        self.moved = False
        self._socket = client
        self._pool = pool
        self._buffered = max(buffered, 4 * server.msize, 4 * CHUNK_NBYTES)
        self._inbox: Chunk | None = None
        self._begin = self._end = 0  # of what has come and was not served
        self._size = 0  # of the message that begins there, if that is known and it is not whole
        self._stopped = False  # whole messages have come and were not served
        self._wanted = CHUNK_NBYTES  # for the next inbox
        self._out: Chunk | None = None  # replies are made in it
        self._at = 0  # where the next one is
        self._outbox: deque[_Segment] = deque()
        self._unsent = 0
        self._current: Token | None = None

    def fileno(self) -> int:
        """Of the socket."""
        return self._socket.fileno()

    @property
    def events(self) -> int:
        """What to wait for, as bits of epoll(7)."""
        if self._outbox:
            return select.EPOLLOUT
        if self.is_ended or self.held > self._buffered:
            return 0
        return select.EPOLLIN

    @property
    def is_throttled(self) -> bool:
        """Whether the connection waits for nothing but its turn at a throttled export."""
        return not self._outbox and self.server.throttled

    @property
    def delay(self) -> str:
        """What the connection waits for."""
        if not self.greeted:
            return "no message has come"
        return "it did not take its replies" if self._outbox else "a driver has not answered"

    def turn(self, events: int) -> bool:
        """Receive, serve, send: whatever is possible now.

        Args:
            events: What epoll(7) tells of the socket; 0: nothing.

        Returns:
            Whether there is more to do at once.

        Raises:
            Hangup: The connection ends.
        """
        if events & (select.EPOLLHUP | select.EPOLLERR):
            raise _gone(self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
        if self._outbox:
            self._send()
        try:
            if self.in_flight or not events:
                self.server.run_pending()
            if events & select.EPOLLIN and not self._stopped and self.events & select.EPOLLIN:
                self._receive()
            self._stopped = self._serve()
        except GuestError as error:  # nothing of 9P can tell the client
            raise Hangup(f"malformed: {error}") from error
        if self._outbox:
            self._send()
        if self._stopped:
            return not self._outbox and self.held <= self._buffered  # else it goes on when that changes
        if self.is_ended and not self._outbox and not self.in_flight:
            raise Hangup
        self._give_idle()
        return False

    # --- in ---

    def _receive(self) -> None:
        """Receive once."""
        inbox = self._inbox
        if inbox is None:
            inbox = self._inbox = self._take(self._wanted)
            self._begin = self._end = self._size = 0
        stop = self._begin + self._size if self._size >= _LARGE else inbox.nbytes
        try:
            nbytes = self._socket.recv_into(inbox.view[self._end : stop])
        except BlockingIOError:
            return
        except OSError as error:
            raise _gone(error.errno) from None
        self.is_ended = not nbytes
        self._end += nbytes

    def _serve(self) -> bool:
        """Hand over what has come, message by message; returns whether it stopped before the last whole one."""
        inbox = self._inbox
        if inbox is None:
            return False
        view, begin, end = inbox.view, self._begin, self._end
        submit, done, msize = self.server.submit, self._done, self.server.msize
        size = 0
        for _ in range(_BATCH):
            if end - begin < _SIZE_NBYTES:
                size = 0
                break
            (size,) = _unpack_number(view, begin)
            if not HEADER_SIZE <= size <= msize:
                raise Hangup(f"malformed: a message whose size says {size}, and msize is {msize}")
            stop = begin + size
            if stop > end:
                break
            self.greeted = True
            if self._unsent >= _ENOUGH:
                self._send()
            if self._unsent >= _ENOUGH or self.held > self._buffered:
                return True
            kind = view[begin + 4]
            room = _ROOM
            if (kind == c.TREAD or kind == c.TREADDIR) and size == _COUNTED_NBYTES:  # noqa: PLR1714  # on every request's way
                room = min(max(_unpack_number(view, begin + _COUNT_AT)[0] + READ_HEADER_SIZE, room), msize)
            out, at = self._out, self._at
            if out is None or at + room > out.nbytes:
                out, at = self._next_out(room), 0
            self._begin = stop
            self._current = token = (out, at, inbox if kind == c.TWRITE else None)
            submit(ViewBuffers([view[begin:stop]]), ViewBuffers([out.view[at : at + room]]), done, token)
            if self._current is token:
                self._park(token, room)
            if kind == c.TVERSION:
                msize = self.server.msize
            begin = stop
        else:
            return True
        self._make_space(inbox, size)
        return False

    def _make_space(self, inbox: Chunk, size: int) -> None:
        """See that the rest of a message finds place behind its beginning.

        Args:
            inbox: Where that is.
            size: Of the message; 0: not even that has come.
        """
        self._size = size
        begin, end = self._begin, self._end
        if begin == end:
            if inbox.users:
                self._inbox = None  # it goes back when the last payload in it is written
            else:
                self._begin = self._end = 0
            return
        need = size or _ROOM
        if begin + need <= inbox.nbytes:
            return
        if need > CHUNK_NBYTES:
            self._wanted = need
        if need <= inbox.nbytes and not inbox.users:
            inbox.view[: end - begin] = inbox.view[begin:end]
        else:
            self._inbox = self._take(need)
            self._inbox.view[: end - begin] = inbox.view[begin:end]
            if not inbox.users:
                self._give(inbox)
        self._begin, self._end = 0, end - begin

    # --- requests that are answered later ---

    def _park(self, token: Token, room: int) -> None:
        """Keep the room for a request's reply, and its payload."""
        out, at, payload = token
        self._current = None
        self._at = at + room
        self.in_flight += 1
        out.users += 1
        if payload is not None:
            payload.users += 1

    def _done(self, token: Token, nbytes: int) -> None:
        """A request has ended: take its reply, if it has one, behind the others."""
        out, at, payload = token
        if self._current is token:
            self._current = None
            self._at = at + nbytes
        else:
            self.moved = True
            self.in_flight -= 1
            out.users -= 1
            if payload is not None:
                payload.users -= 1
                if not payload.users and payload is not self._inbox:
                    self._give(payload)
        if nbytes:
            outbox = self._outbox
            if outbox and outbox[-1].chunk is out and outbox[-1].end == at:
                outbox[-1].end = at + nbytes
            else:
                outbox.append(_Segment(out, at, at + nbytes))
                out.users += 1
            self._unsent += nbytes
        elif not out.users and out is not self._out:
            self._give(out)

    # --- out ---

    def _next_out(self, room: int) -> Chunk:
        """A chunk with room for a reply at its beginning, where the next one is made."""
        out = self._out
        self._at = 0
        if out is not None and not out.users:
            if room <= out.nbytes:
                return out
            self._give(out)
        self._out = None
        self._out = out = self._take(room)
        return out

    def _send(self) -> None:
        """Send what the socket takes."""
        outbox, client = self._outbox, self._socket
        while outbox:
            try:
                if len(outbox) == 1:
                    only = outbox[0]
                    sent = client.send(only.chunk.view[only.begin : only.end], _NO_SIGNAL)
                else:
                    views = [each.chunk.view[each.begin : each.end] for each in islice(outbox, IOV_MAX)]
                    sent = client.sendmsg(views, (), _NO_SIGNAL)
            except BlockingIOError:
                return
            except OSError as error:
                raise _gone(error.errno) from None
            self.moved = True
            self._unsent -= sent
            while outbox:
                first = outbox[0]
                nbytes = first.end - first.begin
                if sent < nbytes:
                    break
                sent -= nbytes
                del outbox[0]
                chunk = first.chunk
                chunk.users -= 1
                if not chunk.users:
                    if chunk is self._out:
                        self._at = 0
                    else:
                        self._give(chunk)
            if sent:
                outbox[0].begin += sent
                return

    # --- memory ---

    def _take(self, nbytes: int) -> Chunk:
        chunk = self._pool.take(nbytes)
        self.held += chunk.nbytes
        return chunk

    def _give(self, chunk: Chunk) -> None:
        self.held -= chunk.nbytes
        self._pool.give(chunk)

    def _give_idle(self) -> None:
        """Give back what the next message need not find."""
        inbox, out = self._inbox, self._out
        if inbox is not None and self._begin == self._end:
            self._inbox = None
            self._give(inbox)
        if out is not None and not out.users:
            self._out = None
            self._give(out)

    # --- the end ---

    def close(self) -> None:
        """End the session, and close the socket.

        What a driver still works on keeps its memory, and `is_settled` is to be asked until it says so; the server is
        closed by whoever does that.
        """
        self._socket.close()
        self.server.reset()
        self._outbox.clear()
        for chunk in (self._inbox, self._out):
            if chunk is not None and not chunk.users:
                self._pool.give(chunk)
        self._inbox = self._out = None
        self.held = 0

    def is_settled(self) -> bool:
        """After `close`: whether no driver works for the client any more; takes what came too late."""
        self.server.run_pending()
        return not self.server.busy
