"""The driver `memory`: a file system in this process's memory, of which nothing reaches the host."""

from pyvirtfs.fsdev.ram.driver import DRIVER, OPTIONS, MemoryDriver

__all__ = ["DRIVER", "OPTIONS", "MemoryDriver"]
