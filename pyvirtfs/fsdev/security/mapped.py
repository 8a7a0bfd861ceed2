"""What the mapped security models share: owner, mode and type of the guest are kept beside the object.

On the host everything belongs to the server's user, folders have one mode and all else another; symbolic links, fifos,
sockets and devices of the guest are regular files there. So the server needs no privilege, and nothing that a guest
makes means anything to the host. What is kept beside an object overrides, field by field, what the host says of it.

What is found there may have been written by anybody. A field that makes no sense is left out, with one warning for the
object: the guest sees what the host says instead. Nothing is repaired by looking at it.
"""

from __future__ import annotations

import abc
import errno
import logging
import os
import stat
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from pyvirtfs.fsdev.driver import NONUNAME, Attributes, Qid
from pyvirtfs.fsdev.entries import UNPACK_ATTRIBUTES, Entry, EntryTable, Node
from pyvirtfs.fsdev.security.model import MODE, SecurityModel
from pyvirtfs.fsdev.set_ids import SET_IDS, without_set_ids
from pyvirtfs.syscalls import KEEP_ID, chmod_descriptor, fchownat, reopen

if TYPE_CHECKING:
    from pyvirtfs.fsdev.security.model import Presenter

_log = logging.getLogger(__name__)

FILE_MODE: Final = 0o600
FOLDER_MODE: Final = 0o700
PERMISSIONS: Final = 0o777

_DEVICES: Final = frozenset({stat.S_IFCHR, stat.S_IFBLK})
_STORED_AS_FILES: Final = frozenset({stat.S_IFREG, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK, *_DEVICES})
_MADE_BY_MKNOD: Final = frozenset({stat.S_IFIFO, stat.S_IFSOCK, *_DEVICES})
"""QEMU keeps a device number of these, if only 0."""
_ANY_MODE: Final = 0o177777
_TYPE: Final = 0o170000
_LONGEST_TARGET: Final = 4095
_MARGIN_NS: Final = 50_000_000
"""Timestamps of files are coarse (up to 10 ms): two changes within that time can leave the same one."""
_REMEMBERED_WARNINGS: Final = 1024

_new = tuple.__new__


class Overrides(NamedTuple):
    """What is kept beside an object; None: nothing, what the host says counts."""

    uid: int | None = None
    gid: int | None = None
    mode: int | None = None
    """With the type bits, as in st_mode."""
    rdev: int | None = None
    """The device, as makedev(3) has it."""

    def updated(self, changes: Overrides) -> Overrides:
        """The same with those of the `changes` that are not None."""
        return Overrides(*(old if new is None else new for old, new in zip(self, changes, strict=True)))


NOTHING: Final = Overrides()


def is_past(sec: int, nsec: int) -> bool:
    """Whether whatever changes from now on must get another timestamp than this one.

    Ask after a timestamp was read and before what it stands for: then the same timestamp means the same content. One
    that is too young does not tell, nor one in the future, whose clock is not ours.
    """
    return time.time_ns() - sec * 1_000_000_000 - nsec > _MARGIN_NS


class MappedTable(EntryTable):
    """The entries of an export with a mapped model: the type of an object is the guest's.

    Args:
        model: Knows what is kept beside the objects.
        root_fd: As for `EntryTable`.
        multidevs: The same.
        budget: The same.
    """

    __slots__ = ("_hidden", "_model")

    def __init__(self, model: MappedModel, root_fd: int, *, multidevs: str, budget: int) -> None:
        self._model = model
        self._hidden = model.hidden
        super().__init__(root_fd, multidevs=multidevs, budget=budget)

    def find(self, parent: Entry, name: bytes) -> tuple[Node, Qid]:
        """See `EntryTable.find`; EINVAL for a name that the model hides."""
        if name in self._hidden:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        node, qid = super().find(parent, name)
        host = UNPACK_ATTRIBUTES(self.buffer)
        if host[3] & _TYPE == stat.S_IFREG:  # all else is what it is
            entry = node.entry
            try:
                self._model.look_up(entry, host)
            except OSError:
                self.release(node)
                raise
            if entry.qid_type != qid[0]:
                entry.qid = qid = _new(Qid, (entry.qid_type, qid[1], qid[2]))
        return node, qid


