"""libvirt's domain XML: what its ``<filesystem>`` elements describe, in the words of `-fsdev` and `-device`.

Elements, attributes and defaults are those of libvirt's "Domain XML format", section "Filesystems". Two that libvirt
has for other hypervisors, ``<idmap>`` and the space limits, mean the same here. What would be lost is told: each
unknown name is a warning, or is refused where somebody may have meant it to protect something.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from pyvirtfs.errors import ConfigError
from pyvirtfs.fsdev.options import check_identifier, parse_bool, parse_number
from pyvirtfs.vmm.libvirt_xml import Element, parse
from pyvirtfs.vmm.qemu_arguments import escaped

_HYPERVISORS: Final = ("kvm", "qemu")
_TYPES: Final = {
    "template": "is for OpenVZ",
    "file": "is an image for LXC",
    "block": "is a block device for LXC",
    "ram": "is a RAM file system for LXC",
    "bind": "is for LXC",
    "volume": "is a volume of a storage pool, for bhyve and LXC",
}
_DRIVERS: Final = {
    "virtiofs": "is virtiofsd's, which is another device: leave it to libvirt",
    "handle": "is gone from QEMU since 2018: take 'path'",
    "loop": "is LXC's",
    "nbd": "is LXC's",
    "ploop": "is Virtuozzo's",
    "mtp": "is QEMU's usb-mtp, which is another device: leave it to libvirt",
}
_ACCESS_MODES: Final = {"passthrough": "passthrough", "mapped": "mapped", "squash": "none"}
"""libvirt's word and QEMU's security model."""
_MODELS: Final = {
    "virtio": "virtio-9p-pci",
    "virtio-transitional": "virtio-9p-pci-transitional",
    "virtio-non-transitional": "virtio-9p-pci-non-transitional",
}
_SWITCHES: Final = {"iommu": "iommu_platform", "ats": "ats", "packed": "packed", "page_per_vq": "page-per-vq"}
_ATTRIBUTES: Final[Mapping[str, Collection[str]]] = {
    "filesystem": ("type", "accessmode", "fmode", "dmode", "multidevs", "model"),
    "driver": ("type", "wrpolicy", *_SWITCHES),
    "source": ("dir",),
    "target": ("dir",),
    "readonly": (),
    "address": ("type", "domain", "bus", "slot", "function", "multifunction"),
    "alias": ("name",),
    "acpi": ("index",),
    "idmap": (),
    "uid": ("start", "target", "count"),
    "gid": ("start", "target", "count"),
    "space_hard_limit": ("unit",),
    "space_soft_limit": ("unit",),
}
"""Each element that is read, and its attributes."""
_CHILDREN: Final[Mapping[str, Collection[str]]] = {
    "filesystem": _ATTRIBUTES.keys() - {"filesystem", "uid", "gid"},
    "idmap": ("uid", "gid"),
}
_REFUSED: Final = {
    "<binary>": "is virtiofsd's",
    "<boot>": "no firmware boots from a 9p device (libvirt refuses it as well)",
    "<driver queue=>": "is virtiofsd's",
    "<driver format=>": "is LXC's",
    "<source socket=>": "is virtiofsd's",
    **{
        f"<source {name}=>": "belongs to another type than 'mount'"
        for name in ("name", "file", "dev", "pool", "volume", "usage", "units")
    },
}
_PROTECTING: Final = re.compile(
    r"(is)?read_?-?only|ro|((access|security|f|d)_?-?)?mode|security_?-?model|squash|[ug]?id_?-?maps?|seclabel|sandbox"
    r"|.*limit|quota|u?mask|multi_?-?devs",
    re.IGNORECASE,
)
"""Names that are not known here, and that somebody may count on."""
_EXPRESS_PORTS: Final = ("pcie-root-port", "pcie-switch-downstream-port")
_EXPRESS_MACHINES: Final = re.compile(r"(pc-)?q35.*|virt.*")
_USER_ALIAS: Final = "ua-"
_POWERS: Final = "kmgtpe"
_MOST_BYTES: Final = (1 << 64) - 1
_MOST_IDS: Final = (1 << 32) - 1
_MODE_BITS: Final = 0o777


@dataclass(frozen=True, slots=True, kw_only=True)
class Filesystem:
    """One ``<filesystem>``, as QEMU's command line would have it."""

    element: Element
    target: str
    """What the guest mounts."""
    export: Mapping[str, str]
    """The options of `-fsdev local`."""
    model: str
    """The name of the device."""
    properties: Mapping[str, str]
    """The properties of `-device`."""
    express: bool
    """Whether it is behind a PCI Express port."""

    @property
    def label(self) -> str:
        """What to call it in messages."""
        return _label(self.element)

    @property
    def fsdev(self) -> str:
        """The value of `-fsdev`."""
        return _options("local", self.export)

    @property
    def device(self) -> str:
        """The value of `-device`."""
        return _options(self.model, self.properties)


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """A domain, of which only the file systems are looked at closely."""

    name: str
    document: bytes
    root: Element
    devices: Element
    filesystems: Sequence[Filesystem]
    warnings: Sequence[str]


