"""A client of 9P2000.L without I/O: requests in flight, tags, fids, msize.

It makes requests and takes replies; whoever owns the transport (the simulated guest's virtqueue, a socket, a test)
carries the bytes:

    call = client.getattr(fid)
    reply = send(call.request, room=call.reply_size)
    call.feed(reply)
    call.result().size

Everything on the wire goes through the construct declarations (`pyvirtfs.p9.frames`), none of it through the device's
codec. What a Linux client would see of a device's mistakes raises `DeviceError`.
"""

from __future__ import annotations

import errno
import heapq
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, TypeVar

from pyvirtfs.errors import DeviceError, MessageError
from pyvirtfs.p9 import constants as c
from pyvirtfs.p9 import frames
from pyvirtfs.p9.call import Call
from pyvirtfs.p9.results import Attributes, DirectoryEntry, FileSystem, LockRange, Opened, Qid, Version

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pyvirtfs.p9.call import Payload

T = TypeVar("T")

DEFAULT_MSIZE: Final = 131072
"""What Linux asks for unless told otherwise."""


# --- from fields to results ---


def _nothing(fields: dict[str, Any]) -> None:
    """For replies without fields."""


def _qid(fields: dict[str, Any]) -> Qid:
    return Qid(*fields["qid"])


def _qids(fields: dict[str, Any]) -> tuple[Qid, ...]:
    return tuple(Qid(*qid) for qid in fields["wqids"])


def _opened(fields: dict[str, Any]) -> Opened:
    return Opened(Qid(*fields["qid"]), fields["iounit"])


def _attributes(fields: dict[str, Any]) -> Attributes:
    return Attributes(**{**fields, "qid": Qid(*fields["qid"])})


def _entries(fields: dict[str, Any]) -> list[DirectoryEntry]:
    return [
        DirectoryEntry(Qid(*qid), offset, kind, name)
        for qid, offset, kind, name in frames.parse_directory(bytes(fields["data"]))
    ]


def _only(key: str) -> Callable[[dict[str, Any]], Any]:
    return lambda fields: fields[key]


