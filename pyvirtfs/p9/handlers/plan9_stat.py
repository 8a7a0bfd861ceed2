"""Tstat, Twstat of 9P2000 and 9P2000.u (stat(5)): what is known of a file, and its name."""

from __future__ import annotations

import errno
import os
import stat
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pyvirtfs.fsdev.driver import QID_DIRECTORY, Attributes, Qid, SetAttributes
from pyvirtfs.p9 import codec
from pyvirtfs.p9 import constants as c
from pyvirtfs.p9.names import check_moved_name
from pyvirtfs.p9.operation import Operation
from pyvirtfs.p9.stat import (
    KIND_BITS,
    PERMISSIONS,
    PLAIN_BITS,
    ROOT_NAME,
    UNIX_BITS,
    decimal,
    extension_of,
    host_permissions,
    stat_fields,
    stat_mode,
)
from pyvirtfs.p9.steps import Procedure, run

if TYPE_CHECKING:
    from pyvirtfs.p9.fids import Fid
    from pyvirtfs.p9.requests import Request
    from pyvirtfs.p9.session import Session

_STAT_HEADER_SIZE: Final = 11
"""Bytes of an Rstat up to and with its stat's own size."""
_SET_IDS: Final = stat.S_ISUID | stat.S_ISGID
_SIZE_MAX: Final = (1 << 63) - 1
_NSEC_PER_SEC: Final = 10**9

_UINT8: Final = 0xFF
_UINT16: Final = 0xFFFF
_UINT32: Final = 0xFFFFFFFF
_UINT64: Final = 0xFFFFFFFFFFFFFFFF

_rstat_plain = codec.PLAIN.encoder(c.RSTAT)
_rstat_unix = codec.UNIX.encoder(c.RSTAT)
_rwstat = codec.UNIX.encoder(c.RWSTAT)

Fields = tuple[Any, ...]


# --- Tstat ---


def start_stat(session: Session, request: Request, fields: Fields) -> Any:
    """Ask for what is known of any fid's object."""
    fid = session.fids.find(fields[0])
    fid.require_node()
    request.fid = fid
    return run(session.fids, fid, _stat(session, fid))


def _stat(session: Session, fid: Fid) -> Procedure[Fields]:
    driver, node, unix = session.driver, fid.node, session.dialect.unix
    qid, attributes = yield driver.getattr, node
    target = b""
    if unix and stat.S_ISLNK(attributes.mode):
        target = yield driver.readlink, node
    folder, name = yield driver.place, node
    if folder is not None:
        session.fids.release(folder)
    return stat_fields(qid, attributes, name, target, unix=unix)


def finish_stat(session: Session, request: Request, value: Fields) -> bytes:
    """Rstat."""
    size = value[0]
    if _STAT_HEADER_SIZE + size > request.room:
        raise OSError(errno.EMSGSIZE, f"no room for a stat of {size} bytes")
    return (_rstat_unix if session.dialect.unix else _rstat_plain)(request.tag, size + 2, *value)


# --- Twstat ---


class _Changes(NamedTuple):
    """What a Twstat asks for; None leaves a field alone."""

    kind: int
    dev: int
    qid: tuple[int, int, int]
    mode: int | None
    atime: int | None
    mtime: int | None
    length: int | None
    name: bytes
    uid: int | None
    gid: int | None
    extension: bytes

    @property
    def nothing(self) -> bool:
        """Whether it leaves every field alone."""
        return self == _NOTHING


_NOTHING: Final = _Changes(
    _UINT16,
    _UINT32,
    (_UINT8, _UINT32, _UINT64),
    None,
    None,
    None,
    None,
    b"",
    None,
    None,
    extension=b"",
)


def _id(number: int, text: bytes) -> int | None:
    """A user or a group: the number of 9P2000.u, or a text that is a decimal number.

    Raises:
        OSError: EINVAL: nobody is called that here.
    """
    if number != _UINT32:
        return number
    if not text:
        return None
    found = decimal(text)
    if found is None or found == _UINT32:  # which is nobody
        raise OSError(errno.EINVAL, f"{text[:64]!r} is no number of a user or a group")
    return found


def _changes(fields: Fields) -> _Changes:
    """What a Twstat asks for.

    Its sizes are not looked at: what there is they cannot change. Neither is who changed it last, which nothing here
    keeps: Linux says with each rename that it is the user of its mount.
    """
    kind, dev, qid, mode, atime, mtime, length, name, uid, gid, _muid = fields[3:14]
    extension, n_uid, n_gid, _n_muid = fields[14:] or (b"", _UINT32, _UINT32, _UINT32)
    return _Changes(
        kind,
        dev,
        qid,
        None if mode == _UINT32 else mode,
        None if atime == _UINT32 else atime,
        None if mtime == _UINT32 else mtime,
        None if length == _UINT64 else length,
        name,
        _id(n_uid, uid),
        _id(n_gid, gid),
        extension=extension,
    )


def start_wstat(session: Session, request: Request, fields: Fields) -> Any:
    """Change what is known of any fid's object; a Twstat that changes nothing brings it to the disk.

    It is all or nothing (stat(5)) as far as can be known before: whatever can be refused is, before anything is done.
    """
    changes = _changes(fields)
    if changes.name not in {b"", ROOT_NAME}:  # which the root may be given, as it has it
        check_moved_name(changes.name)
    fid = session.fids.find(fields[0], errno.EINVAL)
    fid.require_node()
    request.fid = fid
    if changes.nothing:
        return run(session.fids, fid, _sync(session, fid))
    if session.driver.readonly:
        raise OSError(errno.EROFS, "the export is readonly")
    return run(session.fids, fid, _wstat(session, fid, changes))


