"""A whole device and a guest that says what it likes to it: raw messages, raw rings, and what must hold afterwards."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from pyvirtfs.errors import DeviceError, GuestError
from pyvirtfs.fsdev.driver import ExportDriver
from pyvirtfs.fsdev.local import LocalDriver
from pyvirtfs.guest import Request
from pyvirtfs.p9 import constants as c
from pyvirtfs.p9 import frames
from pyvirtfs.p9.error_replies import TEXTS
from pyvirtfs.p9.messages import BY_NAME, REQUESTS
from pyvirtfs.testing import DelayedDriver, Pair, check_descriptors, pair

IS_ROOT: Final = os.geteuid() == 0
MODEL: Final = "passthrough" if IS_ROOT else "none"
UID, GID = os.geteuid(), os.getegid()
ROOT: Final = 0
"""The fid of the mount's root: the first number that a client takes."""
NAMES: Final = [message.name for message in REQUESTS]
LONGEST_TEXT: Final = 127
"""What Linux takes of an error's text, in bytes."""
NUMBERS: Final = {text: number for number, text in reversed(TEXTS.items())}
"""The errno that a text stands for; the first one of several."""
PATIENCE: Final = 2.0
"""Seconds until a device that does not answer is taken for dead."""

as_root = pytest.mark.skipif(not IS_ROOT, reason="needs root: other users' files, device nodes")


def sizes(usual: int, full: int, seconds: int = 600) -> pytest.MarkDecorator:
    """A parameter `count`: the usual number, and the full one for those who have the time (``-m slow``)."""
    marks = [pytest.mark.slow, pytest.mark.timeout(seconds)]
    return pytest.mark.parametrize("count", [usual, pytest.param(full, marks=marks)])


# What a request says unless a test says otherwise: as a decent client would, on the root.
USUAL: Final[dict[str, dict[str, Any]]] = {
    "Tversion": {"msize": 131072, "version": b"9P2000.L"},
    "Tauth": {"afid": 900, "uname": b"", "aname": b"", "n_uname": UID},
    "Tattach": {"fid": 901, "afid": c.NOFID, "uname": b"", "aname": b"", "n_uname": UID},
    "Tflush": {"oldtag": 77},
    "Twalk": {"fid": ROOT, "newfid": 902, "wnames": ()},
    "Tclunk": {"fid": ROOT},
    "Tremove": {"fid": ROOT},
    "Tlopen": {"fid": ROOT, "flags": 0},
    "Tlcreate": {"fid": ROOT, "name": b"new", "flags": c.DOTL_RDWR | c.DOTL_CREATE, "mode": 0o644, "gid": GID},
    "Tread": {"fid": ROOT, "offset": 0, "count": 512},
    "Twrite": {"fid": ROOT, "offset": 0, "data": b""},
    "Treaddir": {"fid": ROOT, "offset": 0, "count": 4000},
    "Tfsync": {"fid": ROOT, "datasync": 0},
    "Tlock": {"fid": ROOT, "type": 1, "flags": 0, "start": 0, "length": 0, "proc_id": 1, "client_id": b"me"},
    "Tgetlock": {"fid": ROOT, "type": 1, "start": 0, "length": 0, "proc_id": 1, "client_id": b"me"},
    "Tgetattr": {"fid": ROOT, "request_mask": c.GETATTR_ALL},
    "Tsetattr": {"fid": ROOT, "valid": 0, "mode": 0, "uid": UID, "gid": GID, "size": 0, "atime_sec": 0,
                 "atime_nsec": 0, "mtime_sec": 0, "mtime_nsec": 0},
    "Tstatfs": {"fid": ROOT},
    "Txattrwalk": {"fid": ROOT, "newfid": 903, "name": b""},
    "Txattrcreate": {"fid": ROOT, "name": b"user.new", "attr_size": 4, "flags": 0},
    "Tsymlink": {"dfid": ROOT, "name": b"new", "symtgt": b"file", "gid": GID},
    "Tmknod": {"dfid": ROOT, "name": b"new", "mode": stat.S_IFREG | 0o644, "major": 0, "minor": 0, "gid": GID},
    "Tmkdir": {"dfid": ROOT, "name": b"new", "mode": 0o755, "gid": GID},
    "Tlink": {"dfid": ROOT, "fid": ROOT, "name": b"new"},
    "Treadlink": {"fid": ROOT},
    "Trename": {"fid": ROOT, "dfid": ROOT, "name": b"new"},
    "Trenameat": {"olddirfid": ROOT, "oldname": b"file", "newdirfid": ROOT, "newname": b"new"},
    "Tunlinkat": {"dirfid": ROOT, "name": b"file", "flags": 0},
}  # fmt: skip


