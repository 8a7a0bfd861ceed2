"""The files that QEMU's driver `synth` offers to QEMU's own tests, by the same names.

A test suite that was written against ``-fsdev synth`` finds here what it knows: folders in folders for walks, a large
folder for listings, files to open and to write to, and one whose writes wait until they are given up.
"""

from __future__ import annotations

import errno
import os
from typing import Final

from pyvirtfs.fsdev.completion import Completion
from pyvirtfs.fsdev.synth.nodes import SynthFolder

WALK_DEPTH: Final = 16
"""``WALK0/WALK1/...``: as many names as one walk takes."""
READDIR_FILES: Final = 100
"""``ReadDirDir/ReadDirFile0`` and so on."""


def _give_up(completion: Completion[None]) -> None:
    completion.set_error(OSError(errno.EINTR, os.strerror(errno.EINTR)))


def flush(data: bytes) -> Completion[None] | None:
    """What a write to ``FLUSH`` does: with a first byte of 0 it succeeds, with any other it waits for its Tflush."""
    return Completion(_give_up) if data[0] else None


def add_fixtures(root: SynthFolder) -> None:
    """Add them to a folder."""
    folder = root
    for depth in range(WALK_DEPTH):
        folder = folder.folder(f"WALK{depth}", mode=0o700)
    root.file("LOPEN", read=b"", write=lambda _data: None, mode=0)
    root.file("WRITE", read=b"", write=lambda _data: None, mode=0)
    root.file("FLUSH", read=b"", write=flush, mode=0)
    listing = root.folder("ReadDirDir", mode=0o700)
    for number in range(READDIR_FILES):
        listing.file(f"ReadDirFile{number}", read=b"", mode=0)
