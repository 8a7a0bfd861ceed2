"""Names and paths: what a guest may call things, and where that leads (H001 to H010)."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from typing import Any

import pytest

from pyvirtfs.p9 import constants as c
from tests.hostile.stack import MODEL, NAMES, ROOT, Place, Stack, fields_of, host_errno, snapshot, strings_of

# --- names that are none ---

BAD_NAMES = [b"", b".", b"..", b"a/b", b"/", b"../sentinel", b"a\0b", b"..\0", b"x" * 256, b"x" * 65535]
TAKES_NAME = [
    ("Tlcreate", "name"), ("Tsymlink", "name"), ("Tmknod", "name"), ("Tmkdir", "name"), ("Tlink", "name"),
    ("Trename", "name"), ("Trenameat", "newname"), ("Trenameat", "oldname"), ("Tunlinkat", "name"),
]  # fmt: skip


def expected(message: str, name: bytes) -> int:
    """The error for a name that is none; the numbers are QEMU's."""
    if name in {b".", b".."}:
        if message.startswith("Trename"):
            return errno.EISDIR
        if message == "Tunlinkat":
            return errno.EINVAL if name == b"." else errno.ENOTEMPTY
        return errno.EEXIST
    return errno.ENAMETOOLONG if name.startswith(b"x") else errno.ENOENT


@pytest.mark.parametrize(("message", "field"), TAKES_NAME)
def test_h001_names_that_are_none(stack: Stack, place: Place, message: str, field: str) -> None:
    fields = fields_of(stack)[message]
    before = snapshot(place.export)
    for name in BAD_NAMES:
        assert stack.errno(message, **{**fields, field: name}) == expected(message, name), name[:12]
    assert snapshot(place.export) == before


def test_h001_the_root_has_no_name_to_move_or_remove(stack: Stack, place: Place) -> None:
    before = snapshot(place.export)
    assert stack.errno("Trename", name=b"new") == errno.EBUSY
    assert stack.errno("Tlink", name=b"new") == errno.EPERM
    assert stack.errno("Tremove") == errno.EBUSY
    assert snapshot(place.export) == before


@pytest.mark.parametrize("name", BAD_NAMES, ids=lambda name: repr(name[:8]))
def test_h001_names_that_are_none_in_a_walk(stack: Stack, name: bytes) -> None:
    known = {stack.qid(ROOT), stack.qid(stack.fid(b"folder"))}
    for names in ([name], [b"folder", name], [b"link", name], [name, b"file"], [name, b"secret"]):
        newfid = stack.new()
        before = stack.fids
        reply = stack.ask("Twalk", newfid=newfid, wnames=names)
        if name in {b".", b".."} and names[0] != b"link" and names[-1] != b"secret":  # which are there
            assert not reply.errno
            assert stack.qid(newfid) in known | {stack.qid(stack.fid(b"file"))}
        else:
            assert reply.errno in {0, errno.ENOENT, errno.ENAMETOOLONG, errno.ENOTDIR}
            assert stack.fids == before  # nothing was found
        assert not (reply.errno == 0 and name not in {b".", b".."} and names[0] == name)


# --- .. ---


def test_h002_dotdot_stays_at_the_root(stack: Stack, place: Place) -> None:
    root = tuple(stack.do("Tgetattr")["qid"])

    def climb(*names: bytes) -> list[tuple[int, int, int]]:
        newfid = stack.new()
        qids = stack.do("Twalk", newfid=newfid, wnames=[*names, *[b".."] * (16 - len(names))])["wqids"]
        assert stack.qid(newfid) == root[2]
        return list(qids[len(names) :])

    child = stack.fid(b"folder")
    for _ in range(2):
        assert {qid[2] for qid in climb()} == {root[2]}
        assert {qid[2] for qid in climb(b"folder")} == {root[2]}
        assert {qid[2] for qid in climb(b"folder", b"..", b"folder")} == {root[2]}
        up = stack.new()
        assert [q[2] for q in stack.do("Twalk", fid=child, newfid=up, wnames=[b".."] * 3)["wqids"]] == [root[2]] * 3
        if place.export.exists():
            os.rename(place.export, place.top / "elsewhere")
    os.rename(place.top / "elsewhere", place.export)


def test_h002_dotdot_of_a_folder_that_the_host_moves_out(stack: Stack, place: Place) -> None:
    child = stack.fid(b"folder")
    os.rename(place.export / "folder", place.top / "elsewhere")
    assert stack.errno("Twalk", fid=child, newfid=stack.new(), wnames=[b".."]) == errno.ENOENT
    assert stack.errno("Twalk", fid=child, newfid=stack.new(), wnames=[b"..", b"sentinel", b"secret"]) == errno.ENOENT
    os.rename(place.top / "elsewhere", place.export / "folder")
    assert stack.do("Twalk", fid=child, newfid=stack.new(), wnames=[b".."])["wqids"]


# --- empty strings ---

