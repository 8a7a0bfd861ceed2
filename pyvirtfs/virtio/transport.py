"""The virtio-pci transport, modern interface: a PCI function around a virtio device (virtio 1.3, 4.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pyvirtfs.pci import Bar, BarKind, Capability, InterruptSink, PciFunction, PciIdentity
from pyvirtfs.virtio.common import CommonRegisters
from pyvirtfs.virtio.layout import (
    CAP_ID_VENDOR,
    CFG_COMMON,
    CFG_DEVICE,
    CFG_ISR,
    CFG_NOTIFY,
    ISR_CONFIG,
    ISR_QUEUE,
    MODERN_DEVICE_ID_BASE,
    NO_VECTOR,
    VENDOR_ID,
    VirtioPciCap,
    VirtioPciNotifyCap,
)
from pyvirtfs.virtio.window import ConfigWindow

if TYPE_CHECKING:
    from pyvirtfs.virtio.device import VirtioDevice
    from pyvirtfs.virtio.queue import Virtqueue

MSIX_BAR: Final = 1
MODERN_BAR: Final = 4
BAR_NBYTES: Final = 0x4000

# Each structure has a page of its own in the BAR.
COMMON_OFFSET: Final = 0x0000
ISR_OFFSET: Final = 0x1000
DEVICE_OFFSET: Final = 0x2000
NOTIFY_OFFSET: Final = 0x3000
STRUCTURE_NBYTES: Final = 0x1000
NOTIFY_MULTIPLIER: Final = 4


class VirtioPci(PciFunction):
    """A virtio device as a non-transitional PCI function, laid out as QEMU's are.

    The structures are in BAR 4 (common 0x0000, ISR 0x1000, device 0x2000, notify 0x3000; multiplier 4), MSI-X in BAR 1.

    Args:
        device: The device. It belongs to this function from now on.
        interrupts: Where interrupts go.
        vectors: MSI-X vectors; 0 for none, then INTx is used.
        express: Show PCI Express and power management capabilities, as behind a PCI Express port.
        defer: Do nothing in `bar_write` but note the doorbell; the embedder calls `run_pending`.
        class_code: PCI class, 24 bits.
        subsystem_device: Subsystem device id.

    Raises:
        ConfigError: The number of vectors cannot be.
    """

    def __init__(
        self,
        device: VirtioDevice,
        *,
        interrupts: InterruptSink | None = None,
        vectors: int = 2,
        express: bool = False,
        defer: bool = False,
        class_code: int = 0x000200,
        subsystem_device: int = 0x1100,
    ) -> None:
        super().__init__(
            PciIdentity(
                vendor=VENDOR_ID,
                device=MODERN_DEVICE_ID_BASE + device.device_id,
                revision=1,
                class_code=class_code,
                subsystem_vendor=VENDOR_ID,
                subsystem_device=subsystem_device,
            ),
            interrupts=interrupts,
            express=express,
        )
        self.device = device
        self.isr = 0
        """The ISR status byte."""
        self.common = CommonRegisters(device, vectors)
        self.add_bar(Bar(MODERN_BAR, BarKind.MEMORY_64, BAR_NBYTES, _ModernBar(self), prefetchable=True))
        for cfg_type, offset in (
            (CFG_COMMON, COMMON_OFFSET),
            (CFG_ISR, ISR_OFFSET),
            (CFG_DEVICE, DEVICE_OFFSET),
            (CFG_NOTIFY, NOTIFY_OFFSET),
        ):
            self.add_capability(Capability(_capability_image(cfg_type, offset)))
        self.add_capability(ConfigWindow(self).capability)
        self.add_msix(vectors, MSIX_BAR)
        device.transport = self
        device.defer = defer

    # --- what the embedder calls ---

    def run_pending(self) -> int:
        """Do the work that waits: deferred doorbells, requests that were completed elsewhere.

        Returns:
            How many requests were completed.
        """
        return self.device.run_pending()

    def next_deadline(self) -> float | None:
        """When `run_pending` has to be called even if nothing happens, as time.monotonic(); None: never."""
        return self.device.next_deadline()

    def wakeup_fileno(self) -> int | None:
        """A descriptor that becomes readable when `run_pending` has something to do; None: nothing waits."""
        return self.device.wakeup_fileno()

    def bar_write(self, bar: int, offset: int, size: int, value: int) -> None:
        """As `PciFunction.bar_write`; the way of a doorbell is a short one."""
        if bar == MODERN_BAR and NOTIFY_OFFSET <= offset < BAR_NBYTES:
            self.device.kick((offset - NOTIFY_OFFSET) // NOTIFY_MULTIPLIER)
        else:
            super().bar_write(bar, offset, size, value)

    # --- what the device calls ---

    def queue_interrupt(self, queue: Virtqueue) -> None:
        """New used buffers: the queue's vector, or without MSI-X ISR bit 0 and the pin (4.1.5.3)."""
        msix = self.msix
        if msix is not None and msix.enabled:
            msix.raise_vector(queue.state.vector)  # NO_VECTOR is none of the table's
        else:
            self.isr |= ISR_QUEUE
            self.set_intx(True)

    def config_interrupt(self) -> None:
        """Configuration or status changed: ISR bit 1, then the config vector or the pin (4.1.5.4)."""
        self.isr |= ISR_CONFIG
        self.set_intx(True)  # shows only while MSI-X is disabled
        msix = self.msix
        vector = self.common.state.config_msix_vector
        if msix is not None and msix.enabled and vector != NO_VECTOR:
            msix.raise_vector(vector)

    def device_reset(self) -> None:
        """The device was reset: registers to their defaults, and no interrupt of before comes any more."""
        self.common.reset()
        self.isr = 0
        self.set_intx(False)
        if self.msix is not None:
            self.msix.pending[:] = bytes(len(self.msix.pending))

    def queue_reset(self, queue: Virtqueue) -> None:
        """Forget a pending interrupt of the queue, unless its vector, or ISR bit 0, may stand for another event too."""
        if not any(other.enabled for other in self.device.queues if other is not queue):
            self.isr &= ~ISR_QUEUE
            self.set_intx(bool(self.isr))
        vector = queue.state.vector
        others = {other.state.vector for other in self.device.queues if other is not queue}
        if self.msix is not None and vector not in {NO_VECTOR, self.common.state.config_msix_vector, *others}:
            self.msix.pending[vector >> 3] &= ~(1 << (vector & 7))

    # --- what PCI tells ---

    def command_changed(self) -> None:
        """Without bus mastering the device may not use guest memory."""
        self.device.set_dma(self.bus_master_enabled)

    def function_reset(self) -> None:
        """Reset the device with its function."""
        self.device.set_dma(False)
        self.device.reset()

    def read_isr(self) -> int:
        """The ISR status byte; reading clears it and lowers the pin (4.1.4.5)."""
        isr, self.isr = self.isr, 0
        self.set_intx(False)
        return isr


