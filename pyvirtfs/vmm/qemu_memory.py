"""Guest RAM that a device outside of QEMU can reach: the command line is changed so that all of it is shared.

A memfd or a file that is not shared is worse than none: QEMU passes a descriptor of it, behind which the pages are not
the guest's, and the guest waits for ever for answers that it cannot see.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Sequence
from decimal import Decimal
from typing import Final

from pyvirtfs.errors import ConfigError
from pyvirtfs.fsdev.options import parse_bool
from pyvirtfs.vmm.qemu_arguments import (
    Argument,
    Typed,
    as_text,
    changed,
    escaped,
    make,
    pairs_of,
    typed,
    with_pair,
)

DEFAULT_NBYTES: Final = 128 << 20
"""QEMU's guest RAM if nothing is said."""
_ALIGNMENT: Final = 8192
"""QEMU makes RAM larger than asked for until it is a multiple of this."""
_MEMFD: Final = "memory-backend-memfd"
_FILE: Final = "memory-backend-file"
_BACKENDS: Final = frozenset({_MEMFD, _FILE, "memory-backend-shm", "memory-backend-ram"})
_KEEPS_FILE: Final = frozenset({"nvdimm", "virtio-pmem-pci", "virtio-pmem"})
"""Devices whose memory is the content of a file, and not RAM."""
_CONFIDENTIAL: Final = ("confidential-guest-support", "memory-encryption")
_UNITS: Final = {unit: 1024**power for power, unit in enumerate("BKMGTPE")}
_SIZE: Final = re.compile(r"[ \t\n\v\f\r]*\+?(\d+\.?\d*|\.\d+)([BKMGTPE]?)", re.ASCII | re.IGNORECASE)


_UNSEALED: Final = "such RAM can shrink, which --strict-memory refuses; a memory-backend-memfd with small pages cannot"


def parse_size(option: str, text: str) -> int:
    """A size in bytes; a fraction is possible before a unit.

    Raises:
        ConfigError: It is none.
    """
    found = _SIZE.fullmatch(text)
    number = Decimal(found[1]) if found else Decimal()
    unit = _UNITS[found[2].upper() or "B"] if found else 1
    nbytes = int(number * unit)
    if found is None or nbytes >= 1 << 64 or (unit == 1 and number != nbytes):
        raise ConfigError(option, f"{text!r} is not a size (a number and one of the units K, M, G, T, P, E)")
    return nbytes


def ram_nbytes(arguments: Sequence[Argument]) -> int:
    """Bytes of RAM that the guest has in the beginning, as `-m` and `-machine memory.size=` have it.

    Raises:
        ConfigError: That is no size.
    """
    machine = sugar = 0
    for argument in arguments:
        if argument.option in {"machine", "M"} and (size := pairs_of(argument, "type").get("memory.size")):
            machine = parse_size("-machine memory.size", size)
        elif argument.option == "m" and (size := pairs_of(argument, "size").get("size")):
            sugar = parse_size("-m", size + "M" if size[-1].isdigit() else size)
    nbytes = sugar or machine or DEFAULT_NBYTES
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT


def share(arguments: Sequence[Argument], *, strict: bool = False) -> tuple[list[Argument], list[str]]:
    """The command line with all RAM of the guest shared, and warnings.

    Args:
        arguments: The command line.
        strict: Refuse RAM that can shrink: anything but a sealed memfd.

    Raises:
        ConfigError: The guest's RAM cannot be shared as the command line wants it.
    """
    return _Sharing(arguments, strict).share()


