"""``security_model=mapped-file``: what differs from the host is in files of their own, beside the objects.

The files are found by name, so they go along where a name comes, goes or changes: see `metadata_store` for where they
are and `metadata_format` for what is in them. QEMU's local driver does the same, so a folder can be served by either.

The object itself comes first and its metadata second. A crash in between leaves an object without metadata, which
has the owner and the mode that the host says (no more than the server's user may do), or metadata without an object,
which a new object of that name replaces.

Metadata belongs to the inode: whichever of the names of an object somebody has walked to, it is read where it was found
first. Before it is read or written there, that name must still mean the object. When no known name does any more, what
was known last counts. A change of it is written where another name is found in a folder in which the object once was,
or else where somebody walks to it next; until then it lives in memory, as long as somebody holds the object.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
from typing import Final, TypeAlias

from pyvirtfs.fsdev.entries import Entry, Node
from pyvirtfs.fsdev.listing import find_name
from pyvirtfs.fsdev.security import metadata_store as store
from pyvirtfs.fsdev.security.mapped import NOTHING, MappedModel, Overrides, is_past
from pyvirtfs.fsdev.security.metadata_format import dump, parse
from pyvirtfs.syscalls import KEEP_ID, buffer_reader, fchownat

_UNPACK_KEY: Final = struct.Struct("=28xH2xQQ48xqI").unpack_from
"""stx_mode, stx_ino, stx_size and stx_ctime of struct statx: as long as they stay, a metadata file does."""
_ABSENT: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ESTALE})
"""There is none, or the folder in which the object was found was closed and is gone."""
_FORBIDDEN: Final = frozenset({errno.EACCES, errno.EPERM, errno.ELOOP})
_NOT_EMPTY: Final = frozenset({errno.ENOTEMPTY, errno.EEXIST})
_DOTS: Final = frozenset({b".", b".."})

_Place: TypeAlias = tuple[Entry, bytes]
"""A folder, and a name in it; the root has no name, in itself."""
_Known: TypeAlias = tuple[tuple[int, ...] | None, Overrides, Overrides]
"""What an entry remembers: what the metadata file was like when it was read (None: it must be read again), what it
said, and what is to be written into it, because no name was known when that was changed."""


def _nodes(entry: Entry) -> tuple[Node, ...]:
    """Where an entry was found."""
    first = entry.node
    return () if first is None else (first, *(entry.more_nodes or ()))


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

    def _place(self, entry: Entry) -> _Place | None:
        """Where an object was found."""
        node = entry.node
        if node is None:
            return None
        parent = node.parent
        if parent is not None and node.name:
            return parent, node.name
        return (entry, b"") if entry is self.table.root else None

    def _present_place(self, entry: Entry) -> _Place | None:
        """Where an object is, checked a moment ago."""
        if entry is self.table.root:
            return entry, b""
        for node in _nodes(entry):
            parent = node.parent
            if parent is not None and node.name and self._number(parent, node.name) == entry.path:
                return parent, node.name
        return None

    def _any_place(self, entry: Entry) -> _Place | None:
        """As `_present_place`; or another name in a folder in which the object was found: it may be a long search."""
        place = self._present_place(entry)
        if place is not None:
            return place
        host = self.table.stat(entry.fd)
        if not host.nlink:
            return None
        for parent in {node.parent for node in _nodes(entry) if node.parent is not None}:
            with contextlib.suppress(OSError):
                name = self._name_in(parent, entry, host.ino)
                if name is not None:
                    return parent, name
        return None

    def _name_in(self, parent: Entry, entry: Entry, inode: int) -> bytes | None:
        return find_name(parent.proc_path, inode, lambda name: self._number(parent, name) == entry.path)

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
        changes = NOTHING
        if known is not None:
            if not host[0]:  # unlinked
                return known[1]
            with contextlib.suppress(OSError):
                if place is not None and known[0] is not None:
                    self._statx(place[0].fd, store.path_of(place[1]))
                    if _UNPACK_KEY(self._buffer) == known[0]:
                        return known[1]
            place = self._present_place(entry)
            if place is None:
                return known[1]
            changes = known[2]
        if place is None:
            return NOTHING
        kept = self._read(entry, host, *place)
        return kept if changes == NOTHING else self._catch_up(entry, host, place, kept, changes)

    def _catch_up(
        self, entry: Entry, host: tuple[int, ...], place: _Place, kept: Overrides, changes: Overrides
    ) -> Overrides:
        """Write what was changed while no name was known; what cannot be written now is kept for the next time."""
        kept = kept.updated(changes)
        try:
            self._write(host, place, kept)
        except OSError:
            entry.mapped = None, kept, changes
        else:
            entry.mapped = None, kept, NOTHING
        return kept

    def _write(self, host: tuple[int, ...], place: _Place, kept: Overrides) -> None:
        """Write the metadata of an object at a place."""
        parent, name = place
        store.write(parent.fd, name, dump(kept), shared=host[0] > 1 and not stat.S_ISDIR(host[3]))

    def _read(self, entry: Entry, host: tuple[int, ...], parent: Entry, name: bytes) -> Overrides:
        """Read the metadata of an object at a place."""
        try:
            fd = parent.fd
            self._statx(fd, store.path_of(name))
            key = _UNPACK_KEY(self._buffer)
            trusted = is_past(key[3], key[4])
            found, problem = parse(store.read(fd, name))
        except store.BadMetadataError as error:
            found, problem = NOTHING, str(error)
        except OSError as error:
            return self._without(entry, host[3], error)
        kept = self.judge(entry, host[3], found, problem)
        entry.mapped = key if trusted else None, kept, NOTHING
        return kept

    def _without(self, entry: Entry, host_mode: int, error: OSError) -> Overrides:
        """There is no metadata, or it is out of reach; any other error is raised again."""
        if error.errno in _ABSENT:
            problem = ""
        elif error.errno in _FORBIDDEN:
            problem = f"its metadata cannot be read: {error.strerror}"
        else:
            raise error
        entry.mapped = None, NOTHING, NOTHING
        return self.judge(entry, host_mode, NOTHING, problem)

    def keep(self, entry: Entry, changes: Overrides) -> None:
        """See `MappedModel.keep`."""
        host = self.table.stat(entry.fd)
        kept = self.look_up(entry, host).updated(changes)
        known: _Known | None = entry.mapped
        place = self._any_place(entry)
        if place is not None:
            self._write(host, place, kept)
            entry.mapped = None, kept, NOTHING
        else:
            entry.mapped = None, kept, changes if known is None else known[2].updated(changes)
        with contextlib.suppress(OSError):  # the guest expects the ctime to change
            fchownat(entry.fd, b"", KEEP_ID, KEEP_ID)

    def keep_new(self, entry: Entry, parent: Entry, name: bytes, first: Overrides) -> None:
        """See `MappedModel.keep_new`."""
        store.write(parent.fd, name, dump(first))
        entry.mapped = None, first, NOTHING

    # --- names ---

    def beside(self, name: bytes) -> tuple[bytes, ...]:
        """See `SecurityModel.beside`."""
        return store.FOLDER, store.path_of(name)

    def _remember(self, parent: Entry, name: bytes) -> None:
        """A name is about to be lost: if somebody holds its object, what is kept of that is remembered from now on."""
        table = self.table
        try:
            entry = table.get(table.identify(parent.fd, name)[1])
        except OSError:  # it is not there, or not the guest's: the operation itself will say so
            return
        if entry is None:
            return
        try:
            fd = entry.fd
        except OSError as error:
            if error.errno == errno.ESTALE:  # it was closed, and is gone; its number means another object by now
                return
            raise
        self.look_up(entry, table.stat(fd))

    def _gone(self, parent: Entry, name: bytes) -> None:
        """A name was removed."""
        with contextlib.suppress(OSError):  # the object is gone; metadata without one does no harm
            store.remove(parent.fd, name)

    def link(self, entry: Entry, parent: Entry, name: bytes) -> None:
        """See `SecurityModel.link`."""
        place = self._any_place(entry)
        super().link(entry, parent, name)
        try:
            known: _Known | None = entry.mapped
            if place is not None:
                old, old_name = place
                old_fd, new_fd = self.table.both(old, parent)
                store.link(old_fd, old_name, new_fd, name)
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
        self._remember(parent, name)
        super().unlink(parent, name)
        self._gone(parent, name)

    def rmdir(self, parent: Entry, name: bytes) -> None:
        """See `SecurityModel.rmdir`: a folder with nothing but metadata in it is empty."""
        if name in _DOTS:
            super().rmdir(parent, name)  # which refuses it
        self._remember(parent, name)
        aside = store.set_aside(parent.fd, name)
        try:
            super().rmdir(parent, name)
        except OSError:
            if aside is not None:
                store.put_back(parent.fd, name, aside)
            raise
        if aside is not None:
            store.throw_away(parent.fd, aside)
        self._gone(parent, name)

    def discard(self, parent: Entry, name: bytes, *, folder: bool) -> None:
        """See `SecurityModel.discard`."""
        super().discard(parent, name, folder=folder)
        store.remove(parent.fd, name)

    def rename(self, old: Entry, old_name: bytes, new: Entry, new_name: bytes) -> None:
        """See `SecurityModel.rename`."""
        moving = self._number(old, old_name)
        target = self._number(new, new_name)
        self._remember(new, new_name)
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
