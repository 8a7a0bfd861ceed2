"""What ordinary programs do with files, from a mount in the guest, compared with the folder on the host."""

from __future__ import annotations

import errno
import os
import random
import stat
import struct
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyvirtfs.errors import DeviceError
from pyvirtfs.fsdev import registry
from pyvirtfs.guest import FEW_DESCRIPTORS, GuestPath, Machine, Mount
from pyvirtfs.guest.files import read_entries
from pyvirtfs.memory import GuestMemory
from pyvirtfs.p9 import constants as c
from pyvirtfs.testing import DelayedDriver, Pair, check_descriptors, pair
from pyvirtfs.virtio9p import Virtio9pPci

IS_ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not IS_ROOT, reason="needs root on the host")


@pytest.fixture
def export(tmp_path: Path) -> Path:
    folder = tmp_path / "export"
    folder.mkdir(mode=0o755)
    return folder


@pytest.fixture
def stack(export: Path) -> Iterator[Pair]:
    model = "passthrough" if IS_ROOT else "none"
    with check_descriptors(), pair(f"local,path={export},security_model={model}") as both:
        yield both
        assert both.session.client.fids == {both.mount.root_fid}, "the file API leaks fids"


@pytest.fixture
def root(stack: Pair) -> GuestPath:
    return stack.mount.root


# --- contents ---


def test_text_and_bytes(root: GuestPath, export: Path) -> None:
    assert (root / "virtfs_file").write_text("Hi Guest\nagain\n") == 15
    assert (export / "virtfs_file").read_text() == "Hi Guest\nagain\n"
    assert (root / "virtfs_file").read_text() == "Hi Guest\nagain\n"
    data = random.Random(1).randbytes(1_000_003)
    (root / "big").write_bytes(data)
    assert (export / "big").read_bytes() == data
    assert (root / "big").read_bytes() == data


def test_open_modes(root: GuestPath, export: Path) -> None:
    path = root / "file"
    with path.open("x", encoding="latin-1") as file:
        print("grün", file=file)
    assert (export / "file").read_bytes() == b"gr\xfcn\n"
    with pytest.raises(FileExistsError) as caught:
        path.open("x")
    assert caught.value.filename == "/file"
    with path.open("ab") as file:
        assert file.tell() == 5
        file.write(b"more\n")
        (export / "file").write_bytes(b"changed by the host\n")
    assert (export / "file").read_bytes() == b"changed by the host\nmore\n"
    with path.open("r+b") as file:
        file.seek(-5, os.SEEK_END)
        file.write(b"less")
        file.seek(0)
        assert list(file) == [b"changed by the host\n", b"less\n"]
        file.truncate(7)
    assert (export / "file").read_bytes() == b"changed"
    with path.open("w+") as file:
        assert file.read() == ""
        file.write("a")
        file.seek(0)
        assert file.read() == "a"
    for mode in ("", "rw", "rb+t", "z"):
        with pytest.raises(ValueError, match="mode"):
            path.open(mode)


def test_truncate_and_sparse(root: GuestPath, export: Path) -> None:
    path = root / "sparse"
    with path.open("wb") as file:
        file.seek(1 << 40)
        file.write(b"end")
    status = (export / "sparse").stat()
    assert status.st_size == (1 << 40) + 3
    assert status.st_blocks < 1000
    with path.open_raw() as raw:
        assert raw.pread(100_000, 1 << 39) == bytes(100_000)
        assert raw.pread(100, 1 << 40) == b"end"
        assert raw.pread(100, (1 << 40) + 3) == b""
    path.truncate(10)
    assert (export / "sparse").read_bytes() == bytes(10)
    path.truncate(5)
    assert path.stat().st_size == 5


def test_unlink_and_rename_while_open(root: GuestPath, export: Path) -> None:
    (root / "folder").mkdir()
    with (root / "folder" / "file").open_raw(os.O_RDWR | os.O_CREAT, 0o600) as file:
        file.write(b"before")
        (root / "folder").rename(root / "moved")
        (root / "moved" / "file").rename(root / "renamed")
        file.pwrite(b"B", 0)
        assert (export / "renamed").read_bytes() == b"Before"
        (root / "renamed").unlink()
        assert os.listdir(export) == ["moved"]
        assert file.pread(10, 0) == b"Before"
        assert file.pwrite(b"after", 6) == 5
        file.truncate(8)
        file.chmod(0o640)
        file.fsync()
        status = file.stat()
        assert (status.st_size, status.st_nlink, stat.S_IMODE(status.st_mode)) == (8, 0, 0o640)


