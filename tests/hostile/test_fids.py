"""How long fids live, and what becomes of them meanwhile (H040 to H051)."""

from __future__ import annotations

import errno
import gc
import os
import stat
import weakref
from collections.abc import Callable
from typing import Any, TypeAlias

import pytest

from pyvirtfs.p9 import constants as c
from pyvirtfs.p9 import frames
from pyvirtfs.testing import check_descriptors, open_descriptors, pair
from tests.hostile.stack import NAMES, ROOT, USUAL, Place, Stack, fields_of, message, reply_of, sizes, snapshot

Start: TypeAlias = Callable[..., Stack]

TWO_FIDS = {"Tlink": "dfid", "Trename": "dfid", "Trenameat": "newdirfid"}
MAKES_FID = {"Tattach": "fid", "Twalk": "newfid", "Txattrwalk": "newfid"}
WITHOUT_FID = {"Tversion", "Tauth", "Tattach", "Tflush"}
EINVAL = {"Tread", "Twrite", "Treaddir", "Tsymlink", "Tsetattr", "Tremove", "Tunlinkat", "Txattrcreate"}
"""What answers EINVAL to an unknown fid; all others ENOENT. The distinction is QEMU's."""


def fid_of(name: str) -> str:
    """The field that names the fid which a request is about."""
    return next(key for key in ("fid", "dfid", "dirfid", "olddirfid") if key in USUAL[name])


# --- open fids ---


@pytest.mark.parametrize("kind", ["file", "folder", "xattr to read", "xattr to write", "created"])
def test_h040_an_open_fid_is_not_opened_again(stack: Stack, place: Place, kind: str) -> None:
    os.setxattr(place.export / "file", "user.x", b"value")
    if kind == "file":
        fid = stack.opened(b"file")
    elif kind == "folder":
        fid = stack.opened(b"folder", flags=0)
    elif kind == "created":
        fid = stack.fid(b"folder")
        stack.do("Tlcreate", fid=fid)
    elif kind == "xattr to read":
        fid = stack.new()
        stack.do("Txattrwalk", fid=stack.fid(b"file"), newfid=fid, name=b"user.x")
    else:
        fid = stack.fid(b"file")
        stack.do("Txattrcreate", fid=fid)
    before, tree = open_descriptors(), snapshot(place.export)
    for _ in range(20):
        for name in ("Tlopen", "Tlcreate", "Txattrcreate"):
            for flags in (0, c.XATTR_REPLACE if name == "Txattrcreate" else c.DOTL_RDWR):
                more: dict[str, Any] = {} if name == "Tlopen" else {"name": b"other"}
                assert stack.errno(name, fid=fid, flags=flags, **more) == errno.EINVAL
    assert open_descriptors() == before
    assert snapshot(place.export) == tree


# --- references ---


@sizes(1000, 20_000)
def test_h041_link_and_clunk(stack: Stack, place: Place, count: int) -> None:
    before = stack.fids, open_descriptors()
    for i in range(count):
        folder, file = stack.fid(b"folder"), stack.fid(b"file")
        stack.do("Tlink", dfid=folder, fid=file, name=b"l%d" % i)
        if i % 2:
            stack.do("Tunlinkat", dirfid=folder, name=b"l%d" % i)
        stack.clunk(folder, file)
    assert (stack.fids, open_descriptors()) == before
    assert (place.export / "file").stat().st_nlink == 1 + count // 2 + count % 2


