"""The regions of a vfio-user device: the BARs and the configuration space of a PCI function.

An access of 1, 2, 4 or 8 bytes reaches the function as it is; any other one is cut into such accesses, each aligned to
its size, in the order of their addresses.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from pyvirtfs.vmm.vfio_user.messages import (
    BAR_REGIONS,
    CONFIG_REGION,
    MAX_TRANSFER,
    NUM_REGIONS,
    REGION_READ,
    REGION_WRITE,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyvirtfs.pci import PciFunction

_LARGEST_CONFIG: Final = 4
_LARGEST_BAR: Final = 8


def _pieces(offset: int, nbytes: int, largest: int) -> Iterator[tuple[int, int]]:
    """Offset and size of the naturally aligned accesses that a range consists of."""
    end = offset + nbytes
    while offset < end:
        size = min(largest, offset & -offset or largest)
        while size > end - offset:
            size >>= 1
        yield offset, size
        offset += size


class Regions:
    """What can be read and written of a function.

    Args:
        function: The function.
    """

    def __init__(self, function: PciFunction) -> None:
        self._function = function
        self.sizes: Final = tuple(
            function.bars[index].nbytes
            if index in function.bars
            else function.config.nbytes
            if index == CONFIG_REGION
            else 0
            for index in range(NUM_REGIONS)
        )
        """Bytes of each region, 0 for those that do not exist."""

    def info(self, index: int) -> tuple[int, int]:
        """Flags and size of a region (DEVICE_GET_REGION_INFO). OSError EINVAL if there is no such number."""
        if index >= NUM_REGIONS:
            raise OSError(errno.EINVAL, f"there is no region {index}")
        size = self.sizes[index]
        return (REGION_READ | REGION_WRITE if size else 0), size

    def check(self, region: int, offset: int, nbytes: int) -> None:
        """Raise OSError EINVAL unless a range lies within a region and is no longer than an access may be."""
        if region >= NUM_REGIONS or nbytes > MAX_TRANSFER or offset > self.sizes[region] - nbytes:
            raise OSError(errno.EINVAL, f"{nbytes} bytes at {offset:#x} of region {region}")

    def read(self, region: int, offset: int, nbytes: int) -> bytes:
        """Read a range. Raises OSError EINVAL."""
        self.check(region, offset, nbytes)
        function = self._function
        if region == CONFIG_REGION:
            return b"".join(
                function.config_read(where, size).to_bytes(size, "little")
                for where, size in _pieces(offset, nbytes, _LARGEST_CONFIG)
            )
        if nbytes in {1, 2, 4, 8}:
            return function.bar_read(region, offset, nbytes).to_bytes(nbytes, "little")
        return b"".join(
            function.bar_read(region, where, size).to_bytes(size, "little")
            for where, size in _pieces(offset, nbytes, _LARGEST_BAR)
        )

    def write(self, region: int, offset: int, data: bytes | memoryview) -> None:
        """Write a range. Raises OSError EINVAL, with nothing written."""
        nbytes = len(data)
        self.check(region, offset, nbytes)
        function = self._function
        if region < BAR_REGIONS and nbytes in {1, 2, 4, 8}:
            function.bar_write(region, offset, nbytes, int.from_bytes(data, "little"))
            return
        is_config = region == CONFIG_REGION
        for where, size in _pieces(offset, nbytes, _LARGEST_CONFIG if is_config else _LARGEST_BAR):
            value = int.from_bytes(data[where - offset : where - offset + size], "little")
            if is_config:
                function.config_write(where, size, value)
            else:
                function.bar_write(region, where, size, value)
