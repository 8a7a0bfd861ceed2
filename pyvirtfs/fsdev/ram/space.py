"""How much of the process's memory an export may take: bytes of content and names, as tmpfs(5) counts them."""

from __future__ import annotations

import errno
import os
from typing import Final

PAGE: Final = 4096
"""Bytes; what content is counted in."""

_PLENTY: Final = 1 << 50
"""Of pages and of names, where there is no limit; what statfs tells then."""


class Space:
    """The budget of one export.

    Args:
        nbytes: Of content, extended attributes and targets of links; 0: no limit.
        names: Of files, folders and all else, each further link counted again; 0: no limit.

    Attributes:
        pages: How many there are.
        free: How many of them are not taken.
        names: How many there may be.
        free_names: How many more.
    """

    __slots__ = ("free", "free_names", "names", "pages")

    def __init__(self, nbytes: int, names: int) -> None:
        self.pages = self.free = pages_of(nbytes) or _PLENTY
        self.names = self.free_names = names or _PLENTY

    def take(self, pages: int) -> None:
        """Take pages. Raises OSError: ENOSPC, none is taken."""
        if pages > self.free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.free -= pages

    def take_name(self) -> None:
        """Take a name. Raises OSError: ENOSPC."""
        if not self.free_names:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.free_names -= 1


def pages_of(nbytes: int) -> int:
    """The pages that so many bytes take."""
    return (nbytes + PAGE - 1) // PAGE
