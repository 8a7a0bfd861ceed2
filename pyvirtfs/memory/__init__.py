"""Guest RAM: numpy arrays at guest-physical addresses, and everything that touches them."""

from __future__ import annotations

from pyvirtfs.memory.buffers import Buffers, IovecBuffers, ViewBuffers
from pyvirtfs.memory.guest import GuestMemory
from pyvirtfs.memory.ordering import TOTAL_STORE_ORDER, full_barrier, load_barrier, store_barrier
from pyvirtfs.memory.regions import Region
from pyvirtfs.memory.remote import RemoteBuffers, RemotePort, RemoteRegion, RemoteView, Words, unpacker
from pyvirtfs.memory.span import HeadedBuffers, SpanBuffers

__all__ = [
    "TOTAL_STORE_ORDER",
    "Buffers",
    "GuestMemory",
    "HeadedBuffers",
    "IovecBuffers",
    "Region",
    "RemoteBuffers",
    "RemotePort",
    "RemoteRegion",
    "RemoteView",
    "SpanBuffers",
    "ViewBuffers",
    "Words",
    "full_barrier",
    "load_barrier",
    "store_barrier",
    "unpacker",
]
