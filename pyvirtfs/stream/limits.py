"""What clients of a stream may use of the host's memory, descriptors and time."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

from pyvirtfs.errors import ConfigError

MSIZE_LIMIT: Final = 1 << 20
"""The largest message by default: what Linux asks of a socket at most (MAX_SOCK_BUF of its net/9p/trans_fd.c)."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Caps for the clients of one `pyvirtfs.stream.Server`.

    Raises:
        ConfigError: A limit is not positive.
    """

    connections: int = 256
    """Clients at a time; who comes then is sent away, unless one that is `stalled` makes place. One that is gone counts
    while a driver works for it."""
    buffered: int = 8 << 20
    """Bytes for one client's requests and replies in memory; no more of its requests are begun beyond. (It is
    exceeded by what one more request takes, at most twice the largest message.)"""
    first_message: float = 10.0
    """Seconds until a client's first message is there; afterwards it may be silent for as long as it likes."""
    goodbye: float = 5.0
    """Seconds in which something must happen once a client sends no more (shutdown(2)): an answer of the driver, or a
    reply that it takes. The time that requests wait at a throttled export does not count."""
    stalled: float = 60.0
    """Seconds after which a client whose socket is full of replies, and takes none, loses its place to one that comes
    when there is no other."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value <= 0:
                raise ConfigError(field.name, f"{value} is not positive")