def read(document: bytes, source: str, only: Collection[str] = ()) -> Domain:
    """The file systems that a domain describes.

    Args:
        document: libvirt's XML, as ``virsh dumpxml`` prints it.
        source: What to call it in messages.
        only: Leave file systems with other targets than these alone; empty: take all.

    Raises:
        ConfigError: It is no such XML, or something in it is wrong or cannot be done here. A file system is named by
            its target and its line.
    """
    root = parse(document, source)
    if root.name != "domain":
        raise ConfigError(source, f"is no domain of libvirt: its root element is <{root.name}>")
    kind = root.attributes.get("type")
    if kind not in _HYPERVISORS:
        raise ConfigError(source, f"domain type {kind!r} has no vfio-user devices", _HYPERVISORS)
    name = root.first("name")
    parts = list(root.all("devices")) or [Element("devices", {}, 1, 0, 0)]
    if len(parts) > 1:  # libvirt reads them all
        lines = " and ".join(str(part.line) for part in parts[:2])
        raise ConfigError(source, f"has more than one <devices>, in lines {lines}: put all devices into one")
    (devices,) = parts
    elements = list(devices.all("filesystem"))
    if not elements:
        raise ConfigError(source, "there is no <filesystem> in it")
    if only:
        targets = [_target(element) for element in elements]
        for wanted in only:
            if wanted not in targets:
                raise ConfigError(
                    "--only", f"there is no <filesystem> with the target {wanted!r}", filter(None, targets)
                )
        elements = [element for element in elements if _target(element) in only]
    buses, warnings = _Buses(root, devices), list[str]()
    filesystems = [_Reader(element, f"fs{number}", buses, warnings).read() for number, element in enumerate(elements)]
    _check_unique(filesystems)
    return Domain(
        name=name.text.strip() if name is not None else "",
        document=document,
        root=root,
        devices=devices,
        filesystems=filesystems,
        warnings=warnings,
    )


def scaled(option: str, text: str, unit: str | None) -> int:
    """A number of bytes with a unit, as libvirt's scaled integers are: ``B``; ``K``, ``KiB``; ``KB``; up to ``E``.

    The letter alone and the one with ``iB`` are powers of 1024, the one with ``B`` is one of 1000; case is ignored.

    Raises:
        ConfigError: It is none, or does not fit into 64 bits.
    """
    digits = text.strip()
    if re.fullmatch(r"\+?[0-9]+", digits) is None:
        raise ConfigError(option, f"{text!r} is not a number of bytes")
    factor = _factor(unit or "byte")
    if factor is None:
        raise ConfigError(
            option, f"{unit!r} is not a unit", ("bytes", "KB", "KiB", "MB", "MiB", "GB", "GiB", "TB", "TiB")
        )
    value = int(digits) * factor if len(digits) <= 32 else _MOST_BYTES + 1
    if value > _MOST_BYTES:
        raise ConfigError(option, f"{digits[:32]} {unit or 'bytes'} are more than 64 bits can say")
    return value


def _factor(unit: str) -> int | None:
    unit = unit.lower() if unit.isascii() else "?"
    if unit in {"b", "byte", "bytes"}:
        return 1
    base: int | None = {"": 1024, "ib": 1024, "b": 1000}.get(unit[1:])
    if base is None or unit[0] not in _POWERS:
        return None
    return int(base ** (_POWERS.index(unit[0]) + 1))


def _label(element: Element) -> str:
    target = _target(element)
    return f"filesystem {target!r} (line {element.line})" if target else f"filesystem in line {element.line}"


def _target(element: Element) -> str:
    target = element.first("target")
    return "" if target is None else target.attributes.get("dir", "")


def _options(first: str, pairs: Mapping[str, str]) -> str:
    return ",".join([escaped(first), *(f"{key}={escaped(value)}" for key, value in pairs.items())])


def _check_unique(filesystems: Sequence[Filesystem]) -> None:
    seen: dict[tuple[str, ...], Filesystem] = {}
    for one in filesystems:
        keys: list[tuple[str, ...]] = [("target", one.target)]
        if "id" in one.properties:
            keys.append(("alias", one.properties["id"]))
        if "addr" in one.properties:
            keys.append(("address", one.properties["bus"], one.properties["addr"]))
        for key in keys:
            other = seen.setdefault(key, one)
            if other is not one:
                raise ConfigError(one.label, f"its {key[0]} is that of {other.label}")


