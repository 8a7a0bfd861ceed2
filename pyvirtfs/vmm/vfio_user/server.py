"""A PCI function on a unix socket, for one vfio-user client after the other."""

from __future__ import annotations

import errno
import logging
import os
import time
from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

from pyvirtfs.unix_socket import UnixListener
from pyvirtfs.vmm.vfio_user.connection import Connection, Hangup
from pyvirtfs.vmm.vfio_user.irqs import Irqs
from pyvirtfs.vmm.vfio_user.regions import Regions

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvirtfs.memory import GuestMemory
    from pyvirtfs.pci import PciFunction

_PAUSE: Final = 0.1
"""Seconds until another client is accepted, when one could not be."""
_GOODBYE: Final = 0.2
"""Seconds for a client to notice that the server goes, so that nothing unread is left in the socket."""

_log = logging.getLogger(__name__)


@runtime_checkable
class Deferring(Protocol):
    """A function that has work of its own, as `pyvirtfs.Virtio9pPci` made with ``defer=True``."""

    def run_pending(self) -> int:
        """Do the work that waits, or a part of it."""

    def next_deadline(self) -> float | None:
        """When `run_pending` is to be called even if nothing happens, as time.monotonic(); 0.0: now."""

    def wakeup_fileno(self) -> int | None:
        """A descriptor that becomes readable when `run_pending` has something to do."""


class Server:
    """One function behind one socket.

    Clients are served one at a time; the next one that connects waits until the one before is gone. Between clients
    the function is reset, and no guest RAM is mapped.

    Args:
        function: The function. Its interrupts go to the client. If it has work of its own it should be made with
            ``defer=True``.
        memory: Its guest RAM, without regions: they are the client's to give.
        path: Of the socket.
        strict_memory: Refuse guest RAM that can be taken away, see `pyvirtfs.vmm.vfio_user.dma`.
        trace: Called with a line for each message.
        on_hangup: Called with the connection and the reason, if there is one, when a client is gone; before the
            function is reset.

    Raises:
        ConfigError: See `pyvirtfs.unix_socket.UnixListener`.
    """

    def __init__(
        self,
        function: PciFunction,
        memory: GuestMemory,
        path: str | os.PathLike[str],
        *,
        strict_memory: bool = False,
        trace: Callable[[str], None] | None = None,
        on_hangup: Callable[[Connection, str], None] | None = None,
    ) -> None:
        self.path: Final = os.fspath(path)
        self.function: Final = function
        self._memory = memory
        self._strict = strict_memory
        self._trace = trace
        self._on_hangup = on_hangup
        self._listener = UnixListener(self.path)
        self.irqs: Final = Irqs(function)
        self._regions = Regions(function)
        self._deferring = function if isinstance(function, Deferring) else None
        self._paused = 0.0  # until when nobody is accepted
        self._starved = False  # nobody could be accepted, and that was told
        self.connection: Connection | None = None
        """The client that is served now."""
        self.epoch = 0
        """How many clients are gone; the descriptors of each are closed."""

    def filenos(self) -> list[int]:
        """The descriptors whose readability is to be told by `step`."""
        found = []
        if self.connection is not None:
            found.append(self.connection.fileno())
        elif not self._paused:
            found.append(self._listener.fileno())
        if self._deferring is not None and (wakeup := self._deferring.wakeup_fileno()) is not None:
            found.append(wakeup)
        return found

    def step(self, readable: int | None = None) -> float | None:
        """Do what there is to do; never fails.

        Args:
            readable: One of `filenos` that is readable.

        Returns:
            When to call again even if nothing becomes readable, as time.monotonic(), 0.0: at once; None: never.
        """
        try:
            return self._turn(readable)
        except Hangup as reason:
            self._hang_up(str(reason))
        except Exception as error:  # noqa: BLE001 (a server must outlive its bugs: other VMs hang on it)
            _log.error("a bug in the server", exc_info=error)
            self._hang_up(f"a bug: {error}")
        return None

    def _turn(self, readable: int | None) -> float | None:
        connection = self.connection
        if connection is None:
            if readable == self._listener.fileno():
                self._accept()
            if self._paused:
                return self._resume()
        else:
            connection.begin_turn()
            if readable == connection.fileno():
                connection.serve()
        deadline = None
        if self._deferring is not None:
            self._deferring.run_pending()
            deadline = self._deferring.next_deadline()
        if self.connection is not None:
            self.connection.check()
            if (patience := self.connection.patience) is not None:
                deadline = patience if deadline is None else min(deadline, patience)
        return deadline

    def _resume(self) -> float | None:
        """Listen again after a while; when, or None: from now on."""
        if time.monotonic() < self._paused:
            return self._paused
        self._paused = 0.0
        return None

    def _accept(self) -> None:
        try:
            client = self._listener.accept()
        except OSError as error:
            if error.errno not in {errno.EAGAIN, errno.ECONNABORTED}:
                if not self._starved:
                    self._starved = True
                    _log.error("%s: no client can be accepted: %s", self.path, error.strerror)
                self._paused = time.monotonic() + _PAUSE  # no descriptors left, most likely: do not spin
            return
        self._starved = False
        _log.info("%s: a client has connected", self.path)
        self.connection = Connection(
            client,
            self.function,
            self._memory,
            self.irqs,
            self._regions,
            strict=self._strict,
            trace=self._trace,
        )

    def _hang_up(self, reason: str) -> None:
        connection, self.connection = self.connection, None
        if connection is None:
            return
        self.epoch += 1
        level = logging.WARNING if reason else logging.INFO
        _log.log(level, "%s: the client is gone%s", self.path, f": {reason}" if reason else "")
        try:
            if self._on_hangup is not None:
                self._on_hangup(connection, reason)
        except Exception as error:  # noqa: BLE001 (as in step)
            _log.error("a bug in what is called when a client is gone", exc_info=error)
        connection.close()

    def close(self) -> None:
        """Part from the client so that it survives that, close everything, remove the socket file. Idempotent."""
        if self.connection is not None:
            self.connection.part(_GOODBYE)
            self._hang_up("")
        self._listener.close()
