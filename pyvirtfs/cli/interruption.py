"""Ctrl-C while a guest works: taken between two messages, as a kernel takes a signal between two instructions."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Sequence

from pyvirtfs.guest import Channel
from pyvirtfs.guest.channel import Request
from pyvirtfs.guest.dma import Range
from pyvirtfs.p9.constants import TCLUNK

_TYPE = 4
"""Where a message says what it is (9P2000, intro(5))."""


class Interruption:
    """Turns SIGINT into a KeyboardInterrupt at a place that does no harm.

    The first Ctrl-C waits until the guest is about to send its next message, when neither the guest nor the device is
    in the middle of something. The second one does not wait: it is for a device that hangs.
    """

    def __init__(self) -> None:
        self.broken = False
        """Whether a KeyboardInterrupt was raised anywhere at all, so that the mount may not be used any more."""
        self._pending = False
        self._at_once = False

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside of the block Ctrl-C waits for `check`; at its end nothing is left to wait."""
        if (
            threading.current_thread() is not threading.main_thread()
            or signal.getsignal(signal.SIGINT) is not signal.default_int_handler  # ignored (nohup), or somebody else's
        ):
            yield
            return
        self._pending = False
        signal.signal(signal.SIGINT, self._note)
        try:
            yield
        except BaseException:
            self._pending = False
            raise
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        self.check()

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside of the block Ctrl-C does not wait: the guest does nothing, the host may for long."""
        self._at_once = True
        try:
            self.check()
            yield
        finally:
            self._at_once = False

    def check(self) -> None:
        """Raise KeyboardInterrupt if there was a Ctrl-C."""
        if self._pending:
            self._pending = False
            raise KeyboardInterrupt

    def _note(self, *_: object) -> None:
        if self._at_once:
            raise KeyboardInterrupt
        if self._pending:
            self.broken = True
            raise KeyboardInterrupt
        self._pending = True


class InterruptibleChannel(Channel):
    """A channel that calls `check` before each message but Tclunk, by which whoever is interrupted tidies up."""

    check: Callable[[], None] | None = None

    def submit(
        self,
        message: bytes,
        reply_nbytes: int,
        *,
        lent_out: Sequence[Range] = (),
        lent_in: Sequence[Range] = (),
        kick: bool = True,
    ) -> Request:
        """As `Channel.submit`. Raises what `check` raises, too."""
        if self.check is not None and message[_TYPE] != TCLUNK:
            self.check()
        return super().submit(message, reply_nbytes, lent_out=lent_out, lent_in=lent_in, kick=kick)
