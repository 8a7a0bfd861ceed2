"""A driver with few descriptors, and what tests do with it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyvirtfs.fsdev.closing import LeastRecentlyOpened
from pyvirtfs.fsdev.entries import Node
from pyvirtfs.fsdev.local import LocalDriver
from pyvirtfs.fsdev.local_core import LocalFile
from pyvirtfs.memory.buffers import ViewBuffers

BUDGET = 48
MANY = 200


def handles_work(path: Path) -> bool:
    driver = LocalDriver(path)
    works = driver._closer._try_handles()
    driver.close()
    return works


def export_of(root: Path, how: str, monkeypatch: pytest.MonkeyPatch, model: str = "none") -> LocalDriver:
    """A driver with a small budget that opens again by `handles` or `names`; many files, each holds its own name."""
    if how == "names":
        monkeypatch.setattr(LeastRecentlyOpened, "_try_handles", lambda _self: False)
    elif not handles_work(root):
        pytest.skip("this process may not open by handle, or the file system has none")
    (root / "many").mkdir()
    for index in range(MANY):
        (root / "many" / f"{index}").write_bytes(b"%d" % index)
    return LocalDriver(root, model, max_descriptors=BUDGET)


def walk(driver: LocalDriver, path: bytes) -> Node:
    top, _ = driver.attach(b"", 0)
    found = driver.walk(top, path.split(b"/")).node
    driver.release(top)
    assert found is not None
    return found


def read(driver: LocalDriver, file: LocalFile, nbytes: int = 100) -> bytes:
    data = bytearray(nbytes)
    return bytes(data[: driver.read(file, 0, ViewBuffers.of(data))])


def write(driver: LocalDriver, file: LocalFile, data: bytes) -> int:
    return driver.write(file, 0, ViewBuffers.of(bytearray(data)))


def content(driver: LocalDriver, node: Node) -> bytes:
    file, _ = driver.open(node, os.O_RDONLY, 0)
    try:
        return read(driver, file)
    finally:
        driver.close_file(file)


def held() -> int:
    return len(os.listdir("/proc/self/fd"))


def hold_many(driver: LocalDriver) -> list[Node]:
    """Hold all files of the folder, which closes whatever can be closed of what was held before."""
    folder = walk(driver, b"many")
    nodes = []
    for index in range(MANY):
        node = driver.walk(folder, [b"%d" % index]).node
        assert node is not None
        nodes.append(node)
    driver.release(folder)
    return nodes


def release(driver: LocalDriver, nodes: list[Node]) -> None:
    for node in nodes:
        driver.release(node)
