from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyvirtfs.fsdev import listing as module
from pyvirtfs.fsdev.driver import DirectoryEntry, Qid
from pyvirtfs.fsdev.entries import Node
from pyvirtfs.fsdev.listing import find_name
from pyvirtfs.fsdev.local import LocalDriver
from pyvirtfs.fsdev.local_core import LocalFile
from pyvirtfs.syscalls import getdents64

At = Callable[[bytes], Node]
pytestmark = [
    pytest.mark.usefixtures("tidy"),
    pytest.mark.parametrize("security_model", ["unmapped", "mapped-file"], indirect=True),
]


def fill(root: Path, count: int) -> list[bytes]:
    names = [b"%06d" % index for index in range(count)]
    fd = os.open(root, os.O_PATH)
    for name in names:
        os.close(os.open(name, os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=fd))
    os.close(fd)
    return names


def read(driver: LocalDriver, file: LocalFile, cookie: int) -> list[DirectoryEntry]:
    """A batch with names for its fields."""
    return [DirectoryEntry(Qid(*qid), place, kind, name) for qid, place, kind, name in driver.readdir(file, cookie)]


def take(driver: LocalDriver, file: LocalFile, portion: int, cookie: int = 0) -> list[DirectoryEntry]:
    """List as a server with small replies does."""
    found: list[DirectoryEntry] = []
    while entries := read(driver, file, cookie):
        found.extend(entries[:portion])
        cookie = found[-1].cookie
    return found


@pytest.fixture
def opened(driver: LocalDriver, at: At) -> Iterator[LocalFile]:
    file, _ = driver.open(at(b""), os.O_RDONLY, 0)
    yield file
    driver.close_file(file)


def test_types_and_paths(driver: LocalDriver, at: At, root: Path, opened: LocalFile) -> None:
    (root / "folder").mkdir()
    (root / "file").touch()
    (root / "\udcff").touch()
    (root / ("n" * 255)).touch()
    os.symlink("file", root / "link")
    os.mkfifo(root / "fifo")
    found = {entry.name: entry for entry in read(driver, opened, 0)}
    assert set(found) == {b".", b"..", b"folder", b"file", b"\xff", b"n" * 255, b"link", b"fifo"}
    for name, entry in found.items():
        if name == b"..":
            continue
        status = os.lstat(os.fsencode(root) + b"/" + name)
        assert entry.qid.path == status.st_ino
        kind = stat.S_IFMT(status.st_mode)
        assert entry.type == (0 if driver._model.mapped and kind == stat.S_IFREG else kind >> 12)
        assert entry.qid.type == {stat.S_IFDIR: 0x80, stat.S_IFLNK: 0x02}.get(stat.S_IFMT(status.st_mode), 0)
    # The folder that the export is in is none of the guest's business.
    assert found[b".."].qid == found[b"."].qid


def test_dot_dot_below_the_root(driver: LocalDriver, at: At, root: Path) -> None:
    (root / "folder").mkdir()
    file, _ = driver.open(at(b"folder"), os.O_RDONLY, 0)
    found = {entry.name: entry.qid.path for entry in read(driver, file, 0)}
    assert found == {b".": (root / "folder").stat().st_ino, b"..": root.stat().st_ino}
    driver.close_file(file)


@pytest.mark.parametrize("portion", [1, 100, 10_000])
def test_portions_of_any_size(driver: LocalDriver, root: Path, opened: LocalFile, portion: int) -> None:
    names = fill(root, 1300)
    found = take(driver, opened, portion)
    assert sorted(entry.name for entry in found) == sorted([b".", b"..", *names])
    assert len({entry.cookie for entry in found}) == len(found)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_the_same_cookie_gives_the_same_entries(driver: LocalDriver, at: At, root: Path, data: st.DataObject) -> None:
    if not (root / "000000").exists():
        fill(root, 1300)
    file, _ = driver.open(at(b""), os.O_RDONLY, 0)
    whole = take(driver, file, 10_000)
    for _ in range(20):
        index = data.draw(st.integers(0, len(whole) - 1))
        entries = read(driver, file, whole[index].cookie)
        assert list(entries) == whole[index + 1 : index + 1 + len(entries)]
        assert entries or index == len(whole) - 1
    driver.close_file(file)


def test_deleting_while_listing(driver: LocalDriver, at: At, root: Path, opened: LocalFile) -> None:  # H044, H086
    names = fill(root, 1500)
    seen: list[bytes] = []
    cookie = 0
    while entries := read(driver, opened, cookie):
        for entry in entries[:90]:
            seen.append(entry.name)
            cookie = entry.cookie
            if entry.name not in {b".", b".."}:
                driver.unlinkat(at(b""), entry.name, folder=False)
    assert sorted(seen) == sorted([b".", b"..", *names])
    assert [entry.name for entry in read(driver, opened, 0)] in ([b".", b".."], [b"..", b"."])


