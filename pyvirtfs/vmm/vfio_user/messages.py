"""The messages of vfio-user, declared once (QEMU's docs/interop/vfio-user.rst), in host byte order: little endian here.

The `construct` declarations are what people read and what the client of the simulated guest speaks; a `Command` lowers
those of its two messages to the `struct.Struct`s that the server uses.
"""

from __future__ import annotations

import struct
from types import MappingProxyType
from typing import Any, Final

from construct import Int16ul, Int32ul, Int64ul, Struct

from pyvirtfs.virtio.layout import lower

# --- header ---

Header = Struct(
    "id" / Int16ul,  # the sender's choice, echoed in the reply
    "command" / Int16ul,
    "size" / Int32ul,  # of the whole message, this header included
    "flags" / Int32ul,
    "error" / Int32ul,  # of a reply with FLAG_ERROR: an errno
)

FLAG_COMMAND: Final = 0
FLAG_REPLY: Final = 1
FLAG_TYPE: Final = 0xF
"""The bits that hold one of the two."""
FLAG_NO_REPLY: Final = 0x10
"""Of a command: nobody waits for an answer to it."""
FLAG_ERROR: Final = 0x20

MAX_TRANSFER: Final = 1 << 20
"""Bytes that one access may move (max_data_xfer_size): what QEMU and libvfio-user use."""

# --- bodies ---

Nothing = Struct()

Version = Struct("major" / Int16ul, "minor" / Int16ul)
"""Then JSON that ends with a NUL, or nothing."""

DmaMap = Struct(
    "argsz" / Int32ul,
    "flags" / Int32ul,  # DMA_*
    "offset" / Int64ul,  # in the file whose descriptor comes with the message
    "address" / Int64ul,
    "size" / Int64ul,
)
DMA_READ_ACCESS: Final = 1
DMA_WRITE_ACCESS: Final = 2

DmaUnmap = Struct("argsz" / Int32ul, "flags" / Int32ul, "address" / Int64ul, "size" / Int64ul)
UNMAP_DIRTY_BITMAP: Final = 1
UNMAP_ALL: Final = 2

DeviceInfo = Struct("argsz" / Int32ul, "flags" / Int32ul, "num_regions" / Int32ul, "num_irqs" / Int32ul)
DEVICE_RESET: Final = 1
DEVICE_PCI: Final = 2

RegionInfo = Struct(
    "argsz" / Int32ul,
    "flags" / Int32ul,  # REGION_*
    "index" / Int32ul,
    "cap_offset" / Int32ul,
    "size" / Int64ul,
    "offset" / Int64ul,
)
REGION_READ: Final = 1
REGION_WRITE: Final = 2

RegionIoFds = Struct("argsz" / Int32ul, "flags" / Int32ul, "index" / Int32ul, "count" / Int32ul)

IrqInfo = Struct("argsz" / Int32ul, "flags" / Int32ul, "index" / Int32ul, "count" / Int32ul)
IRQ_EVENTFD: Final = 1
IRQ_MASKABLE: Final = 2
IRQ_AUTOMASKED: Final = 4
IRQ_NORESIZE: Final = 8

SetIrqs = Struct(
    "argsz" / Int32ul, "flags" / Int32ul, "index" / Int32ul, "start" / Int32ul, "count" / Int32ul
)  # fmt: skip
"""Then, with DATA_BOOL, `count` bytes."""
DATA_NONE: Final = 0x01
DATA_BOOL: Final = 0x02
DATA_EVENTFD: Final = 0x04
ACTION_MASK: Final = 0x08
ACTION_UNMASK: Final = 0x10
ACTION_TRIGGER: Final = 0x20

RegionAccess = Struct("offset" / Int64ul, "region" / Int32ul, "count" / Int32ul)
"""Then, in a REGION_WRITE and in the reply to a REGION_READ, `count` bytes."""

DmaAccess = Struct("address" / Int64ul, "count" / Int64ul)
"""Then, in a DMA_WRITE and in the reply to a DMA_READ, `count` bytes."""

WriteMulti = Struct("wr_cnt" / Int64ul)
"""Then so many `SingleWrite`s; in the reply the number of those that were done."""
SingleWrite = Struct("offset" / Int64ul, "region" / Int32ul, "count" / Int32ul, "data" / Int64ul)
"""One write of up to 8 bytes: the first `count` bytes of `data`."""

Feature = Struct("argsz" / Int32ul, "flags" / Int32ul)
MigrationData = Struct("argsz" / Int32ul, "size" / Int32ul)

# --- commands ---


