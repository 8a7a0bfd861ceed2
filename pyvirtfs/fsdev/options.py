"""QEMU's option syntax, and tables that say which options there are.

The syntax is that of QEMU's manual page: ``key=value,key=value``, a comma inside a value written twice, the first value
without its key (``-fsdev local,...``), a lone key for a switch (``readonly`` means ``readonly=on``), and the last one
counts where a key is given twice.

A driver declares its options as an `OptionTable`; whatever somebody writes is checked against it, and a mistake is a
`ConfigError` that names the option, what it got and what it may be.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal, NoReturn, TypeAlias

from pyvirtfs.errors import ConfigError

OptionValue: TypeAlias = str | int | bool | None
"""What an option means: None stands for *not given, and there is no default*."""

OptionType: TypeAlias = Literal["str", "bool", "number", "size", "mode", "choice"]
"""``number`` is a count, ``size`` bytes, ``mode`` the permission bits of a file."""

_SWITCH: Final = {
    "on": True, "yes": True, "true": True, "y": True,
    "off": False, "no": False, "false": False, "n": False,
}  # fmt: skip
_NUMBER: Final = re.compile(r"0[xX](?P<hexadecimal>[0-9a-fA-F]+)|(?P<octal>0[0-7]*)|(?P<decimal>[1-9][0-9]*)")
_MOST: Final = (1 << 64) - 1
_SIZE: Final = re.compile(r"0[xX](?P<hexadecimal>[0-9a-fA-F]+)|(?P<decimal>0|[1-9][0-9]*)(?P<unit>[bkmgtpeBKMGTPE]?)")
_UNITS: Final = ("b", "k", "m", "g", "t", "p", "e")
"""Each is 1024 of the one before."""
_MOST_BYTES: Final = (1 << 63) - 1
_PERMISSIONS: Final = 0o777
_IDENTIFIER: Final = re.compile(r"[A-Za-z][A-Za-z0-9._-]*")

_log = logging.getLogger(__name__)


def _split(text: str) -> Iterator[str]:
    """The parts between single commas, with doubled commas made single."""
    part: list[str] = []
    at = 0
    while True:
        comma = text.find(",", at)
        if comma < 0:
            part.append(text[at:])
            yield "".join(part)
            return
        if text.startswith(",,", comma):
            part.append(text[at : comma + 1])
            at = comma + 2
            continue
        part.append(text[at:comma])
        yield "".join(part)
        part = []
        at = comma + 1


def parse_pairs(text: str, first_key: str | None = None, *, option: str | None = None) -> dict[str, str]:
    """Split an option string.

    Args:
        text: What stands behind ``-fsdev``, ``-virtfs`` or ``-device``.
        first_key: The key that may be left out at the first value.
        option: What the person wrote in front of `text`, for messages; None: `first_key`.

    Returns:
        The values by key, in the order written. A lone key has the value ``on``.

    Raises:
        ConfigError: A part has no key.
    """
    pairs: dict[str, str] = {}
    if not text:
        return pairs
    for index, part in enumerate(_split(text)):
        key, equals, value = part.partition("=")
        if not equals:
            if index == 0 and first_key is not None:
                key, value = first_key, part
            else:
                value = "on"
        if not key:
            if not part and index:
                continue  # QEMU, too, overlooks a comma at the end
            raise ConfigError(option or first_key or "options", f"an option has no name in {text!r}")
        pairs.pop(key, None)
        pairs[key] = value
    return pairs


def parse_bool(option: str, text: str) -> bool:
    """The value of a switch.

    Raises:
        ConfigError: It is none of QEMU's words for on and off.
    """
    value = _SWITCH.get(text)
    if value is None:
        raise ConfigError(option, f"{text!r} is not a switch position", ("on", "off"))
    return value


def parse_number(option: str, text: str) -> int:
    """A number that is not negative; ``0x`` makes it hexadecimal, a leading ``0`` octal, as strtoul(3) with base 0.

    Raises:
        ConfigError: It is none, or has more than 64 bits.
    """
    found = _NUMBER.fullmatch(text)
    if found is None:
        suffix = ": there is no suffix" if re.fullmatch(r"[0-9]+[a-zA-Z]+", text) else ""
        raise ConfigError(option, f"{text!r} is not a number{suffix} (decimal, 0x hexadecimal, 0 octal)")
    base = {"hexadecimal": 16, "octal": 8, "decimal": 10}[str(found.lastgroup)]
    return _integer(option, text, found[str(found.lastgroup)], base, _MOST)


def parse_size(option: str, text: str) -> int:
    """A number of bytes: decimal, with a suffix that says of what (``k`` is 1024, ...), or ``0x`` hexadecimal.

    Raises:
        ConfigError: It is none, or more than 2**63 - 1, the largest offset in a file.
    """
    found = _SIZE.fullmatch(text)
    if found is None:
        if re.fullmatch(r"0[0-9]+[a-zA-Z]?", text):
            raise ConfigError(option, f"{text!r} begins with 0: write {text.lstrip('0') or '0'}, sizes are never octal")
        raise ConfigError(
            option,
            f"{text!r} is not a size: a whole number, with b, k, M, G, T, P or E behind it (k is 1024 bytes, M 1024 k,"
            " ...), or 0x and hexadecimal digits",
        )
    if found["hexadecimal"] is not None:
        return _integer(option, text, found["hexadecimal"], 16, _MOST_BYTES)
    factor = 1024 ** _UNITS.index(found["unit"].lower() or "b")
    return _integer(option, text, found["decimal"], 10, _MOST_BYTES, factor)


def _integer(option: str, text: str, digits: str, base: int, most: int, factor: int = 1) -> int:
    # Python reads no number of thousands of digits, and says so with a ValueError.
    value = int(digits, base) * factor if len(digits.lstrip("0")) <= 64 else most + 1
    if value > most:
        raise ConfigError(option, f"{text[:32]!r}{'...' * (len(text) > 32)} is more than {most}")
    return value


def format_size(nbytes: int) -> str:
    """A number of bytes as `parse_size` reads it, as short as can be."""
    power = 0
    while nbytes and nbytes % 1024 == 0:
        nbytes //= 1024
        power += 1
    return f"{nbytes}{('', 'k', 'M', 'G', 'T', 'P', 'E')[power]}"


def parse_mode(option: str, text: str) -> int:
    """Permission bits. A number as for QEMU: without a ``0`` in front it is decimal, which nobody means.

    So what cannot be meant is refused, and a warning tells what may not be meant. As in QEMU only the permission bits
    of an octal number count.

    Raises:
        ConfigError: It is not a number, or more than 0777 though not written in octal.
    """
    mode = parse_number(option, text)
    if text.startswith("0") and mode > _PERMISSIONS and text[1] not in "xX":
        _log.warning("%s: of %s only the permissions count: 0%o", option, text, mode & _PERMISSIONS)
        return mode & _PERMISSIONS
    as_octal = re.fullmatch(r"[1-7][0-7]{0,3}", text)
    if mode > _PERMISSIONS:
        hint = f"{text} is decimal here: write 0{text} for octal" if as_octal else "write it in octal, 0 in front"
        raise ConfigError(option, f"{text[:32]!r} is no mode from 0 to 0777: {hint}")
    if as_octal and mode > 7:
        _log.warning("%s: %s is decimal here, which is 0%o: write 0%s if octal is meant", option, text, mode, text)
    return mode


def check_identifier(option: str, text: str) -> str:
    """The identifier again: a letter, then letters, digits, ``-``, ``.``, ``_``.

    Raises:
        ConfigError: It is not well formed.
    """
    if _IDENTIFIER.fullmatch(text) is None:
        raise ConfigError(option, f"{text!r} is not an identifier (a letter, then letters, digits, '-', '.', '_')")
    return text


_PARSERS: Final[Mapping[str, Callable[[str, str], OptionValue]]] = {
    "bool": parse_bool, "number": parse_number, "size": parse_size, "mode": parse_mode,
}  # fmt: skip


def unknown(name: str, problem: str, known: Iterable[str], choices: Iterable[str] | None = None) -> ConfigError:
    """The error for a name that there is not: it tells those that look alike, or else what there is.

    Args:
        name: As written.
        problem: What is to be said of it.
        known: The names that there are.
        choices: How they are listed if none looks alike; None: as they are.
    """
    import difflib  # noqa: PLC0415  # for mistakes only

    known = list(known)
    alike = difflib.get_close_matches(name.lower(), known)
    if alike:
        return ConfigError(name, f"{problem}; did you mean {' or '.join(alike)}?")
    return ConfigError(name, problem, known if choices is None else choices)


_EXPLAINED: Final = {
    "size": "a whole number, with k, M, G, T, P or E behind it if wanted: 64k is 65536",
    "mode": "octal with 0 in front: 0644",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One option of a driver, as declared."""

    name: str
    type: OptionType = "str"
    help: str = ""
    default: OptionValue = None
    required: bool = False
    choices: tuple[str, ...] = ()
    """For type ``choice``: every value that is known and works."""
    refused: Mapping[str, str] | None = None
    """For type ``choice``: values that are known and do not work, and why."""

    def parse(self, text: str) -> OptionValue:
        """What `text` means.

        Raises:
            ConfigError: It is not a value of this option.
        """
        if self.type in _PARSERS:
            return _PARSERS[self.type](self.name, text)
        if self.type == "choice" and text not in self.choices:
            reason = (self.refused or {}).get(text, "is not a known value")
            raise ConfigError(self.name, f"{text!r} {reason}", self.choices)
        return text

    def describe(self) -> str:
        """Its line in a list of options."""
        values = {"bool": "on|off", "choice": "|".join(self.choices)}.get(self.type, self.type)
        facts = [self.help] if self.help else []
        if self.required:
            facts.append("(required)")
        if self.default is not None:
            facts.append(f"(default: {self._shown(self.default)})")
        return f"{self.name}=<{values}>" + (f" - {' '.join(facts)}" if facts else "")

    def _shown(self, value: OptionValue) -> str:
        """A value as a person writes it."""
        if isinstance(value, bool):
            return "on" if value else "off"
        if isinstance(value, int) and self.type in {"size", "mode"}:
            return format_size(value) if self.type == "size" else f"0{value:o}"
        return str(value)


