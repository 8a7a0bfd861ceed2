"""The export that is checked: its methods with answers awaited, and the few steps that most checks take."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from pyvirtfs.fsdev.completion import Completion
from pyvirtfs.fsdev.driver import Attributes, DirectoryEntry, ExportDriver, Qid, SetAttributes
from pyvirtfs.memory.buffers import ViewBuffers

PATIENCE: Final = 10.0
"""Seconds that an answer which comes later may take."""

_AT_ONCE: Final = frozenset({"release", "release_locks", "close"})
_MAX_ENTRIES: Final = 200_000
"""Of one folder, many times over; a listing that has more has no end."""
_MAX_CONTENT: Final = 64 << 20
"""Bytes of a file that a check has made, many times over; one that has more has no end."""
_MAX_OBJECTS: Final = 500
"""That a snapshot shows; a read-only export may hold any number."""
_SHOWN: Final = 1 << 20
"""Bytes of each of them."""


class CheckError(AssertionError):
    """A driver does not do what the contract says; the message tells what was expected and what was seen."""


def error_name(code: int | None) -> str:
    """ENOENT for 2."""
    return errno.errorcode.get(code, f"errno {code}") if code is not None else "an OSError without errno"


def expect(seen: object, wanted: object, what: str) -> None:
    """Fail unless two things are equal.

    Raises:
        CheckError: They differ.
    """
    if seen != wanted:
        raise CheckError(f"{what}: expected {_short(wanted)}, saw {_short(seen)}")


def require(condition: object, problem: str) -> None:
    """Fail with `problem` unless a condition holds.

    Raises:
        CheckError: It does not.
    """
    if not condition:
        raise CheckError(problem)


def _short(value: object) -> str:
    if isinstance(value, (bytes, bytearray)) and len(value) > 48:
        return f"{bytes(value[:24])!r}… ({len(value)} bytes)"
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:180]}…"


class Subject:
    """An export under test.

    Every method of `ExportDriver` is there under its own name and returns the value, also where the driver answers with
    a `Completion`. Other exceptions than OSError, and answers that do not come, fail the check.

    Args:
        driver: The export, fresh.
        patience: Seconds that an answer may take.

    Attributes:
        driver: The same.
        root: A node of its root, attached as user 0.
        failed: The last one that raised OSError.
    """

    def __init__(self, driver: ExportDriver[Any, Any], patience: float = PATIENCE) -> None:
        self.driver = driver
        self.patience = patience
        self._last: tuple[str, tuple[Any, ...], dict[str, Any]] = "nothing", (), {}
        self.failed = ""
        self.root, self.root_qid = self.attach(b"", 0)

    def __getattr__(self, method: str) -> Callable[..., Any]:
        if method.startswith("_"):
            raise AttributeError(method)
        function = getattr(self.driver, method)

        def call(*args: Any, **options: Any) -> Any:
            return self._call(method, function, *args, **options)

        return call

    @property
    def last(self) -> str:
        """The call that was made last, for messages."""
        method, args, options = self._last
        return f"{method}({', '.join([*map(_shown, args), *(f'{key}={value!r}' for key, value in options.items())])})"

    def _call(self, method: str, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        self._last = method, args, options
        try:
            answer = function(*args, **options)
            if isinstance(answer, Completion):
                require(method not in _AT_ONCE, f"{method} always answers at once, but returned a Completion")
                answer = self._wait(answer)
        except OSError as error:
            self.failed = self.last
            require(isinstance(error.errno, int), f"{self.failed} raised {error!r}, which has no errno")
            raise
        except CheckError:
            raise
        except Exception as error:
            raise CheckError(
                f"{self.last} raised {type(error).__name__}: {error}; a driver raises OSError and nothing else"
            ) from error
        return answer

    def _wait(self, answer: Completion[Any]) -> Any:
        done = threading.Event()
        answer.on_done(lambda _: done.set())
        if not done.wait(self.patience):
            raise CheckError(f"{self.last}: no answer within {self.patience} s")
        return answer.result()

    # --- refusals ---

    @contextlib.contextmanager
    def refuses(self, *codes: int) -> Iterator[None]:
        """The block must end in an OSError with one of these codes; none given: with any."""
        names = " or ".join(map(error_name, codes)) or "an OSError"
        try:
            yield
        except OSError as error:
            if codes and error.errno not in codes:
                raise CheckError(f"{self.failed}: expected {names}, saw {error_name(error.errno)}") from error
        else:
            raise CheckError(f"{self.last}: expected {names}, but it succeeded")

    @contextlib.contextmanager
    def unchanged(self) -> Iterator[None]:
        """The block changes nothing that can be seen in the export, but for access times."""
        before = self.snapshot()
        yield
        after = self.snapshot()
        for path in sorted({*before, *after}):
            expect(after.get(path), before.get(path), f"{path.decode(errors='replace')} after a call that failed")

    # --- handles ---

    def find(self, *names: bytes, at: Any = None) -> Any:
        """A new node, found by its names from the root, or from `at`.

        Raises:
            OSError: As walk; ENOENT if a later name is not there.
        """
        found = self.walk(self.root if at is None else at, list(names))
        if found.node is None:
            raise OSError(errno.ENOENT, f"{names} not found: {len(found.qids)} qids")
        return found.node

    @contextlib.contextmanager
    def opened(self, node: Any, flags: int = os.O_RDONLY, uid: int = 0) -> Iterator[Any]:
        """An open file, closed at the end."""
        file, _ = self.open(node, flags, uid)
        try:
            yield file
        finally:
            self.close_file(file)

    # --- objects ---

    def make_file(
        self, name: bytes, data: bytes = b"", *, mode: int = 0o644, at: Any = None, uid: int = 0, gid: int = 0
    ) -> Any:
        """Create a regular file, closed; returns its node."""
        node, file, _ = self.create(self.root if at is None else at, name, os.O_RDWR | os.O_EXCL, mode, uid, gid)
        try:
            if data:
                self.put(file, 0, data)
        finally:
            self.close_file(file)
        return node

    def make_folder(self, name: bytes, *, mode: int = 0o755, at: Any = None) -> Any:
        """Create a folder; returns its node."""
        folder = self.root if at is None else at
        self.mkdir(folder, name, mode, 0, 0)
        return self.find(name, at=folder)

    def make_link(self, name: bytes, target: bytes, *, at: Any = None) -> Any:
        """Create a symbolic link; returns its node."""
        folder = self.root if at is None else at
        self.symlink(folder, name, target, 0, 0)
        return self.find(name, at=folder)

    def attributes(self, node: Any) -> Attributes:
        """What getattr tells, without the qid."""
        return Attributes(*self.getattr(node)[1])

    def mode(self, node: Any) -> int:
        """The permission bits."""
        return stat.S_IMODE(self.attributes(node).mode)

    def qid(self, node: Any) -> Qid:
        """The qid that getattr tells."""
        return Qid(*self.getattr(node)[0])

    def exists(self, *names: bytes) -> bool:
        """Whether there is something at a place."""
        try:
            self.release(self.find(*names))
        except OSError as error:
            if error.errno in {errno.ENOENT, errno.ENOTDIR}:
                return False
            raise
        return True

    # --- content ---

    def put(self, file: Any, offset: int, data: bytes) -> None:
        """Write all of `data`, in as many calls as the driver wants."""
        done = 0
        while done < len(data):
            count = self.write(file, offset + done, ViewBuffers.of(memoryview(data)[done:]))
            if not 0 < count <= len(data) - done:
                raise CheckError(f"{self.last} of {len(data) - done} bytes returned {count}")
            done += count

    def get(self, file: Any, offset: int, nbytes: int) -> bytes:
        """Read in one call."""
        data = bytearray(nbytes)
        count = self.read(file, offset, ViewBuffers.of(data))
        if not 0 <= count <= nbytes:
            raise CheckError(f"{self.last} of {nbytes} bytes returned {count}")
        return bytes(data[:count])

    def content(self, node: Any, step: int = 1 << 16) -> bytes:
        """All that a file holds, through an open file of its own."""
        with self.opened(node) as file:
            return self.content_of(file, step)

    def content_of(self, file: Any, step: int = 1 << 16) -> bytes:
        """All that an open file holds; it must have an end, where a read gives less than was asked."""
        parts: list[bytes] = []
        offset = 0
        while part := self.get(file, offset, step):
            require(not parts or len(parts[-1]) == step, f"{self.last}: the read before it gave less, as at the end")
            parts.append(part)
            offset += len(part)
            require(offset <= _MAX_CONTENT, f"a file has no end: {self.last}")
        return b"".join(parts)

    def fill(self, node: Any, data: bytes, offset: int = 0, *, uid: int = 0) -> None:
        """Write through an open file of its own."""
        with self.opened(node, os.O_WRONLY, uid) as file:
            self.put(file, offset, data)

    # --- listings ---

    def batches(self, file: Any, cookie: int = 0, take: int | None = None) -> Iterator[DirectoryEntry]:
        """The entries of an open folder behind `cookie`, asked for as the server does: `take` of each batch."""
        count, asked = 0, set()
        while count < _MAX_ENTRIES and cookie not in asked:
            asked.add(cookie)
            batch = self.readdir(file, cookie)
            if not batch:
                return
            for entry in batch[:take]:
                (kind, version, path), cookie, type_, name = entry
                yield DirectoryEntry(Qid(kind, version, path), cookie, type_, name)
                count += 1
        raise CheckError(f"a listing has no end: {self.last}")

    def entries(self, node: Any) -> list[DirectoryEntry]:
        """All entries of a folder, the dots too."""
        with self.opened(node) as file:
            return list(self.batches(file))

    def names_in(self, node: Any) -> list[bytes]:
        """The names of a folder in order, without the dots."""
        return sorted(entry.name for entry in self.entries(node) if entry.name not in {b".", b".."})

    def snapshot(self) -> dict[bytes, object]:
        """Everything about the tree but access times, by path; of one that is large, the beginning."""
        found: dict[bytes, object] = {}
        waiting = [(b"/", self.root)]
        while waiting:
            path, node = waiting.pop()
            qid, attributes = self.getattr(node)
            kind = stat.S_IFMT(attributes.mode)
            seen: object = None
            if kind == stat.S_IFREG and attributes.mode & 0o400:
                with self.opened(node) as file:
                    seen = self.get(file, 0, min(attributes.size + 1, _SHOWN))
            elif kind == stat.S_IFLNK:
                seen = self.readlink(node)
            found[path] = (tuple(qid), tuple(attributes._replace(atime_sec=0, atime_nsec=0)), seen)
            if kind == stat.S_IFDIR:
                names = self.names_in(node)[: max(_MAX_OBJECTS - len(found) - len(waiting), 0)]
                waiting += [(path.rstrip(b"/") + b"/" + name, self.find(name, at=node)) for name in names]
            if node is not self.root:
                self.release(node)
        return found

    def give_back(self, *nodes: Any) -> None:
        """Release nodes."""
        for node in nodes:
            self.release(node)


def names_of(entries: Sequence[DirectoryEntry]) -> list[bytes]:
    """The names of entries, in their order."""
    return [entry.name for entry in entries]


def _shown(value: object) -> str:
    """An argument in a message: handles of a driver by their type only."""
    if isinstance(value, SetAttributes):
        changes = (
            f"{key}={change}" for key, change in value._asdict().items() if change is not None and change is not False
        )
        return f"SetAttributes({', '.join(changes)})"
    if isinstance(value, (int, bytes, str, type(None), tuple, list)):
        return _short(value) if len(repr(value)) <= 60 else f"{repr(value)[:50]}…"
    return type(value).__name__
