"""Where clients of a stream come from, and who may be one: a unix socket, a TCP port."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from pyvirtfs import unix_socket
from pyvirtfs.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Collection

LOOPBACK: Final = "127.0.0.1"
FORMS: Final = ("unix:PATH", "tcp:PORT", "tcp:HOST:PORT")
"""How an address is written."""

_BACKLOG: Final = 128
_PEER: Final = struct.Struct("=iII")
"""struct ucred: process, user, group (unix(7), SO_PEERCRED)."""
_KEEPALIVE: Final = ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 6))
"""After two minutes without an answer a client's machine is gone, and so are its locks (tcp(7))."""


class RefusedError(Exception):
    """A client that may not be one has come, and is gone; says who and why."""


class Listener(Protocol):
    """Lets clients in."""

    @property
    def name(self) -> str:
        """Where clients connect to, as an `Address` is written."""

    def fileno(self) -> int:
        """Readable when a client waits."""

    def accept(self) -> tuple[socket.socket, str]:
        """The next client, and who it is.

        Raises:
            RefusedError: It may not be one.
            OSError: As accept(2); EAGAIN if there is none.
        """

    def close(self) -> None:
        """Listen no more. Idempotent."""


class UnixListener:
    """A unix socket, which only this user and root can connect to: by its mode, and by who the peer is.

    Args:
        path: Where; a socket file that nobody listens at is replaced.
        uids: The users whose processes may be clients; None: the one of this process, and root.
        option: How messages call whatever names the path.

    Raises:
        ConfigError: As `pyvirtfs.unix_socket.UnixListener`.
    """

    def __init__(self, path: str, *, uids: Collection[int] | None = None, option: str = "--listen") -> None:
        self.name: Final = f"unix:{path}"
        self._uids = frozenset({os.geteuid(), 0} if uids is None else uids)
        self._listener = unix_socket.UnixListener(path, option=option, backlog=_BACKLOG)

    def fileno(self) -> int:
        """As `Listener.fileno`."""
        return self._listener.fileno()

    def accept(self) -> tuple[socket.socket, str]:
        """As `Listener.accept`."""
        client = self._listener.accept()
        try:
            pid, uid, _ = _PEER.unpack(client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
        except BaseException:
            client.close()
            raise
        if uid not in self._uids:
            client.close()
            raise RefusedError(f"process {pid} is user {uid}'s, who may not connect")
        return client, f"process {pid} of user {uid}"

    def close(self) -> None:
        """As `Listener.close`; removes the socket file."""
        self._listener.close()


class TcpListener:
    """A TCP port. Whoever reaches it is let in.

    Args:
        host: An address of this machine or a name of it.
        port: 0: any that is free.
        option: How messages call whatever names the port.

    Raises:
        ConfigError: There is no such address, or the port is taken or may not be had.
    """

    def __init__(self, host: str = LOOPBACK, port: int = 0, *, option: str = "--listen") -> None:
        try:
            family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            self._socket = socket.create_server(address, family=family, backlog=_BACKLOG)  # with its scope (RFC 4007)
        except (OSError, UnicodeError) as error:
            problem = getattr(error, "strerror", None) or str(error)
            raise ConfigError(option, f"nobody can listen at {tcp_name(host, port)}: {problem}") from None
        self._socket.setblocking(False)
        self.host, self.port = _numeric(self._socket.getsockname())
        self.name: Final = f"tcp:{tcp_name(self.host, self.port)}"

    def fileno(self) -> int:
        """As `Listener.fileno`."""
        return self._socket.fileno()

    def accept(self) -> tuple[socket.socket, str]:
        """As `Listener.accept`."""
        client, address = self._socket.accept()
        with contextlib.suppress(OSError):  # it is gone again already; whoever reads from it is told
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in _KEEPALIVE:
                client.setsockopt(socket.IPPROTO_TCP, name, value)
        return client, tcp_name(*_numeric(address))

    def close(self) -> None:
        """As `Listener.close`."""
        self._socket.close()


class Tcp(NamedTuple):
    """The address of a TCP port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"tcp:{tcp_name(*self)}"


@dataclass(frozen=True, slots=True)
class Unix:
    """The address of a unix socket."""

    path: str
    """Ends in a slash where it is a folder for several."""

    def __str__(self) -> str:
        return f"unix:{self.path}"


def _numeric(address: Any) -> tuple[str, int]:
    """Host and port of a socket's address; a link-local host has its interface: ``fe80::1%eth0``."""
    return socket.getnameinfo(address, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)[0], address[1]


def tcp_name(host: str, port: int) -> str:
    """Host and port in one word; an IPv6 address is in brackets then."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_address(text: str, *, option: str = "--listen") -> Unix | Tcp:
    """Read ``unix:PATH``, ``tcp:PORT`` or ``tcp:HOST:PORT``; without a host it is the loopback address.

    Raises:
        ConfigError: It is none of these.
    """
    kind, _, rest = text.partition(":")
    if kind == "unix" and rest and "\0" not in rest:
        return Unix(rest)
    if kind == "tcp":
        found = re.fullmatch(r"(?:(\[[^\[\]]+\]|[^:\[\]]*):)?([0-9]{1,5})", rest, re.ASCII)
        if found is not None and int(found[2]) < 1 << 16:
            return Tcp((found[1] or LOOPBACK).strip("[]"), int(found[2]))
    raise ConfigError(option, f"{text!r} is no address", FORMS)
