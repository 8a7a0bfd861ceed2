"""``security_model=mapped-file``: what differs from the host is in files of their own, beside the objects.

The files are found by name, so they go along where a name comes, goes or changes: see `metadata_store` for where they
are and `metadata_format` for what is in them. QEMU's local driver does the same, so a folder can be served by either.

The object itself comes first and its metadata second. A crash in between leaves an object without metadata, which
has the owner and the mode that the host says (no more than the server's user may do), or metadata without an object,
which a new object of that name replaces.

Metadata belongs to the inode: whichever of the names of an object somebody has walked to, it is read where it was found
first. Before it is read or written there, that name must still mean the object. When no known name does any more, what
was known last counts, and changes of it live in memory, as long as somebody holds the object.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
from typing import Final, TypeAlias

from pyvirtfs.fsdev.entries import Entry
from pyvirtfs.fsdev.security import metadata_store as store
from pyvirtfs.fsdev.security.mapped import NOTHING, MappedModel, Overrides, is_past
from pyvirtfs.fsdev.security.metadata_format import dump, parse
from pyvirtfs.syscalls import KEEP_ID, buffer_reader, fchownat

_UNPACK_KEY: Final = struct.Struct("=28xH2xQQ48xqI").unpack_from
"""stx_mode, stx_ino, stx_size and stx_ctime of struct statx: as long as they stay, a metadata file does."""
_ABSENT: Final = frozenset({errno.ENOENT, errno.ENOTDIR})
_FORBIDDEN: Final = frozenset({errno.EACCES, errno.EPERM, errno.ELOOP})
_NOT_EMPTY: Final = frozenset({errno.ENOTEMPTY, errno.EEXIST})
_DOTS: Final = frozenset({b".", b".."})

_Known: TypeAlias = tuple[tuple[int, ...] | None, Overrides]
"""What an entry remembers: what the metadata file was like when it was read (None: it must be read again), and what
it said."""


class MappedFile(MappedModel):
    """What differs from the host is in files in ``.virtfs_metadata``."""

    name = "mapped-file"
    acls = True
    hidden = store.HIDDEN
    placed = True

    def __init__(self, fmode: int = 0o600, dmode: int = 0o700) -> None:
        super().__init__(fmode, dmode)
        self._statx, self._buffer = buffer_reader()

    # --- what is kept ---

    def _place(self, entry: Entry) -> tuple[int, bytes] | None:
        """A folder in which an object was found, and its name there; None if that name is known to be gone."""
        node = entry.node
        if node is None:
            return None
        parent = node.parent
        if parent is not None and node.name:
            return parent.fd, node.name
        return (entry.fd, b"") if entry is self.table.root else None

    def _present_place(self, entry: Entry) -> tuple[int, bytes] | None:
        """A folder that an object is in, and its name there, checked a moment ago."""
        if entry is self.table.root:
            return entry.fd, b""
        first = entry.node
        for node in (*((first,) if first is not None else ()), *(entry.more_nodes or ())):
            parent = node.parent
            if parent is not None and node.name and self._number(parent, node.name) == entry.path:
                return parent.fd, node.name
        return None

    def _number(self, parent: Entry, name: bytes) -> int | None:
        """The number of what a name means, if it means anything."""
        try:
            return self.table.identify(parent.fd, name)[1]
        except OSError:
            return None

    def look_up(self, entry: Entry, host: tuple[int, ...]) -> Overrides:
        """See `MappedModel.look_up`."""
        known: _Known | None = entry.mapped
        place = self._place(entry)
        if known is not None:
            if not host[0]:  # unlinked
                return known[1]
            with contextlib.suppress(OSError):
                if place is not None and known[0] is not None:
                    self._statx(place[0], store.path_of(place[1]))
                    if _UNPACK_KEY(self._buffer) == known[0]:
                        return known[1]
            place = self._present_place(entry)
            if place is None:
                return known[1]
        return NOTHING if place is None else self._read(entry, host, *place)

    def _read(self, entry: Entry, host: tuple[int, ...], fd: int, name: bytes) -> Overrides:
        """Read the metadata of an object at a place."""
        try:
            self._statx(fd, store.path_of(name))
            key = _UNPACK_KEY(self._buffer)
            trusted = is_past(key[3], key[4])
            found, problem = parse(store.read(fd, name))
        except store.BadMetadataError as error:
            found, problem = NOTHING, str(error)
        except OSError as error:
            return self._without(entry, host[3], error)
        kept = self.judge(entry, host[3], found, problem)
        entry.mapped = key if trusted else None, kept
        return kept

    def _without(self, entry: Entry, host_mode: int, error: OSError) -> Overrides:
        """There is no metadata, or it is out of reach; any other error is raised again."""
        if error.errno in _ABSENT:
            problem = ""
        elif error.errno in _FORBIDDEN:
            problem = f"its metadata cannot be read: {error.strerror}"
        else:
            raise error
        entry.mapped = None, NOTHING
        return self.judge(entry, host_mode, NOTHING, problem)

    def keep(self, entry: Entry, changes: Overrides) -> None:
        """See `MappedModel.keep`."""
        host = self.table.stat(entry.fd)
        kept = self.look_up(entry, host).updated(changes)
        place = self._present_place(entry)
        if place is not None:
            fd, name = place
            store.write(fd, name, dump(kept), shared=host.nlink > 1 and not stat.S_ISDIR(host.mode))
        entry.mapped = None, kept
        with contextlib.suppress(OSError):  # the guest expects the ctime to change
            fchownat(entry.fd, b"", KEEP_ID, KEEP_ID)

    def keep_new(self, entry: Entry, parent: Entry, name: bytes, first: Overrides) -> None:
        """See `MappedModel.keep_new`."""
        store.write(parent.fd, name, dump(first))
        entry.mapped = None, first

    # --- names ---

    def _held(self, parent: Entry, name: bytes) -> Entry | None:
        """The object that a name means, if somebody holds it; what is kept of it is remembered from now on."""
        table = self.table
        try:
            entry = table.get(table.identify(parent.fd, name)[1])
        except OSError:  # it is not there, or not the guest's: the operation itself will say so
            return None
        if entry is not None:
            self.look_up(entry, table.stat(entry.fd))
        return entry

    def _gone(self, entry: Entry | None, parent: Entry, name: bytes) -> None:
        """A name was removed."""
        if entry is not None:
            self.table.detach(entry, parent, name)
        with contextlib.suppress(OSError):  # the object is gone; metadata without one does no harm
            store.remove(parent.fd, name)

    def link(self, entry: Entry, parent: Entry, name: bytes) -> None:
        """See `SecurityModel.link`."""
        super().link(entry, parent, name)
        try:
            parent.fd  # noqa: B018  # as `EntryTable.both`: it may open that again, before the other one is looked for
            place = self._present_place(entry)
            known: _Known | None = entry.mapped
            if place is not None:
                store.link(*place, parent.fd, name)
            elif known is not None and known[1] != NOTHING:
                store.write(parent.fd, name, dump(known[1]))
            else:
                store.remove(parent.fd, name)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=parent.fd)
            raise

    def unlink(self, parent: Entry, name: bytes) -> None:
        """See `SecurityModel.unlink`."""
        entry = self._held(parent, name)
        super().unlink(parent, name)
        self._gone(entry, parent, name)

    def rmdir(self, parent: Entry, name: bytes) -> None:
        """See `SecurityModel.rmdir`: a folder with nothing but metadata in it is empty."""
        if name in _DOTS:
            super().rmdir(parent, name)  # which refuses it
        entry = self._held(parent, name)
        aside = store.set_aside(parent.fd, name)
        try:
            super().rmdir(parent, name)
        except OSError:
            if aside is not None:
                store.put_back(parent.fd, name, aside)
            raise
        if aside is not None:
            store.throw_away(parent.fd, aside)
        self._gone(entry, parent, name)

    def discard(self, parent: Entry, name: bytes, *, folder: bool) -> None:
        """See `SecurityModel.discard`."""
        super().discard(parent, name, folder=folder)
        store.remove(parent.fd, name)

    def rename(self, old: Entry, old_name: bytes, new: Entry, new_name: bytes) -> None:
        """See `SecurityModel.rename`."""
        moving = self._number(old, old_name)
        target = self._number(new, new_name)
        loser = self._held(new, new_name)
        if target is not None:  # there would be no way back
            old_fd, new_fd = self.table.both(old, new)
            store.prepare(old_fd, old_name, new_fd)
        try:
            super().rename(old, old_name, new, new_name)
        except OSError as error:
            if error.errno not in _NOT_EMPTY or not self._rename_over_folder(old, old_name, new, new_name):
                raise
        if target is not None and target == moving:
            return  # two names of one object: rename(2) has done nothing
        if loser is not None:
            self.table.detach(loser, new, new_name)
        try:
            old_fd, new_fd = self.table.both(old, new)
            if target is None:
                store.prepare(old_fd, old_name, new_fd)
            store.rename(old_fd, old_name, new_fd, new_name)
        except OSError:
            if target is None:
                with contextlib.suppress(OSError):
                    super().rename(new, new_name, old, old_name)
            raise

    def _rename_over_folder(self, old: Entry, old_name: bytes, new: Entry, new_name: bytes) -> bool:
        """Rename a folder to the name of one that holds nothing but metadata; whether it was one."""
        aside = None if new_name in _DOTS else store.set_aside(new.fd, new_name)
        if aside is None:
            return False
        try:
            super().rename(old, old_name, new, new_name)
        except OSError:
            store.put_back(new.fd, new_name, aside)
            raise
        store.throw_away(new.fd, aside)
        return True
