"""The local driver's operations on names: walk, link, rename, unlink.

A name is resolved by one ``openat(O_PATH | O_NOFOLLOW)`` below the descriptor of its folder, which no symbolic link can
redirect, and which costs the same at any depth.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Sequence
from typing import Final

from pyvirtfs.fsdev.driver import Attributes, Qid, Walk
from pyvirtfs.fsdev.entries import PATH_FLAGS, WRITE_STEP, Entry, Node
from pyvirtfs.fsdev.listing import find_name
from pyvirtfs.fsdev.local_core import OUT_OF, LocalCore, fail

_FOLDER_FLAGS: Final = PATH_FLAGS | os.O_DIRECTORY
_DOTS: Final = frozenset({b".", b".."})
_MAX_CLIMB: Final = 4096
"""How many levels ``..`` is followed up to the root; no path is that long."""

_new = tuple.__new__
_open = os.open


def _object(attributes: Attributes) -> tuple[int, int, int]:
    """What tells an object from all others of the host."""
    return attributes.ino, attributes.dev_major, attributes.dev_minor


class LocalNames(LocalCore):
    """Walk, link, rename, unlink."""

    def attach(self, aname: bytes, uid: int) -> tuple[Node, Qid]:
        """A handle on the root, whatever tree the guest asked for."""
        del aname, uid
        table = self._table
        qid = table.qid(table.root)
        table.root_node.refs += 1
        return table.root_node, qid

    def release(self, node: Node) -> None:
        """See `ExportDriver.release`."""
        self._table.release(node)

    # --- walk ---

    def walk(self, node: Node, names: Sequence[bytes]) -> Walk[Node]:
        """See `ExportDriver.walk`; ENOENT where ``..`` meets a folder that the host has moved out of the export."""
        if len(names) == 1:
            name = names[0]
            if name not in _DOTS:
                found, qid = self._table.find(node.entry, name)
                return _new(Walk, ((qid,), found))
        elif not names:
            node.refs += 1
            return _new(Walk, ((), node))
        return self._walk_far(node, names)

    def _walk_far(self, node: Node, names: Sequence[bytes]) -> Walk[Node]:
        """Walk of several names, or of dots."""
        table = self._table
        qids: list[Qid] = []
        node.refs += 1
        count = len(names)
        try:
            while (done := len(qids)) < count:
                name = names[done]
                if name == b"..":
                    end = done + 1
                    while end < count and names[end] == b"..":
                        end += 1
                    following, found = self._step_up(node, end - done)
                    qids += found
                else:
                    following, qid = self._step(node, name)
                    qids.append(qid)
                table.release(node)
                node = following
        except OSError as error:
            table.release(node)
            # A guest takes a walk that ends early for ENOENT.
            if not qids or error.errno in OUT_OF:
                raise
            return Walk(qids, None)
        return Walk(qids, node)

    def _step(self, node: Node, name: bytes) -> tuple[Node, Qid]:
        """One name of a longer walk, not ``..``: a new handle."""
        table = self._table
        here = node.entry
        if name == b".":
            if here.kind != stat.S_IFDIR:
                fail(errno.ENOTDIR)
            qid = table.qid(here)
            node.refs += 1
            return node, qid
        return table.find(here, name)

    def _step_up(self, node: Node, count: int) -> tuple[Node, list[Qid]]:
        """``..``, `count` times or, if something stands in the way, fewer: a new handle, and the qids on the way."""
        table = self._table
        above = self._folders_above(node.entry, count)
        entry = above[-1][0]
        for passed, _ in above[:-1]:
            table.drop(passed)
        qids = [qid for _, qid in above]
        qids += qids[-1:] * (count - len(qids) if entry is table.root else 0)
        found = entry.node
        if found is None:
            node = table.place(entry, None, b"")
            if self._model.placed and entry is not table.root:
                with contextlib.suppress(OSError):  # it has none any more
                    self._find_place(node)
            return node, qids
        table.drop(entry)
        found.refs += 1
        return found, qids

    def _folders_above(self, entry: Entry, count: int) -> list[tuple[Entry, Qid]]:
        """The next folders that an object is in, at most `count`, one at least, each with one reference.

        They end with the root, which is in itself, or where the second or a later one cannot be opened. The host may
        have moved a folder out of the export since it was found. So the way up is followed until it meets the root,
        once for all of them; if it ends at the root of the host instead, the guest gets ENOENT and nothing of what is
        there.

        Raises:
            OSError: As openat(2); ENOENT outside the export; ELOOP if the root is too far away to be sure.
        """
        table = self._table
        root = table.root
        if entry is root:
            entry.refs += 1
            return [(entry, table.qid(entry))]
        top = _object(table.stat(root.fd))
        fds = [_open(b"..", _FOLDER_FLAGS, dir_fd=entry.fd)]
        above: list[tuple[Entry, Qid]] = []
        try:
            seen = _object(table.stat(fds[-1]))
            while seen != top and len(fds) < count:
                try:
                    fds.append(_open(b"..", _FOLDER_FLAGS, dir_fd=fds[-1]))
                except OSError:
                    break  # if it was asked for, the next step finds the reason
                seen = _object(table.stat(fds[-1]))
            self._check_inside(fds[-1], seen, top)
            fds.reverse()
            while fds:
                above.append(table.adopt(fds.pop()))
        except OSError:
            for fd in fds:
                os.close(fd)
            for passed, _ in above:
                table.drop(passed)
            raise
        return above

    def _check_inside(self, fd: int, seen: tuple[int, int, int], top: tuple[int, int, int]) -> None:
        """ENOENT unless the way up from a folder, which is `seen`, leads to the root of the export, which is `top`."""
        table = self._table
        climber = os.dup(fd)
        try:
            levels = 0
            while seen != top:
                levels += 1
                if levels > _MAX_CLIMB:
                    fail(errno.ELOOP)
                higher = _open(b"..", _FOLDER_FLAGS, dir_fd=climber)
                os.close(climber)
                climber = higher
                below, seen = seen, _object(table.stat(climber))
                if seen == below:
                    fail(errno.ENOENT)
        finally:
            os.close(climber)

    def readlink(self, node: Node) -> bytes:
        """See `ExportDriver.readlink`."""
        entry = node.entry
        if entry.kind != stat.S_IFLNK:
            fail(errno.EINVAL)
        return self._model.readlink(entry)

    # --- places ---

    def _place_of(self, node: Node) -> tuple[Entry, bytes]:
        """The folder and the name of a node, checked a moment ago.

        Raises:
            OSError: ESTALE if the object is not there any more, EBUSY for the root.
        """
        table = self._table
        parent = node.parent
        if parent is None:
            if node.entry is table.root:
                fail(errno.EBUSY)
            parent = self._find_place(node)
        try:
            _, path = table.identify(parent.fd, node.name)
        except OSError as error:
            if error.errno in {errno.ENOENT, errno.ENOTDIR}:
                fail(errno.ESTALE)
            raise
        if path != node.entry.path:
            fail(errno.ESTALE)
        return parent, node.name

    def _find_place(self, node: Node) -> Entry:
        """Find out where a folder is that ``..`` led to."""
        entry = node.entry
        table = self._table
        ((parent, _),) = self._folders_above(entry, 1)
        name = None
        try:
            number = table.stat(entry.fd).ino
            name = find_name(
                parent.proc_path,
                number,
                lambda name: table.identify(parent.fd, name)[1] == entry.path,
            )
        finally:
            if name is not None:
                table.put(node, parent, name)
            table.drop(parent)
        if name is None:
            fail(errno.ESTALE)
        return parent

    def place(self, node: Node) -> tuple[Node | None, bytes]:
        """See `ExportDriver.place`: where the last walk found it or a rename put it; what the host did is not seen."""
        table = self._table
        if node.entry is table.root:
            node.refs += 1
            return node, b"/"
        parent = node.parent
        if parent is None:
            try:
                parent = self._find_place(node)
            except OSError as error:
                if error.errno in OUT_OF:
                    raise
                return None, b""
        above = parent.node
        if above is None:
            parent.refs += 1
            return table.place(parent, None, b""), node.name
        above.refs += 1
        return above, node.name

    # --- link, rename, unlink ---

    def link(self, directory: Node, node: Node, name: bytes) -> None:
        """See `ExportDriver.link`."""
        self._check_writable(name)
        entry = node.entry
        if entry.kind == stat.S_IFDIR:
            fail(errno.EPERM)
        self._model.link(entry, directory.entry, name)
        directory.entry.writes += WRITE_STEP

    def rename(self, node: Node, directory: Node, name: bytes) -> None:
        """See `ExportDriver.rename`."""
        self._check_writable(name)
        parent, old_name = self._place_of(node)
        self._rename(parent, old_name, directory.entry, name)

    def renameat(self, old_directory: Node, old_name: bytes, directory: Node, name: bytes) -> None:
        """See `ExportDriver.renameat`."""
        self._check_writable(old_name, name)
        self._rename(old_directory.entry, old_name, directory.entry, name)

    def _rename(self, old: Entry, old_name: bytes, new: Entry, new_name: bytes) -> None:
        table = self._table
        number = table.identify(old.fd, old_name)[1]
        entry = table.get(number)
        self._keep_open(new, new_name)
        self._model.rename(old, old_name, new, new_name)
        if self._is_at(number, old, old_name):
            return
        old.writes += WRITE_STEP
        new.writes += WRITE_STEP
        if entry is not None:
            table.moved(entry, old, old_name, new, new_name)
            self._closer.after_move(entry)

    def _is_at(self, number: int, parent: Entry, name: bytes) -> bool:
        """Whether a name still means an object: rename(2) between two links of one object does nothing."""
        try:
            return self._table.identify(parent.fd, name)[1] == number
        except OSError:
            return False

    def _keep_open(self, parent: Entry, name: bytes) -> None:
        """See that what is about to lose a name has a descriptor, if somebody holds it: there is no other way to it."""
        table = self._table
        if table.closed:
            with contextlib.suppress(OSError):  # it is not there; or gone since
                entry = table.get(table.identify(parent.fd, name)[1])
                if entry is not None:
                    self._closer.keep_open(entry)

    def unlinkat(self, directory: Node, name: bytes, *, folder: bool) -> None:
        """See `ExportDriver.unlinkat`."""
        self._check_writable(name)
        self._keep_open(directory.entry, name)
        model = self._model
        (model.rmdir if folder else model.unlink)(directory.entry, name)
        directory.entry.writes += WRITE_STEP

    def remove(self, node: Node) -> None:
        """See `ExportDriver.remove`."""
        self._check_writable()
        parent, name = self._place_of(node)
        self._closer.keep_open(node.entry)
        model = self._model
        (model.rmdir if node.entry.kind == stat.S_IFDIR else model.unlink)(parent, name)
        parent.writes += WRITE_STEP
