"""RAM that this process cannot map: somebody else reads and writes it for us, a message at a time.

Everything works as with RAM of our own, only slower: a ring index is a message, and a payload takes the way through a
buffer of this process.
"""

from __future__ import annotations

import errno
import functools
import os
from typing import TYPE_CHECKING, Any, Final, Protocol

from pyvirtfs.errors import ConfigError
from pyvirtfs.memory.buffers import Buffers, Bytes, offset_error
from pyvirtfs.memory.regions import ADDRESS_LIMIT, Region

if TYPE_CHECKING:
    import struct
    from collections.abc import Callable, Sequence

_BOUNCE_NBYTES: Final = 1 << 20
_WORD_NBYTES: Final = {"H": 2, "I": 4, "Q": 8}


class RemotePort(Protocol):
    """Whoever can reach the RAM."""

    def read(self, address: int, nbytes: int) -> bytes:
        """Read a range. Raises MemoryAccessError if that is not possible, or not any more."""

    def write(self, address: int, data: Bytes) -> None:
        """Write a range. Raises as `read`."""


class Words(Protocol):
    """An array of integers in guest RAM, each loaded and stored in one piece: a cast memoryview is one."""

    def __getitem__(self, index: int, /) -> int: ...

    def __setitem__(self, index: int, value: int, /) -> None: ...


class RemoteRegion:
    """One contiguous piece of such RAM.

    Args:
        port: How to reach it.
        nbytes: Its length.
        address: Guest-physical address of its first byte.
        readonly: It cannot be written.

    Raises:
        ConfigError: It does not fit at that address.
    """

    __slots__ = ("address", "end", "nbytes", "port", "readonly")

    def __init__(self, port: RemotePort, nbytes: int, address: int, *, readonly: bool = False) -> None:
        if nbytes <= 0 or address < 0 or address + nbytes > ADDRESS_LIMIT:
            raise ConfigError("memory", f"{nbytes} bytes do not fit at guest address {address:#x}")
        self.port = port
        self.address = address
        self.nbytes = nbytes
        self.end = address + nbytes
        self.readonly = readonly

    def __repr__(self) -> str:
        kind = " readonly" if self.readonly else ""
        return f"<RemoteRegion {self.address:#x}..{self.end - 1:#x}{kind}>"

    def load(self, start: int, nbytes: int) -> bytes:
        """Copy bytes out. Raises MemoryAccessError if whoever can reach them does not."""
        return self.port.read(self.address + start, nbytes)

    def store(self, start: int, data: Bytes) -> None:
        """Copy bytes in. Raises as `load`."""
        self.port.write(self.address + start, data)


class RemoteView:
    """What a memoryview is for RAM of our own, as far as rings need it.

    Args:
        region: Where it lies.
        start: Offset of its first byte in the region.
        nbytes: Its length; not checked.
    """

    __slots__ = ("_region", "_start", "nbytes", "readonly")

    def __init__(self, region: RemoteRegion, start: int, nbytes: int) -> None:
        self._region = region
        self._start = start
        self.nbytes = nbytes
        self.readonly = region.readonly

    def __getitem__(self, part: slice) -> RemoteView:
        start, stop, _ = part.indices(self.nbytes)
        return RemoteView(self._region, self._start + start, stop - start)

    def cast(self, code: str) -> RemoteWords:
        """Its words: code ``H``, ``I`` or ``Q`` of `struct`, little endian."""
        return RemoteWords(self._region, self._start, _WORD_NBYTES[code])

    def unpack(self, layout: struct.Struct, offset: int) -> tuple[Any, ...]:
        """Read a structure at an offset."""
        return layout.unpack(self._region.load(self._start + offset, layout.size))


class RemoteWords:
    """An array of integers; see `RemoteView.cast`."""

    __slots__ = ("_nbytes", "_region", "_start")

    def __init__(self, region: RemoteRegion, start: int, nbytes: int) -> None:
        self._region = region
        self._start = start
        self._nbytes = nbytes

    def __getitem__(self, index: int) -> int:
        return int.from_bytes(self._region.load(self._start + index * self._nbytes, self._nbytes), "little")

    def __setitem__(self, index: int, value: int) -> None:
        self._region.store(self._start + index * self._nbytes, value.to_bytes(self._nbytes, "little"))


def unpacker(layout: struct.Struct, view: memoryview | RemoteView) -> Callable[[int], tuple[Any, ...]]:
    """What reads a structure at an offset of a view."""
    if isinstance(view, memoryview):
        return functools.partial(layout.unpack_from, view)
    return functools.partial(view.unpack, layout)


class RemoteBuffers(Buffers):
    """A payload of which at least a part cannot be mapped.

    Args:
        ranges: Of each range, in order: where it lies, the offset there, its length.
    """

    __slots__ = ("_ranges", "nbytes")

    def __init__(self, ranges: Sequence[tuple[Region | RemoteRegion, int, int]]) -> None:
        self._ranges = ranges
        self.nbytes = sum(nbytes for _, _, nbytes in ranges)

    def __repr__(self) -> str:
        return f"<RemoteBuffers {self.nbytes} bytes in {len(self._ranges)} ranges>"

    def _cut(self, offset: int, nbytes: int) -> list[tuple[Region | RemoteRegion, int, int]]:
        end = offset + nbytes
        if not 0 <= offset <= end <= self.nbytes:
            raise ValueError(f"{nbytes} bytes at offset {offset} do not lie within {self.nbytes} bytes")
        found = []
        at = 0
        for where, start, length in self._ranges:
            first, last = max(offset, at), min(end, at + length)
            if first < last:
                found.append((where, start + first - at, last - first))
            at += length
        return found

    def read(self, offset: int, nbytes: int) -> bytes:
        """See `Buffers.read`. Raises also MemoryAccessError, if whoever can reach the memory does not."""
        return b"".join(where.load(start, length) for where, start, length in self._cut(offset, nbytes))

    def write(self, offset: int, data: Bytes) -> None:
        """See `Buffers.write`. Raises also MemoryAccessError, if whoever can reach the memory does not."""
        source = memoryview(data)
        done = 0
        for where, start, length in self._cut(offset, source.nbytes):
            where.store(start, source[done : done + length])
            done += length

    def slice(self, offset: int, nbytes: int) -> RemoteBuffers:
        """See `Buffers.slice`."""
        return RemoteBuffers(self._cut(offset, nbytes))

    def views(self) -> list[memoryview]:
        """There are none: OSError EOPNOTSUPP. `read` and `write` do it in one copy more."""
        raise OSError(errno.EOPNOTSUPP, "this guest's RAM cannot be mapped")

    def preadv(self, fd: int, offset: int) -> int:
        """See `Buffers.preadv`. Raises also MemoryAccessError, if whoever can reach the memory does not."""
        done = 0
        while done < self.nbytes:
            try:
                data = os.pread(fd, min(_BOUNCE_NBYTES, self.nbytes - done), offset + done)
            except OverflowError:
                raise offset_error(offset, errno.EINVAL) from None
            if not data:
                break
            self.write(done, data)
            done += len(data)
        return done

    def pwritev(self, fd: int, offset: int) -> int:
        """See `Buffers.pwritev`. Raises also MemoryAccessError, if whoever can reach the memory does not."""
        done = 0
        while done < self.nbytes:
            data = self.read(done, min(_BOUNCE_NBYTES, self.nbytes - done))
            try:
                turn = os.pwrite(fd, data, offset + done)
            except OverflowError:
                if done:
                    break
                raise offset_error(offset, errno.EFBIG) from None
            except OSError:
                if done:
                    break
                raise
            done += turn
            if turn < len(data):
                break
        return done
