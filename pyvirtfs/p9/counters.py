"""What a server has done so far, as plain numbers."""

from __future__ import annotations


class Counters:
    """Counts since the server was made; only ever growing.

    Attributes:
        by_type: Requests for each message type, a list of 256.
        errors: Requests answered with an error.
        bytes_read: Payload of Rread, bytes.
        bytes_written: Payload that Twrite stored, bytes.
        deferred: Requests that a driver answered later.
        cancelled: Requests that ended without an answer: flushed, or aborted by a Tversion.
    """

    __slots__ = ("by_type", "bytes_read", "bytes_written", "cancelled", "deferred", "errors")

    def __init__(self) -> None:
        self.by_type = [0] * 256
        self.errors = 0
        self.bytes_read = 0
        self.bytes_written = 0
        self.deferred = 0
        self.cancelled = 0

    @property
    def requests(self) -> int:
        """Well-formed requests, of all types, known or not."""
        return sum(self.by_type)
