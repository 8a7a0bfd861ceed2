"""Errors of the host reach the guest as they are: a full disk, a quota, a broken or readonly one. All else goes on."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import BuiltinFunctionType, FunctionType
from typing import Any

import pytest

from pyvirtfs.errors import ConfigError
from pyvirtfs.p9 import constants as c
from tests.hostile.stack import IS_ROOT, ROOT, UID, Place, Stack, fields_of, running, snapshot

MODELS = [*(["passthrough"] if IS_ROOT else []), "none", "mapped-xattr", "mapped-file"]


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> str:
    """The name of a security model."""
    name: str = request.param
    return name


@contextmanager
def served(place: Place, model: str, options: str = "") -> Iterator[Stack]:
    """A device on the export, and all that must hold at the end."""
    with ExitStack() as stacks:
        try:
            stack = stacks.enter_context(running(f"local,path={place.export},security_model={model}{options}"))
        except ConfigError as error:  # no extended attributes here
            pytest.skip(str(error))
        yield stack
        assert stack.errno("Tgetattr") == 0


def mount(*arguments: object) -> None:
    """mount(8), or the test is skipped."""
    if not IS_ROOT:
        pytest.skip("needs root: mounts file systems")
    if subprocess.run(["mount", *map(str, arguments)], check=False, capture_output=True).returncode:
        pytest.skip("may not mount")


@contextmanager
def tmpfs(tmp_path: Path, options: str) -> Iterator[Place]:
    """A place on a small file system."""
    top = tmp_path / "small"
    top.mkdir()
    mount("-t", "tmpfs", "-o", options, "none", top)
    try:
        yield Place(top)
    finally:
        subprocess.run(["umount", top], check=True)


def locked(stack: Stack, fid: int) -> int:
    """Whether somebody else may lock the object of an open fid."""
    return int(stack.do("Tgetlock", fid=fid, proc_id=99)["type"])


# --- a full disk ---


def test_a_disk_that_fills_up(tmp_path: Path, model: str) -> None:
    """ENOSPC; what is written is counted, what is locked stays so, and all works again when there is room."""
    with tmpfs(tmp_path, "size=512k") as place, served(place, model) as stack:
        fid, other = stack.opened(b"file"), stack.opened(b"folder", b"below")
        stack.do("Tlock", fid=other)
        end = 0
        while True:
            reply = stack.ask("Twrite", fid=fid, offset=end, data=b"x" * 60_000)
            if reply.errno:
                break
            end += int.from_bytes(reply.body, "little")
        assert reply.errno == errno.ENOSPC
        assert stack.do("Tgetattr", fid=fid)["size"] == (place.export / "file").stat().st_size == end
        assert stack.read(fid, end - 5) == b"x" * 5
        assert stack.errno("Twrite", fid=fid, offset=end + 60_000, data=b"y") == errno.ENOSPC
        assert stack.do("Tgetattr", fid=fid)["size"] == end
        assert locked(stack, stack.opened(b"folder", b"below")) == c.LOCK_TYPE_WRLCK
        stack.do("Tfsync", fid=fid)
        stack.do("Tsetattr", fid=fid, valid=c.SETATTR_SIZE, size=3)
        assert stack.do("Twrite", fid=fid, offset=3, data=b"again")["count"] == 5
        made = stack.fid(b"folder")
        stack.do("Tlcreate", fid=made)
        stack.do("Twrite", fid=made, data=b"new")
        stack.clunk(other)
        assert locked(stack, stack.opened(b"folder", b"below")) == c.LOCK_TYPE_UNLCK


def test_a_disk_without_inodes(tmp_path: Path, model: str) -> None:
    """Nothing can be made: ENOSPC, nothing is left of it, and the fids are as they were."""
    with tmpfs(tmp_path, "size=4m,nr_inodes=60") as place, served(place, model) as stack:
        kept = stack.opened(b"file")
        stack.do("Tlock", fid=kept)
        for i in range(60):
            fid = stack.fid(b"folder")
            reply = stack.ask("Tlcreate", fid=fid, name=b"%d" % i)
            if reply.errno:
                break
            stack.clunk(fid)
        assert reply.errno == errno.ENOSPC
        names = sorted(stack.listing(stack.opened(b"folder", flags=0)))
        assert b"%d" % i not in names
        stack.do("Tlopen", fid=fid, flags=0)  # it is the folder's, and not open
        assert sorted(stack.listing(fid)) == names
        folder = stack.fid(b"folder")
        every: dict[str, dict[str, Any]] = {"Tmkdir": {}, "Tmknod": {}, "Tsymlink": {"symtgt": b"t" * 300}}
        for name, fields in every.items():
            assert stack.errno(name, **{"dfid": folder, "name": b"new", **fields}) == errno.ENOSPC
        assert sorted(stack.listing(fid)) == names
        assert stack.errno("Twalk", fid=folder, newfid=stack.new(), wnames=[b"new"]) == errno.ENOENT
        assert locked(stack, stack.opened(b"file")) == c.LOCK_TYPE_WRLCK
        for i in range(3):
            stack.do("Tunlinkat", dirfid=folder, name=b"%d" % i)
        stack.do("Tlcreate", fid=stack.fid(b"folder"), name=b"new")
        assert not [name for name in os.listdir(place.export / "folder") if name.startswith(".virtfs_metadata.")]


def test_attributes_that_find_no_room(tmp_path: Path) -> None:
    """The Tclunk that stores one says so, and frees the fid."""
    (tmp_path / "place").mkdir()
    place = Place(tmp_path / "place")
    model = "passthrough" if IS_ROOT else "none"
    with served(place, model) as stack:
        for i in range(200):  # an inode of ext4 has room for 4 KiB or so
            fid = stack.fid(b"file")
            stack.do("Txattrcreate", fid=fid, name=b"user.a%d" % i, attr_size=3000)
            stack.do("Twrite", fid=fid, data=b"v" * 3000)
            error = stack.errno("Tclunk", fid=fid)
            assert stack.errno("Tclunk", fid=fid) == errno.ENOENT
            if error:
                break
        else:
            pytest.skip("this file system has room for any attributes")
        assert error in {errno.ENOSPC, errno.E2BIG, errno.EDQUOT}
        assert len(os.listxattr(place.export / "file")) == i
        os.removexattr(place.export / "file", "user.a0")


# --- a file system that becomes readonly ---


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[tuple[Place, Callable[[str], None]]]:
    """An export that is a mount of its own, and a function that remounts it ``ro`` or ``rw``."""
    place = Place(tmp_path)
    mount("--bind", place.export, place.export)

    def remount(how: str) -> None:
        subprocess.run(["mount", "-o", f"remount,bind,{how}", place.export], check=True)

    try:
        yield place, remount
        place.check()
    finally:
        subprocess.run(["umount", place.export], check=True)


CHANGES = {
    "Tlcreate", "Tsymlink", "Tmknod", "Tmkdir", "Tlink", "Trename", "Trenameat", "Tunlinkat", "Tremove", "Tsetattr",
}  # fmt: skip


def test_a_file_system_that_becomes_readonly(shared: tuple[Place, Callable[[str], None]], model: str) -> None:
    """EROFS for whatever changes something; reading and locks go on, and everything else when it is writable again."""
    place, remount = shared
    with served(place, model) as stack:
        holder, second = stack.opened(b"file", flags=0), stack.opened(b"file", flags=0)
        every = fields_of(stack)
        stack.clunk(every["Twrite"]["fid"])  # with a descriptor to write, it could not become readonly
        remount("ro")
        stack.do("Tlock", fid=holder)
        before = snapshot(place.export)
        for name in [*sorted(CHANGES - {"Tremove"}), "Tremove"]:
            assert stack.errno(name, **every[name]) == errno.EROFS, name
        for name in CHANGES - {"Tremove", "Tlcreate"}:
            key = next(key for key in ("fid", "dfid", "dirfid", "olddirfid") if key in every[name])
            assert stack.errno("Tgetattr", fid=every[name][key]) in {0, errno.ENOENT}
        for flags in (c.DOTL_WRONLY, c.DOTL_RDWR, c.DOTL_RDWR | c.DOTL_TRUNC):
            fid = stack.fid(b"folder", b"below")
            assert stack.errno("Tlopen", fid=fid, flags=flags) == errno.EROFS
            stack.do("Tlopen", fid=fid, flags=0)  # it was not open
            assert stack.read(fid) == b"deep"
        fid = stack.fid(b"folder", b"below")
        stack.do("Txattrcreate", fid=fid, name=b"user.x", attr_size=1)
        stack.do("Twrite", fid=fid, data=b"v")
        assert stack.errno("Tclunk", fid=fid) == errno.EROFS
        assert stack.errno("Tclunk", fid=fid) == errno.ENOENT
        assert stack.do("Tlock", fid=second, proc_id=2)["status"] == c.LOCK_BLOCKED
        stack.clunk(holder)
        assert stack.do("Tlock", fid=second, proc_id=2)["status"] == c.LOCK_SUCCESS
        stack.do("Tstatfs")
        assert {b"file", b"folder"} <= set(stack.listing(stack.opened(flags=0)))
        assert snapshot(place.export) == before
        remount("rw")
        assert stack.read(second) == b"Hi Guest"
        stack.do("Twrite", fid=stack.opened(b"file"), data=b"By")
        stack.do("Tmkdir", name=b"later")
        stack.do("Tsetattr", fid=stack.fid(b"file"), valid=c.SETATTR_MODE, mode=0o600)


# --- errors at any system call ---

CALLS = (
    "chmod", "fchmod", "ftruncate", "getxattr", "link", "lseek", "mkdir", "mknod", "open", "pread", "pwrite", "read",
    "readlink", "removexattr", "rename", "rmdir", "scandir", "setxattr", "stat", "symlink", "unlink", "write", "fsync",
    "fdatasync", "truncate", "utime", "preadv", "pwritev",
)  # fmt: skip
"""What the driver calls in `os` while it serves."""
REAL = {getattr(os, name) for name in CALLS}
USES_CALLS = ("pyvirtfs.fsdev.local", "pyvirtfs.fsdev.security.", "pyvirtfs.fsdev.entries", "pyvirtfs.fsdev.listing",
              "pyvirtfs.fsdev.closing", "pyvirtfs.memory.buffers", "pyvirtfs.memory.span")  # fmt: skip
"""The modules that make them."""
OURS = tuple(f"pyvirtfs.syscalls.{name}" for name in ("change", "filesystem", "handles", "names", "openat", "xattr"))
"""Those that `os` does not have."""
REQUESTS = [
    "Tlopen", "Tlcreate", "Tread", "Twrite", "Treaddir", "Tfsync", "Tsetattr", "Txattrwalk", "Txattrcreate", "Tsymlink",
    "Tmknod", "Tmkdir", "Tlink", "Treadlink", "Trename", "Trenameat", "Tunlinkat", "Tremove", "Twalk", "Tclunk",
]  # fmt: skip

WITHOUT_CALLS = {"Txattrcreate", "Tclunk"}
"""Those that need none, as nothing comes of them yet, or whose failure nobody needs to know."""


def is_call(value: object) -> bool:
    """Whether it is one of these functions."""
    if isinstance(value, FunctionType):
        return value.__module__.startswith(OURS)
    return isinstance(value, BuiltinFunctionType) and value in REAL


class Broken:
    """From the nth call on, one or all of the system calls fail.

    Args:
        patch: To put them back.
        number: How many work.
        code: The error.
        lasting: Whether all behind that one fail, too, those that would clean up included.
    """

    def __init__(self, patch: pytest.MonkeyPatch, number: int, code: int, *, lasting: bool) -> None:
        self.left, self.code, self.lasting = number, code, lasting
        self.failed = 0
        for name in CALLS:
            patch.setattr(os, name, self.wrapped(getattr(os, name)))
        for module in [sys.modules[name] for name in sorted(sys.modules) if name.startswith(USES_CALLS)]:
            for name, value in list(vars(module).items()):
                if is_call(value):
                    patch.setattr(module, name, self.wrapped(value))

    def wrapped(self, real: Callable[..., Any]) -> Callable[..., Any]:
        """The same call, counted."""

        def call(*arguments: Any, **options: Any) -> Any:
            self.left -= 1
            if self.left == -1 or (self.lasting and self.left < 0):
                self.failed += 1
                raise OSError(self.code, os.strerror(self.code))
            return real(*arguments, **options)

        return call


@pytest.mark.parametrize(("code", "lasting"), [(errno.EIO, False), (errno.EDQUOT, True)])
@pytest.mark.parametrize("name", REQUESTS)
def test_any_system_call_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, name: str, lasting: bool, code: int
) -> None:
    """Whichever it is: the guest gets its error, or what it asked for; nothing leaks, fids and locks stay."""
    numbers = iter(range(60))
    while True:
        top = tmp_path / f"{next(numbers)}"
        top.mkdir()
        place = Place(top)
        with served(place, model) as stack:
            if model.startswith("mapped"):  # so that there is something to keep
                for path in (b"file", b"folder"):
                    stack.do("Tsetattr", fid=stack.fid(path), valid=c.SETATTR_UID, uid=UID + 5)
            holder, third = stack.opened(b"file"), stack.opened(b"file")
            stack.do("Tlock", fid=holder)
            fields = fields_of(stack)[name]
            if name == "Twalk":
                fields = {**fields, "wnames": [b"folder", b"below"]}
            elif name == "Twrite":
                fields = {**fields, "data": b"Hi"}
            fids, names = stack.fids, set(os.listdir(place.export))
            with monkeypatch.context() as patch:
                broken = Broken(patch, int(top.name), code, lasting=lasting)
                error = stack.errno(name, **fields)
            if error:
                assert error == code
                assert broken.failed
                check_refused(stack, place, name, fields, fids)
                if not lasting:  # else nothing can be taken back, either
                    left = names ^ set(os.listdir(place.export))
                    assert left <= {".virtfs_metadata", ".virtfs_metadata_root"}
            assert stack.do("Tlock", fid=third, proc_id=2)["status"] == c.LOCK_BLOCKED
            assert stack.read(third) == b"Hi Guest"
            stack.clunk(holder)
            assert stack.do("Tlock", fid=third, proc_id=2)["status"] == c.LOCK_SUCCESS
        if not broken.failed:
            break
    assert top.name != "0" or name in WITHOUT_CALLS


def check_refused(stack: Stack, place: Place, name: str, fields: dict[str, Any], fids: int) -> None:
    """After an error: the fids are those that there were, and what they stand for can be used."""
    gone = name in {"Tclunk", "Tremove"}
    assert stack.fids == fids - gone
    used = [fields[key] for key in ("fid", "dfid", "dirfid", "olddirfid", "newdirfid") if key in fields]
    if not gone:
        for fid in used:
            assert stack.errno("Tgetattr", fid=fid) == 0
    if "newfid" in fields:
        assert stack.errno("Tgetattr", fid=fields["newfid"]) == errno.ENOENT
    if name == "Tlcreate":
        assert stat.S_ISDIR(stack.do("Tgetattr", fid=fields["fid"])["mode"])
    if name in {"Tlcreate", "Tlopen"}:
        stack.do("Tlopen", fid=fields["fid"], flags=0)
    if name == "Twrite":
        assert (place.export / "file").read_bytes() == b"Hi Guest"
    assert stack.qid(ROOT) == place.export.stat().st_ino
