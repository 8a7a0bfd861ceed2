"""A tiny machine: RAM, a PCI host bridge with devices, an interrupt controller, and nobody to run it but the test.

The bridge is the one that emulators use too. It is the board, not the guest: drivers see only ports and addresses.
"""

from __future__ import annotations

import abc
import errno
import os

from pyvirtfs.errors import DeviceError
from pyvirtfs.guest.access import BridgedBus, Bus, ConfigMechanism1, DirectBus, Ecam, FunctionAccess, Slot
from pyvirtfs.guest.channel import (
    DEFAULT_TIMEOUT,
    LINUX,
    VIRTIO_ID_9P,
    Channel,
    PassiveDevice,
    Progress,
    Shapes,
    progress_of,
)
from pyvirtfs.guest.dma import DmaAllocator
from pyvirtfs.guest.interrupts import Interrupts, Line
from pyvirtfs.guest.mount import Mount, mount
from pyvirtfs.guest.probe import FoundFunction, Windows, probe
from pyvirtfs.guest.virtio_driver import TRANSPORT_FEATURES, VirtioPciDriver
from pyvirtfs.memory import GuestMemory
from pyvirtfs.p9.client import DEFAULT_MSIZE
from pyvirtfs.pci import HostBridge, PciFunction

ECAM_ADDRESS = 0xB0000000
MEMORY_WINDOW = range(0xE0000000, 0xFEC00000)
MEMORY_WINDOW_64BIT = range(0x80_0000_0000, 0x100_0000_0000)
IO_WINDOW = range(0xC000, 0x10000)