def test_rename_over(root: GuestPath, export: Path) -> None:
    (root / "a").write_text("a")
    (root / "b").write_text("b")
    with (root / "b").open_raw() as old:
        (root / "a").replace(root / "b")
        assert old.pread(1, 0) == b"b"
    assert (export / "b").read_text() == "a"
    (root / "folder" / "full").mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        (root / "b").rename(root / "folder")
    (root / "empty").mkdir()
    (root / "folder").rename(root / "empty")
    assert os.listdir(export / "empty") == ["full"]
    with pytest.raises(OSError, match="not empty"):
        (root / "empty").rmdir()
    with pytest.raises(OSError, match="Invalid"):
        (root / "empty").rename(root / "empty" / "full" / "inside")


# --- names and links ---


def test_links(root: GuestPath, export: Path) -> None:
    (root / "folder").mkdir()
    (root / "folder" / "file").write_text("x")
    (root / "hard").hardlink_to(root / "folder" / "file")
    (root / "soft").symlink_to("folder/file")
    (root / "folder" / "up").symlink_to("../hard")
    (root / "absolute").symlink_to("/folder/../folder/file")
    (root / "loop").symlink_to("loop")
    (root / "dangling").symlink_to("nowhere")
    (root / "to_folder").symlink_to("folder")
    assert (export / "hard").samefile(export / "folder" / "file")
    assert os.readlink(export / "absolute") == "/folder/../folder/file"
    for name in ("hard", "soft", "folder/up", "absolute", "to_folder/file", "to_folder/up"):
        assert (root / name).read_text() == "x", name
    assert (root / "hard").stat().st_nlink == 2
    assert (root / "soft").lstat().st_size == len("folder/file")
    assert (root / "soft").is_symlink()
    assert (root / "soft").is_file()
    assert not (root / "dangling").exists()
    assert (root / "dangling").is_symlink()
    with pytest.raises(OSError, match="symbolic links") as caught:
        (root / "loop").stat()
    assert caught.value.errno == errno.ELOOP
    with pytest.raises(NotADirectoryError):
        (root / "hard" / "below").stat()
    with pytest.raises(FileNotFoundError):
        (root / "folder" / "no" / "where").stat()


@pytest.mark.parametrize("name", [b"\xff\xfe", b"gr\xc3\xbcn", b"new\nline", b" ", b"\x01", b"x" * 255, b"..."])
def test_names_are_bytes(root: GuestPath, export: Path, name: bytes) -> None:
    (root / name).write_text("x")
    assert os.listdir(os.fsencode(export)) == [name]
    [path] = root.iterdir()
    assert path.names == (name,)
    assert path == root / os.fsdecode(name)
    assert path.read_text() == "x"
    path.unlink()
    assert os.listdir(export) == []


def test_deep_tree(root: GuestPath, export: Path) -> None:
    """Deeper than one Twalk, and longer than PATH_MAX."""
    path = root
    for depth in range(60):
        path = path / (f"{depth:02}" + "d" * 98)
        path.mkdir()
    (path / "leaf").write_text("deep")
    assert len(bytes(path)) > 4096
    assert (path / "leaf").read_text() == "deep"
    assert (path / ".." / ".." / path.parent.name / path.name / "leaf").stat().st_size == 4
    assert len(list(root.walk())) == 61
    for folder, _, files in root.walk(top_down=False):
        for name in files:
            (folder / name).unlink()
        if folder != root:
            folder.rmdir()
    assert os.listdir(export) == []


# --- attributes ---


