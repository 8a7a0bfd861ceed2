"""Set-id bits, groups, umask, readonly exports, users (H160 to H166)."""

from __future__ import annotations

import errno
import itertools
import os
import stat
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import pytest

from pyvirtfs.errors import ConfigError
from pyvirtfs.p9 import constants as c
from tests.hostile.stack import GID, IS_ROOT, NAMES, ROOT, UID, Place, Stack, as_root, fields_of, running, snapshot

Start: TypeAlias = Callable[..., Stack]

MODELS = [*(["passthrough"] if IS_ROOT else []), "none", "mapped-xattr", "mapped-file"]


def attach(stack: Stack, uid: int) -> int:
    """The root, as a user of the guest."""
    fid = stack.new()
    stack.do("Tattach", fid=fid, n_uname=uid)
    return fid


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest, place: Place) -> str:
    """An export in each security model."""
    return f"local,path={place.export},security_model={request.param}"


def begin(start: Start, options: str) -> Stack:
    """A device with an export, if this file system can hold what its model keeps."""
    try:
        return start(options)
    except ConfigError as error:
        pytest.skip(str(error))


# --- set-id bits ---

CHANGES: dict[str, Callable[[Stack, int, int], object]] = {
    "write": lambda stack, root, _: stack.do("Twrite", fid=stack.opened(b"file", base=root), data=b"evil"),
    "append": lambda stack, root, _: stack.do(
        "Twrite", fid=stack.opened(b"file", base=root, flags=c.DOTL_WRONLY | c.DOTL_APPEND), data=b"evil"
    ),
    "truncate": lambda stack, root, _: stack.do(
        "Tsetattr", fid=stack.fid(b"file", base=root), valid=c.SETATTR_SIZE, size=3
    ),
    "truncate when open": lambda stack, root, _: stack.do(
        "Tsetattr", fid=stack.opened(b"file", base=root), valid=c.SETATTR_SIZE, size=3
    ),
    "open truncating": lambda stack, root, _: stack.opened(b"file", base=root, flags=c.DOTL_RDWR | c.DOTL_TRUNC),
    "create truncating": lambda stack, root, _: stack.do(
        "Tlcreate", fid=stack.fid(base=root), name=b"file", flags=c.DOTL_RDWR | c.DOTL_CREATE | c.DOTL_TRUNC
    ),
    "chown": lambda stack, root, uid: stack.do(
        "Tsetattr", fid=stack.fid(b"file", base=root), valid=c.SETATTR_UID, uid=uid + 1 if IS_ROOT else UID
    ),
    "chgrp": lambda stack, root, uid: stack.do(
        "Tsetattr", fid=stack.fid(b"file", base=root), valid=c.SETATTR_GID, gid=uid + 1 if IS_ROOT else GID
    ),
}


@pytest.mark.parametrize("mode", [0o6755, 0o4755, 0o2755, 0o6777])
@pytest.mark.parametrize("change", CHANGES)
def test_h160_set_id_bits_end_with_a_change(start: Start, place: Place, model: str, change: str, mode: int) -> None:
    """By a user who is not root, whoever the server is; whether the guest has set them or the host."""
    path = place.export / "file"
    stack = begin(start, model)
    for by in ("guest", "host"):
        if by == "guest":
            stack.do("Tsetattr", fid=stack.fid(b"file"), valid=c.SETATTR_MODE, mode=mode)
            assert stat.S_IMODE(stack.do("Tgetattr", fid=stack.fid(b"file"))["mode"]) == mode
        else:
            path.chmod(mode)
        CHANGES[change](stack, attach(stack, 1000 if by == "guest" else 2000), 1000 if by == "guest" else 2000)
        assert not path.stat().st_mode & 0o6000
        seen = stack.do("Tgetattr", fid=stack.fid(b"file"))["mode"]
        assert stat.S_IMODE(seen) == mode & 0o777


