"""QEMU's command line as a list of options with their values; it goes back to the same words unless one is changed.

QEMU takes ``--option`` for ``-option``, and the value of an option from the next word, whatever it looks like
(``-append "-virtfs"``). What is no option is a disk image. Values are ``key=value`` pairs or, for some options, JSON.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from pyvirtfs.errors import ConfigError
from pyvirtfs.fsdev.options import parse_pairs

_WITH_VALUE: Final = """
D L M accel acpitable action add-fd append audio audiodev bios blockdev boot cdrom chardev chroot compat cpu d
debugcon device dfilter display drive dtb dump-vmstate echr fda fdb fsdev fw_cfg g gdb global hda hdb hdc hdd icount
incoming initrd iscsi k kernel loadvm m machine mem-path mon monitor msg mtdblock name net netdev nic numa object
option-rom overcommit parallel pflash pidfile plugin prom-env qmp qmp-pretty qtest qtest-log readconfig rtc run-with
runas sandbox sd seed semihosting-config serial set shim smbios smp soundhw spice tpmdev trace usbdevice uuid vga
virtfs vnc watchdog watchdog-action xen-domid
"""
WITH_VALUE: Final = frozenset(_WITH_VALUE.split())
"""The options that have a value (QEMU 11.1, all machines, and those that 9.0 to 11.0 had). All others have none."""

HELP: Final = frozenset({"help", "?"})


class Argument(NamedTuple):
    """An option with its value, or a word that is no option."""

    words: tuple[str, ...]
    """As written."""
    option: str | None = None
    """Its name without dashes."""
    value: str | None = None


class Typed(NamedTuple):
    """The value of `-device` or `-object`: what to make, and its properties."""

    name: str
    properties: Mapping[str, Any]
    """Text, or what JSON knows."""
    is_json: bool


def parse(words: Sequence[str]) -> list[Argument]:
    """The options of a command line, which begins behind the name of the program."""
    found: list[Argument] = []
    rest = iter(words)
    for word in rest:
        if not word.startswith("-"):
            found.append(Argument((word,)))
            continue
        option = word[2:] if word.startswith("--") else word[1:]
        value = next(rest, None) if option in WITH_VALUE else None
        found.append(Argument((word,) if value is None else (word, value), option, value))
    return found


def words(arguments: Iterable[Argument]) -> list[str]:
    """What `parse` was given."""
    return [word for argument in arguments for word in argument.words]


def make(option: str, value: str) -> Argument:
    """An option that nobody has written."""
    return Argument((f"-{option}", value), option, value)


def changed(argument: Argument, value: str) -> Argument:
    """The same option with another value."""
    return argument._replace(words=(argument.words[0], value), value=value)


def escaped(text: str) -> str:
    """A value as it stands between commas."""
    return text.replace(",", ",,")


def with_pair(text: str, key: str, value: str) -> str:
    """`text`, which is ``key=value,key=value``, with one pair more; the last one counts."""
    commas = len(text) - len(text.rstrip(","))
    before = text[:-1] if commas % 2 else text  # a comma at the end is overlooked, and would not be any more
    return f"{before},{key}={escaped(value)}" if before else f"{key}={escaped(value)}"


def pairs_of(argument: Argument, first_key: str) -> dict[str, str]:
    """The pairs of an option. Raises ConfigError if there are none to be seen, as QEMU would."""
    return parse_pairs(argument.value or "", first_key, option=f"-{argument.option}")


def typed(argument: Argument, first_key: str) -> Typed | None:
    """The value of `-device` (`first_key` is ``driver``) or `-object` (``qom-type``).

    None: there is nothing to be seen in it, or it asks for help; QEMU will say what is to be said.
    """
    text = argument.value or ""
    is_json = text.startswith("{")
    properties: dict[str, Any] = {}
    with contextlib.suppress(ConfigError, ValueError):
        properties = _json(text) if is_json else {**parse_pairs(text, first_key)}
    name = properties.pop(first_key, None)
    if not isinstance(name, str) or name in HELP or not HELP.isdisjoint(properties):
        return None
    return Typed(name, properties, is_json)


def as_text(value: Any) -> str:
    """A value of JSON as it stands between commas."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return value if isinstance(value, str) else json.dumps(value)


_STRING = re.compile(r"""("(?:[^"\\]|\\.)*")|'((?:[^'\\]|\\.)*)'""", re.DOTALL)


def _json(text: str) -> dict[str, Any]:
    """An object. QEMU also takes strings in single quotes. Raises ValueError."""

    def requoted(match: re.Match[str]) -> str:
        return match[1] or '"' + match[2].replace("\\'", "'").replace('"', '\\"') + '"'

    found = json.loads(_STRING.sub(requoted, text))
    if not isinstance(found, dict):
        raise ValueError("no object")  # noqa: TRY004  # as json.loads does
    return found
