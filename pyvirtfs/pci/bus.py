"""A PCI bus for emulators that have none: slots, routing of accesses to BARs, and the four interrupt lines."""

from __future__ import annotations

from bisect import bisect_right
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Final, NamedTuple

from pyvirtfs.errors import ConfigError
from pyvirtfs.pci import layout
from pyvirtfs.pci.bars import BarKind
from pyvirtfs.pci.config import ALL_ONES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pyvirtfs.pci.function import PciFunction
    from pyvirtfs.pci.interrupts import InterruptSink

SLOTS: Final = 32
FUNCTIONS: Final = 8
INTX_LINES: Final = 4

ALL_MEMORY: Final = range(1 << 64)
ALL_PORTS: Final = range(1 << 16)


class BarRange(NamedTuple):
    """Where a BAR answers.

    Args:
        rank: Slot, function number and BAR index; where ranges overlap, the lowest rank answers.
        base: First address.
        end: The address behind the last.
        function: Whose BAR it is.
        bar: Its index there.
    """

    rank: tuple[int, int, int]
    base: int
    end: int
    function: PciFunction
    bar: int


class RangeMap:
    """Which BAR an address belongs to: the ranges cut into disjoint pieces, worked out again after a change."""

    __slots__ = ("_dirty", "_hits", "_ranges", "_starts")

    def __init__(self) -> None:
        self._ranges: dict[tuple[int, int, int], BarRange] = {}
        self._starts: list[int] = []
        self._hits: list[BarRange | None] = []
        self._dirty = False

    def add(self, found: BarRange) -> None:
        """Put in a range; one of the same rank is replaced."""
        self._ranges[found.rank] = found
        self._dirty = True

    def remove(self, rank: tuple[int, int, int]) -> None:
        """Forget the range of that rank, if there is one."""
        if self._ranges.pop(rank, None) is not None:
            self._dirty = True

    def find(self, address: int) -> BarRange | None:
        """The range that answers at `address`."""
        if self._dirty:
            self._rebuild()
        at = bisect_right(self._starts, address) - 1
        return self._hits[at] if at >= 0 else None

    def _rebuild(self) -> None:
        """Sweep over all boundaries: behind each, the lowest rank that is still open answers."""
        opening = sorted(self._ranges.values(), key=lambda item: item.base, reverse=True)
        boundaries = sorted({edge for item in opening for edge in (item.base, item.end)})
        self._starts, self._hits = boundaries, []
        open_ranks: list[tuple[int, int, int]] = []
        for edge in boundaries:
            while opening and opening[-1].base <= edge:
                heappush(open_ranks, opening.pop().rank)
            while open_ranks and self._ranges[open_ranks[0]].end <= edge:
                heappop(open_ranks)
            self._hits.append(self._ranges[open_ranks[0]] if open_ranks else None)
        self._dirty = False


class _SlotInterrupts:
    """The sink of a plugged function: messages to its own sink or else to the bus, the pin to both."""

    __slots__ = ("_bus", "_key", "_line", "own")

    def __init__(self, bus: PciBus, key: tuple[int, int], line: int, own: InterruptSink | None) -> None:
        self._bus = bus
        self._key = key
        self._line = line
        self.own = own

    def msix(self, vector: int, address: int, data: int) -> None:
        if self.own is not None:
            self.own.msix(vector, address, data)
        elif self._bus.on_msix is not None:
            self._bus.on_msix(address, data)

    def intx(self, level: bool) -> None:
        self._bus.drive_line(self._line, self._key, level=level)
        if self.own is not None:
            self.own.intx(level)