@pytest.mark.parametrize("ignore_cancel", [False, True])
@pytest.mark.parametrize(
    "name",
    ["Tunlinkat", "Tremove", "Tlopen", "Tlcreate", "Tgetattr", "Tsetattr", "Tlink", "Treadlink", "Twalk", "Tread"],
)
def test_h042_a_clunk_while_the_fid_is_used(start: Start, place: Place, name: str, ignore_cancel: bool) -> None:
    delayed = place.delayed(ignore_cancel=ignore_cancel)
    stack = start(delayed)
    file, folder, opened = stack.fid(b"file"), stack.fid(b"folder"), stack.opened(b"file")
    every: dict[str, dict[str, Any]] = {
        "Tunlinkat": {"dirfid": folder, "name": b"below"}, "Tremove": {"fid": file}, "Tlopen": {"fid": file},
        "Tlcreate": {"fid": folder}, "Tgetattr": {"fid": file}, "Tsetattr": {"fid": file, "valid": 1},
        "Tlink": {"dfid": folder, "fid": file}, "Treadlink": {"fid": stack.fid(b"link")},
        "Twalk": {"fid": folder, "newfid": stack.new(), "wnames": [b"below"]}, "Tread": {"fid": opened},
    }  # fmt: skip
    fields = every[name]
    delayed.delay |= {
        "unlinkat", "remove", "open", "create", "getattr", "setattr", "link", "readlink", "walk", "read",
    }  # fmt: skip
    used = [fid for key, fid in fields.items() if key in {"fid", "dfid", "dirfid"}]
    slow = stack.start(name, tag=50, **fields)
    assert not slow.done
    for fid in used:
        reply = stack.ask("Tclunk", fid=fid)
        assert reply.errno == 0 or (name == "Tremove" and reply.errno == errno.ENOENT)  # which has freed it already
        assert stack.errno("Tgetattr", fid=fid) == errno.ENOENT
    delayed.delay.clear()
    reused = used[0]
    stack.do("Twalk", newfid=reused, wnames=[b"folder"])  # the number is somebody else's now
    delayed.release_all()
    stack.device.run_pending()
    reply_then = reply_of(stack.channel.wait(slow))
    assert reply_then is not None
    if name in {"Tlopen", "Tlcreate"}:
        assert reply_then.errno == errno.ENOENT  # there is nothing that could be open
    else:
        assert reply_then.errno == 0
    assert stack.qid(reused) == (place.export / "folder").stat().st_ino
    stack.do("Tlopen", fid=reused)


@pytest.mark.parametrize("count", [0, 1, 1000])
@pytest.mark.parametrize("by", ["Tunlinkat", "Tremove", "the host"])
def test_h043_unlinking_a_file_with_so_many_fids(stack: Stack, place: Place, count: int, by: str) -> None:
    fids = [stack.new() for _ in range(count)]
    assert not any(r.errno for r in stack.bulk(message("Twalk", newfid=fid, wnames=[b"file"]) for fid in fids))
    opened = [stack.opened(b"file") for _ in range(min(count, 20))]
    if by == "Tunlinkat":
        stack.do("Tunlinkat")
    elif by == "Tremove":
        stack.do("Tremove", fid=stack.fid(b"file"))
    else:
        (place.export / "file").unlink()
    assert stack.errno("Twalk", wnames=[b"file"], newfid=stack.new()) == errno.ENOENT
    for reply in stack.bulk(message("Tgetattr", fid=fid) for fid in fids):
        assert reply.kind == c.RGETATTR
        assert int.from_bytes(reply.body[33:41], "little") == 0  # nlink
    for fid in opened:
        assert stack.read(fid) == b"Hi Guest"
    for fid in fids[:5]:
        assert stack.errno("Tremove", fid=fid) == errno.ESTALE
    assert not any(reply.errno for reply in stack.bulk(message("Tclunk", fid=fid) for fid in [*fids[5:], *opened]))
    assert stack.fids == 1


