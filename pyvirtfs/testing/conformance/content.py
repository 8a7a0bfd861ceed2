"""Checks on read and write: offsets, holes, buffers in pieces."""

from __future__ import annotations

import errno
import os
from typing import Final

from pyvirtfs.memory.buffers import ViewBuffers
from pyvirtfs.testing.conformance.check import check
from pyvirtfs.testing.conformance.subject import Subject, expect, require

_PATTERN: Final = bytes(range(251)) * 2000
"""Half a megabyte in which no two pages are equal."""
_SIZES: Final = (1, 2, 7, 511, 512, 4095, 4096, 4097, 65536, 100_001)
_GUARD: Final = 0xA5
_END: Final = 1 << 63


def scattered(nbytes: int) -> tuple[bytearray, list[memoryview]]:
    """Memory with guards in it, and the ranges of it that are for data: of 1, 2, 3, ... bytes."""
    ranges: list[tuple[int, int]] = []
    at, length, left = 3, 1, nbytes
    while left:
        part = min(length, left)
        ranges.append((at, part))
        at += part + 5
        left -= part
        length = length * 2 + 1
    memory = bytearray([_GUARD]) * at
    view = memoryview(memory)
    return memory, [view[start : start + part] for start, part in ranges]


@check("create", "write")
def what_is_written_can_be_read(export: Subject) -> None:
    """What was written at an offset is read there, in any pieces."""
    node = export.make_file(b"file")
    with export.opened(node, os.O_RDWR) as file:
        export.put(file, 0, _PATTERN)
        expect(export.attributes(node).size, len(_PATTERN), "the size")
        expect(export.get(file, 0, len(_PATTERN)), _PATTERN, "the whole file in one read")
        for size in _SIZES:
            for offset in (0, 1, 4093, 4096, 65535, len(_PATTERN) - size):
                expect(export.get(file, offset, size), _PATTERN[offset:][:size], f"{size} bytes at {offset}")


@check("create", "write")
def the_end_of_a_file(export: Subject) -> None:
    """Fewer bytes than asked are read only at the end of the file; at it and behind it none."""
    node = export.make_file(b"file", _PATTERN)
    end = len(_PATTERN)
    with export.opened(node) as file:
        for back, nbytes in ((1, 2), (1, 100_000), (4096, 4097), (end, end + 1)):
            expect(export.get(file, end - back, nbytes), _PATTERN[-back:], f"{nbytes} bytes, {back} before the end")
        for offset in (end, end + 1, end + 4096, 1 << 40):
            expect(export.get(file, offset, 4096), b"", f"what is read at {offset}, the size being {end}")


@check("create", "write")
def overwriting(export: Subject) -> None:
    """A write changes its bytes and no others, whether they lie inside the file or reach over its end."""
    node = export.make_file(b"file")
    wanted = bytearray()
    with export.opened(node, os.O_RDWR) as file:
        for index, (offset, nbytes) in enumerate(
            ((0, 5000), (4095, 2), (1, 1), (4999, 1), (4990, 100), (0, 4096), (5090, 70_000), (65_530, 12))
        ):
            data = bytes([index + 1]) * nbytes
            export.put(file, offset, data)
            wanted[offset : offset + nbytes] = data
            expect(export.content_of(file), bytes(wanted), f"the file after {nbytes} bytes at {offset}")
    expect(export.attributes(node).size, len(wanted), "the size")


@check("create", "write")
def holes(export: Subject) -> None:
    """What lies between the old end of a file and a write behind it reads as zeros."""
    node = export.make_file(b"file", b"abc")
    with export.opened(node, os.O_RDWR) as file:
        export.put(file, 1_000_003, b"xyz")
        expect(export.attributes(node).size, 1_000_006, "the size")
        expect(export.get(file, 0, 10), b"abc" + bytes(7), "the beginning of the hole")
        expect(export.get(file, 1_000_000, 10), bytes(3) + b"xyz", "the end of the hole")
        expect(export.content_of(file), b"abc" + bytes(1_000_000) + b"xyz", "the whole file")


@check("create", "write")
def no_bytes(export: Subject) -> None:
    """A read or write of no bytes does nothing, also behind the end of the file."""
    node = export.make_file(b"file", b"content")
    with export.unchanged(), export.opened(node, os.O_RDWR) as file:
        for offset in (0, 3, 7, 1000):
            expect(export.write(file, offset, ViewBuffers([])), 0, f"a write of no bytes at {offset}")
            expect(export.read(file, offset, ViewBuffers([])), 0, f"a read of no bytes at {offset}")


