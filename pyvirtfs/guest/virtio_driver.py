"""A driver for virtio devices behind the modern PCI transport (virtio 1.3, 3.1 and 4.1), in the manner of Linux's.

It knows nothing of what the device is for: it resets it, negotiates features, sets queues and interrupts up, and moves
buffers. See `pyvirtfs.guest.channel` for what a 9P driver does with it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from pyvirtfs.errors import DeviceError
from pyvirtfs.guest.dma import DmaAllocator, Range
from pyvirtfs.guest.interrupts import Interrupts, Line
from pyvirtfs.guest.probe import FoundFunction
from pyvirtfs.guest.registers import Registers, fields_of
from pyvirtfs.guest.split_ring import SplitRing, Used
from pyvirtfs.pci import layout as pci
from pyvirtfs.virtio import features, layout

T = TypeVar("T")

RESET_TIMEOUT = 1.0
"""Seconds within which a device must have finished a reset."""

TRANSPORT_FEATURES = features.mask(features.VERSION_1, features.INDIRECT_DESC, features.EVENT_IDX, features.RING_RESET)
"""What the driver can make use of whatever the device is for."""


class Counters:
    """What happened between a driver and its device."""

    __slots__ = ("buffers", "config_interrupts", "kicks", "kicks_suppressed", "queue_interrupts", "spurious_interrupts")

    def __init__(self) -> None:
        self.buffers = 0
        """Chains that were made available."""
        self.kicks = 0
        """Doorbell writes."""
        self.kicks_suppressed = 0
        """Times that the device did not want to be notified."""
        self.queue_interrupts = 0
        """Interrupts that said: look at the used ring."""
        self.config_interrupts = 0
        """Interrupts that said: the configuration, or the status, has changed."""
        self.spurious_interrupts = 0
        """Queue interrupts that found nothing new in the used ring."""

    def __repr__(self) -> str:
        return f"Counters({', '.join(f'{name}={getattr(self, name)}' for name in self.__slots__)})"


class Vector:
    """An MSI-X vector and the events that share it."""

    __slots__ = ("data", "handlers")

    def __init__(self) -> None:
        self.data = 0
        self.handlers: list[Callable[[], None]] = []

    def interrupt(self) -> None:
        """A message arrived."""
        for handler in list(self.handlers):
            handler()


class Queue(Generic[T]):
    """One virtqueue: its ring, its doorbell, its interrupt.

    Made by `VirtioPciDriver.set_up_queue`.
    """

    def __init__(
        self, driver: VirtioPciDriver, index: int, ring: SplitRing[T], doorbell: tuple[int, int], vector: int
    ) -> None:
        self.driver = driver
        self.index = index
        self.ring = ring
        self.vector = vector
        """Its MSI-X vector; 0xFFFF if it interrupts through INTx."""
        self.on_used: Callable[[Queue[T]], None] | None = None
        """Called from the interrupt when there is something to harvest."""
        self._bar, self._doorbell = doorbell

    def add(self, readable: Sequence[Range], writable: Sequence[Range], token: T) -> int:
        """Make a request available, without a kick. Raises what `SplitRing.add` raises."""
        head = self.ring.add(readable, writable, token)
        self.driver.counters.buffers += 1
        return head

    def kick(self) -> bool:
        """Notify the device of what was added, unless it does not want to know; returns whether it was notified."""
        if self.ring.should_kick():
            self.notify()
            return True
        self.driver.counters.kicks_suppressed += 1
        return False

    def notify(self) -> None:
        """Ring the doorbell, whatever the device wants (virtio 1.3, 4.1.5.2)."""
        self.driver.counters.kicks += 1
        self.driver.function.bar_write(self._bar, self._doorbell, 2, self.index)

    def harvest(self) -> Used[T] | None:
        """Take one finished request from the used ring, or None."""
        return self.ring.harvest()

    def interrupt(self) -> None:
        """The device interrupted for this queue."""
        counters = self.driver.counters
        counters.queue_interrupts += 1
        if not self.ring.has_used():
            counters.spurious_interrupts += 1
        elif self.on_used is not None:
            self.on_used(self)


class VirtioPciDriver:
    """Drives one virtio-pci function.

    Args:
        function: Found and enabled by the probe.
        dma: Where rings are allocated.
        interrupts: The interrupt controller.
        line: The line of the function's INTx pin.
        wanted: Feature bits that the driver would like (each is used only if the device offers it).
        use_msix: Whether to use MSI-X if the function has it, rather than INTx.
    """

    def __init__(
        self,
        function: FoundFunction,
        dma: DmaAllocator,
        interrupts: Interrupts,
        line: Line,
        *,
        wanted: int = TRANSPORT_FEATURES,
        use_msix: bool = True,
    ) -> None:
        self.function = function
        self.dma = dma
        self.interrupts = interrupts
        self.line = line
        self.wanted = wanted
        self.use_msix = use_msix and function.msix is not None
        self.features = 0
        """The negotiated feature bits."""
        self.counters = Counters()
        self.queues: dict[int, Queue[object]] = {}
        self.on_config_change: Callable[[], None] | None = None
        common = function.structure(layout.CFG_COMMON)
        self.common = function.bar_registers(common.bar, layout.CommonConfig, common.offset)
        """The common configuration structure, by field name."""
        self._notify = function.structure(layout.CFG_NOTIFY)
        self._isr = function.structure(layout.CFG_ISR)
        self._vectors: dict[int, Vector] = {}
        if function.virtio_id is None:
            raise DeviceError(f"{function.slot} is not a virtio function")

    # --- life: virtio 1.3, 3.1.1 ---

    @property
    def status(self) -> int:
        """The device status register."""
        return self.common.read("device_status")

    def add_status(self, bits: int) -> None:
        """Set bits of the device status; bits never go away but by a reset."""
        self.common.write("device_status", self.status | bits)

    @property
    def needs_reset(self) -> bool:
        """Whether the device says that it has met an error that it cannot recover from (virtio 1.3, 2.1.2)."""
        return bool(self.status & layout.STATUS_NEEDS_RESET)

    def reset(self) -> None:
        """Reset the device and wait until it has; forgets queues and interrupts. DeviceError if it takes too long."""
        self.common.write("device_status", 0)
        _wait_for_reset(lambda: self.status == 0, "the device")
        self._release_interrupts()
        for queue in self.queues.values():
            queue.ring.release()
        self.queues.clear()
        self.features = 0

    def negotiate(self, device_features: int = 0) -> int:
        """Reset, announce the driver and agree on features; returns the negotiated bits.

        Args:
            device_features: Bits of the device's own type that the driver wants on top.

        Raises:
            DeviceError: If the device lacks VERSION_1 or does not accept a subset of what it offers.
        """
        self.reset()
        self.add_status(layout.STATUS_ACKNOWLEDGE)
        self.add_status(layout.STATUS_DRIVER)
        offered = self.offered_features()
        accepted = offered & (self.wanted | device_features)
        if not accepted >> features.VERSION_1 & 1:
            self.fail()
            raise DeviceError("the device does not offer VERSION_1: it is a legacy device")
        for select in (0, 1):
            self.common.write("driver_feature_select", select)
            self.common.write("driver_feature", accepted >> (32 * select) & 0xFFFFFFFF)
        self.add_status(layout.STATUS_FEATURES_OK)
        if not self.status & layout.STATUS_FEATURES_OK:
            self.fail()
            raise DeviceError(f"the device refuses the features {accepted:#x} of the {offered:#x} that it offers")
        self.features = accepted
        return accepted

    def offered_features(self) -> int:
        """The device's feature bits."""
        offered = 0
        for select in (0, 1):
            self.common.write("device_feature_select", select)
            offered |= self.common.read("device_feature") << (32 * select)
        return offered

    def has_feature(self, bit: int) -> bool:
        """Whether a feature was negotiated."""
        return bool(self.features >> bit & 1)

    def driver_ok(self) -> None:
        """Set-up is done: the device may begin."""
        self.add_status(layout.STATUS_DRIVER_OK)

    def fail(self) -> None:
        """Tell the device that the driver has given up."""
        self.add_status(layout.STATUS_FAILED)

    # --- queues: virtio 1.3, 4.1.5.1 ---

    def set_up_queue(self, index: int, *, size: int | None = None) -> Queue[T]:
        """Allocate a ring, tell the device where it is, connect its interrupt and enable it.

        Args:
            index: Which queue.
            size: Descriptors; None for as many as the device offers.

        Raises:
            DeviceError: If there is no such queue, its doorbell is out of place, or the device refuses its vector.
        """
        common = self.common
        common.write("queue_select", index)
        offered = common.read("queue_size")
        if offered == 0 or common.read("queue_enable"):
            raise DeviceError(f"queue {index} does not exist or is in use")
        notify_offset = self._notify.offset + common.read("queue_notify_off") * self._notify.multiplier
        if notify_offset + 2 > self._notify.offset + self._notify.nbytes:
            raise DeviceError(f"the doorbell of queue {index} lies outside of the notification structure")
        if size is not None:
            common.write("queue_size", size)
        ring: SplitRing[T] = SplitRing(
            self.dma,
            size or offered,
            event_idx=self.has_feature(features.EVENT_IDX),
            indirect=self.has_feature(features.INDIRECT_DESC),
        )
        common.write("queue_desc", ring.descriptor_address)
        common.write("queue_driver", ring.available_address)
        common.write("queue_device", ring.used_address)
        queue = Queue(self, index, ring, (self._notify.bar, notify_offset), layout.NO_VECTOR)
        self.queues[index] = queue  # type: ignore[assignment]  # of some token type; from here on a reset frees the ring
        if self.use_msix:
            queue.vector = self._connect(1 + index, queue.interrupt)
            common.write("queue_msix_vector", queue.vector)
            if common.read("queue_msix_vector") != queue.vector:
                raise DeviceError(f"the device refuses vector {queue.vector} for queue {index}")
        common.write("queue_enable", 1)
        return queue

    def reset_queue(self, index: int) -> list[object]:
        """Reset one queue (virtio 1.3, 2.6.1); returns the tokens of the requests that were in flight.

        The queue is gone afterwards; set it up again to use it. DeviceError if RING_RESET was not negotiated.
        """
        if not self.has_feature(features.RING_RESET):
            raise DeviceError("RING_RESET was not negotiated")
        self.common.write("queue_select", index)
        self.common.write("queue_reset", 1)
        _wait_for_reset(
            lambda: not self.common.read("queue_reset") and not self.common.read("queue_enable"), f"queue {index}"
        )
        queue = self.queues.pop(index)
        if queue.vector in self._vectors:
            self._vectors[queue.vector].handlers.remove(queue.interrupt)
        tokens = queue.ring.detach_all()
        queue.ring.release()
        return tokens

    # --- device configuration: virtio 1.3, 2.5 ---

    def read_config(self, offset: int, nbytes: int) -> bytes:
        """Read the device's configuration space byte by byte, again if it changed meanwhile."""
        structure = self.function.structure(layout.CFG_DEVICE)
        while True:
            generation = self.common.read("config_generation")
            data = bytes(self.function.bar_read(structure.bar, structure.offset + offset + i, 1) for i in range(nbytes))
            if self.common.read("config_generation") == generation:
                return data

    # --- interrupts: virtio 1.3, 4.1.5.1.2 and 4.1.5.3 ---

    def enable_interrupts(self) -> None:
        """Connect the configuration interrupt, by MSI-X or by INTx. Comes before the queues are set up.

        Raises:
            DeviceError: If the device refuses the vector.
        """
        msix = self.function.msix
        if not self.use_msix or msix is None:
            self.line.handlers.append(self._intx)
            return
        control = msix.capability + fields_of(pci.MSIX)["control"].offset
        self.function.config_write(control, 2, pci.MSIX_CONTROL_ENABLE)
        vector = self._connect(0, self._config_interrupt)
        self.common.write("config_msix_vector", vector)
        if self.common.read("config_msix_vector") != vector:
            raise DeviceError(f"the device refuses vector {vector} for configuration changes")

    def mask_vector(self, vector: int, *, masked: bool) -> None:
        """Mask or unmask an MSI-X vector in its table entry."""
        self._msix_entry(vector).write("vector_control", int(masked))

    def _connect(self, number: int, handler: Callable[[], None]) -> int:
        """Connect a handler to a vector of the MSI-X table, shared if there are too few; returns which."""
        msix = self.function.msix
        if msix is None:
            raise DeviceError("the function has no MSI-X")
        number = min(number, msix.vectors - 1)
        vector = self._vectors.get(number)
        if vector is None:
            vector = self._vectors[number] = Vector()
            address, vector.data = self.interrupts.allocate(vector.interrupt)
            entry = self._msix_entry(number)
            entry.write("address_low", address & 0xFFFFFFFF)
            entry.write("address_high", address >> 32)
            entry.write("data", vector.data)
            entry.write("vector_control", 0)
        vector.handlers.append(handler)
        return number

    def _msix_entry(self, vector: int) -> Registers:
        msix = self.function.msix
        if msix is None:
            raise DeviceError("the function has no MSI-X")
        offset = msix.table_offset + vector * pci.MSIX_ENTRY_NBYTES
        return self.function.bar_registers(msix.table_bar, pci.MSIX_ENTRY, offset)

    def _release_interrupts(self) -> None:
        if self._intx in self.line.handlers:
            self.line.handlers.remove(self._intx)
        for vector in self._vectors.values():
            self.interrupts.release(vector.data)
        self._vectors.clear()

    def _intx(self) -> None:
        """The shared line is high: reading the ISR tells what for, and lowers it (virtio 1.3, 4.1.4.5)."""
        isr = self.function.bar_read(self._isr.bar, self._isr.offset, 1)
        if isr & layout.ISR_CONFIG:
            self._config_interrupt()
        if isr & layout.ISR_QUEUE:
            for queue in list(self.queues.values()):
                queue.interrupt()

    def _config_interrupt(self) -> None:
        self.counters.config_interrupts += 1
        if self.on_config_change is not None:
            self.on_config_change()


def _wait_for_reset(is_done: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + RESET_TIMEOUT
    while not is_done():
        if time.monotonic() > deadline:
            raise DeviceError(f"{what} does not finish its reset")
        time.sleep(0.001)
