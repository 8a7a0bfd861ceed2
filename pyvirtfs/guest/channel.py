"""The 9P transport over a virtqueue: messages become descriptor chains, in the shapes that Linux builds.

One request is one chain: the T message for the device to read, room for the R message for the device to write. What
differs between kernels is how the two are cut up and how much room there is; `Shapes` says which.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from pyvirtfs.errors import DeviceError
from pyvirtfs.guest.dma import PAGE, DmaBuffer, Range, split_at_pages
from pyvirtfs.guest.interrupts import Interrupts
from pyvirtfs.guest.virtio_driver import Queue, VirtioPciDriver
from pyvirtfs.virtio9p import Config

VIRTIO_ID_9P = 9
FEATURE_MOUNT_TAG = 1 << 0
REQUESTS = 0
"""The index of the only queue."""

DEFAULT_TIMEOUT = 10.0
"""Seconds that a request may take before the device is taken for dead."""


@dataclass(frozen=True, slots=True)
class Shapes:
    """How a kernel lays messages out in descriptors.

    The defaults are those of Linux since 6.1.
    """

    zero_copy_above: int | None = 1024
    """Payloads of more bytes are not copied into the message but lent to the device where they are; None: never."""
    by_page: bool = True
    """No descriptor crosses a page border. Otherwise a buffer that is contiguous is one descriptor."""
    scattered: bool = True
    """Payload memory is made of pages that do not adjoin, as a process's memory is."""
    first_page_offset: int = 0
    """Where in its first page payload memory begins."""
    msize_replies: bool = False
    """Every reply buffer has msize bytes, as before 6.1."""


LINUX = Shapes()
OLD_LINUX = Shapes(msize_replies=True)
FEW_DESCRIPTORS = Shapes(by_page=False, scattered=False)
UNALIGNED = Shapes(first_page_offset=1000)
COPYING = Shapes(zero_copy_above=None)


class Request:
    """A request that was given to the device.

    Made by `Channel.submit`.
    """

    __slots__ = ("message", "nbytes", "reply_buffer", "request_buffer", "room")

    def __init__(self, message: bytes, request_buffer: DmaBuffer, reply_buffer: DmaBuffer, room: int) -> None:
        self.message = message
        """The T message, without a payload that was lent."""
        self.nbytes: int | None = None
        """What the device says that it wrote; None until it gives the request back."""
        self.room = room
        """Bytes of the reply buffer that the device may write."""
        self.request_buffer = request_buffer
        self.reply_buffer = reply_buffer

    @property
    def done(self) -> bool:
        """Whether the device has given it back."""
        return self.nbytes is not None

    def reply(self) -> bytes:
        """A copy of the R message as far as it lies in the reply buffer. RuntimeError if there is none yet."""
        if self.nbytes is None:
            raise RuntimeError("the request is not done")
        return self.reply_buffer.read(0, min(self.nbytes, self.room))


@runtime_checkable
class PassiveDevice(Protocol):
    """What is needed of a device that only works when it is called."""

    def run_pending(self) -> int:
        """Do the work that is there; returns the number of requests completed."""

    def next_deadline(self) -> float | None:
        """The time (of `time.monotonic`) at which there is work again, if that is known."""

    def wakeup_fileno(self) -> int | None:
        """A descriptor that becomes readable when there is work."""


Progress = Callable[[float], bool]
"""Waits up to so many seconds for the device to get on; False if it has nothing that it could get on with."""


def progress_of(device: PassiveDevice) -> Progress:
    """How to wait for a passive device in this process: let it work, or sleep until it has work."""

    def progress(timeout: float) -> bool:
        if device.run_pending():
            return True
        deadline, fileno = device.next_deadline(), device.wakeup_fileno()
        if deadline is None and fileno is None:
            return False
        if deadline is not None:
            timeout = min(timeout, max(deadline - time.monotonic(), 0.0))
        select.select([] if fileno is None else [fileno], [], [], timeout)
        device.run_pending()
        return True

    return progress


