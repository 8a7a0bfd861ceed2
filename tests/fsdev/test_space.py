from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvirtfs.errors import ConfigError
from pyvirtfs.fsdev.driver import StatFs
from pyvirtfs.fsdev.space import SpaceLimits, fitting, measure
from pyvirtfs.testing import check_descriptors, fake_clock

MIB = 1 << 20
FIGURES = StatFs(type=1, bsize=4096, blocks=1000, bfree=500, bavail=400, files=7, ffree=3, fsid=9, namelen=255)


@pytest.fixture
def top(tmp_path: Path) -> int:
    return os.open(tmp_path, os.O_PATH)


def du(path: Path) -> int:
    output = subprocess.run(["du", "-sB512", path], check=True, capture_output=True, text=True).stdout
    return int(output.split()[0]) * 512


def test_it_measures_what_du_measures(tmp_path: Path, top: int) -> None:
    (tmp_path / "a" / "b" / "c").mkdir(parents=True)
    (tmp_path / "a" / "one").write_bytes(b"x" * 100_000)
    os.link(tmp_path / "a" / "one", tmp_path / "a" / "b" / "again")
    (tmp_path / "a" / "b" / "two").write_bytes(b"x")
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 40)
        file.write(b"x" * 5000)
    os.symlink("x" * 1000, tmp_path / "link")
    os.symlink("/usr", tmp_path / "elsewhere")
    os.mkfifo(tmp_path / "fifo")
    for number in range(300):
        (tmp_path / "a" / "b" / "c" / f"{number:0200}").touch()
    with check_descriptors():
        assert measure(top) == du(tmp_path) > 105_000
    os.close(top)


