"""What the host, or another request, puts in the way between a walk and what follows (H020 to H027)."""

from __future__ import annotations

import errno
import itertools
import os
import random
import shutil
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from pyvirtfs.guest import Request
from pyvirtfs.p9 import constants as c
from tests.hostile.stack import IS_ROOT, ROOT, Place, RefusedError, Reply, Stack, message, reply_of, sizes, snapshot

Start: TypeAlias = Callable[..., Stack]

# --- one operation, and the ground moved under it ---

SETATTR_TIMES = c.SETATTR_ATIME | c.SETATTR_ATIME_SET | c.SETATTR_MTIME | c.SETATTR_MTIME_SET


def read_all(stack: Stack, fid: int, flags: int, *, write: bool) -> bytes:
    stack.do("Tlopen", fid=fid, flags=flags)
    data = stack.read(fid)
    if write:
        stack.do("Twrite", fid=fid, data=b"guest")
    return data


def create(stack: Stack, folder: int, name: bytes, flags: int = 0) -> bytes:
    stack.do("Tlcreate", fid=folder, name=name, flags=c.DOTL_RDWR | c.DOTL_CREATE | flags)
    data = stack.read(folder)
    stack.do("Twrite", fid=folder, data=b"guest")
    return data


def walk_and_read(stack: Stack, folder: int, *names: bytes) -> bytes:
    fid = stack.fid(*names, base=folder)
    return read_all(stack, fid, c.DOTL_RDWR, write=True)


def get_xattr(stack: Stack, fid: int, name: bytes) -> bytes:
    value = stack.new()
    stack.do("Txattrwalk", fid=fid, newfid=value, name=name)
    return stack.read(value)


def set_xattr(stack: Stack, fid: int, name: bytes, value: bytes, flags: int = 0) -> None:
    stack.do("Txattrcreate", fid=fid, name=name, attr_size=len(value), flags=flags)
    if value:
        stack.do("Twrite", fid=fid, data=value)
    stack.do("Tclunk", fid=fid)


def list_folder(stack: Stack, folder: int) -> bytes:
    stack.do("Tlopen", fid=folder)
    assert b"secret" not in stack.listing(folder)
    return b""


def lock(stack: Stack, fid: int) -> None:
    stack.do("Tlopen", fid=fid, flags=c.DOTL_RDWR)
    stack.do("Tgetlock", fid=fid)
    stack.do("Tlock", fid=fid)


