"""The common configuration structure as registers (virtio 1.3, 4.1.4.3).

Accesses of any width and offset are defined: a read gathers the bytes of all fields that it touches, a write replaces
the bytes that it covers in each of them, lower fields first. So a 64-bit field is two independent 32-bit halves
(4.1.3.1).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pyvirtfs.virtio.layout import NO_VECTOR, CommonConfig, fields

if TYPE_CHECKING:
    from pyvirtfs.virtio.device import VirtioDevice
    from pyvirtfs.virtio.queue import Virtqueue

_FIELDS: Final = fields(CommonConfig)
NBYTES: Final = sum(size for _, size in _FIELDS.values())

Getter = Callable[[], int]
Setter = Callable[[int], None]


@dataclass(slots=True)
class CommonState:
    """The registers that belong to the transport; plain integers."""

    device_feature_select: int = 0
    driver_feature_select: int = 0
    config_msix_vector: int = NO_VECTOR
    queue_select: int = 0


class CommonRegisters:
    """The registers of one device.

    Args:
        device: The device.
        vectors: How many MSI-X vectors the function has.
    """

    def __init__(self, device: VirtioDevice, vectors: int) -> None:
        self.state = CommonState()
        self._device = device
        self._vectors = vectors
        setters: dict[str, Setter] = {
            "device_feature_select": self._set_device_feature_select,
            "driver_feature_select": self._set_driver_feature_select,
            "driver_feature": self._set_driver_feature,
            "config_msix_vector": self._set_config_msix_vector,
            "device_status": device.write_status,
            "queue_select": self._set_queue_select,
            "queue_size": lambda value: self._set_stopped_queue("size", value),
            "queue_msix_vector": self._set_queue_msix_vector,
            "queue_enable": self._set_queue_enable,
            "queue_desc": lambda value: self._set_stopped_queue("descriptors", value),
            "queue_driver": lambda value: self._set_stopped_queue("driver", value),
            "queue_device": lambda value: self._set_stopped_queue("device", value),
            "queue_reset": self._set_queue_reset,
        }
        getters: dict[str, Getter] = {
            "device_feature_select": lambda: self.state.device_feature_select,
            "device_feature": self._device_feature,
            "driver_feature_select": lambda: self.state.driver_feature_select,
            "driver_feature": self._driver_feature,
            "config_msix_vector": lambda: self.state.config_msix_vector,
            "num_queues": lambda: len(device.queues),
            "device_status": device.read_status,
            "config_generation": lambda: device.config_generation,
            "queue_select": lambda: self.state.queue_select,
            "queue_size": lambda: self._queue_value("size"),
            "queue_msix_vector": lambda: self._queue_value("vector"),
            "queue_enable": lambda: self._queue_value("enabled"),
            "queue_notify_off": lambda: self.state.queue_select if self._queue() else 0,
            "queue_desc": lambda: self._queue_value("descriptors"),
            "queue_driver": lambda: self._queue_value("driver"),
            "queue_device": lambda: self._queue_value("device"),
            "queue_reset": self._queue_reset,
        }
        # Fields without a getter belong to features that are not offered; int() is 0.
        self._fields = [
            (offset, size, getters.get(name, int), setters.get(name)) for name, (offset, size) in _FIELDS.items()
        ]
        self._exact = {(offset, size): (get, put) for offset, size, get, put in self._fields}

    def reset(self) -> None:
        """The state after a device reset."""
        self.state = CommonState()

    def read(self, offset: int, size: int) -> int:
        """Read `size` bytes at `offset`, little endian; what is no register reads 0."""
        exact = self._exact.get((offset, size))
        if exact is not None:
            return exact[0]()
        end = offset + size
        value = 0
        for position, nbytes, get, _ in self._fields:
            if position < end and offset < position + nbytes:
                value |= (get() << 8 * max(position - offset, 0)) >> 8 * max(offset - position, 0)
        return value & ((1 << 8 * size) - 1)

    def write(self, offset: int, size: int, value: int) -> None:
        """Write `size` bytes at `offset`, little endian; what is no register, or read-only, ignores it."""
        value &= (1 << 8 * size) - 1
        exact = self._exact.get((offset, size))
        if exact is not None:
            if exact[1] is not None:
                exact[1](value)
            return
        end = offset + size
        for position, nbytes, get, put in self._fields:
            first, last = max(offset, position), min(end, position + nbytes)
            if put is not None and first < last:
                mask = (1 << 8 * (last - first)) - 1
                part = value >> 8 * (first - offset) & mask
                shift = 8 * (first - position)
                put(get() & ~(mask << shift) | part << shift)

    # --- features ---

    def _set_device_feature_select(self, value: int) -> None:
        self.state.device_feature_select = value

    def _set_driver_feature_select(self, value: int) -> None:
        self.state.driver_feature_select = value

    def _device_feature(self) -> int:
        select = self.state.device_feature_select
        return self._device.offered >> 32 * select & 0xFFFFFFFF if select < 2 else 0

    def _driver_feature(self) -> int:
        select = self.state.driver_feature_select
        return self._device.driver_features >> 32 * select & 0xFFFFFFFF if select < 2 else 0

    def _set_driver_feature(self, value: int) -> None:
        select = self.state.driver_feature_select
        if select < 2:
            self._device.write_features(32 * select, value)
        elif value:  # no such bits: remember in the first of them that some were wanted, so that FEATURES_OK is refused
            self._device.write_features(64, 1)

    # --- interrupts ---

    def _valid_vector(self, value: int) -> int:
        return value if value < self._vectors else NO_VECTOR

    def _set_config_msix_vector(self, value: int) -> None:
        self.state.config_msix_vector = self._valid_vector(value)

    def _set_queue_msix_vector(self, value: int) -> None:
        queue = self._queue()
        if queue is not None:
            queue.state.vector = self._valid_vector(value)

    # --- queues ---

    def _set_queue_select(self, value: int) -> None:
        self.state.queue_select = value

    def _queue(self) -> Virtqueue | None:
        """The selected queue, if there is one."""
        queues = self._device.queues
        select = self.state.queue_select
        return queues[select] if select < len(queues) else None

    def _queue_value(self, name: str) -> int:
        queue = self._queue()
        return 0 if queue is None else int(getattr(queue.state, name))

    def _set_stopped_queue(self, name: str, value: int) -> None:
        """Size and addresses of the selected queue: to change them while it is enabled is a driver error, ignored."""
        queue = self._queue()
        if queue is not None and not queue.state.enabled:
            setattr(queue.state, name, value)

    def _set_queue_enable(self, value: int) -> None:
        if self._queue() is not None:
            self._device.enable_queue(self.state.queue_select, value)

    def _queue_reset(self) -> int:
        return int(self._queue() is not None and self._device.queue_resetting(self.state.queue_select))

    def _set_queue_reset(self, value: int) -> None:
        if value == 1 and self._queue() is not None:
            self._device.reset_queue(self.state.queue_select)
