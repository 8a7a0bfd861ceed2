"""Configuration space as bytes with a rule for every bit, and the capability list in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pyvirtfs.errors import ConfigError
from pyvirtfs.pci.layout import (
    CAPABILITIES,
    CONVENTIONAL_NBYTES,
    FIRST_CAPABILITY,
    STATUS,
    STATUS_CAPABILITIES,
)

ALL_ONES: Final = {size: (1 << (8 * size)) - 1 for size in range(1, 9)}
"""What a read that nobody answers returns, by access size in bytes (a master abort, PCI 3.0, 6.1)."""


class ConfigSpace:
    """The bytes of one function's configuration space.

    Each bit is read-only, writable, or cleared by writing a one (RW1C). Guest accesses are of 1, 2 or 4 bytes at a
    multiple of their size; every other access finds nobody: it reads as all ones and writes nothing (PCI 3.0, 6.1).

    Args:
        nbytes: 256, or 4096 for a PCI Express function.

    Attributes:
        data: The bytes as they are now.
        initial: The bytes after a reset.
        writable: Per bit, whether the guest can write it.
        write_one_clears: Per bit, whether the guest clears it by writing a one.
    """

    __slots__ = ("data", "initial", "nbytes", "writable", "write_one_clears")

    def __init__(self, nbytes: int = CONVENTIONAL_NBYTES) -> None:
        self.nbytes = nbytes
        self.data = bytearray(nbytes)
        self.initial = bytearray(nbytes)
        self.writable = bytearray(nbytes)
        self.write_one_clears = bytearray(nbytes)

    def declare(self, offset: int, image: bytes, writable: bytes = b"", write_one_clears: bytes = b"") -> None:
        """Define registers: their value (now and after each reset) and the bits that a guest changes.

        Args:
            offset: Where they begin.
            image: Their bytes.
            writable: Mask of the writable bits, at most as long as `image`; the rest is read-only.
            write_one_clears: Mask of the RW1C bits, likewise.

        Raises:
            ValueError: If the registers or masks do not fit.
        """
        end = offset + len(image)
        if not 0 <= offset <= end <= self.nbytes or max(len(writable), len(write_one_clears)) > len(image):
            raise ValueError(f"{len(image)} bytes of registers at {offset:#x} do not fit")
        self.data[offset:end] = image
        self.initial[offset:end] = image
        self.writable[offset:end] = writable.ljust(len(image), b"\0")
        self.write_one_clears[offset:end] = write_one_clears.ljust(len(image), b"\0")

    def accepts(self, offset: int, size: int) -> bool:
        """Whether a guest access of `size` bytes at `offset` reaches registers at all."""
        return size in (1, 2, 4) and 0 <= offset <= self.nbytes - size and not offset & (size - 1)

    def read(self, offset: int, size: int) -> int:
        """A guest's read: little endian; all ones if the access is not acceptable."""
        if not self.accepts(offset, size):
            return ALL_ONES.get(size, 0)
        return int.from_bytes(self.data[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> bool:
        """A guest's write, through the masks. Returns whether the access was acceptable."""
        if not self.accepts(offset, size):
            return False
        end = offset + size
        old = int.from_bytes(self.data[offset:end], "little")
        writable = int.from_bytes(self.writable[offset:end], "little")
        clears = int.from_bytes(self.write_one_clears[offset:end], "little")
        new = (old & ~writable | value & writable) & ~(value & clears)
        self.data[offset:end] = new.to_bytes(size, "little")
        return True

    def load(self, offset: int, size: int) -> int:
        """The device's own read of a register of `size` bytes, without side effects."""
        return int.from_bytes(self.data[offset : offset + size], "little")

    def store(self, offset: int, size: int, value: int) -> None:
        """The device's own write of a register of `size` bytes, past the masks."""
        self.data[offset : offset + size] = value.to_bytes(size, "little")

    def reset(self) -> None:
        """Every register back to its initial value."""
        self.data[:] = self.initial


AccessHook = Callable[[int, int], None]
"""Called as ``hook(offset, size)`` around a guest access; the offset counts from the begin of the capability."""


class Capability:
    """One capability: its bytes, the bits that the guest can write, and what accesses to it do.

    Args:
        image: All its bytes, with the capability id at 0; the link to the next one at 1 is filled in when it is added.
        writable: Mask of the writable bits, counted from the capability's begin; the rest is read-only.
        write_one_clears: Mask of the RW1C bits, likewise.
        before_read: Called before bytes of it are read; may `store` fresh ones.
        after_write: Called after a write has gone through the masks.

    Attributes:
        offset: Where it lies in configuration space; 0 before it was added.
    """

    __slots__ = ("_config", "after_write", "before_read", "image", "offset", "writable", "write_one_clears")

    def __init__(
        self,
        image: bytes,
        *,
        writable: bytes = b"",
        write_one_clears: bytes = b"",
        before_read: AccessHook | None = None,
        after_write: AccessHook | None = None,
    ) -> None:
        if len(image) < 2 or max(len(writable), len(write_one_clears)) > len(image):
            raise ValueError("a capability has at least id and link, and masks no longer than itself")
        self.image = image
        self.writable = writable
        self.write_one_clears = write_one_clears
        self.before_read = before_read
        self.after_write = after_write
        self.offset = 0
        self._config: ConfigSpace | None = None

    @property
    def nbytes(self) -> int:
        """Its length in bytes, header included."""
        return len(self.image)

    def attach(self, config: ConfigSpace, offset: int) -> None:
        """Lay it into `config` at `offset` as the new head of the capability list (PCI 3.0, 6.7)."""
        image = bytearray(self.image)
        image[1] = config.data[CAPABILITIES]
        # The id and the link are read-only whatever the masks say: the list must stay walkable.
        config.declare(
            offset,
            bytes(image),
            b"\0\0" + self.writable[2:],
            b"\0\0" + self.write_one_clears[2:],
        )
        for target in (config.data, config.initial):
            target[CAPABILITIES] = offset
            target[STATUS] |= STATUS_CAPABILITIES
        self._config = config
        self.offset = offset

    def load(self, offset: int, size: int) -> int:
        """The device's own read of `size` bytes at `offset` in the capability. RuntimeError before it was added."""
        return self._space().load(self.offset + offset, size)

    def store(self, offset: int, size: int, value: int) -> None:
        """The device's own write of `size` bytes at `offset` in the capability. RuntimeError before it was added."""
        self._space().store(self.offset + offset, size, value)

    def _space(self) -> ConfigSpace:
        if self._config is None:
            raise RuntimeError("the capability belongs to no function yet")
        return self._config


class CapabilityList:
    """Where capabilities go: upwards from 0x40 in the order of their addition, each at a multiple of 4.

    Each new one becomes the head of the list, so a guest walks it from the last added to the first: the order that
    guests know from QEMU.
    """

    __slots__ = ("_config", "_free", "items")

    def __init__(self, config: ConfigSpace) -> None:
        self._config = config
        self._free = FIRST_CAPABILITY
        self.items: list[Capability] = []

    def add(self, capability: Capability) -> int:
        """Append `capability` and return its offset. ConfigError if the 256 bytes are used up."""
        offset = self._free
        end = offset + capability.nbytes
        if end > CONVENTIONAL_NBYTES:
            raise ConfigError("capability", f"no room for {capability.nbytes} bytes at {offset:#x}")
        capability.attach(self._config, offset)
        self.items.append(capability)
        self._free = (end + 3) & ~3
        return offset