EMPTY = {  # what comes of a string of no bytes; 0: it works
    ("Tversion", "version"): 0, ("Tauth", "uname"): errno.ENOENT, ("Tauth", "aname"): errno.ENOENT,
    ("Tattach", "uname"): 0, ("Tattach", "aname"): 0, ("Tlcreate", "name"): errno.ENOENT,
    ("Tlock", "client_id"): 0, ("Tgetlock", "client_id"): 0, ("Txattrwalk", "name"): 0,
    ("Txattrcreate", "name"): errno.ERANGE, ("Tsymlink", "name"): errno.ENOENT, ("Tsymlink", "symtgt"): errno.ENOENT,
    ("Tmknod", "name"): errno.ENOENT, ("Tmkdir", "name"): errno.ENOENT, ("Tlink", "name"): errno.ENOENT,
    ("Trename", "name"): errno.ENOENT, ("Trenameat", "oldname"): errno.ENOENT, ("Trenameat", "newname"): errno.ENOENT,
    ("Tunlinkat", "name"): errno.ENOENT,
}  # fmt: skip


@pytest.mark.parametrize(("name", "field"), [(name, field) for name in NAMES for field in strings_of(name)])
def test_h003_strings_of_no_bytes(stack: Stack, name: str, field: str) -> None:
    fields = fields_of(stack)[name]
    assert stack.errno(name, **{**fields, field: b""}) == EMPTY[name, field]
    if name == "Tversion":
        stack.remount()


def test_h003_all_strings_are_tested_and_a_walk_of_empty_names(stack: Stack) -> None:
    assert {(name, field) for name in NAMES for field in strings_of(name)} == set(EMPTY)
    assert stack.errno("Twalk", wnames=[b""] * 16) == errno.ENOENT
    assert stack.errno("Twalk", wnames=[b"folder", b""]) == errno.ENOENT


# --- the root ---


def test_h004_what_is_done_to_the_root_is_done_to_the_export(stack: Stack, place: Place) -> None:
    def looks(path: str) -> tuple[Any, ...]:
        status = os.stat(path)
        return status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, os.listxattr(path)

    outside = {path: looks(path) for path in ("/", str(place.top), str(place.top.parent))}
    bits = c.SETATTR_MODE | c.SETATTR_ATIME | c.SETATTR_ATIME_SET | c.SETATTR_MTIME | c.SETATTR_MTIME_SET
    stack.do("Tsetattr", valid=bits, mode=0o711, atime_sec=1, mtime_sec=2)
    stack.do("Tsetattr", valid=c.SETATTR_UID | c.SETATTR_GID)
    assert stack.errno("Tsetattr", valid=c.SETATTR_SIZE, size=0) == errno.EISDIR
    attribute = stack.fid()
    stack.do("Txattrcreate", fid=attribute, name=b"user.colour", attr_size=5)
    stack.do("Twrite", fid=attribute, data=b"green")
    stack.clunk(attribute)
    stack.do("Tstatfs")
    status = os.stat(place.export)
    assert (stat.S_IMODE(status.st_mode), status.st_mtime_ns) == (0o711, 2_000_000_000)
    assert os.getxattr(place.export, "user.colour") == b"green"
    assert stack.do("Txattrwalk", newfid=stack.new(), name=b"user.colour")["size"] == 5
    assert stack.do("Tgetattr")["qid"][2] == status.st_ino
    for name in (b"/", b"/etc", b"//"):
        assert stack.errno("Tmkdir", name=name) == errno.ENOENT
        assert stack.errno("Twalk", wnames=[name]) == errno.ENOENT
    assert {path: looks(path) for path in outside} == outside


# --- .. below the root ---


def test_h006_dotdot_below_the_root_still_works(stack: Stack, place: Place) -> None:
    (place.export / "a" / "b" / "c").mkdir(parents=True)
    inodes = {name: os.stat(place.export / name).st_ino for name in (".", "a", "a/b", "a/b/c", "file")}
    walks = {
        (b"a", b".."): [".", "a"][::-1],
        (b"a", b"b", b"..", b"b", b"c", b"..", b".."): ["a", "a/b", "a", "a/b", "a/b/c", "a/b", "a"],
        (b"a", b"..", b"..", b"file"): ["a", ".", ".", "file"],
        (b"folder", b"..", b"a", b"b", b"c", b"..", b"..", b"..", b"file"): None,
    }
    for names, through in walks.items():
        qids = stack.do("Twalk", newfid=stack.new(), wnames=names)["wqids"]
        assert len(qids) == len(names)
        if through is not None:
            assert [qid[2] for qid in qids] == [inodes[name] for name in through]
        assert qids[-1][2] in inodes.values()
    deep = stack.fid(b"a", b"b", b"c")
    assert stack.qid(stack.fid(b"..", b"..", base=deep)) == inodes["a"]
    assert stack.errno("Twalk", fid=stack.fid(b"file"), wnames=[b".."]) == errno.ENOTDIR


@pytest.mark.parametrize("name", [b"a/b", b"/", b"..", b".", b""])
def test_h006_nothing_is_made_by_such_a_name(stack: Stack, place: Place, name: bytes) -> None:
    before = snapshot(place.export)
    for message in ("Tlcreate", "Tmkdir", "Tlink", "Trenameat", "Tunlinkat"):
        field = "newname" if message == "Trenameat" else "name"
        assert stack.errno(message, **{**fields_of(stack)[message], field: name}) == expected(message, name)
    assert snapshot(place.export) == before


