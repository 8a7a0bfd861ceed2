"""One request on its way, and those that wait: the table of requests in flight, and who waits for whom (flush(5))."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from pyvirtfs.fsdev.completion import Completion

if TYPE_CHECKING:
    from pyvirtfs.memory.buffers import Buffers
    from pyvirtfs.p9.fids import Fid
    from pyvirtfs.p9.operation import Operation

Done: TypeAlias = Callable[[Any, int], None]
"""``done(token, nbytes)``: a request ended, with a reply of that many bytes or, if 0, without one."""

# What became of a request in flight.
LIVE: Final = 0
FLUSHED: Final = 1
"""The client does not want it any more (Tflush); it may be answered nevertheless."""
ABORTED: Final = 2
"""A Tversion ended its session: it ends without an answer."""
ABANDONED: Final = 3
"""The device was reset: nobody is told that it ends."""

_log = logging.getLogger(__name__)

FOLLOWS: Final[Completion[None]] = Completion()
"""What a request answers that waits for other requests and not for a driver; never completes."""


class Request:
    """One request, from its arrival to its reply.

    It has no constructor arguments: the server uses one object for one request after the other, until one has to wait
    and keeps it. So an attribute that neither the server nor the operation's `start` has set is not to be relied on.

    Attributes:
        operation: What it asks for.
        tag: 16 bits, the client's.
        readable: The request's bytes.
        writable: Room for the reply.
        room: Bytes that the reply may take: the smaller of `writable` and msize.
        done: To be called at its end, with `token`; both are set for those that wait.
        payload: Bytes of the reply that are in place already, behind the head that the operation's `finish` returns.
        fid: The fid that it uses; set by the `start` of every operation that calls the driver.
        other: A second one, for operations with `two_fids`.
        newfid: The number that it will give to a new fid, for operations with `makes_fid`.
        reserved: Where that number is kept for it while it waits: the numbers of its own session, not of a later one.
        context: What the operation's `start` has to tell its `finish`, if anything.
        completion: What it waits for, once it is parked.
        fate: `LIVE`, `FLUSHED`, `ABORTED` or `ABANDONED`.
        wanted: The driver was not told to cancel it.
        waiting: How many other requests must end before it does.
        followers: Requests that wait for it.
    """

    __slots__ = (
        "completion",
        "context",
        "done",
        "fate",
        "fid",
        "followers",
        "newfid",
        "operation",
        "other",
        "payload",
        "readable",
        "reserved",
        "room",
        "tag",
        "token",
        "waiting",
        "wanted",
        "writable",
    )

    def cancel(self) -> None:
        """Tell the driver, if it is one that works on this request, that nobody waits for its answer any more; once."""
        if self.completion is not None and self.wanted:
            self.wanted = False
            try:
                self.completion.cancel()
            except Exception:  # noqa: BLE001  # a driver's bug must not end the request that cancels
                _log.exception("a driver failed to cancel a request")

    operation: Operation
    tag: int
    readable: Buffers
    writable: Buffers
    room: int
    done: Done
    token: Any
    payload: int
    fid: Fid
    other: Fid
    newfid: int
    reserved: set[int]
    context: Any
    completion: Completion[Any] | None
    fate: int
    wanted: bool
    waiting: int
    followers: list[Request]


class InFlight:
    """The requests that were not answered at once.

    Invariants: a request is in here from `park` to `ended`, unless a device reset forgot it; it is in the `followers`
    of exactly `waiting` requests that have not ended.

    Attributes:
        by_tag: The requests, by tag; of two with the same tag the later one, which is a Tversion that ends the other.
        parked: All of them, in the order in which they came.
        held: How many a driver still works on, those that a reset forgot included.
    """

    __slots__ = ("by_tag", "held", "parked")

    def __init__(self) -> None:
        self.by_tag: dict[int, Request] = {}
        self.parked: dict[Request, None] = {}
        self.held = 0

    def park(self, request: Request, completion: Completion[Any] | None) -> None:
        """Put a request in, with what it waits for or, if `follow` was called for it, None.

        One with the same tag, which a Tversion has aborted, goes out of `by_tag` but stays in flight.
        """
        request.completion = completion
        request.fate = LIVE
        request.wanted = True
        request.followers = []
        if completion is not None:
            request.waiting = 0
            self.held += 1
        self.by_tag[request.tag] = request
        self.parked[request] = None

    def follow(self, request: Request, targets: list[Request]) -> None:
        """Let a request wait until others (at least one) have ended."""
        request.waiting = len(targets)
        for target in targets:
            target.followers.append(request)

    def ended(self, request: Request) -> list[Request]:
        """Take a request out.

        Returns:
            Those that waited for it and for nothing else any more, in the order in which they came.
        """
        if request.completion is not None:
            self.held -= 1
        self._take_out(request)
        free = []
        for follower in request.followers:
            follower.waiting -= 1
            if not follower.waiting:
                free.append(follower)
        return free

    def _take_out(self, request: Request) -> None:
        self.parked.pop(request, None)  # a reset may have forgotten it
        if self.by_tag.get(request.tag) is request:
            del self.by_tag[request.tag]

    def abort(self) -> list[Request]:
        """Nobody wants an answer to any of these requests: a Tversion ends their session. They stay in flight.

        Returns:
            All of them.
        """
        aborted = list(self.parked)
        for request in aborted:
            request.fate = ABORTED
        return aborted

    def abandon(self) -> list[Request]:
        """Forget all requests: the device or its queue was reset.

        Returns:
            Those that a driver still works on; nothing follows them.
        """
        abandoned = [request for request in self.parked if request.completion is not None]
        for request in abandoned:
            request.fate = ABANDONED
            request.followers = []
        self.by_tag.clear()
        self.parked.clear()
        return abandoned

    def forget(self, request: Request) -> None:
        """Forget one request, which was parked after the reset that it belongs before."""
        request.fate = ABANDONED
        self._take_out(request)
