"""Tversion, Tflush: requests about the session and about other requests (version(5), flush(5))."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from pyvirtfs.p9 import constants as c
from pyvirtfs.p9.codec import encoder
from pyvirtfs.p9.operation import Operation
from pyvirtfs.p9.requests import FLUSHED, FOLLOWS, LIVE, Request

if TYPE_CHECKING:
    from pyvirtfs.p9.session import Session

_rversion = encoder(c.RVERSION)
_rflush = encoder(c.RFLUSH)
_VERSION_ROOM: Final = 13 + len(c.VERSION_9P2000_L)

Fields = tuple[Any, ...]


def start_version(session: Session, request: Request, fields: Fields) -> Any:
    """End the session, whatever the answer will be, and start another.

    Requests in flight are cancelled and end without an answer; Rversion comes when the driver has let go of their
    buffers, as Rflush would.
    """
    aborted = session.in_flight.abort()
    session.end()
    for other in aborted:
        other.cancel()
    request.context = session.negotiate(*fields)
    if not aborted:
        return None
    session.in_flight.follow(request, aborted)
    return FOLLOWS


def finish_version(session: Session, request: Request, _value: None) -> bytes:
    """Rversion."""
    msize, dialect = request.context
    if dialect is None:
        return _rversion(request.tag, msize, c.VERSION_UNKNOWN)
    session.begin(msize, dialect)
    return _rversion(request.tag, msize, dialect.name)


def start_flush(session: Session, request: Request, fields: Fields) -> Any:
    """Cancel another request and wait until it has ended; no wait if there is none with that tag."""
    old_tag = fields[0]
    old = session.in_flight.by_tag.get(old_tag)
    if old is None or old_tag == request.tag:
        return None
    if old.fate == LIVE:
        old.fate = FLUSHED
    old.cancel()
    session.in_flight.follow(request, [old])
    return FOLLOWS


def finish_flush(_session: Session, request: Request, _value: None) -> bytes:
    """Rflush."""
    return _rflush(request.tag)


OPERATIONS: Final = (
    Operation(c.TVERSION, start_version, finish_version, room=_VERSION_ROOM),
    Operation(c.TFLUSH, start_flush, finish_flush),
)