def test_a_tree_deeper_than_any_path(tmp_path: Path, top: int) -> None:
    depth = 300
    fd = os.dup(top)
    for _ in range(depth):
        os.mkdir(b"x" * 200, dir_fd=fd)
        below = os.open(b"x" * 200, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = below
    file = os.open(b"file", os.O_WRONLY | os.O_CREAT, dir_fd=fd)
    os.write(file, b"x" * 40_000)
    os.close(file)
    os.close(fd)
    assert measure(top) == du(tmp_path) >= 40_000
    os.close(top)
    subprocess.run(["rm", "-rf", tmp_path / ("x" * 200)], check=True)


def test_the_way_back_is_checked(tmp_path: Path, top: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that the host moves elsewhere meanwhile does not lead out of the export."""
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    (inside / "moved").mkdir(parents=True)
    (outside / "large").mkdir(parents=True)
    (outside / "large" / "file").write_bytes(b"x" * MIB)
    fd = os.open(inside, os.O_PATH)
    real = os.open

    def slow(path: bytes, flags: int, *, dir_fd: int) -> int:
        if path == b"..":
            (inside / "moved").rename(outside / "moved")
        return real(path, flags, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", slow)
    assert measure(fd) < MIB
    assert (outside / "moved").is_dir()
    os.close(fd)
    os.close(top)


@pytest.mark.parametrize("mode", [0o000, 0o400, 0o600])
def test_a_guest_cannot_hide_anything_in_a_folder_without_permissions(tmp_path: Path, mode: int) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_bytes(b"x" * 65536)
    code = f"""
import os, sys
from pyvirtfs.fsdev.space import SpaceLimits
if os.geteuid() == 0:
    for path in ({str(tmp_path)!r}, {str(tmp_path / "folder")!r}):
        os.chown(path, 1000, 1000)
root = os.open({str(tmp_path)!r}, os.O_PATH)
os.seteuid(1000 if os.geteuid() == 0 else os.geteuid())
limits = SpaceLimits(1 << 30, None)
limits.measure(root)
used = limits.used
os.chmod("folder", {mode:#o}, dir_fd=root)
limits.measure(root)
assert limits.used == used >= 65536, (limits.used, used)
os.chmod("folder", 0o700, dir_fd=root)
os.unlink("folder/file", dir_fd=root)
limits.measure(root)
assert limits.used < 65536
"""
    subprocess.run([sys.executable, "-c", code], check=True)


BLOCK = 4096


@pytest.fixture(scope="module")
def sparse() -> Iterator[int]:
    """A file of blocks and holes, `X` and `_`: X__XX_X, the last one with 9 bytes in it."""
    with tempfile.TemporaryFile(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as file:
        fd = file.fileno()
        for block in (0, 3, 4):
            os.pwrite(fd, b"x" * BLOCK, block * BLOCK)
        os.pwrite(fd, b"x" * 9, 6 * BLOCK)
        if os.lseek(fd, BLOCK, os.SEEK_DATA) != 3 * BLOCK or os.lseek(fd, 0, os.SEEK_HOLE) != BLOCK:
            pytest.skip("the file system of temporary files has no holes of one block")
        yield fd


@pytest.mark.parametrize(
    ("start", "end", "room", "fits"),
    [
        (0, BLOCK, 0, BLOCK),
        (0, BLOCK, -5, BLOCK),
        (10, 20, 0, 10),
        (10, BLOCK + 1, 0, BLOCK - 10),
        (10, BLOCK + 1, BLOCK - 1, BLOCK - 10),
        (10, BLOCK + 1, BLOCK, BLOCK - 9),
        (BLOCK, BLOCK + 1, BLOCK - 1, 0),
        (BLOCK + 100, 3 * BLOCK, BLOCK, BLOCK - 100),
        (BLOCK + 100, 5 * BLOCK, 2 * BLOCK, 4 * BLOCK - 100),
        (0, 7 * BLOCK, 2 * BLOCK, 5 * BLOCK),
        (0, 7 * BLOCK, 3 * BLOCK, 7 * BLOCK),
        (0, 8 * BLOCK, 3 * BLOCK, 7 * BLOCK),
        (0, 8 * BLOCK, 4 * BLOCK, 8 * BLOCK),
        (6 * BLOCK + 9, 7 * BLOCK, 0, BLOCK - 9),  # behind its end, but in its last block
        (6 * BLOCK + 9, 7 * BLOCK + 1, 0, BLOCK - 9),
        (7 * BLOCK, 7 * BLOCK + 1, BLOCK - 1, 0),
        (50 * BLOCK + 7, 60 * BLOCK, 3 * BLOCK, 3 * BLOCK - 7),
        (1 << 62, (1 << 62) + 100, BLOCK, 100),
    ],
)
def test_what_fits_of_a_write(sparse: int, start: int, end: int, room: int, fits: int) -> None:
    assert fitting(sparse, start, end, room, BLOCK) == fits


@given(
    blocks=st.lists(st.booleans(), max_size=12),
    tail=st.integers(1, BLOCK),
    start=st.integers(0, 14 * BLOCK),
    nbytes=st.integers(1, 10 * BLOCK),
    room=st.integers(-BLOCK, 12 * BLOCK),
)
def test_it_is_as_much_as_the_file_system_would_take(
    sparse: int, blocks: list[bool], tail: int, start: int, nbytes: int, room: int
) -> None:
    del sparse  # there is a file system with holes
    with tempfile.TemporaryFile(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as file:
        fd = file.fileno()
        for number, held in enumerate(blocks):
            if held:
                os.pwrite(fd, b"x" * (tail if number == len(blocks) - 1 else BLOCK), number * BLOCK)
        fits = fitting(fd, start, start + nbytes, room, BLOCK)
        before = os.fstat(fd).st_blocks
        if fits:
            os.pwrite(fd, b"y" * fits, start)
        taken = (os.fstat(fd).st_blocks - before) * 512
        assert taken <= max(room, 0)
        if fits < nbytes:
            os.pwrite(fd, b"y", start + fits)
            assert (os.fstat(fd).st_blocks - before) * 512 > room


@pytest.mark.parametrize(
    ("hard", "soft", "message"),
    [
        (0, None, "space_hard_limit: 0 bytes hold nothing"),
        (None, 0, "space_soft_limit: 0 bytes hold nothing"),
        (10, 11, "space_soft_limit: 11 is above space_hard_limit, which is 10"),
    ],
)
def test_wrong_limits(hard: int | None, soft: int | None, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        SpaceLimits(hard, soft)
    assert str(caught.value) == message


def test_what_fits() -> None:
    limits = SpaceLimits(100, None)
    limits.changed(60)
    assert limits.fits(40)
    assert not limits.fits(41)
    assert limits.room == 40
    limits.changed(-1000)
    assert limits.used == 0
    assert SpaceLimits(None, 5).fits(1 << 60)


def test_one_warning_each_time_that_the_soft_limit_is_passed(caplog: pytest.LogCaptureFixture) -> None:
    limits = SpaceLimits(None, 100)
    with caplog.at_level(logging.WARNING):
        for change in (100, 1, 1, 1):
            limits.changed(change)
        assert len(caplog.records) == 1
        limits.changed(-50)
        limits.changed(50)
    assert [record.message for record in caplog.records] == [
        "the export holds 101 bytes, more than space_soft_limit=100",
        "the export holds 103 bytes, more than space_soft_limit=100",
    ]


@pytest.mark.parametrize(
    ("hard", "soft", "used", "shown"),
    [
        (None, 4096 * 100, 4096 * 30, (100, 70, 70)),
        (4096 * 100, 4096 * 50, 4096 * 30, (50, 20, 20)),
        (4096 * 100, None, 4096 * 100 + 1, (100, 0, 0)),
        (4096 * 800, None, 0, (800, 500, 400)),
        (1 << 60, None, 4096, (1000, 500, 400)),
    ],
)
def test_what_the_guest_is_told(hard: int | None, soft: int | None, used: int, shown: tuple[int, int, int]) -> None:
    limits = SpaceLimits(hard, soft)
    limits.changed(used)
    figures = limits.shown(FIGURES)
    assert (figures.blocks, figures.bfree, figures.bavail) == shown
    assert figures[5:] == FIGURES[5:]


def test_a_file_system_without_a_block_size() -> None:
    assert SpaceLimits(512 * 8, None).shown(FIGURES._replace(bsize=0)).blocks == 8


@pytest.mark.parametrize(("bsize", "shown"), [(1 << 20, 4096), (6144, 6144), (4096, 4096), (1024, 1024)])
def test_large_blocks_do_not_round_the_limit(bsize: int, shown: int) -> None:
    """NFS tells of blocks as large as its transfers, others of those that they compress."""
    limits = SpaceLimits(shown * 300, None)
    limits.changed(shown * 20)
    figures = limits.shown(FIGURES._replace(bsize=bsize))
    assert (figures.bsize, figures.blocks, figures.bfree, figures.bavail) == (shown, 300, 280, 280)
    plenty = SpaceLimits(1 << 60, None).shown(FIGURES._replace(bsize=bsize))
    assert [count * plenty.bsize for count in plenty[2:5]] == [count * bsize for count in FIGURES[2:5]]


def test_measuring_again(tmp_path: Path, top: int) -> None:
    with fake_clock() as clock:
        limits = SpaceLimits(MIB, None)
        may = [limits.may_measure]
        (tmp_path / "file").write_bytes(b"x" * 8192)
        limits.measure(top, [10, 20])
        assert limits.used == du(tmp_path) + 30
        may.append(limits.may_measure)
        clock.advance(2)
        may.append(limits.may_measure)
    assert may == [True, False, True]
    os.close(top)
