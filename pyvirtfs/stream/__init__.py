"""9P over a byte stream: exports for clients on a unix socket or a TCP port, without a virtual machine (intro(5))."""

from __future__ import annotations

from pyvirtfs.stream.connection import Connection
from pyvirtfs.stream.limits import Limits
from pyvirtfs.stream.listener import Listener, TcpListener, UnixListener
from pyvirtfs.stream.server import Server

__all__ = ["Connection", "Limits", "Listener", "Server", "TcpListener", "UnixListener"]
