"""A vfio-user server for any PCI function: what an unmodified VMM attaches to by a unix socket."""

from __future__ import annotations

from pyvirtfs.loop import Loop
from pyvirtfs.vmm.vfio_user.connection import Connection
from pyvirtfs.vmm.vfio_user.server import Server

__all__ = ["Connection", "Loop", "Server"]
