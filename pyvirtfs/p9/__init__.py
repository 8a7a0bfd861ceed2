"""9P: messages, the device's codec and server; over any transport.

`Server` answers requests with an export driver, in the dialect that its client asks for: 9P2000.L (diod's protocol.md),
9P2000.u, or 9P2000 (section 5 of the Plan 9 manual). `pyvirtfs.p9.client` has a `Client` of 9P2000.L, which makes
requests. Neither does any I/O of its own.
"""

from __future__ import annotations

from pyvirtfs.p9.limits import Limits
from pyvirtfs.p9.messages import MESSAGES, Message
from pyvirtfs.p9.printer import describe, format_message
from pyvirtfs.p9.server import Server

__all__ = ["MESSAGES", "Limits", "Message", "Server", "describe", "format_message"]