@pytest.mark.parametrize("change", CHANGES)
def test_h160_a_bit_that_is_no_privilege_stays(start: Start, place: Place, model: str, change: str) -> None:
    """Of a group that may not execute the file: it once meant mandatory locking; as chmod(2) and write(2) have it."""
    stack = begin(start, model)
    stack.do("Tsetattr", fid=stack.fid(b"file"), valid=c.SETATTR_MODE, mode=0o2766)
    CHANGES[change](stack, attach(stack, 1000), 1000)
    kept = stack.do("Tgetattr", fid=stack.fid(b"file"))["mode"]
    (place.export / "other").touch()
    (place.export / "other").chmod(0o2766)
    if IS_ROOT:
        os.chown(place.export / "other", 1000, 1000)
    assert stat.S_IMODE(kept) == stat.S_IMODE((place.export / "other").stat().st_mode)


@as_root
def test_h160_reading_and_failing_change_nothing(start: Start, place: Place, model: str) -> None:
    stack = begin(start, model)
    stack.do("Tsetattr", fid=stack.fid(b"file"), valid=c.SETATTR_MODE, mode=0o6755)
    root = attach(stack, 1000)
    fid = stack.opened(b"file", base=root, flags=0)
    stack.read(fid)
    stack.do("Tgetattr", fid=fid)
    assert stack.errno("Twrite", fid=fid, data=b"x") == errno.EBADF
    stack.do("Twrite", fid=stack.opened(b"file", base=root), data=b"")
    stack.do("Tsetattr", fid=fid, valid=c.SETATTR_ATIME)
    assert stat.S_IMODE(stack.do("Tgetattr", fid=fid)["mode"]) == 0o6755


# --- groups ---


@as_root
def test_h161_a_group_is_the_one_that_the_request_names(stack: Stack, place: Place) -> None:
    """Neither the groups of the server's process nor those of the folder decide."""
    folder = place.export / "folder"
    os.chown(folder, 0, 2000)
    folder.chmod(0o2777)
    root = attach(stack, 1000)
    made: dict[str, Callable[[int], object]] = {
        "lcreate": lambda gid: stack.do(
            "Tlcreate", fid=stack.fid(b"folder", base=root), name=b"lcreate%d" % gid, mode=0o2755, gid=gid
        ),
        "mkdir": lambda gid: stack.do("Tmkdir", dfid=stack.fid(b"folder", base=root), name=b"mkdir%d" % gid, gid=gid),
        "mknod": lambda gid: stack.do("Tmknod", dfid=stack.fid(b"folder", base=root), name=b"mknod%d" % gid, gid=gid),
        "symlink": lambda gid: stack.do(
            "Tsymlink", dfid=stack.fid(b"folder", base=root), name=b"symlink%d" % gid, gid=gid
        ),
    }
    for gid in (1000, 2000):
        for name, make in made.items():
            make(gid)
            status = (folder / f"{name}{gid}").lstat()
            assert (status.st_uid, status.st_gid) == (1000, gid)


@pytest.mark.parametrize("message", ["Tlcreate", "Tmknod"])
def test_h161_no_program_runs_as_a_group_that_its_maker_is_not_in(
    start: Start, place: Place, model: str, message: str
) -> None:
    """In a folder that gives its group away, a file that the group may run loses S_ISGID unless root makes it."""
    stack = begin(start, model)
    folders = {}
    for name, mode in ((b"folder", 0o2777), (b"other", 0o777)):
        if name == b"other":
            stack.do("Tmkdir", name=name)
        stack.do("Tsetattr", fid=stack.fid(name), valid=c.SETATTR_MODE, mode=mode)
        folders[name] = mode
    for folder, uid, mode in itertools.product(folders, (0, 1000), (0o2755, 0o2745, 0o6755, 0o6711, 0o755)):
        root = attach(stack, uid)
        name = b"%d-%o" % (uid, mode)
        if message == "Tlcreate":
            stack.do("Tlcreate", fid=stack.fid(folder, base=root), name=name, mode=mode)
        else:
            stack.do("Tmknod", dfid=stack.fid(folder, base=root), name=name, mode=stat.S_IFREG | mode)
        seen = stat.S_IMODE(stack.do("Tgetattr", fid=stack.fid(folder, name))["mode"])
        dropped = folder == b"folder" and uid and mode & 0o2010 == 0o2010
        assert seen == (mode & ~0o2000 if dropped else mode), (folder, name)
        stack.do("Tmkdir", dfid=stack.fid(folder, base=root), name=name + b"d", mode=0o2775)
        assert stat.S_IMODE(stack.do("Tgetattr", fid=stack.fid(folder, name + b"d"))["mode"]) == 0o2775


# --- umask ---


