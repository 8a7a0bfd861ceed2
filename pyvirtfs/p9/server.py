"""The 9P server: requests in, replies out, no I/O of its own (intro(5); diod's protocol.md).

A transport hands over each request as two `Buffers`, the request's bytes and the room for its reply, and is told when
the reply is in place. Nothing here knows where those buffers lie.
"""

from __future__ import annotations

import errno
import functools
import logging
import struct
from typing import TYPE_CHECKING, Any, Final

from pyvirtfs.errors import ConfigError, GuestError, MessageError
from pyvirtfs.fsdev.completion import Completion
from pyvirtfs.p9 import constants as c
from pyvirtfs.p9.constants import HEADER_SIZE, WRITE_HEADER_SIZE
from pyvirtfs.p9.counters import Counters
from pyvirtfs.p9.dialects import DIALECTS
from pyvirtfs.p9.errnos import errno_of, public_errno
from pyvirtfs.p9.limits import MSIZE_LIMIT, Limits
from pyvirtfs.p9.printer import describe
from pyvirtfs.p9.ready import ReadyQueue
from pyvirtfs.p9.requests import ABANDONED, ABORTED, FLUSHED, FOLLOWS, Done, Request
from pyvirtfs.p9.session import Session
from pyvirtfs.p9.steps import Steps

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvirtfs.fsdev.driver import ExportDriver
    from pyvirtfs.memory.buffers import Buffers

_log = logging.getLogger(__name__)

_COPIED_WHOLE: Final = 512
"""Requests of up to that many bytes are copied in one go; of longer ones the head first, to leave out a payload."""

_DEFAULT_LIMITS: Final = Limits()

_unpack_head = struct.Struct("<IBH").unpack_from