def test_h044_a_folder_is_emptied_while_it_is_open(stack: Stack, place: Place) -> None:
    names = [b"%03d" % i for i in range(200)]
    (place.export / "tree").mkdir()
    for name in names:
        (place.export / "tree" / os.fsdecode(name)).touch()
    (place.export / "tree" / "sub").mkdir()
    folder, listing = stack.fid(b"tree"), stack.opened(b"tree", flags=0)
    seen: list[bytes] = []
    offset = 0
    while True:
        entries = parse(bytes(stack.do("Treaddir", fid=listing, offset=offset, count=500)["data"]))
        if not entries:
            break
        offset = entries[-1][1]
        for name, _ in entries:
            seen.append(name)
            if name not in {b".", b".."}:
                flags = c.UNLINKAT_REMOVEDIR if name == b"sub" else 0
                stack.do("Tunlinkat", dirfid=listing if len(seen) % 2 else folder, name=name, flags=flags)
    assert sorted(seen) == sorted([b".", b"..", b"sub", *names])
    assert stack.listing(listing) in ([b".", b".."], [b"..", b"."])
    stack.do("Tunlinkat", name=b"tree", flags=c.UNLINKAT_REMOVEDIR)
    assert stack.listing(listing) == []
    assert stack.errno("Tmkdir", dfid=folder) == errno.ENOENT
    assert not (place.export / "tree").exists()


def parse(data: bytes) -> list[tuple[bytes, int]]:
    return [(name, offset) for _, offset, _, name in frames.parse_directory(data)]


@pytest.mark.parametrize("by", ["Tunlinkat", "Tremove", "Trenameat over it", "the host"])
def test_h045_an_unlinked_open_file_is_a_file(stack: Stack, place: Place, by: str) -> None:
    os.setxattr(place.export / "file", "user.x", b"value")
    fid, unopened = stack.opened(b"file"), stack.fid(b"file")
    inode = stack.qid(fid)
    if by == "Tunlinkat":
        stack.do("Tunlinkat")
    elif by == "Tremove":
        stack.do("Tremove", fid=stack.fid(b"file"))
    elif by == "the host":
        (place.export / "file").unlink()
    else:
        (place.export / "other").write_bytes(b"another")
        stack.do("Trenameat", oldname=b"other", newname=b"file")
    assert stack.read(fid) == b"Hi Guest"
    stack.do("Twrite", fid=fid, offset=3, data=b"World!")
    assert stack.read(fid) == b"Hi World!"
    stack.do("Tfsync", fid=fid)
    stack.do("Tfsync", fid=fid, datasync=1)
    every = (
        c.SETATTR_MODE | c.SETATTR_UID | c.SETATTR_GID | c.SETATTR_SIZE | c.SETATTR_ATIME | c.SETATTR_MTIME
        | c.SETATTR_CTIME | c.SETATTR_ATIME_SET | c.SETATTR_MTIME_SET
    )  # fmt: skip
    for target, mode, size in ((fid, 0o640, 5), (unopened, 0o604, 4)):
        stack.do("Tsetattr", fid=target, valid=every, mode=mode, size=size, atime_sec=5, mtime_sec=6)
        found = stack.do("Tgetattr", fid=target)
        assert (found["mode"], found["size"], found["nlink"]) == (stat.S_IFREG | mode, size, 0)
        assert (found["atime_sec"], found["qid"][2]) == (5, inode)
    for clone_of in (fid, unopened):
        clone = stack.new()
        assert stack.do("Twalk", fid=clone_of, newfid=clone)["wqids"] == ()
        assert stack.qid(clone) == inode
        stack.do("Tlopen", fid=clone, flags=c.DOTL_RDWR)
        assert stack.read(clone) == b"Hi W"
        stack.do("Tlock", fid=clone)
        stack.clunk(clone)
    value = stack.new()
    stack.do("Txattrwalk", fid=fid, newfid=value, name=b"user.x")
    assert stack.read(value) == b"value"
    attribute = stack.new()
    stack.do("Twalk", fid=unopened, newfid=attribute)
    stack.do("Txattrcreate", fid=attribute, name=b"user.y", attr_size=3)
    stack.do("Twrite", fid=attribute, data=b"new")
    stack.clunk(attribute)
    assert stack.do("Txattrwalk", fid=fid, newfid=stack.new(), name=b"user.y")["size"] == 3
    stack.do("Tstatfs", fid=fid)
    assert stack.errno("Treadlink", fid=fid) == errno.EINVAL
    assert stack.errno("Tremove", fid=unopened) == errno.ESTALE


# --- devices that go ---