def test_modes_and_umask(root: GuestPath, export: Path) -> None:
    os.umask(previous := os.umask(0))
    with (root / "file").open_raw(os.O_WRONLY | os.O_CREAT, 0o777):
        pass
    (root / "folder").mkdir(0o777)
    assert stat.S_IMODE((export / "file").stat().st_mode) == 0o755
    assert stat.S_IMODE((export / "folder").stat().st_mode) == 0o755
    for mode in (0, 0o777, 0o4711, 0o2755, 0o1777, 0o640):
        (root / "folder").chmod(mode)
        assert stat.S_IMODE((export / "folder").stat().st_mode) == mode
        assert stat.S_IMODE((root / "folder").stat().st_mode) == mode
    assert os.umask(previous) == previous


@needs_root
def test_users_and_groups(stack: Pair, root: GuestPath, export: Path) -> None:
    root.chmod(0o777)
    user = stack.mount.as_user(1234, gid=5678)
    (user.root / "mine").write_text("x")
    status = (export / "mine").stat()
    assert (status.st_uid, status.st_gid) == (1234, 5678)
    (root / "mine").chown(99, 98)
    assert (root / "mine").stat().st_uid == (export / "mine").stat().st_uid == 99
    (root / "mine").chown(gid=7)
    assert ((export / "mine").stat().st_uid, (export / "mine").stat().st_gid) == (99, 7)
    (root / "shared").mkdir()
    (root / "shared").chown(0, 4321)
    (root / "shared").chmod(0o2777)
    (user.root / "shared" / "below").mkdir()
    below = (export / "shared" / "below").stat()
    assert (below.st_uid, below.st_gid, bool(below.st_mode & stat.S_ISGID)) == (1234, 4321, True)
    user.umount()


@needs_root
def test_set_id_bits_go_when_an_ordinary_user_writes(stack: Pair, root: GuestPath, export: Path) -> None:
    user = stack.mount.as_user(1234)
    acts: list[Callable[[GuestPath], Any]] = [lambda path: path.write_text("x"), lambda path: path.truncate(1)]
    for act in acts:
        (root / "program").write_text("binary")
        (root / "program").chown(1234, 1234)
        (root / "program").chmod(0o6777)
        act(user.root / "program")
        assert (export / "program").stat().st_mode & (stat.S_ISUID | stat.S_ISGID) == 0
    user.umount()


@needs_root
def test_device_nodes(root: GuestPath, export: Path) -> None:
    (root / "null").mknod(stat.S_IFCHR | 0o666, os.makedev(1, 3))
    (root / "odd").mknod(stat.S_IFBLK | 0o600, os.makedev(259, 70000))
    assert (export / "null").stat().st_rdev == (root / "null").stat().st_rdev == os.makedev(1, 3)
    assert (export / "odd").stat().st_rdev == (root / "odd").stat().st_rdev == os.makedev(259, 70000)
    with pytest.raises(OSError, match="No such device"):
        (root / "null").open("rb")


def test_times(root: GuestPath, export: Path) -> None:
    (root / "file").touch()
    (root / "link").symlink_to("file")
    for ns in ((1, 2), (-1, -1_500_000_000), (2**33 * 10**9 + 123_456_789, 987_654_321)):
        (root / "file").utime(ns=ns)
        host, guest = (export / "file").stat(), (root / "file").stat()
        assert (host.st_atime_ns, host.st_mtime_ns) == (guest.st_atime_ns, guest.st_mtime_ns) == ns
    (root / "link").utime(ns=(5, 6), follow_symlinks=False)
    assert (export / "link").lstat().st_mtime_ns == 6
    assert (export / "file").stat().st_mtime_ns == 987_654_321
    before = time.time_ns()
    (root / "file").utime()
    assert abs((export / "file").stat().st_mtime_ns - before) < 5 * 10**9


def test_stat_of_everything(root: GuestPath, export: Path) -> None:
    (root / "file").write_bytes(bytes(5000))
    (root / "folder").mkdir()
    for name in ("file", "folder"):
        host, guest = (export / name).stat(), (root / name).stat()
        for field in ("st_mode", "st_nlink", "st_uid", "st_gid", "st_size", "st_blocks", "st_mtime_ns", "st_ctime_ns"):
            assert getattr(host, field) == getattr(guest, field), field
    assert (root / "file").stat().st_ino != (root / "folder").stat().st_ino


