"""A virtio device without its transport: features, status, configuration, queues, and the loop that does its work.

The transport (`pyvirtfs.virtio.transport`) turns register accesses into the calls made here, and interrupts into what
its bus has. Nothing here raises for what a guest does: a `GuestError` from anywhere inside ends in `needs_reset`
(virtio 1.3, 2.1.2), and so does any other exception, after it was logged.
"""

from __future__ import annotations

import abc
import logging
from typing import TYPE_CHECKING, ClassVar, Final, Protocol

from pyvirtfs.errors import ConfigError, GuestError
from pyvirtfs.virtio import features
from pyvirtfs.virtio.layout import (
    MAX_SPLIT_QUEUE_SIZE,
    STATUS_ACKNOWLEDGE,
    STATUS_DRIVER,
    STATUS_DRIVER_OK,
    STATUS_FAILED,
    STATUS_FEATURES_OK,
    STATUS_NEEDS_RESET,
)
from pyvirtfs.virtio.split import SplitQueue

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from pyvirtfs.memory import GuestMemory
    from pyvirtfs.virtio.queue import Virtqueue

log = logging.getLogger(__name__)

_WORKING: Final = STATUS_DRIVER_OK | STATUS_NEEDS_RESET
_DRIVER_BITS: Final = (
    STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_DRIVER_OK | STATUS_FEATURES_OK | STATUS_FAILED
)  # fmt: skip

_LOUD_ERRORS: Final = 10
"""Faults of the guest that are logged as warnings: it could fill the log."""


class Transport(Protocol):
    """What a device needs of the bus that it sits on."""

    def queue_interrupt(self, queue: Virtqueue) -> None:
        """Tell the driver that `queue` has new used buffers."""

    def config_interrupt(self) -> None:
        """Tell the driver that configuration or status have changed."""

    def device_reset(self) -> None:
        """The device was reset: forget registers and interrupts that belong to it."""

    def queue_reset(self, queue: Virtqueue) -> None:
        """`queue` is about to be reset: forget its interrupts."""