# What each does with a folder, and with a file that was found in it by the name `file`. Bytes that come are content.
OPERATIONS: dict[str, Callable[[Stack, int, int], object]] = {
    "walk": lambda stack, folder, _: walk_and_read(stack, folder, b"file"),
    "walk through": lambda stack, folder, _: walk_and_read(stack, folder, b"sub", b"..", b"file"),
    "walk up": lambda stack, folder, _: walk_and_read(stack, folder, b"..", b"folder", b"file"),
    "open": lambda stack, _, file: read_all(stack, file, 0, write=False),
    "open to write": lambda stack, _, file: read_all(stack, file, c.DOTL_RDWR, write=True),
    "open to truncate": lambda stack, _, file: read_all(stack, file, c.DOTL_RDWR | c.DOTL_TRUNC, write=True),
    "opendir": lambda stack, folder, _: list_folder(stack, folder),
    "getattr": lambda stack, _, file: stack.do("Tgetattr", fid=file),
    "chmod": lambda stack, _, file: stack.do("Tsetattr", fid=file, valid=c.SETATTR_MODE, mode=0o4777),
    "chown": lambda stack, _, file: stack.do("Tsetattr", fid=file, valid=c.SETATTR_UID | c.SETATTR_GID),
    "utimes": lambda stack, _, file: stack.do("Tsetattr", fid=file, valid=SETATTR_TIMES, atime_sec=1),
    "truncate": lambda stack, _, file: stack.do("Tsetattr", fid=file, valid=c.SETATTR_SIZE),
    "touch": lambda stack, _, file: stack.do("Tsetattr", fid=file, valid=c.SETATTR_CTIME),
    "statfs": lambda stack, _, file: stack.do("Tstatfs", fid=file),
    "readlink": lambda stack, _, file: bytes(stack.do("Treadlink", fid=file)["target"]),
    "getxattr": lambda stack, _, file: get_xattr(stack, file, b"user.x"),
    "listxattr": lambda stack, _, file: get_xattr(stack, file, b""),
    "setxattr": lambda stack, _, file: set_xattr(stack, file, b"user.y", b"guest"),
    "removexattr": lambda stack, _, file: set_xattr(stack, file, b"user.x", b"", c.XATTR_REPLACE),
    "lock": lambda stack, _, file: lock(stack, file),
    "create": lambda stack, folder, _: create(stack, folder, b"new"),
    "create over": lambda stack, folder, _: create(stack, folder, b"file"),
    "create exclusively": lambda stack, folder, _: create(stack, folder, b"file", c.DOTL_EXCL),
    "create truncating": lambda stack, folder, _: create(stack, folder, b"file", c.DOTL_TRUNC),
    "mkdir": lambda stack, folder, _: stack.do("Tmkdir", dfid=folder),
    "mknod fifo": lambda stack, folder, _: stack.do("Tmknod", dfid=folder, mode=stat.S_IFIFO | 0o600),
    "mknod": lambda stack, folder, _: stack.do("Tmknod", dfid=folder),
    "symlink": lambda stack, folder, _: stack.do("Tsymlink", dfid=folder),
    "link": lambda stack, folder, file: stack.do("Tlink", dfid=folder, fid=file),
    "rename": lambda stack, folder, file: stack.do("Trename", fid=file, dfid=folder),
    "renameat": lambda stack, folder, _: stack.do("Trenameat", olddirfid=folder, newdirfid=folder),
    "rename over": lambda stack, folder, _: stack.do(
        "Trenameat", olddirfid=folder, oldname=b"other", newdirfid=folder, newname=b"file"
    ),
    "unlinkat": lambda stack, folder, _: stack.do("Tunlinkat", dirfid=folder),
    "rmdir": lambda stack, folder, _: stack.do("Tunlinkat", dirfid=folder, name=b"sub", flags=c.UNLINKAT_REMOVEDIR),
    "remove": lambda stack, _, file: stack.do("Tremove", fid=file),
}


def parent_is_link(top: Path) -> None:
    (top / "export/folder").rename(top / "export/moved")
    os.symlink("../sentinel", top / "export/folder")


def parent_is_absolute_link(top: Path) -> None:
    (top / "export/folder").rename(top / "export/moved")
    os.symlink(top / "sentinel", top / "export/folder")


def parent_is_gone(top: Path) -> None:
    (top / "export/folder").rename(top / "gone")
    os.symlink("../sentinel", top / "export/folder")


def export_is_link(top: Path) -> None:
    (top / "export").rename(top / "gone")
    os.symlink("sentinel", top / "export")


def last_is_link(top: Path) -> None:
    (top / "export/folder/file").rename(top / "export/folder/kept")
    os.symlink("../../sentinel/secret", top / "export/folder/file")


def last_is_absolute_link(top: Path) -> None:
    (top / "export/folder/file").unlink()
    os.symlink(top / "sentinel/secret", top / "export/folder/file")


def last_is_magic_link(top: Path) -> None:
    (top / "export/folder/file").unlink()
    os.symlink(f"/proc/self/root{top}/sentinel/secret", top / "export/folder/file")


def last_is_link_to_a_folder(top: Path) -> None:
    (top / "export/folder/file").unlink()
    os.symlink("../../sentinel", top / "export/folder/file")
    (top / "export/folder/sub").rmdir()
    os.symlink("../../sentinel/sub", top / "export/folder/sub")


def last_is_fifo(top: Path) -> None:
    (top / "export/folder/file").unlink()
    os.mkfifo(top / "export/folder/file")


PARENTS = (parent_is_link, parent_is_absolute_link, parent_is_gone)
LASTS = (
    last_is_link,
    last_is_absolute_link,
    last_is_magic_link,
    last_is_link_to_a_folder,
    last_is_fifo,
    export_is_link,
)


def fresh(place: Place) -> None:
    """The tree as it was, wherever the last swap has left it."""
    if (place.top / "export").is_symlink():
        (place.top / "export").unlink()
        (place.top / "gone").rename(place.top / "export")
    shutil.rmtree(place.top / "gone", ignore_errors=True)
    for name in ("folder", "moved", "new"):
        path = place.export / name
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)
        else:
            shutil.rmtree(path)
    (place.export / "folder/sub").mkdir(parents=True)
    (place.export / "folder/file").write_bytes(b"inside")
    (place.export / "folder/other").write_bytes(b"inside")
    os.setxattr(place.export / "folder/file", "user.x", b"inside")


