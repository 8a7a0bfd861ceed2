"""``security_model=mapped-xattr`` or ``mapped``: what differs from the host is in extended attributes of the object.

==================================  ======  ========================================================
``user.virtfs.uid``                 4       the user, little endian as all of them
``user.virtfs.gid``                 4       the group
``user.virtfs.mode``                4       st_mode with its type bits
``user.virtfs.rdev``                8       the device, as makedev(3) of the host has it
``user.virtfs.system.posix_acl_*``  any     the POSIX ACLs of the guest, ``access`` and ``default``
==================================  ======  ========================================================

That is how QEMU's local driver keeps them, so a folder can be served by either. Setting an attribute changes the ctime
of the object: what was read stays good as long as the ctime does, if that was not too young to tell.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
from typing import Final, NoReturn

from pyvirtfs.errors import ConfigError
from pyvirtfs.fsdev.acl import ACL_NAMES
from pyvirtfs.fsdev.driver import Attributes
from pyvirtfs.fsdev.entries import Entry
from pyvirtfs.fsdev.security.mapped import NOTHING, MappedModel, Overrides, is_past
from pyvirtfs.syscalls import get_xattr, list_xattr, remove_xattr, set_xattr

_PREFIX: Final = b"user.virtfs."
_UID: Final = _PREFIX + b"uid"
_GID: Final = _PREFIX + b"gid"
_MODE: Final = _PREFIX + b"mode"
_RDEV: Final = _PREFIX + b"rdev"
_PROBE: Final = _PREFIX + b"probe"
_U32: Final = struct.Struct("<I")
_U64: Final = struct.Struct("<Q")
_FIELDS: Final = ((_UID, _U32), (_GID, _U32), (_MODE, _U32), (_RDEV, _U64))
"""In the order of `Overrides`."""
_HOST_ACLS: Final = {_PREFIX + name: name for name in ACL_NAMES}

_NO_ATTRIBUTE: Final = frozenset({errno.ENODATA, errno.EOPNOTSUPP, errno.EACCES, errno.EPERM})
"""There is none, there can be none, or this process may not read it: what the host says counts."""
_UNSUPPORTED: Final = frozenset({errno.EOPNOTSUPP, errno.ENOSYS})
_DEVICES: Final = frozenset({stat.S_IFCHR, stat.S_IFBLK})
_HAVE_ATTRIBUTES: Final = frozenset({stat.S_IFREG, stat.S_IFDIR})
"""Only these have ``user.`` attributes; xattr(7)."""


def _fail(code: int) -> NoReturn:
    raise OSError(code, os.strerror(code))


def _value(path: bytes, name: bytes, layout: struct.Struct, problems: list[str]) -> int | None:
    """The number in an attribute; None if there is none, or none that makes sense."""
    try:
        data = os.getxattr(path, name)
    except OSError as error:
        if error.errno in _NO_ATTRIBUTE:
            return None
        raise
    if len(data) != layout.size:
        problems.append(f"{name.decode()} has {len(data)} bytes")
        return None
    number: int = layout.unpack(data)[0]
    return number


def _try_attributes(root_fd: int, *, readonly: bool) -> None:
    """Read an attribute below a root and, unless it is `readonly`, set one, where nobody will find it."""
    try:
        get_xattr(root_fd, _PROBE)
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            raise
    if readonly:
        return
    try:
        nameless = os.open(b"/proc/self/fd/%d" % root_fd, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError:  # the file system has no nameless files, or no room for any; reading has worked
        return
    try:
        os.setxattr(nameless, _PROBE, b"")
    finally:
        os.close(nameless)


class MappedXattr(MappedModel):
    """What differs from the host is in extended attributes."""

    name = "mapped-xattr"

    def check_root(self, root_fd: int, path: str, *, readonly: bool) -> None:
        """See `SecurityModel.check_root`."""
        try:
            _try_attributes(root_fd, readonly=readonly)
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                problem = f"{self.name!r} needs extended attributes, and the file system of {path!r} has none for users"
                raise ConfigError("security_model", problem, ("mapped-file", "none")) from None

    # --- what is kept ---

    def look_up(self, entry: Entry, host: tuple[int, ...]) -> Overrides:
        """See `MappedModel.look_up`."""
        known: tuple[int, int, Overrides] | None = entry.mapped
        sec, nsec = host[11], host[12]  # the ctime
        if known is not None and known[1] == nsec and known[0] == sec:
            return known[2]
        trusted = is_past(sec, nsec)
        kept = self._read(entry, host[3])
        entry.mapped = (sec, nsec, kept) if trusted else None
        return kept

    def _read(self, entry: Entry, host_mode: int) -> Overrides:
        if stat.S_IFMT(host_mode) not in _HAVE_ATTRIBUTES:
            return NOTHING
        path = entry.proc_path
        problems: list[str] = []
        mode = _value(path, _MODE, _U32, problems)
        # Most objects have all three or none; then these are three calls or two.
        if mode is None and not problems and _PREFIX not in list_xattr(entry.fd):
            found = NOTHING
        else:
            found = Overrides(
                _value(path, _UID, _U32, problems),
                _value(path, _GID, _U32, problems),
                mode,
                _value(path, _RDEV, _U64, problems) if mode is not None and stat.S_IFMT(mode) in _DEVICES else None,
            )
        return self.judge(entry, host_mode, found, ", ".join(problems))

    def mode_of(self, entry: Entry, host: Attributes) -> int | None:
        """See `MappedModel.mode_of`; one call, since each write changes the ctime."""
        known: tuple[int, int, Overrides] | None = entry.mapped
        if known is not None and known[0] == host.ctime_sec and known[1] == host.ctime_nsec:
            return known[2].mode
        problems: list[str] = []
        found = Overrides(mode=_value(entry.proc_path, _MODE, _U32, problems))
        return self.judge(entry, host.mode, found, ", ".join(problems)).mode

    def keep(self, entry: Entry, changes: Overrides) -> None:
        """See `MappedModel.keep`."""
        entry.mapped = None
        path = entry.proc_path
        done: list[tuple[bytes, bytes | None]] = []
        try:
            for (name, layout), number in zip(_FIELDS, changes, strict=True):
                if number is not None:
                    before: bytes | None = None
                    with contextlib.suppress(OSError):
                        before = os.getxattr(path, name)
                    os.setxattr(path, name, layout.pack(number))
                    done.append((name, before))
        except OSError:
            for name, before in done:
                with contextlib.suppress(OSError):
                    if before is None:
                        os.removexattr(path, name)
                    else:
                        os.setxattr(path, name, before)
            raise

    def keep_new(self, entry: Entry, parent: Entry, name: bytes, first: Overrides) -> None:
        """See `MappedModel.keep_new`; an object that cannot be finished goes with its attributes."""
        del parent, name
        path = entry.proc_path
        for (attribute, layout), number in zip(_FIELDS, first, strict=True):
            if number is not None:
                os.setxattr(path, attribute, layout.pack(number))
        entry.mapped = None

    # --- the guest's own attributes ---

    def xattr_name(self, name: bytes) -> bytes:
        """See `SecurityModel.xattr_name`: the ACLs are kept under another name."""
        return _PREFIX + name if name in ACL_NAMES else super().xattr_name(name)

    def xattr_visible(self, name: bytes) -> bytes | None:
        """See `SecurityModel.xattr_visible`: the model's own attributes are not there."""
        return _HOST_ACLS.get(name) if name.startswith(_PREFIX) else super().xattr_visible(name)

    def getxattr(self, entry: Entry, name: bytes) -> bytes:
        """See `SecurityModel.getxattr`; ENODATA for the model's own attributes."""
        if name.startswith(_PREFIX):
            _fail(errno.ENODATA)
        return super().getxattr(entry, name)

    def setxattr(self, entry: Entry, name: bytes, value: bytes, flags: int) -> None:
        """See `SecurityModel.setxattr`; EACCES for the model's own attributes. An empty ACL is none, as for Linux."""
        if name.startswith(_PREFIX):
            _fail(errno.EACCES)
        if name in ACL_NAMES and not value:
            self.removexattr(entry, name)
        else:
            set_xattr(entry.fd, self.xattr_name(name), value, flags)

    def removexattr(self, entry: Entry, name: bytes) -> None:
        """See `SecurityModel.removexattr`; EACCES for the model's own attributes; removing no ACL succeeds."""
        if name.startswith(_PREFIX):
            _fail(errno.EACCES)
        try:
            remove_xattr(entry.fd, self.xattr_name(name))
        except OSError as error:
            if error.errno != errno.ENODATA or name not in ACL_NAMES:
                raise
