"""A guest and a device, connected: what nearly every test of a driver or of the device needs."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator
from typing import Any

from pyvirtfs.errors import DeviceError
from pyvirtfs.fsdev.driver import ExportDriver
from pyvirtfs.guest import LINUX, Channel, DirectMachine, Machine, Mount, Session, Shapes, mount
from pyvirtfs.guest.channel import DEFAULT_TIMEOUT, VIRTIO_ID_9P
from pyvirtfs.guest.virtio_driver import TRANSPORT_FEATURES
from pyvirtfs.memory import GuestMemory
from pyvirtfs.p9.client import DEFAULT_MSIZE
from pyvirtfs.virtio9p import Virtio9pPci

SLOT = 4
MOUNT_TAG = "test_mount"
MESSAGES = 20


class Pair:
    """A guest that has mounted an export, and the device in between.

    Made by `pair`.
    """

    def __init__(
        self,
        guest: Machine | DirectMachine,
        device: Virtio9pPci,
        channel: Channel,
        mount: Mount,
        messages: deque[str],
    ) -> None:
        self.guest = guest
        """The machine: RAM, interrupts, and a bus if there is one."""
        self.device = device
        self.channel = channel
        """The virtio driver with its queue of requests."""
        self.mount = mount
        self.messages = messages
        """The last requests and replies as the server saw them, one line each; for the report of a failing test."""

    @property
    def memory(self) -> GuestMemory:
        """The guest's RAM."""
        return self.guest.memory

    @property
    def session(self) -> Session:
        """The 9P session of the mount."""
        return self.mount.session

    def remount(self, *, msize: int = DEFAULT_MSIZE) -> Mount:
        """Reset the device, bring it up and mount again, as after an error; replaces and returns `mount`."""
        self.channel.start()
        self.mount = mount(self.channel, msize=msize)
        return self.mount


@contextlib.contextmanager
def pair(
    export: str | ExportDriver[Any, Any],
    *,
    bus: bool = True,
    memory: GuestMemory | None = None,
    msize: int = DEFAULT_MSIZE,
    shapes: Shapes = LINUX,
    wanted: int = TRANSPORT_FEATURES,
    use_msix: bool = True,
    guest_queue_size: int | None = None,
    polling: bool = False,
    timeout: float = DEFAULT_TIMEOUT,
    messages: int = MESSAGES,
    **device_options: Any,
) -> Iterator[Pair]:
    """A device for `export`, a guest that has mounted it, and both closed at the end.

    Args:
        export: An fsdev option string, or a driver (which stays open).
        bus: Whether the device sits on a PCI bus; otherwise the guest calls its entry points.
        memory: Guest RAM; 64 MiB of its own if None.
        msize: The largest message that the guest asks for.
        shapes: How the guest lays messages out in descriptors.
        wanted: Feature bits that the guest accepts.
        use_msix: Whether the guest uses MSI-X.
        guest_queue_size: Descriptors that the guest wants in the ring; None for what the device offers.
        polling: Whether the guest looks at the used ring instead of waiting for interrupts.
        timeout: Seconds that the guest waits for an answer.
        messages: How many lines `Pair.messages` keeps; 0: none, which saves 60 µs for each request. A `trace` among
            the options of the device takes their place.
        device_options: Options of `Virtio9pPci`.

    Raises:
        ConfigError: If an option is wrong.
        DeviceError: If the device does not come up.
    """
    memory = GuestMemory.anonymous(64 << 20) if memory is None else memory
    guest = Machine(memory) if bus else DirectMachine(memory)
    if isinstance(guest, DirectMachine):
        device_options.setdefault("interrupts", guest.pin)
    device_options.setdefault("mount_tag", MOUNT_TAG)
    seen: deque[str] = deque(maxlen=messages)
    if messages:
        device_options.setdefault("trace", seen.append)
    with Virtio9pPci(export, memory=memory, **device_options) as device:
        if isinstance(guest, Machine):
            guest.plug(device, SLOT)
            function = guest.find(VIRTIO_ID_9P)
        else:
            function = guest.attach(device)
        channel = guest.open_channel(
            function,
            wanted=wanted,
            use_msix=use_msix,
            shapes=shapes,
            queue_size=guest_queue_size,
            polling=polling,
            timeout=timeout,
        )
        both = Pair(guest, device, channel, mount(channel, msize=msize), seen)
        yield both
        with contextlib.suppress(DeviceError):  # a test may have left the device broken
            if channel.broken is None:
                both.mount.umount()
        channel.stop()
