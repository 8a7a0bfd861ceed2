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
    """Clients at a time; who comes then is sent away. One that is gone counts while a driver works for it."""
    buffered: int = 8 << 20
    """Bytes for one client's requests and replies in memory; no more of its requests are begun beyond. (It is
    exceeded by what one more request takes, at most twice the largest message.)"""
    first_message: float = 10.0
    """Seconds until a client's first message is there; afterwards it may be silent for as long as it likes."""
    goodbye: float = 5.0
    """Seconds for what is in flight when a client sends no more (shutdown(2)), and for replies that it has not taken
    then."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value <= 0:
                raise ConfigError(field.name, f"{value} is not positive")