def try_it(stack: Stack, place: Place, operation: str, swap: Callable[[Path], None]) -> None:
    """It may work on what was found before, or fail; what is outside stays out of reach."""
    fresh(place)
    folder, file = stack.fid(b"folder"), stack.fid(b"folder", b"file")
    swap(place.top)
    try:
        content = OPERATIONS[operation](stack, folder, file)
    except RefusedError:
        content = None
    if isinstance(content, bytes):
        assert content in {b"", b"inside", b"user.x\0"}
    for fid in (folder, file):
        stack.ask("Tclunk", fid=fid)
    assert snapshot(place.sentinel) == place.before, (operation, swap.__name__)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_h020_a_parent_that_became_a_symbolic_link(stack: Stack, place: Place, operation: str) -> None:
    for swap in PARENTS:
        try_it(stack, place, operation, swap)
    fresh(place)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_h021_a_last_name_that_became_a_symbolic_link(stack: Stack, place: Place, operation: str) -> None:
    for swap in LASTS:
        try_it(stack, place, operation, swap)
    fresh(place)


def test_h021_the_operations_work_where_nothing_is_in_the_way(stack: Stack, place: Place) -> None:
    """Else the tests above would pass for a device that refuses everything."""
    for name, operation in OPERATIONS.items():
        fresh(place)
        folder, file = stack.fid(b"folder"), stack.fid(b"folder", b"file")
        if name in {"create exclusively", "readlink"}:
            with pytest.raises(RefusedError):
                operation(stack, folder, file)
        else:
            operation(stack, folder, file)
        for fid in (folder, file):
            stack.ask("Tclunk", fid=fid)


# --- requests that overtake each other on one fid ---


class Interleaving:
    """Requests on one fid of a folder, started and released in any order."""

    def __init__(self, stack: Stack, delayed: Any, dice: random.Random) -> None:
        self.stack, self.delayed, self.dice = stack, delayed, dice
        self.tag = 10
        self.sent: list[tuple[str, Request]] = []
        self.made: list[int] = []

    def start(self, name: str, /, **fields: Any) -> None:
        self.tag += 1
        made = fields.get("newfid")
        if made is not None:
            self.made.append(made)
        self.sent.append((name, self.stack.start(name, tag=self.tag, **fields)))

    def release(self, *, every: bool = False) -> None:
        waiting = list(self.delayed.waiting())
        self.dice.shuffle(waiting)
        for held in waiting if every else waiting[: self.dice.randrange(3)]:
            held.release()
        self.stack.device.run_pending()

    def finish(self) -> list[tuple[str, Reply | None]]:
        while list(self.delayed.waiting()):
            self.release(every=True)
        self.delayed.held.clear()
        replies = [(name, reply_of(self.stack.channel.wait(request))) for name, request in self.sent]
        for _, request in self.sent:
            self.stack.channel.retire(request)
        return replies


@sizes(2500, 50_000)
def test_h022_create_walk_and_xattr_walk_of_one_fid(start: Start, place: Place, count: int) -> None:
    """2500 orders of starting and releasing six requests (50,000 in the large form): no fid goes astray."""
    os.setxattr(place.export / "folder", "user.x", b"of the folder")
    delayed = place.delayed()
    stack = start(delayed, messages=0)
    folder_qid, below = stack.qid(stack.fid(b"folder")), stack.qid(stack.fid(b"folder", b"below"))
    inside = {folder_qid, below, stack.qid(ROOT)}
    for seed in range(count):
        dice = random.Random(seed)
        delayed.delay.clear()
        fid = stack.fid(b"folder")
        run = Interleaving(stack, delayed, dice)
        delayed.delay |= {"create", "walk", "getxattr", "getattr"}
        numbers = [stack.new() for _ in range(4)]
        name = b"new%d" % seed
        todo: list[tuple[str, dict[str, Any]]] = [
            ("Tlcreate", {"name": name}),
            ("Twalk", {"newfid": numbers[0], "wnames": [b"below"]}),
            ("Twalk", {"newfid": numbers[1], "wnames": [b"..", b"..", b".."]}),
            ("Twalk", {"newfid": numbers[2]}),
            ("Txattrwalk", {"newfid": numbers[3], "name": b"user.x"}),
            ("Tgetattr", {}),
        ]
        dice.shuffle(todo)
        for request, fields in todo:
            run.start(request, fid=fid, **fields)
            if dice.random() < 0.4:
                run.release()
        replies = run.finish()
        delayed.delay.clear()
        new = (place.export / "folder" / os.fsdecode(name)).lstat().st_ino
        for request, reply in replies:
            assert reply is not None
            if reply.errno:
                assert request != "Tlcreate"
                assert reply.errno in {errno.ENOTDIR, errno.ENODATA, errno.EINVAL, errno.EBUSY, errno.ENOENT}
            elif request == "Tgetattr":
                assert int.from_bytes(reply.body[13:21], "little") in {folder_qid, new}
        assert stack.qid(fid) == new
        for number in numbers[:3]:
            found = stack.ask("Tgetattr", fid=number)
            assert found.errno == errno.ENOENT or int.from_bytes(found.body[13:21], "little") in {*inside, new}
        value = stack.ask("Tread", fid=numbers[3])
        assert value.errno == errno.EINVAL or value.body[4:] == b"of the folder"
        for number in (fid, *numbers):
            stack.ask("Tclunk", fid=number)
        os.unlink(place.export / "folder" / os.fsdecode(name))


