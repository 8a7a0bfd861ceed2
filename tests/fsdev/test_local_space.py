"""How much an export may hold, on a real file system; what it is said to hold is compared with du(1)."""

from __future__ import annotations

import errno
import os
import random
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyvirtfs.errors import ConfigError
from pyvirtfs.fsdev import create
from pyvirtfs.fsdev.driver import SetAttributes
from pyvirtfs.fsdev.local import LimitedLocalDriver
from pyvirtfs.memory.buffers import ViewBuffers
from pyvirtfs.testing import fake_clock, pair

KIB = 1024
MODELS = ["none", "mapped-xattr", "mapped-file"]


def du(path: Path) -> int:
    output = subprocess.run(["du", "-sB512", path], check=True, capture_output=True, text=True).stdout
    return int(output.split()[0]) * 512


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def limited(root: Path, no_leak: None, model: str) -> Iterator[Callable[..., Any]]:
    drivers: list[LimitedLocalDriver] = []

    def make(hard: int, more: str = "") -> tuple[LimitedLocalDriver, Any]:
        driver = create(f"local,path={root},security_model={model},space_hard_limit={hard}{more}")
        assert isinstance(driver, LimitedLocalDriver)
        drivers.append(driver)
        return driver, driver.attach(b"", 0)[0]

    yield make
    for driver in drivers:
        driver.close()


def write(driver: Any, file: Any, offset: int, data: bytes) -> int:
    done: int = driver.write(file, offset, ViewBuffers([memoryview(bytearray(data))]))
    return done


def refused(call: Callable[..., object], *arguments: Any) -> None:
    with pytest.raises(OSError, match="No space left") as caught:
        call(*arguments)
    assert caught.value.errno == errno.ENOSPC


def fill(driver: Any, file: Any, *, appending: bool) -> int:
    """Write until it is refused; how much could be written."""
    written = 0
    while written < 1 << 20:
        try:
            written += write(driver, file, 0 if appending else written, b"x" * 8 * KIB)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                return written
            raise
    raise AssertionError("nothing was refused")


def test_writing_ends_at_the_limit(limited: Callable[..., Any], root: Path, model: str) -> None:
    driver, top = limited(256 * KIB)
    node, file, _ = driver.create(top, b"file", os.O_RDWR, 0o644, 0, 0)
    offset = fill(driver, file, appending=False)
    assert 128 * KIB <= offset <= 256 * KIB
    assert du(root) <= 256 * KIB
    assert (root / "file").stat().st_size == offset
    # What is there can still be changed, even though nothing more may come.
    assert write(driver, file, 0, b"y" * 8 * KIB) == 8 * KIB
    refused(write, driver, file, 1 << 30, b"z" * 8 * KIB)
    driver.setattr(node, SetAttributes(size=1 << 30), 0)  # takes nothing
    refused(write, driver, file, 1 << 29, b"z" * 8 * KIB)
    driver.setattr(node, SetAttributes(size=4096), 0)
    assert write(driver, file, 1 << 20, b"z" * 8 * KIB) == 8 * KIB
    driver.close_file(file)
    driver.release(node)


def test_nothing_can_be_made_when_it_is_full(limited: Callable[..., Any], root: Path) -> None:
    (root / "old").write_bytes(b"x" * 64 * KIB)
    driver, top = limited(du(root))
    refused(driver.mkdir, top, b"a", 0o755, 0, 0)
    refused(driver.create, top, b"a", os.O_RDWR, 0o644, 0, 0)
    refused(driver.symlink, top, b"a", b"b", 0, 0)
    refused(driver.mknod, top, b"a", stat.S_IFIFO | 0o644, 0, 0, 0, 0)
    node = driver.walk(top, [b"old"]).node
    refused(driver.setxattr, node, b"user.x", b"y" * 100, 0, 0)
    # Opened, not created: it is there.
    again, file, _ = driver.create(top, b"old", os.O_RDWR, 0o644, 0, 0)
    driver.close_file(file)
    driver.release(again)
    driver.release(node)
    driver.renameat(top, b"old", top, b"new")
    driver.unlinkat(top, b"new", folder=False)
    driver.mkdir(top, b"a", 0o755, 0, 0)


