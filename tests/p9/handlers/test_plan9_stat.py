"""Tstat, Twstat of 9P2000 and 9P2000.u."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest

from pyvirtfs.fsdev.driver import SetAttributes
from pyvirtfs.p9 import codec
from pyvirtfs.p9 import constants as c

if TYPE_CHECKING:
    from collections.abc import Callable

Peer: TypeAlias = Any
Export: TypeAlias = Any

UNTOUCHED: dict[str, Any] = {
    "nstat": 0,
    "size": 0,
    "type": 0xFFFF,
    "dev": 0xFFFFFFFF,
    "qid": (0xFF, 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF),
    "mode": 0xFFFFFFFF,
    "atime": 0xFFFFFFFF,
    "mtime": 0xFFFFFFFF,
    "length": 0xFFFFFFFFFFFFFFFF,
    "name": b"",
    "uid": b"",
    "gid": b"",
    "muid": b"",
}
UNTOUCHED_UNIX: dict[str, Any] = {"extension": b"", "n_uid": 0xFFFFFFFF, "n_gid": 0xFFFFFFFF, "n_muid": 0xFFFFFFFF}


@pytest.fixture(params=[codec.UNIX, codec.PLAIN], ids=lambda coder: coder.vocabulary.version.decode())
def older(request: pytest.FixtureRequest, make_peer: Callable[..., Peer]) -> Peer:
    """Connected in an older dialect; its fids 0, 1, 2 are the root, a file, a folder."""
    return connected(make_peer(), request.param)


@pytest.fixture
def unix(make_peer: Callable[..., Peer]) -> Peer:
    return connected(make_peer(), codec.UNIX)


@pytest.fixture
def plain(make_peer: Callable[..., Peer]) -> Peer:
    return connected(make_peer(), codec.PLAIN)


def connected(peer: Peer, coder: codec.Codec) -> Peer:
    peer.version(coder=coder).attach()
    peer.walk(0, 1, b"file")
    peer.walk(0, 2, b"folder")
    return peer


def tstat(peer: Peer, fid: int) -> dict[str, Any]:
    values = peer.call(c.TSTAT, fid)
    found = dict(zip(peer.coder.vocabulary.by_name["Rstat"].fields, values, strict=True))
    assert found["nstat"] == found["size"] + 2
    return found


def send_wstat(peer: Peer, fid: int, tag: int = 1, **changes: Any) -> int:
    fields = UNTOUCHED | (UNTOUCHED_UNIX if peer.coder is codec.UNIX else {})
    assert changes.keys() <= fields.keys()
    token: int = peer.send(c.TWSTAT, fid, *(fields | changes).values(), tag=tag)
    return token


def wstat(peer: Peer, fid: int, **changes: Any) -> None:
    number, values = peer.reply(send_wstat(peer, fid, **changes))
    assert number == c.RWSTAT, values


def refused(peer: Peer, fid: int, **changes: Any) -> bytes:
    number, values = peer.reply(send_wstat(peer, fid, **changes))
    assert number == c.RERROR
    text: bytes = values[0]
    return text


def changed(export: Export) -> list[tuple[Any, ...]]:
    return [call for call in export.calls if call[0] in {"setattr", "rename", "fsync"}]


# --- Tstat ---


def test_a_stat_tells_name_and_owners(older: Peer, export: Export) -> None:
    inode = export.find("file")
    inode.uid, inode.gid = 1000, 50
    found = tstat(older, 1)
    assert found["qid"] == inode.qid
    assert (found["mode"], found["length"]) == (0o644, 10)
    assert (found["atime"], found["mtime"]) == (1, 2)
    assert (found["name"], found["uid"], found["gid"], found["muid"]) == (b"file", b"1000", b"50", b"")
    if older.coder is codec.UNIX:
        assert (found["n_uid"], found["n_gid"], found["extension"]) == (1000, 50, b"HARDLINKCOUNT 1")
    found = tstat(older, 0)
    assert (found["name"], found["mode"], found["length"]) == (b"/", c.DMDIR | 0o755, 0)
    assert len(export.nodes) == 3


def test_links_are_links_in_9p2000_u_only(older: Peer) -> None:
    older.walk(0, 3, b"link")
    found = tstat(older, 3)
    if older.coder is codec.UNIX:
        assert (found["mode"], found["extension"]) == (c.DMSYMLINK | 0o777, b"/etc/passwd")
    else:
        assert found["mode"] == 0o777


def test_a_name_is_the_one_of_now(older: Peer, export: Export) -> None:
    older.walk(2, 3, b"inner")
    assert tstat(older, 3)["name"] == b"inner"
    wstat(older, 3, name=b"moved")
    assert tstat(older, 3)["name"] == b"moved"
    assert b"moved" in export.find("folder").entries


def test_a_driver_need_not_know_names(older: Peer, export: Export) -> None:
    export.place = lambda node: (None, b"")
    assert tstat(older, 1)["name"] == b""
    assert refused(older, 1, name=b"new") == b"Operation not supported"


def test_a_stat_needs_room_and_a_fid(older: Peer) -> None:
    size = len(older.raw_reply(older.send(c.TSTAT, 1)))
    assert len(older.raw_reply(older.send(c.TSTAT, 1, room=size))) == size
    assert older.reply(older.send(c.TSTAT, 1, room=size - 1))[1][0] == b"Message too long"
    assert older.reply(older.send(c.TSTAT, 9))[1][0] == b"No such file or directory"


@pytest.mark.parametrize("slow", [{"getattr"}, {"place"}, {"readlink"}, {"getattr", "place", "readlink"}])
def test_stats_later(unix: Peer, export: Export, slow: set[str]) -> None:
    unix.walk(0, 3, b"link")
    expected = tstat(unix, 3)
    export.later = set(slow)
    token = unix.send(c.TSTAT, 3)
    unix.call(c.TCLUNK, 3, tag=9)
    while export.waiting:
        assert unix.nbytes(token) is None
        unix.finish()
    assert unix.reply(token)[1] == tuple(expected.values())
    assert len(export.nodes) == 3


# --- Twstat: one field ---


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"mode": 0o600}, SetAttributes(mode=0o600)),
        ({"mtime": 5}, SetAttributes(mtime_ns=5 * 10**9)),
        ({"atime": 0}, SetAttributes(atime_ns=0)),
        ({"gid": b"7"}, SetAttributes(gid=7)),
        ({"length": 3}, SetAttributes(size=3)),
        ({"length": 2**63 - 1}, SetAttributes(size=2**63 - 1)),
        ({"nstat": 99, "size": 5, "mode": 0o600}, SetAttributes(mode=0o600)),
        ({"uid": b"0", "mode": 0o644}, SetAttributes(mode=0o644)),
        ({"type": 0, "dev": 0, "mode": 0o600}, SetAttributes(mode=0o600)),
    ],
)
def test_what_is_not_all_ones_is_changed(
    older: Peer, export: Export, changes: dict[str, Any], expected: SetAttributes
) -> None:
    wstat(older, 1, **changes)
    uid = 1000 if older.coder is codec.UNIX else c.NONUNAME
    assert changed(export) == [("setattr", expected, uid)]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"mode": c.DMSETUID | 0o755}, SetAttributes(mode=0o4755)),
        ({"mode": c.DMSETGID | c.DMSETVTX | 0o755}, SetAttributes(mode=0o3755)),
        ({"n_uid": 5, "n_gid": 6}, SetAttributes(uid=5, gid=6)),
        ({"n_uid": 5, "uid": b"root", "gid": b"9"}, SetAttributes(uid=5, gid=9)),
        ({"uid": b"5"}, SetAttributes(uid=5)),
    ],
)
def test_what_9p2000_u_can_change(unix: Peer, export: Export, changes: dict[str, Any], expected: SetAttributes) -> None:
    wstat(unix, 1, **changes)
    assert changed(export) == [("setattr", expected, 1000)]


def test_9p2000_leaves_set_id_bits_alone(plain: Peer, export: Export) -> None:  # H010
    export.find("file").mode |= 0o4000
    assert tstat(plain, 1)["mode"] == 0o644
    wstat(plain, 1, mode=0o600)
    assert changed(export) == [("setattr", SetAttributes(mode=0o4600), c.NONUNAME)]
    assert refused(plain, 1, mode=c.DMSETUID | 0o644) == b"Operation not permitted"
    assert refused(plain, 1, uid=b"5") == b"Operation not permitted"
    assert len(changed(export)) == 1


def test_a_stat_may_come_back_as_it_is(older: Peer, export: Export) -> None:
    for fid in (0, 1, 2):
        found = tstat(older, fid)
        del found["atime"], found["mtime"], found["mode"]
        if fid != 1:
            del found["length"]
        wstat(older, fid, **found)
    assert all(call[1] == SetAttributes(size=10) for call in changed(export))
    wstat(older, 2, length=0, mode=c.DMDIR | 0o700)
    assert changed(export)[-1][1] == SetAttributes(mode=0o700)
    older.walk(0, 3, b"link")
    found = tstat(older, 3)
    wstat(older, 3, **{**found, "length": 0xFFFFFFFFFFFFFFFF, "mode": 0xFFFFFFFF})
    assert set(changed(export)[-1][1]._asdict()) - {"atime_ns", "mtime_ns"} >= {"mode", "uid"}
    assert changed(export)[-1][1][:4] == (None, None, None, None)


@pytest.mark.parametrize(
    ("fid", "changes", "error"),
    [
        (1, {"type": 1}, b"Operation not permitted"),
        (1, {"dev": 1}, b"Operation not permitted"),
        (1, {"qid": (0, 1, 99)}, b"Operation not permitted"),
        (1, {"qid": (0x80, 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF)}, b"Operation not permitted"),
        (1, {"qid": (0xFF, 77, 0xFFFFFFFFFFFFFFFF)}, b"Operation not permitted"),
        (1, {"mode": c.DMDIR | 0o755}, b"Input/output error"),
        (2, {"mode": 0o755}, b"Input/output error"),
        (1, {"mode": c.DMAPPEND | 0o644}, b"Operation not permitted"),
        (1, {"mode": c.DMEXCL | 0o644}, b"Operation not permitted"),
        (1, {"mode": 0o4644}, b"Operation not permitted"),
        (1, {"gid": b"users"}, b"Invalid argument"),
        (1, {"gid": b"4294967295"}, b"Invalid argument"),
        (1, {"uid": b"root"}, b"Invalid argument"),
        (1, {"length": 2**63}, b"Invalid argument"),
        (2, {"length": 1}, b"Is a directory"),
        (0, {"name": b"root"}, b"Device or resource busy"),
        (9, {"mode": 0o600}, b"Invalid argument"),
        (9, {}, b"Invalid argument"),
    ],
)
def test_what_cannot_be_changed(older: Peer, export: Export, fid: int, changes: dict[str, Any], error: bytes) -> None:
    also = {"mtime": 5} if changes else {}
    assert refused(older, fid, **changes, **also) == error
    assert not changed(export), "all or nothing"
    assert len(export.nodes) == 3


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"extension": b"to"}, b"Operation not permitted"),
        ({"mode": c.DMSYMLINK | 0o777}, b"Input/output error"),
        ({"mode": c.DMLINK | 0o644}, b"Input/output error"),
    ],
)
def test_what_9p2000_u_cannot_change(unix: Peer, export: Export, changes: dict[str, Any], error: bytes) -> None:
    assert refused(unix, 1, **changes) == error
    unix.walk(0, 3, b"link")
    assert refused(unix, 3, extension=b"elsewhere") == b"Operation not permitted"
    assert not changed(export)


# --- Twstat: names ---


def test_who_changed_it_last_is_not_kept(older: Peer, export: Export) -> None:
    """Linux gives the user of its mount with each rename."""
    older.walk(2, 3, b"inner")
    wstat(older, 3, name=b"new", muid=b"nobody", **({"n_muid": 1000} if older.coder is codec.UNIX else {}))
    assert [call[0] for call in changed(export)] == ["rename"]


def test_a_rename_stays_in_the_folder(older: Peer, export: Export) -> None:
    older.walk(2, 3, b"inner")
    wstat(older, 3, name=b"new", mode=0o600, length=2)
    uid = 1000 if older.coder is codec.UNIX else c.NONUNAME
    assert changed(export) == [
        ("setattr", SetAttributes(mode=0o600), uid),
        ("rename", b"new"),
        ("setattr", SetAttributes(size=2), uid),
    ]
    assert list(export.find("folder").entries) == [b"new"]
    wstat(older, 3, name=b"new", mtime=1)  # its own name
    assert [call[0] for call in changed(export)[3:]] == ["setattr"]
    assert len(export.nodes) == 4


def test_an_open_file_is_renamed(older: Peer, export: Export) -> None:
    older.call(c.TOPEN, 1, c.OREAD)
    wstat(older, 1, name=b"new")
    assert older.read(1, 0, 3) == b"012"
    assert b"file" not in export.root.entries


@pytest.mark.parametrize("name", [b".", b"..", b"/", b"a/b", b"a\0b"])
def test_bad_names(older: Peer, export: Export, name: bytes) -> None:  # H001
    expected = b"Is a directory" if name in {b".", b".."} else b"No such file or directory"
    assert refused(older, 1, name=name, mode=0o600) == expected
    assert not changed(export)


def test_the_name_of_something_else(older: Peer, export: Export) -> None:
    """9P2000 refuses it (stat(5)); 9P2000.u replaces what has it, as rename(2) does and its clients need."""
    other = export.add("other", b"x")
    if older.coder is codec.PLAIN:
        assert refused(older, 1, name=b"other", mode=0o600) == b"File exists"
        assert not changed(export)
        assert export.find("other") is other
    else:
        wstat(older, 1, name=b"other")
        assert export.find("other").content == b"0123456789"
    assert len(export.nodes) == 3


def test_failing_halfway(older: Peer, export: Export) -> None:
    export.failing["rename"] = OSError(errno.ENOTEMPTY, "no")
    assert refused(older, 1, name=b"new", length=0) == b"Directory not empty"
    assert changed(export) == [("rename", b"new")]
    export.failing["walk"] = OSError(errno.EIO, "disk")
    assert refused(older, 1, name=b"new", mode=0o600) == b"Input/output error"
    assert changed(export) == [("rename", b"new")]
    assert len(export.nodes) == 3


def test_set_id_bits_are_those_of_the_new_owner(unix: Peer, export: Export) -> None:
    """With the mode first, the change of the owner would clear them."""
    wstat(unix, 1, mode=c.DMSETUID | 0o755, n_uid=7, mtime=1)
    wstat(unix, 1, mode=0o711, n_gid=8)
    assert changed(export) == [
        ("setattr", SetAttributes(uid=7), 1000),
        ("setattr", SetAttributes(mode=0o4755, mtime_ns=10**9), 1000),
        ("setattr", SetAttributes(mode=0o711, gid=8), 1000),
    ]


def test_a_name_that_cannot_be_had_changes_nothing(unix: Peer, export: Export) -> None:
    export.add("other", b"x")
    export.add("second", mode=stat.S_IFDIR | 0o755)
    assert refused(unix, 1, name=b"second", mode=0o600) == b"Is a directory"
    assert refused(unix, 2, name=b"other", mode=c.DMDIR | 0o700) == b"Not a directory"
    export.failing["walk"] = OSError(errno.EINVAL, "hidden")
    assert refused(unix, 1, name=b"hidden", mode=0o600) == b"Invalid argument"
    assert not changed(export)
    assert len(export.nodes) == 3


# --- Twstat: nothing ---


def test_no_change_is_a_sync(older: Peer, export: Export) -> None:
    wstat(older, 1)
    assert [call for call in export.calls if call[0] in {"open", "fsync", "close_file", "getattr"}] == [
        ("open", os.O_RDONLY, 1000 if older.coder is codec.UNIX else c.NONUNAME),
        ("fsync", False),
        ("close_file",),
    ]
    assert not export.files
    older.call(c.TOPEN, 1, c.ORDWR)
    calls = len(export.calls)
    wstat(older, 1)
    assert export.calls[calls:] == [("fsync", False)]
    wstat(older, 2)
    older.walk(0, 3, b"link")
    wstat(older, 3)  # there is nothing to sync in what cannot be opened
    export.failing["fsync"] = OSError(errno.ENOSPC, "full")
    assert refused(older, 1) == b"No space left on device"
    assert refused(older, 2) == b"No space left on device"
    assert len(export.files) == 1
    export.failing["open"] = OSError(errno.EACCES, "no")
    assert refused(older, 2) == b"Permission denied"


@pytest.mark.parametrize("slow", [{"fsync"}, {"open"}, {"open", "fsync", "close_file"}])
def test_syncs_later(older: Peer, export: Export, slow: set[str]) -> None:
    export.later = set(slow)
    token = send_wstat(older, 1)
    while older.nbytes(token) is None:
        older.finish()
    assert older.reply(token)[0] == c.RWSTAT
    while export.waiting:
        older.finish()
    assert not export.files


def test_changes_later(older: Peer, export: Export) -> None:
    older.walk(2, 3, b"inner")
    export.later = {"getattr", "place", "walk", "setattr", "rename"}
    token = send_wstat(older, 3, name=b"new", mode=0o600, length=1)
    older.call(c.TCLUNK, 3, tag=7)
    waited = []
    while export.waiting:
        waited.append(export.waiting[0][0])
        older.finish()
    assert waited == ["getattr", "place", "walk", "setattr", "rename", "setattr"]
    assert older.reply(token)[0] == c.RWSTAT
    assert len(export.nodes) == 3


# --- readonly exports (H163) ---


def test_a_readonly_export_is_only_synced(make_peer: Callable[..., Peer], make_export: Any) -> None:
    for coder in (codec.UNIX, codec.PLAIN):
        export = make_export(readonly=True)
        export.add("file", b"content")
        export.add("folder", mode=stat.S_IFDIR | 0o755)
        peer = connected(make_peer(export), coder)
        calls = len(export.calls)
        for changes in ({"mode": 0o644}, {"name": b"new"}, {"length": 7}, {"mtime": 1}, {"gid": b"0"}):
            assert refused(peer, 1, **changes) == b"Read-only file system"
        extension = [b""] if coder is codec.UNIX else []
        for kind, fields in (
            (c.TCREATE, (2, b"new", 0o644, 0, *extension)),
            (c.TCREATE, (2, b"new", c.DMDIR | 0o755, 0, *extension)),
            (c.TWRITE, (1, 0, 0)),
            *((c.TOPEN, (1, mode)) for mode in (c.OWRITE, c.ORDWR, c.OTRUNC, c.ORCLOSE)),
        ):
            assert peer.reply(peer.send(kind, *fields))[1][0] == b"Read-only file system"
        assert len(export.calls) == calls
        wstat(peer, 1)
        peer.call(c.TOPEN, 1, c.OEXEC)
        assert peer.read(1, 0, 100) == b"content"
        assert peer.reply(peer.send(c.TREMOVE, 1))[1][0] == b"Read-only file system"
        assert peer.server.fids == 2
