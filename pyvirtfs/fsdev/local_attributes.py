"""The local driver's operations on attributes: stat, chmod, chown, utimens, truncate, statfs, extended attributes.

All work on the ``O_PATH`` descriptor of the object, directly where the call has an ``AT_EMPTY_PATH`` form, through
``/proc/self/fd/N`` where it has none; so unlinked objects have attributes, too, and no symbolic link is followed.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import AbstractContextManager, nullcontext
from typing import Final
from zlib import crc32

from pyvirtfs.fsdev.acl import ACL_NAMES
from pyvirtfs.fsdev.driver import NONUNAME, Attributes, Qid, SetAttributes, StatFs
from pyvirtfs.fsdev.entries import UNPACK_ATTRIBUTES, WRITE_STEP, Entry, Node
from pyvirtfs.fsdev.local_core import LocalCore, fail
from pyvirtfs.syscalls import KEEP_ID, fchownat, fstatfs, reopen, utimens_descriptor

_TRUNCATE_FLAGS: Final = os.O_WRONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
_NANOSECONDS: Final = 1_000_000_000
_INT64: Final = 1 << 63
_NOTHING: Final = (None,) * 6
_SIZE: Final = Attributes._fields.index("size")

_new = tuple.__new__


def _check_time(nanoseconds: int | None) -> None:
    """EINVAL for a time that a struct timespec cannot hold, before anything is changed."""
    if nanoseconds is not None and not -_INT64 <= nanoseconds // _NANOSECONDS < _INT64:
        fail(errno.EINVAL)


class LocalAttributes(LocalCore):
    """Attributes, the file system's figures, extended attributes."""

    def getattr(self, node: Node) -> tuple[Qid, Attributes]:
        """See `ExportDriver.getattr`."""
        # The same steps as `EntryTable.stat` and `EntryTable.qid`, with one system call and no call between.
        entry = node.entry
        table = self._table
        table.statx(entry.fd)
        fields = UNPACK_ATTRIBUTES(table.buffer)
        version = crc32(table.change_times, fields[_SIZE] + entry.writes) or 1
        presenter = self._presenter
        attributes = _new(Attributes, fields) if presenter is None else presenter(entry, fields)
        qid = entry.qid
        if qid[1] != version:
            entry.qid = qid = _new(Qid, (entry.qid_type, version, entry.shown_path))
        return qid, attributes

    def setattr(self, node: Node, changes: SetAttributes, uid: int) -> None:
        """See `ExportDriver.setattr`; ELOOP for the mode of a symbolic link, unless the model keeps it."""
        self._check_writable()
        entry = node.entry
        mode, owner, group, size, atime, mtime, touch = changes
        if mode is not None and entry.kind == stat.S_IFLNK and not self._model.mapped:
            fail(errno.ELOOP)
        _check_time(atime)
        _check_time(mtime)
        if size is not None:
            if entry.kind != stat.S_IFREG:
                fail(errno.EISDIR if entry.kind == stat.S_IFDIR else errno.EINVAL)
            if not 0 <= size < _INT64:
                fail(errno.EFBIG)
        if mode is not None:
            with self._kept_open(entry):
                self._model.chmod(entry, stat.S_IMODE(mode))
        if atime is not None or mtime is not None:
            utimens_descriptor(entry.fd, atime, mtime)
        if owner is not None or group is not None:
            self._chown(entry, owner, group, uid)
        if size is not None:
            self._truncate(entry, size, uid)
        if touch and changes[:6] == _NOTHING:
            fchownat(entry.fd, b"", KEEP_ID, KEEP_ID)

    def _kept_open(self, entry: Entry) -> AbstractContextManager[None]:
        """For a change of mode or owner, which in a mapped model forbids nothing on the host."""
        return nullcontext() if self._model.mapped else self._closer.kept_open(entry)

    def _chown(self, entry: Entry, owner: int | None, group: int | None, uid: int) -> None:
        with self._kept_open(entry):
            self._model.chown(entry, NONUNAME if owner is None else owner, NONUNAME if group is None else group)
        if self._set_ids_survive and not self._model.keeps_set_ids(entry, uid):
            # Linux did it itself, unless the file system or the model left the owner as it was.
            self._clear_set_ids(entry)

    def _truncate(self, entry: Entry, size: int, uid: int) -> None:
        if entry.kind != stat.S_IFREG:
            fail(errno.EISDIR if entry.kind == stat.S_IFDIR else errno.EINVAL)
        try:
            # Not truncate(2): it waits for a host program that holds a lease on the file, for up to 45 seconds.
            fd = reopen(entry.fd, _TRUNCATE_FLAGS)
        except PermissionError:
            # Opened for writing before its mode forbade that; ftruncate(2) in the guest works then.
            if not entry.writers:
                raise
            os.ftruncate(entry.writers[-1].fd, size)
        else:
            try:
                os.ftruncate(fd, size)
            finally:
                os.close(fd)
        entry.writes += WRITE_STEP
        if self._set_ids_survive and not self._model.keeps_set_ids(entry, uid):
            self._clear_set_ids(entry)

    def statfs(self, node: Node) -> StatFs:
        """See `ExportDriver.statfs`; where the file system has no id, the number of its device stands for it."""
        fd = node.entry.fd
        figures = fstatfs(fd)
        if not figures.fsid:
            attributes = self._table.stat(fd)
            figures = figures._replace(fsid=os.makedev(attributes.dev_major, attributes.dev_minor) or 1)
        return figures

    # --- extended attributes ---

    def getxattr(self, node: Node, name: bytes) -> bytes:
        """See `ExportDriver.getxattr`; EOPNOTSUPP for names outside what the security model lets through."""
        return self._model.getxattr(node.entry, name)

    def listxattr(self, node: Node) -> bytes:
        """See `ExportDriver.listxattr`; names that `getxattr` refuses are left out."""
        return self._model.listxattr(node.entry)

    def setxattr(self, node: Node, name: bytes, value: bytes, flags: int, uid: int) -> None:
        """See `ExportDriver.setxattr`; EOPNOTSUPP as `getxattr`."""
        del uid
        self._check_writable()
        if name in ACL_NAMES:
            with self._closer.kept_open(node.entry):  # it changes the mode
                self._model.setxattr(node.entry, name, value, flags)
        else:
            self._model.setxattr(node.entry, name, value, flags)

    def removexattr(self, node: Node, name: bytes, uid: int) -> None:
        """See `ExportDriver.removexattr`; EOPNOTSUPP as `getxattr`."""
        del uid
        self._check_writable()
        self._model.removexattr(node.entry, name)
