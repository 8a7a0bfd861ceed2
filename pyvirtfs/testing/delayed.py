"""A driver whose answers come when the test says so: for Tflush, resets, and the order of answers."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

from pyvirtfs.fsdev.completion import Completion
from pyvirtfs.fsdev.driver import (
    Answer,
    Attributes,
    EntryFields,
    ExportDriver,
    FileT,
    Lock,
    LockHolder,
    NodeT,
    Qid,
    SetAttributes,
    StatFs,
    Walk,
)
from pyvirtfs.memory.buffers import Buffers

T = TypeVar("T")


class Held(Generic[T]):
    """A call that waits for the test to let it go on."""

    def __init__(self, method: str, work: Callable[[], Answer[T]], *, ignore_cancel: bool) -> None:
        self.method = method
        """Which method of the driver was called."""
        self.cancelled = False
        """Whether the server has said that nobody waits any more."""
        self._work = work
        self._ignore_cancel = ignore_cancel
        self.completion: Completion[T] = Completion(self._cancel)

    def release(self) -> None:
        """Do the work and complete the call, in the calling thread."""
        if self.completion.done:
            return
        try:
            answer = self._work()
        except OSError as error:
            self.completion.set_error(error)
            return
        if isinstance(answer, Completion):
            raise TypeError("a delayed driver wraps one that answers at once")
        self.completion.set_result(answer)

    def fail(self, number: int) -> None:
        """Complete the call with an error instead of doing the work; but a file is closed all the same."""
        if not self.completion.done:
            if self.method == "close_file":
                with contextlib.suppress(OSError):
                    self._work()
            self.completion.set_error(OSError(number, os.strerror(number)))

    def _cancel(self, _completion: Completion[T]) -> None:
        self.cancelled = True
        if not self._ignore_cancel:
            self.fail(errno.EINTR)


class DelayedDriver(ExportDriver[NodeT, FileT]):
    """Wraps a driver; the methods named in `delay` answer only when the test releases them.

    Args:
        inner: Does the work. It is closed with this one.
        delay: Names of methods, for example ``{"read"}``; change it at any time.
        after: Seconds after which a call is released by a thread of its own; None: by hand (`held`, `release_all`).
        ignore_cancel: Whether a call that is cancelled goes on waiting, instead of failing with EINTR at once.
    """

    def __init__(
        self,
        inner: ExportDriver[NodeT, FileT],
        delay: set[str] | None = None,
        *,
        after: float | None = None,
        ignore_cancel: bool = False,
    ) -> None:
        self.inner = inner
        self.delay = set() if delay is None else delay
        self.after = after
        self.ignore_cancel = ignore_cancel
        self.readonly = inner.readonly
        self.throttle = inner.throttle
        self.held: list[Held[Any]] = []
        """Calls that were made and not released, in order."""
        self._timers: list[threading.Timer] = []

    def waiting(self) -> Iterator[Held[Any]]:
        """The calls that are not complete."""
        return (held for held in self.held if not held.completion.done)

    def release_all(self) -> int:
        """Release all calls in the order in which they came; returns how many."""
        held, self.held = self.held, []
        for call in held:
            call.release()
        return len(held)

    def release_reversed(self) -> int:
        """Release all calls, the last one first; returns how many."""
        self.held.reverse()
        return self.release_all()

    def _answer(self, method: str, work: Callable[[], Answer[T]]) -> Answer[T]:
        if method not in self.delay:
            return work()
        held = Held(method, work, ignore_cancel=self.ignore_cancel)
        self.held.append(held)
        if self.after is not None:
            timer = threading.Timer(self.after, held.release)
            self._timers.append(timer)
            timer.start()
        return held.completion

    # --- the driver ---

    def next_deadline(self) -> float | None:
        """See `ExportDriver.next_deadline`; answers at once."""
        return self.inner.next_deadline()

    def run_pending(self) -> None:
        """See `ExportDriver.run_pending`; answers at once."""
        self.inner.run_pending()

    def close(self) -> None:
        """Close the wrapped driver; calls that still wait fail with EINTR."""
        for timer in self._timers:
            timer.cancel()
            timer.join()
        for held in self.held:
            held.fail(errno.EINTR)
        self.inner.close()

    def attach(self, aname: bytes, uid: int) -> Answer[tuple[NodeT, Qid]]:
        """See `ExportDriver.attach`."""
        return self._answer("attach", lambda: self.inner.attach(aname, uid))

    def walk(self, node: NodeT, names: Sequence[bytes]) -> Answer[Walk[NodeT]]:
        """See `ExportDriver.walk`."""
        return self._answer("walk", lambda: self.inner.walk(node, names))

    def release(self, node: NodeT) -> None:
        """See `ExportDriver.release`; answers at once."""
        self.inner.release(node)

    def mkdir(self, directory: NodeT, name: bytes, mode: int, uid: int, gid: int) -> Answer[Qid]:
        """See `ExportDriver.mkdir`."""
        return self._answer("mkdir", lambda: self.inner.mkdir(directory, name, mode, uid, gid))

    def symlink(self, directory: NodeT, name: bytes, target: bytes, uid: int, gid: int) -> Answer[Qid]:
        """See `ExportDriver.symlink`."""
        return self._answer("symlink", lambda: self.inner.symlink(directory, name, target, uid, gid))

    def mknod(
        self, directory: NodeT, name: bytes, mode: int, major: int, minor: int, uid: int, gid: int
    ) -> Answer[Qid]:
        """See `ExportDriver.mknod`."""
        return self._answer("mknod", lambda: self.inner.mknod(directory, name, mode, major, minor, uid, gid))

    def link(self, directory: NodeT, node: NodeT, name: bytes) -> Answer[None]:
        """See `ExportDriver.link`."""
        return self._answer("link", lambda: self.inner.link(directory, node, name))

    def readlink(self, node: NodeT) -> Answer[bytes]:
        """See `ExportDriver.readlink`."""
        return self._answer("readlink", lambda: self.inner.readlink(node))

    def rename(self, node: NodeT, directory: NodeT, name: bytes) -> Answer[None]:
        """See `ExportDriver.rename`."""
        return self._answer("rename", lambda: self.inner.rename(node, directory, name))

    def renameat(self, old_directory: NodeT, old_name: bytes, directory: NodeT, name: bytes) -> Answer[None]:
        """See `ExportDriver.renameat`."""
        return self._answer("renameat", lambda: self.inner.renameat(old_directory, old_name, directory, name))

    def unlinkat(self, directory: NodeT, name: bytes, *, folder: bool) -> Answer[None]:
        """See `ExportDriver.unlinkat`."""
        return self._answer("unlinkat", lambda: self.inner.unlinkat(directory, name, folder=folder))

    def remove(self, node: NodeT) -> Answer[None]:
        """See `ExportDriver.remove`."""
        return self._answer("remove", lambda: self.inner.remove(node))

    def place(self, node: NodeT) -> Answer[tuple[NodeT | None, bytes]]:
        """See `ExportDriver.place`."""
        return self._answer("place", lambda: self.inner.place(node))

    def getattr(self, node: NodeT) -> Answer[tuple[Qid, Attributes]]:
        """See `ExportDriver.getattr`."""
        return self._answer("getattr", lambda: self.inner.getattr(node))

    def setattr(self, node: NodeT, changes: SetAttributes, uid: int) -> Answer[None]:
        """See `ExportDriver.setattr`."""
        return self._answer("setattr", lambda: self.inner.setattr(node, changes, uid))

    def statfs(self, node: NodeT) -> Answer[StatFs]:
        """See `ExportDriver.statfs`."""
        return self._answer("statfs", lambda: self.inner.statfs(node))

    def getxattr(self, node: NodeT, name: bytes) -> Answer[bytes]:
        """See `ExportDriver.getxattr`."""
        return self._answer("getxattr", lambda: self.inner.getxattr(node, name))

    def listxattr(self, node: NodeT) -> Answer[bytes]:
        """See `ExportDriver.listxattr`."""
        return self._answer("listxattr", lambda: self.inner.listxattr(node))

    def setxattr(self, node: NodeT, name: bytes, value: bytes, flags: int, uid: int) -> Answer[None]:
        """See `ExportDriver.setxattr`."""
        return self._answer("setxattr", lambda: self.inner.setxattr(node, name, value, flags, uid))

    def removexattr(self, node: NodeT, name: bytes, uid: int) -> Answer[None]:
        """See `ExportDriver.removexattr`."""
        return self._answer("removexattr", lambda: self.inner.removexattr(node, name, uid))

    def open(self, node: NodeT, flags: int, uid: int) -> Answer[tuple[FileT, Qid]]:
        """See `ExportDriver.open`."""
        return self._answer("open", lambda: self.inner.open(node, flags, uid))

    def create(
        self, directory: NodeT, name: bytes, flags: int, mode: int, uid: int, gid: int
    ) -> Answer[tuple[NodeT, FileT, Qid]]:
        """See `ExportDriver.create`."""
        return self._answer("create", lambda: self.inner.create(directory, name, flags, mode, uid, gid))

    def close_file(self, file: FileT) -> Answer[None]:
        """See `ExportDriver.close_file`."""
        return self._answer("close_file", lambda: self.inner.close_file(file))

    def read(self, file: FileT, offset: int, buffers: Buffers) -> Answer[int]:
        """See `ExportDriver.read`."""
        return self._answer("read", lambda: self.inner.read(file, offset, buffers))

    def write(self, file: FileT, offset: int, buffers: Buffers) -> Answer[int]:
        """See `ExportDriver.write`."""
        return self._answer("write", lambda: self.inner.write(file, offset, buffers))

    def fsync(self, file: FileT, *, datasync: bool) -> Answer[None]:
        """See `ExportDriver.fsync`."""
        return self._answer("fsync", lambda: self.inner.fsync(file, datasync=datasync))

    def readdir(self, file: FileT, cookie: int) -> Answer[Sequence[EntryFields]]:
        """See `ExportDriver.readdir`."""
        return self._answer("readdir", lambda: self.inner.readdir(file, cookie))

    def lock(self, node: NodeT, lock: Lock, holder: LockHolder) -> Answer[bool]:
        """See `ExportDriver.lock`."""
        lock = lock._replace(wait=False)  # the answer comes later as it is
        return self._answer("lock", lambda: self.inner.lock(node, lock, holder))

    def unlock(self, node: NodeT, lock: Lock, holder: LockHolder) -> Answer[None]:
        """See `ExportDriver.unlock`."""
        return self._answer("unlock", lambda: self.inner.unlock(node, lock, holder))

    def getlock(self, node: NodeT, lock: Lock, holder: LockHolder) -> Answer[Lock | None]:
        """See `ExportDriver.getlock`."""
        return self._answer("getlock", lambda: self.inner.getlock(node, lock, holder))

    def release_locks(self, node: NodeT, holder: LockHolder) -> int:
        """See `ExportDriver.release_locks`; answers at once."""
        return self.inner.release_locks(node, holder)
