"""What a regular file holds: pieces of memory, and holes between them that take none.

Bytes are copied once: from a piece into the memory of the guest, and the reverse.
"""

from __future__ import annotations

import errno
import os
from typing import Final

from pyvirtfs.fsdev.ram.space import PAGE, Space, pages_of
from pyvirtfs.memory.buffers import Buffers

PIECE: Final = 1 << 16
"""Bytes that one piece stands for; it may hold fewer, the rest is a hole."""
MAX_SIZE: Final = (1 << 63) - 1
"""Bytes; the largest file that off_t knows."""

_ZEROS: Final = memoryview(bytes(PIECE))


class Content:
    """The bytes of one file.

    Args:
        space: What they are taken from.

    Attributes:
        size: The length of the file in bytes.
        pages: How many are taken.
    """

    __slots__ = ("_pieces", "_space", "pages", "size")

    def __init__(self, space: Space) -> None:
        self._pieces: dict[int, bytearray] = {}
        self._space = space
        self.size = 0
        self.pages = 0

    def read(self, offset: int, buffers: Buffers) -> int:
        """Fill buffers from byte `offset`; returns how many bytes there were."""
        count = min(buffers.nbytes, self.size - offset)
        if count <= 0:
            return 0
        pieces = self._pieces
        done = 0
        while done < count:
            number, start = divmod(offset + done, PIECE)
            length = min(PIECE - start, count - done)
            piece = pieces.get(number)
            held = 0 if piece is None else min(max(len(piece) - start, 0), length)
            if held and piece is not None:
                with memoryview(piece) as view, view[start : start + held] as part:
                    buffers.write(done, part)
            if held < length:
                buffers.write(done + held, _ZEROS[: length - held])
            done += length
        return count

    def write(self, offset: int, buffers: Buffers) -> int:
        """Take the bytes of buffers, from byte `offset` on; returns how many there was room for.

        Raises:
            OSError: EFBIG if the file cannot reach that far, ENOSPC if there is room for none.
        """
        if not buffers.nbytes:
            return 0
        if offset >= MAX_SIZE:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        done = 0
        left = MAX_SIZE - offset
        for whole in buffers.views():
            view = whole if len(whole) <= left else whole[:left]
            at = 0
            while at < len(view):
                taken = self._put(offset + done, view[at : at + PIECE])
                if not taken:
                    break
                at += taken
                done += taken
            left -= at
            if at < len(whole):
                break
        if not done:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.size = max(self.size, offset + done)
        return done

    def _put(self, offset: int, data: memoryview) -> int:
        """Take the bytes that belong to one piece; returns how many there was room for."""
        number, start = divmod(offset, PIECE)
        end = min(start + len(data), PIECE)
        piece = self._pieces.get(number)
        held = 0 if piece is None else len(piece)
        if end > held:
            space = self._space
            have = pages_of(held)
            wanted = pages_of(end) - have
            if wanted > space.free:
                wanted = space.free
                end = (have + wanted) * PAGE
                if end <= start:
                    return 0
            space.free -= wanted
            self.pages += wanted
            if piece is None:
                piece = self._pieces[number] = bytearray(end)
            elif end > held:
                piece.extend(_ZEROS[: end - held])
        if piece is None:  # it ends behind what is held, so there is one
            return 0
        piece[start:end] = data[: end - start]
        return end - start

    def truncate(self, size: int) -> None:
        """Set the length: what is cut off is free, what is added is a hole.

        Raises:
            OSError: EFBIG if no file can be that large.
        """
        if not 0 <= size <= MAX_SIZE:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        if size < self.size:
            last, rest = divmod(size, PIECE)
            for number in [number for number in self._pieces if number >= last]:
                piece = self._pieces[number]
                keep = min(rest, len(piece)) if number == last else 0
                self._give_back(pages_of(len(piece)) - pages_of(keep))
                if keep:
                    del piece[keep:]
                else:
                    del self._pieces[number]
        self.size = size

    def clear(self) -> None:
        """Give everything back."""
        self._pieces.clear()
        self._give_back(self.pages)
        self.size = 0

    def _give_back(self, pages: int) -> None:
        self._space.free += pages
        self.pages -= pages