class _Buses:
    """The PCI buses of a domain, by the names that libvirt gives them on QEMU's command line."""

    def __init__(self, root: Element, devices: Element) -> None:
        self.controllers = {
            one.attributes.get("index", ""): one
            for one in devices.all("controller")
            if one.attributes.get("type") == "pci"
        }
        system = root.first("os")
        kind = None if system is None else system.first("type")
        machine = "" if kind is None else kind.attributes.get("machine", "")
        first = self.controllers.get("0")
        model = "" if first is None else first.attributes.get("model", "")
        self.root = "pcie.0" if model == "pcie-root" or _EXPRESS_MACHINES.fullmatch(machine) else "pci.0"

    def find(self, number: int) -> tuple[str, bool]:
        """The name of a bus, and whether it is behind a PCI Express port."""
        if number == 0:
            return self.root, False
        found = self.controllers.get(str(number))
        if found is None:
            raise ConfigError(
                "address",
                f"bus {number:#x} has no <controller type='pci' index='{number}'>, which libvirt adds for its own "
                "devices alone: take the XML that virsh dumpxml prints",
            )
        return _user_alias(found) or f"pci.{number}", found.attributes.get("model") in _EXPRESS_PORTS


def _user_alias(element: Element) -> str | None:
    """The alias that a person has given to a device; libvirt replaces all others, and so do we."""
    alias = element.first("alias")
    name = "" if alias is None else alias.attributes.get("name", "")
    return name if name.startswith(_USER_ALIAS) else None


