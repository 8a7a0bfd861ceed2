"""The 9p devices of a QEMU command line, and the `vfio-user-pci` devices that take their places.

A `vfio-user-pci` device can only be written as JSON, and QEMU makes what is written as JSON after everything else. So
what was not JSON before is put in front of the first JSON device; still, without ``addr`` a device may end up in
another slot than before, of which `TakenDevices.warnings` tell.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from pyvirtfs.errors import ConfigError
from pyvirtfs.fsdev.options import check_identifier, parse_bool, parse_number, parse_pairs
from pyvirtfs.vmm.qemu_arguments import HELP, Argument, Typed, as_text, escaped, make, pairs_of, typed

MODERN: Final = "virtio-9p-pci-non-transitional"
TRANSITIONAL: Final = "virtio-9p-pci-transitional"
NAMES: Final = frozenset({"virtio-9p-pci", "virtio-9p", TRANSITIONAL, MODERN})
"""What a 9p device on a PCI bus is called."""
_OTHER_9P: Final = ("virtio-9p-device", "virtio-9p-ccw")
_EXPRESS_PORTS: Final = frozenset({"pcie-root-port", "ioh3420", "xio3130-downstream"})
_NOT_PCI: Final = re.compile(
    r"(?!usb-ehci)(usb|scsi|ide|isa|hda|ccid|i2c|smbus|sd)-.*|.*-(cpu|dimm|tis|ns|device)|virtserialport|virtconsole|nvdimm"
    r"|(guest-)?loader|vmcoreinfo|vmgenid|pvpanic|emulated|u2f-.*|floppy|tpm-crb|cxl-type3|intel-iommu|amd-iommu"
)
"""Devices that take no slot of a PCI bus; one that is missing here leads to a warning too many."""


def _text(_key: str, text: str) -> str:
    return text


_PLACEMENT: Final[Mapping[str, Callable[[str, str], Any]]] = {
    "id": check_identifier,
    "bus": _text,
    "addr": _text,
    "multifunction": parse_bool,
    "acpi-index": parse_number,
    "x-pcie-ari-nextfn-1": parse_bool,
    "x-pcie-err-unc-mask": parse_bool,
    "x-pcie-lnksta-dllla": parse_bool,
}
"""The properties that are the same for both devices, and what they are in JSON."""

_OFF: Final = frozenset({"off", "no", "false", "n"})
_GLOBALS: Final = frozenset({*NAMES, *_OTHER_9P, "virtio-9p-pci-base"})
_ANCESTORS: Final = frozenset({"virtio-pci", "virtio-device", "pci-device"})
_TRANSITIONAL_WARNING: Final = (
    "the device has no legacy interface: the guest gets the modern one alone, which Linux works with since 2015"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TakenDevice:
    """One 9p device that QEMU does not make any more: as our own options describe it, and where it is to be."""

    virtfs: str | None = None
    """The value of `-virtfs`; or else:"""
    fsdev: str | None = None
    """The value of `-fsdev`, if there is one with the id that the device names."""
    device: str | None = None
    """The value of `-device`, without what is in `placement`."""
    placement: Mapping[str, Any] = field(default_factory=dict)
    """Properties of the `vfio-user-pci` device."""
    express: bool = False
    """Whether it is behind a PCI Express port."""
    is_json: bool = False


@dataclass(frozen=True, slots=True)
class TakenDevices:
    """A command line without its 9p devices."""

    devices: Sequence[TakenDevice]
    rest: Sequence[Argument | TakenDevice]
    """What is left of the command line, with the devices in the places that they are to have."""
    warnings: Sequence[str]

    def attached(self, sockets: Iterable[str]) -> list[Argument]:
        """The command line with a `vfio-user-pci` device for each one that was taken, in the order of `devices`."""
        made = {
            id(device): make("device", attachment(path, device.placement))
            for device, path in zip(self.devices, sockets, strict=True)
        }
        return [one if isinstance(one, Argument) else made[id(one)] for one in self.rest]


def attachment(socket: str, placement: Mapping[str, Any]) -> str:
    """What stands behind `-device` to attach a vfio-user server."""
    device = {"driver": "vfio-user-pci", "socket": {"type": "unix", "path": socket}, **placement}
    return json.dumps(device, separators=(",", ":"))


def split_device(text: str) -> tuple[str, dict[str, Any]]:
    """The value of `-device` as our own option, and what of it is the `vfio-user-pci` device's.

    Raises:
        ConfigError: A value is none.
    """
    found = typed(make("device", text), "driver")
    return (text, {}) if found is None else _split(found.name, found)


def _split(name: str, found: Typed) -> tuple[str, dict[str, Any]]:
    own, placement = [name], {}
    for key, value in found.properties.items():
        convert = _PLACEMENT.get(key)
        if convert is None:
            own.append(f"{key}={escaped(as_text(value))}")
        else:
            placement[key] = value if found.is_json else convert(key, value)
    return ",".join(own), placement


def take(arguments: Sequence[Argument]) -> TakenDevices:
    """Take the 9p devices, and the exports that nothing else uses, out of a command line.

    Raises:
        ConfigError: There is something about them that cannot be kept. Their own properties are not looked at.
    """
    return _Taker(arguments).take()


class _Taker:
    """One command line on its way through `take`."""

    def __init__(self, arguments: Sequence[Argument]) -> None:
        self.arguments = arguments
        self.warnings: list[str] = []
        self.exports: dict[str, str] = {}
        self.made = [typed(one, "driver") if one.option == "device" else None for one in arguments]
        self.express = {
            made.properties.get("id") for made in self.made if made is not None and made.name in _EXPRESS_PORTS
        }
        for one in arguments:
            if one.option == "fsdev" and one.value is not None:
                if (identifier := pairs_of(one, "fsdriver").get("id")) is not None:
                    self.exports[identifier] = one.value
            elif one.option == "virtfs" and one.value is not None:
                self._add_virtfs(one)

    def _add_virtfs(self, argument: Argument) -> None:
        """A -device may name the export of a -virtfs."""
        pairs = pairs_of(argument, "fsdriver")
        tag = pairs.pop("mount_tag", "")
        pairs.setdefault("id", tag)
        self.exports.setdefault(pairs["id"], ",".join(f"{key}={escaped(value)}" for key, value in pairs.items()))

    def take(self) -> TakenDevices:
        devices: list[TakenDevice] = []
        rest: list[Argument | TakenDevice] = []
        for argument, made in zip(self.arguments, self.made, strict=True):
            device = self._device(argument, made)
            if device is not None:
                devices.append(device)
            rest.append(argument if device is None else device)
        if devices:
            rest = [one for one in rest if isinstance(one, TakenDevice) or not self._is_superfluous(one)]
            rest = _before_json(rest)
            self._check_others()
            self._check_slots()
        return TakenDevices(devices, rest, self.warnings)

    def _device(self, argument: Argument, made: Typed | None) -> TakenDevice | None:
        if argument.option == "virtfs" and argument.value is not None:
            pairs = pairs_of(argument, "fsdriver")
            return None if _asks_for_help(pairs) else TakenDevice(virtfs=argument.value)
        if made is None or made.name not in NAMES:
            return None
        name, properties = self._interface(made)
        text, placement = _split(name, made._replace(properties=properties))
        return TakenDevice(
            fsdev=self.exports.get(as_text(properties.get("fsdev"))),
            device=text,
            placement=placement,
            express=placement.get("bus") in self.express,
            is_json=made.is_json,
        )

    def _interface(self, made: Typed) -> tuple[str, dict[str, Any]]:
        """The name and the properties of our device, which has no legacy interface."""
        properties = dict(made.properties)
        if made.name == TRANSITIONAL:
            name = MODERN
        elif made.name != MODERN and as_text(properties.get("disable-legacy")) in _OFF:
            name = made.name
            del properties["disable-legacy"]
        else:
            return made.name, properties
        self.warnings.append(f"-device {made.name}: {_TRANSITIONAL_WARNING}")
        return name, properties

    def _is_superfluous(self, argument: Argument) -> bool:
        """Whether it is an export of devices that were taken, and of no other."""
        if argument.option != "fsdev" or argument.value is None:
            return False
        identifier = pairs_of(argument, "fsdriver").get("id")
        users = {
            made.name
            for made in self.made
            if made is not None and "fsdev" in made.properties and as_text(made.properties["fsdev"]) == identifier
        }
        return bool(users) and users <= NAMES

    def _check_others(self) -> None:
        """What other options say about the devices that were taken would be lost."""
        taken = {("device", made.properties.get("id")) for made in self.made if made is not None and made.name in NAMES}
        taken |= {("fsdev", identifier) for identifier in self.exports}
        for argument in self.arguments:
            value = argument.value or ""
            if argument.option == "set":
                group, _, rest = value.partition(".")
                if (group, rest.partition(".")[0]) in taken:
                    raise ConfigError("-set", f"{value!r} is about a 9p device: write it behind -{group} instead")
            elif argument.option == "global":
                driver, _, rest = value.partition(".")
                if "=" in driver:
                    driver = parse_pairs(value).get("driver", "")
                if driver in _GLOBALS:
                    raise ConfigError("-global", f"{value!r} is about 9p devices: write it behind -device instead")
                if driver in _ANCESTORS:
                    self.warnings.append(f"-global {value}: not for the 9p devices, which are not QEMU's any more")
            elif argument.option == "daemonize":
                raise ConfigError("-daemonize", "the devices end with this command: start it in the background instead")
            elif argument.option == "readconfig":
                self.warnings.append(f"-readconfig {value}: 9p devices and memory that it describes are not looked at")

    def _check_slots(self) -> None:
        """Warn if devices without an address come into existence in another order than before."""
        unplaced: set[Any] = set()
        for argument, made in zip(self.arguments, self.made, strict=True):
            if argument.option == "virtfs":
                unplaced.add(None)
            elif argument.option == "drive" and pairs_of(argument, "file").get("if") == "virtio":
                if None in unplaced:
                    self._warn_of_slot("-drive if=virtio")
                    return
            elif made is None or made.is_json or "addr" in made.properties:
                continue
            elif made.name in NAMES:
                unplaced.add(made.properties.get("bus"))
            elif made.properties.get("bus") in unplaced and _NOT_PCI.fullmatch(made.name) is None:
                self._warn_of_slot(made.name)
                return

    def _warn_of_slot(self, name: str) -> None:
        self.warnings.append(
            f"the guest will find {name} in another PCI slot than without pyvirtfs, because QEMU makes it before the "
            "9p device in front of it; addr= behind -device (for -virtfs: -fsdev and -device) prevents that"
        )


def _asks_for_help(pairs: Mapping[str, str]) -> bool:
    return pairs.get("fsdriver") in HELP or not HELP.isdisjoint(pairs)


def _before_json(rest: Sequence[Argument | TakenDevice]) -> list[Argument | TakenDevice]:
    """Put devices that were not JSON before the first that was."""

    def is_json(one: Argument | TakenDevice) -> bool:
        if isinstance(one, TakenDevice):
            return one.is_json
        return one.option == "device" and (one.value or "").startswith("{")

    first = next((index for index, one in enumerate(rest) if is_json(one)), len(rest))
    late = [one for one in rest[first:] if isinstance(one, TakenDevice) and not one.is_json]
    return [*rest[:first], *late, *(one for one in rest[first:] if not any(one is moved for moved in late))]