def test_truncation_when_it_is_opened(limited: Callable[..., Any], root: Path) -> None:
    (root / "old").write_bytes(b"x" * 64 * KIB)
    driver, top = limited(1 << 30)
    for how in ("open", "create"):
        (root / "old").write_bytes(b"x" * 64 * KIB)
        driver._limits.measure(driver._table.root.fd)
        if how == "open":
            node = driver.walk(top, [b"old"]).node
            file, _ = driver.open(node, os.O_WRONLY | os.O_TRUNC, 0)
        else:
            node, file, _ = driver.create(top, b"old", os.O_WRONLY | os.O_TRUNC, 0o644, 0, 0)
        assert driver._limits.used == du(root)
        driver.close_file(file)
        driver.release(node)


def test_what_is_removed_while_open_counts_until_it_is_closed(limited: Callable[..., Any], root: Path) -> None:
    driver, top = limited(200 * KIB)
    node, file, _ = driver.create(top, b"file", os.O_RDWR, 0o644, 0, 0)
    write(driver, file, 0, b"x" * 128 * KIB)
    driver.unlinkat(top, b"file", folder=False)
    other, second, _ = driver.create(top, b"other", os.O_RDWR, 0o644, 0, 0)
    with fake_clock() as clock:
        clock.advance(1e9)  # it may look again, and still sees it
        refused(write, driver, second, 0, b"y" * 128 * KIB)
    driver.close_file(file)
    refused(write, driver, second, 0, b"y" * 128 * KIB)
    driver.release(node)
    assert write(driver, second, 0, b"y" * 128 * KIB) == 128 * KIB
    driver.close_file(second)
    driver.release(other)
    assert driver._limits.used == du(root)


def test_what_the_host_removes_is_seen_at_the_next_look(limited: Callable[..., Any], root: Path) -> None:
    (root / "old").write_bytes(b"x" * 128 * KIB)
    driver, top = limited(160 * KIB)
    node, file, _ = driver.create(top, b"file", os.O_RDWR, 0o644, 0, 0)
    (root / "old").unlink()
    with fake_clock() as clock:
        clock.advance(1e9)
        assert write(driver, file, 0, b"x" * 128 * KIB) == 128 * KIB
    driver.close_file(file)
    driver.release(node)


def test_names_of_one_object_count_once(limited: Callable[..., Any], root: Path) -> None:
    driver, top = limited(1 << 30)
    node, file, _ = driver.create(top, b"a", os.O_RDWR, 0o644, 0, 0)
    write(driver, file, 0, b"x" * 64 * KIB)
    driver.link(top, node, b"b")
    driver.close_file(file)
    driver.release(node)
    used = driver._limits.used
    driver.unlinkat(top, b"a", folder=False)
    assert driver._limits.used == used
    driver.unlinkat(top, b"b", folder=False)
    assert 64 * KIB <= used - driver._limits.used <= 72 * KIB  # ext4 has a block for its attributes


def test_appending(limited: Callable[..., Any]) -> None:
    """The offset means nothing there, so neither does what lies at it."""
    driver, top = limited(128 * KIB)
    node, file, _ = driver.create(top, b"file", os.O_WRONLY | os.O_APPEND, 0o644, 0, 0)
    assert 64 * KIB <= fill(driver, file, appending=True) <= 128 * KIB
    driver.close_file(file)
    driver.release(node)


@pytest.mark.parametrize("seed", range(8))
def test_it_agrees_with_du(limited: Callable[..., Any], root: Path, model: str, seed: int) -> None:
    """Whatever a guest does."""
    driver, top = limited(1 << 30)
    rng = random.Random(seed)
    names = [b"a", b"b", b"c", b"d"]
    held: list[tuple[Any, Any]] = []
    for _ in range(120):
        name, other = rng.sample(names, 2)
        try:
            match rng.randrange(9):
                case 0 | 1:
                    node, file, _ = driver.create(top, name, os.O_RDWR | rng.choice([0, os.O_TRUNC]), 0o600, 0, 0)
                    write(driver, file, rng.randrange(100_000), b"x" * rng.randrange(1, 50_000))
                    held.append((node, file))
                case 2:
                    driver.unlinkat(top, name, folder=rng.random() < 0.3)
                case 3:
                    driver.renameat(top, name, top, other)
                case 4:
                    driver.mkdir(top, name, 0o755, 0, 0)
                case 5:
                    driver.symlink(top, name, b"x" * rng.randrange(1, 200), 0, 0)
                case 6:
                    node = driver.walk(top, [name]).node
                    try:
                        driver.setattr(node, SetAttributes(size=rng.randrange(200_000)), 0)
                    finally:
                        driver.release(node)
                case 7:
                    node = driver.walk(top, [name]).node
                    try:
                        driver.link(top, node, other)
                    finally:
                        driver.release(node)
                case 8:
                    if held:
                        node, file = held.pop(rng.randrange(len(held)))
                        driver.close_file(file)
                        driver.release(node)
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EBADF}:
                raise
    for node, file in held:
        driver.close_file(file)
        driver.release(node)
    used = driver._limits.used
    assert used == du(root)
    driver._limits.measure(driver._table.root.fd)
    assert driver._limits.used == used


