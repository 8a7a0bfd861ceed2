"""What a server knows about one message type."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from pyvirtfs.p9 import codec
from pyvirtfs.p9.error_replies import LINUX_NBYTES

if TYPE_CHECKING:
    from pyvirtfs.p9.requests import Request
    from pyvirtfs.p9.session import Session

ERROR_NBYTES: Final = LINUX_NBYTES
"""What every reply must have room for. Where an error needs more, its `Dialect` says so."""

NO_TYPE: Final = -1
"""The number of an operation that stands for many types."""

Start: TypeAlias = Callable[["Session", "Request", tuple[Any, ...]], Any]
"""``start(session, request, fields)``: check the request and call the driver; returns what the driver answers.

It checks names, then flags, then fids, then their state, and only then calls. It raises OSError for what ends in an
error, MessageError for what has no answer, and has changed nothing then.
"""

Finish: TypeAlias = Callable[["Session", "Request", Any], bytes]
"""``finish(session, request, value)``: change the session as the driver's answer demands; returns the encoded reply."""

Discard: TypeAlias = Callable[["Session", Any], None]
"""``discard(session, value)``: give back what came for a request that nobody wants any more."""


class Operation:
    """One message type, in two steps that may be apart in time.

    Args:
        number: The request's type; that of its reply is one more.
        start: Up to the driver's call.
        finish: From the driver's answer to the reply.
        discard: Instead of `finish`, when the answer comes too late; needed where an answer holds handles.
        room: Bytes that the largest reply of fixed size needs; by default what the codec knows.
        two_fids: It uses two fids.
        makes_fid: It makes a new fid, whose number must be kept for it; if that is its fid's own, see `claims`.
        claims: It changes what its fid is; while it waits, no second request may.
        removes: When it waits, its fid is gone already.
    """

    __slots__ = ("claims", "discard", "finish", "makes_fid", "number", "removes", "room", "start", "two_fids")

    def __init__(
        self,
        number: int,
        start: Start,
        finish: Finish,
        *,
        discard: Discard | None = None,
        room: int | None = None,
        two_fids: bool = False,
        makes_fid: bool = False,
        claims: bool = False,
        removes: bool = False,
    ) -> None:
        self.number = number
        self.start = start
        self.finish = finish
        self.discard = discard
        self.two_fids = two_fids
        self.makes_fid = makes_fid
        self.claims = claims
        self.removes = removes
        self.room = max(ERROR_NBYTES, _reply_nbytes(number) if room is None else room)


def _reply_nbytes(number: int) -> int:
    """The size of the reply to a request if that is the same for all of them, else 0. No dialects differ in that."""
    return codec.LINUX.fixed_size(number + 1) or codec.UNIX.fixed_size(number + 1) or 0


def refusal(code: int, reason: str) -> Operation:
    """An operation that always fails.

    Args:
        code: The errno of its answer.
        reason: For people.
    """

    def start(_session: Session, _request: Request, _fields: tuple[Any, ...]) -> Any:
        raise OSError(code, reason)

    def finish(_session: Session, _request: Request, _value: Any) -> bytes:
        raise OSError(code, reason)

    return Operation(NO_TYPE, start, finish, room=ERROR_NBYTES)
