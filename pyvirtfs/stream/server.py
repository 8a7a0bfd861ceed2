"""An export for many clients, each with a connection and a session of its own.

Passive: nothing happens but in `step`. Whoever embeds it waits for its one descriptor, with `pyvirtfs.loop.Loop` or in
a loop of his own.
"""

from __future__ import annotations

import logging
import select
import time
from typing import TYPE_CHECKING, Any, Final

from pyvirtfs.p9.limits import Limits as SessionLimits
from pyvirtfs.p9.server import Server as Session
from pyvirtfs.stream.chunks import Pool
from pyvirtfs.stream.connection import Connection, Hangup
from pyvirtfs.stream.limits import MSIZE_LIMIT, Limits
from pyvirtfs.stream.listener import RefusedError
from pyvirtfs.stream.timers import Timers

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from pyvirtfs.fsdev.driver import ExportDriver
    from pyvirtfs.stream.listener import Listener

_PAUSE: Final = 0.1
"""Seconds until another client is accepted, when one could not be."""
_ACCEPTED: Final = 32
"""Clients accepted in one turn."""

_DEFAULT_LIMITS: Final = Limits()
_DEFAULT_SESSION_LIMITS: Final = SessionLimits()

_log = logging.getLogger(__name__)


class Server:
    """One export, and its clients.

    All methods belong to one thread, and so do all servers that share a driver.

    Args:
        driver: The export; it stays open.
        listener: Where clients come from; it belongs to the server. None: from `add` only.
        name: Of the export, for messages.
        msize_limit: The largest message to agree to, in bytes.
        limits: What the clients may use.
        session_limits: What each client's session may use.
        trace: Called with a line for each message.
        on_hangup: Called with the connection and the reason, if there is one, when a client is gone, before its
            session ends.

    Attributes:
        connections: Those that are there now.
        epoch: Always 0; see `pyvirtfs.loop.Server`.

    Raises:
        ConfigError: `msize_limit` is less than 4096.
    """

    def __init__(
        self,
        driver: ExportDriver[Any, Any],
        listener: Listener | None = None,
        *,
        name: str = "9p",
        msize_limit: int = MSIZE_LIMIT,
        limits: Limits = _DEFAULT_LIMITS,
        session_limits: SessionLimits = _DEFAULT_SESSION_LIMITS,
        trace: Callable[[str], None] | None = None,
        on_hangup: Callable[[Connection, str], None] | None = None,
    ) -> None:
        self.name: Final = name
        self.connections: set[Connection] = set()
        self.epoch: Final = 0
        self._driver = driver
        self._listener = listener
        self._msize_limit = msize_limit
        self._limits = limits
        self._session_limits = session_limits
        self._trace = trace
        self._on_hangup = on_hangup
        self._new_session().close()  # says now what is wrong with the arguments
        self._pool = Pool(msize_limit)
        self._by_fd: dict[int, Connection] = {}
        self._leaving: dict[Connection, None] = {}  # closed, but a driver still works for them
        self._watched: dict[Connection, int] = {}  # the events of each socket that are waited for
        self._wakeups: dict[Connection, int] = {}  # descriptors of sessions whose requests had to wait
        self._busy: dict[Connection, None] = {}  # with more to do at once
        self._patience: dict[Connection, float] = {}
        self._stalled: dict[Connection, float] = {}  # since when those with a full socket have taken nothing
        self._timers: Timers[Connection] = Timers()
        self._paused: float | None = None  # until when nobody is accepted
        self._full = False  # somebody was sent away, and was told so
        self._starved = False  # nobody could be accepted, and that was told
        self._epoll = select.epoll()
        if listener is not None:
            self._epoll.register(listener.fileno(), select.EPOLLIN)

    # --- for a loop ---

    def fileno(self) -> int:
        """The descriptor that is readable when `step` has something to do."""
        return self._epoll.fileno()

    def filenos(self) -> list[int]:
        """It alone; see `pyvirtfs.loop.Server`."""
        return [self._epoll.fileno()]

    def step(self, readable: int | None = None) -> float | None:
        """Do what there is to do, each client in turn; never fails.

        Args:
            readable: Not needed.

        Returns:
            When to call again even if nothing becomes readable, as time.monotonic(), 0.0: at once; None: never.
        """
        del readable
        events = self._epoll.poll(0)
        waiting = list(self._busy) if self._busy else ()
        knock = False
        for fd, bits in events:
            connection = self._by_fd.get(fd)
            if connection is None:
                knock = True
            elif connection in self._leaving:
                self._settle(connection)
            else:
                self._turn(connection, bits if fd == connection.fileno() else 0)
        for connection in waiting:
            if connection in self._busy:
                self._turn(connection, 0)
        if self._paused is not None or self._timers.first() is not None:
            self._keep_times()
        if knock:  # last: a new client's descriptors may have the numbers of old ones
            self._accept()
        return 0.0 if self._busy else self._next_time()

    def _next_time(self) -> float | None:
        first = self._timers.first()
        if self._paused is None or (first is not None and first < self._paused):
            return first
        return self._paused

    def _keep_times(self) -> None:
        now = time.monotonic()
        if self._paused is not None and self._paused <= now and self._listener is not None:
            self._paused = None
            self._epoll.modify(self._listener.fileno(), select.EPOLLIN)
        for connection in self._timers.due(now):
            patience = self._patience.get(connection)
            if connection in self._leaving:
                self._settle(connection)
            elif patience is not None and patience <= now and not connection.is_throttled:
                self._hang_up(connection, connection.delay)
            else:
                self._turn(connection, 0)

    # --- clients come ---

    def _new_session(self) -> Session:
        return Session(self._driver, msize_limit=self._msize_limit, limits=self._session_limits, trace=self._trace)

    def add(self, client: socket.socket, peer: str = "a client") -> Connection:
        """Serve a client.

        Args:
            client: A connected stream socket, which belongs to the server from now on.
            peer: Who that is, for people.
        """
        connection = Connection(client, self._new_session(), self._pool, peer, self._limits.buffered)
        self._epoll.register(client.fileno(), select.EPOLLIN)
        self.connections.add(connection)
        self._by_fd[client.fileno()] = connection
        self._watched[connection] = select.EPOLLIN
        self._be_patient(connection, self._limits.first_message)
        self._timers.set(connection, self._patience[connection])
        return connection

    def _accept(self) -> None:
        listener = self._listener
        if listener is None or self._paused is not None:
            return
        for _ in range(_ACCEPTED):
            try:
                client, peer = listener.accept()
            except BlockingIOError:
                self._starved = False
                return
            except ConnectionAbortedError:
                continue
            except RefusedError as refusal:
                _log.warning("%s: a client is refused at %s: %s", self.name, listener.name, refusal)
                continue
            except OSError as error:
                if not self._starved:
                    self._starved = True
                    _log.error("%s: no client can be accepted: %s", self.name, error.strerror)
                self._paused = time.monotonic() + _PAUSE  # no descriptors left, most likely: do not spin
                self._epoll.modify(listener.fileno(), 0)
                return
            self._starved = False
            if not self._has_place():
                client.close()
                if not self._full:
                    self._full = True
                    _log.warning(
                        "%s: %s is sent away: there are %d clients already", self.name, peer, self._limits.connections
                    )
                continue
            self._full = False
            _log.info("%s: a client has connected: %s", self.name, peer)
            self.add(client, peer)

    def _has_place(self) -> bool:
        """Whether one more client may come; where there is no place, one may have to go that takes no replies."""
        full = len(self.connections) + len(self._leaving) >= self._limits.connections
        if full and self._stalled and not self._leaving:  # of those that are leaving, one may be about to be done
            longest = min(self._stalled, key=self._stalled.__getitem__)
            if self._stalled[longest] + self._limits.stalled <= time.monotonic():
                self._hang_up(longest, f"{longest.delay}, and another client needs its place")
        return len(self.connections) + len(self._leaving) < self._limits.connections

    # --- they have their turns ---

    def _turn(self, connection: Connection, events: int) -> None:
        try:
            more = connection.turn(events)
        except Hangup as reason:
            self._hang_up(connection, str(reason))
            return
        except Exception as error:  # noqa: BLE001  # a server must outlive its bugs: other clients hang on it
            _log.error("a bug in the server", exc_info=error)
            self._hang_up(connection, f"a bug: {error}")
            return
        if more:
            self._busy[connection] = None
        elif self._busy:
            self._busy.pop(connection, None)
        if (now := connection.events) != self._watched[connection]:
            self._epoll.modify(connection.fileno(), now)
            self._watched[connection] = now
            if now == select.EPOLLOUT:
                self._stalled[connection] = time.monotonic()
            else:
                self._stalled.pop(connection, None)
        elif self._stalled and connection.moved and connection in self._stalled:
            self._stalled[connection] = time.monotonic()
        if connection.in_flight and connection not in self._wakeups:
            self._watch_session(connection)
        if connection.is_ended:
            if connection.moved or connection.is_throttled or connection not in self._patience:
                self._be_patient(connection, self._limits.goodbye)
        elif connection.greeted and connection in self._patience:
            del self._patience[connection]
        connection.moved = False
        self._timers.set(connection, self._deadline(connection))

    def _deadline(self, connection: Connection) -> float | None:
        """When to look at a client even if nothing happens."""
        deadline = connection.server.next_deadline()
        if connection.server.busy and connection not in self._wakeups:  # there was no descriptor left
            deadline = time.monotonic() + _PAUSE
        patience = self._patience.get(connection)
        return patience if deadline is None or (patience is not None and patience < deadline) else deadline

    def _watch_session(self, connection: Connection) -> None:
        """Be told when a driver has answered; without a descriptor for that, `_deadline` has it looked after."""
        fileno = connection.server.wakeup_fileno()
        if fileno is not None:
            self._epoll.register(fileno, select.EPOLLIN)
            self._by_fd[fileno] = connection
            self._wakeups[connection] = fileno

    def _be_patient(self, connection: Connection, seconds: float) -> None:
        self._patience[connection] = time.monotonic() + seconds

    # --- they leave ---

    def _hang_up(self, connection: Connection, reason: str) -> None:
        level = logging.WARNING if reason else logging.INFO
        _log.log(level, "%s: a client is gone: %s%s", self.name, connection.peer, f": {reason}" if reason else "")
        self.connections.discard(connection)
        self._timers.set(connection, None)
        self._patience.pop(connection, None)
        self._busy.pop(connection, None)
        self._stalled.pop(connection, None)
        del self._watched[connection], self._by_fd[connection.fileno()]
        self._epoll.unregister(connection.fileno())
        try:
            if self._on_hangup is not None:
                self._on_hangup(connection, reason)
        except Exception as error:  # noqa: BLE001  # as in _turn
            _log.error("a bug in what is called when a client is gone", exc_info=error)
        connection.close()
        self._leaving[connection] = None
        self._settle(connection)

    def _settle(self, connection: Connection) -> None:
        """Forget a client that is gone, if no driver works for it any more."""
        if not connection.is_settled():
            if connection not in self._wakeups:
                self._watch_session(connection)
            self._timers.set(connection, self._deadline(connection))
            return
        del self._leaving[connection]
        self._timers.set(connection, None)
        wakeup = self._wakeups.pop(connection, None)
        if wakeup is not None:
            del self._by_fd[wakeup]
            self._epoll.unregister(wakeup)
        connection.server.close()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._epoll.closed

    @property
    def leaving(self) -> int:
        """How many clients are gone for whom a driver still works."""
        return len(self._leaving)

    def close(self) -> None:
        """Part from all clients, and listen no more. Idempotent.

        Replies that they have not taken are lost. A driver that still works for one is told that it need not.
        """
        if self._epoll.closed:
            return
        if self._listener is not None:
            self._listener.close()
        for connection in list(self.connections):
            self._hang_up(connection, "")
        for connection in list(self._leaving):
            connection.server.close()
        self._leaving.clear()
        self._epoll.close()