@sizes(100, 1000)
def test_h046_devices_come_and_go(place: Place, count: int) -> None:
    """100 devices (1000), half of them with a mount, open files and locks, leave nothing behind."""
    gone: list[weakref.ref[Any]] = []

    def one(number: int) -> None:
        with pair(place.fsdev, messages=0) as both:
            gone.append(weakref.ref(both.device))
            gone.append(weakref.ref(both.device.driver))
            if number % 2:
                stack = Stack(both)
                stack.do("Tlock", fid=stack.opened(b"file"))
                stack.opened(b"folder", flags=0)
                stack.do("Txattrcreate", fid=stack.fid(b"file"))
                both.device.close()

    one(1)
    with check_descriptors():
        for i in range(count):
            one(i)
    gc.collect()
    assert not any(each() is not None for each in gone)


@pytest.mark.parametrize("ignore_cancel", [False, True])
@pytest.mark.parametrize("defer", [False, True])
def test_h047_a_device_is_closed_amidst_requests(place: Place, ignore_cancel: bool, defer: bool) -> None:
    delayed = place.delayed(ignore_cancel=ignore_cancel)
    with check_descriptors(), pair(delayed, defer=defer, timeout=1) as both:
        stack = Stack(both)
        fid = stack.opened(b"file")
        delayed.delay |= {"read", "write", "walk", "create", "getattr", "open", "readdir", "close_file"}
        room = [
            stack.start("Tread", tag=20, fid=fid), stack.start("Twrite", tag=21, fid=fid, data=b"late"),
            stack.start("Twalk", tag=22, newfid=stack.new(), wnames=[b"file"]), stack.start("Tgetattr", tag=23),
            stack.start("Tflush", tag=24, oldtag=20),
        ]  # fmt: skip
        both.device.run_pending()
        used = both.memory.read(both.channel.queue.ring.used_address, 4)
        both.device.close()
        assert both.device.server.fids == 0
        delayed.delay.clear()
        delayed.release_all()
        both.device.run_pending()
        for offset in (0, 0x1000, 0x2000, 0x3000):
            both.device.bar_write(4, offset, 2, 0)
            both.device.bar_read(4, offset, 2)
        if ignore_cancel:
            assert not any(request.done for request in room)
        assert both.memory.read(both.channel.queue.ring.used_address, 4) == used  # nobody is there to read it
        assert stack.escaped == []
        both.device.close()
    delayed.close()


# --- the end of a fid ---


def test_h048_a_fid_is_free_even_if_its_end_fails(stack: Stack, place: Place) -> None:
    (place.export / "folder" / "more").touch()

    def is_free(number: int) -> bool:
        stack.do("Twalk", newfid=number, wnames=[b"file"])
        stack.clunk(number)
        return True

    folder = stack.fid(b"folder")
    before = stack.fids
    assert stack.errno("Tremove", fid=folder) == errno.ENOTEMPTY
    assert stack.fids == before - 1
    assert is_free(folder)
    root = stack.fid()
    assert stack.errno("Tremove", fid=root) == errno.EBUSY
    assert is_free(root)
    for name, size, flags, data, number in (
        (b"user.x", 5, 0, b"abc", errno.EINVAL),
        (b"user.gone", 5, c.XATTR_REPLACE, b"abcde", errno.ENODATA),
        (b"user.gone", 0, c.XATTR_REPLACE, b"", errno.ENODATA),
        (b"trusted.x", 1, 0, b"a", errno.EOPNOTSUPP),
    ):
        attribute = stack.fid(b"file")
        stack.do("Txattrcreate", fid=attribute, name=name, attr_size=size, flags=flags)
        if data:
            stack.do("Twrite", fid=attribute, data=data)
        assert stack.errno("Tclunk", fid=attribute) == number
        assert is_free(attribute)
    assert os.listxattr(place.export / "file") == []