class _Numbers:
    """Hands out the lowest number that is free, as Linux does for tags and fids."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._next = 0
        self._returned: list[int] = []
        self.taken: set[int] = set()

    def take(self) -> int:
        if self._returned:
            number = heapq.heappop(self._returned)
        elif self._next < self._limit:
            number, self._next = self._next, self._next + 1
        else:
            raise RuntimeError("all numbers are in use")
        self.taken.add(number)
        return number

    def give(self, number: int) -> None:
        if number in self.taken:
            self.taken.remove(number)
            heapq.heappush(self._returned, number)


class Client:
    """The client's side of a session.

    Every method makes a request and returns its `Call`; nothing is sent or awaited here. Any number may be in flight. A
    method that makes a fid takes the lowest free number, as Linux does, and gives it back if the request fails; the
    number is in the call's `fid`.

    Args:
        msize: What to ask for in `version`.
    """

    def __init__(self, msize: int = DEFAULT_MSIZE) -> None:
        self.msize = msize
        """The most bytes of a message; after `version`, what the server agreed to."""
        self.calls: dict[int, Call[Any]] = {}
        """The requests in flight, by tag."""
        self._fids = _Numbers(c.NOFID)
        self._tags = _Numbers(c.NOTAG)
        self._making: dict[int, int] = {}  # tag -> the fid that comes with a success
        self._dropping: dict[int, int] = {}  # tag -> the fid that goes with an answer
        self._flushing: dict[int, int] = {}  # the tag of a Tflush -> the tag that it is about
        self._flushed: Counter[int] = Counter()  # the latter: not free before the last Rflush

    @property
    def fids(self) -> frozenset[int]:
        """The fids in use."""
        return frozenset(self._fids.taken)

    @property
    def max_payload(self) -> int:
        """The most bytes that Linux reads or writes with one message: msize less 24."""
        return self.msize - c.IO_HEADER_SIZE

    # --- the mechanism ---

    def request(self, name: str, /, **fields: Any) -> Call[dict[str, Any]]:
        """Any request, as it is; no fid is taken or given back. The result is the reply's fields by name.

        Args:
            name: Its message, for example ``Twalk``.
            fields: Its fields, as declared in `pyvirtfs.p9.messages`. A Twrite needs no `count`.

        Raises:
            TypeError, ValueError: The fields are not those of the message, or do not fit.
        """
        return self._start(name, fields, dict)

    def receive(self, reply: bytes) -> Call[Any]:
        """Take a reply from a transport that does not know which request it belongs to; returns the call.

        Raises:
            DeviceError: No request of that tag is in flight; or as `Call.feed`.
        """
        try:
            call = self.calls[frames.parse_header(reply).tag]
        except (KeyError, MessageError):
            raise DeviceError(f"a reply to no request: {bytes(reply[:32]).hex()}") from None
        call.feed(reply)
        return call

    def _start(self, name: str, fields: dict[str, Any], convert: Callable[[dict[str, Any]], T]) -> Call[T]:
        if name == "Twrite":
            fields.setdefault("count", len(fields.get("data", b"")))
        tag = c.NOTAG if name == "Tversion" else self._tags.take()
        try:
            call = Call(self._settle, name, tag, fields, self.msize, convert)
        except BaseException:
            self._tags.give(tag)
            raise
        self.calls[tag] = call
        return call

    def _make(self, name: str, key: str, fields: dict[str, Any], convert: Callable[[dict[str, Any]], T]) -> Call[T]:
        """A request that makes a fid; `key` is the field that names it."""
        fid = self._fids.take()
        try:
            call = self._start(name, {**fields, key: fid}, convert)
        except BaseException:
            self._fids.give(fid)
            raise
        self._making[call.tag] = fid
        return call

    def _drop(self, name: str, fid: int) -> Call[None]:
        """A request that ends a fid, whatever the answer (clunk(5), remove(5))."""
        call = self._start(name, {"fid": fid}, _nothing)
        self._dropping[call.tag] = fid
        return call

    def _settle(self, call: Call[Any], answered: bool) -> None:
        """A call has ended: bring fids and tags up to date."""
        tag = call.tag
        del self.calls[tag]
        made = self._making.pop(tag, None)
        if made is not None and (call.failed or self._is_partial(call)):
            self._fids.give(made)
        dropped = self._dropping.pop(tag, None)
        if dropped is not None and answered:
            self._fids.give(dropped)
        if tag in self._flushing:
            self._settle_flush(self._flushing.pop(tag), over=not call.failed)
        if not self._flushed[tag]:
            self._tags.give(tag)
            if not (answered or call.cancelled):
                raise DeviceError(f"{call.name} ended without an answer, and nobody asked to flush it")

    @staticmethod
    def _is_partial(call: Call[Any]) -> bool:
        return call.name == "Twalk" and len(call.result()) < len(call.fields["wnames"])

    def _settle_flush(self, oldtag: int, *, over: bool) -> None:
        """A Tflush has ended. After an Rflush the old request is over, answered or not, and its tag free (flush(5))."""
        self._flushed[oldtag] -= 1
        if over and oldtag in self.calls:
            self.calls[oldtag].cancel()
        if not self._flushed[oldtag]:
            del self._flushed[oldtag]
            if oldtag not in self.calls:
                self._tags.give(oldtag)

    # --- the session ---

    def version(self, version: bytes = c.VERSION_9P2000_L) -> Call[Version]:
        """Begin a session, or begin it anew: fids are gone and requests in flight are forgotten once it is answered.

        The result raises OSError (EREMOTEIO, as Linux has it) if the server speaks another dialect, or agrees to less
        than 4096 bytes.
        """
        return self._start("Tversion", {"msize": self.msize, "version": version}, self._begin)

    def _begin(self, fields: dict[str, Any]) -> Version:
        answer = Version(fields["msize"], fields["version"])
        for call in [call for tag, call in self.calls.items() if tag != c.NOTAG]:
            call.cancel()
        self._fids, self._tags, self._flushed = _Numbers(c.NOFID), _Numbers(c.NOTAG), Counter()
        if answer.msize > self.msize:
            raise DeviceError(f"msize {answer.msize} answers {self.msize}; servers may only lower it")
        if answer.version != c.VERSION_9P2000_L or answer.msize < c.MIN_MSIZE:
            raise OSError(errno.EREMOTEIO, f"the server says {answer.version!r} with msize {answer.msize}")
        self.msize = answer.msize
        return answer

    def attach(self, aname: bytes = b"", *, uname: bytes = b"", uid: int = c.NONUNAME) -> Call[Qid]:
        """A new fid for the root of an export, on behalf of a user."""
        fields = {"afid": c.NOFID, "uname": uname, "aname": aname, "n_uname": uid}
        return self._make("Tattach", "fid", fields, _qid)

    def flush(self, call: Call[Any]) -> Call[None]:
        """Ask that a request be given up. Its tag stays taken until the answer, and it may still be answered before.

        RuntimeError if it is done already; `request` sends any Tflush.
        """
        if call.done:
            raise RuntimeError(f"{call.name} tag {call.tag} is done already")
        flush = self._start("Tflush", {"oldtag": call.tag}, _nothing)
        self._flushing[flush.tag] = call.tag
        self._flushed[call.tag] += 1
        return flush

    # --- fids ---

    def walk(self, fid: int, names: Sequence[bytes] = ()) -> Call[tuple[Qid, ...]]:
        """A new fid for what up to 16 names lead to; none: for the same object.

        Fewer qids than names: the walk ended there, and there is no new fid.
        """
        return self._make("Twalk", "newfid", {"fid": fid, "wnames": list(names)}, _qids)

    def clunk(self, fid: int) -> Call[None]:
        """Give up a fid. It is gone whatever the answer."""
        return self._drop("Tclunk", fid)

    def remove(self, fid: int) -> Call[None]:
        """Remove the object of a fid, and give up the fid. It is gone whatever the answer."""
        return self._drop("Tremove", fid)

    # --- open files ---

    def lopen(self, fid: int, flags: int = c.DOTL_RDONLY) -> Call[Opened]:
        """Open the object of a fid; `flags` are DOTL_*."""
        return self._start("Tlopen", {"fid": fid, "flags": flags}, _opened)

    def lcreate(self, fid: int, name: bytes, flags: int, mode: int, gid: int) -> Call[Opened]:
        """Create and open a file in the folder of a fid, which then stands for the file."""
        fields = {"fid": fid, "name": name, "flags": flags, "mode": mode, "gid": gid}
        return self._start("Tlcreate", fields, _opened)

    def read(self, fid: int, offset: int, count: int) -> Call[Payload]:
        """Up to `count` bytes from a byte offset; fewer only at the end of the file.

        The result is bytes, or what was fed as payload.
        """
        return self._start("Tread", {"fid": fid, "offset": offset, "count": count}, _only("data"))

    def write(self, fid: int, offset: int, data: Payload) -> Call[int]:
        """Write at a byte offset; the result is how many bytes the server took."""
        return self._start("Twrite", {"fid": fid, "offset": offset, "data": data}, _only("count"))

    def readdir(self, fid: int, offset: int, count: int) -> Call[list[DirectoryEntry]]:
        """Entries of an open folder behind an entry's offset (0: from the start), as many as `count` bytes hold."""
        return self._start("Treaddir", {"fid": fid, "offset": offset, "count": count}, _entries)

    def fsync(self, fid: int, *, datasync: bool = False) -> Call[None]:
        """Bring what was written to the disk; `datasync`: times may stay behind (fdatasync(2))."""
        return self._start("Tfsync", {"fid": fid, "datasync": int(datasync)}, _nothing)

    def lock(self, fid: int, lock: LockRange, flags: int = 0) -> Call[int]:
        """Take or release a lock; the result is LOCK_SUCCESS, LOCK_BLOCKED, LOCK_ERROR or LOCK_GRACE."""
        return self._start("Tlock", {"fid": fid, "flags": flags, **lock._asdict()}, _only("status"))

    def getlock(self, fid: int, lock: LockRange) -> Call[LockRange]:
        """The lock in the way of another one; its type is LOCK_TYPE_UNLCK if there is none."""
        return self._start("Tgetlock", {"fid": fid, **lock._asdict()}, lambda fields: LockRange(**fields))

    # --- attributes ---

    def getattr(self, fid: int, mask: int = c.GETATTR_BASIC) -> Call[Attributes]:
        """The attributes of an object; `mask` are GETATTR_*."""
        return self._start("Tgetattr", {"fid": fid, "request_mask": mask}, _attributes)

    def setattr(
        self,
        fid: int,
        *,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        size: int | None = None,
        atime_ns: int | None = None,
        mtime_ns: int | None = None,
        also: int = 0,
    ) -> Call[None]:
        """Change attributes; None leaves one alone.

        Args:
            fid: The object.
            mode: Permission bits.
            uid: Owner.
            gid: Group.
            size: Bytes.
            atime_ns: Nanoseconds since 1970.
            mtime_ns: Nanoseconds since 1970.
            also: Further SETATTR_* bits: SETATTR_ATIME alone is the server's current time, SETATTR_CTIME a new ctime.
        """
        chosen = (
            (mode, c.SETATTR_MODE),
            (uid, c.SETATTR_UID),
            (gid, c.SETATTR_GID),
            (size, c.SETATTR_SIZE),
            (atime_ns, c.SETATTR_ATIME | c.SETATTR_ATIME_SET),
            (mtime_ns, c.SETATTR_MTIME | c.SETATTR_MTIME_SET),
        )
        atime_sec, atime_nsec = divmod(atime_ns or 0, 10**9)
        mtime_sec, mtime_nsec = divmod(mtime_ns or 0, 10**9)
        fields = {
            "fid": fid,
            "valid": also | sum(bits for value, bits in chosen if value is not None),
            "mode": mode or 0,
            "uid": c.NONUNAME if uid is None else uid,
            "gid": c.NONUNAME if gid is None else gid,
            "size": size or 0,
            "atime_sec": atime_sec,
            "atime_nsec": atime_nsec,
            "mtime_sec": mtime_sec,
            "mtime_nsec": mtime_nsec,
        }
        return self._start("Tsetattr", fields, _nothing)

    def statfs(self, fid: int) -> Call[FileSystem]:
        """The file system that an object lives on."""
        return self._start("Tstatfs", {"fid": fid}, lambda fields: FileSystem(**fields))

    def xattrwalk(self, fid: int, name: bytes = b"") -> Call[int]:
        """A new fid to read an attribute from, or the list of names; the result is how many bytes there are."""
        return self._make("Txattrwalk", "newfid", {"fid": fid, "name": name}, _only("size"))

    def xattrcreate(self, fid: int, name: bytes, nbytes: int, flags: int = 0) -> Call[None]:
        """Make a fid one to write an attribute of so many bytes to; `clunk` then sets it."""
        fields = {"fid": fid, "name": name, "attr_size": nbytes, "flags": flags}
        return self._start("Txattrcreate", fields, _nothing)

    # --- names ---

    def mkdir(self, dfid: int, name: bytes, mode: int, gid: int) -> Call[Qid]:
        """Create a folder."""
        return self._start("Tmkdir", {"dfid": dfid, "name": name, "mode": mode, "gid": gid}, _qid)

    def symlink(self, dfid: int, name: bytes, target: bytes, gid: int) -> Call[Qid]:
        """Create a symbolic link."""
        return self._start("Tsymlink", {"dfid": dfid, "name": name, "symtgt": target, "gid": gid}, _qid)

    def mknod(self, dfid: int, name: bytes, mode: int, gid: int, *, major: int = 0, minor: int = 0) -> Call[Qid]:
        """Create a file, fifo, socket or device; `mode` holds S_IF type and permission bits."""
        fields = {"dfid": dfid, "name": name, "mode": mode, "major": major, "minor": minor, "gid": gid}
        return self._start("Tmknod", fields, _qid)

    def link(self, dfid: int, fid: int, name: bytes) -> Call[None]:
        """Another name, in the folder `dfid`, for the object of `fid`."""
        return self._start("Tlink", {"dfid": dfid, "fid": fid, "name": name}, _nothing)

    def readlink(self, fid: int) -> Call[bytes]:
        """The target of a symbolic link."""
        return self._start("Treadlink", {"fid": fid}, _only("target"))

    def rename(self, fid: int, dfid: int, name: bytes) -> Call[None]:
        """Give the object of a fid another place."""
        return self._start("Trename", {"fid": fid, "dfid": dfid, "name": name}, _nothing)

    def renameat(self, old_dfid: int, old_name: bytes, dfid: int, name: bytes) -> Call[None]:
        """rename(2) below two folders."""
        fields = {"olddirfid": old_dfid, "oldname": old_name, "newdirfid": dfid, "newname": name}
        return self._start("Trenameat", fields, _nothing)

    def unlinkat(self, dfid: int, name: bytes, flags: int = 0) -> Call[None]:
        """unlink(2), or rmdir(2) with UNLINKAT_REMOVEDIR."""
        return self._start("Tunlinkat", {"dirfid": dfid, "name": name, "flags": flags}, _nothing)