class Channel:
    """A virtio 9P device that was brought up, ready for messages.

    Args:
        driver: Drives the function.
        interrupts: The interrupt controller.
        progress: How to wait for the device; None if it always answers while its doorbell is written.
        shapes: How messages are laid out.
        queue_size: Descriptors of the ring; None for what the device offers.
        polling: Look at the used ring instead of waiting for interrupts, which are suppressed.
        timeout: Seconds that a request may take.

    Raises:
        DeviceError: If the device cannot be brought up.
    """

    def __init__(
        self,
        driver: VirtioPciDriver,
        interrupts: Interrupts,
        *,
        progress: Progress | None = None,
        shapes: Shapes = LINUX,
        queue_size: int | None = None,
        polling: bool = False,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> None:
        if driver.function.virtio_id != VIRTIO_ID_9P:
            raise DeviceError(f"{driver.function.slot} is not a virtio 9P device")
        self.driver = driver
        self.interrupts = interrupts
        self.progress = progress
        self.shapes = shapes
        self.timeout = timeout
        self.polling = polling
        self.queue_size = queue_size
        self.broken: str | None = None
        """Why the device cannot be used until it is reset."""
        self.in_use = False
        """Whether it is mounted: one mount at a time, as on Linux."""
        self.epoch = 0
        """Counts resets and sessions: what belongs to an earlier one is gone."""
        self.tag = b""
        """The mount tag."""
        self._pool: dict[int, list[DmaBuffer]] = {}
        self._sent: set[Request] = set()  # those whose buffers come from the pool, until the device gives them back
        self.start()

    def start(self) -> None:
        """Reset the device and bring it up. Requests in flight are forgotten. DeviceError if it does not come up."""
        driver = self.driver
        self.broken = None
        self.in_use = False
        self.epoch += 1
        driver.negotiate(FEATURE_MOUNT_TAG)
        for request in self._sent:  # the device was reset, and does not touch them any more
            self.retire(request)
        self._sent.clear()
        if not driver.features & FEATURE_MOUNT_TAG:
            driver.fail()
            raise DeviceError("the device has no mount tag")
        driver.on_config_change = self._config_changed
        driver.enable_interrupts()
        queue: Queue[Request] = driver.set_up_queue(REQUESTS, size=self.queue_size)
        queue.on_used = self._harvest
        self.queue = queue
        if self.polling:
            queue.ring.disable_interrupts()
        self.tag = self.read_tag()
        driver.driver_ok()

    def stop(self) -> None:
        """Reset the device and leave it so."""
        self.driver.reset()
        self.epoch += 1
        self.broken = "the channel was stopped"

    def read_tag(self) -> bytes:
        """The mount tag from the device's configuration: its length, then its bytes."""
        length = Config.subcons[0]
        nbytes = length.parse(self.driver.read_config(0, length.sizeof()))
        return bytes(Config.parse(self.driver.read_config(0, length.sizeof() + nbytes)).tag)

    # --- requests ---

    def submit(
        self,
        message: bytes,
        reply_nbytes: int,
        *,
        lent_out: Sequence[Range] = (),
        lent_in: Sequence[Range] = (),
        kick: bool = True,
    ) -> Request:
        """Send a message; returns at once.

        Args:
            message: The T message; without its payload, if that is lent.
            reply_nbytes: Room for the R message; without its payload, if that goes into memory that is lent.
            lent_out: (address, nbytes) pairs of a Twrite's payload.
            lent_in: Pairs where an Rread's or Rreaddir's payload goes.
            kick: Whether to notify the device; `Queue.kick` may follow for several requests at once.

        Raises:
            DeviceError: If the device is broken, or the ring stays full for too long.
        """
        request = Request(message, self._take(len(message)), self._take(reply_nbytes), reply_nbytes)
        request.request_buffer.write(0, message)
        readable = [*self._cut(request.request_buffer.slice(0, len(message))), *self._cut(lent_out)]
        writable = [*self._cut(request.reply_buffer.slice(0, reply_nbytes)), *self._cut(lent_in)]
        self._sent.add(request)
        try:
            self.submit_ranges(readable, writable, request, kick=kick)
        except BaseException:
            if request in self._sent:  # never sent
                self._sent.remove(request)
                self.retire(request)
            raise
        return request

    def submit_ranges(
        self, readable: Sequence[Range], writable: Sequence[Range], request: Request, *, kick: bool = True
    ) -> None:
        """Send a request whose chain is given descriptor by descriptor. Raises what `submit` raises."""
        deadline = time.monotonic() + self.timeout
        while True:
            self._check_alive()
            try:
                self.queue.add(readable, writable, request)
                break
            except BlockingIOError:
                self.queue.kick()
                if not self._get_on(deadline):
                    raise DeviceError("the ring is full, and the device gives nothing back") from None
        if kick:
            self.queue.kick()

    def wait(self, request: Request, timeout: float | None = None) -> Request:
        """Wait until a request is done, and return it.

        Raises:
            DeviceError: If the device is broken, has nothing left to do, or takes longer than `timeout` seconds.
        """
        if request.nbytes is not None:
            return request
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        while not request.done:
            self._check_alive()
            if not self._get_on(deadline) and not request.done:
                self._check_alive()
                missing = " (the answer is there, but no interrupt came)" if self.queue.ring.has_used() else ""
                raise DeviceError(f"the device does not answer{missing}")
        return request

    def retire(self, request: Request) -> None:
        """Give the buffers of a request that is done back for others to use."""
        for buffer in (request.request_buffer, request.reply_buffer):
            self._pool.setdefault(buffer.nbytes, []).append(buffer)

    def deliver(self) -> None:
        """Take notice of what the device has finished."""
        self.interrupts.deliver()
        if self.polling:
            self._harvest(self.queue)

    def _get_on(self, deadline: float) -> bool:
        """Take what is there; else let the device work. False if there is nothing to wait for, or no time."""
        before = self.queue.ring.free
        self.deliver()
        if self.queue.ring.free != before:
            return True
        remaining = deadline - time.monotonic()
        if remaining <= 0 or self.progress is None or not self.progress(remaining):
            return False
        self.deliver()
        return True

    def _harvest(self, queue: Queue[Request]) -> None:
        while (used := queue.harvest()) is not None:
            used.token.nbytes = used.nbytes
            self._sent.discard(used.token)

    def _config_changed(self) -> None:
        if self.driver.needs_reset:
            self._harvest(self.queue)  # what was answered before it broke is valid
            self.broken = "the device needs a reset"

    def _check_alive(self) -> None:
        if self.broken is not None:
            raise DeviceError(self.broken)

    def _take(self, nbytes: int) -> DmaBuffer:
        rounded = -(-max(nbytes, 1) // PAGE) * PAGE
        pool = self._pool.get(rounded)
        return pool.pop() if pool else self.driver.dma.allocate(rounded)

    def _cut(self, ranges: Sequence[Range]) -> Sequence[Range]:
        return split_at_pages(ranges) if self.shapes.by_page else ranges