class Server:
    """Serves one client of one export.

    All methods belong to one thread, the one whose doorbells they answer. Only the driver's `Completion`s may be
    completed elsewhere; their requests then wait for `run_pending`. So do reads and writes that the driver throttles.

    Args:
        driver: The export. It stays open when the server is closed: several servers may share it.
        msize_limit: The largest message to agree to, in bytes.
        limits: What the client may use.
        trace: Called with a line for every request and every reply.

    Attributes:
        counters: What was done so far.

    Raises:
        ConfigError: `msize_limit` is less than 4096.
    """

    def __init__(
        self,
        driver: ExportDriver[Any, Any],
        *,
        msize_limit: int = MSIZE_LIMIT,
        limits: Limits = _DEFAULT_LIMITS,
        trace: Callable[[str], None] | None = None,
    ) -> None:
        if msize_limit < c.MIN_MSIZE:
            raise ConfigError("msize_limit", f"{msize_limit} is less than {c.MIN_MSIZE}")
        self.counters = Counters()
        self._by_type = self.counters.by_type
        self._trace = trace
        self._session = Session(driver, msize_limit, limits, DIALECTS, self.counters)
        self._in_flight = self._session.in_flight
        self._admission = self._session.admission
        self._by_tag = self._in_flight.by_tag
        self._ready: ReadyQueue[Request] = ReadyQueue()
        self._epoch = 0  # how often all requests were forgotten; a driver or a trace may do that amidst a request
        self._request = Request()  # for the next request; replaced when one keeps it

    # --- requests ---

    def submit(  # noqa: C901  # each branch moved out would be a call more on every request's way
        self, readable: Buffers, writable: Buffers, done: Done, token: Any
    ) -> None:
        """Serve one request, now or, if the driver answers later, in a later `run_pending`.

        Args:
            readable: The request. All of it but the payload of a Twrite is copied once, and checked on the copy.
            writable: Room for the reply.
            done: ``done(token, nbytes)`` is called exactly once, in this call or in a later one: with the bytes of the
                reply that is in place in `writable`, or with 0 for a request that ended without an answer.
            token: Whatever the transport knows the request by.

        Raises:
            GuestError: There is no answer to this: the message is malformed, or there is no room for its reply. `done`
                is never called; the transport needs a reset.
        """
        session = self._session
        total = readable.nbytes
        room = writable.nbytes
        if total < HEADER_SIZE or room < session.error_nbytes:
            raise MessageError(f"a request of {total} bytes with room for {room} bytes of reply")
        data = readable.read(0, total) if total <= _COPIED_WHOLE else _copy(readable, total, session.msize)
        kind, tag, fields = session.decoders[data[4]](data)
        epoch = self._epoch
        if self._trace is not None:
            self._trace(describe(data, session.dialect.vocabulary))
            if self._epoch != epoch:
                return
        operation = session.operations[kind]
        if room > session.msize:  # noqa: PLR1730  # on every request's way, and min() costs three times as much
            room = session.msize
        if room < operation.room:
            raise MessageError(f"room for {room} bytes, {operation.room} needed for a reply to type {kind}")
        self._by_type[kind] += 1
        request = self._request
        request.operation = operation
        request.tag = tag
        request.readable = readable
        request.writable = writable
        request.room = room
        request.payload = 0
        try:
            if self._by_tag and tag in self._by_tag:
                _check_duplicate(kind, tag, fields)
            answer = operation.start(session, request, fields)
            if self._epoch != epoch:
                request.done = done
                request.token = token
                self._give_up(request, answer)
                return
            reply = None if isinstance(answer, Completion) else operation.finish(session, request, answer)
        except GuestError:
            if self._epoch != epoch:
                return
            raise
        except Exception as error:  # noqa: BLE001  # whatever a driver raises, the guest gets an errno
            reply = self._failure(request, error)
        except BaseException:  # Ctrl-C, most likely: nobody takes this request again, so it is answered all the same
            request.done = done
            request.token = token
            if self._epoch == epoch:
                self._answer(request, self._failure(request, OSError(errno.EIO, "interrupted")))
            raise
        if self._epoch != epoch:
            return
        if reply is None:
            request.done = done
            request.token = token
            self._request = Request()
            self._park(request, answer)
            return
        try:  # what `_answer` does; a call less on every request's way
            writable.write(0, reply)
        except OSError as error:
            raise _unwritable(error) from error
        if self._trace is not None:
            self._trace(describe(reply, session.dialect.vocabulary))
            if self._epoch != epoch:
                return
        done(token, len(reply) + request.payload)

    def _answer(self, request: Request, reply: bytes) -> None:
        try:
            request.writable.write(0, reply)
        except OSError as error:
            raise _unwritable(error) from error
        if self._trace is not None:
            epoch = self._epoch
            self._trace(describe(reply, self._session.dialect.vocabulary))
            if self._epoch != epoch:
                return
        request.done(request.token, len(reply) + request.payload)

    def _failure(self, request: Request, error: Exception) -> bytes:
        """The reply for what a driver or a check raised."""
        if not isinstance(error, OSError):
            self._blame(request, error)
        self.counters.errors += 1
        request.payload = 0
        return self._session.dialect.error(request.tag, public_errno(error), request.room)

    def _blame(self, request: Request, error: Exception) -> None:
        message = self._session.dialect.vocabulary.by_type.get(request.operation.number)
        driver, name = type(self._session.driver).__qualname__, message.name if message else "request"
        _log.error("driver %s broke its contract in a %s", driver, name, exc_info=error)

    def _give_up(self, request: Request, answer: Any) -> None:
        """While the driver was called, it had all requests forgotten: nobody wants to know what it answers."""
        if isinstance(answer, Completion):
            self._request = Request()
            self._park(request, answer, forgotten=True)
        elif request.operation.discard is not None:
            try:
                request.operation.discard(self._session, answer)
            except Exception as error:  # noqa: BLE001  # nobody is left to be told
                self._blame(request, error)

    # --- requests that wait ---

    def _park(self, request: Request, answer: Completion[Any], *, forgotten: bool = False) -> None:
        """Keep a request until what it waits for has happened."""
        if answer is FOLLOWS:
            self._in_flight.park(request, None)
        else:
            self._ready.open()
            try:
                answer.on_done(functools.partial(self._ready.put, request))  # may put it there at once
            except RuntimeError as error:  # the driver gave the same completion to another request
                reply = self._failure(request, error)
                if not forgotten:
                    self._answer(request, reply)
                return
            self.counters.deferred += 1
            self._session.use(request)
            self._in_flight.park(request, answer)
        if forgotten:
            self._in_flight.forget(request)
            request.cancel()
        if self._ready:
            self.run_pending()

    def _end(self, request: Request) -> None:
        """End a request that waited, whatever became of it."""
        session = self._session
        operation = request.operation
        completion = request.completion
        fate = request.fate
        epoch = self._epoch
        reply = None
        try:
            value = None if completion is None else completion.result()
            if fate < ABORTED:
                reply = operation.finish(session, request, value)
            elif operation.discard is not None:
                operation.discard(session, value)
        except GuestError:  # its buffers are gone, for example; see `submit`
            self._leave(request)
            if self._epoch == epoch and fate != ABANDONED:
                raise
            return
        except Exception as error:  # noqa: BLE001  # whatever a driver raises, the guest gets an errno
            if fate < ABORTED and not (fate == FLUSHED and errno_of(error) == errno.EINTR):
                reply = self._failure(request, error)
            elif not isinstance(error, OSError):
                self._blame(request, error)
        except BaseException:  # Ctrl-C, most likely: it ends all the same, since nobody comes back to it
            if fate < ABORTED:
                reply = self._failure(request, OSError(errno.EIO, "interrupted"))
            self._leave(request)
            self._told(request, reply, epoch)
            raise
        self._leave(request)
        self._told(request, reply, epoch)

    def _leave(self, request: Request) -> None:
        """Let go of what a parked request used, and of those that waited for it."""
        if request.completion is not None:
            self._session.unuse(request)
        for follower in self._in_flight.ended(request):
            self._ready.put_here(follower)

    def _told(self, request: Request, reply: bytes | None, epoch: int) -> None:
        """Tell the transport how a parked request ended, unless a reset came in between."""
        if self._epoch != epoch:
            return
        fate = request.fate
        if reply is not None:
            self._answer(request, reply)
        elif fate != ABANDONED:
            self.counters.cancelled += 1
            request.done(request.token, 0)

    def run_pending(self) -> int:
        """End the requests that a driver has answered meanwhile, and those that waited for them.

        Before that, the driver is asked for those that were throttled and whose time has come.

        Returns:
            How many those were that ended.

        Raises:
            GuestError: There is no answer to one; see `submit`. The others wait for the next call.
        """
        ready = self._ready
        if self._admission is not None:
            self._admission.run()
        self._session.driver.run_pending()
        ready.clear_signal()
        ended = 0
        while (request := ready.take()) is not None:
            if isinstance(request.completion, Steps) and not request.completion.go_on():
                continue  # its next call waits too
            self._end(request)
            ended += 1
        return ended

    def hush(self) -> None:
        """Make the descriptor of `wakeup_fileno` unreadable without ending anything.

        For a transport that cannot write replies just now and would be woken for nothing again and again. What has
        completed stays until `run_pending` is called, which nothing but a later completion demands from here on.
        """
        self._ready.clear_signal()

    def wakeup_fileno(self) -> int | None:
        """An eventfd that is readable while `run_pending` has work; None as long as no request was ever deferred.

        It is None, too, if the process had no descriptor left by then; nothing is lost, and asking again tries again.
        """
        return self._ready.fileno()

    def next_deadline(self) -> float | None:
        """When `run_pending` is to be called even if nothing happens, on the clock of time.monotonic(); None: never.

        0.0: now. Only an export that is throttled, or has locks to hand over, has something to do at a certain time.
        """
        deadline = self._session.driver.next_deadline()
        if self._admission is None:
            return deadline
        admission = self._admission.deadline()
        return deadline if admission is None else admission if deadline is None else min(deadline, admission)

    @property
    def throttled(self) -> bool:
        """Whether a read or a write waits for its turn at a throttled export."""
        return self._admission is not None and self._admission.deadline() is not None

    # --- the end ---

    def abandon(self) -> None:
        """Forget all requests, as the reset of a queue does; the session stays. `done` is called for none of them.

        What a driver still works on is cancelled but goes on until the driver lets go of it; a transport that must not
        have its buffers touched any more waits until `busy` is 0.
        """
        self._epoch += 1
        abandoned = self._in_flight.abandon()
        self._ready.keep(lambda request: request.completion is not None)
        self.forget_buffers()
        for request in abandoned:
            request.cancel()
        self.run_pending()

    def forget_buffers(self) -> None:
        """Let go of the buffers of the last request."""
        self._request = Request()

    def reset(self) -> None:
        """Forget the session and all requests, as a device reset does; see `abandon`."""
        self.abandon()
        self._session.end()

    def close(self) -> None:
        """Reset, and close the descriptor of `wakeup_fileno`. The driver stays open. Idempotent.

        Requests that a driver still works on may complete at any later time; `run_pending` then gives back what came.
        """
        self.reset()
        self._ready.close()

    # --- what is going on ---

    @property
    def busy(self) -> int:
        """How many requests a driver still works on, those from before a `reset` included."""
        return self._in_flight.held

    @property
    def msize(self) -> int:
        """As negotiated; before that, the limit."""
        return self._session.msize

    @property
    def fids(self) -> int:
        """How many fids there are."""
        return len(self._session.fids)


def _copy(readable: Buffers, total: int, msize: int) -> bytes:
    """A long request's bytes, without the payload if it is a Twrite."""
    head = readable.read(0, WRITE_HEADER_SIZE)
    size, kind, _tag = _unpack_head(head)
    if not HEADER_SIZE <= size <= total:
        raise MessageError(f"a message whose size says {size} in {total} bytes")
    if size > msize:
        raise MessageError(f"a message of {size} bytes although msize is {msize}")
    if kind == c.TWRITE:
        return head
    # What was copied is not copied again: the guest could have changed it.
    return head + readable.read(WRITE_HEADER_SIZE, size - WRITE_HEADER_SIZE) if size > len(head) else head


def _unwritable(error: OSError) -> MessageError:
    return MessageError(f"the reply cannot be written: {error.strerror}")


def _check_duplicate(kind: int, tag: int, fields: tuple[Any, ...]) -> None:
    """A request with the tag of one in flight, which leaves that one alone.

    Raises:
        OSError: EINVAL, unless it is a Tversion, which ends the other one, or a Tflush of its own tag, which does
            nothing.
    """
    if kind != c.TVERSION and not (kind == c.TFLUSH and fields[0] == tag):
        raise OSError(errno.EINVAL, f"tag {tag} is in use")