@pytest.mark.parametrize("umask", [0o777, 0o077, 0o022, 0])
def test_h162_modes_are_exact_whatever_the_umask(stack: Stack, place: Place, umask: int) -> None:
    before = os.umask(umask)
    try:
        for mode in (0o000, 0o644, 0o777, 0o666, 0o1777, 0o707):
            name = b"%o" % mode
            stack.do("Tlcreate", fid=stack.fid(), name=b"f" + name, mode=stat.S_IFREG | mode)
            stack.do("Tmkdir", name=b"d" + name, mode=mode)
            stack.do("Tmknod", name=b"r" + name, mode=stat.S_IFREG | mode)
            stack.do("Tmknod", name=b"p" + name, mode=stat.S_IFIFO | mode)
            stack.do("Tmknod", name=b"s" + name, mode=stat.S_IFSOCK | mode)
            for kind in "fdrps":
                assert stat.S_IMODE((place.export / f"{kind}{mode:o}").lstat().st_mode) == mode, (kind, oct(mode))
        assert os.umask(umask) == umask  # the library leaves it alone
    finally:
        os.umask(before)
        for path in place.export.glob("d*"):
            path.chmod(0o700)


# --- readonly ---


@pytest.fixture
def readonly(start: Start, place: Place) -> Iterator[Stack]:
    """A readonly export, of which nothing has changed at the end."""
    os.setxattr(place.export / "file", "user.x", b"value")
    before = snapshot(place.export)
    yield start(f"{place.fsdev},readonly=on")
    assert snapshot(place.export) == before


MUTATING = {
    "Tlcreate", "Tsymlink", "Tmknod", "Tmkdir", "Tlink", "Trename", "Trenameat", "Tunlinkat", "Tremove", "Tsetattr",
    "Txattrcreate", "Twrite",
}  # fmt: skip
HARMLESS = set(NAMES) - MUTATING - {"Tlopen", "Tauth"}


def readonly_fields(stack: Stack) -> dict[str, dict[str, Any]]:
    """As `fields_of`, where nothing can be opened to write."""
    opened = stack.opened
    try:
        stack.opened = lambda *names, **_: opened(*names, flags=0)  # type: ignore[method-assign]
        return fields_of(stack)
    finally:
        stack.opened = opened  # type: ignore[method-assign]


@pytest.mark.parametrize("name", [name for name in NAMES if name not in {"Tauth", "Tlopen"}])
def test_h163_each_message_on_a_readonly_export(readonly: Stack, name: str) -> None:
    fields = readonly_fields(readonly)[name]
    assert readonly.errno(name, **fields) == (errno.EROFS if name in MUTATING else 0)
    if name == "Tversion":
        readonly.remount()


@pytest.mark.parametrize("bit", [1 << i for i in range(9)])
def test_h163_each_attribute_on_a_readonly_export(readonly: Stack, bit: int) -> None:
    for fid in (ROOT, readonly.fid(b"file"), readonly.opened(b"file", flags=0), readonly.fid(b"link")):
        assert readonly.errno("Tsetattr", fid=fid, valid=bit) == errno.EROFS
        assert readonly.errno("Tsetattr", fid=fid, valid=0x1FF) == errno.EROFS


@pytest.mark.parametrize("shift", range(2, 32))
@pytest.mark.parametrize("access", range(3))
def test_h163_each_open_flag_on_a_readonly_export(readonly: Stack, access: int, shift: int) -> None:
    flags = access | 1 << shift
    fid = readonly.fid(b"file")
    error = readonly.errno("Tlopen", fid=fid, flags=flags)
    writes = access or flags & (c.DOTL_TRUNC | c.DOTL_APPEND)
    assert error == (errno.EROFS if writes else errno.ENOTDIR if flags & c.DOTL_DIRECTORY else 0)
    if not error:
        assert readonly.read(fid) == b"Hi Guest"
        assert readonly.errno("Twrite", fid=fid, data=b"x") == errno.EROFS
    assert readonly.errno("Tlcreate", fid=readonly.fid(), flags=flags) == errno.EROFS
    assert readonly.errno("Tlcreate", fid=readonly.fid(), name=b"file", flags=flags) == errno.EROFS
    folder = readonly.fid(b"folder")
    assert readonly.errno("Tlopen", fid=folder, flags=flags) == 0  # whatever is asked for, it is opened to read
    assert readonly.listing(folder)


