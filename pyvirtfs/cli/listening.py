"""`--listen`: which exports are for 9P clients on a socket, where those connect, and what is given away by it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pyvirtfs.errors import ConfigError
from pyvirtfs.stream.listener import Listener, Tcp, TcpListener, Unix, UnixListener, parse_address

if TYPE_CHECKING:
    from pyvirtfs.fsdev.options import FsdevOptions

OPTION = "--listen"
ALLOW_TCP = "--allow-unauthenticated-tcp"

_ANYWHERE = {"0.0.0.0": "any address of this machine", "::": "any address of this machine"}  # noqa: S104  # what to call them, not where to listen


def listen_addresses(texts: Sequence[str], exports: Sequence[FsdevOptions], *, allow_tcp: bool) -> list[Unix | Tcp]:
    """Where the clients of each export connect.

    Args:
        texts: As written behind `--listen`: one for each export, or one folder for all.
        exports: In their order.
        allow_tcp: Whether TCP, which authenticates nobody, is meant.

    Raises:
        ConfigError: An address is none, there are not as many as exports, or TCP is not meant.
    """
    addresses = [parse_address(text) for text in texts]
    if addresses and not exports:
        raise ConfigError(OPTION, "there is no export for it: each is a device's; write an -fsdev that no -device has")
    if len(addresses) == 1 and isinstance(addresses[0], Unix) and addresses[0].path.endswith("/"):
        folder = addresses[0].path
        addresses = [Unix(os.path.join(folder, f"{export_name(export)}.sock")) for export in exports]
        for address, export in zip(addresses, exports, strict=True):
            if "/" in export_name(export) or addresses.count(address) > 1:
                name = export_name(export)
                raise ConfigError(OPTION, f"{name!r} makes no name of a socket: give each export a {OPTION}")
    if len(addresses) != len(exports):
        raise ConfigError(
            OPTION,
            f"give each of {len(exports)} exports without a device one, or unix:FOLDER/ with a slash at its end for "
            f"all of them; there are {len(addresses)} addresses",
        )
    for address, export in zip(addresses, exports, strict=True):
        if isinstance(address, Tcp) and not allow_tcp:
            raise ConfigError(
                OPTION,
                f"{address}: TCP authenticates nobody: {given_away(address.host, address.port, export)}; "
                f"if that is meant, say {ALLOW_TCP}, and otherwise use unix:PATH",
            )
    return [Unix(os.path.abspath(each.path)) if isinstance(each, Unix) else each for each in addresses]


def export_name(export: FsdevOptions) -> str:
    """What messages call an export."""
    return export.id or export.driver


def given_away(host: str, port: int, export: FsdevOptions) -> str:
    """Who may do what if an export is on a TCP port, in one sentence."""
    if host in _ANYWHERE:
        who = f"everybody who reaches port {port} of {_ANYWHERE[host]}"
    elif host.startswith("127.") or host in {"::1", "localhost"}:
        who = f"every user and program of this machine (by port {port} of {host})"
    else:
        who = f"everybody who reaches port {port} of {host}"
    what = "read" if export.values.get("readonly", "off") in {"on", "yes", "true", "y"} else "read and write"
    where = f"everything below {export.values['path']}" if "path" in export.values else f"all of {export_name(export)}"
    return f"{who} can {what} {where} as this process"


def open_listener(address: Unix | Tcp) -> Listener:
    """Listen there.

    Raises:
        ConfigError: See `UnixListener` and `TcpListener`.
    """
    return UnixListener(address.path) if isinstance(address, Unix) else TcpListener(address.host, address.port)


def mount_command(listener: Listener) -> str:
    """How Linux mounts an export that is served there."""
    options, source = "trans=unix", ""
    if isinstance(listener, TcpListener):
        options = f"trans=tcp,port={listener.port}"
        source = "ADDRESS" if listener.host in _ANYWHERE else listener.host
    else:
        source = listener.name.removeprefix("unix:")
    return f"mount -t 9p -o {options},version=9p2000.L {shlex.quote(source)} /mnt"
