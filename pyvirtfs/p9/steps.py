"""Requests that take several calls of a driver, each of which may be answered later.

Such a request is a generator, its *procedure*. It does not call the driver but yields what is to be called, and gets
the answer, or the error, as if it had called:

    def make_folder(driver, node, name):
        yield driver.mkdir, node, name, 0o755, 0, 0
        walk = yield driver.walk, node, (name,)
        ...

As long as a driver answers at once, so does `run`. Otherwise it returns a `Steps`, which is a `Completion` to the
server, but for one thing: when a call has completed, the procedure has yet to go on, in the server's thread.

Once nobody wants the request any more (Tflush, Tversion, a reset) no further call is made: the procedure gets EINTR in
its place. What it holds by then it gives back in a ``finally``, by calls that answer at once (`FidTable.release`).
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from pyvirtfs.fsdev.completion import Completion

if TYPE_CHECKING:
    from pyvirtfs.p9.fids import Fid, FidTable

T = TypeVar("T")

Call: TypeAlias = tuple[Any, ...]
"""What is to be called, and its arguments."""
Procedure: TypeAlias = Generator[Call, Any, T]


class Steps(Completion[T]):
    """A procedure that waits for a driver.

    Args:
        procedure: Not begun.
    """

    __slots__ = ("_cancelled", "_procedure", "_step", "_wake")

    def __init__(self, procedure: Procedure[T]) -> None:
        super().__init__()
        self._procedure = procedure
        self._step: Completion[Any] | None = None
        self._wake: Callable[[Completion[T]], None] | None = None
        self._cancelled = False

    def go_on(self) -> bool:
        """Hand the last answer to the procedure and make its calls, until one does not answer at once.

        Returns:
            Whether it has ended and there is a result. If not, the function given to `on_done` will be called again.
        """
        value, error = self._answer()
        while True:
            try:
                call = self._procedure.send(value) if error is None else self._procedure.throw(error)
            except StopIteration as end:
                self._result = end.value
                break
            except BaseException as failure:  # noqa: BLE001  # `result` raises it, Ctrl-C too
                self._error = failure  # type: ignore[assignment]  # a driver may break its contract
                break
            value, error = None, None
            if self._cancelled:
                error = OSError(errno.EINTR, "nobody waits for it any more")
                continue
            try:
                value = call[0](*call[1:])
                if isinstance(value, Completion):
                    self._step = value
                    if self._wake is not None:
                        value.on_done(self._stepped)
                    return False
            except BaseException as failure:  # noqa: BLE001  # the procedure gives back what it holds
                self._step = None
                error = failure
        self._done = True
        return True

    def _answer(self) -> tuple[Any, BaseException | None]:
        """What the call that was waited for has answered."""
        step, self._step = self._step, None
        if step is None:
            return None, None
        try:
            return step.result(), None
        except BaseException as failure:  # noqa: BLE001  # as above
            return None, failure

    def _stepped(self, _step: Completion[Any]) -> None:
        if self._wake is not None:
            self._wake(self)

    def on_done(self, callback: Callable[[Completion[T]], None]) -> None:
        """Have `callback` called, from whatever thread, each time that it can go on; see `go_on`.

        Raises:
            RuntimeError: The driver gave the call's completion to another request as well. The procedure is over.
        """
        self._wake = callback
        step = self._step
        if step is not None:
            try:
                step.on_done(self._stepped)
            except RuntimeError:
                self._procedure.close()
                raise

    def cancel(self) -> None:
        """Make no further call, and tell the driver that nobody waits for this one."""
        self._cancelled = True
        if self._step is not None:
            self._step.cancel()


def _holding(fids: FidTable, fid: Fid, procedure: Procedure[T]) -> Procedure[T]:
    fids.use(fid)
    try:
        return (yield from procedure)
    finally:
        fids.unuse(fid)


def run(fids: FidTable, fid: Fid, procedure: Procedure[T]) -> T | Steps[T]:
    """Begin a procedure.

    Args:
        fids: Where the fid is.
        fid: What it works on; its handles last until the end of the procedure, even if a call ends the session.
        procedure: Not begun.

    Returns:
        Its value, if the driver answered every call at once.

    Raises:
        BaseException: What it raised.
    """
    steps = Steps(_holding(fids, fid, procedure))
    return steps.result() if steps.go_on() else steps
