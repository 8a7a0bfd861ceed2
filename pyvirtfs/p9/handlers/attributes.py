"""Tgetattr, Tsetattr, Tstatfs (protocol.md): what is known of files."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, Final

from pyvirtfs.fsdev.driver import NOW, Attributes, Qid, SetAttributes, StatFs
from pyvirtfs.p9 import constants as c
from pyvirtfs.p9.codec import encoder
from pyvirtfs.p9.operation import Operation

if TYPE_CHECKING:
    from pyvirtfs.p9.requests import Request
    from pyvirtfs.p9.session import Session

_BASIC = c.GETATTR_BASIC
_BTIME = c.GETATTR_BTIME
_UINT32_MAX: Final = 0xFFFFFFFF
_SIZE_MAX: Final = (1 << 63) - 1
_NSEC_PER_SEC: Final = 10**9
_NOTHING: Final = 0xFFFFFFFF  # as uid or gid: chown(2)'s -1
_SET_BITS: Final = 0x1FF

_rgetattr = encoder(c.RGETATTR)
_rsetattr = encoder(c.RSETATTR)
_rstatfs = encoder(c.RSTATFS)

Fields = tuple[Any, ...]


# --- Tgetattr ---


def start_getattr(session: Session, request: Request, fields: Fields) -> Any:
    """Ask for the attributes of any fid's object."""
    number, request.context = fields
    fid = session.table.get(number)
    if fid is None:
        fid = session.fids.find(number)
    node = fid.node
    if node is None:
        node = fid.require_node()
    request.fid = fid
    return session.driver.getattr(node)


def finish_getattr(session: Session, request: Request, value: tuple[Qid, Attributes]) -> bytes:
    """Rgetattr: everything that stat(2) tells, and the time of birth if it was asked for and is known."""
    qid, attributes = value
    (
        nlink,
        uid,
        gid,
        mode,
        _ino,
        size,
        blocks,
        atime_sec,
        atime_nsec,
        btime_sec,
        btime_nsec,
        ctime_sec,
        ctime_nsec,
        mtime_sec,
        mtime_nsec,
        major,
        minor,
        _dev_major,
        _dev_minor,
    ) = attributes
    valid = _BASIC
    if request.context & _BTIME and (btime_sec or btime_nsec):
        valid |= _BTIME
    else:
        btime_sec = btime_nsec = 0
    return _rgetattr(
        request.tag,
        valid,
        qid,
        mode,
        uid,
        gid,
        nlink,
        encode_device(major, minor) if major or minor else 0,
        size,
        session.iounit,
        blocks,
        atime_sec,
        atime_nsec,
        mtime_sec,
        mtime_nsec,
        ctime_sec,
        ctime_nsec,
        btime_sec,
        btime_nsec,
        0,  # gen
        0,  # data_version
    )


def encode_device(major: int, minor: int) -> int:
    """The device number of rdev as Linux encodes it towards users (new_encode_dev, widened)."""
    return (minor & 0xFF) | major << 8 | (minor & ~0xFF) << 12


# --- Tsetattr ---


def start_setattr(session: Session, request: Request, fields: Fields) -> Any:
    """Change attributes of any fid's object, open, unopened or unlinked."""
    number, valid, mode, uid, gid, size, atime_sec, atime_nsec, mtime_sec, mtime_nsec = fields
    changes = SetAttributes(
        mode=mode & 0o7777 if valid & c.SETATTR_MODE else None,
        uid=uid if valid & c.SETATTR_UID and uid != _NOTHING else None,
        gid=gid if valid & c.SETATTR_GID and gid != _NOTHING else None,
        size=size if valid & c.SETATTR_SIZE else None,
        atime_ns=_time(valid & c.SETATTR_ATIME, valid & c.SETATTR_ATIME_SET, atime_sec, atime_nsec),
        mtime_ns=_time(valid & c.SETATTR_MTIME, valid & c.SETATTR_MTIME_SET, mtime_sec, mtime_nsec),
        touch_ctime=valid & _SET_BITS == c.SETATTR_CTIME,
    )
    if changes.size is not None and size > _SIZE_MAX:
        raise OSError(errno.EINVAL, f"no file has {size} bytes")
    fid = session.fids.find(number, errno.EINVAL)
    node = fid.require_node()
    request.fid = fid
    return session.driver.setattr(node, changes, fid.uid)


def _time(wanted: int, given: int, sec: int, nsec: int) -> int | None:
    """What `SetAttributes` says for one of the two times."""
    if not wanted:
        return None
    if not given:
        return NOW
    if nsec >= _NSEC_PER_SEC:
        raise OSError(errno.EINVAL, f"a second does not have {nsec} nanoseconds")
    return sec * _NSEC_PER_SEC + nsec


def finish_setattr(_session: Session, request: Request, _value: None) -> bytes:
    """Rsetattr."""
    return _rsetattr(request.tag)


# --- Tstatfs ---


def start_statfs(session: Session, request: Request, fields: Fields) -> Any:
    """Ask for the file system that any fid's object lies on."""
    fid = session.fids.find(fields[0])
    node = fid.require_node()
    request.fid = fid
    return session.driver.statfs(node)


def finish_statfs(_session: Session, request: Request, value: StatFs) -> bytes:
    """Rstatfs, in the blocks of the file system, so that no figure is rounded.

    The best size of a transfer is iounit and blksize of Rgetattr, which need not divide the size of a small export.
    """
    return _rstatfs(
        request.tag,
        value.type & _UINT32_MAX,
        min(max(value.bsize, 0), _UINT32_MAX),
        value.blocks,
        value.bfree,
        value.bavail,
        value.files,
        value.ffree,
        value.fsid,
        value.namelen,
    )


OPERATIONS: Final = (
    Operation(c.TGETATTR, start_getattr, finish_getattr),
    Operation(c.TSETATTR, start_setattr, finish_setattr),
    Operation(c.TSTATFS, start_statfs, finish_statfs),
)
