"""Tlopen, Tlcreate, Tread, Twrite, Tfsync: what is in files (protocol.md; open(5), read(5))."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any, Final

from pyvirtfs.errors import MessageError
from pyvirtfs.fsdev.driver import QID_DIRECTORY, Qid
from pyvirtfs.p9 import constants as c
from pyvirtfs.p9.codec import encoder
from pyvirtfs.p9.constants import READ_HEADER_SIZE, WRITE_HEADER_SIZE
from pyvirtfs.p9.fids import FILE, FOLDER, XATTR_READ, XATTR_WRITE, Fid, XattrWrite
from pyvirtfs.p9.flags import to_host
from pyvirtfs.p9.names import check_new_name
from pyvirtfs.p9.operation import Operation
from pyvirtfs.p9.readonly import check_open

if TYPE_CHECKING:
    from pyvirtfs.p9.requests import Request
    from pyvirtfs.p9.session import Session

OFFSET_MAX: Final = (1 << 63) - 1
"""The largest position in a file (off_t)."""

_FOLDER_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY
_OPEN_UNUSED: Final = os.O_EXCL | os.O_NONBLOCK | os.O_NOFOLLOW
"""Flags without a meaning for an object that is found already, and is a regular file or a folder."""
_CREATE_UNUSED: Final = os.O_DIRECTORY | os.O_NONBLOCK | os.O_NOFOLLOW

_rlopen = encoder(c.RLOPEN)
_rlcreate = encoder(c.RLCREATE)
_rread = encoder(c.RREAD)
_rwrite = encoder(c.RWRITE)
_rfsync = encoder(c.RFSYNC)

Fields = tuple[Any, ...]


# --- Tlopen, Tlcreate ---


def _host_flags(flags: int, unused: int) -> int:
    """The os.O_* flags for a driver."""
    if flags & c.DOTL_ACCMODE == c.DOTL_NOACCESS:
        raise OSError(errno.EINVAL, f"open flags {flags:#o}: neither reading nor writing")
    return to_host(flags) & ~unused


def start_lopen(session: Session, request: Request, fields: Fields) -> Any:
    """Open a fid's object. A folder is opened for reading, whatever access is asked for."""
    number, flags = fields
    host_flags = _host_flags(flags, _OPEN_UNUSED)
    fid = session.fids.find(number)
    fid.require_unopened()
    if fid.is_folder:
        host_flags = _FOLDER_FLAGS
    elif session.driver.readonly:
        check_open(flags)
    request.fid = fid
    return session.driver.open(fid.node, host_flags, fid.uid)


def finish_lopen(session: Session, request: Request, value: tuple[Any, Qid]) -> bytes:
    """Rlopen; iounit is 0 for folders."""
    file, qid = value
    fid = request.fid
    if fid.retired:
        discard_lopen(session, value)
        raise OSError(errno.ENOENT, f"fid {fid.number} was clunked meanwhile")
    fid.file = file
    if qid[0] & QID_DIRECTORY:
        fid.kind = FOLDER
        return _rlopen(request.tag, qid, 0)
    fid.kind = FILE
    return _rlopen(request.tag, qid, session.iounit)


def discard_lopen(session: Session, value: tuple[Any, Qid]) -> None:
    """Close the file."""
    session.fids.close_file(value[0])


def start_lcreate(session: Session, request: Request, fields: Fields) -> Any:
    """Create and open a regular file in the folder of a fid; the fid becomes the open file."""
    number, name, flags, mode, gid = fields
    check_new_name(name)
    host_flags = _host_flags(flags, _CREATE_UNUSED)
    fid = session.fids.find(number)
    fid.require_unopened()
    if not fid.is_folder:
        raise OSError(errno.ENOTDIR, f"fid {number} is no folder")
    request.fid = fid
    return session.driver.create(fid.node, name, host_flags, mode & 0o7777, fid.uid, gid)


def finish_lcreate(session: Session, request: Request, value: tuple[Any, Any, Qid]) -> bytes:
    """Rlcreate."""
    node, file, qid = value
    old = request.fid
    if old.retired:
        discard_lcreate(session, value)
        raise OSError(errno.ENOENT, f"fid {old.number} was clunked meanwhile")
    fid = Fid(old.number, node, old.uid, False)
    fid.kind = FILE
    fid.file = file
    session.fids.replace(old, fid)
    return _rlcreate(request.tag, qid, session.iounit)


