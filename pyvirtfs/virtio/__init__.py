"""Virtio devices, split virtqueues and the virtio-pci transport, for any device type: knows no 9P."""

from __future__ import annotations

from pyvirtfs.virtio.chain import Chain
from pyvirtfs.virtio.device import Transport, VirtioDevice
from pyvirtfs.virtio.queue import QueueState, Virtqueue
from pyvirtfs.virtio.split import SplitQueue
from pyvirtfs.virtio.transport import VirtioPci

__all__ = ["Chain", "QueueState", "SplitQueue", "Transport", "VirtioDevice", "VirtioPci", "Virtqueue"]