@check("create", "write")
def buffers_in_pieces(export: Subject) -> None:
    """Buffers may be many ranges of guest memory; a read fills them in order and touches nothing else."""
    node = export.make_file(b"file")
    data = _PATTERN[:70_000]
    memory, views = scattered(len(data))
    at = 0
    for view in views:
        view[:] = data[at : at + len(view)]
        at += len(view)
    before = bytes(memory)
    with export.opened(node, os.O_RDWR) as file:
        done = 0
        buffers = ViewBuffers(views)
        while done < len(data):
            count = export.write(file, 11 + done, buffers.slice(done, len(data) - done))
            require(0 < count <= len(data) - done, f"a write of {len(data) - done} bytes returned {count}")
            done += count
        expect(bytes(memory), before, "the memory that was written from")
        expect(export.content_of(file), bytes(11) + data, "what was written from buffers in pieces")
        memory, views = scattered(len(data))
        expect(export.read(file, 11, ViewBuffers(views)), len(data), "the bytes read into buffers in pieces")
        expect(b"".join(views), data, "what was read into buffers in pieces")
        expect(memory.count(_GUARD), before.count(_GUARD), "the bytes between the pieces")
        memory, views = scattered(100)
        expect(export.read(file, len(data) + 11 - 50, ViewBuffers(views)), 50, "the bytes read at the end")
        expect(b"".join(views)[:50], data[-50:], "what was read at the end into buffers in pieces")


@check("create", "write")
def many_pieces(export: Subject) -> None:
    """Buffers may be more ranges than a system call takes (1024)."""
    node = export.make_file(b"file", _PATTERN[:5000])
    memory = bytearray(10_000)
    views = [memoryview(memory)[at : at + 1] for at in range(0, 10_000, 2)]
    with export.opened(node, os.O_RDWR) as file:
        expect(export.read(file, 0, ViewBuffers(views)), 5000, "the bytes read into 5000 ranges")
        expect(bytes(memory[::2]), _PATTERN[:5000], "what was read into 5000 ranges")
        done, buffers = 0, ViewBuffers(views)
        while done < 5000:
            count = export.write(file, 5000 + done, buffers.slice(done, 5000 - done))
            require(0 < count <= 5000 - done, f"a write of {5000 - done} bytes returned {count}")
            done += count
        expect(export.content_of(file), _PATTERN[:5000] * 2, "what was written from 5000 ranges")


@check("create", "write")
def two_open_files(export: Subject) -> None:
    """Open files of one object see each other's writes at once."""
    node = export.make_file(b"file")
    with export.opened(node, os.O_RDWR) as one, export.opened(export.find(b"file"), os.O_RDWR) as two:
        export.put(one, 0, b"from one")
        expect(export.get(two, 0, 100), b"from one", "what the second open file reads")
        export.put(two, 5, b"two")
        expect(export.get(one, 0, 100), b"from two", "what the first open file reads")


@check("create", "write")
def offsets_that_no_file_has(export: Subject) -> None:
    """A write to where no file can reach is an OSError, and changes nothing; a read gives nothing, or an OSError."""
    node = export.make_file(b"file", b"content")
    with export.unchanged(), export.opened(node, os.O_RDWR) as file:
        for offset in (_END - 1, _END, (1 << 64) - 1):
            with export.refuses(errno.EFBIG, errno.EINVAL, errno.EOVERFLOW, errno.ENOSPC):
                export.write(file, offset, ViewBuffers.of(b"xyz"))


@check("create", "write")
def closed_files_do_not_disturb(export: Subject) -> None:
    """An open file is of use until it is closed, whatever becomes of others of the same object and of its node."""
    node = export.make_file(b"file", b"content")
    files = [export.open(node, os.O_RDWR, 0)[0] for _ in range(5)]
    export.release(node)
    for left, file in enumerate(files, 1):
        expect(export.get(file, 0, 10), b"content", f"what is read through file {left} of 5")
        export.close_file(file)
        if left < len(files):
            expect(export.get(files[-1], 0, 10), b"content", f"what is read after {left} files were closed")
    expect(export.content(export.find(b"file")), b"content", "what is read after all were closed")
