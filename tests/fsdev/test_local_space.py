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


def fill(driver: Any, file: Any, nbytes: int = 8 * KIB, *, appending: bool = False) -> int:
    """Write until it is refused, as dd(1) does; how much could be written."""
    written = 0
    while written < 1 << 20:
        try:
            done = write(driver, file, 0 if appending else written, b"x" * nbytes)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                return written
            raise
        assert done
        written += done
    raise AssertionError("nothing was refused")


@pytest.fixture
def exact(root: Path) -> None:
    """Skips where a file that grows takes more than it has yet."""
    with open(root.parent / "grows", "wb", buffering=0) as file:
        file.writelines(bytes(8 * KIB) for _ in range(20))
        reserved = os.fstat(file.fileno()).st_blocks * 512 - 160 * KIB
    os.unlink(root.parent / "grows")
    if reserved > 4 * KIB:  # ext4 keeps some attributes in a block of their own
        pytest.skip("the file system reserves space for files that grow")


@pytest.mark.usefixtures("exact")
def test_writing_ends_at_the_limit(limited: Callable[..., Any], root: Path, model: str) -> None:
    driver, top = limited(256 * KIB)
    node, file, _ = driver.create(top, b"file", os.O_RDWR, 0o644, 0, 0)
    offset = fill(driver, file)
    assert offset + driver._block > 256 * KIB - (du(root) - offset)
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


def test_writing_no_bytes(limited: Callable[..., Any]) -> None:
    driver, top = limited(1 << 20)
    node, file, _ = driver.create(top, b"file", os.O_WRONLY, 0o600, 0, 0)
    assert write(driver, file, 0, b"") == 0
    driver.close_file(file)
    file, _ = driver.open(node, os.O_RDONLY, 0)
    with pytest.raises(OSError, match="Bad file"):
        write(driver, file, 0, b"")
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
        assert 0 < write(driver, second, 0, b"y" * 128 * KIB) <= 72 * KIB
    driver.close_file(file)
    refused(write, driver, second, 72 * KIB, b"y" * 128 * KIB)
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


@pytest.mark.parametrize("appending", [False, True])
@pytest.mark.parametrize("nbytes", [1000, 4096, 7 * KIB, 300 * KIB])
@pytest.mark.parametrize("more", [0, 1, 511, 4095])
def test_a_program_that_writes_till_the_end_fills_every_block(
    limited: Callable[..., Any], root: Path, nbytes: int, more: int, *, appending: bool
) -> None:
    """With O_APPEND the offset means nothing, so neither does what lies at it."""
    (root / "old").write_bytes(b"x" * 5000)
    hard = du(root) + 64 * KIB + more
    driver, top = limited(hard)
    flags = os.O_WRONLY | (os.O_APPEND if appending else 0)
    node, file, _ = driver.create(top, b"file", flags, 0o644, 0, 0)
    space = hard - driver._limits.used  # of what the model keeps beside the file, no more is left
    assert fill(driver, file, nbytes, appending=appending) == space - space % driver._block
    assert hard - driver._block < du(root) == driver._limits.used <= hard
    # Neither can it be written at another place; but what is there can.
    refused(write, driver, file, 1 << 20, b"y")
    if not appending:
        assert write(driver, file, 1000, b"y" * 40 * KIB) == 40 * KIB
    driver.close_file(file)
    driver.release(node)


def test_the_end_of_a_block_is_free(limited: Callable[..., Any], root: Path) -> None:
    driver, top = limited(du(root) + 64 * KIB)
    nodes = [driver.create(top, name, os.O_RDWR, 0o644, 0, 0)[:2] for name in (b"one", b"two")]
    one, two = (file for _, file in nodes)
    block = driver._block
    write(driver, one, 0, b"x")
    fill(driver, two)
    assert write(driver, one, 1, b"y" * 3 * block) == block - 1
    refused(write, driver, one, block, b"y")
    assert (root / "one").read_bytes() == b"x" + b"y" * (block - 1)
    driver.setattr(nodes[0][0], SetAttributes(size=10 * block + 1), 0)  # a hole takes nothing
    assert write(driver, one, block - 3, b"z" * block) == 3  # what is there is overwritten, then the hole starts
    assert write(driver, one, 0, b"") == 0
    driver.close_file(two)
    driver.release(nodes[1][0])
    driver.unlinkat(top, b"two", folder=False)
    assert write(driver, one, block - 3, b"z" * block) == block
    driver.close_file(one)
    driver.release(nodes[0][0])