class _Sharing:
    """One command line on its way through `share`."""

    def __init__(self, arguments: Sequence[Argument], strict: bool) -> None:
        self.arguments = list(arguments)
        self.strict = strict
        self.warnings: list[str] = []
        self.backends: dict[str, tuple[int, Typed]] = {}
        self.identifiers: set[str] = set()
        for index, argument in enumerate(self.arguments):
            made = typed(argument, "qom-type") if argument.option == "object" else None
            if made is not None:
                identifier = as_text(made.properties.get("id"))
                self.identifiers.add(identifier)
                if made.name in _BACKENDS:
                    self.backends[identifier] = index, made

    def share(self) -> tuple[list[Argument], list[str]]:
        machine = self._machine()
        for option in _CONFIDENTIAL:
            if option in machine:
                raise ConfigError("-machine", f"{option}={machine[option]}: nothing outside of QEMU can use such RAM")
        memdevs = self._memdevs()
        used = {memdev for memdev, device in memdevs if device not in _KEEPS_FILE}
        if "memory-backend" in machine:
            used.add(machine["memory-backend"])
        for memdev, device in memdevs:
            if device in _KEEPS_FILE and memdev not in used and self._is_private(memdev):
                self.warnings.append(
                    f"-device {device},memdev={memdev} is not shared: the guest must not read or write files of the "
                    "9p device straight from or to it (as with DAX)"
                )
        for identifier in sorted(used & set(self.backends)):
            self._share_backend(*self.backends[identifier])
        if "memory-backend" not in machine and not any(device == "numa" for _, device in memdevs):
            self._add()
        return self.arguments, self.warnings

    def _machine(self) -> dict[str, str]:
        """What all `-machine` say together."""
        found: dict[str, str] = {}
        for argument in self.arguments:
            if argument.option in {"machine", "M"}:
                found.update(pairs_of(argument, "type"))
        return found

    def _memdevs(self) -> list[tuple[str, str]]:
        """The memory backends that nodes and devices have, and what has them."""
        found = []
        for argument in self.arguments:
            if argument.option == "numa" and "memdev" in (pairs := pairs_of(argument, "type")):
                found.append((pairs["memdev"], "numa"))
            made = typed(argument, "driver") if argument.option == "device" else None
            if made is not None and "memdev" in made.properties:
                found.append((as_text(made.properties["memdev"]), made.name))
        return found

    def _add(self) -> None:
        """Guest RAM of our own making, where the person leaves it to QEMU."""
        nbytes = ram_nbytes(self.arguments)
        identifier = next(
            name for number in range(len(self.identifiers) + 1)
            if (name := f"pyvirtfs-ram{number or ''}") not in self.identifiers
        )  # fmt: skip
        size = f"{nbytes >> 20}M" if nbytes % (1 << 20) == 0 else str(nbytes)
        backend = f"{_MEMFD},id={identifier},size={size},share=on"
        paths = [one.value for one in self.arguments if one.option == "mem-path" and one.value is not None]
        if paths and self.strict:
            raise ConfigError("-mem-path", f"{paths[-1]!r}: {_UNSEALED}")
        if paths and _has_content(paths[-1]):
            self.warnings.append(f"-mem-path {paths[-1]}: the file has content, which the guest's RAM will change")
        if paths:  # what it stands for; with a backend that is named, QEMU does not take it
            backend = f"{_FILE},id={identifier},size={size},mem-path={escaped(paths[-1])},share=on"
            self.arguments = [one for one in self.arguments if one.option != "mem-path"]
        machines = [
            (index, one, one.value)
            for index, one in enumerate(self.arguments)
            if one.option in {"machine", "M"} and one.value is not None
        ]
        if machines:
            at, last, value = machines[-1]
            self.arguments[at] = changed(last, with_pair(value, "memory-backend", identifier))
        else:
            at = 0
            self.arguments.insert(at, make("machine", f"memory-backend={identifier}"))
        self.arguments.insert(at, make("object", backend))

    def _is_private(self, identifier: str) -> bool:
        found = self.backends.get(identifier)
        return found is not None and found[1].name == _FILE and not _is_on(found[1], "share", False)

    def _share_backend(self, index: int, made: Typed) -> None:
        """Let a backend be shared that the person has described."""
        properties = made.properties
        subject = f"-object {made.name},id={as_text(properties.get('id'))}"
        if self.strict and not _is_sealed(made):
            raise ConfigError(subject, _UNSEALED)
        said = as_text(properties["share"]) if "share" in properties else None
        if said is not None and parse_bool("share", said):
            return
        if _is_on(made, "readonly", False):
            return  # nothing can be written there
        argument = self.arguments[index]
        reason = "else the device would see a copy of the guest's RAM, and the guest would hang"
        if said is None and made.name == _FILE and _has_content(path := as_text(properties.get("mem-path"))):
            raise ConfigError(
                subject, f"{path!r} has content, which shared RAM would change: say share=on if that is meant"
            )
        if said is not None and made.name == _FILE:
            raise ConfigError(subject, f"share={said}: it must be share=on, which changes the file; {reason}")
        if said is not None:
            self.warnings.append(f"{subject}: share={said} has become share=on: {reason}")
        if made.is_json:
            value = json.dumps({"qom-type": made.name, **properties, "share": True}, separators=(",", ":"))
        else:
            value = with_pair(argument.value or "", "share", "on")
        self.arguments[index] = changed(argument, value)


def _has_content(path: str) -> bool:
    """Whether this is an ordinary file with something in it, which QEMU would only read if nobody told it to share."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size > 0


def _is_on(made: Typed, name: str, default: bool) -> bool:
    return parse_bool(name, as_text(made.properties.get(name, default)))


def _is_sealed(made: Typed) -> bool:
    """Whether QEMU seals it, so that it cannot shrink; huge pages are never sealed."""
    return made.name == _MEMFD and _is_on(made, "seal", True) and not _is_on(made, "hugetlb", False)