def discard_lcreate(session: Session, value: tuple[Any, Any, Qid]) -> None:
    """Close the file and give its node back; the name stays."""
    discard_lopen(session, value[1:])
    session.fids.release(value[0])


# --- Tread ---


def start_read(session: Session, request: Request, fields: Fields) -> Any:
    """Read a file straight into the reply, or an attribute. Never more than the reply has room for."""
    number, offset, count = fields
    fid = session.table.get(number)
    if fid is None:
        fid = session.fids.find(number, errno.EINVAL)
    room = request.room - READ_HEADER_SIZE
    if count > room:  # noqa: PLR1730  # on every read's way, and min() costs three times as much
        count = room
    request.context = count
    if fid.kind == FILE:
        if offset + count > OFFSET_MAX:
            raise OSError(errno.EINVAL, f"no file has a byte {offset + count}")
        request.fid = fid
        return session.driver.read(fid.file, offset, request.writable.slice(READ_HEADER_SIZE, count))
    if fid.kind == XATTR_READ:
        data = fid.xattr[offset : offset + count]
        request.writable.write(READ_HEADER_SIZE, data)
        return len(data)
    if fid.kind == FOLDER:
        raise OSError(errno.EOPNOTSUPP, f"fid {number} is a folder")
    raise OSError(errno.EINVAL, f"fid {number} is not open for reading")


def finish_read(session: Session, request: Request, nbytes: int) -> bytes:
    """The head of Rread; its data is in place."""
    if not 0 <= nbytes <= request.context:
        raise ValueError(f"{nbytes} bytes read, {request.context} were asked for")
    request.payload = nbytes
    session.counters.bytes_read += nbytes
    return _rread(request.tag, nbytes)


# --- Twrite ---


def start_write(session: Session, request: Request, fields: Fields) -> Any:
    """Write to a file straight out of the request, or collect an attribute."""
    number, offset, count = fields
    readable = request.readable
    request.context = count
    if WRITE_HEADER_SIZE + count > readable.nbytes:
        raise MessageError(f"a Twrite of {count} bytes in {readable.nbytes}")
    fid = session.table.get(number)
    if fid is None:
        fid = session.fids.find(number, errno.EINVAL)
    if fid.kind == FILE:
        if offset + count > OFFSET_MAX:
            raise OSError(errno.EFBIG, f"no file has a byte {offset + count}")
        request.fid = fid
        return session.driver.write(fid.file, offset, readable.slice(WRITE_HEADER_SIZE, count))
    if fid.kind == XATTR_WRITE:
        return _collect_xattr(fid.xattr, offset, count, request)
    raise OSError(errno.EINVAL, f"fid {number} is not open for writing")


def _collect_xattr(xattr: XattrWrite, offset: int, count: int, request: Request) -> int:
    """Take what fits the size that was announced."""
    if offset > xattr.size:
        raise OSError(errno.ENOSPC, f"the attribute was announced with {xattr.size} bytes")
    nbytes = min(count, xattr.size - offset)
    xattr.value[offset : offset + nbytes] = request.readable.read(WRITE_HEADER_SIZE, nbytes)
    if offset <= xattr.written:
        xattr.written = max(xattr.written, offset + nbytes)
    return nbytes


def finish_write(session: Session, request: Request, nbytes: int) -> bytes:
    """Rwrite."""
    if not 0 <= nbytes <= request.context:
        raise ValueError(f"{nbytes} bytes written, {request.context} were given")
    session.counters.bytes_written += nbytes
    return _rwrite(request.tag, nbytes)


# --- Tfsync ---


def start_fsync(session: Session, request: Request, fields: Fields) -> Any:
    """Bring an open file or folder to the disk."""
    number, datasync = fields
    fid = session.fids.find(number)
    if fid.file is None:
        raise OSError(errno.EINVAL, f"fid {number} is not open")
    request.fid = fid
    return session.driver.fsync(fid.file, datasync=bool(datasync))


def finish_fsync(_session: Session, request: Request, _value: None) -> bytes:
    """Rfsync."""
    return _rfsync(request.tag)


OPERATIONS: Final = (
    Operation(c.TLOPEN, start_lopen, finish_lopen, discard=discard_lopen, claims=True),
    Operation(c.TLCREATE, start_lcreate, finish_lcreate, discard=discard_lcreate, claims=True),
    Operation(c.TREAD, start_read, finish_read),
    Operation(c.TWRITE, start_write, finish_write),
    Operation(c.TFSYNC, start_fsync, finish_fsync),
)
