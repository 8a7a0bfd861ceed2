"""Where other threads leave the requests that they completed, for the server's thread to find."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections import deque
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

_log = logging.getLogger(__name__)


class ReadyQueue(Generic[T]):
    """A queue with an eventfd(2) that is readable while something is in it.

    `put` may be called from any thread, everything else from one. The descriptor is made only when it is needed. If
    there is none left by then, items are kept all the same, and every later `open` and `fileno` tries again.
    """

    __slots__ = ("_fd", "_items", "_lock", "_missing", "_signalled")

    def __init__(self) -> None:
        self._items: deque[T] = deque()
        self._lock = threading.Lock()
        self._fd: int | None = None
        self._missing = False
        self._signalled = False

    def __bool__(self) -> bool:
        return bool(self._items)

    def open(self) -> None:
        """Have a descriptor from now on, if the process may have one more; otherwise say so in the log."""
        if self._fd is not None:
            return
        try:
            fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        except OSError as error:
            if not self._missing:
                _log.error("nothing tells of answers that come later until there is a descriptor for it: %s", error)
            self._missing = True
            return
        self._missing = False
        with self._lock:
            self._fd = fd
            self._signalled = bool(self._items)  # those that came while there was none
            if self._signalled:
                os.eventfd_write(fd, 1)

    def fileno(self) -> int | None:
        """The eventfd; None before the first `open` and after `close`, and if there was no descriptor left."""
        if self._missing:
            self.open()
        return self._fd

    def put(self, item: T, _completion: Any = None) -> None:
        """Append an item and wake whoever waits for the descriptor."""
        self._items.append(item)
        with self._lock:  # so that the descriptor is not closed, and its number reused, in between
            if self._fd is not None and not self._signalled:
                os.eventfd_write(self._fd, 1)
                self._signalled = True

    def put_here(self, item: T) -> None:
        """Append an item, from the thread that takes it."""
        self._items.append(item)

    def clear_signal(self) -> None:
        """Make the descriptor unreadable; to be called before items are taken."""
        if self._signalled:
            with self._lock:
                self._signalled = False
                if self._fd is not None:
                    with contextlib.suppress(BlockingIOError):  # whoever waited for it has read it already
                        os.eventfd_read(self._fd)

    def take(self) -> T | None:
        """The first item, None if there is none."""
        return self._items.popleft() if self._items else None

    def keep(self, wanted: Callable[[T], bool]) -> None:
        """Drop all items but those that are wanted."""
        for _ in range(len(self._items)):  # other threads may append meanwhile
            item = self._items.popleft()
            if wanted(item):
                self._items.append(item)

    def close(self) -> None:
        """Close the descriptor. Idempotent; items may still be put and taken."""
        self._missing = False
        with self._lock:
            if self._fd is not None:
                os.close(self._fd)
                self._fd = None