@dataclass(slots=True)
class _Reader:
    """One ``<filesystem>`` on its way through `read`."""

    element: Element
    name: str
    """What libvirt would call it."""
    buses: _Buses
    warnings: list[str]
    export: dict[str, str] = field(default_factory=dict)
    properties: dict[str, str] = field(default_factory=dict)
    express: bool = False

    def read(self) -> Filesystem:
        with naming(_label(self.element)):
            self._type()
            self._check_names(self.element)
            alias = _user_alias(self.element)
            if alias is not None:
                self.properties["id"] = check_identifier("alias", alias)
            identifier = f"fsdev-{alias or self.name}"
            self.properties["fsdev"] = self.export["id"] = identifier
            self._folder()
            self._access()
            self._driver()
            self._limits()
            self._place()
            model = self._choice(self.element, "model", "virtio", _MODELS)
            return Filesystem(
                element=self.element,
                target=self.properties["mount_tag"],
                export=self.export,
                model=_MODELS[model],
                properties=self.properties,
                express=self.express,
            )

    def _check_names(self, element: Element) -> None:
        """Everything that stands there is known, or else somebody learns of it."""
        for name in element.attributes:
            written = f"<{element.name} {name}=>"
            if written in _REFUSED:
                raise ConfigError(written, _REFUSED[written])
            if name not in _ATTRIBUTES[element.name]:
                self._unknown(written, name)
        for child in element.children:
            written = f"<{child.name}>"
            if written in _REFUSED:
                raise ConfigError(written, _REFUSED[written])
            if child.name not in _CHILDREN.get(element.name, ()):
                self._unknown(written, child.name)
                continue
            if element is self.element and element.first(child.name) is not child:
                raise ConfigError(written, f"stands there twice, again in line {child.line}")
            self._check_names(child)

    def _unknown(self, written: str, name: str) -> None:
        if _PROTECTING.fullmatch(name):
            raise ConfigError(written, "is nothing that libvirt has there, and looks as if somebody counted on it")
        self.warnings.append(f"{_label(self.element)}: {written} is not known, and has no effect")

    def _choice(self, element: Element, name: str, default: str, choices: Collection[str]) -> str:
        value = element.attributes.get(name, default)
        if value not in choices:
            raise ConfigError(name, f"{value!r} is not a known value", choices)
        return value

    def _type(self) -> None:
        kind = self.element.attributes.get("type", "mount")
        if kind != "mount":
            raise ConfigError("type", f"{kind!r} {_TYPES.get(kind, 'is not a known value')}", ("mount",))
        driver = self.element.first("driver")
        if driver is not None and (kind := driver.attributes.get("type", "path")) != "path":
            raise ConfigError("driver type", f"{kind!r} {_DRIVERS.get(kind, 'is not a known value')}", ("path",))

    def _folder(self) -> None:
        source = self.element.first("source")
        path = "" if source is None else source.attributes.get("dir", "")
        if not path.startswith("/"):
            raise ConfigError("source", f"{path!r} is not an absolute path" if path else "its attribute dir is missing")
        target = _target(self.element)
        if not target:
            raise ConfigError("target", "its attribute dir, which names what the guest mounts, is missing")
        self.export["path"] = path
        self.properties["mount_tag"] = target

    def _access(self) -> None:
        access = self._choice(self.element, "accessmode", "passthrough", _ACCESS_MODES)
        self.export["security_model"] = _ACCESS_MODES[access]
        for name in ("fmode", "dmode"):
            text = self.element.attributes.get(name)
            if text is None:
                continue
            if access != "mapped":
                raise ConfigError(name, f"has no meaning with accessmode='{access}', only with 'mapped'")
            if re.fullmatch(r"[0-7]{1,8}", text) is None or (mode := int(text, 8)) > _MODE_BITS:
                raise ConfigError(name, f"{text!r} is not a mode (octal, 0 to 777)")
            self.export[name] = f"{mode:04o}"  # -fsdev takes a number for octal if a zero stands in front
        multidevs = self._choice(self.element, "multidevs", "default", ("default", "remap", "forbid", "warn"))
        if multidevs != "default":
            self.export["multidevs"] = multidevs
        if self.element.first("readonly") is not None:
            self.export["readonly"] = "on"

    def _driver(self) -> None:
        driver = self.element.first("driver")
        if driver is None:
            return
        if self._choice(driver, "wrpolicy", "default", ("default", "immediate")) == "immediate":
            self.export["writeout"] = "immediate"
        for name, key in _SWITCHES.items():
            if name in driver.attributes:
                self.properties[key] = self._choice(driver, name, "", ("on", "off"))

    def _limits(self) -> None:
        idmap = self.element.first("idmap")
        for name in ("uid", "gid"):
            entries = [] if idmap is None else list(idmap.all(name))
            if entries:
                self.export[f"{name}map"] = "+".join(map(_id_range, entries))
        for name in ("space_hard_limit", "space_soft_limit"):
            limit = self.element.first(name)
            if limit is not None and (nbytes := scaled(name, limit.text, limit.attributes.get("unit"))):
                self.export[name] = str(nbytes)

    def _place(self) -> None:
        """Where the guest finds it."""
        acpi = self.element.first("acpi")
        if acpi is not None and "index" in acpi.attributes:
            self.properties["acpi-index"] = str(_number("acpi", acpi.attributes["index"], _MOST_IDS))
        address = self.element.first("address")
        kind = "pci" if address is None else address.attributes.get("type")
        if kind != "pci":
            raise ConfigError("address", f"type {kind!r} is no place for a PCI device", ("pci",))
        given = {} if address is None else address.attributes
        highest = {"domain": 0, "bus": 0xFF, "slot": 0x1F, "function": 7}
        _, bus, slot, function = (
            _number("address", given.get(name, "0"), most, name) for name, most in highest.items()
        )
        if not (bus or slot):  # the place of the host bridge; to libvirt it is no address, too
            self.warnings.append(
                f"{_label(self.element)}: it has no PCI address, so QEMU chooses one, which may change with the "
                "domain: virsh dumpxml prints those that libvirt has chosen"
            )
            return
        self.properties["bus"], self.express = self.buses.find(bus)
        self.properties["addr"] = f"{slot:#x}.{function:#x}" if function else f"{slot:#x}"
        if parse_bool("multifunction", given.get("multifunction", "off")):
            self.properties["multifunction"] = "on"


def _id_range(element: Element) -> str:
    """``GUEST:HOST:COUNT`` of a range; libvirt's start is the guest's first id, its target the host's."""
    numbers = []
    for name, least in (("start", 0), ("target", 0), ("count", 1)):
        text = element.attributes.get(name)
        if text is None:
            raise ConfigError(f"idmap {element.name}", f"its attribute {name} is missing")
        number = _number(f"idmap {element.name}", text, _MOST_IDS, name)
        if number < least:
            raise ConfigError(f"idmap {element.name}", f"{name} {text!r} maps nobody")
        numbers.append(number)
    return ":".join(map(str, numbers))


def _number(option: str, text: str, most: int, name: str = "index") -> int:
    number = parse_number(option, text)
    if number > most:
        raise ConfigError(option, f"{name} {text!r} is more than {most:#x}" if most else f"{name} {text!r} is not 0")
    return number


@contextmanager
def naming(label: str) -> Iterator[None]:
    """A ConfigError from within tells which file system it is about."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{label}: {error.option}", error.problem, error.choices) from None
