"""The VirtFS device: a virtio device whose requests are 9P messages, on the virtio-pci transport.

Virtio gives the device type a number and no more (virtio 1.3, 5); its configuration space and its feature bit are those
of Linux's `virtio_9p.h`.
"""

from __future__ import annotations

from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from construct import Bytes, Int16ul, Struct, this

from pyvirtfs.errors import ConfigError, GuestError
from pyvirtfs.fsdev import registry
from pyvirtfs.fsdev.driver import ExportDriver
from pyvirtfs.memory import GuestMemory
from pyvirtfs.p9.limits import Limits
from pyvirtfs.p9.server import Server
from pyvirtfs.virtio import VirtioDevice, VirtioPci

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvirtfs.pci import InterruptSink

DEVICE_ID: Final = 9
MOUNT_TAG: Final = 0
"""Feature bit: the configuration space holds the mount tag."""
FEATURE_NAMES: Final = MappingProxyType({MOUNT_TAG: "9P_MOUNT_TAG"})
MAX_TAG_NBYTES: Final = 31
REQUEST_QUEUE: Final = 0
QUEUE_SIZE: Final = 128

Config = Struct("tag_len" / Int16ul, "tag" / Bytes(this.tag_len))
"""The device configuration space (struct virtio_9p_config); the tag has no NUL."""


def check_type(option: str, value: object, *types: type) -> None:
    """Refuse an argument of another type. Raises ConfigError."""
    if not isinstance(value, types):
        names = " or ".join(kind.__name__ for kind in types)
        raise ConfigError(option, f"{value!r} is {type(value).__name__}, it must be {names}")


def check_mount_tag(tag: str | bytes) -> bytes:
    """The bytes of a mount tag.

    Raises:
        ConfigError: It is empty, too long, or holds a NUL.
    """
    check_type("mount_tag", tag, str, bytes)
    data = tag.encode("utf-8", "surrogateescape") if isinstance(tag, str) else tag
    if not 1 <= len(data) <= MAX_TAG_NBYTES:
        raise ConfigError("mount_tag", f"{tag!r} is {len(data)} bytes long, it may be 1 to {MAX_TAG_NBYTES}")
    if b"\0" in data:
        raise ConfigError("mount_tag", f"{tag!r} contains a NUL byte")
    return data


class Virtio9p(VirtioDevice):
    """The device without its bus: one queue of requests, a mount tag, and a 9P server behind them.

    Args:
        server: Answers the requests.
        mount_tag: What the guest mounts; 1 to 31 bytes.
        memory: Guest RAM.
        queue_size: Entries of the queue.
        indirect_desc: Offer indirect descriptors.
        event_idx: Offer the event index.
        queue_reset: Offer the reset of the queue.

    Raises:
        ConfigError: The tag or the queue size cannot be.
    """

    device_id = DEVICE_ID
    feature_names = FEATURE_NAMES

    def __init__(
        self,
        server: Server,
        mount_tag: str | bytes,
        memory: GuestMemory,
        *,
        queue_size: int = QUEUE_SIZE,
        indirect_desc: bool = True,
        event_idx: bool = True,
        queue_reset: bool = True,
    ) -> None:
        tag = check_mount_tag(mount_tag)
        super().__init__(
            memory,
            queue_sizes=[queue_size],
            device_features=[MOUNT_TAG],
            config=Config.build({"tag_len": len(tag), "tag": tag}),
            indirect_desc=indirect_desc,
            event_idx=event_idx,
            queue_reset=queue_reset,
        )
        self.mount_tag = tag
        self.server = server

    def process(self, index: int) -> bool:
        """Hand the waiting requests to the server, which pushes each chain with its answer, now or later."""
        queue = self.queues[index]
        pop, push, submit = queue.pop, queue.push, self.server.submit
        chain = None
        try:
            for _ in range(queue.state.size):
                chain = pop()
                if chain is None:
                    return False
                submit(chain.readable, chain.writable, push, chain)
        except Exception:
            raise
        except BaseException:  # Ctrl-C outside of a driver's call: this request may never be answered
            if chain is not None and queue.in_flight.get(chain.head) is chain:
                self.needs_reset(GuestError("a request was interrupted"))
            raise
        return True

    def hush(self) -> None:
        """As `VirtioDevice.hush`."""
        self.server.hush()

    def collect(self) -> None:
        """Push the answers of requests that a driver completed in another thread."""
        self.server.run_pending()

    def cancel(self) -> None:
        """End the session: no fid, lock or request survives."""
        self.server.reset()

    def cancel_queue(self, index: int) -> None:
        """Drop the requests; the session with its fids stays, since only the queue is reset (virtio 1.3, 2.6.1)."""
        del index
        self.server.abandon()

    def forget_buffers(self) -> None:
        """As `VirtioDevice.forget_buffers`."""
        self.server.forget_buffers()

    @property
    def busy(self) -> bool:
        """Whether a driver still works on requests that were cancelled."""
        return self.server.busy != 0

    def deadline(self) -> float | None:
        """As `VirtioDevice.deadline`."""
        return self.server.next_deadline()

    def wakeup_fileno(self) -> int | None:
        """As `VirtioDevice.wakeup_fileno`."""
        return self.server.wakeup_fileno()