def test_h163_attributes_and_locks_on_a_readonly_export(readonly: Stack) -> None:
    value = readonly.new()
    readonly.do("Txattrwalk", fid=readonly.fid(b"file"), newfid=value, name=b"user.x")
    assert readonly.read(value) == b"value"
    assert readonly.errno("Twrite", fid=value, data=b"other") == errno.EROFS
    for flags in (0, c.XATTR_CREATE, c.XATTR_REPLACE):
        for size in (0, 5):
            fid = readonly.fid(b"file")
            assert readonly.errno("Txattrcreate", fid=fid, name=b"user.x", attr_size=size, flags=flags) == errno.EROFS
    assert readonly.do("Tlock", fid=readonly.opened(b"file", flags=0), type=c.LOCK_TYPE_RDLCK)["status"] == 0


def test_h164_a_guest_that_remounts_to_write(readonly: Stack) -> None:
    """Readonly is the host's decision: no new session, attach, user or reset changes it."""
    for again in range(3):
        if again == 1:
            readonly.do("Tversion", tag=c.NOTAG)
            readonly.do("Tattach", fid=ROOT)
        elif again == 2:
            readonly.remount()
        for uid, uname, aname in ((0, b"root", b""), (1000, b"", b"rw"), (c.NONUNAME, b"nobody", b"/,readonly=off")):
            root = readonly.new()
            readonly.do("Tattach", fid=root, n_uname=uid, uname=uname, aname=aname)
            assert readonly.errno("Tmkdir", dfid=root) == errno.EROFS
            file = readonly.fid(b"file", base=root)
            assert readonly.errno("Tlopen", fid=file, flags=c.DOTL_RDWR) == errno.EROFS
            assert readonly.errno("Tsetattr", fid=file, valid=c.SETATTR_MODE, mode=0o777) == errno.EROFS
            assert readonly.errno("Tunlinkat", dirfid=root) == errno.EROFS
            assert readonly.errno("Tremove", fid=file) == errno.EROFS


# --- users ---

MAKE: dict[str, Callable[[Stack, int, bytes, int], object]] = {
    "Tlcreate": lambda stack, root, name, gid: stack.do("Tlcreate", fid=stack.fid(base=root), name=name, gid=gid),
    "Tmkdir": lambda stack, root, name, gid: stack.do("Tmkdir", dfid=root, name=name, gid=gid),
    "Tmknod": lambda stack, root, name, gid: stack.do("Tmknod", dfid=root, name=name, gid=gid),
    "Tmknod fifo": lambda stack, root, name, gid: stack.do(
        "Tmknod", dfid=root, name=name, mode=stat.S_IFIFO | 0o600, gid=gid
    ),
    "Tsymlink": lambda stack, root, name, gid: stack.do("Tsymlink", dfid=root, name=name, gid=gid),
}


@as_root
@pytest.mark.parametrize("message", MAKE)
def test_h166_the_owner_is_the_user_of_the_attach(stack: Stack, place: Place, message: str) -> None:
    roots = {uid: attach(stack, uid) for uid in (0, 1000, 1001, 65534)}
    cloned = {uid: stack.fid(b"folder", b"..", base=root) for uid, root in roots.items()}
    for turn in range(2):
        for uid in (1000, 0, 1001, 65534, 1000 + turn):
            for kind, root in (("root", roots[uid]), ("walked", cloned[uid])):
                name = f"{uid}-{turn}-{kind}"
                if not os.path.lexists(place.export / name):
                    MAKE[message](stack, root, os.fsencode(name), uid + 1)
                status = (place.export / name).lstat()
                assert (status.st_uid, status.st_gid) == (uid, uid + 1)


@as_root
def test_h166_two_guests_of_one_folder(place: Place) -> None:
    with running(place.fsdev) as one, running(place.fsdev) as two:
        for number, (stack, uid) in enumerate([(one, 1000), (two, 1001), (one, 1002), (two, 1003)]):
            root = attach(stack, uid)
            made = stack.fid(base=root)
            stack.do("Tlcreate", fid=made, name=b"%d" % number, gid=uid)
            stack.clunk(root, made)
            assert [(place.export / f"{i}").stat().st_uid for i in range(number + 1)] == list(range(1000, uid + 1))