@pytest.mark.parametrize("names", [[b"folder", b"gone"], [b"folder", b"below", b"x"], [b"folder", b"..", b"no", b"x"]])
def test_h049_the_fid_that_a_partial_walk_never_made(stack: Stack, names: list[bytes]) -> None:
    newfid = stack.new()
    before = stack.fids
    qids = stack.do("Twalk", newfid=newfid, wnames=names)["wqids"]
    assert 0 < len(qids) < len(names)
    assert stack.errno("Tclunk", fid=newfid) == errno.ENOENT  # as Linux does
    assert stack.fids == before
    moved = stack.fid(b"folder")
    inode = stack.qid(moved)
    assert len(stack.do("Twalk", fid=moved, newfid=moved, wnames=[b"below", b"gone"])["wqids"]) == 1
    assert stack.qid(moved) == inode


# --- numbers ---


@pytest.mark.parametrize("number", [950, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, c.NOFID])
@pytest.mark.parametrize("name", [name for name in NAMES if name not in WITHOUT_FID])
def test_h050_unknown_numbers(stack: Stack, place: Place, name: str, number: int) -> None:
    fields = fields_of(stack)[name]
    before = snapshot(place.export), stack.fids
    expected = errno.EINVAL if name in EINVAL else errno.ENOENT
    assert stack.errno(name, **{**fields, fid_of(name): number}) == expected
    if name in TWO_FIDS:
        assert stack.errno(name, **{**fields, TWO_FIDS[name]: number}) == errno.ENOENT
    assert (snapshot(place.export), stack.fids) == before


@pytest.mark.parametrize("name", MAKES_FID)
def test_h050_numbers_of_new_fids(stack: Stack, name: str) -> None:
    key = MAKES_FID[name]
    file = stack.fid(b"file")
    for number in (1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE):
        stack.do(name, **{key: number})
        assert stack.errno(name, **{key: number}) == errno.EINVAL  # in use
        stack.clunk(number)
    assert stack.errno(name, **{key: c.NOFID}) == errno.EINVAL
    assert stack.errno(name, **{key: file}) == errno.EINVAL
    if name == "Tattach":
        assert stack.errno(name, afid=0, fid=stack.new()) == errno.EINVAL
    if name == "Txattrwalk":
        assert stack.errno(name, fid=file, newfid=file) == errno.EINVAL
    if name == "Twalk":
        assert stack.errno(name, fid=stack.opened(b"file"), newfid=file) == errno.EINVAL
        opened = stack.opened(flags=0)
        assert stack.errno(name, fid=opened, newfid=opened, wnames=[b"file"]) == errno.EINVAL
        assert stack.errno(name, fid=file, newfid=file) == 0
    assert stack.errno("Tclunk", fid=ROOT) == 0
    stack.do("Tattach", fid=ROOT)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in WITHOUT_FID])
def test_h050_a_fid_that_is_just_being_moved(start: Start, place: Place, name: str) -> None:
    """While a walk moves it, it is what it was, and may not become something else."""
    delayed = place.delayed(ignore_cancel=True)
    stack = start(delayed)
    fields = fields_of(stack)[name]
    moved = stack.fid(b"folder")
    delayed.delay.add("walk")
    walk = stack.start("Twalk", tag=40, fid=moved, newfid=moved, wnames=[b"below"])
    assert not walk.done
    reply = None
    if name == "Twalk":
        assert stack.errno("Twalk", fid=moved, newfid=moved, wnames=[b".."]) == errno.EBUSY
        other = stack.start("Twalk", tag=41, fid=moved, newfid=stack.new())
    else:
        other = None
        reply = stack.ask(name, **{**fields, fid_of(name): moved})
    if name in {"Tlopen", "Tlcreate", "Txattrcreate"}:
        assert reply is not None
        assert reply.errno == errno.EBUSY
    delayed.delay.clear()
    delayed.release_all()
    stack.device.run_pending()
    walked = reply_of(stack.channel.wait(walk))
    assert walked is not None
    if name in {"Tclunk", "Tremove"}:
        assert walked.errno == errno.ENOENT
        assert stack.errno("Tgetattr", fid=moved) == errno.ENOENT
    else:
        assert walked.errno == 0
        assert stack.qid(moved) == (place.export / "folder/below").stat().st_ino
    if other is not None:
        cloned = reply_of(stack.channel.wait(other))
        assert cloned is not None
        assert cloned.errno == 0