class Command:
    """One command.

    Args:
        number: On the wire.
        name: In the specification's words, without the prefix VFIO_USER_.
        request: The fixed part of its body.
        reply: The fixed part of its reply's body.
        max_fds: How many descriptors may come with it; None: as many as the negotiated limit allows.
        from_server: Whether the server sends it.
    """

    __slots__ = ("from_server", "max_fds", "name", "number", "reply", "reply_layout", "request", "request_layout")

    def __init__(
        self, number: int, name: str, request: Any, reply: Any, *, max_fds: int | None = 0, from_server: bool = False
    ) -> None:
        self.number = number
        self.name = name
        self.request = request
        self.reply = reply
        self.max_fds = max_fds
        self.from_server = from_server
        self.request_layout: struct.Struct = lower(request)
        self.reply_layout: struct.Struct = lower(reply)


VERSION: Final = 1
DMA_MAP: Final = 2
DMA_UNMAP: Final = 3
GET_INFO: Final = 4
GET_REGION_INFO: Final = 5
GET_REGION_IO_FDS: Final = 6
GET_IRQ_INFO: Final = 7
SET_IRQS: Final = 8
READ_REGION: Final = 9
WRITE_REGION: Final = 10
DMA_READ: Final = 11
DMA_WRITE: Final = 12
RESET: Final = 13
WRITE_REGION_MULTI: Final = 15
DEVICE_FEATURE: Final = 16
MIG_DATA_READ: Final = 17
MIG_DATA_WRITE: Final = 18

COMMANDS: Final = MappingProxyType(
    {
        command.number: command
        for command in (
            Command(VERSION, "VERSION", Version, Version),
            Command(DMA_MAP, "DMA_MAP", DmaMap, Nothing, max_fds=1),
            Command(DMA_UNMAP, "DMA_UNMAP", DmaUnmap, DmaUnmap),
            Command(GET_INFO, "DEVICE_GET_INFO", DeviceInfo, DeviceInfo),
            Command(GET_REGION_INFO, "DEVICE_GET_REGION_INFO", RegionInfo, RegionInfo),
            Command(GET_REGION_IO_FDS, "DEVICE_GET_REGION_IO_FDS", RegionIoFds, RegionIoFds),
            Command(GET_IRQ_INFO, "DEVICE_GET_IRQ_INFO", IrqInfo, IrqInfo),
            Command(SET_IRQS, "DEVICE_SET_IRQS", SetIrqs, Nothing, max_fds=None),
            Command(READ_REGION, "REGION_READ", RegionAccess, RegionAccess),
            Command(WRITE_REGION, "REGION_WRITE", RegionAccess, RegionAccess),
            Command(DMA_READ, "DMA_READ", DmaAccess, DmaAccess, from_server=True),
            Command(DMA_WRITE, "DMA_WRITE", DmaAccess, DmaAccess, from_server=True),
            Command(RESET, "DEVICE_RESET", Nothing, Nothing),
            Command(WRITE_REGION_MULTI, "REGION_WRITE_MULTI", WriteMulti, WriteMulti),
            Command(DEVICE_FEATURE, "DEVICE_FEATURE", Feature, Feature),
            Command(MIG_DATA_READ, "MIG_DATA_READ", MigrationData, MigrationData),
            Command(MIG_DATA_WRITE, "MIG_DATA_WRITE", MigrationData, Nothing),
        )
    }
)
"""By number."""

# --- what the numbers in them mean ---

BAR_REGIONS: Final = 6
"""Regions 0 to 5 are the BARs."""
CONFIG_REGION: Final = 7
NUM_REGIONS: Final = 9
"""Also the expansion ROM (6) and the VGA ranges (8)."""

INTX_IRQ: Final = 0
MSI_IRQ: Final = 1
MSIX_IRQ: Final = 2
ERR_IRQ: Final = 3
REQ_IRQ: Final = 4
NUM_IRQS: Final = 5


def describe(header: tuple[int, ...], body: bytes | memoryview, descriptors: int = 0) -> str:
    """A message in one line, for traces.

    Args:
        header: The fields of `Header`.
        body: What follows it.
        descriptors: How many came with it.
    """
    identifier, number, size, flags, code = header
    is_reply = flags & FLAG_TYPE == FLAG_REPLY
    known = COMMANDS.get(number)
    words = [f"{known.name if known else f'command {number}'}{' reply' if is_reply else ''} id {identifier}"]
    if flags & FLAG_ERROR:
        return f"{words[0]}: error {code}"
    declaration = (known.reply if is_reply else known.request) if known else Nothing
    layout = (known.reply_layout if is_reply else known.request_layout) if known else struct.Struct("")
    if len(body) >= layout.size:
        values = layout.unpack_from(body)
        words += [f"{field.name} {value:#x}" for field, value in zip(declaration.subcons, values, strict=True)]
    rest = size - HEADER.size - layout.size
    if rest > 0:
        words.append(f"+{rest} bytes")
    if flags & FLAG_NO_REPLY:
        words.append("no reply")
    if descriptors:
        words.append(f"{descriptors} descriptor{'s' if descriptors > 1 else ''}")
    return " ".join(words)


HEADER: Final = lower(Header)
REGION_ACCESS: Final = lower(RegionAccess)
SINGLE_WRITE: Final = lower(SingleWrite)
DMA_ACCESS: Final = lower(DmaAccess)
