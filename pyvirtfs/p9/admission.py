"""Admission: the reads and writes of a session that a throttled export lets wait, in order, before the driver is asked.

They wait as requests do that a driver answers later: the client can flush them, clunk their fid, end the session. What
the server waits for is a `Completion` from here. It outlives the wait: a driver that is asked at last may take its time
as well.
"""

from __future__ import annotations

import errno
import functools
import logging
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from pyvirtfs.fsdev.completion import Completion
from pyvirtfs.fsdev.throttling import READ, WRITE, Lane, Throttle, Ticket
from pyvirtfs.p9 import constants as c
from pyvirtfs.p9.constants import READ_HEADER_SIZE, WRITE_HEADER_SIZE
from pyvirtfs.p9.fids import FILE
from pyvirtfs.p9.handlers.content import OFFSET_MAX
from pyvirtfs.p9.operation import Operation, Start

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvirtfs.memory.buffers import Buffers
    from pyvirtfs.p9.requests import Request
    from pyvirtfs.p9.session import Session

Fields: TypeAlias = tuple[Any, ...]

_log: Final = logging.getLogger(__name__)


class Waiting(Completion[Any]):
    """The answer to a request that waits: first for its turn, then, perhaps, for the driver.

    Args:
        ticket: Its place in the queue.
        queue: What it leaves when it is cancelled.
        call: Asks the driver.
    """

    __slots__ = ("_call", "_driver", "_queue", "_wanted", "ticket")

    def __init__(self, ticket: Ticket, queue: Queue, call: Callable[[], Any]) -> None:
        super().__init__()
        self.ticket = ticket
        self._queue = queue
        self._call: Callable[[], Any] | None = call
        self._driver: Completion[Any] | None = None
        self._wanted = True

    def cancel(self) -> None:
        """End it at once if the driver was not asked yet; otherwise that is for the driver to decide."""
        if self._call is not None:
            self._call = None
            self._queue.leave(self)
            self.set_error(InterruptedError(errno.EINTR, "cancelled before its turn came"))
        elif self._driver is not None:
            self._driver.cancel()
        else:  # the driver is being asked just now
            self._wanted = False

    def go(self) -> None:
        """Ask the driver. The queue has let it go."""
        call, self._call = self._call, None
        if call is None:
            return
        try:
            answer = call()
            if isinstance(answer, Completion):
                answer.on_done(self._forward)
        except Exception as error:  # noqa: BLE001  # whatever a driver raises is the server's to sort
            self._finish_with(error)
        except BaseException:  # Ctrl-C, most likely: nobody asks again, so it is answered all the same
            self._finish_with(OSError(errno.EIO, "interrupted"))
            raise
        else:
            if not isinstance(answer, Completion):
                self.set_result(answer)
                return
            self._driver = answer
            if not self._wanted:
                try:
                    answer.cancel()
                except Exception:  # noqa: BLE001  # a driver's bug must not harm those that wait behind this one
                    _log.exception("a driver failed to cancel a request")

    def _forward(self, answer: Completion[Any]) -> None:
        """The driver has answered; in whatever thread."""
        try:
            result = answer.result()
        except Exception as error:  # noqa: BLE001  # as above
            self._finish_with(error)
        else:
            self.set_result(result)

    def _finish_with(self, error: Exception) -> None:
        self.set_error(error)  # type: ignore[arg-type]  # a driver's mistakes reach the server that way


class Queue:
    """The requests of one direction, from their arrival until the driver is asked.

    Args:
        throttle: The export's.
        direction: `READ` or `WRITE`.
    """

    __slots__ = ("_lane", "_throttle", "waiting")

    def __init__(self, throttle: Throttle, direction: int) -> None:
        self._throttle = throttle
        self._lane = Lane(direction)
        self.waiting: deque[Waiting] = deque()

    def admit(self, call: Callable[[Any, int, Buffers], Any], file: Any, offset: int, buffers: Buffers) -> Any:
        """What the driver answers, or that it will be asked later."""
        ticket = self._throttle.enter(self._lane, buffers.nbytes, time.monotonic())
        if ticket.passed and not self.waiting:
            return call(file, offset, buffers)
        waiting = Waiting(ticket, self, functools.partial(call, file, offset, buffers))
        self.waiting.append(waiting)
        return waiting

    def leave(self, waiting: Waiting) -> None:
        """One is not wanted any more."""
        self.waiting.remove(waiting)
        self._throttle.leave(self._lane, waiting.ticket)

    def run(self) -> None:
        """Ask the driver for those whose turn has come."""
        queue = self.waiting
        while queue and queue[0].ticket.passed:
            queue.popleft().go()

    def deadline(self) -> float | None:
        """When the first one's turn comes, 0.0: it has come; None: there is none."""
        if not self.waiting:
            return None
        return 0.0 if self.waiting[0].ticket.passed else self._throttle.due(self._lane.direction)


class Admission:
    """The queues of one session.

    Args:
        throttle: The export's; other sessions may share it.
    """

    __slots__ = ("_queues", "_throttle", "read", "write")

    def __init__(self, throttle: Throttle) -> None:
        self._throttle = throttle
        self.read: Final = Queue(throttle, READ)
        self.write: Final = Queue(throttle, WRITE)
        self._queues: Final = (self.read, self.write)

    def limit(self, operations: list[Operation]) -> None:
        """Put the throttled Tread and Twrite into a table of operations, where the export limits them."""
        for number, direction, start in (
            (c.TREAD, READ, functools.partial(_start_read, self.read)),
            (c.TWRITE, WRITE, functools.partial(_start_write, self.write)),
        ):
            plain = operations[number]
            if self._throttle.limits(direction) and plain.number == number:
                operations[number] = Operation(
                    number, functools.partial(start, plain.start), plain.finish, discard=plain.discard, room=plain.room
                )

    def run(self) -> None:
        """Ask the driver for all whose turn has come; their completions complete, now or later."""
        if self.read.waiting or self.write.waiting:
            self._throttle.advance(time.monotonic())
            for queue in self._queues:
                queue.run()

    def deadline(self) -> float | None:
        """When to call `run` again, as time.monotonic(); 0.0: now; None: nothing waits."""
        times = [at for queue in self._queues if (at := queue.deadline()) is not None]
        return min(times, default=None)


def _start_read(queue: Queue, plain: Start, session: Session, request: Request, fields: Fields) -> Any:
    """A Tread; one that is not for a file's content, or fails, is nothing to wait for."""
    number, offset, count = fields
    fid = session.table.get(number)
    count = min(count, request.room - READ_HEADER_SIZE)
    if fid is None or fid.kind != FILE or offset + count > OFFSET_MAX:
        return plain(session, request, fields)
    request.fid = fid
    request.context = count
    return queue.admit(session.driver.read, fid.file, offset, request.writable.slice(READ_HEADER_SIZE, count))


def _start_write(queue: Queue, plain: Start, session: Session, request: Request, fields: Fields) -> Any:
    """A Twrite; as above."""
    number, offset, count = fields
    fid = session.table.get(number)
    end = WRITE_HEADER_SIZE + count
    if fid is None or fid.kind != FILE or offset + count > OFFSET_MAX or end > request.readable.nbytes:
        return plain(session, request, fields)
    request.fid = fid
    request.context = count
    return queue.admit(session.driver.write, fid.file, offset, request.readable.slice(WRITE_HEADER_SIZE, count))