class Virtio9pPci(VirtioPci):
    """The virtio-9p-pci function: what an emulator or a VMM plugs in. Also a context manager, which closes it.

    Args:
        export: What the guest gets: QEMU's ``-fsdev`` words (``local,path=/srv,security_model=none``), or a driver.
        mount_tag: What the guest calls it in ``mount -t 9p -o trans=virtio TAG /mnt``; 1 to 31 bytes.
        memory: Guest RAM.
        interrupts: Where interrupts go; None: whatever the function is plugged into sets itself there.
        defer: A doorbell is only noted; `run_pending` does the work.
        vectors: MSI-X vectors, 0 for none.
        express: Show PCI Express and power management capabilities, as behind a PCI Express port.
        indirect_desc: Offer indirect descriptors.
        event_idx: Offer the event index.
        queue_reset: Offer the reset of the queue.
        queue_size: Entries of the queue, a power of two.
        limits: What one guest may use up.
        trace: Called with one line for each message.

    Raises:
        ConfigError: An option is wrong; says which, what it got and what it may be.
    """

    def __init__(
        self,
        export: str | ExportDriver[Any, Any],
        *,
        mount_tag: str | bytes,
        memory: GuestMemory,
        interrupts: InterruptSink | None = None,
        defer: bool = False,
        vectors: int = 2,
        express: bool = False,
        indirect_desc: bool = True,
        event_idx: bool = True,
        queue_reset: bool = True,
        queue_size: int = QUEUE_SIZE,
        limits: Limits | None = None,
        trace: Callable[[str], None] | None = None,
    ) -> None:
        check_mount_tag(mount_tag)
        check_type("memory", memory, GuestMemory)
        check_type("export", export, str, ExportDriver)
        self._own_driver: ExportDriver[Any, Any] | None = None
        if isinstance(export, str):
            export = self._own_driver = registry.create(export)
        try:
            self.driver = export
            self.server = Server(export, limits=limits or Limits(), trace=trace)
            device = Virtio9p(
                self.server,
                mount_tag,
                memory,
                queue_size=queue_size,
                indirect_desc=indirect_desc,
                event_idx=event_idx,
                queue_reset=queue_reset,
            )
            super().__init__(device, interrupts=interrupts, vectors=vectors, express=express, defer=defer)
        except BaseException:
            if self._own_driver is not None:
                self._own_driver.close()
            raise
        self.mount_tag = device.mount_tag

    def close(self) -> None:
        """End the session and release everything; the driver too, if it was made here. Idempotent.

        The function stays readable for the guest, but never comes up again.
        """
        self.device.close()
        self.server.close()
        if self._own_driver is not None:
            self._own_driver.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
