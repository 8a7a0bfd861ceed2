"""9P2000 and 9P2000.u through the whole stack: frames built by hand, ring, device, a folder of the host.

Replies get as much room as Linux gives them (net/9p/client.c since 6.1): mostly far less than msize.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import construct
import pytest

from pyvirtfs.p9 import constants as c
from pyvirtfs.p9 import frames
from pyvirtfs.p9.messages import PLAIN, STAT, STAT_UNIX, UNIX, Vocabulary
from pyvirtfs.testing import Pair, check_descriptors, pair

IS_ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not IS_ROOT, reason="needs root")
ONES = 0xFFFFFFFF
MSIZE = 65536
_ROOMS = {"Tstat": 8192, "Tversion": 4096}
_ERROR_ROOM = 135


class FailedError(Exception):
    """An Rerror."""


class Older:
    """A client of an older dialect."""

    def __init__(self, both: Pair, vocabulary: Vocabulary) -> None:
        self.pair = both
        self.vocabulary = vocabulary
        self.unix = vocabulary is UNIX
        assert self.call("Tversion", msize=MSIZE, version=vocabulary.version)["version"] == vocabulary.version
        number = {"n_uname": os.getuid()} if self.unix else {}
        self.root = self.call("Tattach", fid=0, afid=c.NOFID, uname=b"nobody", aname=b"", **number)["qid"]

    def room(self, name: str, fields: dict[str, Any]) -> int:
        if name == "Tread":
            return max(11 + int(fields["count"]), _ERROR_ROOM)
        if name == "Twalk":
            return max(9 + 13 * len(fields["wnames"]), _ERROR_ROOM)
        return _ROOMS.get(name, _ERROR_ROOM)

    def call(self, name: str, /, **fields: Any) -> dict[str, Any]:
        message = frames.build(name, 3, fields, vocabulary=self.vocabulary)
        request = self.pair.channel.wait(self.pair.channel.submit(message, self.room(name, fields)))
        reply = frames.parse(request.reply(), vocabulary=self.vocabulary)
        assert reply.tag == 3
        if reply.message.name == "Rerror":
            raise FailedError(reply.fields["ename"].decode(), reply.fields.get("errno"))
        assert reply.message.name == "R" + name[1:]
        return reply.fields

    def walk(self, newfid: int, *names: bytes, fid: int = 0) -> None:
        assert len(self.call("Twalk", fid=fid, newfid=newfid, wnames=list(names))["wqids"]) == len(names)

    def clunk(self, *fids: int) -> None:
        for fid in fids:
            self.call("Tclunk", fid=fid)

    def create(self, fid: int, name: bytes, perm: int, mode: int = 0, extension: bytes = b"") -> dict[str, Any]:
        more = {"extension": extension} if self.unix else {}
        return self.call("Tcreate", fid=fid, name=name, perm=perm, mode=mode, **more)

    def read_all(self, fid: int, count: int = 4096) -> bytes:
        data = b""
        while part := self.call("Tread", fid=fid, offset=len(data), count=count)["data"]:
            data += part
        return data

    def listdir(self, *names: bytes, count: int = 4096) -> dict[bytes, Any]:
        self.walk(90, *names)
        self.call("Topen", fid=90, mode=c.OREAD)
        data = self.read_all(90, count)
        self.clunk(90)
        found = list(construct.GreedyRange(STAT_UNIX if self.unix else STAT).parse(data)) if data else []
        assert len({each.name for each in found}) == len(found)
        return {each.name: each for each in found}

    def stat(self, fid: int) -> dict[str, Any]:
        return self.call("Tstat", fid=fid)

    def wstat(self, fid: int, **changes: Any) -> None:
        fields = {"nstat": 0, "size": 0, "type": 0xFFFF, "dev": ONES, "qid": (0xFF, ONES, 2**64 - 1)}
        fields |= dict.fromkeys(("mode", "atime", "mtime"), ONES) | {"length": 2**64 - 1}
        fields |= dict.fromkeys(("name", "uid", "gid", "muid"), b"")
        if self.unix:
            fields |= {"extension": b"", "n_uid": ONES, "n_gid": ONES, "n_muid": ONES}
        self.call("Twstat", fid=fid, **(fields | changes))


def refused(client: Older, text: str, call: Any, *arguments: Any, **fields: Any) -> None:
    with pytest.raises(FailedError) as caught:
        call(*arguments, **fields)
    assert caught.value.args[0] == text
    assert (caught.value.args[1] is not None) == client.unix


@pytest.fixture
def export(tmp_path: Path) -> Path:
    folder = tmp_path / "export"
    folder.mkdir(mode=0o755)
    (folder / "file").write_bytes(b"Hi Guest")
    (folder / "folder").mkdir()
    (folder / "folder" / "below").write_bytes(b"deep")
    (folder / "link").symlink_to("file")
    return folder


@pytest.fixture
def stack(export: Path) -> Iterator[Pair]:
    model = "passthrough" if IS_ROOT else "none"
    with check_descriptors(), pair(f"local,path={export},security_model={model}") as both:
        yield both
        assert both.channel.broken is None
        both.remount()
        assert "folder" in both.mount.root.listdir()


@pytest.fixture(params=[UNIX, PLAIN], ids=["u", "plain"])
def client(stack: Pair, request: pytest.FixtureRequest) -> Older:
    return Older(stack, request.param)


@pytest.fixture
def unix(stack: Pair) -> Older:
    return Older(stack, UNIX)


@pytest.fixture
def plain(stack: Pair) -> Older:
    return Older(stack, PLAIN)


# --- versions (H138) ---


@pytest.mark.parametrize(
    ("asked", "agreed"),
    [(b"9P2000.u", b"9P2000.u"), (b"9P2000", b"9P2000"), (b"9P2000.W", b"9P2000"), (b"9P2000.L.x", b"9P2000.L")],
)
def test_versions(plain: Older, asked: bytes, agreed: bytes) -> None:
    for msize, answer in ((4096, 4096), (2**32 - 1, 4186112)):
        assert plain.call("Tversion", msize=msize, version=asked) == {"msize": answer, "version": agreed}


@pytest.mark.parametrize("msize", [0, 7, 23, 24, 4095])
def test_nothing_fits_a_tiny_msize(client: Older, msize: int) -> None:
    version = client.vocabulary.version
    refused(client, "Message too long", client.call, "Tversion", msize=msize, version=version)
    assert client.call("Tversion", msize=msize, version=b"9P1999")["version"] == b"unknown"


# --- files ---


def test_a_file_is_read_and_written(client: Older, export: Path) -> None:
    client.walk(1, b"file")
    assert client.call("Topen", fid=1, mode=c.ORDWR)["iounit"] == 61440
    assert client.read_all(1) == b"Hi Guest"
    assert client.call("Twrite", fid=1, offset=3, count=4, data=b"Host") == {"count": 4}
    client.wstat(1)
    client.clunk(1)
    assert (export / "file").read_bytes() == b"Hi Hostt"
    client.walk(1, b"file")
    client.call("Topen", fid=1, mode=c.OWRITE | c.OTRUNC)
    client.clunk(1)
    assert (export / "file").read_bytes() == b""


def test_large_reads_go_into_the_buffers(client: Older, export: Path) -> None:
    content = os.urandom(150_000)
    (export / "file").write_bytes(content)
    client.walk(1, b"file")
    client.call("Topen", fid=1, mode=c.OREAD)
    assert client.read_all(1, MSIZE - 24) == content
    client.clunk(1)


def test_files_are_created_and_removed(client: Older, export: Path) -> None:
    os.chmod(export / "folder", 0o750)
    client.walk(1, b"folder")
    client.create(1, b"new", 0o666, c.ORDWR)
    client.call("Twrite", fid=1, offset=0, count=3, data=b"abc")
    found = (export / "folder" / "new").stat()
    assert stat.S_IMODE(found.st_mode) == (0o666 if client.unix else 0o640)
    assert found.st_gid == (export / "folder").stat().st_gid
    client.walk(2, b"folder")
    refused(client, "File exists", client.create, 2, b"new", 0o644)
    client.create(2, b"sub", c.DMDIR | 0o777)
    assert stat.S_IMODE((export / "folder" / "sub").stat().st_mode) == (0o777 if client.unix else 0o750)
    assert client.read_all(2) == b""
    client.call("Tremove", fid=2)
    client.call("Tremove", fid=1)
    assert os.listdir(export / "folder") == ["below"]


def test_a_file_goes_with_its_fid(client: Older, export: Path) -> None:
    client.walk(1)
    client.create(1, b"temporary", 0o600, c.ORDWR | c.ORCLOSE)
    assert (export / "temporary").exists()
    client.clunk(1)
    assert not (export / "temporary").exists()


@pytest.mark.parametrize("name", [b"", b".", b"..", b"/", b"a/b", b"a\0b", b"..\0", b"x" * 256])
def test_bad_names(client: Older, export: Path, name: bytes) -> None:  # H001
    before = sorted(export.rglob("*"))
    for perm in (0o644, c.DMDIR | 0o755):
        client.walk(1)
        with pytest.raises(FailedError):
            client.create(1, name, perm)
        client.clunk(1)
    client.walk(1, b"file")
    if name:
        with pytest.raises(FailedError):
            client.wstat(1, name=name)
    assert sorted(export.rglob("*")) == before


# --- stats and folders ---


def test_stats_are_those_of_the_host(client: Older, export: Path) -> None:
    os.utime(export / "file", (1_000_000_000, 1_700_000_000))
    for path, names in (
        ("file", [b"file"]),
        ("folder/below", [b"folder", b"below"]),
        (".", []),
        ("folder", [b"folder"]),
    ):
        client.walk(1, *names)
        found, host = client.stat(1), (export / path).stat()
        is_folder = stat.S_ISDIR(host.st_mode)
        assert found["name"] == (names[-1] if names else b"/")
        assert found["mode"] == stat.S_IMODE(host.st_mode) | (c.DMDIR if is_folder else 0)
        assert (found["length"], found["mtime"]) == (0 if is_folder else host.st_size, int(host.st_mtime))
        assert (found["uid"], found["gid"]) == (b"%d" % host.st_uid, b"%d" % host.st_gid)
        assert found["qid"][2] == host.st_ino
        if client.unix:
            assert found["extension"] == b"HARDLINKCOUNT %d" % host.st_nlink
        client.clunk(1)


def test_a_name_follows_what_others_do(client: Older, stack: Pair, export: Path) -> None:
    client.walk(1, b"folder", b"below")
    client.walk(2, b"folder", b"below")
    client.wstat(1, name=b"renamed")
    assert client.stat(2)["name"] == b"renamed"
    client.wstat(2, name=b"again")
    assert os.listdir(export / "folder") == ["again"]
    client.walk(3, b"..", fid=0)
    assert client.stat(3)["name"] == b"/"
    client.walk(4, b"folder", b"..", b"folder")
    assert client.stat(4)["name"] == b"folder"
    os.unlink(export / "folder" / "again")
    assert client.stat(2)["name"] == b"again"
    refused(client, "file has been removed", client.wstat, 2, name=b"back")


@pytest.mark.parametrize("count", [512, 4096, MSIZE - 24])
def test_large_folders(client: Older, export: Path, count: int) -> None:
    for number in range(700):
        (export / "folder" / f"{number:03}{'x' * (number % 200)}").touch()
    found = client.listdir(b"folder", count=count)
    assert sorted(found) == sorted(os.fsencode(name) for name in os.listdir(export / "folder"))


def test_a_folder_tells_what_each_entry_is(client: Older, export: Path) -> None:
    os.mkfifo(export / "fifo")
    found = client.listdir()
    assert set(found) == {b"file", b"folder", b"link", b"fifo"}
    assert found[b"folder"].mode == c.DMDIR | stat.S_IMODE((export / "folder").stat().st_mode)
    assert found[b"file"].length == 8
    if client.unix:
        assert (found[b"link"].mode, found[b"link"].extension) == (c.DMSYMLINK | 0o777, b"file")
        assert found[b"fifo"].mode & ~0o777 == c.DMNAMEDPIPE
    else:
        assert not any(each.mode & ~(c.DMDIR | 0o777) for each in found.values())  # H010


def test_set_id_bits_have_their_own_places(client: Older, export: Path) -> None:  # H010
    for bits in (0o4755, 0o2755, 0o1755, 0o7711):
        os.chmod(export / "file", bits)
        client.walk(1, b"file")
        mode = client.stat(1)["mode"]
        assert mode & 0o7000 == 0
        assert mode & 0o777 == bits & 0o777
        expected = (bits & 0o4000 and c.DMSETUID) | (bits & 0o2000 and c.DMSETGID) | (bits & 0o1000 and c.DMSETVTX)
        assert mode & ~0o777 == (expected if client.unix else 0)
        client.wstat(1, mode=mode & ~0o777 | 0o700)
        assert stat.S_IMODE((export / "file").stat().st_mode) == bits & 0o7000 | 0o700
        client.clunk(1)


def test_attributes_are_changed(client: Older, export: Path) -> None:
    client.walk(1, b"file")
    client.wstat(1, mode=0o640, atime=11, mtime=22)
    found = (export / "file").stat()
    assert (stat.S_IMODE(found.st_mode), found.st_atime, found.st_mtime) == (0o640, 11, 22)
    client.wstat(1, length=3)
    assert (export / "file").read_bytes() == b"Hi "
    client.wstat(1, length=5, name=b"renamed")
    assert (export / "renamed").read_bytes() == b"Hi \0\0"
    refused(client, "Input/output error", client.wstat, 1, mode=c.DMDIR | 0o755, name=b"file")
    refused(client, "Operation not permitted", client.wstat, 1, dev=1, length=0)
    assert (export / "renamed").read_bytes() == b"Hi \0\0"
    if IS_ROOT:
        client.wstat(1, gid=b"12")
        assert (export / "renamed").stat().st_gid == 12


# --- 9P2000.u ---


def test_links_and_special_files(unix: Older, export: Path) -> None:
    unix.walk(1)
    unix.create(1, b"symbolic", c.DMSYMLINK | 0o777, 0, b"../outside")
    assert os.readlink(export / "symbolic") == "../outside"
    assert unix.stat(1)["extension"] == b"../outside"
    refused(unix, "No such device or address", unix.call, "Topen", fid=1, mode=c.OREAD)
    unix.walk(2, b"file")
    unix.walk(3)
    unix.create(3, b"hard", c.DMLINK, 0, b"2\n")
    assert (export / "hard").stat().st_nlink == 2
    unix.walk(4)
    unix.create(4, b"fifo", c.DMNAMEDPIPE | 0o600)
    assert stat.S_ISFIFO((export / "fifo").stat().st_mode)
    refused(unix, "No such device or address", unix.call, "Topen", fid=4, mode=c.OREAD)  # H150
    unix.walk(5)
    refused(unix, "Input/output error", unix.create, 5, b"device", c.DMDEVICE | 0o600, 0, b"x 1 3")
    unix.create(5, b"socket", c.DMSOCKET | 0o600)
    assert stat.S_ISSOCK((export / "socket").stat().st_mode)


@pytest.mark.skipif(not IS_ROOT, reason="only root makes devices")
def test_devices(unix: Older, export: Path) -> None:
    unix.walk(1)
    try:
        unix.create(1, b"null", c.DMDEVICE | 0o600, 0, b"c 1 3")
    except FailedError as error:
        if error.args[1] == errno.EPERM:
            pytest.skip("this process may not make devices")
        raise
    assert (export / "null").stat().st_rdev == os.makedev(1, 3)
    assert unix.stat(1)["extension"] == b"c 1 3"


def test_a_rename_replaces_in_9p2000_u_only(client: Older, export: Path) -> None:
    client.walk(1, b"file")
    (export / "other").write_bytes(b"other")
    if client.unix:
        client.wstat(1, name=b"other")
        assert (export / "other").read_bytes() == b"Hi Guest"
    else:
        refused(client, "File exists", client.wstat, 1, name=b"other")
        assert (export / "other").read_bytes() == b"other"


# --- security models ---


@needs_root
@pytest.mark.parametrize("model", ["passthrough", "none"])
def test_files_in_a_folder_of_a_group_in_no_range(export: Path, model: str) -> None:
    """A client cannot choose another group; what it makes is its user's, and nothing of it the server's."""
    export.chmod(0o777)
    os.chown(export, 0, 77)
    with pair(f"local,path={export},security_model={model},uidmap=0:100000:1000,gidmap=0:200000:1000") as both:
        client = Older(both, UNIX)
        client.walk(1)
        client.create(1, b"new", 0o644, c.ORDWR)
        assert ((export / "new").stat().st_uid, (export / "new").stat().st_gid) == (100000, 77)
        assert (client.stat(1)["n_uid"], client.stat(1)["n_gid"]) == (0, 65534)
        refused(client, "Invalid argument", client.wstat, 1, n_uid=1000)
        client = Older(both, PLAIN)  # which names no user: it is 65534, who is in no range
        client.walk(1)
        refused(client, "Invalid argument", client.create, 1, b"other", 0o644, c.ORDWR)
    assert not (export / "other").exists()


@pytest.mark.parametrize("model", ["passthrough" if IS_ROOT else "none", "mapped-file"])
def test_a_name_that_is_gone_is_still_told(export: Path, model: str) -> None:
    with pair(f"local,path={export},security_model={model}") as both:
        client = Older(both, UNIX)
        client.walk(1)
        client.create(1, b"new", 0o644, c.ORDWR)
        client.walk(2, b"new")
        client.call("Tremove", fid=2)
        assert client.stat(1)["name"] == b"new"
        client.wstat(1, name=b"new", mode=0o600)
        assert client.stat(1)["mode"] == 0o600
        refused(client, "file has been removed", client.wstat, 1, name=b"other")


def test_a_hidden_name_changes_nothing(export: Path) -> None:
    with pair(f"local,path={export},security_model=mapped-file") as both:
        client = Older(both, UNIX)
        client.walk(1)
        client.create(1, b"new", 0o644, c.ORDWR)
        refused(client, "Invalid argument", client.wstat, 1, name=b".virtfs_metadata", mode=0o600)
        assert client.stat(1)["mode"] == 0o644


@pytest.mark.parametrize("model", [pytest.param("passthrough", marks=needs_root), "mapped-file"])
def test_set_id_bits_come_with_a_new_owner(export: Path, model: str) -> None:
    with pair(f"local,path={export},security_model={model}") as both:
        client = Older(both, UNIX)
        client.walk(1)
        client.create(1, b"new", 0o644, c.ORDWR)
        client.wstat(1, mode=c.DMSETUID | c.DMSETGID | 0o755, n_uid=8, n_gid=9)
        found = client.stat(1)
        assert (found["mode"], found["n_uid"], found["n_gid"]) == (c.DMSETUID | c.DMSETGID | 0o755, 8, 9)


# --- readonly (H163) ---


@pytest.mark.parametrize("vocabulary", [UNIX, PLAIN], ids=["u", "plain"])
def test_a_readonly_export_stays_as_it_is(export: Path, vocabulary: Vocabulary) -> None:
    with check_descriptors(), pair(f"local,path={export},security_model=none,readonly=on") as both:
        client = Older(both, vocabulary)
        client.walk(1, b"file")
        client.walk(2)
        for mode in (c.OWRITE, c.ORDWR, c.OTRUNC, c.ORCLOSE):
            refused(client, "Read-only file system", client.call, "Topen", fid=1, mode=mode)
        refused(client, "Read-only file system", client.create, 2, b"new", 0o644)
        refused(client, "Read-only file system", client.create, 2, b"new", c.DMDIR | 0o755)
        for changes in ({"mode": 0o600}, {"name": b"new"}, {"length": 0}, {"mtime": 1}):
            refused(client, "Read-only file system", client.wstat, 1, **changes)
        client.wstat(1)
        assert set(client.listdir()) == {b"file", b"folder", b"link"}
        refused(client, "Read-only file system", client.call, "Tremove", fid=1)
        client.clunk(2)
    assert (export / "file").read_bytes() == b"Hi Guest"
    assert sorted(os.listdir(export)) == ["file", "folder", "link"]
