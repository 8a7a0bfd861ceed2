"""Devices behind vfio-user sockets in this process, as `serve` and `qemu` have them."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from pyvirtfs.cli.listing import human, printable
from pyvirtfs.cli.logs import extra, p9_tracer, vfio_user_tracer

if TYPE_CHECKING:
    from pyvirtfs.cli.devices import DeviceSettings
    from pyvirtfs.fsdev.options import FsdevOptions
    from pyvirtfs.p9.counters import Counters
    from pyvirtfs.stream import Connection as StreamConnection
    from pyvirtfs.stream import Listener
    from pyvirtfs.vmm.vfio_user import Connection

_log = logging.getLogger(__name__)

_UNLIMITED: Final = 1 << 20
"""Descriptors where no limit is set (fs.nr_open, by default)."""


class OpenFiles:
    """As many descriptors for this process as its hard limit allows. A context manager."""

    def __enter__(self) -> Self:
        self._soft, self._hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._set(self._hard)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._set(self._soft)

    def _set(self, soft: int) -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, self._hard))

    @contextlib.contextmanager
    def as_before(self) -> Iterator[None]:
        """Inside of the block the limit is what it was, for programs that are started there."""
        self._set(self._soft)
        try:
            yield
        finally:
            self._set(self._hard)

    @contextlib.contextmanager
    def shared_by(self, count: int) -> Iterator[None]:
        """Inside of the block, what asks for the limit is told of one part in `count`."""
        most = _UNLIMITED if self._hard == resource.RLIM_INFINITY else self._hard
        self._set(most // max(count, 1))
        try:
            yield
        finally:
            self._set(self._hard)


class Service:
    """Several devices and exports, each behind a socket of its own. A context manager, which closes everything.

    Args:
        strict_memory: Refuse guest RAM that can be taken away.
        trace: 1: log 9P messages, 2: vfio-user messages too.
    """

    def __init__(self, *, strict_memory: bool, trace: int) -> None:
        from pyvirtfs.loop import Loop

        self._strict_memory = strict_memory
        self._trace = trace
        self._stack = contextlib.ExitStack()
        self._loop: Loop | None = Loop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def add(self, settings: DeviceSettings, path: str, *, express: bool = False) -> None:
        """Make a device and listen for its client.

        Raises:
            ConfigError: An option is wrong, or the socket cannot be made.
        """
        from pyvirtfs.memory import GuestMemory
        from pyvirtfs.vmm.vfio_user import Server

        assert self._loop is not None
        tag = printable(settings.mount_tag)
        memory = GuestMemory()
        device = self._stack.enter_context(
            settings.open(memory, defer=True, express=express, trace=p9_tracer(tag) if self._trace else None)
        )
        self._loop.servers.append(
            Server(
                device,
                memory,
                path,
                strict_memory=self._strict_memory,
                trace=vfio_user_tracer(tag) if self._trace > 1 else None,
                on_hangup=_Summary(tag, device.server.counters).tell,
            )
        )

    def add_stream(self, export: FsdevOptions, listener: Listener, name: str) -> None:
        """Serve an export to 9P clients; the listener belongs to the service from now on.

        Raises:
            ConfigError: An option is wrong.
        """
        from pyvirtfs.fsdev import registry
        from pyvirtfs.stream import Server

        assert self._loop is not None
        name = printable(name)
        with contextlib.ExitStack() as undo:
            undo.callback(listener.close)
            driver = self._stack.enter_context(contextlib.closing(registry.create(export)))
            trace = p9_tracer(name) if self._trace else None
            server = Server(driver, listener, name=name, trace=trace, on_hangup=_told_of(name))
            undo.pop_all()
        self._loop.servers.append(server)

    def run(self) -> None:
        """Serve until `stop` is called."""
        assert self._loop is not None
        self._loop.run()

    def stop(self) -> None:
        """Let `run` return; for signal handlers, at any time."""
        if self._loop is not None:
            self._loop.stop()

    def close(self) -> None:
        """Part from all clients, and close the devices behind them. Idempotent."""
        loop, self._loop = self._loop, None  # a signal may come at any time
        try:
            if loop is not None:
                loop.close()
        finally:
            self._stack.close()


def _numbers(counters: Counters) -> dict[str, int]:
    return {
        "requests": counters.requests,
        "errors": counters.errors,
        "bytes_read": counters.bytes_read,
        "bytes_written": counters.bytes_written,
    }


def _log_summary(tag: str, done: dict[str, int], **more: object) -> None:
    """Log one line about a connection that has ended."""
    _log.info(
        "%s: %d requests, %d errors, %s read, %s written",
        tag,
        done["requests"],
        done["errors"],
        _bytes(done["bytes_read"]),
        _bytes(done["bytes_written"]),
        extra=extra(event="disconnected", tag=tag, **done, **more),
    )


class _Summary:
    """Tells at the end of each connection what was done in it."""

    def __init__(self, tag: str, counters: Counters) -> None:
        self.tag = tag
        self.counters = counters
        self._before = _numbers(counters)

    def tell(self, connection: Connection, reason: str) -> None:
        """Log one line; nothing is done between two connections, so the next one begins here."""
        now = _numbers(self.counters)
        done = {name: value - self._before[name] for name, value in now.items()}
        self._before = now
        _log_summary(self.tag, done, messages=connection.received, messages_refused=connection.refused, reason=reason)


def _told_of(name: str) -> Callable[[StreamConnection, str], None]:
    """What logs a line when a 9P client is gone; each has counters of its own."""

    def tell(connection: StreamConnection, reason: str) -> None:
        _log_summary(name, _numbers(connection.server.counters), peer=connection.peer, reason=reason)

    return tell


def _bytes(nbytes: int) -> str:
    return f"{nbytes} bytes" if nbytes < 1024 else f"{human(nbytes)}iB"


def socket_base() -> str:
    """The folder for folders with sockets: this user's own, or else the one for everybody.

    A path there is short enough for a socket, which may have 107 bytes.
    """
    base = os.environ.get("XDG_RUNTIME_DIR", "")
    usable = os.path.isabs(base) and len(os.fsencode(base)) <= 60 and os.access(base, os.W_OK | os.X_OK)
    return base if usable else "/tmp"  # noqa: S108  # mkdtemp makes a private folder there
