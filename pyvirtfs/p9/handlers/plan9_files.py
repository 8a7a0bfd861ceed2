"""Tattach, Topen, Tread, Twrite, Tclunk as 9P2000 and 9P2000.u have them (attach(5), open(5), read(5), clunk(5))."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any, Final

from pyvirtfs.fsdev.driver import QID_DIRECTORY, QID_SYMLINK, Qid
from pyvirtfs.p9 import codec
from pyvirtfs.p9 import constants as c
from pyvirtfs.p9.constants import READ_HEADER_SIZE
from pyvirtfs.p9.fids import FILE, FOLDER
from pyvirtfs.p9.handlers import content, tree
from pyvirtfs.p9.operation import Operation
from pyvirtfs.p9.stat import encode_stat, stat_fields
from pyvirtfs.p9.steps import Procedure, run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyvirtfs.fsdev.driver import EntryFields
    from pyvirtfs.p9.fids import Fid
    from pyvirtfs.p9.requests import Request
    from pyvirtfs.p9.session import Session

_ACCESS: Final = {c.OREAD: os.O_RDONLY, c.OWRITE: os.O_WRONLY, c.ORDWR: os.O_RDWR, c.OEXEC: os.O_RDONLY}
_PLAIN_MODE: Final = c.OMODE | c.OTRUNC | c.OCEXEC | c.ORCLOSE
_UNIX_MODE: Final = _PLAIN_MODE | c.OEXCL | c.OAPPEND
_FOLDER_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY
_DOTS: Final = frozenset({b".", b".."})
_NOT_SHOWN: Final = frozenset(
    {
        errno.ENOENT,
        errno.ENOTDIR,
        errno.ESTALE,
        errno.ENODEV,
        errno.EACCES,
        errno.EPERM,
        errno.ELOOP,
        errno.ENAMETOOLONG,
    }
)
"""What says of one entry of a folder that it is gone, or not for this client; the listing goes on without it."""

_ropen = codec.UNIX.encoder(c.ROPEN)
_rread = codec.UNIX.encoder(c.RREAD)

Fields = tuple[Any, ...]


# --- Tattach ---


def start_attach_plain(session: Session, request: Request, fields: Fields) -> Any:
    """Give a fid to the root of the export, for nobody in particular: names of users mean nothing here."""
    return tree.start_attach(session, request, (*fields, c.NONUNAME))


# --- Topen ---


def host_flags(session: Session, mode: int) -> int:
    """The os.O_* flags for the mode of a Topen or Tcreate.

    Raises:
        OSError: EINVAL: it has bits that the dialect does not have.
    """
    if mode & ~(_UNIX_MODE if session.dialect.unix else _PLAIN_MODE):
        raise OSError(errno.EINVAL, f"open mode {mode:#x}")
    flags = _ACCESS[mode & c.OMODE]
    if mode & c.OTRUNC:
        flags |= os.O_TRUNC
    if mode & c.OAPPEND:
        flags |= os.O_APPEND
    return flags


def changes_nothing(mode: int) -> bool:
    """Whether a mode only asks to read."""
    return mode & c.OMODE in {c.OREAD, c.OEXEC} and not mode & (c.OTRUNC | c.ORCLOSE | c.OAPPEND)


def start_open(session: Session, request: Request, fields: Fields) -> Any:
    """Open a fid's object; a folder for reading only."""
    number, mode = fields
    flags = host_flags(session, mode)
    fid = session.fids.find(number)
    fid.require_unopened()
    if not changes_nothing(mode):
        if fid.is_folder:
            raise OSError(errno.EISDIR, f"fid {number} is a folder, which can only be read")
        if session.driver.readonly:
            raise OSError(errno.EROFS, f"open mode {mode:#x} on a readonly export")
    request.fid = fid
    request.context = mode
    return session.driver.open(fid.node, _FOLDER_FLAGS if fid.is_folder else flags, fid.uid)


def finish_open(session: Session, request: Request, value: tuple[Any, Qid]) -> bytes:
    """Ropen; iounit is 0 for folders."""
    fid = request.fid
    if fid.retired:
        content.discard_lopen(session, value)
        raise OSError(errno.ENOENT, f"fid {fid.number} was clunked meanwhile")
    file, qid = value
    iounit = open_fid(session, fid, file, qid, request.context)
    return _ropen(request.tag, qid, iounit)


