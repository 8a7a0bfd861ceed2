"""A simulated guest with one mount, as the demo and the shell use it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyvirtfs.cli.devices import DeviceSettings
    from pyvirtfs.guest import Channel, FoundFunction, Machine, Mount
    from pyvirtfs.virtio9p import Virtio9pPci

MOUNT_POINT = "/mnt"
MSIZE = 512000
"""Bytes of the largest message: 125 pages, all that a scatter list of Linux takes."""

THROTTLED_TIMEOUT = 7 * 86400.0
"""Seconds that a request may take where it is slow because somebody wants it to be."""


class Guest:
    """A machine with one device, brought up step by step: `find`, `bring_up`, `mount`.

    Made by `guest_with`.
    """

    def __init__(self, machine: Machine, device: Virtio9pPci) -> None:
        self.machine = machine
        self.device = device
        self.trace: Callable[[str], None] | None = None
        """Called with a line for each 9P message."""

    def set_trace(self, trace: Callable[[str], None] | None) -> None:
        """Trace 9P messages from now on, or no more."""
        self.trace = trace

    def find(self) -> FoundFunction:
        """Probe the bus and find the device on it. DeviceError if it is not there."""
        from pyvirtfs.virtio9p import DEVICE_ID

        return self.machine.find(DEVICE_ID)

    def bring_up(self, check: Callable[[], None] | None = None) -> Channel:
        """Negotiate with the device and set its queue up.

        Args:
            check: Called before each message, other than those that tidy up; may raise KeyboardInterrupt.

        Raises:
            DeviceError: It does not come up.
        """
        from pyvirtfs.cli.interruption import InterruptibleChannel
        from pyvirtfs.guest import VirtioPciDriver, progress_of
        from pyvirtfs.guest.channel import DEFAULT_TIMEOUT

        machine, function = self.machine, self.find()
        driver = VirtioPciDriver(function, machine.dma, machine.interrupts, machine.line_of(function))
        timeout = DEFAULT_TIMEOUT if self.device.driver.throttle is None else THROTTLED_TIMEOUT
        channel = InterruptibleChannel(driver, machine.interrupts, progress=progress_of(self.device), timeout=timeout)
        channel.check = check
        return channel

    def mount(self, channel: Channel, *, msize: int = MSIZE) -> Mount:
        """Mount the export as the guest's root user. OSError if the server does not let it."""
        from pyvirtfs.guest import mount

        return mount(channel, msize=msize, uid=0)

    def remount(self, channel: Channel, *, msize: int = MSIZE) -> Mount:
        """Reset the device, whatever state it and its driver are in, and mount anew; what was open is gone.

        Raises:
            DeviceError: The device does not come up again.
            OSError: The server does not let it.
        """
        self.device.run_pending()
        channel.start()
        return self.mount(channel, msize=msize)

    def mount_line(self, mounted: Mount, mount_point: str = MOUNT_POINT) -> str:
        """The mount as mount(8) of Linux shows it."""
        access = "ro" if self.device.driver.readonly else "rw"
        options = f"{access},relatime,access=client,msize={mounted.session.msize},trans=virtio"
        return f"{mounted.tag} on {mount_point} type 9p ({options})"


@contextlib.contextmanager
def guest_with(settings: DeviceSettings, trace: Callable[[str], None] | None = None) -> Iterator[Guest]:
    """A machine with the device that the command line describes; everything is closed behind the block.

    Inside of it, what the package warns of goes to the standard error, as with all commands.

    Raises:
        ConfigError: An option is wrong.
    """
    from pyvirtfs.cli.logs import logging_to_stderr
    from pyvirtfs.guest import Machine

    machine = Machine()

    def tell(line: str) -> None:
        if guest.trace is not None:
            guest.trace(line)

    with logging_to_stderr("text", "warning", 0), settings.open(machine.memory, trace=tell) as device:
        guest = Guest(machine, device)
        guest.trace = trace
        machine.plug(device, settings.slot, settings.function)
        yield guest
