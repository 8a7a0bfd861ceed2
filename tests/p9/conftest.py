"""For the tests of the server: an export in memory that counts its handles, and a client of one message at a time."""

from __future__ import annotations

import errno
import itertools
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from pyvirtfs.fsdev import driver as d
from pyvirtfs.fsdev.completion import Completion
from pyvirtfs.fsdev.driver import ExportDriver, Lock, LockHolder, Qid
from pyvirtfs.memory.buffers import Buffers, ViewBuffers
from pyvirtfs.p9 import codec
from pyvirtfs.p9 import constants as c
from pyvirtfs.p9.printer import describe
from pyvirtfs.p9.server import Server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


class Inode:
    numbers = itertools.count(100)

    def __init__(self, mode: int, uid: int = 0, gid: int = 0) -> None:
        self.ino = next(self.numbers)
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.nlink = 2 if stat.S_ISDIR(mode) else 1
        self.content = bytearray()
        self.target = b""
        self.entries: dict[bytes, Inode] = {}
        self.parent: Inode = self
        self.xattrs: dict[bytes, bytes] = {}
        self.device = (0, 0)
        self.times = {"atime": 1_000_000_001, "mtime": 2_000_000_002, "ctime": 3_000_000_003}
        self.times["btime"] = 4_000_000_004
        self.version = 1
        self.locks: list[tuple[Lock, LockHolder]] = []

    @property
    def qid(self) -> Qid:
        kind = 0x80 if stat.S_ISDIR(self.mode) else 0x02 if stat.S_ISLNK(self.mode) else 0
        return Qid(kind, self.version, self.ino)


@dataclass(eq=False)
class Node:
    inode: Inode
    parent: Inode
    name: bytes


@dataclass(eq=False)
class File:
    inode: Inode
    flags: int


def fail(code: int) -> OSError:
    return OSError(code, errno.errorcode[code])


