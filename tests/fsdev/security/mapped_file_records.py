"""What ``mapped-file`` keeps of objects, written as QEMU does it and read; and objects of a guest."""

from __future__ import annotations

import stat
from pathlib import Path

from pyvirtfs.fsdev.entries import Node
from pyvirtfs.fsdev.local import LocalDriver

META = ".virtfs_metadata"


def by_qemu(path: Path, text: str) -> None:
    """Metadata as QEMU's local driver writes it."""
    (path.parent / META).mkdir(mode=0o700, exist_ok=True)
    (path.parent / META / path.name).write_text(text)


def metadata(path: Path) -> str | None:
    """What is kept of an object."""
    file = path.parent / META / path.name
    return file.read_text() if file.exists() else None


def ids(driver: LocalDriver, node: Node) -> tuple[int, ...]:
    """The user, the group and the mode that the guest sees."""
    return driver.getattr(node)[1][1:4]


def make(driver: LocalDriver, top: Node, name: bytes, uid: int = 1, mode: int = 0o640) -> str:
    """A file of the guest, and what must be kept of it."""
    driver.mknod(top, name, mode, 0, 0, uid, 2)
    return f"virtfs.uid={uid}\nvirtfs.gid=2\nvirtfs.mode={mode | stat.S_IFREG}\n"
