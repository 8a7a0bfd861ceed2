"""The structures of virtio and of its PCI transport, declared once (virtio 1.3, 2.7 and 4.1.4), all little endian.

The `construct` declarations are what people read and what the simulated guest parses with; `lower` turns one of a fixed
size into the `struct.Struct` that the hot paths use, and `fields` into the register map of the common configuration.
"""

from __future__ import annotations

import struct
from typing import Any, Final

from construct import Array, Bytes, Int8ul, Int16ul, Int32ul, Int64ul, Struct, this

NO_VECTOR: Final = 0xFFFF
"""VIRTIO_MSI_NO_VECTOR: an event that raises no interrupt."""

VENDOR_ID: Final = 0x1AF4
MODERN_DEVICE_ID_BASE: Final = 0x1040
"""Plus the virtio device id: the PCI device id of a non-transitional function (4.1.2)."""

# --- capabilities: 4.1.4 ---

CAP_ID_VENDOR: Final = 0x09
CFG_COMMON: Final = 1
CFG_NOTIFY: Final = 2
CFG_ISR: Final = 3
CFG_DEVICE: Final = 4
CFG_PCI: Final = 5
CFG_SHARED_MEMORY: Final = 8
CFG_VENDOR: Final = 9

VirtioPciCap = Struct(
    "cap_vndr" / Int8ul,  # 0x09, vendor specific
    "cap_next" / Int8ul,  # offset of the next capability, 0 at the end
    "cap_len" / Int8ul,  # bytes of this one, what follows it included
    "cfg_type" / Int8ul,  # CFG_*
    "bar" / Int8ul,
    "id" / Int8ul,
    "padding" / Array(2, Int8ul),
    "offset" / Int32ul,  # of the structure in the BAR
    "length" / Int32ul,
)
"""struct virtio_pci_cap: where in which BAR a structure lies."""

VirtioPciNotifyCap = Struct(*VirtioPciCap.subcons, "notify_off_multiplier" / Int32ul)
"""struct virtio_pci_notify_cap: queue_notify_off times the multiplier is the queue's doorbell (4.1.4.4)."""

VirtioPciCfgCap = Struct(*VirtioPciCap.subcons, "pci_cfg_data" / Array(4, Int8ul))
"""struct virtio_pci_cfg_cap: the window to the BARs from configuration space (4.1.4.9)."""

# --- the common configuration structure: 4.1.4.3 ---

CommonConfig = Struct(
    "device_feature_select" / Int32ul,
    "device_feature" / Int32ul,
    "driver_feature_select" / Int32ul,
    "driver_feature" / Int32ul,
    "config_msix_vector" / Int16ul,
    "num_queues" / Int16ul,
    "device_status" / Int8ul,
    "config_generation" / Int8ul,
    "queue_select" / Int16ul,
    "queue_size" / Int16ul,
    "queue_msix_vector" / Int16ul,
    "queue_enable" / Int16ul,
    "queue_notify_off" / Int16ul,
    "queue_desc" / Int64ul,
    "queue_driver" / Int64ul,
    "queue_device" / Int64ul,
    "queue_notif_config_data" / Int16ul,
    "queue_reset" / Int16ul,
    "admin_queue_index" / Int16ul,
    "admin_queue_num" / Int16ul,
)
"""struct virtio_pci_common_cfg."""

# --- device status: 2.1 ---

STATUS_ACKNOWLEDGE: Final = 1
STATUS_DRIVER: Final = 2
STATUS_DRIVER_OK: Final = 4
STATUS_FEATURES_OK: Final = 8
STATUS_NEEDS_RESET: Final = 64
STATUS_FAILED: Final = 128

ISR_QUEUE: Final = 1
ISR_CONFIG: Final = 2

# --- the split virtqueue: 2.7 ---

DESC_NEXT: Final = 1
DESC_WRITE: Final = 2
DESC_INDIRECT: Final = 4
AVAIL_NO_INTERRUPT: Final = 1
USED_NO_NOTIFY: Final = 1

Descriptor = Struct(
    "addr" / Int64ul,  # guest-physical
    "len" / Int32ul,
    "flags" / Int16ul,  # DESC_*
    "next" / Int16ul,
)
"""struct virtq_desc."""

AvailRing = Struct(
    "flags" / Int16ul,
    "idx" / Int16ul,  # free running; where the driver puts the next head, modulo the queue size
    "ring" / Array(this._.size, Int16ul),
    "used_event" / Int16ul,  # only with EVENT_IDX
)
"""struct virtq_avail, the driver area; parse with ``size=`` the queue size."""

UsedElement = Struct("id" / Int32ul, "len" / Int32ul)
"""struct virtq_used_elem: the head of a chain, and the bytes that the device wrote into it."""

UsedRing = Struct(
    "flags" / Int16ul,
    "idx" / Int16ul,
    "ring" / Array(this._.size, UsedElement),
    "avail_event" / Int16ul,  # only with EVENT_IDX
)
"""struct virtq_used, the device area; parse with ``size=`` the queue size."""

MAX_SPLIT_QUEUE_SIZE: Final = 32768

_FORMATS: Final[dict[Any, str]] = {Int8ul: "B", Int16ul: "H", Int32ul: "I", Int64ul: "Q"}


def _format(subcon: Any) -> str:
    """The struct codes of one declared field, without its byte order."""
    inner = getattr(subcon, "subcon", None)
    if isinstance(subcon, Array):
        return _format(subcon.subcon) * int(subcon.count)
    if isinstance(subcon, Bytes):
        return f"{int(subcon.length)}s"
    if isinstance(subcon, Struct):
        return "".join(_format(field) for field in subcon.subcons)
    if subcon in _FORMATS:
        return _FORMATS[subcon]
    if inner is not None:  # a Renamed: "name" / field
        return _format(inner)
    raise TypeError(f"{subcon!r} has no fixed layout")


def lower(declaration: Any, count: int = 1) -> struct.Struct:
    """The `struct.Struct` for `count` consecutive structures of a declaration.

    Args:
        declaration: A `construct.Struct` of integers, arrays and structures of fixed size.
        count: How many of them follow each other.

    Raises:
        TypeError: If the declaration has a field of variable size.
    """
    return struct.Struct("<" + _format(declaration) * count)


def fields(declaration: Any) -> dict[str, tuple[int, int]]:
    """Name -> (offset, size) in bytes of every field of a declaration of fixed size, in order."""
    result: dict[str, tuple[int, int]] = {}
    offset = 0
    for field in declaration.subcons:
        size = struct.calcsize("<" + _format(field))
        result[field.name] = offset, size
        offset += size
    return result
