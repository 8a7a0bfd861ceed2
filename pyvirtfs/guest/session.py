"""A 9P2000.L session over a channel: the calls of `pyvirtfs.p9.client`, carried by descriptor chains.

This is the layer between files (`pyvirtfs.guest.files`) and the virtqueue (`pyvirtfs.guest.channel`). `Session.run` is
a remote procedure call; `Session.start` and `Session.finish` are its halves, so that many calls can be in flight.
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

from pyvirtfs.errors import DeviceError
from pyvirtfs.guest.channel import Channel, Request
from pyvirtfs.guest.dma import DmaBuffer
from pyvirtfs.p9 import constants as c
from pyvirtfs.p9.call import Call
from pyvirtfs.p9.client import DEFAULT_MSIZE, Client
from pyvirtfs.p9.results import DirectoryEntry, Qid

T = TypeVar("T")

MAX_MSIZE = 4096 * (128 - 3)
"""The most that the Linux transport can carry: a scatter list of 128 pages."""


class Sent(Generic[T]):
    """A call that is with the device; `Session.finish` ends it."""

    __slots__ = ("call", "lent", "request")

    def __init__(self, call: Call[T], request: Request, lent: DmaBuffer | None) -> None:
        self.call = call
        self.request = request
        self.lent = lent
        """Where the payload of the reply goes, if not into the reply's own buffer."""

    @property
    def done(self) -> bool:
        """Whether the device has given it back."""
        return self.request.done


class Session:
    """The client's side of a 9P2000.L session.

    Args:
        channel: Carries the messages.
        msize: The largest message that the client wants; the server may lower it.

    Raises:
        OSError: EREMOTEIO if the server does not speak 9P2000.L, as Linux has it.
    """

    def __init__(self, channel: Channel, *, msize: int = DEFAULT_MSIZE) -> None:
        self.channel = channel
        channel.epoch += 1
        self._epoch = channel.epoch
        self.client = Client(min(msize, MAX_MSIZE))
        """Makes the calls that `run` and `start` take."""
        self.counts: Counter[str] = Counter()
        """How often each message was sent, by name."""
        self.run(self.client.version())

    @property
    def msize(self) -> int:
        """The largest message, in bytes."""
        return self.client.msize

    @property
    def max_io(self) -> int:
        """The largest payload of one message: msize - 24."""
        return self.client.max_payload

    # --- calls ---

    def start(
        self, call: Call[T], *, lent: DmaBuffer | None = None, nbytes: int | None = None, kick: bool = True
    ) -> Sent[T]:
        """Send a call's request without waiting for its reply.

        Args:
            call: From `client`.
            lent: Guest RAM with the payload of a Twrite (made with a `count` and no data), or for that of an Rread or
                Rreaddir.
            nbytes: How much of it; the call's count if None.
            kick: See `Channel.submit`.

        Raises:
            OSError: ENAMETOOLONG, if the request exceeds msize, for which only names and targets can be the reason.
            DeviceError: If the session is over, or see `Channel.submit`.
        """
        if self.channel.epoch != self._epoch:
            raise DeviceError("the session is over: the device was reset or mounted anew")
        if len(call.request) + len(call.payload) > self.client.msize:
            call.cancel()
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        self.counts[call.name] += 1
        room = self.msize if self.channel.shapes.msize_replies else call.reply_size
        if lent is None:
            request = self.channel.submit(call.request + bytes(call.payload), room, kick=kick)
            return Sent(call, request, None)
        ranges = lent.slice(0, call.fields["count"] if nbytes is None else nbytes)
        if call.name == "Twrite":
            return Sent(call, self.channel.submit(call.request, room, lent_out=ranges, kick=kick), None)
        return Sent(call, self.channel.submit(call.request, c.READ_HEADER_SIZE, lent_in=ranges, kick=kick), lent)

    def finish(self, sent: Sent[T], timeout: float | None = None) -> T:
        """Wait for the reply of a call; returns its result.

        Raises:
            OSError: The error that the server answered; EINTR if the call was flushed and got no answer.
            DeviceError: If the reply is wrong, or see `Channel.wait`.
        """
        request = self.channel.wait(sent.request, timeout)
        reply, nbytes = request.reply(), request.nbytes or 0
        self.channel.retire(request)
        if sent.lent is None or not reply:
            sent.call.feed(reply)
        else:
            sent.call.feed(reply, sent.lent.peek(max(nbytes - len(reply), 0)))
        return sent.call.result()

    def run(self, call: Call[T]) -> T:
        """Send a call's request and wait for its reply: `start`, then `finish`. Raises what they raise."""
        return self.finish(self.start(call))

    def call(self, name: str, /, **fields: Any) -> dict[str, Any]:
        """Any message, as it is: its fields by name, and the fields of the reply. Raises what `run` raises."""
        return self.run(self.client.request(name, **fields))

    def flush(self, sent: Sent[Any]) -> None:
        """Ask the server to forget a call, and wait until it has (Tflush); `finish` then tells how the call ended."""
        self.run(self.client.flush(sent.call))

    # --- fids ---

    def attach(self, *, uname: bytes = b"", uid: int = c.NONUNAME) -> int:
        """A fid for the root of the export, as user `uid`. Raises OSError."""
        call = self.client.attach(uname=uname, uid=uid)
        self.run(call)
        return call.fid

    def walk(self, fid: int, names: Sequence[bytes] = ()) -> int:
        """A new fid for what `names` lead to from `fid`; none: for the same object.

        Raises:
            OSError: ENOENT also for a walk that got only part of the way, as Linux has it.
        """
        newfid, qids = self.try_walk(fid, names)
        if len(qids) < len(names):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return newfid

    def try_walk(self, fid: int, names: Sequence[bytes]) -> tuple[int, tuple[Qid, ...]]:
        """Walk up to 16 names; returns a new fid and a qid per name that was found.

        If not all names were found, the fid means nothing and is not in use.

        Raises:
            OSError: The first name was not found.
            DeviceError: Likewise, but the server does not say so.
        """
        call = self.client.walk(fid, names)
        qids = self.run(call)
        if names and not qids:
            raise DeviceError("Rwalk: no name was found, and no error is told (walk(5))")
        return call.fid, qids

    def clunk(self, fid: int) -> None:
        """Give a fid up; it is gone also if this raises OSError."""
        self.run(self.client.clunk(fid))

    # --- payloads that are lent to the device ---

    def read_lent(self, fid: int, offset: int, nbytes: int, lent: DmaBuffer) -> int:
        """A Tread whose payload goes straight into guest RAM; returns its bytes. Raises OSError."""
        return len(self.finish(self.start(self.client.read(fid, offset, nbytes), lent=lent)))

    def readdir_lent(self, fid: int, offset: int, nbytes: int, lent: DmaBuffer) -> list[DirectoryEntry]:
        """A Treaddir whose payload goes straight into guest RAM; returns the entries. Raises OSError."""
        return self.finish(self.start(self.client.readdir(fid, offset, nbytes), lent=lent))

    def write_lent(self, fid: int, offset: int, nbytes: int, lent: DmaBuffer) -> int:
        """A Twrite whose payload is taken straight from guest RAM; returns the bytes written. Raises OSError."""
        call = self.client.request("Twrite", fid=fid, offset=offset, count=nbytes)
        return int(self.finish(self.start(call, lent=lent))["count"])
