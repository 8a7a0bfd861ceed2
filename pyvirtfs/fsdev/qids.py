"""qid.path: one 64-bit number for each object of an export, even if the export spans several host devices.

9P2000 identifies an object by a 64-bit path, Linux by device and inode number. On the device of the export's root the
inode number is the path, as every 9P server does it. Objects of other devices (something is mounted below the export)
get a number with the highest bit set: 15 bits stand for (device, high 16 bits of the inode number) and are given out in
order of appearance, the low 48 bits of the inode number follow. That needs memory for each device, not for each object.
When the 15 bits are used up, single objects are numbered one by one.

With ``multidevs=warn`` the guest is told the bare inode number instead, as QEMU does by default, so that two objects
can look like one to it. Here they are still two: what tells them apart within the driver is the number above.
"""

from __future__ import annotations

import errno
import logging
import os
from typing import Final

FOREIGN: Final = 1 << 63
"""Set in the paths that are not an inode number of the root's device."""

_log = logging.getLogger(__name__)

_LOW_BITS: Final = 48
_LOW_MASK: Final = (1 << _LOW_BITS) - 1
_MOST_TOLD: Final = 16


class QidPaths:
    """The mapping from (device, inode number) to qid.path; stable for as long as the object lives.

    Args:
        device: The device of the export's root, as any number.
        multidevs: What becomes of objects of other devices: ``remap`` numbers them, ``forbid`` refuses them, and logs a
            warning for each of the first few, ``warn`` tells the guest their inode numbers, and logs one warning when
            the first of them is met.
        prefixes: How many (device, high bits) pairs get a prefix of their own; at most 32767.
        singles: How many objects are numbered one by one after that; at most 2**48.

    Attributes:
        device: The same.
        bare: Whether the guest is told bare inode numbers.
    """

    __slots__ = ("_forbid", "_max_prefixes", "_max_singles", "_prefixes", "_refused", "_singles", "bare", "device")

    def __init__(
        self, device: int, multidevs: str = "remap", *, prefixes: int = 0x7FFF, singles: int = 1 << 20
    ) -> None:
        self.device = device
        self.bare = multidevs == "warn"
        self._forbid = multidevs == "forbid"
        self._refused: set[tuple[int, int]] = set()
        self._max_prefixes = prefixes
        self._max_singles = singles
        self._prefixes: dict[tuple[int, int], int] = {}
        self._singles: dict[tuple[int, int], int] = {}

    def path(self, device: int, inode: int, fd: int = -1) -> int:
        """The number of an object, unique in the export; the guest is told `shown`.

        Args:
            device: As that of the root.
            inode: Its inode number.
            fd: A descriptor of it, if there is one: the log names what is refused.

        Raises:
            OSError: ENODEV if other devices are forbidden; ENFILE if no number is left.
        """
        if device == self.device:
            if inode < FOREIGN:
                return inode
        elif self._forbid:
            if fd >= 0:
                self._tell(device, inode, fd)
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        group = device, inode >> _LOW_BITS
        prefix = self._prefixes.get(group)
        if prefix is None:
            if len(self._prefixes) >= self._max_prefixes:
                return self._single(device, inode)
            # 0 is the prefix of the objects that are numbered one by one.
            prefix = self._prefixes[group] = len(self._prefixes) + 1
            if self.bare and prefix == 1 and device != self.device:
                _log.warning("the export spans several devices: with multidevs=warn, two files can look like one")
        return FOREIGN | prefix << _LOW_BITS | inode & _LOW_MASK

    def shown(self, path: int, inode: int) -> int:
        """The qid.path that the guest is told of an object.

        Args:
            path: Its number, of `path`.
            inode: Its inode number.
        """
        return inode if self.bare else path

    def _tell(self, device: int, inode: int, fd: int) -> None:
        """Log that an object is refused: what a guest meets first of a device is where that is mounted."""
        refused = self._refused
        if (device, inode) in refused or len(refused) >= _MOST_TOLD:
            return
        refused.add((device, inode))
        try:
            place = repr(os.readlink(f"/proc/self/fd/{fd}"))
        except OSError:  # deeper than a path can be
            place = "a folder"
        last = ", as are others from now on" if len(refused) == _MOST_TOLD else ""
        _log.warning("%s lies on another file system, and is refused by multidevs=forbid%s", place, last)

    def _single(self, device: int, inode: int) -> int:
        key = device, inode
        number = self._singles.get(key)
        if number is None:
            if len(self._singles) >= self._max_singles:
                raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))
            number = self._singles[key] = len(self._singles)
        return FOREIGN | number