# --- long paths ---


@contextlib.contextmanager
def deep(stack: Stack, depth: int, nbytes: int) -> Iterator[tuple[int, list[bytes]]]:
    """A tree of one folder in each, made and removed through the device: the fid at its bottom, and the names."""
    names = [b"%03d" % i + b"d" * (nbytes - 3) for i in range(depth)]
    bottom = stack.fid()
    for name in names:
        stack.do("Tmkdir", dfid=bottom, name=name)
        assert len(stack.do("Twalk", fid=bottom, newfid=bottom, wnames=[name])["wqids"]) == 1
    yield bottom, names
    for name in reversed(names):
        assert len(stack.do("Twalk", fid=bottom, newfid=bottom, wnames=[b".."])["wqids"]) == 1
        stack.do("Tunlinkat", dirfid=bottom, name=name, flags=c.UNLINKAT_REMOVEDIR)
    assert stack.qid(bottom) == stack.qid(ROOT)


def live_at(stack: Stack, bottom: int) -> None:
    """Everything that one does in a folder."""
    name = b"f" * 255
    file = stack.fid(base=bottom)
    stack.do("Tlcreate", fid=file, name=name)
    stack.do("Twrite", fid=file, data=b"here")
    assert stack.do("Tgetattr", fid=stack.fid(name, base=bottom))["size"] == 4
    stack.do("Trenameat", olddirfid=bottom, oldname=name, newdirfid=bottom, newname=b"g" * 255)
    stack.do("Tsymlink", dfid=bottom, name=b"l" * 255, symtgt=b"t" * 4000)
    assert stack.do("Treadlink", fid=stack.fid(b"l" * 255, base=bottom))["target"] == b"t" * 4000
    stack.do("Tlink", dfid=bottom, fid=file, name=b"h" * 255)
    stack.do("Tsetattr", fid=bottom, valid=c.SETATTR_MODE, mode=0o700)
    attribute = stack.fid(b"g" * 255, base=bottom)
    stack.do("Txattrcreate", fid=attribute, name=b"user.x")
    stack.do("Twrite", fid=attribute, data=b"1234")
    stack.clunk(attribute)
    listing = stack.opened(base=bottom, flags=0)
    assert sorted(stack.listing(listing)) == [b".", b"..", b"g" * 255, b"h" * 255, b"l" * 255]
    for left in (b"g", b"h", b"l"):
        stack.do("Tunlinkat", dirfid=bottom, name=left * 255)
    assert stack.read(file) == b"here"
    stack.clunk(file, listing)


@pytest.mark.parametrize(("depth", "nbytes"), [(300, 255), (16, 255), (17, 240), (300, 3)])
def test_h007_deep_trees_and_long_names(stack: Stack, depth: int, nbytes: int) -> None:
    """Up to 300 folders of 255 bytes each: far behind PATH_MAX, and some that end just around it."""
    with deep(stack, depth, nbytes) as (bottom, names):
        live_at(stack, bottom)
        assert stack.qid(stack.fid(*names)) == stack.qid(bottom)


def test_h008_paths_of_more_than_65535_bytes(stack: Stack) -> None:
    with deep(stack, 270, 250) as (bottom, names):
        assert sum(map(len, names)) + len(names) > 65535
        live_at(stack, bottom)
        assert stack.qid(stack.fid(*names)) == stack.qid(bottom)


# --- names that no driver knows ---

LONG = [b"y", b"y" * 255, b"\xff" * 255, b"y" * 256, b"y" * 4095, b"y" * 4096, b"y" * 65535, b"%s%n" * 60]
EXPORTS = {"local": f"local,path={{export}},security_model={MODEL}", "memory": "memory", "synth": "synth"}


@pytest.mark.parametrize("driver", EXPORTS)
def test_h009_long_and_unknown_names(start: Any, place: Place, driver: str) -> None:
    stack = start(EXPORTS[driver].format(export=place.export))
    for name in LONG:
        refused = {errno.ENOENT} if len(name) < 256 else {errno.ENOENT, errno.ENAMETOOLONG}
        for names in ([name], [b"..", name], [b".", name]):
            reply = stack.ask("Twalk", newfid=stack.new(), wnames=names)
            assert reply.errno in refused or (len(names) > 1 and reply.body[:2] == b"\1\0")
        assert stack.errno("Tunlinkat", name=name) in {*refused, errno.EOPNOTSUPP, errno.EROFS}
        assert stack.errno("Trenameat", oldname=name, newname=b"y") in {*refused, errno.EOPNOTSUPP, errno.EROFS}
        assert stack.errno("Txattrwalk", newfid=stack.new(), name=name[:60000]) != 0
        if len(name) > 255:
            for message in ("Tlcreate", "Tmkdir", "Tmknod", "Tsymlink", "Tlink"):
                assert stack.errno(message, name=name) != 0
    assert host_errno(os.lstat, place.export / "y") == errno.ENOENT
