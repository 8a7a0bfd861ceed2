"""The memory driver and its options, those of tmpfs(5)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from pyvirtfs.errors import ConfigError
from pyvirtfs.fsdev.locks import LockTable
from pyvirtfs.fsdev.options import Option, OptionTable, OptionValue
from pyvirtfs.fsdev.ram.attributes import MemoryAttributes
from pyvirtfs.fsdev.ram.files import MemoryFiles
from pyvirtfs.fsdev.ram.names import MemoryNames
from pyvirtfs.fsdev.ram.space import Space
from pyvirtfs.fsdev.registry import DriverType

DEFAULT_SIZE: Final = 1 << 30
"""Bytes."""
_BYTES_PER_INODE: Final = 16384
"""How many bytes there are for each name by default, as mke2fs(8) has it."""
_FEWEST_INODES: Final = 1024
_MAX_ID: Final = 0xFFFFFFFE

_MODE: Final = re.compile(r"[0-7]{1,5}")

OPTIONS: Final = OptionTable(
    "fsdev driver 'memory'",
    (
        Option(name="size", type="size", default=DEFAULT_SIZE, help="Bytes of content; 0: no limit"),
        Option(
            name="nr_inodes",
            type="size",
            help="How many files, folders and links there may be, with suffixes as for bytes; 0: no limit; one for each"
            " 16k of size if not given",
        ),
        Option(name="mode", default="1777", help="Permissions of the root, octal"),
        Option(name="uid", type="number", default=0, help="Owner of the root"),
        Option(name="gid", type="number", default=0, help="Group of the root"),
        Option(name="readonly", type="bool", default=False, help="Refuse every change"),
    ),
    refused={"path": "a memory export has no folder on the host", "security_model": "a memory export needs none"},
)


def _parse_mode(text: str) -> int:
    if _MODE.fullmatch(text) is None or int(text, 8) > 0o7777:
        raise ConfigError("mode", f"{text!r} is not a mode (octal, at most 7777)")
    return int(text, 8)


def _arguments(values: Mapping[str, OptionValue]) -> dict[str, Any]:
    """The driver's arguments, from the values of `OPTIONS`."""
    return {**values, "mode": _parse_mode(str(values["mode"]))}


def _check_ranges(*, size: int, nr_inodes: int | None, mode: int, uid: int, gid: int, **_: object) -> None:
    for option, value, largest in (
        ("size", size, 1 << 62),
        ("nr_inodes", nr_inodes or 0, 1 << 62),
        ("mode", mode, 0o7777),
        ("uid", uid, _MAX_ID),
        ("gid", gid, _MAX_ID),
    ):
        if not 0 <= value <= largest:
            raise ConfigError(option, f"{value} is not within 0 and {largest}")


class MemoryDriver(MemoryNames, MemoryFiles, MemoryAttributes):
    """An export that lives in this process's memory, and is gone when it is closed.

    It keeps owners, modes, times, links, special files, extended attributes (``user.``) and locks as a file system of
    Linux does; what a user other than root changes loses its set-id bits.

    Not safe for use by several threads at once.

    Args:
        size: Bytes that content may take, counted in pages of 4096; 0: no limit.
        nr_inodes: How many names there may be; 0: no limit; None: one for each 16 KiB of `size`.
        mode: Permissions of the root.
        uid: Owner of the root.
        gid: Group of the root.
        readonly: Refuse every change: of an export that stays empty.

    Raises:
        ConfigError: An option is out of range.
    """

    def __init__(
        self,
        *,
        size: int = DEFAULT_SIZE,
        nr_inodes: int | None = None,
        mode: int = 0o1777,
        uid: int = 0,
        gid: int = 0,
        readonly: bool = False,
    ) -> None:
        _check_ranges(size=size, nr_inodes=nr_inodes, mode=mode, uid=uid, gid=gid)
        if nr_inodes is None:
            nr_inodes = max(size // _BYTES_PER_INODE, _FEWEST_INODES) if size else 0
        super().__init__(Space(size, nr_inodes), mode=mode, uid=uid, gid=gid, readonly=readonly)

    @classmethod
    def from_options(cls, values: Mapping[str, OptionValue]) -> MemoryDriver:
        """Make one from the values of `OPTIONS`; raises ConfigError."""
        return cls(**_arguments(values))

    def close(self) -> None:
        """See `ExportDriver.close`; the content is gone."""
        waiting = [self._root.inode]
        while waiting:
            inode = waiting.pop()
            if inode.folder is not None:
                waiting += [link.inode for link in inode.folder.names.values()]
                inode.folder.names.clear()
            inode.clear()
        self._locks = LockTable()


DRIVER: Final = DriverType(
    "memory",
    MemoryDriver.from_options,
    OPTIONS,
    "A file system in this process's memory",
    lambda values: _check_ranges(**_arguments(values)),
)