class Platform(abc.ABC):
    """What a driver needs of the machine that it runs on.

    Args:
        memory: The RAM, which the devices must have been given too.
    """

    def __init__(self, memory: GuestMemory) -> None:
        self.memory = memory
        self.interrupts = Interrupts()
        self.dma = DmaAllocator(memory)

    @abc.abstractmethod
    def line_of(self, function: FoundFunction) -> Line:
        """The interrupt line that a function's pin is connected to."""

    @abc.abstractmethod
    def progress_of(self, function: FoundFunction) -> Progress | None:
        """How to wait for a function's device; None if it only ever works while it is being accessed."""

    def drive(
        self, function: FoundFunction, *, wanted: int = TRANSPORT_FEATURES, use_msix: bool = True
    ) -> VirtioPciDriver:
        """A virtio driver for a function; see `VirtioPciDriver` for the options."""
        return VirtioPciDriver(
            function, self.dma, self.interrupts, self.line_of(function), wanted=wanted, use_msix=use_msix
        )

    def open_channel(
        self,
        function: FoundFunction,
        *,
        wanted: int = TRANSPORT_FEATURES,
        use_msix: bool = True,
        shapes: Shapes = LINUX,
        queue_size: int | None = None,
        polling: bool = False,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> Channel:
        """Bring a 9P device up; see `VirtioPciDriver` and `Channel` for the options. DeviceError if it fails."""
        return Channel(
            self.drive(function, wanted=wanted, use_msix=use_msix),
            self.interrupts,
            progress=self.progress_of(function),
            shapes=shapes,
            queue_size=queue_size,
            polling=polling,
            timeout=timeout,
        )


class Machine(Platform):
    """RAM, a host bridge and an interrupt controller.

    Args:
        memory: The RAM, which the devices must have been given too. 64 MiB of its own if None.
        ecam: Whether the probe uses the memory-mapped configuration space instead of configuration mechanism 1.
    """

    def __init__(self, memory: GuestMemory | None = None, *, ecam: bool = False) -> None:
        super().__init__(GuestMemory.anonymous(64 << 20) if memory is None else memory)
        self.bridge = HostBridge(
            ecam_address=ECAM_ADDRESS, on_intx=self.interrupts.line, on_msix=self.interrupts.message
        )
        config = Ecam(self.bridge) if ecam else ConfigMechanism1(self.bridge)
        self.bus: Bus = BridgedBus(config, self.bridge)
        self.functions: list[FoundFunction] = []
        """What the last `probe` found."""
        self._channels: dict[Slot, Channel] = {}

    def plug(self, function: PciFunction, slot: int, function_number: int = 0) -> None:
        """Put a device into a slot of the bus. ConfigError if it is taken."""
        self.bridge.plug(function, slot, function_number)

    def probe(self) -> list[FoundFunction]:
        """Find and enable what is plugged in. Places all BARs anew."""
        self.functions = probe(self.bus, Windows(MEMORY_WINDOW, MEMORY_WINDOW_64BIT, IO_WINDOW))
        for function in self.functions:
            if function.interrupt_pin:  # what firmware does: tell the driver where the pin is connected
                function.header.write("interrupt_line", _swizzle(function))
        return self.functions

    def find(self, virtio_id: int, *, nth: int = 0) -> FoundFunction:
        """The nth function of a virtio device type, in slot order; probes if need be. DeviceError if there is none."""
        found = [function for function in self.functions or self.probe() if function.virtio_id == virtio_id]
        if nth >= len(found):
            raise DeviceError(f"no virtio device {virtio_id} number {nth} on the bus")
        return found[nth]

    def mount(self, tag: str, *, msize: int = DEFAULT_MSIZE, uid: int | None = None, gid: int = 0) -> Mount:
        """Mount the export whose device has this tag, as ``mount -t 9p -o trans=virtio TAG`` does.

        Raises:
            OSError: ENOENT if no device has the tag, or what the server answers.
            DeviceError: If a device cannot be brought up.
        """
        for function in self.functions or self.probe():
            if function.virtio_id != VIRTIO_ID_9P:
                continue
            channel = self._channels.get(function.slot)
            if channel is None:
                channel = self._channels[function.slot] = self.open_channel(function)
            if os.fsdecode(channel.tag) == tag:
                return mount(channel, msize=msize, uid=uid, gid=gid)
        raise FileNotFoundError(errno.ENOENT, "no device has this mount tag", tag)

    def line_of(self, function: FoundFunction) -> Line:
        """The interrupt line that a function's pin is connected to, as firmware left it in the function's registers."""
        return self.interrupts.lines[function.header.read("interrupt_line")]

    def progress_of(self, function: FoundFunction) -> Progress | None:
        """How to wait for a function that is plugged in here."""
        device = self.bridge.functions[function.slot.device, function.slot.function]
        return progress_of(device) if isinstance(device, PassiveDevice) else None


class DirectMachine(Platform):
    """RAM, an interrupt controller and one function without a bus.

    The function must deliver its interrupts to `pin`.

    Args:
        memory: The RAM, which the device must have been given too.
    """

    def __init__(self, memory: GuestMemory) -> None:
        super().__init__(memory)
        self.pin = self.interrupts.pin()
        self._progress: Progress | None = None

    def attach(self, function: FunctionAccess, progress: Progress | None = None) -> FoundFunction:
        """Probe the function.

        Args:
            function: Its entry points.
            progress: How to wait for it; None to find out: a device of this process is a `PassiveDevice`.

        Raises:
            DeviceError: If nothing answers.
        """
        if progress is None and isinstance(function, PassiveDevice):
            progress = progress_of(function)
        self._progress = progress
        found = probe(DirectBus(function))
        if not found:
            raise DeviceError("no function answers")
        return found[0]

    def line_of(self, function: FoundFunction) -> Line:  # noqa: ARG002 (there is one device, and it has one line)
        """The interrupt line of the function."""
        return self.pin.line

    def progress_of(self, function: FoundFunction) -> Progress | None:  # noqa: ARG002 (as above)
        """How to wait for the function."""
        return self._progress


def _swizzle(function: FoundFunction) -> int:
    """Which of the four lines of the bus a pin is connected to (PCI 3.0, 2.2.6)."""
    return (function.slot.device + function.interrupt_pin - 1) % 4