def message(name: str, tag: int = 3, /, **fields: Any) -> bytes:
    """A request, with its usual fields where none are given."""
    whole = {**USUAL[name], **fields}
    if name == "Twrite":
        whole.setdefault("count", len(whole["data"]))
    return frames.build(name, tag, whole)


def raw(kind: int, body: bytes = b"", *, size: int | None = None, tag: int = 3) -> bytes:
    """Any bytes behind any header."""
    return struct.pack("<IBH", 7 + len(body) if size is None else size, kind, tag) + body


class Reply(NamedTuple):
    """What came back."""

    kind: int
    body: bytes
    """Behind the header."""

    @property
    def errno(self) -> int:
        """Of an Rlerror or an Rerror; 0 for any other reply. Plain 9P2000 has a text only, which tells less."""
        if self.kind == c.RLERROR:
            return int.from_bytes(self.body, "little")
        if self.kind != c.RERROR:
            return 0
        text, number = self.text, self.body[2 + len(self.text) :]
        return int.from_bytes(number, "little") if number else NUMBERS.get(text, -1)

    @property
    def text(self) -> bytes:
        """Of an Rerror."""
        return self.body[2 : 2 + int.from_bytes(self.body[:2], "little")]


def reply_of(request: Request, *, error: int = c.RLERROR) -> Reply | None:
    """The reply to a request that is done; None if it ended without one. Checks that the device's figures agree.

    Args:
        request: Which.
        error: How the dialect that is spoken tells an error. A Tversion is told in the dialect that it asks for.
    """
    data = request.reply()
    if not data:
        assert request.nbytes == 0
        return None
    size, kind, tag = struct.unpack_from("<IBH", data)
    asked = request.message[4]
    assert size == request.nbytes == len(data), "the size field and the used length"
    errors = {c.RLERROR, c.RERROR} if asked == c.TVERSION else {error}
    assert kind in {asked + 1 & 0xFF, *errors}, f"type {kind} answers type {asked}"
    assert tag == struct.unpack_from("<H", request.message, 5)[0]
    if kind == c.RLERROR:
        assert 1 <= int.from_bytes(data[7:], "little") <= 4095
    found = Reply(kind, data[7:])
    assert kind != c.RERROR or (len(found.text) <= LONGEST_TEXT and found.text.isascii())
    return found


class RefusedError(AssertionError):
    """An error was the answer to something that should have worked."""

    def __init__(self, name: str, number: int) -> None:
        super().__init__(f"{name}: {os.strerror(number)}")
        self.errno = number


