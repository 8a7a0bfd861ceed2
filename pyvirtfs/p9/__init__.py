"""9P2000.L: messages, the device's codec and server; over any transport (diod's protocol.md).

`Server` answers requests with an export driver. `pyvirtfs.p9.client` has a `Client` that makes them. Neither does any
I/O of its own.
"""

from __future__ import annotations

from pyvirtfs.p9.limits import Limits
from pyvirtfs.p9.messages import MESSAGES, Message
from pyvirtfs.p9.printer import describe, format_message
from pyvirtfs.p9.server import Server

__all__ = ["MESSAGES", "Limits", "Message", "Server", "describe", "format_message"]