@pytest.mark.parametrize("ignore_cancel", [False, True])
@pytest.mark.parametrize("order", list(itertools.permutations(["Tlcreate", "Tgetattr", "Txattrwalk"])))
def test_h023_create_while_others_look_at_the_fid(
    start: Start, place: Place, order: tuple[str, ...], ignore_cancel: bool
) -> None:
    """What was asked about the folder is answered about the folder, in whichever order the answers come."""
    os.setxattr(place.export / "folder", "user.x", b"of the folder")
    for release in itertools.permutations(range(3)):
        delayed = place.delayed(ignore_cancel=ignore_cancel)
        stack = start(delayed)
        fid, value = stack.fid(b"folder"), stack.new()
        folder = stack.qid(fid)
        fields: dict[str, dict[str, Any]] = {"Txattrwalk": {"newfid": value, "name": b"user.x"}}
        delayed.delay |= {"create", "getattr", "getxattr"}
        sent = [stack.start(name, tag=20 + i, fid=fid, **fields.get(name, {})) for i, name in enumerate(order)]
        held = list(delayed.waiting())
        assert len(held) == 3
        for index in release:
            held[index].release()
            stack.device.run_pending()
        replies = {name: reply_of(stack.channel.wait(request)) for name, request in zip(order, sent, strict=True)}
        delayed.delay.clear()
        assert not any(reply is None or reply.errno for reply in replies.values())
        attributes = replies["Tgetattr"]
        assert attributes is not None
        assert int.from_bytes(attributes.body[13:21], "little") == folder
        assert stack.read(value) == b"of the folder"
        assert stack.qid(fid) == (place.export / "folder/new").stat().st_ino
        stack.clunk(fid, value)
        (place.export / "folder/new").unlink()


@sizes(1000, 20_000)
def test_h024_renames_against_create_stat_and_listing(start: Start, place: Place, count: int) -> None:
    """1000 rounds (20,000): renames of a folder, by the guest and by the host, while others work in it."""
    delayed = place.delayed()
    stack = start(delayed, messages=0)
    (place.export / "folder" / "sub").mkdir()
    sub = stack.qid(stack.fid(b"folder", b"sub"))
    names = [b"folder", b"moved", b"again"]
    for seed in range(count):
        dice = random.Random(seed)
        old = next(name for name in names if (place.export / os.fsdecode(name)).exists())
        new = dice.choice([name for name in names if name != old])
        fids = [stack.fid(old) for _ in range(3)]
        listing = stack.opened(old, flags=0)
        run = Interleaving(stack, delayed, dice)
        delayed.delay |= {"rename", "renameat", "create", "getattr", "readdir", "walk"}
        made = stack.new()
        by_name: dict[str, Any] = {"oldname": old, "newname": new}
        todo: list[tuple[str, dict[str, Any]]] = [
            ("Trenameat", by_name) if dice.random() < 0.5 else ("Trename", {"fid": fids[0], "name": new}),
            ("Tlcreate", {"fid": fids[1], "name": b"made"}),
            ("Tgetattr", {"fid": fids[2]}),
            ("Treaddir", {"fid": listing}),
            ("Twalk", {"fid": fids[2], "newfid": made, "wnames": [b"sub", b"..", b"sub"]}),
        ]
        dice.shuffle(todo)
        for request, fields in todo:
            run.start(request, **fields)
            if dice.random() < 0.4:
                run.release()
        for request, reply in run.finish():
            assert reply is not None
            assert reply.errno == 0, (request, os.strerror(reply.errno))
        delayed.delay.clear()
        assert stack.qid(made) == sub
        assert (place.export / os.fsdecode(new) / "made").is_file()
        assert stack.qid(fids[1]) == (place.export / os.fsdecode(new) / "made").stat().st_ino
        stack.do("Tremove", fid=fids[1])  # by the place that it was found at, which has moved
        assert not (place.export / os.fsdecode(new) / "made").exists()
        stack.clunk(fids[0], fids[2], listing, made)