def open_fid(session: Session, fid: Fid, file: Any, qid: Qid, mode: int) -> int:
    """Let a fid be open.

    Returns:
        Its iounit.
    """
    fid.file = file
    if qid[0] & QID_DIRECTORY:
        fid.kind = FOLDER
        fid.listing = (0, 0)
        return 0
    fid.kind = FILE
    fid.remove_on_clunk = bool(mode & c.ORCLOSE)
    return session.iounit


# --- Tread ---


def start_read(session: Session, request: Request, fields: Fields) -> Any:
    """Read a file as 9P2000.L does, or a folder: whole stats, from the start or from where the last Tread ended."""
    number, offset, count = fields
    fid = session.table.get(number)
    if fid is None or fid.kind != FOLDER:
        return content.start_read(session, request, fields)
    request.fid = fid
    if offset and offset != fid.listing[0]:
        raise OSError(errno.EINVAL, f"a folder is not read from byte {offset}")
    cookie = fid.listing[1] if offset else 0
    count = min(count, request.room - READ_HEADER_SIZE)
    request.context = offset
    return run(session.fids, fid, _read_folder(session, fid, cookie, count))


def _read_folder(session: Session, fid: Fid, cookie: int, count: int) -> Procedure[tuple[int, bytes]]:
    """As many stats as there is room for, and the cookie of the last entry that is done with.

    No stats mean the end of the folder. So there is an error where not even one fits, or where something fails before
    the first one; behind that, the next Tread will find it.
    """
    driver = session.driver
    stats: list[bytes] = []
    left = count
    try:
        while True:
            entries: Sequence[EntryFields] = yield driver.readdir, fid.file, cookie
            if not entries:
                break
            for _, following, _, name in entries:
                if name not in _DOTS:
                    stat = yield from _stat_entry(session, fid, name)
                    left = _take(left, len(stat))
                    stats.append(stat)
                cookie = following
    except OSError:
        if not stats:
            raise
    return cookie, b"".join(stats)


def _take(left: int, nbytes: int) -> int:
    """What is left of the room for stats behind one more.

    Raises:
        OSError: EINVAL: it does not fit.
    """
    if nbytes > left:
        raise OSError(errno.EINVAL, f"no room for a stat of {nbytes} bytes in {left}")
    return left - nbytes


def _stat_entry(session: Session, fid: Fid, name: bytes) -> Procedure[bytes]:
    """The stat of what is in a folder by a name; empty for what is not shown."""
    driver, unix = session.driver, session.dialect.unix
    node = None
    try:
        qids, node = yield driver.walk, fid.node, (name,)
        qid, attributes = yield driver.getattr, node
        target = b""
        if unix and qids[-1][0] & QID_SYMLINK:
            target = yield driver.readlink, node
        fields = stat_fields(qid, attributes, name, target, unix=unix)
    except OSError as error:
        if error.errno in _NOT_SHOWN:
            return b""
        raise
    finally:
        if node is not None:
            session.fids.release(node)
    return encode_stat(fields, unix=unix)


def finish_read(session: Session, request: Request, value: Any) -> bytes:
    """Rread."""
    if not isinstance(value, tuple):
        return content.finish_read(session, request, value)
    cookie, data = value
    request.fid.listing = (request.context + len(data), cookie)
    session.counters.bytes_read += len(data)
    head: bytes = _rread(request.tag, len(data))
    return head + bytes(data)


# --- Tclunk ---


def start_clunk(session: Session, request: Request, fields: Fields) -> Any:
    """Free a fid, and remove the file if it was opened with ORCLOSE; whatever comes of that, the fid is gone.

    That is done by a Tclunk alone. Where a session ends with such a file open, nobody waits for the driver, and the
    file stays.
    """
    fid = session.table.get(fields[0])
    if fid is not None and fid.kind == FILE and fid.remove_on_clunk:
        return tree.start_remove(session, request, fields)
    return tree.start_clunk(session, request, fields)


ATTACH_PLAIN: Final = Operation(
    c.TATTACH, start_attach_plain, tree.finish_attach, discard=tree.discard_attach, makes_fid=True
)
"""Tattach of 9P2000; that of 9P2000.u is as in 9P2000.L."""

OPERATIONS: Final = (
    Operation(c.TOPEN, start_open, finish_open, discard=content.discard_lopen, claims=True),
    Operation(c.TREAD, start_read, finish_read),
    Operation(c.TWRITE, content.start_write, content.finish_write),
    Operation(c.TCLUNK, start_clunk, tree.finish_clunk, removes=True),
)
