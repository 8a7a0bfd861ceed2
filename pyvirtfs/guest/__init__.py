"""The other side of the bus: a guest that finds the device, drives it, and mounts what it offers.

It shares declarations with the device, and no code: its rings, its chains and its messages are its own.
"""

from pyvirtfs.guest.access import BridgedBus, Bus, ConfigMechanism1, DirectBus, Ecam, FoundBar, FunctionAccess, Slot
from pyvirtfs.guest.channel import (
    COPYING,
    FEW_DESCRIPTORS,
    LINUX,
    OLD_LINUX,
    UNALIGNED,
    Channel,
    Request,
    Shapes,
    progress_of,
)
from pyvirtfs.guest.dma import DmaAllocator, DmaBuffer
from pyvirtfs.guest.file import GuestFile
from pyvirtfs.guest.files import GuestPath
from pyvirtfs.guest.interrupts import Interrupts
from pyvirtfs.guest.machine import DirectMachine, Machine
from pyvirtfs.guest.mount import Mount, mount
from pyvirtfs.guest.paths import PureGuestPath
from pyvirtfs.guest.probe import FoundFunction, Windows, probe
from pyvirtfs.guest.session import Sent, Session
from pyvirtfs.guest.split_ring import SplitRing
from pyvirtfs.guest.vfio_user import VfioUserClient
from pyvirtfs.guest.virtio_driver import Counters, Queue, VirtioPciDriver

__all__ = [
    "COPYING",
    "FEW_DESCRIPTORS",
    "LINUX",
    "OLD_LINUX",
    "UNALIGNED",
    "BridgedBus",
    "Bus",
    "Channel",
    "ConfigMechanism1",
    "Counters",
    "DirectBus",
    "DirectMachine",
    "DmaAllocator",
    "DmaBuffer",
    "Ecam",
    "FoundBar",
    "FoundFunction",
    "FunctionAccess",
    "GuestFile",
    "GuestPath",
    "Interrupts",
    "Machine",
    "Mount",
    "PureGuestPath",
    "Queue",
    "Request",
    "Sent",
    "Session",
    "Shapes",
    "Slot",
    "SplitRing",
    "VfioUserClient",
    "VirtioPciDriver",
    "Windows",
    "mount",
    "probe",
    "progress_of",
]
