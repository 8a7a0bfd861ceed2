"""9P attributes as the results of stat(2) and statvfs(3)."""

from __future__ import annotations

import os

from pyvirtfs.p9.results import Attributes, FileSystem

NANOSECONDS = 1_000_000_000


def stat_result(attributes: Attributes) -> os.stat_result:
    """Attributes as an `os.stat_result` with times in nanoseconds; st_dev is 0, st_ino the qid's path."""
    times = {"atime": attributes.atime_ns, "mtime": attributes.mtime_ns, "ctime": attributes.ctime_ns}
    return os.stat_result(
        (
            attributes.mode,
            attributes.qid.path,
            0,
            attributes.nlink,
            attributes.uid,
            attributes.gid,
            attributes.size,
            *(ns // NANOSECONDS for ns in times.values()),
        ),
        {
            **{f"st_{name}": ns / NANOSECONDS for name, ns in times.items()},
            **{f"st_{name}_ns": ns for name, ns in times.items()},
            "st_blksize": attributes.blksize,
            "st_blocks": attributes.blocks,
            "st_rdev": decode_device(attributes.rdev),
        },
    )


def decode_device(rdev: int) -> int:
    """A device number of the wire, in Linux's 32-bit encoding, as `os.major` and `os.minor` take it."""
    return os.makedev((rdev & 0xFFF00) >> 8, (rdev & 0xFF) | ((rdev >> 12) & 0xFFF00))


def statvfs_result(answer: FileSystem) -> os.statvfs_result:
    """The answer to a Tstatfs as an `os.statvfs_result`."""
    return os.statvfs_result(
        (
            answer.bsize,
            answer.bsize,
            answer.blocks,
            answer.bfree,
            answer.bavail,
            answer.files,
            answer.ffree,
            answer.ffree,
            0,
            answer.namelen,
        )
    )
