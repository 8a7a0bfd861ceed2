"""The guest-physical address space: RAM regions, and checked access to them.

Every address and length may come from the guest, so any 64-bit value must be expected: a range is used only if each
byte of it is RAM. Python's integers do not wrap; where numpy's do, the comparisons are arranged so that it does not
matter.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pyvirtfs.errors import ConfigError, MemoryAccessError
from pyvirtfs.memory.buffers import Buffers, IovecBuffers, ViewBuffers
from pyvirtfs.memory.regions import Region, map_anonymous, map_descriptor
from pyvirtfs.memory.remote import RemoteBuffers, RemotePort, RemoteRegion, RemoteView

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from typing_extensions import Buffer

_MANY_ROWS = 32
"""From this number of ranges on an iovec array, made of arrays, is cheaper than memoryviews."""
_MANY_TUPLES = 64
"""The same if it has to be made of Python integers."""

_U64 = np.dtype(np.uint64)
_sum = np.add.reduce
_count_nonzero = np.count_nonzero  # half the price of any()


class GuestMemory:
    """Guest RAM: non-overlapping regions in a 64-bit guest-physical address space.

    A range of no bytes is valid at every address, as it touches nothing. Regions may be added and removed while
    buffers and views of them exist: those keep the memory that they point to alive.
    """

    __slots__ = (
        "_base",
        "_base64",
        "_bases",
        "_host64",
        "_hosts",
        "_nbytes",
        "_readonly",
        "_size64",
        "_sizes",
        "_starts",
        "_view",
        "_writable",
        "generation",
        "listeners",
        "regions",
        "remote_regions",
    )

    def __init__(self) -> None:
        self.generation: int = 0
        """Bumped whenever the regions change, and by `invalidate`; holders of cached views compare it."""
        self.listeners: list[Callable[[], None]] = []
        """Called after the regions have changed: whoever keeps views lets go of them, so that the memory is freed."""
        self.regions: tuple[Region, ...] = ()
        """Those that this process has mapped, sorted by address."""
        self.remote_regions: tuple[RemoteRegion, ...] = ()
        """Those that somebody else reads and writes for us, in no order."""
        self._update(())

    @classmethod
    def anonymous(cls, nbytes: int, address: int = 0) -> GuestMemory:
        """One region of zeroed memory of its own; pages are only taken from the host when touched.

        Raises:
            ConfigError: No such size or address.
        """
        return cls.from_array(map_anonymous(nbytes), address)

    @classmethod
    def from_array(cls, array: npt.NDArray[Any] | Buffer, address: int = 0) -> GuestMemory:
        """One region: the caller's RAM, which is not copied.

        Args:
            array: C-contiguous, writable, starting at a multiple of 8 in host memory: numpy array, bytearray, mmap, ...
            address: Guest-physical address of its first byte, a multiple of 8.

        Raises:
            ConfigError: The array cannot serve as RAM, or does not fit at that address.
        """
        memory = cls()
        memory.add_array(array, address)
        return memory

    @classmethod
    def from_fd(cls, fd: int, nbytes: int, *, address: int = 0, offset: int = 0, writable: bool = True) -> GuestMemory:
        """One region: part of a file, see `add_fd`."""
        memory = cls()
        memory.add_fd(fd, nbytes, address=address, offset=offset, writable=writable)
        return memory

    # --- regions ---

    def add_array(self, array: npt.NDArray[Any] | Buffer, address: int) -> Region:
        """Add a region: the caller's RAM, which is not copied; see `from_array`.

        Raises:
            ConfigError: The array cannot serve as RAM, or overlaps another region.
        """
        return self._add(Region(array, address))

    def add_fd(self, fd: int, nbytes: int, *, address: int, offset: int = 0, writable: bool = True) -> Region:
        """Add a region: part of a file, shared with whoever else maps it; see `pyvirtfs.memory.regions.map_descriptor`.

        Args:
            fd: Descriptor of a memfd or a regular file; it may be closed afterwards.
            nbytes: Length in bytes.
            address: Guest-physical address, a multiple of 8.
            offset: Where in the file, in bytes, a multiple of the page size.
            writable: False: the guest's devices may only read there.

        Raises:
            ConfigError: The range does not lie within the file, or overlaps another region.
            OSError: mmap(2) failed.
        """
        return self._add(Region(map_descriptor(fd, nbytes, offset, writable=writable), address, readonly=not writable))

    def add_remote(self, port: RemotePort, nbytes: int, *, address: int, writable: bool = True) -> RemoteRegion:
        """Add a region that this process cannot map; slow.

        Args:
            port: Reads and writes it for us.
            nbytes: Length in bytes.
            address: Guest-physical address.
            writable: False: the guest's devices may only read there.

        Raises:
            ConfigError: It does not fit at that address, or overlaps another region.
        """
        region = RemoteRegion(port, nbytes, address, readonly=not writable)
        self._check_free(region)
        self.remote_regions = (*self.remote_regions, region)
        self._update(self.regions)
        return region

    def remove(self, address: int, nbytes: int) -> None:
        """Remove the regions of a range; buffers and views of mapped ones stay usable.

        Raises:
            ConfigError: There are none in the range, or it would cut one in two.
        """
        end = address + nbytes
        every: tuple[Region | RemoteRegion, ...] = (*self.regions, *self.remote_regions)
        gone = [region for region in every if region.address < end and address < region.end]
        if not gone:
            raise ConfigError("memory", f"no region at guest address {address:#x}")
        for region in gone:
            if region.address < address or region.end > end:
                raise ConfigError(
                    "memory", f"{nbytes} bytes at guest address {address:#x} are only a part of {region!r}"
                )
        self.remote_regions = tuple(region for region in self.remote_regions if region not in gone)
        self._update(tuple(region for region in self.regions if region not in gone))

    def invalidate(self) -> None:
        """Whoever uses RAM for a device is to stop: cached views are made anew, a `RemotePort`'s accesses fail.

        For the reset of a device, which is not to touch RAM any more once the guest has been told that it is over.
        """
        self.generation += 1

    def _check_free(self, region: Region | RemoteRegion) -> None:
        every: tuple[Region | RemoteRegion, ...] = (*self.regions, *self.remote_regions)
        for other in every:
            if region.address < other.end and other.address < region.end:
                raise ConfigError("memory", f"{region!r} overlaps {other!r}")

    def _add(self, region: Region) -> Region:
        self._check_free(region)
        self._update(tuple(sorted((*self.regions, region), key=lambda each: each.address)))
        return region

    def _update(self, regions: tuple[Region, ...]) -> None:
        self.regions = regions
        self.generation += 1
        self._starts = [region.address for region in regions]
        self._bases = np.array(self._starts, _U64)
        self._sizes = np.array([region.nbytes for region in regions], _U64)
        self._hosts = np.array([region.host for region in regions], _U64)
        self._readonly = any(region.readonly for region in regions)
        self._select(max(regions, key=lambda region: region.nbytes) if regions else None)
        for listener in self.listeners:
            listener()

    def _select(self, region: Region | None) -> None:
        """Make a region the one that the fast paths look at."""
        self._base = region.address if region else 0
        self._nbytes = region.nbytes if region else -1
        self._writable = -1 if region and region.readonly else self._nbytes
        self._view = region.view if region else memoryview(b"")
        # Arrays without dimensions: numpy takes them faster than scalars.
        self._base64 = np.array(self._base, _U64)
        self._size64 = np.array(max(self._nbytes, 0), _U64)
        self._host64 = np.array(region.host if region else 0, _U64)

    def _find(self, address: int) -> Region | None:
        """The region that holds an address."""
        index = bisect_right(self._starts, address) - 1
        if index < 0:
            return None
        region = self.regions[index]
        return region if address < region.end else None

    # --- access ---

    def view(self, address: int, nbytes: int) -> memoryview:
        """The bytes of a range within one region, format ``B``, no copy.

        Raises:
            MemoryAccessError: A byte of it is not RAM, or it crosses into an adjoining region.
        """
        start = address - self._base
        if start >= 0 and 0 <= nbytes <= self._nbytes - start:
            return self._view[start : start + nbytes]
        region = self._find(address)
        if region is None or not 0 <= nbytes <= region.end - address:
            if nbytes == 0:
                return memoryview(bytearray())
            raise MemoryAccessError(address, nbytes)
        start = address - region.address
        return region.view[start : start + nbytes]

    def ring_view(self, address: int, nbytes: int) -> memoryview | RemoteView:
        """As `view`, also for a range within one remote region.

        Raises:
            MemoryAccessError: A byte of it is not RAM, or it crosses into an adjoining region.
        """
        for region in self.remote_regions:
            if region.address <= address and 0 < nbytes <= region.end - address:
                return RemoteView(region, address - region.address, nbytes)
        return self.view(address, nbytes)

    def array(self, address: int, nbytes: int) -> npt.NDArray[np.uint8]:
        """The bytes of a range within one region: uint8, shape (nbytes,), no copy.

        Raises:
            MemoryAccessError: A byte of it is not RAM, or it crosses into an adjoining region.
        """
        return np.frombuffer(self.view(address, nbytes), np.uint8)

    def _pieces(
        self, address: int, nbytes: int, *, writable: bool = False
    ) -> list[tuple[Region | RemoteRegion, int, int]]:
        """A range that may cross adjoining regions as (region, offset within it, length) each; `nbytes` is not 0."""
        pieces: list[tuple[Region | RemoteRegion, int, int]] = []
        position, left = address, nbytes
        while left:
            region: Region | RemoteRegion | None = self._find(position)
            if region is None and self.remote_regions:
                region = next((each for each in self.remote_regions if each.address <= position < each.end), None)
            if region is None or left < 0 or (writable and region.readonly):
                raise MemoryAccessError(address, nbytes)
            start = position - region.address
            here = min(left, region.nbytes - start)
            pieces.append((region, start, here))
            position += here
            left -= here
        return pieces

    def read(self, address: int, nbytes: int) -> bytes:
        """Copy a range out; it may cross adjoining regions.

        Raises:
            MemoryAccessError: A byte of it is not RAM.
        """
        start = address - self._base
        if start >= 0 and 0 <= nbytes <= self._nbytes - start:
            return self._view[start : start + nbytes].tobytes()
        if nbytes == 0:
            return b""
        return b"".join(region.load(start, here) for region, start, here in self._pieces(address, nbytes))

    def write(self, address: int, data: Buffer) -> None:
        """Copy bytes in; the range may cross adjoining regions. Nothing is written unless all of it can be.

        Args:
            address: Guest-physical address.
            data: One-dimensional, of single bytes.

        Raises:
            MemoryAccessError: A byte of the range is not RAM, or read-only.
        """
        source = memoryview(data)
        if not source.nbytes:
            return
        done = 0
        for region, start, here in self._pieces(address, source.nbytes, writable=True):
            region.store(start, source[done : done + here])
            done += here

    # --- scatter and gather ---

    def buffers(self, ranges: Sequence[tuple[int, int]], *, writable: bool = False) -> Buffers:
        """Make a payload of ranges of guest RAM, in order, without copying; a range may cross adjoining regions.

        Args:
            ranges: (guest-physical address, length in bytes) of each; those of no bytes are left out.
            writable: The device will write there.

        Raises:
            MemoryAccessError: A byte of a range is not RAM, or is read-only though it must be writable.
        """
        if len(ranges) == 1:
            ((address, nbytes),) = ranges
            start = address - self._base
            if start >= 0 and 0 < nbytes <= (self._writable if writable else self._nbytes) - start:
                return ViewBuffers([self._view[start : start + nbytes]])
        elif len(ranges) >= _MANY_TUPLES:
            try:
                table = np.array(ranges, _U64)
            except OverflowError:
                return self._buffers_one_by_one(*zip(*ranges, strict=True), writable=writable)
            return self.buffers_from_arrays(table[:, 0], table[:, 1], writable=writable)
        views: list[memoryview] = []
        base, ram = self._base, self._view
        size = self._writable if writable else self._nbytes
        for address, nbytes in ranges:
            start = address - base
            if start >= 0 and 0 < nbytes <= size - start:
                views.append(ram[start : start + nbytes])
            elif nbytes:
                for region, start, here in self._pieces(address, nbytes, writable=writable):
                    if isinstance(region, RemoteRegion):
                        return self._remote_buffers(ranges, writable=writable)
                    views.append(region.view[start : start + here])
        return ViewBuffers(views)

    def _remote_buffers(self, ranges: Sequence[tuple[int, int]], *, writable: bool) -> RemoteBuffers:
        """As `buffers`, of ranges that do not all lie in RAM of our own."""
        return RemoteBuffers(
            [
                piece
                for address, nbytes in ranges
                if nbytes
                for piece in self._pieces(address, nbytes, writable=writable)
            ]
        )

    def buffers_from_arrays(
        self, addresses: npt.NDArray[Any], lengths: npt.NDArray[Any], *, writable: bool = False
    ) -> Buffers:
        """As `buffers`, for many ranges: checks and host pointers by numpy, about 7 µs for 125 of them.

        Args:
            addresses: Guest-physical addresses, uint64, shape (n,); any strides.
            lengths: Lengths in bytes, uint64 (or a narrower unsigned type), shape (n,); any strides.
            writable: The device will write there.

        Raises:
            MemoryAccessError: A byte of a range is not RAM, or is read-only though it must be writable.
        """
        count = len(addresses)
        if count < _MANY_ROWS or not self.regions or (writable and self._readonly):
            return self._buffers_one_by_one(addresses.tolist(), lengths.tolist(), writable=writable)
        starts = np.asarray(addresses, _U64)
        sizes = np.asarray(lengths, _U64)
        # What is outside, also an address that wraps below the base, is clipped to the end, where there is no room.
        offsets = np.minimum(starts - self._base64, self._size64)
        iovec = np.empty((count, 2), _U64)
        iovec[:, 0] = offsets + self._host64
        iovec[:, 1] = sizes
        if _count_nonzero(sizes > self._size64 - offsets):
            # Not all in the largest region: look each one up.
            region_of = self._bases.searchsorted(starts, "right") - 1  # -1, the last, for what is below the first
            ends = self._sizes[region_of]
            offsets = np.minimum(starts - self._bases[region_of], ends)
            if _count_nonzero(sizes > ends - offsets):
                return self._buffers_one_by_one(addresses.tolist(), lengths.tolist(), writable=writable)
            iovec[:, 0] = offsets + self._hosts[region_of]
        return IovecBuffers(iovec, int(_sum(sizes)), self.regions)

    def buffers_from_pairs(self, pairs: npt.NDArray[np.uint64], *, writable: bool = False) -> Buffers:
        """As `buffers_from_arrays`, with half as many steps where all ranges lie in the largest region.

        Args:
            pairs: Guest-physical address and length of each range: uint64, shape (n, 2), C-contiguous, writable. It
                belongs to the buffers from now on.
            writable: The device will write there.

        Raises:
            MemoryAccessError: A byte of a range is not RAM, or is read-only though it must be writable.
        """
        starts, sizes = pairs[:, 0], pairs[:, 1]
        if len(pairs) >= _MANY_ROWS and self.regions and not (writable and self._readonly):
            offsets = np.minimum(starts - self._base64, self._size64)  # as in `buffers_from_arrays`
            if not _count_nonzero(sizes > self._size64 - offsets):
                np.add(offsets, self._host64, out=starts)
                return IovecBuffers(pairs, int(_sum(sizes)), self.regions)
        return self.buffers_from_arrays(starts, sizes, writable=writable)

    def _buffers_one_by_one(self, addresses: Sequence[int], lengths: Sequence[int], *, writable: bool) -> Buffers:
        """What `buffers_from_arrays` cannot do at once: few ranges, some that cross regions, some that are not RAM."""
        if len(addresses) != len(lengths):
            raise ValueError("as many lengths as addresses are needed")
        if len(addresses) < _MANY_ROWS:
            return self.buffers(list(zip(addresses, lengths, strict=True)), writable=writable)
        rows: list[tuple[int, int]] = []
        for address, nbytes in zip(addresses, lengths, strict=True):
            if nbytes:
                for region, start, here in self._pieces(address, nbytes, writable=writable):
                    if isinstance(region, RemoteRegion):
                        return self._remote_buffers(list(zip(addresses, lengths, strict=True)), writable=writable)
                    rows.append((region.host + start, here))
        return IovecBuffers(np.array(rows, _U64).reshape(-1, 2), sum(lengths), self.regions)
