"""The loop that serves the clients of several servers, of whatever kind, in one thread."""

from __future__ import annotations

import contextlib
import os
import select
import time
from typing import Protocol


class Server(Protocol):
    """What the loop asks of a server; `pyvirtfs.vmm.vfio_user.Server` and `pyvirtfs.stream.Server` are two."""

    @property
    def epoch(self) -> int:
        """Another number as soon as descriptors that were among `filenos` are closed: others may have theirs."""

    def filenos(self) -> list[int]:
        """The descriptors whose readability is to be told by `step`."""

    def step(self, readable: int | None = None) -> float | None:
        """Do what there is to do; never fails.

        Args:
            readable: One of `filenos` that is readable.

        Returns:
            When to call again even if nothing becomes readable, as time.monotonic(), 0.0: at once; None: never.
        """

    def close(self) -> None:
        """Part from all clients. Idempotent."""


class Loop:
    """Serves several servers in one thread, until `stop`.

    Attributes:
        servers: To be filled before `run`.
    """

    def __init__(self) -> None:
        self.servers: list[Server] = []
        self._stop = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def stop(self) -> None:
        """Let `run` return soon; may be called from a signal handler or another thread."""
        with contextlib.suppress(OSError):
            os.eventfd_write(self._stop, 1)

    def run(self) -> None:
        """Serve until `stop` is called."""
        with select.epoll() as epoll:
            epoll.register(self._stop, select.EPOLLIN)
            owners: dict[int, Server] = {}
            watched: dict[Server, list[int]] = {}
            deadlines: dict[Server, float] = {}
            for server in self.servers:
                _watch(epoll, owners, watched, server)
            poll = epoll.poll
            while True:
                timeout = None
                if deadlines:
                    timeout = max(min(deadlines.values()) - time.monotonic(), 0.0)
                ready = poll(timeout)
                for fd, _ in ready:
                    if fd == self._stop:
                        return
                    owner = owners.get(fd)
                    if owner is not None:
                        _step(epoll, owners, watched, deadlines, owner, fd)
                if deadlines:
                    now = time.monotonic()
                    for server in [each for each, deadline in deadlines.items() if deadline <= now]:
                        _step(epoll, owners, watched, deadlines, server, None)

    def close(self) -> None:
        """Close all servers."""
        for server in self.servers:
            server.close()
        os.close(self._stop)


def _step(
    epoll: select.epoll,
    owners: dict[int, Server],
    watched: dict[Server, list[int]],
    deadlines: dict[Server, float],
    server: Server,
    readable: int | None,
) -> None:
    """Let a server do its work, and take note of what it waits for then."""
    epoch = server.epoch
    deadline = server.step(readable)
    if server.epoch != epoch:
        _forget(epoll, owners, watched, server)
    if server.filenos() != watched[server]:
        _watch(epoll, owners, watched, server)
    if deadline is None:
        deadlines.pop(server, None)
    else:
        deadlines[server] = deadline


def _forget(epoll: select.epoll, owners: dict[int, Server], watched: dict[Server, list[int]], server: Server) -> None:
    for fd in watched[server]:
        owners.pop(fd, None)
        with contextlib.suppress(OSError):
            epoll.unregister(fd)
    watched[server] = []


def _watch(epoll: select.epoll, owners: dict[int, Server], watched: dict[Server, list[int]], server: Server) -> None:
    """Let an epoll tell of the descriptors that a server waits for now."""
    before, now = watched.get(server, []), server.filenos()
    for fd in before:
        if fd not in now:
            owners.pop(fd, None)
            with contextlib.suppress(OSError):  # closed already, which takes it out as well
                epoll.unregister(fd)
    for fd in now:
        if fd not in before:
            owners[fd] = server
            epoll.register(fd, select.EPOLLIN)
    watched[server] = now
