"""Each 9P message through the whole stack: guest driver, ring, device, server; asserted in the host folder."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyvirtfs.errors import DeviceError
from pyvirtfs.guest import COPYING, FEW_DESCRIPTORS, LINUX, OLD_LINUX, UNALIGNED, Session, mount
from pyvirtfs.p9 import constants as c
from pyvirtfs.p9.messages import REQUESTS
from pyvirtfs.p9.results import LockRange
from pyvirtfs.testing import Pair, check_descriptors, pair
from pyvirtfs.virtio import features

IS_ROOT = os.geteuid() == 0
PLAIN = features.mask(features.VERSION_1)

GUESTS: dict[str, dict[str, Any]] = {
    "linux": {"shapes": LINUX},
    "old-linux-direct-intx": {"shapes": OLD_LINUX, "wanted": PLAIN, "use_msix": False},
    "few-descriptors-no-bus-polling": {"shapes": FEW_DESCRIPTORS, "bus": False, "polling": True},
    "copying-one-vector-deferred": {"shapes": COPYING, "vectors": 1, "defer": True},
}


@pytest.fixture
def export(tmp_path: Path) -> Path:
    folder = tmp_path / "export"
    folder.mkdir(mode=0o755)
    (folder / "file").write_bytes(b"Hi Guest")
    (folder / "folder").mkdir()
    (folder / "folder" / "below").write_bytes(b"deep")
    (folder / "link").symlink_to("file")
    return folder


@pytest.fixture(params=list(GUESTS))
def stack(export: Path, request: pytest.FixtureRequest) -> Iterator[Pair]:
    options = GUESTS[request.param]
    with check_descriptors(), pair(f"local,path={export},security_model=none", **options) as both:
        yield both
        assert both.session.client.calls == {}
        assert both.channel.broken is None


@pytest.fixture
def session(stack: Pair) -> Session:
    return stack.session


@contextlib.contextmanager
def walked(stack: Pair, *names: bytes) -> Iterator[int]:
    fid = stack.session.walk(stack.mount.root_fid, names)
    yield fid
    stack.session.clunk(fid)


def test_every_request_has_a_test_here() -> None:
    """The name of each of the 28 messages is the name of a test in this module."""
    tested = {name.split("_")[1] for name in globals() if name.startswith("test_t")}
    assert {message.name.lower() for message in REQUESTS} <= tested
    assert len(REQUESTS) == 28


# --- the session ---


def test_tversion(stack: Pair, session: Session) -> None:
    assert session.msize == 128 << 10
    before = session.walk(stack.mount.root_fid)
    answer = session.call("Tversion", msize=8192, version=b"9P2000.L")
    assert answer == {"msize": 8192, "version": b"9P2000.L"}
    with pytest.raises(OSError, match="No such file") as caught:  # a new session has no fids
        session.call("Tclunk", fid=before)
    assert caught.value.errno == 2
    stack.remount()


@pytest.mark.parametrize("version", [b"9P2001.L", b"9p2000", b"", b"nonsense"])
def test_tversion_of_an_unknown_dialect(stack: Pair, session: Session, version: bytes) -> None:
    assert session.call("Tversion", msize=8192, version=version)["version"] == b"unknown"
    stack.remount()


def test_tauth(session: Session) -> None:
    with pytest.raises(OSError, match="No such file") as caught:
        session.call("Tauth", afid=99, uname=b"root", aname=b"", n_uname=0)
    assert caught.value.errno == 2  # nobody need prove who he is; diod's clients take this answer for that


def test_tattach(stack: Pair, session: Session, export: Path) -> None:
    call = session.client.attach(uname=b"somebody", uid=1000)
    qid = session.run(call)
    assert qid.is_directory
    assert session.run(session.client.getattr(call.fid)).nlink == export.stat().st_nlink
    assert qid == session.run(session.client.getattr(stack.mount.root_fid)).qid
    session.clunk(call.fid)


def test_tflush(session: Session) -> None:
    assert session.call("Tflush", oldtag=12345) == {}  # of nothing: answered all the same, with an Rflush


def test_twalk(stack: Pair, session: Session, export: Path) -> None:
    fid, qids = session.try_walk(stack.mount.root_fid, [b"folder", b"below"])
    assert [qid.is_directory for qid in qids] == [True, False]
    assert session.run(session.client.getattr(fid)).size == len((export / "folder" / "below").read_bytes())
    session.clunk(fid)
    _, qids = session.try_walk(stack.mount.root_fid, [b"folder", b"missing", b"below"])
    assert len(qids) == 1
    with pytest.raises(FileNotFoundError):
        session.try_walk(stack.mount.root_fid, [b"missing"])
    _, up = session.try_walk(stack.mount.root_fid, [b".."] * 16)
    assert set(up) == {session.run(session.client.getattr(stack.mount.root_fid)).qid}


def test_tclunk(stack: Pair, session: Session) -> None:
    fid = session.walk(stack.mount.root_fid)
    session.clunk(fid)
    with pytest.raises(FileNotFoundError):
        session.call("Tclunk", fid=fid)


def test_tremove(stack: Pair, session: Session, export: Path) -> None:
    fid = session.walk(stack.mount.root_fid, [b"file"])
    session.run(session.client.remove(fid))
    assert not (export / "file").exists()
    busy = session.walk(stack.mount.root_fid, [b"folder"])
    with pytest.raises(OSError, match="not empty"):
        session.run(session.client.remove(busy))
    assert (export / "folder").is_dir()
    for gone in (fid, busy):  # whether it worked or not
        with pytest.raises(FileNotFoundError):
            session.call("Tclunk", fid=gone)


# --- open files ---


def test_tlopen(stack: Pair, session: Session) -> None:
    with walked(stack, b"file") as fid:
        opened = session.run(session.client.lopen(fid, c.DOTL_RDWR | c.DOTL_LARGEFILE))
        assert opened.qid.type == c.QTFILE
        assert opened.iounit <= session.max_io
        with pytest.raises(OSError, match="Invalid"):
            session.run(session.client.lopen(fid, c.DOTL_RDONLY))
    with walked(stack, b"folder") as fid:
        assert session.run(session.client.lopen(fid)).qid.is_directory


def test_tlcreate(stack: Pair, session: Session, export: Path) -> None:
    fid = session.walk(stack.mount.root_fid)
    flags = c.DOTL_RDWR | c.DOTL_CREATE | c.DOTL_EXCL | c.DOTL_LARGEFILE
    session.run(session.client.lcreate(fid, b"new", flags, stat.S_IFREG | 0o617, os.getegid()))
    assert session.run(session.client.write(fid, 0, b"content")) == 7
    session.clunk(fid)
    assert (export / "new").read_bytes() == b"content"
    assert stat.S_IMODE((export / "new").stat().st_mode) == 0o617
    with walked(stack) as fid, pytest.raises(FileExistsError):
        session.run(session.client.lcreate(fid, b"new", flags, 0o644, 0))


@pytest.mark.parametrize("nbytes", [0, 1, 8, 100])
def test_tread(stack: Pair, session: Session, nbytes: int) -> None:
    with walked(stack, b"file") as fid:
        session.run(session.client.lopen(fid))
        assert session.run(session.client.read(fid, 3, nbytes)) == b"Hi Guest"[3 : 3 + nbytes]
        assert session.run(session.client.read(fid, 8, nbytes)) == b""


def test_twrite(stack: Pair, session: Session, export: Path) -> None:
    with walked(stack, b"file") as fid:
        session.run(session.client.lopen(fid, c.DOTL_WRONLY))
        assert session.run(session.client.write(fid, 3, b"World!")) == 6
    assert (export / "file").read_bytes() == b"Hi World!"


@pytest.mark.parametrize("shapes", [LINUX, FEW_DESCRIPTORS, UNALIGNED], ids=["linux", "few", "unaligned"])
def test_tread_and_twrite_of_lent_pages(export: Path, shapes: Any) -> None:
    data = os.urandom(500_000)
    with pair(f"local,path={export},security_model=none", shapes=shapes, msize=512_000) as both:
        session = both.session
        out, back = both.mount.allocate(len(data)), both.mount.allocate(len(data))
        out.write(0, data)
        with both.mount.path("big").open_raw(os.O_RDWR | os.O_CREAT) as file:
            assert file.write_dma(out, offset=0) == len(data)
            assert (export / "big").read_bytes() == data
            assert file.readinto_dma(back, offset=0) == len(data)
            assert back.read(0, len(data)) == data
            assert file.readinto_dma(back, 5000, offset=len(data) - 3000) == 3000
            assert back.read(0, 5000) == data[-3000:] + data[3000:5000]
        assert session.counts["Tread"] == 2
        assert session.counts["Twrite"] == 1


def test_treaddir(stack: Pair, session: Session, export: Path) -> None:
    with walked(stack) as fid:
        session.run(session.client.lopen(fid, c.DOTL_RDONLY | c.DOTL_DIRECTORY))
        first = session.run(session.client.readdir(fid, 0, 60))
        assert 1 <= len(first) <= 2
        found = list(first)
        while batch := session.run(session.client.readdir(fid, found[-1].offset, 60)):
            found += batch
        names = [entry.name for entry in found]
        assert sorted(names) == sorted([b".", b"..", *map(os.fsencode, os.listdir(export))])
        assert session.run(session.client.readdir(fid, 0, 1000)) == found
        inodes = {entry.name: entry.qid.path for entry in found}
        assert inodes[b"file"] == stack.mount.path("file").stat().st_ino
        with pytest.raises(OSError, match="Invalid"):  # 0 bytes would mean: the end
            session.run(session.client.readdir(fid, 0, 24))


def test_tfsync(stack: Pair, session: Session, export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[str, bool]] = []
    inode = (export / "file").stat().st_ino
    for name in ("fsync", "fdatasync"):
        spy = lambda fd, name=name: synced.append((name, os.fstat(fd).st_ino == inode))  # noqa: E731 - two of a kind
        monkeypatch.setattr(os, name, spy)
    with walked(stack, b"file") as fid:
        session.run(session.client.lopen(fid, c.DOTL_RDWR))
        assert session.call("Tfsync", fid=fid, datasync=0) == {}
        session.run(session.client.fsync(fid, datasync=True))
    assert synced == [("fsync", True), ("fdatasync", True)]


# --- locks ---


def test_tlock(stack: Pair, session: Session) -> None:
    with walked(stack, b"file") as one, walked(stack, b"file") as two:
        for fid in (one, two):
            session.run(session.client.lock(fid, LockRange(c.LOCK_TYPE_UNLCK, 0, 0, 1, b"a")))  # not held: fine
            session.run(session.client.lopen(fid, c.DOTL_RDWR))
        mine = LockRange(c.LOCK_TYPE_WRLCK, 10, 20, 1, b"a")
        theirs = LockRange(c.LOCK_TYPE_RDLCK, 29, 1, 2, b"a")
        assert session.run(session.client.lock(one, mine)) == c.LOCK_SUCCESS
        assert session.run(session.client.lock(two, theirs)) == c.LOCK_BLOCKED
        assert session.run(session.client.lock(two, theirs._replace(start=30))) == c.LOCK_SUCCESS
        assert session.run(session.client.lock(one, mine._replace(type=c.LOCK_TYPE_UNLCK))) == c.LOCK_SUCCESS
        assert session.run(session.client.lock(two, theirs)) == c.LOCK_SUCCESS


def test_tgetlock(stack: Pair, session: Session) -> None:
    with walked(stack, b"file") as one, walked(stack, b"file") as two:
        for fid in (one, two):
            session.run(session.client.lopen(fid, c.DOTL_RDWR))
        held = LockRange(c.LOCK_TYPE_WRLCK, 10, 20, 7, b"a")
        asked = LockRange(c.LOCK_TYPE_WRLCK, 0, 0, 8, b"b")
        assert session.run(session.client.getlock(two, asked)).type == c.LOCK_TYPE_UNLCK
        session.run(session.client.lock(one, held))
        assert session.run(session.client.getlock(two, asked)) == held


# --- attributes ---


def test_tgetattr(stack: Pair, session: Session, export: Path) -> None:
    host = (export / "file").stat()
    with walked(stack, b"file") as fid:
        got = session.run(session.client.getattr(fid, c.GETATTR_ALL))
    assert got.valid & c.GETATTR_BASIC == c.GETATTR_BASIC
    assert (got.mode, got.uid, got.gid, got.nlink) == (host.st_mode, host.st_uid, host.st_gid, host.st_nlink)
    assert (got.size, got.blocks, got.rdev) == (host.st_size, host.st_blocks, 0)
    assert (got.mtime_ns, got.ctime_ns) == (host.st_mtime_ns, host.st_ctime_ns)


def test_tsetattr(stack: Pair, session: Session, export: Path) -> None:
    with walked(stack, b"file") as fid:
        session.run(
            session.client.setattr(
                fid, mode=0o640, size=3, atime_ns=1_000_000_001, mtime_ns=-5, uid=os.getuid(), gid=os.getgid()
            )
        )
    host = (export / "file").stat()
    assert (stat.S_IMODE(host.st_mode), host.st_size) == (0o640, 3)
    assert host.st_atime_ns == 1_000_000_001
    assert (host.st_uid, host.st_gid) == (os.getuid(), os.getgid())
    with walked(stack, b"file") as fid:
        session.run(session.client.setattr(fid, mtime_ns=-5))
    assert (export / "file").stat().st_mtime_ns == -5


def test_tstatfs(stack: Pair, session: Session, export: Path) -> None:
    host = os.statvfs(export)
    got = session.run(session.client.statfs(stack.mount.root_fid))
    assert got.namelen == host.f_namemax
    assert (got.bsize, got.blocks) == (host.f_bsize, host.f_blocks)
    assert got.fsid != 0


def test_txattrwalk(stack: Pair, session: Session, export: Path) -> None:
    os.setxattr(export / "file", "user.colour", b"green")
    with walked(stack, b"file") as fid:
        call = session.client.xattrwalk(fid, b"user.colour")
        assert session.run(call) == 5
        assert session.run(session.client.read(call.fid, 0, 5)) == b"green"
        assert session.run(session.client.read(call.fid, 5, 5)) == b""
        session.clunk(call.fid)
        with pytest.raises(OSError, match="No data") as caught:
            session.run(session.client.xattrwalk(fid, b"user.taste"))
        assert caught.value.errno == 61
    assert stack.mount.path("file").listxattr() == ["user.colour"]


def test_txattrcreate(stack: Pair, session: Session, export: Path) -> None:
    fid = session.walk(stack.mount.root_fid, [b"file"])
    session.run(session.client.xattrcreate(fid, b"user.colour", 5))
    assert session.run(session.client.write(fid, 0, b"bl")) == 2
    assert session.run(session.client.write(fid, 2, b"ack")) == 3
    assert os.listxattr(export / "file") == []
    session.clunk(fid)
    assert os.getxattr(export / "file", "user.colour") == b"black"


# --- names ---


def test_tsymlink(stack: Pair, session: Session, export: Path) -> None:
    target = b"../../etc/" + bytes(range(1, 256))
    assert session.run(session.client.symlink(stack.mount.root_fid, b"new", target, os.getegid())).is_symlink
    assert os.readlink(os.fsencode(export / "new")) == target


def test_tmknod(stack: Pair, session: Session, export: Path) -> None:
    root = stack.mount.root_fid
    session.run(session.client.mknod(root, b"pipe", stat.S_IFIFO | 0o604, os.getegid()))
    session.run(session.client.mknod(root, b"plain", stat.S_IFREG | 0o640, os.getegid()))
    session.run(session.client.mknod(root, b"socket", stat.S_IFSOCK | 0o600, os.getegid()))
    assert (export / "pipe").lstat().st_mode == stat.S_IFIFO | 0o604
    assert (export / "plain").lstat().st_mode == stat.S_IFREG | 0o640
    assert (export / "socket").is_socket()
    for name in (b"pipe", b"socket"):  # made, but never opened
        with walked(stack, name) as fid, pytest.raises(OSError, match="No such device") as caught:
            session.run(session.client.lopen(fid, c.DOTL_RDWR))
        assert caught.value.errno == 6


def test_tlopen_of_what_blocks_on_the_host(stack: Pair, session: Session, export: Path) -> None:
    os.mkfifo(export / "pipe")
    os.mknod(export / "socket", stat.S_IFSOCK | 0o600)
    for name in (b"pipe", b"socket", b"link"):
        with walked(stack, name) as fid, pytest.raises(OSError, match=r"No such device|symbolic"):
            session.run(session.client.lopen(fid, c.DOTL_RDONLY))


def test_tmkdir(stack: Pair, session: Session, export: Path) -> None:
    assert session.run(session.client.mkdir(stack.mount.root_fid, b"new", 0o1751, os.getegid())).is_directory
    assert stat.S_IMODE((export / "new").stat().st_mode) == 0o1751
    with pytest.raises(FileExistsError):
        session.run(session.client.mkdir(stack.mount.root_fid, b"new", 0o755, 0))


def test_tlink(stack: Pair, session: Session, export: Path) -> None:
    with walked(stack, b"file") as fid, walked(stack, b"folder") as folder:
        session.run(session.client.link(folder, fid, b"hard"))
        assert (export / "folder" / "hard").samefile(export / "file")
        with pytest.raises(PermissionError):
            session.run(session.client.link(stack.mount.root_fid, folder, b"loop"))


def test_treadlink(stack: Pair, session: Session) -> None:
    with walked(stack, b"link") as fid:
        assert session.run(session.client.readlink(fid)) == b"file"
    with walked(stack, b"file") as fid, pytest.raises(OSError, match="Invalid"):
        session.run(session.client.readlink(fid))


def test_trename(stack: Pair, session: Session, export: Path) -> None:
    with walked(stack, b"file") as fid, walked(stack, b"folder") as folder:
        session.run(session.client.rename(fid, folder, b"below"))
        assert (export / "folder" / "below").read_bytes() == b"Hi Guest"
        assert not (export / "file").exists()
        session.run(session.client.rename(fid, stack.mount.root_fid, b"again"))  # the fid has followed
        assert (export / "again").read_bytes() == b"Hi Guest"


def test_trenameat(stack: Pair, session: Session, export: Path) -> None:
    with walked(stack, b"folder") as folder, walked(stack, b"folder", b"below") as below:
        session.run(session.client.renameat(stack.mount.root_fid, b"folder", stack.mount.root_fid, b"moved"))
        assert (export / "moved" / "below").exists()
        assert session.run(session.client.getattr(below)).size == 4
        session.run(session.client.renameat(folder, b"below", stack.mount.root_fid, b"file"))
    assert (export / "file").read_bytes() == b"deep"
    assert os.listdir(export / "moved") == []


def test_tunlinkat(stack: Pair, session: Session, export: Path) -> None:
    root = stack.mount.root_fid
    session.run(session.client.unlinkat(root, b"file"))
    assert not (export / "file").exists()
    with pytest.raises(IsADirectoryError):
        session.run(session.client.unlinkat(root, b"folder"))
    with pytest.raises(OSError, match="not empty"):
        session.run(session.client.unlinkat(root, b"folder", c.UNLINKAT_REMOVEDIR))
    with walked(stack, b"folder") as folder:
        session.run(session.client.lopen(folder))
        session.run(session.client.unlinkat(folder, b"below"))
    session.run(session.client.unlinkat(root, b"folder", c.UNLINKAT_REMOVEDIR))
    assert not (export / "folder").exists()


# --- around the messages ---


def test_interrupts_are_counted_and_none_is_spurious(export: Path) -> None:
    with pair(f"local,path={export},security_model=none") as both:
        counters = both.channel.driver.counters
        assert both.mount.path("file").read_text() == "Hi Guest"
        assert counters.queue_interrupts == counters.kicks == counters.buffers == sum(both.session.counts.values())
        assert counters.spurious_interrupts == counters.config_interrupts == 0
        assert both.guest.interrupts.unclaimed == 0


def test_the_device_can_be_reset_and_mounted_again(stack: Pair, export: Path) -> None:
    file = stack.mount.path("file").open_raw()
    assert file.pread(2, 0) == b"Hi"
    stack.remount()
    with pytest.raises(OSError, match="No such file"):
        stack.session.call("Tclunk", fid=file.fid + 1)
    assert stack.mount.path("file").read_bytes() == b"Hi Guest"
    with pytest.raises(DeviceError, match="session is over"):  # rather than clunk somebody else's fid
        file.close()


def test_a_device_is_mounted_once_at_a_time(stack: Pair) -> None:
    with pytest.raises(OSError, match="busy"):
        mount(stack.channel)
    stack.mount.umount()
    stack.mount = mount(stack.channel)


def test_a_device_that_is_closed_answers_no_more(export: Path) -> None:
    with check_descriptors(), pair(f"local,path={export},security_model=none", timeout=0.2) as both:
        both.device.close()
        with pytest.raises(DeviceError):
            both.mount.path("file").read_bytes()