class VirtioDevice(abc.ABC):
    """One virtio device; a device type derives from it and implements `process`.

    Everything runs in the thread that calls, one call at a time. Calls from within (an interrupt sink or a driver that
    rings the doorbell again) are noted and served by the loop that is running already.

    Args:
        memory: Guest RAM.
        queue_sizes: Entries of each queue, a power of two up to 32768.
        device_features: Bit numbers that the device type offers.
        config: The device configuration space.
        indirect_desc: Offer indirect descriptors.
        event_idx: Offer the event index.
        queue_reset: Offer the reset of single queues.

    Attributes:
        offered: Feature bits that the driver may choose from, as one word.
        driver_features: What the driver has written, as one word.
        status: The device status register (2.1).
        config_generation: Changes when configuration does, 8 bits (4.1.4.3.1).
        queues: The virtqueues.
        errors: How many faults led to DEVICE_NEEDS_RESET, ever.
        last_error: The latest of them; survives a reset.
        transport: The bus, once there is one.
        defer: Leave the work of a doorbell to `run_pending`. Each call of it then takes no more from a queue than its
            ring holds, so that a guest which goes on making requests meanwhile cannot keep it from returning:
            `next_deadline` tells that there is more.

    Raises:
        ConfigError: A queue size that cannot be.
    """

    device_id: ClassVar[int]
    """Virtio device id (5)."""
    feature_names: ClassVar[Mapping[int, str]] = {}
    """The names of the device type's own feature bits."""

    def __init__(
        self,
        memory: GuestMemory,
        *,
        queue_sizes: Sequence[int],
        device_features: Iterable[int] = (),
        config: bytes = b"",
        indirect_desc: bool = True,
        event_idx: bool = True,
        queue_reset: bool = True,
    ) -> None:
        for size in queue_sizes:
            if not 1 < size <= MAX_SPLIT_QUEUE_SIZE or size & (size - 1):
                raise ConfigError("queue_size", f"{size} is not a power of two from 2 to {MAX_SPLIT_QUEUE_SIZE}")
        self.memory = memory
        self.offered = features.mask(
            features.VERSION_1,
            *device_features,
            *([features.INDIRECT_DESC] if indirect_desc else ()),
            *([features.EVENT_IDX] if event_idx else ()),
            *([features.RING_RESET] if queue_reset else ()),
        )
        self.driver_features = 0
        self.status = 0
        self.config_generation = 0
        self.queues: tuple[Virtqueue, ...] = tuple(SplitQueue(i, memory, size) for i, size in enumerate(queue_sizes))
        self.errors = 0
        self.last_error: Exception | None = None
        self.transport: Transport | None = None
        self.defer = False
        self._config = bytes(config)
        self._config_changed = False
        self._dma = False
        self._live = False  # DRIVER_OK, not broken, and the bus lets us use guest memory
        self._kicked = 0  # bit n: queue n has something to do
        self._collect = False  # what was completed elsewhere is to be looked at
        self._running = False
        self._closed = False
        self._lingering = 0  # what the status register shows while a reset goes on
        self._settling_queues = 0  # bit n: the reset of queue n goes on
        self._resets = 0
        memory.listeners.append(self._memory_changed)

    # --- for device types ---

    @abc.abstractmethod
    def process(self, index: int) -> bool:
        """Take what is available in queue `index`, and return each chain by its `push`, now or later.

        The queue is enabled and the driver ready. Interrupts are decided when this returns, so it takes no more chains
        than the queue has entries: a guest that runs at the same time may make new ones available for ever.

        Returns:
            Whether more may be available.

        Raises:
            GuestError: The device needs a reset.
        """

    def collect(self) -> None:  # noqa: B027 (most device types have nothing to do here)
        """Push what was completed outside of `process`; called by `run_pending`."""

    def hush(self) -> None:  # noqa: B027 (as above)
        """Make `wakeup_fileno` unreadable until something new happens: what waits cannot be done now."""

    def cancel(self) -> None:  # noqa: B027 (as above)
        """The device is reset or broken: drop all requests and all session state. Nothing is pushed any more."""

    def cancel_queue(self, index: int) -> None:
        """Queue `index` is reset: drop its requests, and only those. Nothing of them is pushed any more."""
        del index
        self.cancel()

    def forget_buffers(self) -> None:  # noqa: B027 (as above)
        """Regions of guest memory have come or gone: let go of buffers of requests that were answered."""

    @property
    def busy(self) -> bool:
        """Whether something cancelled may still use guest memory: a reset has not finished until it does not."""
        return False

    def deadline(self) -> float | None:
        """When `process` or `collect` has to be called even if nothing happens, as time.monotonic(); None: never."""
        return None

    def wakeup_fileno(self) -> int | None:
        """A descriptor that becomes readable when `run_pending` has something to do; None: nothing waits."""
        return None

    # --- configuration (2.5) ---

    @property
    def config(self) -> bytes:
        """The device configuration space."""
        return self._config

    def set_config(self, config: bytes) -> None:
        """Change the configuration; tells the driver if it is there (4.1.4.3.1, 2.5)."""
        if config != self._config:
            self._config = bytes(config)
            self._config_changed = True
            if self.status & STATUS_DRIVER_OK and not self.status & STATUS_NEEDS_RESET:
                self._guarded(self._config_interrupt)

    def read_config(self, offset: int, size: int) -> int:
        """Read `size` bytes of it, little endian; bytes behind its end are 0."""
        if self._config_changed:  # since somebody read it last
            self._config_changed = False
            self.config_generation = (self.config_generation + 1) & 0xFF
        return int.from_bytes(self._config[offset : offset + size], "little")

    def write_config(self, offset: int, size: int, value: int) -> None:  # noqa: B027 (as above)
        """Write it: ignored unless the device type says otherwise."""

    # --- features (2.2) ---

    @property
    def accepted(self) -> int:
        """The features in effect, as one word; 0 before FEATURES_OK."""
        return self.driver_features if self.status & STATUS_FEATURES_OK else 0

    def write_features(self, shift: int, value: int) -> None:
        """The driver chooses: 32 bits of the feature word from bit `shift` on. Ignored once they are accepted."""
        if not self.status & STATUS_FEATURES_OK:
            self.driver_features = self.driver_features & ~(0xFFFFFFFF << shift) | value << shift

    def _accept_features(self) -> bool:
        problem = features.refusal(self.driver_features, self.offered, required=1 << features.VERSION_1)
        if problem is not None:
            log.info("features refused: %s", problem)
            return False
        has_event_idx = bool(self.driver_features >> features.EVENT_IDX & 1)
        has_indirect = bool(self.driver_features >> features.INDIRECT_DESC & 1)
        for queue in self.queues:
            queue.negotiate(event_idx=has_event_idx, indirect=has_indirect)
        return True

    # --- status (2.1) ---

    def read_status(self) -> int:
        """The status register as the driver sees it: 0 only after a reset has finished (2.4.1)."""
        return self.status if not self._lingering or self._settled() else self._lingering

    def write_status(self, value: int) -> None:
        """The driver writes the status register.

        0 resets. Otherwise bits are only ever added: FEATURES_OK if the features can be accepted, DRIVER_OK starts the
        device; clearing a bit is a driver error and ignored, as is not waiting for the end of a reset.
        """
        if value == 0:
            self.reset()
            return
        if self._lingering and not self._settled():
            return
        added = value & _DRIVER_BITS & ~self.status
        if added & STATUS_FEATURES_OK and not self._accept_features():
            added &= ~STATUS_FEATURES_OK
        self.status |= added
        if added & STATUS_DRIVER_OK:
            if not self.status & STATUS_FEATURES_OK:
                self.needs_reset(GuestError("DRIVER_OK without FEATURES_OK"))
                return
            self._kicked = (1 << len(self.queues)) - 1  # buffers may wait already
            self._update_live()

    def reset(self) -> None:
        """Reset the device (2.4): no request, no ring and no register of before is of any effect afterwards."""
        self._live = False
        self._kicked = 0
        self._resets += 1
        self.memory.invalidate()
        for queue in self.queues:
            queue.reset()
        self._guarded(self.cancel)
        self._lingering |= self.status
        self.status = 0
        self.driver_features = 0
        self._config_changed = False
        self._settling_queues = 0
        if self.transport is not None:
            self._guarded(self.transport.device_reset)
        self._settled()

    def _settled(self) -> bool:
        """Whether all that was cancelled by resets has let go of guest memory."""
        if self.defer:
            self._guarded(self.collect)  # the rest is for `run_pending`
            self._collect = True
        else:
            self.run_pending()
        if self.busy:
            return False
        self._lingering = self._settling_queues = 0
        return True

    def close(self) -> None:
        """Reset for good: the device never becomes live again."""
        self._closed = True
        self.reset()
        if self._memory_changed in self.memory.listeners:
            self.memory.listeners.remove(self._memory_changed)

    def _memory_changed(self) -> None:
        """Let go of views: the memory of regions that are gone is to be freed."""
        for queue in self.queues:
            queue.unmap()
        self.forget_buffers()

    def needs_reset(self, error: Exception) -> None:
        """The device cannot go on: DEVICE_NEEDS_RESET, and quiet until it is reset (2.1.2).

        Args:
            error: Why; for `last_error` and the log.
        """
        self.errors += 1
        self.last_error = error
        if isinstance(error, GuestError):
            level = logging.WARNING if self.errors <= _LOUD_ERRORS else logging.DEBUG
            log.log(level, "the device needs a reset: %s", error)
        # It is kept, and its frames would keep the buffers of the request, and so the guest's RAM.
        error.__traceback__ = error.__context__ = error.__cause__ = None
        if self.status & STATUS_NEEDS_RESET:
            return
        self.status |= STATUS_NEEDS_RESET
        self._live = False
        self._kicked = 0
        self._guarded(self.cancel)
        for queue in self.queues:
            queue.in_flight.clear()  # nothing of it is pushed any more
        self._guarded(self._interrupt)  # for what was answered before; the driver may reset the device out of it
        if self.status & STATUS_NEEDS_RESET and self.status & STATUS_DRIVER_OK:
            self._guarded(self._config_interrupt)

    def set_dma(self, enabled: bool) -> None:
        """Whether the bus lets the device use guest memory now; work that it forbids waits until it does again."""
        if enabled != self._dma:
            self._dma = enabled
            self._update_live()

    def _update_live(self) -> None:
        status = self.status
        self._live = bool(
            self._dma and status & STATUS_DRIVER_OK and not status & STATUS_NEEDS_RESET and not self._closed
        )
        if self._live and not self.defer:
            self.run_pending()

    # --- queues ---

    def enable_queue(self, index: int, value: int = 1) -> None:
        """The driver writes queue_enable of an existing queue (4.1.4.3); a bad queue or value breaks the device."""
        if value != 1:
            self.needs_reset(GuestError(f"queue {index}: queue_enable written with {value}"))
        elif not self.queue_resetting(index):
            try:
                self.queues[index].enable()
            except GuestError as error:
                self.needs_reset(error)
            else:
                self.kick(index)

    def reset_queue(self, index: int) -> None:
        """The driver resets one existing queue (2.6.1); ignored unless that was negotiated."""
        if self.accepted >> features.RING_RESET & 1:
            queue = self.queues[index]
            if self.transport is not None:
                self.transport.queue_reset(queue)
            self._kicked &= ~(1 << index)
            self._resets += 1
            self.memory.invalidate()
            queue.reset()
            self._guarded(lambda: self.cancel_queue(index))
            self._settling_queues |= 1 << index
            self._settled()

    def queue_resetting(self, index: int) -> bool:
        """Whether the reset of a queue has not finished yet."""
        return bool(self._settling_queues >> index & 1) and not self._settled()

    def next_deadline(self) -> float | None:
        """When `run_pending` has to be called even so: 0.0 now, else as time.monotonic(), None never."""
        if self._live and (self._kicked or self._collect):
            return 0.0
        return None if self._held_back else self.deadline()

    def kick(self, index: int) -> None:
        """The doorbell of a queue rang; a queue that does not exist is ignored."""
        if index < len(self.queues):
            self._kicked |= 1 << index
            if self._live and not (self._running or self.defer):
                self._work()

    def run_pending(self) -> int:
        """Do all work that waits; returns how many requests were completed."""
        if self._running:
            return 0
        if self._live:
            self._collect = True
            return self._work()
        if self._held_back:
            self._collect = True  # when bus mastering comes back
            self.hush()
        else:
            self._guarded(self.collect)  # nothing is in flight but what was cancelled
        return 0

    @property
    def _held_back(self) -> bool:
        """Whether requests may be in flight that cannot be answered, because bus mastering is off."""
        return not (self._live or self._dma or self._settling_queues or self.status & _WORKING != STATUS_DRIVER_OK)

    def _work(self) -> int:
        """All the work that there is, also for a driver that comes up again out of an interrupt; the device is live.

        With `defer` it is a ring's worth.
        """
        queues = self.queues
        done = 0
        turns = 0
        while self._live and (self._kicked or self._collect) and not (turns and self.defer):
            turns += 1
            resets = self._resets
            self._running = True
            kicked, self._kicked = self._kicked, 0
            try:
                for queue in queues:
                    if kicked >> queue.index & 1 and queue.state.enabled and self.process(queue.index):
                        self._kicked |= 1 << queue.index
                if self._collect:
                    self._collect = False
                    self.collect()
                done += self._interrupt()
            except GuestError as error:
                if self._resets == resets:  # else it was about requests of before a reset
                    self.needs_reset(error)
            except Exception as error:  # noqa: BLE001 (an emulator's processor loop must survive a bug in here)
                self._bug(error)
                self.needs_reset(error)
            except BaseException:  # Ctrl-C, most likely: the rest waits for the next doorbell or `run_pending`
                self._kicked |= kicked
                self._collect = True
                self._guarded(self._interrupt)
                for queue in queues:
                    if queue.state.enabled:
                        self._guarded(queue.arm)
                raise
            finally:
                self._running = False
        return done

    # --- inside ---

    def _interrupt(self) -> int:
        """Interrupt the driver, where it wants that, for the chains pushed since the last time; how many those are."""
        done = 0
        for queue in self.queues:
            pushed = queue.pushed
            if pushed:
                done += pushed
                if queue.needs_interrupt() and self.transport is not None:
                    self.transport.queue_interrupt(queue)
        return done

    def _config_interrupt(self) -> None:
        if self.transport is not None:
            self.transport.config_interrupt()

    def _guarded(self, step: Callable[[], object]) -> None:
        """A step that belongs to recovery itself: whatever it raises is logged, and the rest goes on."""
        try:
            step()
        except GuestError as error:  # a client without shared RAM that left, for example
            log.debug("while recovering: %s", error)
        except Exception as error:  # noqa: BLE001 (as in _work)
            self._bug(error)

    @staticmethod
    def _bug(error: Exception) -> None:
        log.error("a bug in the device, or in what it was given: %s", error, exc_info=error)