class MappedModel(SecurityModel):
    """The mapped models.

    Args:
        fmode: Permission bits of files on the host, whatever the guest thinks they are.
        dmode: Permission bits of folders on the host.
    """

    mapped = True

    table: MappedTable

    def __init__(self, fmode: int = FILE_MODE, dmode: int = FOLDER_MODE) -> None:
        super().__init__()
        self.presenter: Presenter | None = self.present
        self._fmode = self.file_mode = fmode & PERMISSIONS
        self._dmode = dmode & PERMISSIONS
        self._warned: dict[int, None] = {}

    def open_table(self, root_fd: int, *, multidevs: str, budget: int) -> EntryTable:
        """See `SecurityModel.open_table`."""
        self.table = MappedTable(self, root_fd, multidevs=multidevs, budget=budget)
        return self.table

    # --- what is kept beside the object, and where ---

    @abc.abstractmethod
    def look_up(self, entry: Entry, host: tuple[int, ...]) -> Overrides:
        """What is kept of an object, as far as it makes sense; the entry's kind is right afterwards.

        Args:
            entry: The object.
            host: What statx(2) told of it a moment ago, as the fields of `Attributes`.

        Raises:
            OSError: It cannot be read now.
        """

    @abc.abstractmethod
    def keep(self, entry: Entry, changes: Overrides) -> None:
        """Change what is kept of an object: all of the `changes`, or none.

        Raises:
            OSError: The host refuses it.
        """

    @abc.abstractmethod
    def keep_new(self, entry: Entry, parent: Entry, name: bytes, first: Overrides) -> None:
        """Keep this, and nothing else, of an object that was made in a folder a moment ago.

        Raises:
            OSError: The host refuses it.
        """

    def mode_of(self, entry: Entry, host: Attributes) -> int | None:
        """The mode that is kept of an object, if there is one."""
        return self.look_up(entry, host).mode

    def judge(self, entry: Entry, host_mode: int, found: Overrides, problem: str) -> Overrides:
        """What counts of what was found beside an object; the entry is of that kind afterwards.

        Args:
            entry: The object.
            host_mode: Its st_mode on the host.
            found: What was found.
            problem: What was wrong with it already; empty: nothing.
        """
        kind = host_kind = host_mode & _TYPE
        mode = found.mode
        if mode is not None:
            kind = mode & _TYPE or host_kind  # QEMU leaves the type out where the guest does
            if mode > _ANY_MODE or (kind != host_kind and not (host_kind == stat.S_IFREG and kind in _STORED_AS_FILES)):
                problem = problem or f"the mode {mode:#o} cannot be"
                kind = host_kind
                found = found._replace(mode=None)
            elif not mode & _TYPE:
                found = found._replace(mode=mode | kind)
        for id_name, id_ in (("uid", found.uid), ("gid", found.gid)):
            if id_ == NONUNAME:
                problem = problem or f"the {id_name} {id_} cannot be"
                found = found._replace(**{id_name: None})
        if kind != entry.kind:
            entry.become(kind)
        if problem:
            self.warn(entry, problem)
        return found

    def warn(self, entry: Entry, problem: str) -> None:
        """Say once for an object that what is kept of it is damaged."""
        warned = self._warned
        if entry.path in warned:
            return
        warned[entry.path] = None
        if len(warned) > _REMEMBERED_WARNINGS:
            del warned[next(iter(warned))]
        path = os.readlink(entry.proc_path)
        _log.warning(
            "%r: what %s keeps of it is damaged (%s): the host's attributes are shown", path, self.name, problem
        )

    # --- what the guest sees ---

    def present(self, entry: Entry, host: tuple[int, ...]) -> Attributes:
        """See `Presenter`."""
        kept = self.look_up(entry, host)
        if kept is NOTHING:
            return _new(Attributes, host)
        uid, gid, mode, rdev = kept
        if mode is None:
            mode = host[3]
        if rdev is None or mode & _TYPE not in _DEVICES:
            major, minor = host[15], host[16]
        else:
            major, minor = os.major(rdev), os.minor(rdev)
        return _new(
            Attributes,
            (
                host[0],
                host[1] if uid is None else uid,
                host[2] if gid is None else gid,
                mode,
                *host[4:15],
                major,
                minor,
                *host[17:],
            ),
        )

    def readlink(self, entry: Entry) -> bytes:
        """See `SecurityModel.readlink`: the content of the file, or the target of a link that the host has made."""
        if stat.S_ISLNK(self.table.stat(entry.fd).mode):
            return super().readlink(entry)
        fd = reopen(entry.fd, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
        try:
            target = os.read(fd, _LONGEST_TARGET + 1)
        finally:
            os.close(fd)
        if len(target) > _LONGEST_TARGET:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        return target

    # --- what the guest changes ---

    def chown(self, entry: Entry, uid: int, gid: int) -> None:
        """See `SecurityModel.chown`; what is left alone in both reaches the host, which notes the time."""
        if uid == gid == NONUNAME:
            fchownat(entry.fd, b"", KEEP_ID, KEEP_ID)
        else:
            self.keep(entry, Overrides(None if uid == NONUNAME else uid, None if gid == NONUNAME else gid))

    def chmod(self, entry: Entry, mode: int) -> None:
        """See `SecurityModel.chmod`; symbolic links have a mode, too."""
        self.keep(entry, Overrides(mode=entry.kind | mode & MODE))

    def clear_set_ids(self, entry: Entry) -> None:
        """See `SecurityModel.clear_set_ids`; those of the host, which only the host can have set, as well."""
        host = self.table.stat(entry.fd)
        mode = self.mode_of(entry, host)
        if mode is not None and mode & SET_IDS and (cleared := without_set_ids(mode)) != mode:
            self.keep(entry, Overrides(mode=cleared))
        if host.mode & SET_IDS and (cleared := without_set_ids(host.mode)) != host.mode:
            chmod_descriptor(entry.fd, stat.S_IMODE(cleared))

    def settle(
        self,
        entry: Entry,
        now: Attributes,
        mode: int,
        uid: int,
        gid: int,
        parent: Entry,
        name: bytes,
        device: int = 0,
    ) -> bool:
        """See `SecurityModel.settle`."""
        kind = mode & _TYPE
        host_mode = self._dmode if kind == stat.S_IFDIR else self._fmode
        writable = host_mode | stat.S_IWUSR  # or its owner could not set extended attributes
        if (now.mode ^ writable) & MODE:
            chmod_descriptor(entry.fd, writable)
        first = Overrides(
            None if uid == NONUNAME else uid,
            None if gid == NONUNAME else gid,
            mode,
            device if kind in _MADE_BY_MKNOD else None,
        )
        self.keep_new(entry, parent, name, first)
        if writable != host_mode:
            chmod_descriptor(entry.fd, host_mode)
        entry.become(kind)
        return True
