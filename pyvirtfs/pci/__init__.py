"""PCI functions, a bus and a host bridge, for any device: knows no virtio."""

from pyvirtfs.pci.bars import Bar, BarHandler, BarKind
from pyvirtfs.pci.bridge import HostBridge
from pyvirtfs.pci.bus import PciBus
from pyvirtfs.pci.config import Capability, ConfigSpace
from pyvirtfs.pci.function import PciFunction, PciIdentity
from pyvirtfs.pci.interrupts import InterruptSink
from pyvirtfs.pci.msix import MsixTable

__all__ = [
    "Bar",
    "BarHandler",
    "BarKind",
    "Capability",
    "ConfigSpace",
    "HostBridge",
    "InterruptSink",
    "MsixTable",
    "PciBus",
    "PciFunction",
    "PciIdentity",
]
