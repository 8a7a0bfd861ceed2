"""Tcreate of 9P2000 and 9P2000.u."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest

from pyvirtfs.p9 import codec
from pyvirtfs.p9 import constants as c

if TYPE_CHECKING:
    from collections.abc import Callable

Peer: TypeAlias = Any
Export: TypeAlias = Any


@pytest.fixture(params=[codec.UNIX, codec.PLAIN], ids=lambda coder: coder.vocabulary.version.decode())
def older(request: pytest.FixtureRequest, make_peer: Callable[..., Peer], export: Export) -> Peer:
    """Connected in an older dialect, its fid 0 is the root and its fid 1 too."""
    export.root.gid = 77
    peer = make_peer().version(coder=request.param).attach()
    peer.walk(0, 1)
    return peer


@pytest.fixture
def unix(make_peer: Callable[..., Peer], export: Export) -> Peer:
    export.root.gid = 77
    peer = make_peer().version(coder=codec.UNIX).attach()
    peer.walk(0, 1)
    return peer


def fields(peer: Peer, name: bytes, perm: int, mode: int = 0, extension: bytes = b"", fid: int = 1) -> tuple[Any, ...]:
    return (fid, name, perm, mode, *([extension] if peer.coder is codec.UNIX else []))


def failed(peer: Peer, *values: Any, **named: Any) -> bytes:
    number, found = peer.reply(peer.send(c.TCREATE, *fields(peer, *values, **named)))
    assert number == c.RERROR, found
    text: bytes = found[0]
    return text


def uid(peer: Peer) -> int:
    return 1000 if peer.coder is codec.UNIX else c.NONUNAME


def test_a_file_is_created_and_open(older: Peer, export: Export) -> None:
    qid, iounit = older.call(c.TCREATE, *fields(older, b"new", 0o644, c.ORDWR))
    assert qid == export.find("new").qid
    assert iounit == 4096
    assert export.calls[-1] == ("create", b"new", os.O_RDWR | os.O_EXCL, 0o644, uid(older), 77)
    assert older.write(1, 0, b"content") == 7
    assert export.find("new").content == b"content"
    older.call(c.TCLUNK, 1)
    assert not export.files


def test_a_folder_is_created_and_open(older: Peer, export: Export) -> None:
    qid, iounit = older.call(c.TCREATE, *fields(older, b"new", c.DMDIR | 0o755))
    assert (qid, iounit) == (export.find("new").qid, 0)
    assert ("mkdir", b"new", 0o755, uid(older), 77) in export.calls
    assert export.calls[-1][:2] == ("open", os.O_RDONLY | os.O_DIRECTORY)
    assert older.read(1, 0, 1000) == b""
    export.add("new/inner", b"")
    assert b"inner" in older.read(1, 0, 1000)
    assert failed(older, b"more", 0o644) == b"Invalid argument"  # it is open


@pytest.mark.parametrize(
    ("parent", "perm", "kind", "plain"),
    [
        (0o755, 0o666, 0, 0o644),
        (0o755, 0o777, 0, 0o755),  # open(5): execute permission is not the folder's to take away
        (0o700, 0o666, 0, 0o600),
        (0o700, 0o777, c.DMDIR, 0o700),
        (0o750, 0o777, c.DMDIR, 0o750),
        (0o777, 0o600, 0, 0o600),
    ],
)
def test_permissions_are_masked_by_the_folders_in_9p2000(
    older: Peer, export: Export, parent: int, perm: int, kind: int, plain: int
) -> None:
    export.root.mode = stat.S_IFDIR | parent
    older.call(c.TCREATE, *fields(older, b"new", kind | perm))
    assert stat.S_IMODE(export.find("new").mode) == (plain if older.coder is codec.PLAIN else perm)


def test_what_exists_is_not_created(older: Peer, export: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    create = export.create

    def exclusive(directory: Any, name: bytes, flags: int, *rest: Any) -> Any:
        assert flags & os.O_EXCL
        if name in directory.inode.entries:
            raise OSError(errno.EEXIST, "exists")
        return create(directory, name, flags, *rest)

    monkeypatch.setattr(export, "create", exclusive)
    assert failed(older, b"file", 0o644, c.OWRITE) == b"File exists"
    assert failed(older, b"folder", c.DMDIR | 0o755) == b"File exists"
    older.call(c.TCREATE, *fields(older, b"new", 0o644))


@pytest.mark.parametrize("name", [b"", b".", b"..", b"/", b"a/b", b"a\0b", b"..\0"])
def test_bad_names(older: Peer, export: Export, name: bytes) -> None:  # H001
    calls = len(export.calls)
    expected = b"File exists" if name in {b".", b".."} else b"No such file or directory"
    assert failed(older, name, 0o644) == expected
    assert failed(older, name, c.DMDIR | 0o755) == expected
    assert len(export.calls) == calls


@pytest.mark.parametrize("bit", [c.DMAPPEND, c.DMEXCL, c.DMMOUNT, c.DMAUTH, c.DMTMP, 0o4000, 0o2000, 0o1000, 0x02000])
def test_what_cannot_be_kept_is_refused(older: Peer, export: Export, bit: int) -> None:
    assert failed(older, b"new", bit | 0o644) == b"Operation not permitted"
    assert b"new" not in export.root.entries


@pytest.mark.parametrize("bit", [c.DMSYMLINK, c.DMLINK, c.DMDEVICE, c.DMNAMEDPIPE, c.DMSOCKET, c.DMSETUID, c.DMSETVTX])
def test_9p2000_makes_files_and_folders_only(make_peer: Callable[..., Peer], export: Export, bit: int) -> None:
    peer = make_peer().version(coder=codec.PLAIN).attach()
    peer.walk(0, 1)
    assert failed(peer, b"new", bit | 0o644) == b"Operation not permitted"  # H010
    assert b"new" not in export.root.entries


def test_wrong_fids_and_modes(older: Peer, export: Export) -> None:
    assert failed(older, b"new", 0o644, fid=9) == b"Invalid argument"
    older.walk(0, 2, b"file")
    assert failed(older, b"new", 0o644, fid=2) == b"Not a directory"
    assert failed(older, b"new", 0o644, 0x08) == b"Invalid argument"
    for mode in (c.OWRITE, c.ORDWR, c.OTRUNC, c.ORCLOSE):
        assert failed(older, b"new", c.DMDIR | 0o755, mode) == b"Is a directory"
    assert b"new" not in export.root.entries


def test_a_created_file_can_go_with_its_fid(older: Peer, export: Export) -> None:
    older.call(c.TCREATE, *fields(older, b"new", 0o600, c.ORDWR | c.ORCLOSE))
    older.write(1, 0, b"x")
    older.call(c.TCLUNK, 1)
    assert b"new" not in export.root.entries


# --- 9P2000.u ---


def test_set_id_bits(unix: Peer, export: Export) -> None:
    unix.call(c.TCREATE, *fields(unix, b"new", c.DMSETUID | c.DMSETGID | c.DMSETVTX | 0o755))
    assert stat.S_IMODE(export.find("new").mode) == 0o7755


def test_symbolic_links(unix: Peer, export: Export) -> None:
    qid, iounit = unix.call(c.TCREATE, *fields(unix, b"new", c.DMSYMLINK | 0o777, 0, b"../anywhere"))
    assert (qid, iounit) == (export.find("new").qid, 0)
    assert export.find("new").target == b"../anywhere"
    assert export.calls[-2] == ("symlink", b"new", b"../anywhere", 1000, 77)
    number, _ = unix.reply(unix.send(c.TSTAT, 1))
    assert number == c.RSTAT  # the fid is the link now, and not open
    for target in (b"", b"a\0b"):
        unix.walk(0, 2)
        assert failed(unix, b"bad", c.DMSYMLINK, 0, target, fid=2) == b"Invalid argument"
        unix.call(c.TCLUNK, 2)
    assert b"bad" not in export.root.entries


@pytest.mark.parametrize("text", [b"2", b"2\n", b" 2 "])
def test_hard_links(unix: Peer, export: Export, text: bytes) -> None:
    unix.walk(0, 2, b"file")
    qid, iounit = unix.call(c.TCREATE, *fields(unix, b"new", c.DMLINK, 0, text))
    assert (qid, iounit) == (export.find("file").qid, 0)
    assert export.find("new") is export.find("file")
    unix.call(c.TOPEN, 1, c.OREAD)
    assert unix.read(1, 0, 4) == b"0123"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (b"9", b"No such file or directory"),
        (b"", b"Invalid argument"),
        (b"-1", b"Invalid argument"),
        (b"1x", b"Invalid argument"),
        (b"9" * 5000, b"Invalid argument"),
        ("²".encode(), b"Invalid argument"),
    ],
)
def test_hard_links_to_nothing(unix: Peer, text: bytes, error: bytes) -> None:
    assert failed(unix, b"new", c.DMLINK, 0, text) == error


@pytest.mark.parametrize(
    ("perm", "extension", "mode", "device"),
    [
        (c.DMDEVICE, b"c 1 3", stat.S_IFCHR, (1, 3)),
        (c.DMDEVICE, b"b 8 16\n", stat.S_IFBLK, (8, 16)),
        (c.DMNAMEDPIPE, b"", stat.S_IFIFO, (0, 0)),
        (c.DMSOCKET, b"", stat.S_IFSOCK, (0, 0)),
    ],
)
def test_special_files(
    unix: Peer, export: Export, perm: int, extension: bytes, mode: int, device: tuple[int, int]
) -> None:
    qid, iounit = unix.call(c.TCREATE, *fields(unix, b"new", perm | c.DMSETGID | 0o640, 0, extension))
    assert (qid, iounit) == (export.find("new").qid, 0)
    assert export.calls[-2] == ("mknod", b"new", mode | 0o2640, *device, 1000, 77)
    number, values = unix.reply(unix.send(c.TOPEN, 1, 0))
    assert (number, values[1]) == (c.RERROR, errno.ENXIO)


@pytest.mark.parametrize(
    ("extension", "code"),
    [
        (b"", errno.EIO),
        (b"x 1 3", errno.EIO),
        (b"cc 1 3", errno.EIO),
        (b"c", errno.EINVAL),
        (b"c 1", errno.EINVAL),
        (b"c 1 3 5", errno.EINVAL),
        (b"c -1 3", errno.EINVAL),
        (b"c 1 x", errno.EINVAL),
        (b"c 1 4294967296", errno.EINVAL),
    ],
)
def test_devices_without_numbers(unix: Peer, export: Export, extension: bytes, code: int) -> None:
    token = unix.send(c.TCREATE, *fields(unix, b"new", c.DMDEVICE, 0, extension))
    assert unix.error_of(token) == code
    assert b"new" not in export.root.entries


def test_one_thing_at_a_time(unix: Peer) -> None:
    assert failed(unix, b"new", c.DMDIR | c.DMSYMLINK, 0, b"x") == b"Invalid argument"


# --- answers that come later, or fail ---

KINDS = [
    (0, b"", {"getattr", "create"}),
    (c.DMDIR, b"", {"getattr", "mkdir", "walk", "open"}),
    (c.DMSYMLINK, b"to", {"getattr", "symlink", "walk"}),
    (c.DMLINK, b"2", {"getattr", "link", "walk"}),
    (c.DMNAMEDPIPE, b"", {"getattr", "mknod", "walk"}),
]


@pytest.mark.parametrize(("kind", "extension", "calls"), KINDS)
def test_everything_is_created_later(unix: Peer, export: Export, kind: int, extension: bytes, calls: set[str]) -> None:
    unix.walk(0, 2, b"file")
    export.later = set(calls)
    token = unix.send(c.TCREATE, *fields(unix, b"new", kind | 0o644, 0, extension), tag=1)
    waited = []
    while export.waiting:
        waited.append(export.waiting[0][0])
        busy = unix.reply(unix.send(c.TOPEN, 1, 0, tag=2))[1]
        assert busy[1] == errno.EBUSY
        unix.finish()
    assert set(waited) == calls
    assert unix.reply(token)[0] == c.RCREATE
    assert b"new" in export.root.entries
    export.later = set()
    assert len(export.nodes) == 3


@pytest.mark.parametrize("clunk", [True, False], ids=["clunk", "version"])
@pytest.mark.parametrize(("kind", "extension", "calls"), KINDS)
def test_the_fid_goes_while_something_is_created(
    unix: Peer, export: Export, kind: int, extension: bytes, calls: set[str], clunk: bool
) -> None:
    unix.walk(0, 2, b"file")
    for name in calls:
        export.later = {name}
        unix.send(c.TCREATE, *fields(unix, b"new", kind | 0o644, 0, extension), tag=1)
        if clunk:
            unix.call(c.TCLUNK, 1, tag=2)
            unix.call(c.TCLUNK, 2, tag=2)
        else:
            unix.send(c.TVERSION, 8192, b"9P2000.u", tag=c.NOTAG)
        while export.waiting:
            unix.finish()
        export.later = set()
        if not clunk:
            unix.attach()
        assert len(export.nodes) == unix.server.fids == 1
        assert not export.files
        export.root.entries.pop(b"new", None)
        unix.walk(0, 1)
        unix.walk(0, 2, b"file")


@pytest.mark.parametrize("name", ["walk", "open"])
def test_a_folder_that_cannot_be_opened_is_removed_again(older: Peer, export: Export, name: str) -> None:
    export.failing[name] = OSError(errno.ENFILE, "no more")
    assert failed(older, b"new", c.DMDIR | 0o755) == b"Too many open files in system"
    assert b"new" not in export.root.entries
    assert len(export.nodes) == 2
    export.failing["unlinkat"] = OSError(errno.EACCES, "no")
    assert failed(older, b"new", c.DMDIR | 0o755) == b"Too many open files in system"
    assert b"new" in export.root.entries


def test_a_driver_that_breaks_its_contract(older: Peer, export: Export) -> None:
    export.failing["open"] = RuntimeError("a bug")
    assert failed(older, b"new", c.DMDIR | 0o755) == b"Input/output error"
    assert len(export.nodes) == 2