class OptionTable:
    """The options of one driver or device.

    Args:
        subject: What they belong to, for messages: ``fsdev driver 'local'``.
        options: The options, in the order in which help shows them.
        refused: Names that are known and do not work, and why; a name that ends in ``*`` stands for all that begin so.
    """

    __slots__ = ("_refused", "options", "subject")

    def __init__(self, subject: str, options: Iterable[Option], refused: Mapping[str, str] | None = None) -> None:
        self.subject = subject
        self.options: dict[str, Option] = {option.name: option for option in options}
        self._refused = dict(refused or {})

    def parse(self, pairs: Mapping[str, str]) -> dict[str, OptionValue]:
        """The value of every option of the table: what `pairs` says, or the default.

        Raises:
            ConfigError: A key or a value is not in the table, or a required one is missing.
        """
        values: dict[str, OptionValue] = {}
        previous = ""
        for key, text in pairs.items():
            option = self.options.get(key)
            if option is None:
                self._refuse(key, text, pairs, previous)
            else:
                values[key] = option.parse(text)
            previous = key
        for option in self.options.values():
            if option.name not in values:
                if option.required:
                    raise ConfigError(option.name, f"{self.subject} needs it", option.choices)
                values[option.name] = option.default
        return values

    def _refuse(self, key: str, text: str, pairs: Mapping[str, str], previous: str) -> NoReturn:
        """Raise ConfigError for a key that is not in the table and was written behind `previous`."""
        for name, reason in self._refused.items():
            if key == name or (name.endswith("*") and key.startswith(name[:-1])):
                raise ConfigError(key, f"is known to QEMU, but {reason}")
        problem = f"{self.subject} has no such option"
        before = self.options.get(previous)
        if before is not None and before.type == "str" and text == "on":  # no "=": perhaps the rest of a value
            whole = f"{pairs[previous]},{key}".replace(",", ",,")
            problem += f"; a comma inside a value is written twice: {previous}={whole}"
        raise unknown(key, problem, self.options, dict.fromkeys(self._shown(name, key) for name in self.options))

    @staticmethod
    def _shown(name: str, wanted: str) -> str:
        """How an option is listed to somebody who wanted another: options with a dot are many, one group of them."""
        group, dot, _ = name.partition(".")
        return f"{group}.*" if dot and not wanted.startswith(f"{group}.") else name

    def describe(self) -> list[str]:
        """A line for each option."""
        return [option.describe() for option in self.options.values()]

    def help(self) -> list[str]:
        """These lines, and one for each type of values that is not obvious."""
        types = {option.type for option in self.options.values()}
        return self.describe() + [f"<{name}>: {text}" for name, text in _EXPLAINED.items() if name in types]


