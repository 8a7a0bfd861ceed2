"""The properties of `-device virtio-9p-pci`, declared once: QEMU's names and defaults, and what happens here.

Names, types and defaults are those of QEMU 8.2 (``-device virtio-9p-pci,help``). A property that this device does not
honour yet may be given with the value that describes what the device does anyway; every other value is refused, never
silently ignored.
"""

from __future__ import annotations

import json
from typing import NamedTuple, TypeAlias

from pyvirtfs.errors import ConfigError
from pyvirtfs.fsdev.options import parse_bool, parse_number
from pyvirtfs.pci.layout import MSIX_MAX_VECTORS

Value: TypeAlias = str | int | bool

_HELP_COLUMN = 24


class Property(NamedTuple):
    """One property of a device."""

    name: str
    type: str
    """As QEMU writes it: bool, uint32, int32, str, OnOffAuto."""
    default: Value | None
    """None: it has none, and QEMU's help shows none."""
    description: str = ""
    accepted: tuple[Value, ...] | None = None
    """None: honoured, whatever its value. Else the values, besides the default, that describe what the device does."""
    most: int = 0xFFFFFFFF
    """Of a number: how large it may be."""

    def parse(self, text: str) -> Value:
        """The value of its textual form. Raises ConfigError that names property, text and choices."""
        if self.type == "bool":
            return parse_bool(self.name, text)
        if self.type == "OnOffAuto":
            return text if text == "auto" else "on" if parse_bool(self.name, text) else "off"
        if self.type == "uint32":
            if text[:1] == "-" or (number := parse_number(self.name, text)) > self.most:
                raise ConfigError(self.name, f"{text!r} is not in the range 0 to {self.most}")
            return number
        return text  # also for the one int32, which is a slot address

    def check(self, value: Value) -> None:
        """Raise ConfigError if the device would have to ignore this value."""
        if self.accepted is None or value == self.default or value in self.accepted:
            return
        shown = [_text(known) for known in (self.default, *self.accepted) if known not in {None, ""}]
        raise ConfigError(self.name, f"{_text(value)!r} is known to QEMU but not available here yet", shown)

    def help(self) -> str:
        """Its line in the list of properties."""
        line = f"  {self.name}=<{self.type}>"
        if self.description or self.default is not None:
            line = f"{line:<{_HELP_COLUMN}} - {self.description}"
        if self.default is not None:
            line += f" (default: {json.dumps(self.default)})"
        return line


def _text(value: Value) -> str:
    """The value as a person writes it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value)


_BOOL = "on/off"

PROPERTIES: tuple[Property, ...] = (
    Property("acpi-index", "uint32", 0, "", ()),
    Property("addr", "int32", -1, "Slot and optional function number, example: 06.0 or 06"),
    Property("aer", "bool", False, _BOOL, ()),
    Property("any_layout", "bool", True, _BOOL, ()),
    Property("ats", "bool", False, _BOOL, ()),
    Property("disable-legacy", "OnOffAuto", "auto", "on/off/auto", ("on",)),
    Property("disable-modern", "bool", False, _BOOL, ()),
    Property("event_idx", "bool", True, _BOOL),
    Property("failover_pair_id", "str", None, "", ()),
    Property("fsdev", "str", None, "The id of the -fsdev to offer"),
    Property("in_order", "bool", False, _BOOL, ()),
    Property("indirect_desc", "bool", True, _BOOL),
    Property("ioeventfd", "bool", True, _BOOL, (False,)),
    Property("iommu_platform", "bool", False, _BOOL, ()),
    Property("migrate-extra", "bool", True, _BOOL, ()),
    Property("modern-pio-notify", "bool", False, _BOOL, ()),
    Property("mount_tag", "str", None, "What the guest mounts, 1 to 31 bytes"),
    Property("multifunction", "bool", False, _BOOL, ()),
    Property("notify_on_empty", "bool", True, _BOOL, ()),
    Property("packed", "bool", False, _BOOL, ()),
    Property("page-per-vq", "bool", False, _BOOL, ()),
    Property("queue_reset", "bool", True, _BOOL),
    Property("rombar", "uint32", 1, "", (0,)),
    Property("romfile", "str", "", "", ()),
    Property("romsize", "uint32", 0xFFFFFFFF, "", ()),
    Property("use-disabled-flag", "bool", True, "", ()),
    Property("use-started", "bool", True, "", ()),
    Property("vectors", "uint32", 2, "MSI-X vectors, 0: no MSI-X", most=MSIX_MAX_VECTORS),
    Property("virtio-pci-bus-master-bug-migration", "bool", False, _BOOL, ()),
    Property("x-ats-page-aligned", "bool", True, _BOOL, ()),
    Property("x-disable-legacy-check", "bool", False, "", ()),
    Property("x-disable-pcie", "bool", False, _BOOL, ()),
    Property("x-ignore-backend-features", "bool", False, "", ()),
    Property("x-pcie-ari-nextfn-1", "bool", False, _BOOL, ()),
    Property("x-pcie-deverr-init", "bool", True, _BOOL, ()),
    Property("x-pcie-err-unc-mask", "bool", True, _BOOL, ()),
    Property("x-pcie-extcap-init", "bool", True, _BOOL, ()),
    Property("x-pcie-flr-init", "bool", True, _BOOL, ()),
    Property("x-pcie-lnkctl-init", "bool", True, _BOOL, ()),
    Property("x-pcie-lnksta-dllla", "bool", True, _BOOL, ()),
    Property("x-pcie-pm-init", "bool", True, _BOOL, ()),
)
"""Sorted by name, as the help lists them."""

COMMON: tuple[Property, ...] = (
    Property("bus", "str", None, "The bus to plug into", ("pci.0",)),
    Property("id", "str", None, "A name for the device"),
)
"""What `-device` takes whatever the device is; the help lists none of these."""