def test_renaming_something_to_its_own_name_frees_nothing(limited: Callable[..., Any], root: Path) -> None:
    driver, top = limited(1 << 30)
    node, file, _ = driver.create(top, b"file", os.O_RDWR, 0o600, 0, 0)
    write(driver, file, 0, b"x" * 64 * KIB)
    driver.link(top, node, b"other")
    driver.close_file(file)
    driver.release(node)
    driver.renameat(top, b"file", top, b"other")
    driver.unlinkat(top, b"other", folder=False)
    driver.renameat(top, b"file", top, b"file")
    assert driver._limits.used == du(root)


def test_names_take_space_too(limited: Callable[..., Any], root: Path) -> None:
    """Empty files, and links: the folder grows, and so does what the model keeps."""
    driver, top = limited(256 * KIB)
    if not du(root):
        pytest.skip("names take no blocks on this file system")

    def make() -> None:
        for index in range(3000):
            name = (b"%d" % index).ljust(240, b"x")
            if index % 2:
                driver.link(top, driver.walk(top, [(b"%d" % (index - 1)).ljust(240, b"x")]).node, name)
            else:
                node, file, _ = driver.create(top, name, os.O_RDWR, 0o600, 0, 0)
                driver.close_file(file)
                driver.release(node)

    refused(make)
    assert driver._limits.used == du(root) <= 272 * KIB


def test_metadata_of_what_was_there(limited: Callable[..., Any], root: Path) -> None:
    (root / "old").write_bytes(b"x")
    driver, top = limited(1 << 30)
    node = driver.walk(top, [b"old"]).node
    driver.setattr(node, SetAttributes(mode=0o640, uid=1 if os.geteuid() == 0 else None), 0)
    assert driver._limits.used == du(root)
    driver.remove(node)
    driver.release(node)
    assert driver._limits.used == du(root)


def test_statfs(limited: Callable[..., Any]) -> None:
    driver, top = limited(1 << 20, f",space_soft_limit={1 << 19}")
    before = driver.statfs(top)
    assert before.blocks * before.bsize == 1 << 19
    node, file, _ = driver.create(top, b"file", os.O_RDWR, 0o644, 0, 0)
    write(driver, file, 0, b"x" * 128 * KIB)
    after = driver.statfs(top)
    assert 128 * KIB <= (before.bavail - after.bavail) * before.bsize <= 136 * KIB
    driver.close_file(file)
    driver.release(node)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("space_hard_limit=0", "space_hard_limit: 0 bytes hold nothing"),
        ("space_hard_limit=10,space_soft_limit=11", "space_soft_limit: 11 is above space_hard_limit, which is 10"),
        ("space_hard_limit=1.5G", "space_hard_limit: '1.5G' is not a size"),
    ],
)
def test_wrong_limits(root: Path, no_leak: None, options: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        create(f"local,path={root},security_model=none,{options}")


def test_a_guest_sees_a_full_disk(root: Path) -> None:
    with pair(f"local,path={root},security_model=none,space_hard_limit={256 * KIB}") as guest:
        path = guest.mount.root / "file"
        with pytest.raises(OSError, match="No space left") as caught:
            path.write_bytes(b"x" * (1 << 20))
        assert caught.value.errno == errno.ENOSPC
        path.unlink()
        path.write_bytes(b"x" * 128 * KIB)
    assert (root / "file").stat().st_size == 128 * KIB