@sizes(500, 20_000)
def test_h024_renames_by_a_program_of_the_host(stack: Stack, place: Place, count: int) -> None:
    """500 rounds (20,000) of create, stat, list, remove while a thread renames the folder to and fro."""
    os.symlink("../sentinel", place.export / "trap")
    stop = threading.Event()

    def rename() -> None:
        folder, trap, spare = (place.export / name for name in ("folder", "trap", "spare"))
        while not stop.is_set():
            os.rename(folder, spare)
            os.rename(trap, folder)  # for a moment, the name is that of a link to the sentinel
            os.rename(folder, trap)
            os.rename(spare, folder)

    thread = threading.Thread(target=rename)
    thread.start()
    try:
        for i in range(count):
            walked = stack.new()
            reply = stack.ask("Twalk", newfid=walked, wnames=[b"folder"])
            if reply.errno:
                assert reply.errno == errno.ENOENT
                continue
            name = b"new%d" % i
            made, listing = stack.new(), stack.new()
            for newfid in (made, listing):
                stack.do("Twalk", fid=walked, newfid=newfid)
            created = stack.ask("Tlcreate", fid=made, name=name)
            assert created.errno in {0, errno.ENOTDIR}  # it was the link
            stack.do("Tgetattr", fid=made)
            opened = stack.ask("Tlopen", fid=listing)
            assert opened.errno in {0, errno.ENXIO}
            assert created.errno == errno.ENOTDIR or opened.errno == 0
            if not created.errno:
                names = stack.listing(listing)
                assert name in names
                assert b"secret" not in names
                assert stack.errno("Tunlinkat", dirfid=walked, name=name) == 0
            assert stack.errno("Twalk", fid=walked, newfid=stack.new(), wnames=[b"secret"]) in {
                errno.ENOENT, errno.ENOTDIR,
            }  # fmt: skip
            stack.clunk(walked, made, listing)
    finally:
        stop.set()
        thread.join()
    assert sorted(os.listdir(place.export / "folder")) == ["below"]


# --- changes by descriptor ---


def attributes(path: Path) -> tuple[int, ...]:
    status = path.lstat()
    return status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, status.st_ctime_ns, status.st_rdev


@pytest.mark.parametrize("instead", ["fifo", "device", "link to a device", "link to a file"])
@pytest.mark.parametrize("what", ["chmod", "chown", "utimes", "truncate", "touch", "setxattr", "remove", "rename"])
def test_h025_changes_are_of_what_was_found(stack: Stack, place: Place, what: str, instead: str) -> None:
    if instead.endswith("device") and not IS_ROOT:
        pytest.skip("needs root: makes a device node")
    fresh(place)
    device = place.export / "device"
    if IS_ROOT:
        os.mknod(device, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    folder, file = stack.fid(b"folder"), stack.fid(b"folder", b"file")
    path = place.export / "folder/file"
    path.rename(place.export / "folder/kept")
    {
        "fifo": lambda: os.mkfifo(path, 0o600),
        "device": lambda: os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3)),
        "link to a device": lambda: path.symlink_to("../device"),
        "link to a file": lambda: path.symlink_to("../../sentinel/secret"),
    }[instead]()
    before = attributes(path), attributes(device) if IS_ROOT else ()
    try:
        OPERATIONS[what](stack, folder, file)
        found = True
    except RefusedError:
        found = False
    assert (attributes(path), attributes(device) if IS_ROOT else ()) == before
    kept = place.export / "folder/kept"
    if what in {"remove", "rename"}:  # they are about the name, which means something else now
        assert not found
    else:
        assert found
        assert {
            "chmod": lambda: stat.S_IMODE(kept.stat().st_mode) == 0o4777,
            "utimes": lambda: kept.stat().st_atime == 1,
            "truncate": lambda: kept.stat().st_size == 0,
            "setxattr": lambda: os.getxattr(kept, "user.y") == b"guest",
        }.get(what, lambda: True)()