class Stack:
    """A guest with the device, the server and an export behind it.

    Args:
        both: The guest, which has mounted the export, and its device.
    """

    def __init__(self, both: Pair) -> None:
        self.pair = both
        self.device = both.device
        self.channel = both.channel
        self.escaped: list[BaseException] = []
        """What has left the device's entry points, whoever caught it then."""
        self.next_fid = 1000
        self.error = c.RLERROR
        """How the dialect that is spoken tells an error."""
        for name in ("config_read", "config_write", "bar_read", "bar_write", "run_pending"):
            setattr(self.device, name, self._watched(getattr(self.device, name)))
        assert both.mount.root_fid == ROOT

    def _watched(self, entry: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            try:
                return entry(*arguments)
            except BaseException as error:
                self.escaped.append(error)
                raise

        return call

    # --- messages ---

    def send(self, data: bytes, room: int = 4096) -> Reply | None:
        """Any bytes, with so much room for the reply. None: the device cannot answer this, and needs a reset."""
        counters = self.channel.driver.counters
        before = counters.config_interrupts
        try:
            request = self.channel.wait(self.channel.submit(data, room))
        except DeviceError:
            assert self.channel.driver.needs_reset, "no answer, and no error either"
            assert counters.config_interrupts == before + 1
            return None
        found = reply_of(request, error=self.error)
        self.channel.retire(request)
        assert found is not None, "an answer of no bytes, though nobody flushed the request"
        if data[4] == c.TVERSION:
            older = found.kind == c.RERROR or found.body[6:] in {c.VERSION_9P2000, c.VERSION_9P2000_U}
            self.error = c.RERROR if older else c.RLERROR
        return found

    def ask(self, name: str, /, room: int = 8192, tag: int = 3, **fields: Any) -> Reply:
        """A request that has to be answered, somehow; room as Linux gives it, or more."""
        found = self.send(message(name, tag, **fields), room)
        assert found is not None, f"the device needs a reset after a {name}"
        return found

    def errno(self, name: str, /, room: int = 8192, **fields: Any) -> int:
        """A request, and the error that it is answered with; 0 for none."""
        return self.ask(name, room, **fields).errno

    def do(self, name: str, /, room: int = 8192, **fields: Any) -> dict[str, Any]:
        """A request that has to work; the fields of its reply. Raises RefusedError if it does not."""
        found = self.ask(name, room, **fields)
        if found.errno:
            raise RefusedError(name, found.errno)
        return frames.parse(raw(found.kind, found.body)).fields

    def start(self, name: str, /, room: int = 8192, tag: int = 3, *, kick: bool = True, **fields: Any) -> Request:
        """A request whose reply nobody waits for."""
        return self.channel.submit(message(name, tag, **fields), room, kick=kick)

    def bulk(self, messages: Iterable[bytes], room: int = 4096, batch: int = 100) -> Iterator[Reply]:
        """Many requests, as many at a time as the ring takes; each has to be answered."""
        pending: list[Request] = []
        for data in messages:
            pending.append(self.channel.submit(data, room, kick=False))
            if len(pending) == batch:
                yield from self._harvest(pending)
        yield from self._harvest(pending)

    def _harvest(self, pending: list[Request]) -> Iterator[Reply]:
        self.channel.queue.kick()
        for request in pending:
            found = reply_of(self.channel.wait(request), error=self.error)
            self.channel.retire(request)
            assert found is not None
            yield found
        pending.clear()

    # --- fids ---

    def new(self) -> int:
        """A fid number that was never used."""
        self.next_fid += 1
        return self.next_fid

    def fid(self, *names: bytes, base: int = ROOT) -> int:
        """A new fid for what names lead to. Raises RefusedError if they do not lead there."""
        found = self.new()
        for i in range(0, max(len(names), 1), 16):
            step = names[i : i + 16]
            if len(self.do("Twalk", fid=found if i else base, newfid=found, wnames=step)["wqids"]) < len(step):
                raise RefusedError("Twalk", errno.ENOENT)
        return found

    def opened(self, *names: bytes, flags: int = c.DOTL_RDWR, base: int = ROOT) -> int:
        """A new fid, open."""
        found = self.fid(*names, base=base)
        self.do("Tlopen", fid=found, flags=flags)
        return found

    def clunk(self, *fids: int) -> None:
        """Give fids up."""
        for fid in fids:
            self.do("Tclunk", fid=fid)

    def qid(self, fid: int) -> int:
        """The qid.path of a fid's object."""
        return int(self.do("Tgetattr", fid=fid)["qid"][2])

    def read(self, fid: int, offset: int = 0, count: int = 4000) -> bytes:
        """What a Tread brings."""
        return bytes(self.do("Tread", fid=fid, offset=offset, count=count)["data"])

    def listing(self, fid: int, count: int = 4000, room: int = 8192) -> list[bytes]:
        """All names in an open folder, in portions of `count` bytes."""
        names: list[bytes] = []
        offset = 0
        while data := bytes(self.do("Treaddir", room, fid=fid, offset=offset, count=count)["data"]):
            entries = frames.parse_directory(data)
            names += [name for *_, name in entries]
            offset = entries[-1][1]
        return names

    @property
    def fids(self) -> int:
        """How many fids the server knows."""
        return self.device.server.fids

    # --- what must hold ---

    @property
    def needs_reset(self) -> bool:
        """Whether the device says so, and the guest has heard of it."""
        self.channel.deliver()
        assert (self.channel.broken is not None) == self.channel.driver.needs_reset
        return self.channel.broken is not None

    def remount(self) -> None:
        """Reset the device, bring it up, mount anew."""
        self.pair.remount()
        self.error = c.RLERROR
        assert self.pair.mount.root_fid == ROOT

    def check(self) -> None:
        """No exception escaped; the device works or needs a reset; each way to end a session frees its fids."""
        assert self.escaped == []
        error = self.device.device.last_error
        assert error is None or isinstance(error, GuestError), f"{error!r} is not the guest's fault"
        if not self.needs_reset:
            self.device.run_pending()
            assert self.ask("Tflush").kind == c.RFLUSH
            for number in list(self.device.server._session.table):
                self.errno("Tclunk", fid=number)
            assert self.fids == 0, "fids are left after the last Tclunk"
            self.do("Tversion", tag=c.NOTAG)
            self.do("Tattach", fid=ROOT)
            self.do("Tversion", tag=c.NOTAG)
            assert self.fids == 0, "fids are left after a Tversion"
        self.remount()
        assert list(self.pair.mount.root.iterdir()) is not None
        self.fid()
        assert self.fids == 2
        self.channel.stop()
        assert self.fids == 0, "fids are left after a reset"
        assert self.escaped == []


class _Errors(logging.Handler):
    """Keeps what the package calls an error: a defect of the device or of a driver."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@contextlib.contextmanager
def no_defects() -> Iterator[None]:
    """The package logs no error: it does for exceptions that are nobody's but its own."""
    errors = _Errors()
    logger = logging.getLogger("pyvirtfs")
    logger.addHandler(errors)
    try:
        yield
    finally:
        logger.removeHandler(errors)
    assert errors.lines == []


@contextlib.contextmanager
def running(export: str | ExportDriver[Any, Any], **options: Any) -> Iterator[Stack]:
    """A device and its guest; all that must hold is checked at the end.

    Args:
        export: As for `pair`; a driver is closed at the end.
        options: As for `pair`.
    """
    options.setdefault("timeout", PATIENCE)
    with check_descriptors(), no_defects(), contextlib.ExitStack() as last:
        if isinstance(export, ExportDriver):
            last.callback(export.close)
        with pair(export, **options) as both:
            stack = Stack(both)
            yield stack
            stack.check()


# --- the host ---


def snapshot(top: Path) -> dict[str, object]:
    """Everything about a tree but access times."""
    found: dict[str, object] = {}
    for folder, folders, files in os.walk(top):
        for name in [".", *folders, *files]:
            path = os.path.join(folder, name)
            status = os.lstat(path)
            content = Path(path).read_bytes() if stat.S_ISREG(status.st_mode) and status.st_size < 1 << 20 else b""
            found[path] = (
                status.st_mode, status.st_uid, status.st_gid, status.st_size, status.st_mtime_ns, status.st_ctime_ns,
                status.st_nlink, status.st_rdev, os.listxattr(path, follow_symlinks=False), content,
            )  # fmt: skip
    return found


class Place:
    """The folder that is exported, and the sentinel next to it, which nothing may touch.

    Args:
        top: An empty folder.
    """

    def __init__(self, top: Path) -> None:
        self.top = top
        self.export = top / "export"
        self.sentinel = top / "sentinel"
        self.export.mkdir(mode=0o755)
        (self.export / "file").write_bytes(b"Hi Guest")
        (self.export / "folder").mkdir()
        (self.export / "folder" / "below").write_bytes(b"deep")
        (self.export / "link").symlink_to("../sentinel/secret")
        self.sentinel.mkdir()
        for name in ("secret", "file", "below", "kept"):
            (self.sentinel / name).write_bytes(b"secret")
        (self.sentinel / "sub").mkdir()
        (self.sentinel / "sub" / "file").write_bytes(b"secret")
        self.before = snapshot(self.sentinel)

    @property
    def fsdev(self) -> str:
        """The export, as an option string."""
        return f"local,path={self.export},security_model={MODEL}"

    def driver(self, kind: type[LocalDriver] = LocalDriver, **options: Any) -> LocalDriver:
        """The export, as a driver."""
        return kind(self.export, MODEL, **options)

    def delayed(self, *methods: str, **options: Any) -> DelayedDriver[Any, Any]:
        """The export, some of whose answers wait for the test."""
        return DelayedDriver(self.driver(), set(methods), **options)

    def check(self) -> None:
        """Nothing outside the export has changed, and nothing has come."""
        assert snapshot(self.sentinel) == self.before
        assert sorted(os.listdir(self.top)) == ["export", "sentinel"]


def host_errno(call: Callable[..., object], *arguments: Any) -> int:
    """The error that a call of the host raises; 0 for none."""
    try:
        call(*arguments)
    except OSError as error:
        return error.errno or -1
    return 0


def fields_of(stack: Stack) -> dict[str, dict[str, Any]]:
    """For each request, fields with which it works in a fresh `Place`; makes the fids that they name."""
    file, folder, link = stack.fid(b"file"), stack.fid(b"folder"), stack.fid(b"link")
    opened, listing = stack.opened(b"file"), stack.opened(flags=0)
    own: dict[str, dict[str, Any]] = {
        "Tclunk": {"fid": link}, "Tremove": {"fid": file}, "Tlopen": {"fid": file, "flags": 2},
        "Tlcreate": {"fid": folder}, "Tread": {"fid": opened, "count": 8},
        "Twrite": {"fid": opened, "data": b"data"}, "Treaddir": {"fid": listing}, "Tfsync": {"fid": opened},
        "Tlock": {"fid": opened}, "Tgetlock": {"fid": opened}, "Tsetattr": {"fid": file, "valid": 1, "mode": 0o700},
        "Txattrcreate": {"fid": file}, "Tlink": {"dfid": folder, "fid": file}, "Treadlink": {"fid": link},
        "Trename": {"fid": file, "dfid": folder}, "Trenameat": {"newdirfid": folder},
        "Tsymlink": {"dfid": folder}, "Tmknod": {"dfid": folder}, "Tmkdir": {"dfid": folder},
    }  # fmt: skip
    return {name: {**USUAL[name], **own.get(name, {})} for name in NAMES}


def strings_of(name: str) -> list[str]:
    """The fields of a request that are strings."""
    return [field for field in BY_NAME[name].fields if isinstance(USUAL[name].get(field), bytes) and field != "data"]


def ranges(stack: Stack, readable: Sequence[tuple[int, int]], writable: Sequence[tuple[int, int]]) -> Request:
    """Send a chain of exactly these (address, nbytes) pairs."""
    buffer = stack.pair.mount.allocate(16)
    request = Request(b"", buffer, buffer, sum(nbytes for _, nbytes in writable))
    stack.channel.submit_ranges(readable, writable, request)
    return request
