"""How the demo and the shell print what a guest sees: the lines of `ls -l`, `stat`, `df` and `mount`."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

_RECENT = timedelta(days=183)


class Row(NamedTuple):
    """One object of a listing."""

    name: str
    status: os.stat_result
    target: str | None = None
    """Of a symbolic link."""


class Unknown(NamedTuple):
    """An object of a listing that can be looked at no further than its folder tells."""

    name: str
    kind: int = 0
    """Its type as in st_mode, 0 if not even that is known."""


def long_lines(rows: Sequence[Row | Unknown], *, now: datetime | None = None) -> list[str]:
    """What `ls -l` prints for `rows`, numbers for users as `ls -n`."""
    now = now or datetime.now()
    cells = [_known_cells(row, now) if isinstance(row, Row) else _unknown_cells(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for mode, nlink, uid, gid, size, time, name in cells:
        lines.append(
            f"{mode} {nlink:>{widths[1]}} {uid:<{widths[2]}} {gid:<{widths[3]}} {size:>{widths[4]}} {time} {name}"
        )
    return lines


def _known_cells(row: Row, now: datetime) -> tuple[str, ...]:
    status = row.status
    return (
        stat.filemode(status.st_mode),
        str(status.st_nlink),
        str(status.st_uid),
        str(status.st_gid),
        _size(status),
        _time(status.st_mtime, now),
        printable(row.name) + (f" -> {printable(row.target)}" if row.target is not None else ""),
    )


def _unknown_cells(row: Unknown) -> tuple[str, ...]:
    return stat.filemode(row.kind)[0] + 9 * "?", "?", "?", "?", "?", f"{'?':>12}", printable(row.name)


def total_line(rows: Iterable[Row | Unknown]) -> str:
    """The first line of `ls -l` of a folder: blocks of 1 KiB."""
    return f"total {sum(row.status.st_blocks for row in rows if isinstance(row, Row)) // 2}"


def stat_lines(row: Row) -> list[str]:
    """What `stat` prints."""
    status, mode = row.status, stat.S_IMODE(row.status.st_mode)
    name = printable(row.name) + (f" -> {printable(row.target)}" if row.target is not None else "")
    kind = {
        stat.S_IFREG: "regular file",
        stat.S_IFDIR: "directory",
        stat.S_IFLNK: "symbolic link",
        stat.S_IFIFO: "fifo",
        stat.S_IFSOCK: "socket",
        stat.S_IFCHR: "character special file",
        stat.S_IFBLK: "block special file",
    }.get(stat.S_IFMT(status.st_mode), "unknown")
    return [
        f"  File: {name}",
        f"  Size: {status.st_size:<15} Blocks: {status.st_blocks:<10} IO Block: {status.st_blksize:<6} {kind}",
        f" Inode: {status.st_ino:<15} Links: {status.st_nlink}",
        f"Access: ({mode:04o}/{stat.filemode(status.st_mode)})  Uid: {status.st_uid}   Gid: {status.st_gid}",
        f"Access: {_full_time(status.st_atime_ns)}",
        f"Modify: {_full_time(status.st_mtime_ns)}",
        f"Change: {_full_time(status.st_ctime_ns)}",
    ]


def df_lines(tag: str, mount_point: str, frsize: int, blocks: int, bfree: int, bavail: int) -> list[str]:
    """What `df -h` prints for one mount."""
    used = (blocks - bfree) * frsize
    available = bavail * frsize
    share = f"{-(-used * 100 // (used + available))}%" if used + available else "-"
    cells = [
        ("Filesystem", "Size", "Used", "Avail", "Use%", "Mounted on"),
        (tag, human(blocks * frsize), human(used), human(available), share, mount_point),
    ]
    width = max(len(row[0]) for row in cells)
    return [
        f"{name:<{width}} {size:>6} {use:>6} {left:>6} {part:>4} {where}"
        for name, size, use, left, part, where in cells
    ]


def human(nbytes: int) -> str:
    """A size as `df -h` writes it: 1023, 1.5K, 20G."""
    size = float(nbytes)
    for unit in ("", "K", "M", "G", "T", "P"):
        if size < 1024 or unit == "P":
            break
        size /= 1024
    return f"{size:.1f}{unit}" if unit and size < 10 else f"{size:.0f}{unit}"


def printable(name: str) -> str:
    """A file name without control characters and bytes that are no text, which would play tricks on the terminal."""
    return "".join(character if character.isprintable() else _escape(character) for character in name)


def quoted(name: str) -> str:
    """A file name as it stands inside of a message."""
    return f"'{printable(name)}'"


def _escape(character: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in os.fsencode(character))


def _size(status: os.stat_result) -> str:
    if stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
        return f"{os.major(status.st_rdev)}, {os.minor(status.st_rdev)}"
    return str(status.st_size)


def _time(seconds: float, now: datetime) -> str:
    """Month, day, and the time of day or, for what is old or in the future, the year."""
    try:
        then = datetime.fromtimestamp(seconds)
    except (OverflowError, ValueError, OSError):
        return f"{seconds:.0f}"
    recent = now - _RECENT < then <= now + timedelta(minutes=1)
    return then.strftime("%b %e %H:%M" if recent else "%b %e  %Y")


def _full_time(nanoseconds: int) -> str:
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    try:
        moment = datetime.fromtimestamp(seconds).astimezone()
    except (OverflowError, ValueError, OSError):
        return f"{seconds}.{rest:09d}"
    return f"{moment:%Y-%m-%d %H:%M:%S}.{rest:09d} {moment:%z}"
