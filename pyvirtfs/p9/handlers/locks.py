"""Tlock, Tgetlock (protocol.md): byte-range locks, as fcntl(2) has them. The driver decides; a fid holds them."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, Final

from pyvirtfs.fsdev.driver import Lock
from pyvirtfs.p9 import constants as c
from pyvirtfs.p9.codec import encoder
from pyvirtfs.p9.limits import CLIENT_ID_MAX
from pyvirtfs.p9.operation import Operation

if TYPE_CHECKING:
    from pyvirtfs.p9.requests import Request
    from pyvirtfs.p9.session import Session

_END_MAX: Final = 1 << 63
_GETLOCK_HEADER_SIZE: Final = 30
"""Bytes of an Rgetlock before its client_id."""

_rlock = encoder(c.RLOCK)
_rgetlock = encoder(c.RGETLOCK)

Fields = tuple[Any, ...]


def _range_end(start: int, length: int) -> int | None:
    """First byte behind a range; length 0 means to the end of the file."""
    end = start + length
    if end > _END_MAX or start >= _END_MAX:
        raise OSError(errno.EINVAL, f"no file has the range from {start} to {end}")
    return end if length else None


def _check_client_id(client_id: bytes) -> None:
    """Refuse a name that no client has (ENAMETOOLONG): the driver keeps one with every range."""
    if len(client_id) > CLIENT_ID_MAX:
        raise OSError(errno.ENAMETOOLONG, f"a client_id of {len(client_id)} bytes")


def start_lock(session: Session, request: Request, fields: Fields) -> Any:
    """Take or release a lock. A client that wants to wait for somebody else is told BLOCKED, and asks again."""
    number, kind, flags, start, length, proc_id, client_id = fields
    _check_client_id(client_id)
    if flags & ~c.LOCK_FLAGS_BLOCK:
        raise OSError(errno.EINVAL, f"lock flags {flags:#x}")
    if kind > c.LOCK_TYPE_UNLCK:
        raise OSError(errno.EINVAL, f"lock type {kind}")
    wait = flags == c.LOCK_FLAGS_BLOCK
    lock = Lock(kind == c.LOCK_TYPE_WRLCK, start, _range_end(start, length), proc_id, client_id, wait)
    fid = session.fids.find(number)
    node = fid.require_node()
    holder = session.lock_holder(fid)
    request.fid = fid
    if kind == c.LOCK_TYPE_UNLCK:
        return session.driver.unlock(node, lock, holder)
    return session.driver.lock(node, lock, holder)


def finish_lock(_session: Session, request: Request, granted: bool | None) -> bytes:
    """Rlock. `granted` is None for a lock that was released."""
    return _rlock(request.tag, c.LOCK_BLOCKED if granted is False else c.LOCK_SUCCESS)


def start_getlock(session: Session, request: Request, fields: Fields) -> Any:
    """Ask for a lock that stands in the way; of a write lock if the type is UNLCK, as Linux always has it."""
    number, kind, start, length, proc_id, client_id = fields
    _check_client_id(client_id)
    if kind > c.LOCK_TYPE_UNLCK:
        raise OSError(errno.EINVAL, f"lock type {kind}")
    lock = Lock(kind != c.LOCK_TYPE_RDLCK, start, _range_end(start, length), proc_id, client_id)
    fid = session.fids.find(number)
    node = fid.require_node()
    request.fid = fid
    request.context = fields
    return session.driver.getlock(node, lock, session.lock_holder(fid))


def finish_getlock(_session: Session, request: Request, found: Lock | None) -> bytes:
    """Rgetlock: that lock, or the request's own range with the type UNLCK."""
    if found is None:
        _number, _kind, start, length, proc_id, client_id = request.context
        kind = c.LOCK_TYPE_UNLCK
    else:
        exclusive, start, end, proc_id, client_id, _ = found
        kind = c.LOCK_TYPE_WRLCK if exclusive else c.LOCK_TYPE_RDLCK
        length = 0 if end is None else end - start
    if _GETLOCK_HEADER_SIZE + len(client_id) > request.room:
        raise OSError(errno.EMSGSIZE, f"no room for a client_id of {len(client_id)} bytes")
    return _rgetlock(request.tag, kind, start, length, proc_id, client_id)


OPERATIONS: Final = (
    Operation(c.TLOCK, start_lock, finish_lock),
    Operation(c.TGETLOCK, start_getlock, finish_getlock),
)
