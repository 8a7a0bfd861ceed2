"""Exports: the driver interface, the drivers by name, QEMU's option syntax."""

from pyvirtfs.fsdev.completion import Completion
from pyvirtfs.fsdev.driver import (
    NONUNAME,
    NOW,
    Attributes,
    DirectoryEntry,
    EntryFields,
    ExportDriver,
    Lock,
    LockHolder,
    Qid,
    SetAttributes,
    StatFs,
    Walk,
)
from pyvirtfs.fsdev.options import Option, OptionTable, parse_device, parse_fsdev, parse_virtfs
from pyvirtfs.fsdev.registry import DriverType, create, names, register

__all__ = [
    "NONUNAME",
    "NOW",
    "Attributes",
    "Completion",
    "DirectoryEntry",
    "DriverType",
    "EntryFields",
    "ExportDriver",
    "Lock",
    "LockHolder",
    "Option",
    "OptionTable",
    "Qid",
    "SetAttributes",
    "StatFs",
    "Walk",
    "create",
    "names",
    "parse_device",
    "parse_fsdev",
    "parse_virtfs",
    "register",
]