def _sync(session: Session, fid: Fid) -> Procedure[None]:
    driver = session.driver
    if fid.file is not None:
        yield (partial(driver.fsync, fid.file, datasync=False),)
        return
    try:
        file, _ = yield driver.open, fid.node, os.O_RDONLY, fid.uid
    except OSError as error:
        if error.errno in {errno.ENXIO, errno.ELOOP}:  # what cannot be opened has no content
            return
        raise
    try:
        yield (partial(driver.fsync, file, datasync=False),)
    finally:
        session.fids.close_file(file)


def _wstat(session: Session, fid: Fid, changes: _Changes) -> Procedure[None]:
    driver, node = session.driver, fid.node
    qid, attributes = yield driver.getattr, node
    unix = session.dialect.unix
    _check_fixed(changes, qid, attributes, unix=unix)
    if changes.extension:
        target = (yield driver.readlink, node) if stat.S_ISLNK(attributes.mode) else b""
        if changes.extension != extension_of(attributes, target):
            raise OSError(errno.EPERM, "the extension cannot be changed")
    first = _first_changes(changes, attributes, unix=unix)
    folder, name = None, b""
    if changes.name:
        folder, name = yield driver.place, node
    try:
        renamed = bool(changes.name) and changes.name != name
        if renamed:
            yield from _check_rename(session, folder, name, changes.name, is_folder=stat.S_ISDIR(attributes.mode))
        if first.mode is not None and first.mode & _SET_IDS and (first.uid is not None or first.gid is not None):
            # A driver changes the mode first, and the owner then costs it the set-id bits that are asked for.
            yield driver.setattr, node, SetAttributes(uid=first.uid, gid=first.gid), fid.uid
            first = first._replace(uid=None, gid=None)
        if first != SetAttributes():
            yield driver.setattr, node, first, fid.uid
        if renamed:
            yield driver.rename, node, folder, changes.name
    finally:
        if folder is not None:
            session.fids.release(folder)
    if changes.length is not None and not stat.S_ISDIR(attributes.mode):
        yield driver.setattr, node, SetAttributes(size=changes.length), fid.uid


def _check_fixed(changes: _Changes, qid: Qid, attributes: Attributes, *, unix: bool) -> None:
    """Refuse to change what nobody can change. A client may send what a Rstat has told it.

    Raises:
        OSError: EPERM; EIO for another type, as QEMU answers; EISDIR for the length of a folder.
    """
    fixed = [
        changes.kind in {0, _UINT16},
        changes.dev in {0, _UINT32},
        *(new in {old, mark} for new, old, mark in zip(changes.qid, qid, _NOTHING.qid, strict=True)),
    ]
    if not all(fixed):
        raise OSError(errno.EPERM, "type, dev and qid cannot be changed")
    if changes.mode is not None:
        if (changes.mode ^ stat_mode(attributes.mode, unix=unix)) & KIND_BITS & (UNIX_BITS if unix else PLAIN_BITS):
            raise OSError(errno.EIO, f"mode {changes.mode:#x} is of another type")
        if changes.mode & ~(UNIX_BITS if unix else PLAIN_BITS):
            raise OSError(errno.EPERM, f"mode {changes.mode:#x} has bits that cannot be set")
    if changes.length is not None and changes.length > _SIZE_MAX:
        raise OSError(errno.EINVAL, f"no file has {changes.length} bytes")
    if changes.length and stat.S_ISDIR(attributes.mode):
        raise OSError(errno.EISDIR, "the length of a folder cannot be set")
    if not unix and changes.uid not in {None, attributes.uid}:
        raise OSError(errno.EPERM, "the owner cannot be changed")


def _first_changes(changes: _Changes, attributes: Attributes, *, unix: bool) -> SetAttributes:
    """Everything but name and length. Owners that stay the same are left out: chown(2) would clear set-id bits."""
    mode = changes.mode
    if mode is not None:
        # What a client of 9P2000 cannot see it does not mean to change.
        mode = host_permissions(mode) if unix else mode & PERMISSIONS | attributes.mode & 0o7000
    return SetAttributes(
        mode=mode,
        uid=None if changes.uid == attributes.uid else changes.uid,
        gid=None if changes.gid == attributes.gid else changes.gid,
        atime_ns=None if changes.atime is None else changes.atime * _NSEC_PER_SEC,
        mtime_ns=None if changes.mtime is None else changes.mtime * _NSEC_PER_SEC,
    )


def _check_rename(session: Session, folder: Any, name: bytes, new_name: bytes, *, is_folder: bool) -> Procedure[None]:
    """Refuse to rename the root, and in 9P2000 to replace what has the new name; 9P2000.u replaces it as rename(2).

    The new name is looked up in any case: the driver may refuse it, and that must be known before anything is changed.
    """
    check_moved_name(new_name)
    if name == ROOT_NAME:
        raise OSError(errno.EBUSY, "the root cannot be renamed")
    if folder is None:
        raise OSError(errno.EOPNOTSUPP, "the driver does not say where the object is")
    try:
        qids, node = yield session.driver.walk, folder, (new_name,)
    except OSError as error:
        if error.errno == errno.ENOENT:
            return
        raise
    session.fids.release(node)
    if not session.dialect.unix:
        raise OSError(errno.EEXIST, f"{new_name[:64]!r} exists")
    if is_folder is not bool(qids[-1][0] & QID_DIRECTORY):
        raise OSError(errno.ENOTDIR if is_folder else errno.EISDIR, f"{new_name[:64]!r} is of another type")


def finish_wstat(_session: Session, request: Request, _value: None) -> bytes:
    """Rwstat."""
    return _rwstat(request.tag)


OPERATIONS: Final = (
    Operation(c.TSTAT, start_stat, finish_stat),
    Operation(c.TWSTAT, start_wstat, finish_wstat),
)