def test_what_is_reserved_behind_the_end_counts_once(limited: Callable[..., Any], root: Path) -> None:
    """XFS reserves space for a file that grows, and counts it as taken (here fallocate(1) does it)."""
    (root / "file").write_bytes(b"x" * 8 * KIB)
    command = ["fallocate", "--keep-size", "--length", f"{256 * KIB}", str(root / "file")]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("nothing can be reserved here")
    hard = du(root)
    driver, top = limited(hard)
    refused(driver.mkdir, top, b"folder", 0o755, 0, 0)
    node = driver.walk(top, [b"file"]).node
    file, _ = driver.open(node, os.O_RDWR, 0)
    refused(write, driver, file, 512 * KIB, b"y")
    offset = 8 * KIB
    while offset < 192 * KIB:  # but for what may be metadata
        assert write(driver, file, offset, b"y" * 8 * KIB) == 8 * KIB
        offset += 8 * KIB
    refused(write, driver, file, 512 * KIB, b"y")
    assert du(root) == driver._limits.used == hard
    driver.close_file(file)
    driver.release(node)


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("seed", range(8))
def test_no_write_goes_beyond_the_limit(limited: Callable[..., Any], root: Path, seed: int) -> None:
    """Several files, written anywhere, cut off and made longer; what each holds is what it was told that it took."""
    rng = random.Random(seed)
    hard = du(root) + 256 * KIB + rng.randrange(4096)
    driver, top = limited(hard)
    opened = []
    for name in (b"one", b"two", b"more"):
        flags = os.O_RDWR | (os.O_APPEND if name == b"more" else 0)
        opened.append((root / os.fsdecode(name), bytearray(), *driver.create(top, name, flags, 0o644, 0, 0)[:2]))
    short = 0
    for number in range(200):
        path, content, node, file = rng.choice(opened)
        if rng.random() < 0.1:
            size = rng.randrange(400 * KIB)
            driver.setattr(node, SetAttributes(size=size), 0)
            content.extend(bytes(max(size - len(content), 0)))
            del content[size:]
        else:
            offset, data = rng.randrange(400 * KIB), bytes([number]) * rng.randrange(1, 40 * KIB)
            # In pieces, as a guest's memory is.
            views = [memoryview(data)[at : at + 5000] for at in range(0, len(data), 5000)]
            try:
                done = driver.write(file, offset, ViewBuffers(views))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
            else:
                assert 0 < done <= len(data)
                short += done < len(data)
                if file.flags & os.O_APPEND:
                    offset = len(content)
                content.extend(bytes(max(offset + done - len(content), 0)))
                content[offset : offset + done] = data[:done]
        used = driver._limits.used
        # ext4 needs a block of its own for a file in more than four pieces, and btrfs one where a small file grows.
        assert used <= hard + 6 * 4096
        assert root.parent.parent != Path("/dev/shm") or used <= hard
    assert driver._limits.used == du(root)
    assert short
    for path, content, node, file in opened:
        assert path.read_bytes() == content
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
    assert before.bsize <= 4096
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
    hard = du(root) + 100 * KIB
    with pair(f"local,path={root},security_model=none,space_hard_limit={hard}") as guest:
        figures = guest.mount.root.statvfs()
        assert figures.f_blocks * figures.f_frsize == hard
        assert figures.f_bavail * figures.f_frsize == 100 * KIB
        path = guest.mount.root / "file"
        with pytest.raises(OSError, match="No space left") as caught:
            path.write_bytes(b"x" * (1 << 20))
        assert caught.value.errno == errno.ENOSPC
        assert guest.mount.root.statvfs().f_bavail == 0
        assert (root / "file").stat().st_size == 100 * KIB
        path.unlink()
        path.write_bytes(b"x" * 64 * KIB)
    assert (root / "file").stat().st_size == 64 * KIB


def test_a_file_is_closed_whatever_can_be_seen_of_it(
    limited: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, top = limited(1 << 20)
    node, file, _ = driver.create(top, b"file", os.O_RDWR, 0o600, 0, 0)
    write(driver, file, 0, b"x" * 8 * KIB)

    def broken(*_arguments: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(driver, "_taken", broken)
    fd = file.fd
    driver.close_file(file)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    driver.release(node)


def test_what_cannot_be_measured_counts_as_before(
    limited: Callable[..., Any], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, top = limited(du(root) + 64 * KIB)
    node, file, _ = driver.create(top, b"file", os.O_RDWR, 0o600, 0, 0)

    def forbidden(*_arguments: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("pyvirtfs.fsdev.space.measure", forbidden)
    with fake_clock() as clock:
        clock.advance(1e9)
        assert 0 < write(driver, file, 0, b"x" * 128 * KIB) < 128 * KIB
        clock.advance(1e9)
        refused(write, driver, file, 1 << 20, b"x" * 128 * KIB)
    driver.close_file(file)
    driver.release(node)