class PciBus:
    """One bus with 32 slots of 8 functions.

    Args:
        number: Its bus number, as configuration addresses name it.
        memory_windows: Ranges of guest-physical addresses that reach the bus. A BAR that does not lie wholly inside one
            of them is not reachable.
        io_windows: Likewise for I/O ports.
        on_bar_moved: Called as ``on_bar_moved(function, bar, old_address, new_address)`` when the guest moves, enables
            or disables a BAR; None is "not reachable".
        on_intx: Called as ``on_intx(line, level)`` when one of the lines 0 to 3 changes.
        on_msix: Called as ``on_msix(address, data)`` for messages of functions that have no sink of their own.
    """

    def __init__(
        self,
        *,
        number: int = 0,
        memory_windows: Iterable[range] = (ALL_MEMORY,),
        io_windows: Iterable[range] = (ALL_PORTS,),
        on_bar_moved: Callable[[PciFunction, int, int | None, int | None], None] | None = None,
        on_intx: Callable[[int, bool], None] | None = None,
        on_msix: Callable[[int, int], None] | None = None,
    ) -> None:
        self.number = number
        self.memory_windows = tuple(memory_windows)
        self.io_windows = tuple(io_windows)
        self.on_bar_moved = on_bar_moved
        self.on_intx = on_intx
        self.on_msix = on_msix
        self.functions: dict[tuple[int, int], PciFunction] = {}
        self._keys: dict[int, tuple[int, int]] = {}  # by id() of the function
        self._memory = RangeMap()
        self._io = RangeMap()
        self._asserting: list[set[tuple[int, int]]] = [set() for _ in range(INTX_LINES)]

    # -- Plugging

    def plug(self, function: PciFunction, slot: int, function_number: int = 0) -> None:
        """Put `function` into a slot. ConfigError if there is none, it is taken, or the function is plugged already.

        A slot with other functions than 0 has the multifunction bit set in all of them (PCI 3.0, 6.2.1).
        """
        key = (slot, function_number)
        if not (0 <= slot < SLOTS and 0 <= function_number < FUNCTIONS):
            raise ConfigError("addr", f"{slot:x}.{function_number:x} is not between 0.0 and 1f.7")
        if key in self.functions:
            raise ConfigError("addr", f"{slot:02x}.{function_number:x} is taken")
        if id(function) in self._keys:
            raise ConfigError("addr", "the function is plugged already")
        self.functions[key] = function
        self._keys[id(function)] = key
        self._mark_multifunction(slot)
        line = (slot + function.interrupt_pin - 1) % INTX_LINES
        function.interrupts = _SlotInterrupts(self, key, line, function.interrupts)
        if function.intx_asserted:
            self.drive_line(line, key, level=True)
        function.bar_listeners.append(self._bar_moved)
        for index in function.bars:
            self._bar_moved(function, index, None, function.bar_address(index))

    def unplug(self, slot: int, function_number: int = 0) -> PciFunction:
        """Take a function out and return it. ConfigError if there is none."""
        key = (slot, function_number)
        function = self.functions.get(key)
        if function is None:
            raise ConfigError("addr", f"{slot:02x}.{function_number:x} is empty")
        for index in function.bars:
            self._bar_moved(function, index, function.bar_address(index), None)
        function.bar_listeners.remove(self._bar_moved)
        for line in range(INTX_LINES):
            self.drive_line(line, key, level=False)
        if isinstance(function.interrupts, _SlotInterrupts):
            function.interrupts = function.interrupts.own
        del self.functions[key], self._keys[id(function)]
        self._mark_multifunction(slot)
        return function

    def reset(self) -> None:
        """Reset every function, as the machine's reset does."""
        for function in self.functions.values():
            function.reset()

    # -- Configuration space

    def config_read(self, slot: int, function_number: int, offset: int, size: int) -> int:
        """Read a function's configuration space; nobody there: all ones."""
        function = self.functions.get((slot, function_number))
        return ALL_ONES.get(size, 0) if function is None else function.config_read(offset, size)

    def config_write(self, slot: int, function_number: int, offset: int, size: int, value: int) -> None:
        """Write a function's configuration space; nobody there: ignored."""
        function = self.functions.get((slot, function_number))
        if function is not None:
            function.config_write(offset, size, value)

    # -- Memory and I/O

    def mmio_read(self, address: int, size: int) -> int:
        """Read `size` bytes of guest-physical `address` from the memory BAR there; none: all ones."""
        hit = self._memory.find(address)
        return ALL_ONES.get(size, 0) if hit is None else hit.function.bar_read(hit.bar, address - hit.base, size)

    def mmio_write(self, address: int, size: int, value: int) -> None:
        """Write `size` bytes at guest-physical `address` to the memory BAR there; none: ignored."""
        hit = self._memory.find(address)
        if hit is not None:
            hit.function.bar_write(hit.bar, address - hit.base, size, value)

    def pio_read(self, port: int, size: int) -> int:
        """Read `size` bytes from the I/O BAR at `port`; none: all ones."""
        hit = self._io.find(port)
        return ALL_ONES.get(size, 0) if hit is None else hit.function.bar_read(hit.bar, port - hit.base, size)

    def pio_write(self, port: int, size: int, value: int) -> None:
        """Write `size` bytes to the I/O BAR at `port`; none: ignored."""
        hit = self._io.find(port)
        if hit is not None:
            hit.function.bar_write(hit.bar, port - hit.base, size, value)

    # -- Interrupt lines

    def line_level(self, line: int) -> bool:
        """Whether any function asserts line 0 to 3."""
        return bool(self._asserting[line])

    def drive_line(self, line: int, key: tuple[int, int], *, level: bool) -> None:
        """A function, named by (slot, function), asserts or releases its part of a shared line."""
        asserting = self._asserting[line]
        before = bool(asserting)
        if level:
            asserting.add(key)
        else:
            asserting.discard(key)
        if bool(asserting) != before and self.on_intx is not None:
            self.on_intx(line, level)

    # -- Inside

    def _mark_multifunction(self, slot: int) -> None:
        present = [self.functions[slot, number] for number in range(FUNCTIONS) if (slot, number) in self.functions]
        several = any((slot, number) in self.functions for number in range(1, FUNCTIONS))
        for function in present:
            for target in (function.config.data, function.config.initial):
                kept = target[layout.HEADER_TYPE] & ~layout.HEADER_MULTIFUNCTION
                target[layout.HEADER_TYPE] = kept | (layout.HEADER_MULTIFUNCTION if several else 0)

    def _bar_moved(self, function: PciFunction, index: int, old: int | None, new: int | None) -> None:
        bar = function.bars[index]
        ports = bar.kind is BarKind.IO
        windows = self.io_windows if ports else self.memory_windows
        rank = (*self._keys[id(function)], index)
        space = self._io if ports else self._memory
        if not _inside(windows, old, bar.nbytes):
            old = None
        if new is not None and _inside(windows, new, bar.nbytes):
            space.add(BarRange(rank, new, new + bar.nbytes, function, index))
        else:
            new = None
            space.remove(rank)
        if old != new and self.on_bar_moved is not None:
            self.on_bar_moved(function, index, old, new)


def _inside(windows: tuple[range, ...], base: int | None, nbytes: int) -> bool:
    return base is not None and any(base >= window.start and base + nbytes <= window.stop for window in windows)
