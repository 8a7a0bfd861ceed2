"""The objects of an export that somebody uses: shared, reference-counted, held by an ``O_PATH`` descriptor.

An `Entry` is an object (an inode): all handles on it share it, so that there is one descriptor, one write counter, and
one place where its locks belong. It pins the inode, so its number cannot come to mean something else meanwhile.
Descriptors are few: where the budget is spent, those that were not used for long are closed, and opened again when they
are needed (`pyvirtfs.fsdev.closing`). So a number taken from `Entry.fd` is good only until that of another entry is
asked for; calls that take two get them from `EntryTable.both`.

A `Node` is an entry as it was found: below which folder and by which name. Those belong to the node and not to the
entry, since an object with two links has two of them. Handles that found the same object at the same place share the
node.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Callable
from typing import Any, Final, Protocol
from zlib import crc32

from pyvirtfs.fsdev.driver import QID_DIRECTORY, QID_FILE, QID_SYMLINK, Attributes, Qid
from pyvirtfs.fsdev.qids import FOREIGN, QidPaths
from pyvirtfs.syscalls import buffer_reader

PATH_FLAGS: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
"""How the objects of an export are looked up: no symbolic link is followed, nothing is opened in earnest."""

# struct statx of linux/stat.h. All fields of `Attributes`, from stx_nlink to stx_dev_minor without the padding:
UNPACK_ATTRIBUTES: Final = struct.Struct("=16x3IH2x3Q8xqI4xqI4xqI4xqI4x4I").unpack_from
# and what tells an object from others: stx_mode, stx_ino, stx_size, stx_dev_major and stx_dev_minor as one number.
_UNPACK_IDENTITY: Final = struct.Struct("=28xH2xQQ88xQ").unpack_from
_CHANGE_TIMES: Final = slice(96, 128)
"""stx_ctime and stx_mtime."""
WRITE_STEP: Final = 0x9E3779B1
"""What one write adds to the seed of the version; large, so that it does not look like a change of the size."""
_REMEMBERED_WRITES: Final = 1024
_FORMER_PLACES: Final = 64
"""So many places that nodes had once are remembered in vain, at least."""

NEVER_ASKED: Final = Qid(0, 0, 0)
"""No object has the version 0."""
_QID_TYPES: Final = {stat.S_IFDIR: QID_DIRECTORY, stat.S_IFLNK: QID_SYMLINK}

_new = tuple.__new__
_open = os.open
_close = os.close


class Entry:
    """An object of the export that somebody uses.

    Attributes:
        fd: ``O_PATH`` descriptor; -1 once the entry was dropped. Asking for it may open the object again.
        path: Its number in the export, and its key in the table.
        shown_path: Its qid.path; the same, but for objects of other devices with ``multidevs=warn``.
        kind: The S_IFMT bits of its mode, as the guest sees it.
        qid_type: The same as 9P says it.
        qid: Its qid as it was when somebody asked last.
        refs: Nodes of it, nodes below it, open files of it, whoever else holds it.
        writes: Changes made through the export, counted in a large step: timestamps are coarser than writes are fast.
        node: The first node of it, if there is one.
        more_nodes: Further ones: only of objects that were found at several places.
        below: By how many closed folders, at most, the way leads from here to what was found below and is closed;
            never too small.
        writers: Open files through which it can be truncated although its mode forbids to open it for that.
        mapped: What a mapped security model knows of it.
        closed: How to open it again, while it is closed.
    """

    __slots__ = (
        "below",
        "closed",
        "fd",
        "kind",
        "mapped",
        "more_nodes",
        "node",
        "path",
        "qid",
        "qid_type",
        "refs",
        "shown_path",
        "writers",
        "writes",
    )

    def __init__(self, fd: int, path: int, kind: int, writes: int) -> None:
        self.fd = fd
        self.path = self.shown_path = path
        self.kind = kind
        self.qid_type = _QID_TYPES.get(kind, QID_FILE)
        self.qid = NEVER_ASKED
        self.refs = 1
        self.writes = writes
        self.node: Node | None = None
        self.more_nodes: NodeSet | None = None
        self.below = 0
        self.writers: list[Any] | None = None
        self.mapped: Any = None
        self.closed: Any = None

    def become(self, kind: int) -> None:
        """The guest is to see an object of this kind (S_IFMT bits)."""
        self.kind = kind
        self.qid_type = _QID_TYPES.get(kind, QID_FILE)
        self.qid = NEVER_ASKED

    @property
    def proc_path(self) -> bytes:
        """A path to exactly this object, for the calls that take no ``O_PATH`` descriptor."""
        return b"/proc/self/fd/%d" % self.fd


class Node:
    """An entry at the place where it was found.

    Attributes:
        entry: The object.
        parent: The folder; None for the root, and where ``..`` led to the object and so nobody knows yet.
        name: Its name there, changed when the object is renamed through the export.
        refs: How many handles of the server share it.
    """

    __slots__ = ("entry", "name", "parent", "refs")

    def __init__(self, entry: Entry, parent: Entry | None, name: bytes) -> None:
        self.entry = entry
        self.parent = parent
        self.name = name
        self.refs = 1


class NodeSet(dict[Node, None]):
    """Nodes of one entry, of which there may be many thousands: an object has as many names as it is given."""

    __slots__ = ("_places",)

    def __init__(self) -> None:
        super().__init__()
        self._places: dict[tuple[Entry | None, bytes], Node] = {}  # also of nodes that are not there any more

    def at(self, parent: Entry | None, name: bytes) -> Node | None:
        """The node at a place."""
        node = self._places.get((parent, name))
        return node if node is not None and node.parent is parent and node.name == name and node in self else None

    def note(self, node: Node) -> None:
        """A node is here, and its place is what it says, from now on."""
        self[node] = None
        places = self._places
        if len(places) > 2 * len(self) + _FORMER_PLACES:
            places.clear()
            places.update({(each.parent, each.name): each for each in self})
        places[node.parent, node.name] = node


class Closer(Protocol):
    """Closes descriptors of entries to make room, and opens them again."""

    def make_room(self, wanted: int) -> bool:
        """Close at least that many descriptors; whether that could be done."""

    def found(self, path: int, fd: int) -> Entry | None:
        """The closed entry with that number is open again, with `fd`; None if that is another object by now."""

    def before_release(self, entry: Entry) -> None:
        """A node of a closed entry, which others still use, is about to be forgotten. Never fails."""

    def close(self) -> None:
        """The table is closed."""


class EntryTable:
    """All entries of one export, by the number that `QidPaths` gives them.

    Args:
        root_fd: ``O_PATH`` descriptor of the export's root, owned by the table from now on.
        multidevs: What becomes of objects of other devices than the root's (`QidPaths`).
        budget: How many descriptors the export may hold at one time.

    Attributes:
        budget: The same.
        others: How many descriptors besides those of the entries the export holds: open files, locks.
        device: The device of the root, as the kernel's two numbers in one.
        qids: How objects get their numbers.
        root: The entry of the root.
        root_node: The node of the root; every attach shares it.
        statx: Fills `buffer` with what statx(2) tells of a descriptor, or of a name below one.
        buffer: A struct statx.
        change_times: Its ctime and mtime.
        watcher: Called with an entry before its descriptor is closed, because nobody uses it any more.
        open: The entries that have a descriptor by their number, those that were opened last at the end.
        closed: Those that were closed to make room.
        closer: Makes room; None: nothing does.
    """

    __slots__ = (
        "_recent_writes",
        "budget",
        "buffer",
        "change_times",
        "closed",
        "closer",
        "device",
        "open",
        "others",
        "qids",
        "root",
        "root_node",
        "statx",
        "watcher",
    )

    def __init__(self, root_fd: int, *, multidevs: str = "remap", budget: int = 1 << 30) -> None:
        self.budget = budget
        self.others = 0
        self.watcher: Callable[[Entry], None] | None = None
        self.statx, self.buffer = buffer_reader()
        self.change_times = self.buffer[_CHANGE_TIMES]
        self.open: dict[int, Entry] = {}
        self.closed: dict[int, Entry] = {}
        self.closer: Closer | None = None
        # A write forgotten with its entry could bring the version back to a value that it had before.
        self._recent_writes: dict[int, int] = {}
        self.statx(root_fd)
        self.device: int = _UNPACK_IDENTITY(self.buffer)[3]
        self.qids = QidPaths(self.device, multidevs)
        self.root, _ = self.adopt(root_fd)
        self.root_node = Node(self.root, None, b"")
        self.root.node = self.root_node

    def __len__(self) -> int:
        return len(self.open) + len(self.closed)

    def get(self, path: int) -> Entry | None:
        """The entry with that number, if somebody uses it."""
        return self.open.get(path) or self.closed.get(path)

    def both(self, one: Entry, other: Entry) -> tuple[int, int]:
        """The descriptors of two entries, both open now."""
        other.fd  # noqa: B018  # may close the other one
        return one.fd, other.fd  # which may open it again, and then leaves this one alone

    def check_room(self, wanted: int) -> None:
        """Make room for `wanted` more descriptors, if need be.

        Raises:
            OSError: ENFILE: the budget is spent, on what cannot be closed.
        """
        missing = len(self.open) + self.others + wanted - self.budget
        if missing > 0 and (self.closer is None or not self.closer.make_room(missing)):
            raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))

    # --- stat ---

    def stat(self, fd: int, name: bytes = b"") -> Attributes:
        """statx(2) of a descriptor, or of a name below it; follows no symbolic link.

        Raises:
            OSError: As statx(2).
        """
        self.statx(fd, name)
        return _new(Attributes, UNPACK_ATTRIBUTES(self.buffer))

    def last_stat(self) -> Attributes:
        """What the last call of `statx` has told, also that of another method: `adopt` ends with one of its object."""
        return _new(Attributes, UNPACK_ATTRIBUTES(self.buffer))

    def identify(self, fd: int, name: bytes = b"") -> tuple[int, int]:
        """st_mode and the number of a descriptor, or of a name below it; follows no symbolic link.

        Raises:
            OSError: As statx(2) and `QidPaths.path`.
        """
        self.statx(fd, name)
        mode, inode, _, device = _UNPACK_IDENTITY(self.buffer)
        return mode, self.qids.path(device, inode)

    def shown(self, fd: int, name: bytes) -> tuple[int, int]:
        """st_mode and the qid.path of a name below a descriptor; follows no symbolic link.

        Raises:
            OSError: As statx(2) and `QidPaths.path`.
        """
        self.statx(fd, name)
        mode, inode, _, device = _UNPACK_IDENTITY(self.buffer)
        return mode, self.qids.shown(self.qids.path(device, inode), inode)

    def device_of(self, fd: int, name: bytes = b"") -> int:
        """The device of a descriptor, or of a name below it, as the kernel's two numbers in one.

        Raises:
            OSError: As statx(2).
        """
        self.statx(fd, name)
        device: int = _UNPACK_IDENTITY(self.buffer)[3]
        return device

    def qid(self, entry: Entry) -> Qid:
        """The qid of an entry, with the version of this moment.

        Raises:
            OSError: As statx(2).
        """
        self.statx(entry.fd)
        version = crc32(self.change_times, _UNPACK_IDENTITY(self.buffer)[2] + entry.writes) or 1
        qid = entry.qid
        if qid[1] != version:
            entry.qid = qid = _new(Qid, (entry.qid_type, version, entry.shown_path))
        return qid

    # --- entries ---

    def adopt(self, fd: int) -> tuple[Entry, Qid]:
        """The entry of the object that `fd` stands for, with one reference for the caller.

        Args:
            fd: ``O_PATH`` descriptor; the table's from now on, also if this raises.

        Raises:
            OSError: As statx(2) and `QidPaths.path`; ENFILE if the object is new and the budget is spent.
        """
        try:
            self.statx(fd)
            mode, inode, size, device = _UNPACK_IDENTITY(self.buffer)
            path = inode if device == self.device and inode < FOREIGN else self.qids.path(device, inode, fd)
        except OSError:
            _close(fd)
            raise
        entry = self.open.get(path)
        if entry is None:
            try:
                if len(self.open) + self.others >= self.budget:
                    self.check_room(1)
                if self.closer is not None and path in self.closed:
                    entry = self.closer.found(path, fd)
            except OSError:
                _close(fd)
                raise
            if entry is not None:
                entry.refs += 1
            else:
                self.open[path] = entry = Entry(fd, path, mode & 0o170000, self._recent_writes.pop(path, 0))
                if path >= FOREIGN:
                    entry.shown_path = self.qids.shown(path, inode)
        else:
            _close(fd)
            entry.refs += 1
        version = crc32(self.change_times, size + entry.writes) or 1
        qid = entry.qid
        if qid[1] != version:
            entry.qid = qid = _new(Qid, (entry.qid_type, version, entry.shown_path))
        return entry, qid

    def drop(self, entry: Entry) -> None:
        """Give one reference back; the last one closes the descriptor."""
        refs = entry.refs - 1
        entry.refs = refs
        if refs > 0:
            return
        if entry.closed is not None:
            fd = -1
            if self.closed.get(entry.path) is entry:
                del self.closed[entry.path]
        else:
            fd = entry.fd
            if fd < 0:
                return  # the table was closed before
            if self.watcher is not None:
                self.watcher(entry)
            entry.fd = -1
            del self.open[entry.path]
        if entry.writes:
            recent = self._recent_writes
            recent[entry.path] = entry.writes
            if len(recent) > _REMEMBERED_WRITES:
                del recent[next(iter(recent))]
        if fd >= 0:
            _close(fd)

    def close(self) -> None:
        """Close every descriptor; entries and nodes that are still held fail with EBADF from then on."""
        if self.closer is not None:
            self.closer.close()
        for entry in self.open.values():
            _close(entry.fd)
            entry.fd = -1
        for entry in (*self.open.values(), *self.closed.values()):
            entry.node = entry.more_nodes = None
        self.open.clear()
        self.closed.clear()

    # --- nodes ---

    def find(self, parent: Entry, name: bytes) -> tuple[Node, Qid]:
        """A new handle on what is in a folder by a name; follows no symbolic link.

        Raises:
            OSError: As openat(2) and `QidPaths.path`; ENOTDIR if `parent` is no folder.
        """
        entry, qid = self.adopt(_open(name, PATH_FLAGS, dir_fd=parent.fd))
        node = entry.node
        if node is None:  # two of the steps of `place`; a call less on the way of every walk
            entry.node = node = Node(entry, parent, name)
            parent.refs += 1
            return node, qid
        if node.parent is parent and node.name == name:
            node.refs += 1
            entry.refs -= 1
            return node, qid
        return self.place(entry, parent, name), qid

    def place(self, entry: Entry, parent: Entry | None, name: bytes) -> Node:
        """The node of an entry at a place; takes over the caller's reference of the entry."""
        node = entry.node
        if node is None:
            entry.node = node = Node(entry, parent, name)
            if parent is not None:
                parent.refs += 1
            return node
        if node.parent is not parent or node.name != name:
            more = entry.more_nodes
            if more is None:
                more = entry.more_nodes = NodeSet()
            found = more.at(parent, name)
            if found is None:
                more.note(node := Node(entry, parent, name))
                if parent is not None:
                    parent.refs += 1
                return node
            node = found
        node.refs += 1
        entry.refs -= 1
        return node

    def release(self, node: Node) -> None:
        """Give one handle of a node back; never fails."""
        refs = node.refs - 1
        node.refs = refs
        if refs > 0:
            return
        if refs < 0:  # it was given back already
            node.refs = 0
            return
        entry = node.entry
        if entry.closed is not None and entry.refs > 1 and self.closer is not None:
            self.closer.before_release(entry)
        more = entry.more_nodes
        if entry.node is node:
            entry.node = more.popitem()[0] if more else None
        elif more:
            more.pop(node, None)
        self.drop(entry)
        parent = node.parent
        if parent is not None:
            if parent.refs > 1:
                parent.refs -= 1
            else:
                self.drop(parent)

    def moved(self, entry: Entry, parent: Entry, name: bytes, new_parent: Entry, new_name: bytes) -> None:
        """The object was renamed: its node at the old place follows."""
        first = entry.node
        for node in (*((first,) if first is not None else ()), *(entry.more_nodes or ())):
            if node.parent is parent and node.name == name:
                self.put(node, new_parent, new_name)
                self.drop(parent)

    def put(self, node: Node, parent: Entry, name: bytes) -> None:
        """A node has this place from now on; the caller gives its reference of the former folder back."""
        parent.refs += 1
        node.parent, node.name = parent, name
        more = node.entry.more_nodes
        if more and node in more:
            more.note(node)