class _ModernBar:
    """BAR 4: which structure an access goes to. An access does not reach from one into the next."""

    __slots__ = ("_function",)

    def __init__(self, function: VirtioPci) -> None:
        self._function = function

    def read(self, offset: int, size: int) -> int:
        structure = offset & ~(STRUCTURE_NBYTES - 1)
        if structure == COMMON_OFFSET:
            return self._function.common.read(offset, size)
        if structure == DEVICE_OFFSET:
            return self._function.device.read_config(offset - DEVICE_OFFSET, size)
        if offset == ISR_OFFSET:
            return self._function.read_isr()
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        structure = offset & ~(STRUCTURE_NBYTES - 1)
        if structure == COMMON_OFFSET:
            self._function.common.write(offset, size, value)
        elif structure == DEVICE_OFFSET:
            self._function.device.write_config(offset - DEVICE_OFFSET, size, value)
        elif structure == NOTIFY_OFFSET:
            self._function.device.kick((offset - NOTIFY_OFFSET) // NOTIFY_MULTIPLIER)


def _capability_image(cfg_type: int, offset: int) -> bytes:
    declaration = VirtioPciNotifyCap if cfg_type == CFG_NOTIFY else VirtioPciCap
    return bytes(
        declaration.build(
            {
                "cap_vndr": CAP_ID_VENDOR,
                "cap_next": 0,
                "cap_len": declaration.sizeof(),
                "cfg_type": cfg_type,
                "bar": MODERN_BAR,
                "id": 0,
                "padding": [0, 0],
                "offset": offset,
                "length": STRUCTURE_NBYTES,
                "notify_off_multiplier": NOTIFY_MULTIPLIER,
            }
        )
    )