def test_extended_attributes(root: GuestPath, export: Path) -> None:
    path = root / "file"
    path.touch()
    big = random.Random(2).randbytes(3000)
    path.setxattr("user.small", b"s")
    path.setxattr("user.big", big)
    assert os.getxattr(export / "file", "user.big") == big == path.getxattr("user.big")
    assert sorted(path.listxattr()) == sorted(os.listxattr(export / "file")) == ["user.big", "user.small"]
    with pytest.raises(FileExistsError):
        path.setxattr("user.small", b"other", os.XATTR_CREATE)
    with pytest.raises(OSError, match="No data"):
        path.setxattr("user.none", b"other", os.XATTR_REPLACE)
    path.removexattr("user.small")
    assert os.listxattr(export / "file") == ["user.big"]
    with pytest.raises(OSError, match="No data"):
        path.getxattr("user.small")


def test_statvfs(root: GuestPath, export: Path) -> None:
    host, guest = os.statvfs(export), root.statvfs()
    assert guest.f_namemax == host.f_namemax
    assert (guest.f_bsize, guest.f_blocks) == (host.f_bsize, host.f_blocks)


def test_locks(stack: Pair, root: GuestPath) -> None:
    with (root / "file").open_raw(os.O_RDWR | os.O_CREAT) as one, (root / "file").open_raw(os.O_RDWR) as two:
        one.lock(start=0, length=10, pid=1)
        one.lock(exclusive=False, start=100, pid=1)
        with pytest.raises(BlockingIOError):
            two.lock(start=5, length=1, pid=2)
        two.lock(exclusive=False, start=1000, length=5, pid=2)
        found = two.getlock(start=0, length=50, pid=2)
        assert found is not None
        assert (found.type, found.start, found.length, found.proc_id) == (c.LOCK_TYPE_WRLCK, 0, 10, 1)
        assert two.getlock(start=10, length=50, pid=2) is None
        one.unlock(start=0, length=10, pid=1)
        two.lock(start=5, length=1, pid=2)
    with (root / "file").open_raw(os.O_RDWR) as three:
        three.lock(pid=3)  # closing released the others


# --- folders ---


