"""Which names of a folder are mount points.

The inode number that getdents64(2) gives for a mount point is that of the folder underneath. A listing must show what
a walk would find, so such a name has to be looked at; all others need not, if one knows which they are.
"""

from __future__ import annotations

import os
import re
import select
from typing import Final

_MOUNTINFO: Final = "/proc/self/mountinfo"
_CHANGED: Final = select.POLLPRI | select.POLLERR
_ESCAPE: Final = re.compile(rb"\\([0-7]{3})")
_NONE: Final[frozenset[bytes]] = frozenset()


def parse_mountinfo(text: bytes) -> dict[bytes, frozenset[bytes]]:
    """The names of the mount points by the path of the folder that they are in; proc_pid_mountinfo(5)."""
    found: dict[bytes, set[bytes]] = {}
    for line in text.split(b"\n"):  # a carriage return may be part of a path
        fields = line.split(b" ", 5)
        if len(fields) < 6:
            continue
        path = _ESCAPE.sub(lambda match: bytes((int(match[1], 8) & 0xFF,)), fields[4])
        folder, _, name = path.rpartition(b"/")
        if name:
            found.setdefault(folder or b"/", set()).add(name)
    return {folder: frozenset(names) for folder, names in found.items()}


class MountTable:
    """The mount points that this process sees, read again when they have changed.

    The descriptor is taken at once: when the table is needed, there may be none left.

    Raises:
        OSError: There is none now.
    """

    __slots__ = ("_fd", "_names", "_poll")

    def __init__(self) -> None:
        self._fd = -1
        self._poll = select.poll()
        self._names: dict[bytes, frozenset[bytes]] = {}
        self._read()

    def below(self, folder: bytes) -> frozenset[bytes]:
        """The names that are mount points.

        Args:
            folder: ``/proc/self/fd/N``, where N is a descriptor of the folder.
        """
        if self._fd < 0 or self._poll.poll(0):
            self._read()
        if not self._names:
            return _NONE
        try:
            return self._names.get(os.readlink(folder), _NONE)
        except OSError:  # so deep that its path is longer than a path may be; nothing can be mounted there
            return _NONE

    def _read(self) -> None:
        if self._fd < 0:
            self._fd = os.open(_MOUNTINFO, os.O_RDONLY | os.O_CLOEXEC)
            self._poll.register(self._fd, _CHANGED)
        parts: list[bytes] = []
        while part := os.pread(self._fd, 1 << 16, sum(map(len, parts))):
            parts.append(part)
        self._names = parse_mountinfo(b"".join(parts))

    def close(self) -> None:
        """Close the descriptor; the next question opens it again."""
        if self._fd >= 0:
            self._poll.unregister(self._fd)
            os.close(self._fd)
            self._fd = -1
