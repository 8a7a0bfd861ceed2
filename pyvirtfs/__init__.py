"""The VirtFS device (virtio-9p-pci) as a library: a virtual machine mounts a folder of its host.

`Virtio9pPci` is the device, `GuestMemory` the RAM of the guest; what fails, and whose fault it is: `pyvirtfs.errors`.
"""

from __future__ import annotations

from pyvirtfs._version import __version__
from pyvirtfs.errors import ConfigError, DeviceError, GuestError, PyvirtfsError
from pyvirtfs.fsdev.completion import Completion
from pyvirtfs.fsdev.driver import ExportDriver
from pyvirtfs.fsdev.registry import register
from pyvirtfs.memory import GuestMemory
from pyvirtfs.p9.limits import Limits
from pyvirtfs.pci import InterruptSink
from pyvirtfs.virtio9p import Virtio9pPci

__all__ = [
    "Completion",
    "ConfigError",
    "DeviceError",
    "ExportDriver",
    "GuestError",
    "GuestMemory",
    "InterruptSink",
    "Limits",
    "PyvirtfsError",
    "Virtio9pPci",
    "__version__",
    "register",
]
