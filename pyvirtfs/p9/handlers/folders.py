"""Treaddir, and the messages that make, move and remove names (protocol.md)."""

from __future__ import annotations

import errno
import stat
import struct
from typing import TYPE_CHECKING, Any, Final

from pyvirtfs.p9 import constants as c
from pyvirtfs.p9.codec import encoder
from pyvirtfs.p9.fids import FOLDER, UNOPENED
from pyvirtfs.p9.names import check_moved_name, check_new_name, check_removed_name
from pyvirtfs.p9.operation import Operation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyvirtfs.fsdev.driver import EntryFields, Qid
    from pyvirtfs.p9.requests import Request
    from pyvirtfs.p9.session import Session

_NODE_TYPES: Final = frozenset({0, stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK})
_LINK_HEADER_SIZE: Final = 9
"""Bytes of an Rreadlink before its target."""

_pack_entry_head: Final = struct.Struct("<BIQQBH").pack
"""`messages.DIRECTORY_ENTRY` up to and with the length of its name."""

_rreaddir = encoder(c.RREADDIR)
_rmkdir = encoder(c.RMKDIR)
_rmknod = encoder(c.RMKNOD)
_rsymlink = encoder(c.RSYMLINK)
_rreadlink = encoder(c.RREADLINK)
_rlink = encoder(c.RLINK)
_rrename = encoder(c.RRENAME)
_rrenameat = encoder(c.RRENAMEAT)
_runlinkat = encoder(c.RUNLINKAT)

Fields = tuple[Any, ...]


# --- Treaddir ---


def start_readdir(session: Session, request: Request, fields: Fields) -> Any:
    """List an open folder from a cookie on."""
    number, offset, count = fields
    fid = session.fids.find(number, errno.EINVAL)
    if fid.kind != FOLDER:
        raise OSError(errno.EINVAL, f"fid {number} is no open folder")
    request.context = min(count, request.room - c.READ_HEADER_SIZE)
    request.fid = fid
    return session.driver.readdir(fid.file, offset)


def finish_readdir(session: Session, request: Request, entries: Sequence[EntryFields]) -> bytes:
    """Rreaddir: whole entries only. If not even one fits that is an error, since no entries would mean the end."""
    left: int = request.context
    parts: list[bytes] = []
    append = parts.append
    pack, fixed = _pack_entry_head, c.DIRECTORY_ENTRY_SIZE
    for (qid_type, version, path), cookie, kind, name in entries:
        nbytes = len(name)
        left -= fixed + nbytes
        if left < 0:
            break
        append(pack(qid_type, version, path, cookie, kind, nbytes))
        append(name)
    if not parts and entries:
        raise OSError(errno.EINVAL, f"no room for one entry in {request.context} bytes")
    data = b"".join(parts)
    session.counters.bytes_read += len(data)
    return _rreaddir(request.tag, len(data)) + data


# --- new names ---


def start_mkdir(session: Session, request: Request, fields: Fields) -> Any:
    """Create a folder."""
    number, name, mode, gid = fields
    check_new_name(name)
    fid = session.fids.find(number)
    node = fid.require_node()
    request.fid = fid
    return session.driver.mkdir(node, name, mode & 0o7777, fid.uid, gid)


def finish_mkdir(_session: Session, request: Request, qid: Qid) -> bytes:
    """Rmkdir."""
    return _rmkdir(request.tag, qid)


def start_mknod(session: Session, request: Request, fields: Fields) -> Any:
    """Create a file, fifo, socket or device."""
    number, name, mode, major, minor, gid = fields
    check_new_name(name)
    kind = stat.S_IFMT(mode)
    if kind not in _NODE_TYPES:
        raise OSError(errno.EINVAL, f"mknod makes no files of mode {mode:#o}")
    fid = session.fids.find(number)
    node = fid.require_node()
    request.fid = fid
    full_mode = (kind or stat.S_IFREG) | mode & 0o7777
    return session.driver.mknod(node, name, full_mode, major, minor, fid.uid, gid)


def finish_mknod(_session: Session, request: Request, qid: Qid) -> bytes:
    """Rmknod."""
    return _rmknod(request.tag, qid)


