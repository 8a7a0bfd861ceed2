"""Requests for locks that wait a moment for the unlock that their own guest has already under way.

Linux decides between the processes of one guest itself, and does so before it sends anything: when a process unlocks,
the next one may have its lock, and its request may overtake the unlock on the way. Told BLOCKED, it would sleep for the
whole ``locktimeout`` of the mount (30 s). So such a request is kept until the guest's next unlock, or for `HOLD`
seconds. Nobody is kept waiting for another guest or for the host: two guests could wait for each other in the server.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Hashable
from typing import Final

from pyvirtfs.fsdev.completion import Completion

HOLD: Final = 1.0
"""Seconds until a request that waits is answered with False: long for an unlock under way, also from a busy host."""
MAX_WAITS: Final = 128
"""How many requests of one export may wait; each unlock of the same object tries them all."""


class _Wait:
    """A request that waits."""

    __slots__ = ("attempt", "completion", "deadline", "key")

    def __init__(self, key: Hashable, attempt: Callable[[], bool], completion: Completion[bool]) -> None:
        self.key = key
        self.attempt = attempt
        self.completion = completion
        self.deadline = time.monotonic() + HOLD


class LockWaits:
    """The requests of one export that wait."""

    __slots__ = ("_waits",)

    def __init__(self) -> None:
        self._waits: list[_Wait] = []  # in the order in which they came

    def __len__(self) -> int:
        return len(self._waits)

    def wait(self, key: Hashable, attempt: Callable[[], bool]) -> Completion[bool] | bool:
        """Try again after the next `released` of the same key.

        Args:
            key: The object.
            attempt: Takes the lock, or returns False if it is still held; may raise OSError.

        Returns:
            What becomes True, or after `HOLD` seconds False; False at once if too many wait.
        """
        if len(self._waits) >= MAX_WAITS:
            return False
        completion = Completion(self._cancel)
        self._waits.append(_Wait(key, attempt, completion))
        return completion

    def released(self, key: Hashable) -> None:
        """Something was unlocked: who waits for the same key tries again, the first one first."""
        for wait in list(self._waits):
            if wait.key != key or wait.completion.done:
                continue
            try:
                if wait.attempt():
                    self._waits.remove(wait)
                    wait.completion.set_result(True)
            except OSError as error:
                self._waits.remove(wait)
                wait.completion.set_error(error)

    def next_deadline(self) -> float | None:
        """When to call `expire`, on the clock of time.monotonic(); None: nobody waits."""
        return self._waits[0].deadline if self._waits else None

    def expire(self) -> None:
        """Answer those that have waited for long enough with False."""
        while self._waits and self._waits[0].deadline <= time.monotonic():
            self._waits.pop(0).completion.set_result(False)

    def close(self) -> None:
        """Answer all that wait with False."""
        while self._waits:
            self._waits.pop(0).completion.set_result(False)

    def _cancel(self, completion: Completion[bool]) -> None:
        self._waits = [wait for wait in self._waits if wait.completion is not completion]
        completion.set_error(OSError(errno.EINTR, os.strerror(errno.EINTR)))
