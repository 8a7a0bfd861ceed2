"""Tcreate of 9P2000 and 9P2000.u (open(5)): files, folders and, in 9P2000.u, everything else."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pyvirtfs.fsdev.driver import QID_DIRECTORY, Qid
from pyvirtfs.p9 import codec
from pyvirtfs.p9 import constants as c
from pyvirtfs.p9.fids import Fid
from pyvirtfs.p9.handlers.plan9_files import changes_nothing, host_flags, open_fid
from pyvirtfs.p9.names import check_new_name
from pyvirtfs.p9.operation import Operation
from pyvirtfs.p9.stat import KIND_BITS, PERMISSIONS, PLAIN_BITS, UNIX_BITS, decimal, host_permissions
from pyvirtfs.p9.steps import Procedure, run

if TYPE_CHECKING:
    from pyvirtfs.p9.requests import Request
    from pyvirtfs.p9.session import Session

_DEVICES: Final = {b"b": stat.S_IFBLK, b"c": stat.S_IFCHR}
_DEVICE_WORDS: Final = 3

_rcreate = codec.UNIX.encoder(c.RCREATE)

Fields = tuple[Any, ...]


class _Wanted(NamedTuple):
    """What a Tcreate asks for."""

    name: bytes
    kind: int
    """One of the DM* bits that say what it is, 0 for a file."""
    permissions: int
    """As in st_mode, at most 07777."""
    mode: int
    """The mode to open it with."""
    flags: int
    """The same as os.O_*."""
    extension: bytes


class _Created(NamedTuple):
    """What came of it."""

    node: Any
    file: Any
    """None if it is not open: folders and files are."""
    qid: Qid


def start_create(session: Session, request: Request, fields: Fields) -> Any:
    """Create something in the folder of a fid, which then denotes it. Files and folders are open then.

    A name that exists is refused (open(5)): clients open what is there, with OTRUNC, instead. What this server cannot
    keep (DMAPPEND, DMEXCL and the like) is refused with EPERM, not forgotten.
    """
    number, name, perm, mode = fields[:4]
    unix = session.dialect.unix
    check_new_name(name)
    flags = host_flags(session, mode)
    kind = perm & KIND_BITS
    if perm & ~(UNIX_BITS if unix else PLAIN_BITS):
        raise OSError(errno.EPERM, f"perm {perm:#x} has bits that cannot be set")
    if kind & (kind - 1):
        raise OSError(errno.EINVAL, f"perm {perm:#x} is of several types")
    if kind == c.DMDIR and not changes_nothing(mode):
        raise OSError(errno.EISDIR, "a folder can only be read")
    permissions = host_permissions(perm) if unix else perm & PERMISSIONS
    wanted = _Wanted(name, kind, permissions, mode, flags, fields[4] if unix else b"")
    fid = session.fids.find(number, errno.EINVAL)
    fid.require_unopened()
    if not fid.is_folder:
        raise OSError(errno.ENOTDIR, f"fid {number} is no folder")
    request.fid = fid
    request.context = mode
    return run(session.fids, fid, _create(session, fid, wanted))


def _create(session: Session, fid: Fid, wanted: _Wanted) -> Procedure[_Created]:
    driver, folder, name, kind = session.driver, fid.node, wanted.name, wanted.kind
    _, attributes = yield driver.getattr, folder
    gid = attributes.gid  # a new file belongs to its folder's group (open(5))
    permissions = wanted.permissions
    if not session.dialect.unix:
        mask = PERMISSIONS if kind == c.DMDIR else 0o666
        permissions &= ~mask | attributes.mode & mask
    if not kind:
        flags = wanted.flags | os.O_EXCL
        node, file, qid = yield driver.create, folder, name, flags, permissions, fid.uid, gid
        return _Created(node, file, qid)
    if kind == c.DMDIR:
        yield driver.mkdir, folder, name, permissions, fid.uid, gid
        try:
            return (yield from _open_new_folder(session, fid, name))
        except OSError:
            with contextlib.suppress(OSError):
                yield (partial(driver.unlinkat, folder, name, folder=True),)
            raise
    if kind == c.DMSYMLINK:
        if not wanted.extension or b"\0" in wanted.extension:
            raise OSError(errno.EINVAL, "the target of a symbolic link is empty or has a NUL")
        yield driver.symlink, folder, name, wanted.extension, fid.uid, gid
    elif kind == c.DMLINK:
        yield from _link(session, fid, wanted)
    else:
        node_type, major, minor = _node_type(kind, wanted.extension)
        yield driver.mknod, folder, name, node_type | permissions, major, minor, fid.uid, gid
    qids, node = yield driver.walk, folder, (name,)
    return _Created(node, None, qids[-1])


def _open_new_folder(session: Session, fid: Fid, name: bytes) -> Procedure[_Created]:
    """Find and open a folder that was just made."""
    driver = session.driver
    qids, node = yield driver.walk, fid.node, (name,)
    file = None
    try:
        file, _ = yield driver.open, node, os.O_RDONLY | os.O_DIRECTORY, fid.uid
    finally:
        if file is None:
            session.fids.release(node)
    return _Created(node, file, qids[-1])


def _link(session: Session, fid: Fid, wanted: _Wanted) -> Procedure[None]:
    """One more name for the object of the fid whose number is the extension. Linux ends it with a newline."""
    number = decimal(wanted.extension.strip())
    if number is None:
        raise OSError(errno.EINVAL, f"{wanted.extension[:64]!r} is no fid")
    source = session.fids.find(number)
    source.require_node()
    session.fids.use(source)
    try:
        yield session.driver.link, fid.node, source.node, wanted.name
    finally:
        session.fids.unuse(source)


def _node_type(kind: int, extension: bytes) -> tuple[int, int, int]:
    """The S_IF type, the major and the minor number of a special file; ``b 8 1`` or ``c 1 3`` for a device."""
    if kind == c.DMNAMEDPIPE:
        return stat.S_IFIFO, 0, 0
    if kind == c.DMSOCKET:
        return stat.S_IFSOCK, 0, 0
    words = extension.split()
    if not words or words[0] not in _DEVICES:
        raise OSError(errno.EIO, f"{extension[:64]!r} is no device")
    major, minor = map(decimal, words[1:]) if len(words) == _DEVICE_WORDS else (None, None)
    if major is None or minor is None:
        raise OSError(errno.EINVAL, f"{extension[:64]!r} is no device")
    return _DEVICES[words[0]], major, minor


def finish_create(session: Session, request: Request, value: _Created) -> bytes:
    """Rcreate; iounit is 0 for what is no file."""
    old = request.fid
    if old.retired:
        discard_create(session, value)
        raise OSError(errno.ENOENT, f"fid {old.number} was clunked meanwhile")
    node, file, qid = value
    fid = Fid(old.number, node, old.uid, bool(qid[0] & QID_DIRECTORY))
    iounit = 0 if file is None else open_fid(session, fid, file, qid, request.context)
    session.fids.replace(old, fid)
    return _rcreate(request.tag, qid, iounit)


def discard_create(session: Session, value: _Created) -> None:
    """Close the file and give its node back; the name stays."""
    if value.file is not None:
        session.fids.close_file(value.file)
    session.fids.release(value.node)


OPERATIONS: Final = (Operation(c.TCREATE, start_create, finish_create, discard=discard_create, claims=True),)
