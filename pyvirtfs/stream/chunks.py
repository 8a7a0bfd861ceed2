"""The memory that messages of a stream lie in, and how it is used again.

A client that is silent has none of it. Memory comes in chunks of two sizes, which go from one client to the next: they
stay warm in the processor's cache, and their pages are not asked of the kernel again and again.
"""

from __future__ import annotations

from typing import Final

CHUNK_NBYTES: Final = 256 << 10
"""Of most chunks: more than a unix socket holds at a time."""

_SPARE: Final = 4
"""How many chunks of each size are kept while nobody needs them."""


class Chunk:
    """A piece of memory.

    Attributes:
        view: Its bytes.
        nbytes: How many those are.
        users: How many requests or replies lie in it that somebody still needs.
    """

    __slots__ = ("nbytes", "users", "view")

    def __init__(self, nbytes: int) -> None:
        self.view: Final = memoryview(bytearray(nbytes))
        self.nbytes: Final = nbytes
        self.users = 0


class Pool:
    """Chunks for the clients of one thread.

    Args:
        largest: The most bytes that are ever needed in one piece.
    """

    def __init__(self, largest: int) -> None:
        self._largest = max(largest, CHUNK_NBYTES)
        self._spare: dict[int, list[Chunk]] = {CHUNK_NBYTES: [], self._largest: []}

    def take(self, nbytes: int) -> Chunk:
        """A chunk of at least so many bytes, whatever they are. ValueError if that is more than the largest."""
        if nbytes > self._largest:
            raise ValueError(f"{nbytes} bytes, {self._largest} are the most")
        size = CHUNK_NBYTES if nbytes <= CHUNK_NBYTES else self._largest
        spare = self._spare[size]
        return spare.pop() if spare else Chunk(size)

    def give(self, chunk: Chunk) -> None:
        """Take a chunk back that nobody needs."""
        spare = self._spare[chunk.nbytes]
        if len(spare) < _SPARE:
            spare.append(chunk)