class FakeExport(ExportDriver[Node, File]):
    """A tree of dicts.

    `later` names the calls that answer later: when `complete` is called.
    `failing` maps names of calls to what they raise.
    """

    def __init__(self, *, readonly: bool = False) -> None:
        self.readonly = readonly
        self.root = Inode(stat.S_IFDIR | 0o755)
        self.nodes: set[Node] = set()
        self.files: set[File] = set()
        self.later: set[str] = set()
        self.failing: dict[str, BaseException] = {}
        self.waiting: list[tuple[str, Completion[Any], Callable[[], Any]]] = []
        self.cancelled: list[Completion[Any]] = []
        self.interruptible = False
        self.calls: list[tuple[Any, ...]] = []
        self.block_nbytes = 4096
        self.batch = 1000
        self.broken: list[str] = []

    # --- answers ---

    def _answer(self, name: str, work: Callable[[], Any], *arguments: Any) -> Any:
        self.calls.append((name, *arguments))
        if name in self.later:
            completion: Completion[Any] = Completion(self._cancel)
            self.waiting.append((name, completion, work))
            return completion
        if name in self.failing:
            raise self.failing[name]
        return work()

    def _cancel(self, completion: Completion[Any]) -> None:
        self.cancelled.append(completion)
        if self.interruptible:
            self.complete([each for _, each, _ in self.waiting].index(completion), error=fail(errno.EINTR))

    def complete(self, index: int = 0, error: BaseException | None = None) -> None:
        """Do the work of a call that is answered later, or fail it."""
        name, completion, work = self.waiting.pop(index)
        try:
            if error := error or self.failing.get(name):
                raise error
            result = work()
        except OSError as failed:
            completion.set_error(failed)
        else:
            completion.set_result(result)

    def _check(self, *, kept: bool, rule: str) -> None:
        """The server answers for what a driver raises, so remember it."""
        if not kept:
            self.broken.append(rule)
            raise AssertionError(rule)

    def _node(self, inode: Inode, parent: Inode, name: bytes) -> Node:
        node = Node(inode, parent, name)
        self.nodes.add(node)
        return node

    def _live(self, node: Node) -> Inode:
        self._check(kept=node in self.nodes, rule="no node is used after its release")
        return node.inode

    def _open(self, file: File) -> Inode:
        self._check(kept=file in self.files, rule="no file is used after it was closed")
        return file.inode

    def _folder(self, node: Node) -> Inode:
        inode = self._live(node)
        if not stat.S_ISDIR(inode.mode):
            raise fail(errno.ENOTDIR)
        return inode

    # --- for tests to look at and to fill ---

    def add(self, path: str, content: bytes = b"", mode: int = stat.S_IFREG | 0o644) -> Inode:
        folder, _, name = path.rpartition("/")
        inode = self._new(self.find(folder) if folder else self.root, name.encode(), mode, 0, 0)
        inode.content[:] = content
        return inode

    def find(self, path: str) -> Inode:
        inode = self.root
        for part in path.encode().split(b"/"):
            inode = inode.entries[part]
        return inode

    def _new(self, folder: Inode, name: bytes, mode: int, uid: int, gid: int) -> Inode:
        if name in folder.entries:
            raise fail(errno.EEXIST)
        if len(name) > 255:
            raise fail(errno.ENAMETOOLONG)
        inode = Inode(mode, uid, gid)
        inode.parent = folder
        folder.entries[name] = inode
        return inode

    # --- life and names ---

    def close(self) -> None:
        self.nodes.clear()
        self.files.clear()

    def attach(self, aname: bytes, uid: int) -> Any:
        return self._answer("attach", lambda: (self._node(self.root, self.root, b""), self.root.qid), aname, uid)

    def walk(self, node: Node, names: Sequence[bytes]) -> Any:
        start = self._live(node)

        def work() -> d.Walk[Node]:
            inode, parent, name = start, node.parent, node.name
            qids: list[Qid] = []
            for part in names:
                found = inode.parent if part == b".." else inode if part == b"." else inode.entries.get(part)
                if found is None:
                    if not qids:
                        raise fail(errno.ENOENT if stat.S_ISDIR(inode.mode) else errno.ENOTDIR)
                    return d.Walk(qids, None)
                inode, parent, name = found, inode, part
                qids.append(inode.qid)
            return d.Walk(qids, self._node(inode, parent, name))

        return self._answer("walk", work, names)

    def release(self, node: Node) -> None:
        self._check(kept=node in self.nodes, rule="a node is released once")
        self.nodes.remove(node)

    def mkdir(self, directory: Node, name: bytes, mode: int, uid: int, gid: int) -> Any:
        folder = self._folder(directory)

        def work() -> Qid:
            return self._new(folder, name, stat.S_IFDIR | mode, uid, gid).qid

        return self._answer("mkdir", work, name, mode, uid, gid)

    def symlink(self, directory: Node, name: bytes, target: bytes, uid: int, gid: int) -> Any:
        folder = self._folder(directory)

        def work() -> Qid:
            inode = self._new(folder, name, stat.S_IFLNK | 0o777, uid, gid)
            inode.target = target
            return inode.qid

        return self._answer("symlink", work, name, target, uid, gid)

    def mknod(self, directory: Node, name: bytes, mode: int, major: int, minor: int, uid: int, gid: int) -> Any:
        folder = self._folder(directory)

        def work() -> Qid:
            inode = self._new(folder, name, mode, uid, gid)
            inode.device = (major, minor)
            return inode.qid

        return self._answer("mknod", work, name, mode, major, minor, uid, gid)

    def link(self, directory: Node, node: Node, name: bytes) -> Any:
        folder, inode = self._folder(directory), self._live(node)

        def work() -> None:
            folder.entries[name] = inode
            inode.nlink += 1

        return self._answer("link", work, name)

    def readlink(self, node: Node) -> Any:
        inode = self._live(node)

        def work() -> bytes:
            if not stat.S_ISLNK(inode.mode):
                raise fail(errno.EINVAL)
            return inode.target

        return self._answer("readlink", work)

    def rename(self, node: Node, directory: Node, name: bytes) -> Any:
        self._live(node)
        folder = self._folder(directory)

        def work() -> None:
            folder.entries[name] = node.parent.entries.pop(node.name)
            node.parent, node.name = folder, name

        return self._answer("rename", work, name)

    def renameat(self, old_directory: Node, old_name: bytes, directory: Node, name: bytes) -> Any:
        old_folder, folder = self._folder(old_directory), self._folder(directory)

        def work() -> None:
            folder.entries[name] = old_folder.entries.pop(old_name)

        return self._answer("renameat", work, old_name, name)

    def _unlink(self, folder: Inode, name: bytes) -> None:
        if name not in folder.entries:
            raise fail(errno.ENOENT)
        if folder.entries[name].entries:
            raise fail(errno.ENOTEMPTY)
        folder.entries.pop(name).nlink -= 1

    def unlinkat(self, directory: Node, name: bytes, *, folder: bool) -> Any:
        parent = self._folder(directory)
        return self._answer("unlinkat", lambda: self._unlink(parent, name), name, folder)

    def remove(self, node: Node) -> Any:
        self._live(node)
        return self._answer("remove", lambda: self._unlink(node.parent, node.name))

    def place(self, node: Node) -> Any:
        self._live(node)
        parent = node.parent
        return self._answer("place", lambda: (self._node(parent, parent.parent, b""), node.name or b"/"))

    # --- attributes ---

    def getattr(self, node: Node) -> Any:
        inode = self._live(node)

        def work() -> tuple[Qid, d.Attributes]:
            times = itertools.chain.from_iterable(
                divmod(inode.times[name], 10**9) for name in ("atime", "btime", "ctime", "mtime")
            )
            size = len(inode.content)
            fields = [inode.nlink, inode.uid, inode.gid, inode.mode, inode.ino, size, -(-size // 512)]
            return inode.qid, d.Attributes._make([*fields, *times, *inode.device, 8, 1])

        return self._answer("getattr", work)

    def setattr(self, node: Node, changes: d.SetAttributes, uid: int) -> Any:
        self._live(node)
        return self._answer("setattr", lambda: None, changes, uid)

    def statfs(self, node: Node) -> Any:
        self._live(node)
        return self._answer(
            "statfs", lambda: d.StatFs(0x01021994, self.block_nbytes, 1000, 500, 400, 300, 200, 0xABCDEF0123, 255)
        )

    def getxattr(self, node: Node, name: bytes) -> Any:
        inode = self._live(node)

        def work() -> bytes:
            if name not in inode.xattrs:
                raise fail(errno.ENODATA)
            return inode.xattrs[name]

        return self._answer("getxattr", work, name)

    def listxattr(self, node: Node) -> Any:
        inode = self._live(node)
        return self._answer("listxattr", lambda: b"".join(name + b"\0" for name in inode.xattrs))

    def setxattr(self, node: Node, name: bytes, value: bytes, flags: int, uid: int) -> Any:
        inode = self._live(node)
        return self._answer("setxattr", lambda: inode.xattrs.update({name: value}), name, value, flags, uid)

    def removexattr(self, node: Node, name: bytes, uid: int) -> Any:
        inode = self._live(node)

        def work() -> None:
            if inode.xattrs.pop(name, None) is None:
                raise fail(errno.ENODATA)

        return self._answer("removexattr", work, name, uid)

    # --- open files ---

    def _file(self, inode: Inode, flags: int) -> File:
        file = File(inode, flags)
        self.files.add(file)
        return file

    def open(self, node: Node, flags: int, uid: int) -> Any:
        inode = self._live(node)

        def work() -> tuple[File, Qid]:
            if not stat.S_ISDIR(inode.mode) and not stat.S_ISREG(inode.mode):
                raise fail(errno.ENXIO)
            return self._file(inode, flags), inode.qid

        return self._answer("open", work, flags, uid)

    def create(self, directory: Node, name: bytes, flags: int, mode: int, uid: int, gid: int) -> Any:
        folder = self._folder(directory)

        def work() -> tuple[Node, File, Qid]:
            inode = folder.entries.get(name)
            if inode is None:
                inode = self._new(folder, name, stat.S_IFREG | mode, uid, gid)
            return self._node(inode, folder, name), self._file(inode, flags), inode.qid

        return self._answer("create", work, name, flags, mode, uid, gid)

    def close_file(self, file: File) -> Any:
        self._check(kept=file in self.files, rule="a file is closed once")
        self.files.remove(file)
        return self._answer("close_file", lambda: None)

    def read(self, file: File, offset: int, buffers: Buffers) -> Any:
        inode = self._open(file)

        def work() -> int:
            data = bytes(inode.content[offset : offset + buffers.nbytes])
            buffers.write(0, data)
            return len(data)

        return self._answer("read", work, offset, buffers.nbytes)

    def write(self, file: File, offset: int, buffers: Buffers) -> Any:
        inode = self._open(file)

        def work() -> int:
            data = buffers.read(0, buffers.nbytes)
            inode.content.extend(bytes(max(offset - len(inode.content), 0)))
            inode.content[offset : offset + len(data)] = data
            return len(data)

        return self._answer("write", work, offset, buffers.nbytes)

    def fsync(self, file: File, *, datasync: bool) -> Any:
        self._open(file)
        return self._answer("fsync", lambda: None, datasync)

    def readdir(self, file: File, cookie: int) -> Any:
        inode = self._open(file)

        def work() -> list[d.DirectoryEntry]:
            names = [(b".", inode), (b"..", inode.parent), *sorted(inode.entries.items())]
            entries = [
                d.DirectoryEntry(each.qid, number, stat.S_IFMT(each.mode) >> 12, name)
                for number, (name, each) in enumerate(names, 1)
            ]
            return entries[cookie : cookie + self.batch]

        return self._answer("readdir", work, cookie)

    # --- locks ---

    def _conflict(self, inode: Inode, lock: Lock, holder: LockHolder) -> Lock | None:
        owner = (holder.session, lock.client_id, lock.proc_id)
        for other, other_holder in inode.locks:
            ends = [float("inf") if each.end is None else each.end for each in (lock, other)]
            if (
                owner != (other_holder.session, other.client_id, other.proc_id)
                and (lock.exclusive or other.exclusive)
                and lock.start < ends[1]
                and other.start < ends[0]
            ):
                return other
        return None

    def lock(self, node: Node, lock: Lock, holder: LockHolder) -> Any:
        inode = self._live(node)

        def work() -> bool:
            if self._conflict(inode, lock, holder):
                return False
            assert holder.limit is not None
            if sum(other.session is holder.session for _, other in inode.locks) >= holder.limit:
                raise fail(errno.ENOLCK)
            inode.locks.append((lock, holder))
            return True

        return self._answer("lock", work, lock)

    def _drop(self, inode: Inode, dropped: Callable[[Lock, LockHolder], bool]) -> int:
        count = 0
        for entry in list(inode.locks):
            if dropped(*entry):
                inode.locks.remove(entry)
                count += 1
        return count

    def unlock(self, node: Node, lock: Lock, holder: LockHolder) -> Any:
        inode = self._live(node)

        def work() -> None:
            self._drop(inode, lambda other, _: (other.start, other.end) == (lock.start, lock.end))

        return self._answer("unlock", work, lock)

    def getlock(self, node: Node, lock: Lock, holder: LockHolder) -> Any:
        inode = self._live(node)
        return self._answer("getlock", lambda: self._conflict(inode, lock, holder), lock)

    def release_locks(self, node: Node, holder: LockHolder) -> int:
        inode = self._live(node)
        return self._drop(inode, lambda _, other: other is holder)


class Peer:
    """A client that sends one message at a time and keeps what comes back, in order."""

    def __init__(self, export: FakeExport, **options: Any) -> None:
        self.export = export
        self.server = Server(export, **options)
        self.coder = codec.LINUX
        self.ended: list[tuple[int, int]] = []
        self.rooms: list[bytearray] = []

    def submit(self, message: bytes, room: int = 8192) -> int:
        """Send bytes; returns a token under which the reply is found."""
        token = len(self.rooms)
        self.rooms.append(bytearray(room))
        writable = ViewBuffers.of(self.rooms[token])
        self.server.submit(ViewBuffers.of(message), writable, lambda t, n: self.ended.append((t, n)), token)
        return token

    def send(self, kind: int, *fields: Any, tag: int = 0xFF00, data: bytes = b"", room: int = 8192) -> int:
        """Send a message; returns a token."""
        return self.submit(self.coder.encode(kind, tag, *fields) + data, room)

    def nbytes(self, token: int) -> int | None:
        """How a request ended: the size of its reply, 0 without one, None if it has not."""
        sizes = [nbytes for each, nbytes in self.ended if each == token]
        assert len(sizes) <= 1, f"done was called {len(sizes)} times"
        return sizes[0] if sizes else None

    def raw_reply(self, token: int) -> bytes:
        nbytes = self.nbytes(token)
        assert nbytes, "there is no reply"
        reply = bytes(self.rooms[token][:nbytes])
        assert int.from_bytes(reply[:4], "little") == nbytes, describe(reply)
        assert not any(self.rooms[token][nbytes:]), "bytes behind the reply"
        return reply

    def reply(self, token: int) -> tuple[int, tuple[Any, ...]]:
        """Type and fields of a reply."""
        kind, _tag, fields = self.coder.decode(self.raw_reply(token))
        return kind, fields

    def call(self, kind: int, *fields: Any, data: bytes = b"", room: int = 8192, tag: int = 0xFF00) -> Any:
        """Send a message; returns the fields of its reply, the only one if there is one only."""
        token = self.send(kind, *fields, data=data, room=room, tag=tag)
        raw = self.raw_reply(token)
        replied, got_tag, values = self.coder.decode(raw)
        assert (replied, got_tag) == (kind + 1, tag), describe(raw)
        return values[0] if len(values) == 1 else values

    def error(self, kind: int, *fields: Any, data: bytes = b"", room: int = 8192, tag: int = 0xFF00) -> int:
        """Send a message; returns the errno that it is answered with."""
        return self.error_of(self.send(kind, *fields, data=data, room=room, tag=tag))

    def error_of(self, token: int) -> int:
        raw = self.raw_reply(token)
        assert raw[4] in {c.RLERROR, c.RERROR}, describe(raw)
        code: int = self.coder.decode(raw)[2][-1]  # the text in 9P2000
        return code

    # --- what tests do all the time ---

    def version(self, msize: int = 8192, coder: codec.Codec = codec.LINUX) -> Peer:
        name = coder.vocabulary.version
        assert self.call(c.TVERSION, msize, name, tag=c.NOTAG)[1] == name
        self.coder = coder
        return self

    def attach(self, fid: int = 0, uid: int = 1000) -> Peer:
        self.call(c.TATTACH, fid, c.NOFID, b"", b"", *([] if self.coder is codec.PLAIN else [uid]))
        return self

    def walk(self, fid: int, newfid: int, *names: bytes) -> None:
        assert len(self.call(c.TWALK, fid, newfid, names)) == len(names)

    def open(self, fid: int, *names: bytes, flags: int = c.DOTL_RDWR) -> None:
        """d.Walk from fid 0 and open."""
        self.walk(0, fid, *names)
        self.call(c.TLOPEN, fid, flags)

    def read(self, fid: int, offset: int, count: int, room: int = 8192) -> bytes:
        token = self.send(c.TREAD, fid, offset, count, room=room)
        raw = self.raw_reply(token)
        assert raw[4] == c.RREAD, describe(raw)
        assert int.from_bytes(raw[7:11], "little") == len(raw) - 11
        return raw[11:]

    def write(self, fid: int, offset: int, data: bytes) -> int:
        written: int = self.call(c.TWRITE, fid, offset, len(data), data=data)
        return written

    def finish(self, index: int = 0, error: OSError | None = None) -> None:
        """Let the export answer one of the calls that wait, and the server notice."""
        self.export.complete(index, error)
        self.server.run_pending()


@pytest.fixture
def export() -> FakeExport:
    export = FakeExport()
    export.add("file", b"0123456789")
    export.add("folder", mode=stat.S_IFDIR | 0o755)
    export.add("folder/inner", b"inside")
    export.add("link", mode=stat.S_IFLNK | 0o777).target = b"/etc/passwd"
    return export


@pytest.fixture
def make_peer(export: FakeExport) -> Iterator[Callable[..., Peer]]:
    peers: list[Peer] = []

    def make(driver: FakeExport = export, **options: Any) -> Peer:
        peers.append(Peer(driver, **options))
        return peers[-1]

    yield make
    for peer in peers:
        while peer.export.waiting:
            peer.finish(error=fail(errno.EIO))
        peer.server.close()
    for peer in peers:
        assert not peer.export.nodes, "nodes leak"
        assert not peer.export.files, "files leak"
        assert not peer.export.broken
        assert not peer.server.busy


@pytest.fixture
def make_export() -> type[FakeExport]:
    return FakeExport


@pytest.fixture
def peer(make_peer: Callable[..., Peer]) -> Peer:
    """Connected, its fid 0 is the root."""
    return make_peer().version().attach()
