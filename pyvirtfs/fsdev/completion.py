"""Answers that come later.

Every call of an export driver may return its value, or a `Completion` that gets the value (or the `OSError`) later,
from any thread. The immediate answer costs the server one type check; nothing is scheduled, no thread is involved.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")
U = TypeVar("U")


def _told(_: object) -> None:
    """In the place of a receiver that has been told."""


class Completion(Generic[T]):
    """The promise of a driver to answer a call later, once.

    The driver keeps it and calls `set_result` or `set_error`, from whatever thread. The server that received it calls
    `on_done` exactly once; the function given there runs in the thread that completes it (or at once, if it was
    complete already), so it must do no more than to hand the completion over to the server's own thread.

    Args:
        on_cancel: Called, in the server's thread, when the guest no longer wants the answer (Tflush, reset). The driver
            may then complete it early with `OSError(EINTR)`, or ignore the wish and complete it as usual.
    """

    __slots__ = ("_callback", "_done", "_error", "_lock", "_on_cancel", "_result")

    def __init__(self, on_cancel: Callable[[Completion[T]], None] | None = None) -> None:
        self._lock = threading.Lock()
        self._done = False
        self._result: T | None = None
        self._error: OSError | None = None
        self._callback: Callable[[Completion[T]], None] | None = None
        self._on_cancel = on_cancel

    @property
    def done(self) -> bool:
        """Whether it has its result or its error."""
        return self._done

    def set_result(self, result: T) -> None:
        """Complete the call with its value. Raises RuntimeError if it was complete already."""
        self._finish(result, None)

    def set_error(self, error: OSError) -> None:
        """Fail the call with a host error. Raises RuntimeError if it was complete already."""
        self._finish(None, error)

    def result(self) -> T:
        """The value; raises the driver's OSError if it failed, RuntimeError if it is not complete yet."""
        if not self._done:
            raise RuntimeError("the completion has no result yet")
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]  # set together with _done

    def on_done(self, callback: Callable[[Completion[T]], None]) -> None:
        """Call `callback(self)` once it is complete, in the completing thread; at once if it is complete already."""
        with self._lock:
            if self._callback is not None:
                raise RuntimeError("a completion has one receiver")
            done = self._done
            self._callback = _told if done else callback
        if done:
            callback(self)

    def cancel(self) -> None:
        """Tell the driver that nobody waits for the answer any more. The completion still completes."""
        if not self._done and self._on_cancel is not None:
            self._on_cancel(self)

    def _finish(self, result: T | None, error: OSError | None) -> None:
        with self._lock:
            if self._done:
                raise RuntimeError("a completion completes once")
            self._result, self._error, self._done = result, error, True
            callback = self._callback
            if callback is not None:
                self._callback = _told  # it may know what is waited for, and that the guest's RAM
        if callback is not None:
            callback(self)


def then(answer: T | Completion[T], function: Callable[[T], U]) -> U | Completion[U]:
    """What becomes of an answer that may come later: `function` of its value, at once or when there is one.

    Args:
        answer: A value, or a promise of one. A promise has its receiver then.
        function: May raise OSError; nothing else, since nobody would hear of it.

    Raises:
        OSError: As `function`, if the value is there already.
    """
    if not isinstance(answer, Completion):
        return function(answer)
    later: Completion[U] = Completion(lambda _: answer.cancel())

    def finish(done: Completion[T]) -> None:
        try:
            value = function(done.result())
        except OSError as error:
            later.set_error(error)
        else:
            later.set_result(value)

    answer.on_done(finish)
    return later
