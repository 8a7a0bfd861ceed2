"""Register blocks by field name: a construct declaration laid over a piece of a BAR or of configuration space."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple


class Field(NamedTuple):
    """Where a field of a structure lies."""

    offset: int
    nbytes: int


def fields_of(declaration: Any) -> dict[str, Field]:
    """The fields of a construct Struct of fixed size, by name, in order."""
    found, offset = {}, 0
    for member in declaration.subcons:
        nbytes = member.sizeof()
        if member.name is not None:
            found[member.name] = Field(offset, nbytes)
        offset += nbytes
    return found


class Registers:
    """A block of device registers whose fields are read and written by name, each in one access of its own width.

    Fields of 8 bytes are accessed as two halves, low half first, as a driver has to (virtio 1.3, 4.1.3.1).

    Args:
        declaration: The construct Struct that declares the block.
        read: Reads (offset, size) relative to `base`.
        write: Writes (offset, size, value) relative to `base`.
        base: Offset of the block.
    """

    def __init__(
        self,
        declaration: Any,
        read: Callable[[int, int], int],
        write: Callable[[int, int, int], None],
        base: int = 0,
    ) -> None:
        self.fields = fields_of(declaration)
        self._read = read
        self._write = write
        self._base = base

    def read(self, name: str) -> int:
        """The value of a field."""
        offset, nbytes = self.fields[name]
        offset += self._base
        if nbytes == 8:
            return self._read(offset, 4) | self._read(offset + 4, 4) << 32
        return self._read(offset, nbytes)

    def write(self, name: str, value: int) -> None:
        """Store a value into a field."""
        offset, nbytes = self.fields[name]
        offset += self._base
        if nbytes == 8:
            self._write(offset, 4, value & 0xFFFFFFFF)
            self._write(offset + 4, 4, value >> 32)
        else:
            self._write(offset, nbytes, value)

    def values(self) -> dict[str, int]:
        """Every field (reading may have side effects)."""
        return {name: self.read(name) for name in self.fields}