@dataclass(frozen=True, slots=True)
class FsdevOptions:
    """An export as written behind ``-fsdev``."""

    driver: str
    """Name of the driver; not checked here, the registry knows them."""
    id: str | None
    values: Mapping[str, str]
    """The driver's own options, not checked here either."""


@dataclass(frozen=True, slots=True)
class VirtfsOptions:
    """What ``-virtfs`` abbreviates: an export and the device that offers it."""

    fsdev: FsdevOptions
    mount_tag: str


@dataclass(frozen=True, slots=True)
class DeviceOptions:
    """A device as written behind ``-device``; its properties are checked by whoever makes the device."""

    driver: str
    properties: Mapping[str, str]


def _pop_required(pairs: dict[str, str], key: str, option: str, what: str) -> str:
    value = pairs.pop(key, "")
    if not value:
        raise ConfigError(option, f"{what} is missing")
    return value


def parse_fsdev(text: str, *, id_required: bool = False) -> FsdevOptions:
    """Read ``DRIVER,id=ID,key=value,...``.

    Args:
        text: What stands behind ``-fsdev``.
        id_required: As on QEMU's command line, where a device refers to the export by its id.

    Raises:
        ConfigError: The driver, or a required id, is missing, or the id is not well formed.
    """
    pairs = parse_pairs(text, "fsdriver", option="-fsdev")
    driver = _pop_required(pairs, "fsdriver", "-fsdev", "the name of the driver")
    identifier = pairs.pop("id", None)
    if identifier is not None:
        check_identifier("id", identifier)
    elif id_required:
        raise ConfigError("id", f"-fsdev {driver} needs it")
    return FsdevOptions(driver, identifier, pairs)


def parse_virtfs(text: str) -> VirtfsOptions:
    """Read ``DRIVER,mount_tag=TAG,key=value,...[,id=ID]``; the id of the export is the mount tag if none is given.

    What a mount tag may be is up to the device.

    Raises:
        ConfigError: The driver or the mount tag is missing, or the id is not well formed.
    """
    pairs = parse_pairs(text, "fsdriver", option="-virtfs")
    driver = _pop_required(pairs, "fsdriver", "-virtfs", "the name of the driver")
    mount_tag = pairs.pop("mount_tag", None)
    if mount_tag is None:
        raise ConfigError("mount_tag", "the name under which the guest mounts the export is missing")
    identifier = pairs.pop("id", None)
    if identifier is not None:
        check_identifier("id", identifier)
    return VirtfsOptions(FsdevOptions(driver, identifier or mount_tag, pairs), mount_tag)


def parse_device(text: str) -> DeviceOptions:
    """Read ``DRIVER,property=value,...``.

    Raises:
        ConfigError: The name of the device is missing.
    """
    pairs = parse_pairs(text, "driver", option="-device")
    driver = _pop_required(pairs, "driver", "-device", "the name of the device")
    return DeviceOptions(driver, pairs)