def test_a_batch_asked_for_again_is_the_same_one(driver: LocalDriver, root: Path, opened: LocalFile) -> None:
    fill(root, 1300)
    first = read(driver, opened, 0)
    for cookie in (first[-1].cookie, first[5].cookie):
        entries = list(read(driver, opened, cookie))
        assert len(entries) > 2
        (root / os.fsdecode(entries[1].name)).unlink()
        assert list(read(driver, opened, cookie)) == entries


def test_rewinding_reads_afresh(driver: LocalDriver, root: Path, opened: LocalFile) -> None:
    assert len(read(driver, opened, 0)) == 2
    (root / "new").touch()
    assert len(read(driver, opened, 0)) == 3


def test_a_removed_folder_is_empty(driver: LocalDriver, at: At, root: Path) -> None:
    (root / "folder").mkdir()
    file, _ = driver.open(at(b"folder"), os.O_RDONLY, 0)
    assert len(read(driver, file, 0)) == 2
    (root / "folder").rmdir()
    assert list(read(driver, file, 0)) == []
    driver.close_file(file)


@pytest.mark.parametrize("cookie", [1, 12345, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
def test_forged_cookies(driver: LocalDriver, root: Path, opened: LocalFile, cookie: int) -> None:
    fill(root, 10)
    try:
        found = len(read(driver, opened, cookie))
    except OSError as error:
        found = -(error.errno or 0)
    assert found in {-errno.EINVAL, *range(13)}
    assert len(read(driver, opened, 0)) == 12


def test_batches_are_not_kept_for_ever(
    driver: LocalDriver, at: At, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_KEPT", 2)
    names = fill(root, 50)
    files = [driver.open(at(b""), os.O_RDONLY, 0)[0] for _ in range(4)]
    cookies = [0] * 4
    found: list[list[bytes]] = [[] for _ in files]
    while any(cookie >= 0 for cookie in cookies):  # all at once, in small portions
        for index, file in enumerate(files):
            if cookies[index] >= 0:
                entries = read(driver, file, cookies[index])[:3]
                found[index].extend(entry.name for entry in entries)
                cookies[index] = entries[-1].cookie if entries else -1
                assert len(driver._listings.kept) <= 2
    assert all(sorted(seen) == sorted([b".", b"..", *names]) for seen in found)
    for file in files:
        read(driver, file, 0)
        driver.close_file(file)
    assert not driver._listings.kept


@pytest.mark.parametrize("place", ["tmpfs"], indirect=True)  # once is enough, and faster there
def test_a_hundred_thousand_entries(driver: LocalDriver, root: Path, opened: LocalFile) -> None:  # H086
    names = fill(root, 100_000)
    assert sorted(entry.name for entry in take(driver, opened, 250)) == [b".", b"..", *names]


def test_find_name(root: Path) -> None:
    (root / "a").touch()
    os.link(root / "a", root / "b")
    inode = (root / "a").stat().st_ino
    path = os.fsencode(root)
    assert find_name(path, inode, lambda name: name == b"b") == b"b"
    assert find_name(path, inode, lambda _: False) is None


@pytest.fixture
def mount(root: Path) -> Iterator[None]:
    """Another file system at folder/mnt, and a file of it mounted over a file."""
    (root / "folder" / "mnt").mkdir(parents=True)
    (root / "folder" / "plain").mkdir()
    (root / "folder" / "file").touch()
    if (
        shutil.which("mount") is None
        or subprocess.run(
            ["mount", "-t", "tmpfs", "none", root / "folder" / "mnt"], check=False, capture_output=True
        ).returncode
    ):
        pytest.skip("may not mount")
    (root / "folder/mnt/inner").mkdir()
    (root / "folder/mnt/source").touch()
    subprocess.run(["mount", "--bind", root / "folder/mnt/source", root / "folder/file"], check=True)
    yield
    subprocess.run(["umount", root / "folder/file"], check=True)
    subprocess.run(["umount", root / "folder/mnt"], check=True)


@pytest.mark.usefixtures("mount")
def test_listings_agree_with_walks_across_mounts(
    driver: LocalDriver, at: At, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at: list[bytes] = []
    shown = type(driver._table).shown

    def count(self: object, fd: int, name: bytes) -> tuple[int, int]:
        looked_at.append(name)
        return shown(driver._table, fd, name)

    monkeypatch.setattr(type(driver._table), "shown", count)
    paths: dict[bytes, int] = {}
    for folder in (b"folder", b"folder/mnt", b"folder/mnt/inner"):
        looked_at.clear()
        node = at(folder)
        file, _ = driver.open(node, os.O_RDONLY, 0)
        for entry in read(driver, file, 0):
            walk = driver.walk(node, [entry.name])
            assert walk.qids[0].path == entry.qid.path, (folder, entry.name)
            assert walk.qids[0].type == entry.qid.type
            assert walk.node is not None
            driver.release(walk.node)
            paths[folder + b"/" + entry.name] = entry.qid.path
        driver.close_file(file)
        assert set(looked_at) <= {b"mnt", b"file", b".."}
    names = [b"folder/mnt", b"folder/file", b"folder/plain", b"folder/mnt/inner", b"folder/."]
    assert len({paths[name] for name in names}) == len(names)
    assert paths[b"folder/file"] == paths[b"folder/mnt/source"]
    assert paths[b"folder/mnt/.."] == paths[b"folder/."]


@pytest.mark.usefixtures("mount")
def test_forbidden_devices(root: Path, driver: LocalDriver, no_leak: None) -> None:
    export = LocalDriver(root, "none", multidevs="forbid")
    top, _ = export.attach(b"", 0)
    walk = export.walk(top, [b"folder", b"mnt"])
    assert (len(walk.qids), walk.node) == (1, None)
    folder = export.walk(top, [b"folder"]).node
    assert folder is not None
    with pytest.raises(OSError, match="No such device") as caught:
        export.walk(folder, [b"mnt"])
    assert caught.value.errno == errno.ENODEV
    file, _ = export.open(folder, os.O_RDONLY, 0)
    assert b"mnt" in [entry.name for entry in read(export, file, 0)]
    export.close()


@pytest.mark.parametrize("kind", [0x794C7630, 0x9123683E])
def test_file_systems_whose_listings_do_not_tell(
    driver: LocalDriver, root: Path, opened: LocalFile, monkeypatch: pytest.MonkeyPatch, kind: int
) -> None:
    fill(root, 3)
    monkeypatch.setattr(module, "fstatfs", lambda _fd: type("Figures", (), {"type": kind}))
    assert {entry.qid.path for entry in read(driver, opened, 0)} == {
        root.stat().st_ino, *(path.stat().st_ino for path in root.iterdir()),
    }  # fmt: skip
    suspect = next(iter(driver._listings.suspects.values()))
    assert suspect == (-1 if kind == 0x794C7630 else 256)


def test_file_systems_without_types(
    driver: LocalDriver, root: Path, opened: LocalFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DT_UNKNOWN: the objects are looked at."""
    (root / "folder").mkdir()
    real = getdents64

    def untyped(fd: int, buffer: bytearray) -> int:
        nbytes = real(fd, buffer)
        at = 0
        while at < nbytes:
            buffer[at + 18] = 0
            at += int.from_bytes(buffer[at + 16 : at + 18], "little")
        return nbytes

    monkeypatch.setattr(module, "getdents64", untyped)
    found = {entry.name: entry for entry in read(driver, opened, 0)}
    assert (found[b"folder"].type, found[b"folder"].qid.type) == (4, 0x80)
    assert found[b"folder"].qid.path == (root / "folder").stat().st_ino


def test_a_large_inode_number_has_the_path_that_getattr_tells(
    driver: LocalDriver, at: At, root: Path, opened: LocalFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers from 2**63 on are no qid paths, also when no other entry of the folder has to be looked at."""
    (root / "sub").mkdir()
    (root / "sub" / "file").touch()
    big = (1 << 63) + 77
    inode = (root / "sub" / "file").stat().st_ino

    def enlarge(fd: int, buffer: bytearray) -> int:
        nbytes = getdents64(fd, buffer)
        at = buffer.find(inode.to_bytes(8, "little"), 0, nbytes)
        if at >= 0:
            buffer[at : at + 8] = big.to_bytes(8, "little")
        return nbytes

    monkeypatch.setattr(module, "getdents64", enlarge)
    monkeypatch.setattr(type(driver._table), "shown", lambda *_args: (0o100644, driver._table.qids.path(1, 77)))
    file, _ = driver.open(at(b"sub"), os.O_RDONLY, 0)
    found = {entry.name: entry for entry in read(driver, file, 0)}
    assert found[b"file"].qid.path == driver._table.qids.path(1, 77)
    assert found[b"."].qid.path == (root / "sub").stat().st_ino
    driver.close_file(file)
