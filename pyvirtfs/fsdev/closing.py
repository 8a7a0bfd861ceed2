"""Room for more objects than there are descriptors: those not used for long are closed, and opened again when needed.

An entry that was closed has another class, `ClosedEntry`, whose `fd` opens the object again and gives the entry its own
class back. So whoever uses an entry need not know, and costs nothing where nothing was closed. The same is done with
open files.

An object is opened again by its file handle (name_to_handle_at(2)) where the process may do that (CAP_DAC_READ_SEARCH)
and the file system knows handles: whatever the host did with its names, it is found, or it is gone (ESTALE). Elsewhere
it is looked up at the place where it was found, and taken if its number and its time of birth are the same. (The
number alone would not do: it is used again when the object is gone.) Above that place there may be folders that are
closed, too. So that nobody has to wait for a long way down, some folders of a deep tree stay open.

What cannot be opened again stays open: objects without a name, those with locks, open folders, and where there are no
handles what has no time of birth, or one that changes (overlayfs), or is not at its place any more. When these have
spent the budget nothing new can be found or opened; what is known goes on working, with a few descriptors beyond the
budget.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple, Never

from pyvirtfs.fsdev.capabilities import missing_capabilities
from pyvirtfs.fsdev.driver import Attributes
from pyvirtfs.fsdev.entries import NEVER_ASKED, PATH_FLAGS, UNPACK_ATTRIBUTES, Entry, EntryTable
from pyvirtfs.fsdev.listing import OVERLAYFS
from pyvirtfs.syscalls import (
    STATX_MNT_ID,
    FileHandle,
    buffer_reader,
    fstatfs,
    name_to_handle_at,
    open_by_handle_at,
    reopen,
)

if TYPE_CHECKING:
    from pyvirtfs.fsdev.local_core import LocalFile

_FOLDER_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_PART: Final = 16
"""One part in so many of the budget is closed in one go, so that not every request has to close something."""
_LOOKED_AT: Final = 1024
"""How many entries are looked at in one go, at least."""
_RECENT: Final = 4
"""Entries that were opened again a moment ago stay open; an operation needs that of the last two."""
_BEYOND: Final = _RECENT + 2
"""How far beyond the budget what was closed is opened again where nothing can be closed: those above, the next one, and
its file. Otherwise a guest that spends its budget on such objects could not read files any more that it has open."""
_LONGEST_WAY: Final = 128
"""How many closed folders, one in the other, have to be looked up at most to open something again by name."""
_MOST_STEPS: Final = 1024
"""The same where the host has moved folders, so that the way has become longer."""
_PLACES: Final = 8
"""At how many of the places where it was found something is looked for."""

_new = tuple.__new__
_close = os.close
_UNPACK_MOUNT: Final = struct.Struct("=144xQ").unpack_from
"""stx_mnt_id of struct statx; 0 before Linux 5.8."""


class Birth(NamedTuple):
    """How to recognize an object, and to open it again."""

    closer: LeastRecentlyOpened
    handle: FileHandle | None
    mount: int
    sec: int
    nsec: int


def _stale() -> Never:
    raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))


def _places(entry: Entry) -> list[tuple[Entry, bytes]]:
    """Where an entry was found: the first places, and the last one."""
    nodes = () if entry.node is None else (entry.node, *(entry.more_nodes or ()))
    places = [(node.parent, node.name) for node in nodes if node.parent is not None and node.name]
    return places if len(places) <= _PLACES else [*places[: _PLACES - 1], places[-1]]


def _opens_anything() -> bool:
    """Whether modes do not matter to this process now."""
    return not missing_capabilities(("CAP_DAC_OVERRIDE",))


def _handle(fd: int) -> tuple[FileHandle | None, int]:
    """The handle of an object, if it has one, and of which mount it is."""
    try:
        return name_to_handle_at(fd)
    except OSError:
        return None, -1


class ClosedEntry(Entry):
    """An entry without a descriptor."""

    __slots__ = ()

    @property
    def fd(self) -> int:  # type: ignore[override]  # the slot is not used meanwhile
        """The object's descriptor, from now on the entry's own again.

        Raises:
            OSError: ESTALE: the object is gone. ENFILE, and as openat(2): it cannot be opened now.
        """
        birth: Birth = self.closed
        return birth.closer.open_entry(self)


class LeastRecentlyOpened:
    """Closes what was opened longest ago.

    Args:
        table: The entries of the export.
        files: Its open files, those that were opened last at the end.
        is_locked: Whether an object with that number has locks.
    """

    def __init__(self, table: EntryTable, files: dict[LocalFile, None], is_locked: Callable[[int], bool]) -> None:
        self._table = table
        self._files = files
        self._is_locked = is_locked
        self._recent: deque[Entry] = deque(maxlen=_RECENT)
        self._kept: Entry | None = None
        self._statx, self._buffer = buffer_reader(STATX_MNT_ID)
        self._mount_fd = -1
        self._mount_id = -1
        self._by_handle: bool | None = None  # None: nobody has tried
        self._has_handles: bool | None = None  # the same, and this process still may open them
        self._closed_files = 0
        self._is_stuck = False  # a moment ago there was nothing among all entries that could be closed

    # --- making room ---

    def make_room(self, wanted: int) -> bool:
        """Close at least that many descriptors, entries first, then files; whether that could be done.

        Among many that must stay open all are looked at, if need be; but not each time: finding that nothing can be
        closed must not take for ever.
        """
        aim = max(wanted, self._table.budget // _PART)
        closed = self._close_entries(aim)
        if closed < wanted:
            closed += self._close_files(wanted - closed)
        if closed < wanted and not self._is_stuck:
            left = len(self._table.open) - _LOOKED_AT
            while closed < wanted and left > 0:
                closed += self._close_entries(aim)
                left -= _LOOKED_AT
        self._is_stuck = closed < wanted
        return closed >= wanted

    def _close_entries(self, aim: int) -> int:
        table = self._table
        opened = table.open
        self._has_handles = None  # the process may have given its privileges up
        found: list[tuple[Entry, Birth, Entry | None]] = []
        for path, entry in list(islice(opened.items(), _LOOKED_AT)):
            if len(found) >= aim:
                break
            again = None if entry in self._recent else self._birth(entry)
            if again is None:
                del opened[path]
                opened[path] = entry  # behind the others, so that they are looked at next time
            else:
                found.append((entry, *again))
        done = 0
        for entry, birth, folder in found:  # nothing was closed until now, or it would be on the way to what is below
            path = entry.path
            del opened[path]
            if folder is not None and not self._is_near(entry, folder):
                opened[path] = entry
                continue
            fd = entry.fd
            entry.closed = birth
            entry.qid = NEVER_ASKED  # memory that can be had again, of what there may be many
            entry.__class__ = ClosedEntry
            table.closed[path] = entry
            _close(fd)
            done += 1
        return done

    @staticmethod
    def _is_near(entry: Entry, folder: Entry) -> bool:
        """Whether the way to an entry in a folder, and to what is closed below it, is short without its descriptor.

        If so, it is noted in all folders above that these are closed.
        """
        above = [folder]
        while folder.closed is not None and folder.closed.handle is None:
            if len(above) > _LONGEST_WAY or not (places := _places(folder)):
                return False
            folder = places[0][0]
            above.append(folder)
        if len(above) + entry.below > _LONGEST_WAY:
            return False
        for levels, folder in enumerate(above, entry.below + 1):
            folder.below = max(folder.below, levels)
        return True

    def _stat(self, fd: int, name: bytes = b"") -> Attributes:
        self._statx(fd, name)
        return _new(Attributes, UNPACK_ATTRIBUTES(self._buffer))

    def _birth(self, entry: Entry) -> tuple[Birth, Entry | None] | None:
        """How to open an entry again and, if that is by name, the folder that it is in; None: it must stay open."""
        table = self._table
        if entry is table.root or self._is_locked(entry.path):
            return None
        try:
            found = self._stat(entry.fd)
            if not found.nlink:
                return None
            (mount,) = _UNPACK_MOUNT(self._buffer)
            if self._have_handles():
                handle, of = _handle(entry.fd)
                # By way of another mount of the same file system it would be opened as if that were not there.
                if handle is not None and of == self._mount_id:
                    return Birth(self, handle, mount, 0, 0), None
            # A file of overlayfs is born again when it is changed for the first time.
            if not (found.btime_sec or found.btime_nsec) or fstatfs(entry.fd).type == OVERLAYFS:
                return None
            folder = self._folder(entry)
        except OSError:
            return None
        return None if folder is None else (Birth(self, None, mount, found.btime_sec, found.btime_nsec), folder)

    def _have_handles(self) -> bool:
        """Whether objects can be opened by handle."""
        if self._has_handles is None:
            if self._by_handle is None:
                self._by_handle = self._try_handles()
            self._has_handles = self._by_handle and not missing_capabilities(("CAP_DAC_READ_SEARCH",))
        return self._has_handles

    def _try_handles(self) -> bool:
        """Whether this process may open by handle, and the export's file system knows handles."""
        root = self._table.root.fd
        try:
            handle, self._mount_id = name_to_handle_at(root)
            self._mount_fd = reopen(root, _FOLDER_FLAGS)
            self._table.others += 1
            _close(open_by_handle_at(self._mount_fd, handle, os.O_PATH))
        except OSError:
            return False
        return True

    def _folder(self, entry: Entry) -> Entry | None:
        """The folder that an entry is in, checked a moment ago."""
        for parent, name in _places(entry):
            fd = -1
            try:
                if parent.closed is not None:
                    fd = self._open_again(parent)
                found = self._stat(parent.fd if fd < 0 else fd, name)
                if self._number(found) == entry.path:
                    return parent
            except OSError:
                continue
            finally:
                if fd >= 0:
                    _close(fd)
        return None

    def _number(self, found: Attributes) -> int:
        return self._table.qids.path(found.dev_minor << 32 | found.dev_major, found.ino)

    # --- opening again ---

    def _check_room_again(self, wanted: int) -> None:
        """As `EntryTable.check_room`, for what was closed."""
        try:
            self._table.check_room(wanted)
        except OSError:
            self._table.check_room(wanted - _BEYOND)

    def open_entry(self, entry: Entry) -> int:
        """Open a closed entry again; see `ClosedEntry.fd`."""
        table = self._table
        if table.closed.get(entry.path) is not entry:
            _stale()
        self._check_room_again(1)
        return self._opened(entry, self._open_again(entry))

    def _open_again(self, entry: Entry) -> int:
        """A new descriptor of the object of a closed entry."""
        fd = self._open_by_handle(entry)
        return fd if fd >= 0 else self._open_by_name(entry)

    def _open_by_handle(self, entry: Entry) -> int:
        """The same by its handle; -1 if that is not how."""
        birth: Birth = entry.closed
        if birth.handle is not None:
            with contextlib.suppress(PermissionError):  # the process has given its privileges up since
                return open_by_handle_at(self._mount_fd, birth.handle, os.O_PATH)
        return -1

    def _opened(self, entry: Entry, fd: int) -> int:
        table = self._table
        del table.closed[entry.path]
        entry.__class__ = Entry
        entry.closed = None
        entry.fd = fd
        table.open[entry.path] = entry
        self._recent.append(entry)
        return fd

    def _open_by_name(self, entry: Entry) -> int:
        """Look an object up at the places where it was found."""
        for place in _places(entry):
            for above in (0, -1):
                try:
                    return self._open_at(entry, place, above)
                except OSError as error:
                    if error.errno != errno.ESTALE:
                        raise
        return _stale()

    def _open_at(self, entry: Entry, place: tuple[Entry, bytes], above: int) -> int:
        """Look an object up at a place, below the next folder above it that is open.

        Args:
            entry: The object.
            place: Where it was found.
            above: Which place of the folders above it counts where there are several: 0: the first one, -1: the last
                one. The host may have renamed a folder since it was found first, or back.
        """
        way: list[tuple[Entry, bytes]] = []
        while True:
            folder, name = place
            way.append((entry, name))
            entry = folder
            if entry.closed is None:
                fd, here = -1, entry.fd
                break
            fd = here = self._open_by_handle(entry)
            if fd >= 0:
                break
            places = _places(entry)
            if not places or len(way) >= _MOST_STEPS:
                _stale()
            place = places[above]
        try:
            while way:
                entry, name = way.pop()
                try:
                    there = os.open(name, PATH_FLAGS, dir_fd=here)
                except (FileNotFoundError, NotADirectoryError):
                    _stale()
                if fd >= 0:
                    _close(fd)
                fd = here = there
                if not self._is_same(entry, fd):
                    _stale()
        except OSError:
            if fd >= 0:
                _close(fd)
            raise
        return fd

    def _is_same(self, entry: Entry, fd: int) -> bool:
        """Whether a descriptor stands for the object that was closed."""
        birth: Birth = entry.closed
        found = self._stat(fd)
        if birth.handle is not None:
            return _handle(fd)[0] == birth.handle
        return (self._number(found), found.btime_sec, found.btime_nsec) == (entry.path, birth.sec, birth.nsec)

    def found(self, path: int, fd: int) -> Entry | None:
        """A walk has found something with the number of a closed entry: that object, or one made after it was gone."""
        entry = self._table.closed[path]
        if not self._is_same(entry, fd):
            del self._table.closed[path]
            return None
        birth: Birth = entry.closed
        own = fd
        if _UNPACK_MOUNT(self._buffer)[0] != birth.mount:
            # Another mount, which may be a read-only one: as where nothing was closed, the first one counts.
            with contextlib.suppress(OSError):
                own = self._open_again(entry)
        self._opened(entry, own)
        if own != fd:
            _close(fd)
        return entry

    def before_release(self, entry: Entry) -> None:
        """A place at which an entry can be found is about to be forgotten; it may be gone from all others."""
        birth: Birth = entry.closed
        if birth.handle is None:
            with contextlib.suppress(OSError):
                self.keep_open(entry)

    def after_move(self, entry: Entry) -> None:
        """An object has a new place, to which the way may be longer. Never fails."""
        if entry.closed is not None:
            self.before_release(entry)

    def keep_open(self, entry: Entry) -> None:
        """Open an entry that is about to lose its name."""
        if entry.closed is not None:
            entry.fd  # noqa: B018  # opens it

    # --- files ---

    def _close_files(self, wanted: int) -> int:
        files = self._files
        anything = _opens_anything()
        done = 0
        for file in list(islice(files, _LOOKED_AT)):
            if done >= wanted:
                break
            del files[file]
            files[file] = None
            if file.closer is None and self._can_be_opened_again(file, anything=anything):
                file.close_for_now(self)
                self._table.others -= 1
                self._closed_files += 1
                done += 1
        return done

    def _can_be_opened_again(self, file: LocalFile, *, anything: bool) -> bool:
        if file.entry.kind != stat.S_IFREG or file.entry is self._kept:
            return False
        if anything:
            return True
        try:
            found = self._stat(file.fd)
        except OSError:
            return False
        wanted = stat.S_IRUSR if file.flags & os.O_ACCMODE != os.O_WRONLY else 0
        if file.flags & os.O_ACCMODE:
            wanted |= stat.S_IWUSR
        return found.uid == os.geteuid() and found.mode & wanted == wanted

    def open_file(self, file: LocalFile) -> int:
        """Open a file that was closed for now again.

        Raises:
            OSError: As `ClosedEntry.fd`, and open(2).
        """
        self._check_room_again(2)
        try:
            fd = reopen(file.entry.fd, file.flags)
        except PermissionError:
            # As when it was opened first. It may belong to somebody else since.
            if not file.flags & os.O_NOATIME:
                raise
            file.flags &= ~os.O_NOATIME
            fd = reopen(file.entry.fd, file.flags)
        self._table.others += 1
        self._closed_files -= 1
        del self._files[file]
        self._files[file] = None
        return fd

    def forget_file(self) -> None:
        """A file that is closed for now will not be opened again."""
        self._closed_files -= 1

    @contextlib.contextmanager
    def kept_open(self, entry: Entry) -> Iterator[None]:
        """Keep the files of an object open while its mode or its owner changes, which may forbid to open them again.

        Raises:
            OSError: As `open_file`: nothing has changed then.
        """
        self._kept = entry
        try:
            if self._closed_files and not _opens_anything():
                for file in [file for file in self._files if file.entry is entry]:
                    file.fd  # noqa: B018  # opens it
            yield
        finally:
            self._kept = None

    # --- the end ---

    def close(self) -> None:
        """See `Closer.close`."""
        for entry in self._table.closed.values():
            entry.__class__ = Entry
            entry.closed = None
            entry.fd = -1
        self._recent.clear()
        if self._mount_fd >= 0:
            _close(self._mount_fd)
            self._mount_fd = -1
            self._table.others -= 1
            self._by_handle = None
