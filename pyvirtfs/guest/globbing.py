"""Which paths below a folder match a pattern, as `pathlib.Path.glob` has it."""

from __future__ import annotations

import fnmatch
import os
import re
import stat
import sys
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from pyvirtfs.p9 import constants as c
from pyvirtfs.p9.results import DirectoryEntry

if TYPE_CHECKING:
    from pyvirtfs.guest.files import GuestPath

ANYTHING_BELOW = "**"
FILES_TOO = sys.version_info >= (3, 13)
"""Whether a final ``**`` stands for files also, not for folders only; pathlib has changed its mind."""

WILDCARDS = re.compile(r"[*?\[]")


def parse_pattern(pattern: str | os.PathLike[str]) -> tuple[str, ...]:
    """The parts of a pattern; an empty one at the end stands for "folders only".

    Raises:
        NotImplementedError: It is absolute.
        ValueError: ``**`` is only a piece of a part.
    """
    text = os.fspath(pattern)
    parts = PurePosixPath(text).parts
    if text.startswith("/"):
        raise NotImplementedError("Non-relative patterns are unsupported")
    if any(ANYTHING_BELOW in part and part != ANYTHING_BELOW for part in parts):
        raise ValueError(f"Invalid pattern: {pattern!r}: '**' can only be an entire path component")
    return (*parts, "") if text.endswith("/") else parts


def select(base: GuestPath, parts: tuple[str, ...]) -> Iterator[GuestPath]:
    """The paths from `base` on that match a pattern; folders that may not be read count as empty.

    Args:
        base: A folder.
        parts: From `parse_pattern`.

    Raises:
        OSError: What the server answers, other than that something is not there or may not be read.
    """
    if parts in {(), ("",)}:
        yield base
    elif parts[0] == ANYTHING_BELOW:
        rest = parts[1:]
        seen = set()
        for folder in _and_below(base, files=FILES_TOO and not rest):
            for path in select(folder, rest):
                if path not in seen:  # a/b/c matches **/**/c in many ways
                    seen.add(path)
                    yield path
    elif WILDCARDS.search(parts[0]):
        matches = re.compile(fnmatch.translate(parts[0])).fullmatch
        for entry in _entries(base):
            path = base / entry.name
            if matches(path.name) and (len(parts) == 1 or _is_folder(entry, path)):
                yield from select(path, parts[1:])
    else:
        path = base / parts[0]
        if path.exists() if len(parts) == 1 else path.is_dir():
            yield from select(path, parts[1:])


def _and_below(base: GuestPath, *, files: bool) -> Iterator[GuestPath]:
    """A folder and the folders below it, links not followed; with `files`, everything else too."""
    yield base
    for entry in _entries(base):
        path = base / entry.name
        if kind_of(entry, path) == c.DT_DIR:
            yield from _and_below(path, files=files)
        elif files:
            yield path


def _entries(folder: GuestPath) -> list[DirectoryEntry]:
    try:
        return list(folder.scandir())  # at once: nothing stays open while the caller acts
    except (FileNotFoundError, PermissionError):
        return []


def _is_folder(entry: DirectoryEntry, path: GuestPath) -> bool:
    kind = kind_of(entry, path)
    return kind == c.DT_DIR or (kind == c.DT_LNK and path.is_dir())


def kind_of(entry: DirectoryEntry, path: GuestPath) -> int:
    """The DT_* of an entry; of the file itself, if the server leaves that open in listings. Raises OSError."""
    return entry.type or stat.S_IFMT(path.lstat().st_mode) >> 12