def start_symlink(session: Session, request: Request, fields: Fields) -> Any:
    """Create a symbolic link. Its target is the guest's business."""
    number, name, target, gid = fields
    check_new_name(name)
    if b"\0" in target:
        raise OSError(errno.EINVAL, "the target of a symbolic link with a NUL")
    fid = session.fids.find(number, errno.EINVAL)
    node = fid.require_node()
    request.fid = fid
    return session.driver.symlink(node, name, target, fid.uid, gid)


def finish_symlink(_session: Session, request: Request, qid: Qid) -> bytes:
    """Rsymlink."""
    return _rsymlink(request.tag, qid)


def start_link(session: Session, request: Request, fields: Fields) -> Any:
    """Give an object one more name."""
    folder_number, number, name = fields
    check_new_name(name)
    folder = session.fids.find(folder_number)
    fid = session.fids.find(number)
    folder_node, node = folder.require_node(), fid.require_node()
    request.fid, request.other = fid, folder
    return session.driver.link(folder_node, node, name)


def finish_link(_session: Session, request: Request, _value: None) -> bytes:
    """Rlink."""
    return _rlink(request.tag)


# --- Treadlink ---


def start_readlink(session: Session, request: Request, fields: Fields) -> Any:
    """Ask for the target of a symbolic link."""
    fid = session.fids.find(fields[0])
    node = fid.require_node()
    request.fid = fid
    return session.driver.readlink(node)


def finish_readlink(_session: Session, request: Request, target: bytes) -> bytes:
    """Rreadlink."""
    if _LINK_HEADER_SIZE + len(target) > request.room:
        raise OSError(errno.EMSGSIZE, f"no room for a target of {len(target)} bytes")
    return _rreadlink(request.tag, target)


# --- names moved and removed ---


def start_rename(session: Session, request: Request, fields: Fields) -> Any:
    """Give an unopened fid's object another place."""
    number, folder_number, name = fields
    check_moved_name(name)
    fid = session.fids.find(number)
    folder = session.fids.find(folder_number)
    if fid.kind != UNOPENED:
        raise OSError(errno.EINVAL, f"fid {number} is open")
    folder_node = folder.require_node()
    request.fid, request.other = fid, folder
    return session.driver.rename(fid.node, folder_node, name)


def finish_rename(_session: Session, request: Request, _value: None) -> bytes:
    """Rrename."""
    return _rrename(request.tag)


def start_renameat(session: Session, request: Request, fields: Fields) -> Any:
    """Move a name from one folder to another."""
    old_number, old_name, number, name = fields
    check_moved_name(old_name)
    check_moved_name(name)
    old_folder = session.fids.find(old_number)
    folder = session.fids.find(number)
    old_node, node = old_folder.require_node(), folder.require_node()
    request.fid, request.other = old_folder, folder
    return session.driver.renameat(old_node, old_name, node, name)


def finish_renameat(_session: Session, request: Request, _value: None) -> bytes:
    """Rrenameat."""
    return _rrenameat(request.tag)


def start_unlinkat(session: Session, request: Request, fields: Fields) -> Any:
    """Remove a name."""
    number, name, flags = fields
    check_removed_name(name)
    if flags & ~c.UNLINKAT_REMOVEDIR:
        raise OSError(errno.EINVAL, f"unlinkat flags {flags:#x}")
    fid = session.fids.find(number, errno.EINVAL)
    node = fid.require_node()
    request.fid = fid
    return session.driver.unlinkat(node, name, folder=bool(flags))


def finish_unlinkat(_session: Session, request: Request, _value: None) -> bytes:
    """Runlinkat."""
    return _runlinkat(request.tag)


OPERATIONS: Final = (
    Operation(c.TREADDIR, start_readdir, finish_readdir, room=c.READ_HEADER_SIZE),
    Operation(c.TMKDIR, start_mkdir, finish_mkdir),
    Operation(c.TMKNOD, start_mknod, finish_mknod),
    Operation(c.TSYMLINK, start_symlink, finish_symlink),
    Operation(c.TLINK, start_link, finish_link, two_fids=True),
    Operation(c.TREADLINK, start_readlink, finish_readlink),
    Operation(c.TRENAME, start_rename, finish_rename, two_fids=True),
    Operation(c.TRENAMEAT, start_renameat, finish_renameat, two_fids=True),
    Operation(c.TUNLINKAT, start_unlinkat, finish_unlinkat),
)
