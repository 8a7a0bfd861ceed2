"""Stats: what 9P2000 and 9P2000.u tell of a file, in Rstat and in the data of a folder (stat(5), read(5)).

Users and groups are the decimal numbers of their ids: the server knows no names that would mean anything to a client.
"""

from __future__ import annotations

import errno
import stat
from typing import TYPE_CHECKING, Any, Final

from pyvirtfs.p9 import codec
from pyvirtfs.p9 import constants as c

if TYPE_CHECKING:
    from pyvirtfs.fsdev.driver import Attributes, Qid

ROOT_NAME: Final = b"/"
"""What the root of an export is called."""

_KINDS: Final = {
    stat.S_IFDIR: c.DMDIR,
    stat.S_IFLNK: c.DMSYMLINK,
    stat.S_IFCHR: c.DMDEVICE,
    stat.S_IFBLK: c.DMDEVICE,
    stat.S_IFIFO: c.DMNAMEDPIPE,
    stat.S_IFSOCK: c.DMSOCKET,
}
KIND_BITS: Final = c.DMDIR | c.DMSYMLINK | c.DMLINK | c.DMDEVICE | c.DMNAMEDPIPE | c.DMSOCKET
"""What says what an object is."""
_SET_IDS: Final = (
    (c.DMSETUID, stat.S_ISUID),
    (c.DMSETGID, stat.S_ISGID),
    (c.DMSETVTX, stat.S_ISVTX),
)
PERMISSIONS: Final = 0o777
PLAIN_BITS: Final = c.DMDIR | PERMISSIONS
"""All bits that a mode can have in 9P2000."""
UNIX_BITS: Final = KIND_BITS | c.DMSETUID | c.DMSETGID | c.DMSETVTX | PERMISSIONS
"""The same in 9P2000.u."""
_UINT32_MAX: Final = 0xFFFFFFFF
_SIZE_MAX: Final = 0xFFFF - 2


_DIGITS: Final = 10


def decimal(text: bytes) -> int | None:
    """The number of 32 bits that a text is in decimal; None if it is none. Ids and numbers of devices travel so."""
    number = int(text) if text.isdigit() and len(text) <= _DIGITS else None
    return number if number is not None and number <= _UINT32_MAX else None


def stat_mode(mode: int, *, unix: bool) -> int:
    """A mode as stats have it, from st_mode.

    9P2000 has folders and files, no set-id bits and no sticky bit; in none of the two do these stand where Unix has
    them.
    """
    found = mode & PERMISSIONS | _KINDS.get(stat.S_IFMT(mode), 0)
    if not unix:
        return found & PLAIN_BITS
    for bit, host in _SET_IDS:
        if mode & host:
            found |= bit
    return found


def host_permissions(mode: int) -> int:
    """The permission bits of st_mode (at most 07777) for the mode of a Twstat or the perm of a Tcreate in 9P2000.u."""
    found = mode & PERMISSIONS
    for bit, host in _SET_IDS:
        if mode & bit:
            found |= host
    return found


def extension_of(attributes: Attributes, target: bytes) -> bytes:
    """What a stat of 9P2000.u adds: the target of a symbolic link, the numbers of a device.

    For files and folders it is the number of links, as QEMU's server has it and Linux's client reads it.
    """
    kind = stat.S_IFMT(attributes.mode)
    if kind == stat.S_IFLNK:
        return target
    if kind in {stat.S_IFCHR, stat.S_IFBLK}:
        letter = b"c" if kind == stat.S_IFCHR else b"b"
        return b"%s %d %d" % (letter, attributes.rdev_major, attributes.rdev_minor)
    if kind in {stat.S_IFREG, stat.S_IFDIR}:
        return b"HARDLINKCOUNT %d" % attributes.nlink
    return b""


def stat_fields(qid: Qid, attributes: Attributes, name: bytes, target: bytes, *, unix: bool) -> tuple[Any, ...]:
    """The fields of a stat, as `messages.STAT` or `messages.STAT_UNIX` declares them.

    Args:
        qid: The object's.
        attributes: The object's.
        name: Its name.
        target: Its target, if it is a symbolic link.
        unix: Whether it is for 9P2000.u.

    Raises:
        OSError: ENAMETOOLONG: the strings are too long for a stat.
    """
    mode = attributes.mode
    uid, gid = b"%d" % attributes.uid, b"%d" % attributes.gid
    extra: tuple[Any, ...] = ()
    size = c.STAT_SIZE + len(name) + len(uid) + len(gid)
    if unix:
        extension = extension_of(attributes, target)
        extra = (extension, attributes.uid, attributes.gid, c.NONUNAME)
        size += c.STAT_UNIX_SIZE - c.STAT_SIZE + len(extension)
    if size > _SIZE_MAX:
        raise OSError(errno.ENAMETOOLONG, f"a stat of {size} bytes")
    return (
        size,
        0,
        0,
        qid,
        stat_mode(mode, unix=unix),
        min(max(attributes.atime_sec, 0), _UINT32_MAX),
        min(max(attributes.mtime_sec, 0), _UINT32_MAX),
        0 if stat.S_ISDIR(mode) else attributes.size,
        name,
        uid,
        gid,
        b"",  # nobody knows who changed it last
        *extra,
    )


def encode_stat(fields: tuple[Any, ...], *, unix: bool) -> bytes:
    """A stat as it stands in the data of a folder."""
    return codec.encode_stat_unix(*fields) if unix else codec.encode_stat_plain(*fields)