# --- renamed objects ---


def test_h051_fids_follow_what_was_renamed(stack: Stack, place: Place) -> None:
    (place.export / "a" / "b").mkdir(parents=True)
    (place.export / "a" / "b" / "file").write_bytes(b"content")
    os.setxattr(place.export / "a/b/file", "user.x", b"value")
    path = (b"a", b"b", b"file")
    opened, unopened, again = stack.opened(*path), stack.fid(*path), stack.fid(*path)
    folder, top = stack.fid(b"a", b"b"), stack.fid(b"a")
    listing = stack.opened(b"a", b"b", flags=0)
    value, attribute = stack.new(), stack.fid(*path)
    stack.do("Txattrwalk", fid=unopened, newfid=value, name=b"user.x")
    stack.do("Txattrcreate", fid=attribute, name=b"user.y", attr_size=3)
    inodes = stack.qid(opened), stack.qid(folder), stack.qid(top)

    stack.do("Trenameat", oldname=b"a", newname=b"z")
    stack.do("Trename", fid=folder, dfid=top, name=b"y")
    stack.do("Trenameat", olddirfid=folder, oldname=b"file", newdirfid=folder, newname=b"g")

    now = place.export / "z/y/g"
    assert now.read_bytes() == b"content"
    assert (stack.qid(opened), stack.qid(folder), stack.qid(top)) == inodes
    assert stack.qid(unopened) == stack.qid(again) == inodes[0]
    stack.do("Twrite", fid=opened, data=b"CONTENT")
    assert now.read_bytes() == b"CONTENT"
    stack.do("Tsetattr", fid=unopened, valid=c.SETATTR_MODE, mode=0o604)
    assert stat.S_IMODE(now.stat().st_mode) == 0o604
    assert stack.read(value) == b"value"
    stack.do("Twrite", fid=attribute, data=b"new")
    stack.clunk(attribute)
    assert os.getxattr(now, "user.y") == b"new"
    assert sorted(stack.listing(listing)) == [b".", b"..", b"g"]
    assert stack.qid(stack.fid(b"..", base=folder)) == inodes[2]
    made = stack.new()
    stack.do("Twalk", fid=folder, newfid=made)
    stack.do("Tlcreate", fid=made, name=b"made")
    assert (place.export / "z/y/made").exists()
    stack.do("Trename", fid=again, dfid=ROOT, name=b"up")
    assert (place.export / "up").read_bytes() == b"CONTENT"
    stack.do("Tremove", fid=unopened)  # found by another fid, it has moved with it
    assert not (place.export / "up").exists()
    assert stack.read(opened) == b"CONTENT"


def test_h051_a_file_is_renamed_over_one_with_fids(stack: Stack, place: Place) -> None:
    (place.export / "other").write_bytes(b"other")
    old, new = stack.opened(b"file"), stack.opened(b"other")
    by_name = stack.fid(b"file")
    stack.do("Trenameat", oldname=b"other", newname=b"file")
    assert stack.read(old) == b"Hi Guest"
    assert stack.read(new) == b"other"
    assert stack.errno("Tremove", fid=by_name) == errno.ESTALE  # of what it stands for, nothing is left there
    assert (place.export / "file").read_bytes() == b"other"


def test_h051_locks_stay_with_a_renamed_file(stack: Stack, place: Place) -> None:
    holder, other = stack.opened(b"file"), stack.opened(b"file")
    stack.do("Tlock", fid=holder)
    stack.do("Trenameat", newname=b"moved")
    assert stack.do("Tlock", fid=other, proc_id=2)["status"] == c.LOCK_BLOCKED
    assert stack.do("Tlock", fid=stack.opened(b"moved"), proc_id=2)["status"] == c.LOCK_BLOCKED
    stack.clunk(holder)
    assert stack.do("Tlock", fid=other, proc_id=2)["status"] == c.LOCK_SUCCESS