# --- links ---


def test_h026_a_thousand_links_read_at_once(stack: Stack, place: Place) -> None:
    targets = {b"l%04d" % i: b"target-%d-" % i + b"x" * (i % 300) for i in range(1000)}
    for name, target in targets.items():
        os.symlink(target, os.fsencode(place.export / "folder") + b"/" + name)
    folder = stack.fid(b"folder")
    fids = {name: stack.new() for name in targets}
    for _ in stack.bulk(message("Twalk", fid=folder, newfid=fid, wnames=[name]) for name, fid in fids.items()):
        pass
    listing = stack.opened(b"folder", flags=0)
    todo = []
    for i, fid in enumerate(fids.values()):
        todo.append(message("Treadlink", i % 50, fid=fid))
        if i % 10 == 0:
            todo.append(message("Treaddir", 60 + i % 40, fid=listing, count=3000))
    seen: list[bytes] = []
    first: bytes | None = None
    for reply in stack.bulk(todo, batch=50):
        if reply.kind == c.RREADLINK:
            seen.append(reply.body[2:])
        else:
            assert reply.kind == c.RREADDIR
            first = first or reply.body
            assert reply.body == first  # the same offset has the same entries
    assert seen == list(targets.values())
    for name in stack.listing(listing):
        if name.startswith(b"l"):
            assert stack.do("Treadlink", fid=fids[name])["target"] == targets[name]


def test_h027_magic_links_are_links(stack: Stack, place: Place) -> None:
    secret = os.open(place.sentinel / "secret", os.O_RDWR)
    folder = os.open(place.sentinel, os.O_RDONLY | os.O_DIRECTORY)
    try:
        targets = [
            "/proc/self/root", f"/proc/self/fd/{secret}", f"/proc/self/fd/{folder}", f"/proc/{os.getpid()}/fd/{folder}",
            "/dev/fd/0", f"/dev/fd/{secret}", "/proc/self/cwd", f"/proc/thread-self/fd/{folder}", "/proc/self/exe",
        ]  # fmt: skip
        for number, target in enumerate(targets):
            name = b"magic%d" % number
            os.symlink(target, place.export / os.fsdecode(name))
            fid = stack.fid(name)
            assert stack.do("Treadlink", fid=fid)["target"] == os.fsencode(target)
            for names in ([name, b"secret"], [name, b".."], [name, b"etc"], [name, b"."]):
                reply = stack.ask("Twalk", newfid=stack.new(), wnames=names)
                assert (reply.kind, reply.body[:3]) == (c.RWALK, b"\1\0" + bytes([c.QTSYMLINK]))  # as far as the link
            for flags in (0, c.DOTL_RDWR, c.DOTL_RDWR | c.DOTL_TRUNC, c.DOTL_DIRECTORY):
                assert stack.errno("Tlopen", fid=fid, flags=flags) in {errno.ENXIO, errno.ENOTDIR}
            assert stack.errno("Tlcreate", fid=stack.fid(), name=name) == errno.ELOOP
            assert stack.errno("Tsetattr", fid=fid, valid=c.SETATTR_SIZE) == errno.EINVAL
            assert stack.errno("Tsetattr", fid=fid, valid=c.SETATTR_MODE, mode=0o777) == errno.ELOOP
            stack.do("Tsetattr", fid=fid, valid=SETATTR_TIMES, mtime_sec=5)
            assert (place.export / os.fsdecode(name)).lstat().st_mtime == 5
            assert stack.errno("Txattrwalk", fid=fid, newfid=stack.new(), name=b"user.x") != 0
            for message_name in ("Tmkdir", "Tlcreate", "Tsymlink", "Tmknod"):
                field = "fid" if message_name == "Tlcreate" else "dfid"
                assert stack.errno(message_name, **{field: fid}) == errno.ENOTDIR
    finally:
        os.close(secret)
        os.close(folder)