def test_folder_of_100_000_entries_that_changes_while_it_is_listed(tmp_path_factory: Any) -> None:
    """Every name that was there all the time is seen exactly once, whatever comes and goes (readdir(3))."""
    shm = Path("/dev/shm")
    folder = shm if os.access(shm, os.W_OK) else tmp_path_factory.getbasetemp()
    export = folder / f"pyvirtfs-{os.getpid()}"
    export.mkdir()
    parent = os.open(export, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for i in range(100_000):
            os.close(os.open(f"{i:05}", os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=parent))
        with check_descriptors(), pair(f"local,path={export},security_model=none", msize=512_000) as both:
            seen, removed = [], set()
            for i, name in enumerate(list_by_hand(both)):
                seen.append(name)
                if i % 1000 == 0:
                    os.unlink(f"{(i * 7) % 100_000:05}", dir_fd=parent)
                    removed.add(b"%05d" % ((i * 7) % 100_000))
                    os.close(os.open(f"new{i}", os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=parent))
        assert len(seen) == len(set(seen))
        assert {b"%05d" % i for i in range(100_000)} - removed <= set(seen)
        assert {b".", b".."} <= set(seen)
    finally:
        for left in os.listdir(parent):
            os.unlink(left, dir_fd=parent)
        os.close(parent)
        export.rmdir()


def list_by_hand(both: Pair) -> Iterator[bytes]:
    """The names in the root; unpacked here, since 100,000 entries through construct take seconds."""
    session, offset = both.session, 0
    buffer = both.mount.allocate(session.max_io)
    with both.mount.root.open_raw(os.O_RDONLY | os.O_DIRECTORY) as folder:
        while True:
            call = session.client.request("Treaddir", fid=folder.fid, offset=offset, count=buffer.nbytes)
            data = session.finish(session.start(call, lent=buffer))["data"]
            if not data:
                return
            at = 0
            while at < len(data):
                offset, _, nbytes = struct.unpack_from("<QBH", data, at + 13)
                yield bytes(data[at + 24 : at + 24 + nbytes])
                at += 24 + nbytes


def test_listing_from_an_offset(root: GuestPath, export: Path) -> None:
    for i in range(300):
        (export / f"{i:03}").touch()
    with root.open_raw(os.O_RDONLY | os.O_DIRECTORY) as folder:
        entries = list(read_entries(folder))
        assert len(entries) == 302
        for at in (0, 1, 150, 300, 301):
            assert list(read_entries(folder, entries[at].offset)) == entries[at + 1 :]
    assert sorted(path.name for path in root.iterdir()) == [f"{i:03}" for i in range(300)]


def test_remove_a_tree_while_it_is_open(root: GuestPath, export: Path) -> None:
    for i in range(50):
        (root / "tree" / f"{i}").mkdir(parents=True, exist_ok=True)
        (root / "tree" / f"{i}" / "file").touch()
    for folder, _, files in root.walk(top_down=False):
        for name in files:
            (folder / name).unlink()
        if folder != root:
            folder.rmdir()
    assert os.listdir(export) == []


# --- many at once ---


@pytest.mark.parametrize("options", [{}, {"defer": True}, {"use_msix": False}], ids=["", "deferred", "intx"])
def test_128_requests_in_flight(export: Path, options: dict[str, Any]) -> None:
    for i in range(128):
        (export / str(i)).write_bytes(bytes(i))
    with pair(f"local,path={export},security_model=none", **options) as both:
        session, counters = both.session, both.channel.driver.counters
        fids = [session.walk(both.mount.root_fid, [b"%d" % i]) for i in range(128)]
        kicks, interrupts = counters.kicks, counters.queue_interrupts
        sent = [session.start(session.client.getattr(fid), kick=False) for fid in fids]
        assert both.channel.queue.ring.free == 0
        both.channel.queue.kick()
        sizes = [session.finish(one).size for one in reversed(sent)]
        assert sizes == list(reversed(range(128)))
        assert counters.kicks == kicks + 1
        assert counters.queue_interrupts <= interrupts + 2
        sent = [session.start(session.client.getattr(fid), kick=False) for fid in fids * 3]  # more than fit
        both.channel.queue.kick()
        assert [session.finish(one).size for one in sent] == list(range(128)) * 3


def test_answers_in_another_order(export: Path) -> None:
    (export / "file").write_bytes(b"0123456789")
    inner = registry.create(f"local,path={export},security_model=none")
    driver = DelayedDriver(inner, {"read"})
    with check_descriptors(), pair(driver, timeout=2) as both:
        session = both.session
        with both.mount.path("file").open_raw() as file:
            sent = [session.start(session.client.read(file.fid, i, 1)) for i in range(10)]
            assert not any(one.done for one in sent)
            assert both.mount.path("file").exists()  # others overtake
            assert driver.release_reversed() == 10
            assert [session.finish(one) for one in sent] == [b"%d" % i for i in range(10)]
    inner.close()


def test_answers_from_another_thread(export: Path) -> None:
    (export / "file").write_bytes(b"0123456789")
    driver = DelayedDriver(registry.create(f"local,path={export},security_model=none"), {"read", "walk"}, after=0.01)
    with pair(driver, timeout=5) as both:
        assert both.mount.path("file").read_bytes() == b"0123456789"
        assert both.channel.driver.counters.spurious_interrupts == 0
    driver.close()


@pytest.mark.parametrize("ignore_cancel", [False, True])
def test_flush(export: Path, ignore_cancel: bool) -> None:
    (export / "file").write_bytes(b"0123456789")
    driver = DelayedDriver(
        registry.create(f"local,path={export},security_model=none"), {"read"}, ignore_cancel=ignore_cancel
    )
    with pair(driver, timeout=1) as both:
        session = both.session
        with both.mount.path("file").open_raw() as file:
            read = session.start(session.client.read(file.fid, 0, 4))
            flushes = [session.start(session.client.flush(read.call)) for _ in range(3)]
            if ignore_cancel:  # it ends in its own time, and the flushes wait for that
                with pytest.raises(DeviceError, match="does not answer"):
                    session.finish(flushes[0], timeout=0.05)
                driver.release_all()
                for flush in flushes:
                    both.channel.wait(flush.request)
                assert read.done
                assert session.finish(read) == b"0123"
                for flush in flushes:
                    session.finish(flush)
            else:
                both.channel.wait(flushes[-1].request)
                assert read.request.nbytes == 0  # no reply
                with pytest.raises(InterruptedError):
                    session.finish(read)
                for flush in flushes:
                    session.finish(flush)
            driver.delay.clear()
            assert file.pread(10, 0) == b"0123456789"
    driver.close()


def test_reset_with_requests_in_flight(export: Path) -> None:
    (export / "file").write_bytes(b"0123456789")
    driver = DelayedDriver(registry.create(f"local,path={export},security_model=none"), {"read"}, ignore_cancel=True)
    with pair(driver, timeout=1) as both:
        file = both.mount.path("file").open_raw()
        buffer = both.mount.allocate(4096)
        call = both.session.client.read(file.fid, 0, 4096)
        both.session.start(call, lent=buffer)
        held = list(driver.waiting())
        reset = both.channel.driver.common
        reset.write("device_status", 0)
        for one in held:
            assert one.cancelled
            one.release()
        both.device.run_pending()
        messages = both.guest.interrupts.messages
        driver.delay.clear()
        both.remount()
        assert both.guest.interrupts.messages <= messages + 3  # those of the new mount, none for the old request
        assert both.mount.path("file").read_bytes() == b"0123456789"
    driver.close()


def test_two_devices_on_one_bus(tmp_path: Path) -> None:
    memory = GuestMemory.anonymous(64 << 20)
    machine = Machine(memory, ecam=True)
    folders = [tmp_path / "one", tmp_path / "two"]
    devices = []
    with check_descriptors():
        for slot, folder in enumerate(folders, 4):
            folder.mkdir()
            (folder / "name").write_text(folder.name)
            device = Virtio9pPci(f"local,path={folder},security_model=none", mount_tag=folder.name, memory=memory)
            machine.plug(device, slot)
            devices.append(device)
        mounts = [machine.mount(folder.name) for folder in folders]
        with pytest.raises(FileNotFoundError):
            machine.mount("three")
        assert [mount.path("name").read_text() for mount in mounts] == ["one", "two"]
        (mounts[0].root / "copy").write_bytes((mounts[1].root / "name").read_bytes())
        assert (folders[0] / "copy").read_text() == "two"
        files = [mount.path("name").open_raw() for mount in mounts]
        sent = [file.mount.session.start(file.mount.session.client.read(file.fid, 0, 10)) for file in files * 20]
        got = [file.mount.session.finish(one) for file, one in zip(files * 20, sent, strict=True)]
        assert got == [b"one", b"two"] * 20
        for file in files:
            file.close()
        for device in devices:
            device.close()
    assert machine.interrupts.unclaimed == 0


# --- payloads are not copied into Python ---


@pytest.mark.parametrize("shapes", [FEW_DESCRIPTORS, None], ids=["contiguous", "pages"])
def test_payloads_allocate_nothing_of_their_size(export: Path, shapes: Any) -> None:
    nbytes = 500 << 10
    (export / "file").write_bytes(os.urandom(nbytes))
    options = {} if shapes is None else {"shapes": shapes}
    with pair(f"local,path={export},security_model=none", msize=512_000 + 512, **options) as both:
        mount: Mount = both.mount
        session = both.session
        count = min(nbytes, session.max_io)
        buffer = mount.allocate(count)
        with mount.path("file").open_raw(os.O_RDWR) as file:
            actions: list[Callable[[], Any]] = [
                lambda: (
                    both.channel.wait(
                        session.start(session.client.read(file.fid, 0, count), lent=buffer).request
                    ).nbytes
                ),
                lambda: file.write_dma(buffer, offset=0),
            ]
            for act in actions:
                act()  # warm: caches fill once
                tracemalloc.start()
                try:
                    tracemalloc.reset_peak()
                    before, _ = tracemalloc.get_traced_memory()
                    assert act() in {count, count + c.READ_HEADER_SIZE}
                    _, peak = tracemalloc.get_traced_memory()
                finally:
                    tracemalloc.stop()
                assert peak - before < 100_000, f"{peak - before} bytes for {count}"
