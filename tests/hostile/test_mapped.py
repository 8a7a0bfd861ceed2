"""The mapped security models: what they keep beside objects is not the guest's to see, nor the host's to act on."""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import pytest

from pyvirtfs.errors import ConfigError
from pyvirtfs.p9 import constants as c
from pyvirtfs.testing import open_descriptors
from tests.hostile.older import DIALECTS, Older
from tests.hostile.stack import GID, ROOT, UID, Place, Stack, as_root, fields_of, snapshot

Start: TypeAlias = Callable[..., Stack]

MODELS = ["mapped-xattr", "mapped-file"]
FOLDER, OF_ROOT = b".virtfs_metadata", b".virtfs_metadata_root"
HIDDEN = [FOLDER, OF_ROOT]


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> str:
    """The name of a mapped model."""
    name: str = request.param
    return name


def begin(start: Start, place: Place, model: str, options: str = "") -> Stack:
    """A device on the export, with a mapped model."""
    try:
        return start(f"local,path={place.export},security_model={model}{options}")
    except ConfigError as error:  # no extended attributes here
        pytest.skip(str(error))


def chown(stack: Stack, fid: int, uid: int, mode: int) -> None:
    """So that something is kept of an object."""
    stack.do("Tsetattr", fid=fid, valid=c.SETATTR_UID | c.SETATTR_MODE, uid=uid, mode=mode)


@pytest.fixture
def hiding(start: Start, place: Place) -> Stack:
    """mapped-file, where something is kept of the root, of what is in it, and in a folder."""
    stack = begin(start, place, "mapped-file")
    for names in ((), (b"file",), (b"folder",), (b"folder", b"below")):
        chown(stack, stack.fid(*names), 7, 0o750)
    for name in HIDDEN:
        assert os.path.lexists(place.export / os.fsdecode(name))
    assert (place.export / "folder" / ".virtfs_metadata" / "below").is_file()
    return stack


# --- files with metadata (H005) ---

TAKES_NAME = [
    ("Tlcreate", "name"), ("Tsymlink", "name"), ("Tmknod", "name"), ("Tmkdir", "name"), ("Tlink", "name"),
    ("Trename", "name"), ("Trenameat", "newname"), ("Trenameat", "oldname"), ("Tunlinkat", "name"),
]  # fmt: skip


@pytest.mark.parametrize("name", HIDDEN)
@pytest.mark.parametrize(("request_name", "field"), TAKES_NAME)
def test_h005_no_request_takes_the_name_of_metadata(
    hiding: Stack, place: Place, request_name: str, field: str, name: bytes
) -> None:
    fields = fields_of(hiding)[request_name]
    before = snapshot(place.export)
    folder_field = {"Trenameat": "newdirfid" if field == "newname" else "olddirfid", "Tunlinkat": "dirfid"}.get(
        request_name, "fid" if request_name == "Tlcreate" else "dfid"
    )
    for folder in ((), (b"folder",)):
        where = hiding.fid(*folder)
        for flags in (0, c.UNLINKAT_REMOVEDIR) if request_name == "Tunlinkat" else (fields.get("flags", 0),):
            sent = {**fields, folder_field: where, field: name, **({"flags": flags} if "flags" in fields else {})}
            assert hiding.errno(request_name, **sent) == errno.EINVAL
    assert snapshot(place.export) == before


@pytest.mark.parametrize("name", HIDDEN)
def test_h005_no_walk_leads_to_metadata(hiding: Stack, name: bytes) -> None:
    for names in (
        [name], [name, b"file"], [name, b".."], [b"folder", name], [b"folder", name, b"below"],
        [b"folder", b"..", name], [b".", name], [b"folder", b"..", b"folder", name],
    ):  # fmt: skip
        newfid, before = hiding.new(), hiding.fids
        reply = hiding.ask("Twalk", newfid=newfid, wnames=names)
        if names[0] == name:
            assert reply.errno == errno.EINVAL
        else:
            assert int.from_bytes(reply.body[:2], "little") == names.index(name)  # up to there
        assert hiding.fids == before


@pytest.mark.parametrize("count", [100, 300, 4000])
def test_h005_metadata_is_not_listed(hiding: Stack, place: Place, count: int) -> None:
    for i in range(60):
        (place.export / "folder" / f"{i}").touch()
    assert sorted(hiding.listing(hiding.opened(flags=0), count)) == [b".", b"..", b"file", b"folder", b"link"]
    seen = hiding.listing(hiding.opened(b"folder", flags=0), count)
    assert sorted(seen) == sorted([b".", b"..", b"below", *(b"%d" % i for i in range(60))])


@pytest.mark.parametrize("dialect", DIALECTS)
def test_h005_in_the_older_dialects(hiding: Stack, place: Place, dialect: str) -> None:
    client = Older(hiding, DIALECTS[dialect])
    before = snapshot(place.export)
    for name in HIDDEN:
        for folder in ((), (b"folder",)):
            for perm in (0o644, c.DMDIR | 0o755, c.DMSYMLINK | 0o777):
                error = client.errno("Tcreate", fid=client.fid(*folder), name=name, perm=perm, mode=0, extension=b"t")
                assert error == (errno.EPERM if perm & c.DMSYMLINK and not client.unix else errno.EINVAL)
            assert client.errno("Twalk", fid=client.fid(*folder), newfid=950, wnames=[name]) == errno.EINVAL
        for names in ((b"file",), (b"folder",), (b"folder", b"below")):
            assert client.errno("Twstat", fid=client.fid(*names), name=name) == errno.EINVAL
    assert set(client.listing(client.opened())) == {b"file", b"folder", b"link"}
    assert set(client.listing(client.opened(b"folder"))) == {b"below"}
    assert snapshot(place.export) == before


def test_h005_other_names_are_names(start: Start, place: Place) -> None:
    """Those that only look like it, and in mapped-xattr all: they mean nothing to the server."""
    stack = begin(start, place, "mapped-file")
    chown(stack, stack.fid(b"file"), 7, 0o640)
    others = [FOLDER + b" ", FOLDER + b".0", FOLDER + b"_", FOLDER.upper(), FOLDER[1:]]
    for name in others:
        stack.do("Tmkdir", name=name)
        stack.do("Tlcreate", fid=stack.fid(name), name=b"file")
    assert set(others) <= set(stack.listing(stack.opened(flags=0)))
    assert stack.do("Tgetattr", fid=stack.fid(b"file"))["uid"] == 7


def test_h005_the_names_mean_nothing_in_mapped_xattr(start: Start, place: Place) -> None:
    stack = begin(start, place, "mapped-xattr")
    stack.do("Tmkdir", name=FOLDER)
    for where, name in ((stack.fid(FOLDER), b"file"), (stack.fid(), OF_ROOT)):
        stack.do("Tlcreate", fid=where, name=name)
        stack.do("Twrite", fid=where, data=b"virtfs.uid=4711\nvirtfs.mode=36863\n")
    stack.remount()
    assert stack.do("Tgetattr", fid=stack.fid(b"file"))["uid"] == UID
    assert stack.do("Tgetattr")["uid"] == UID


# --- attributes with metadata (H067) ---

OWN = [b"user.virtfs.uid", b"user.virtfs.gid", b"user.virtfs.mode", b"user.virtfs.rdev", b"user.virtfs.",
       b"user.virtfs.new", b"user.virtfs.system.posix_acl_access", b"user.virtfs.system.posix_acl_default",
       b"user.virtfs.user.virtfs.uid"]  # fmt: skip
ACL = struct.pack("<I" + "HHI" * 4, 2, 1, 6, 0xFFFFFFFF, 2, 7, 1000, 0x10, 7, 0xFFFFFFFF, 0x20, 0, 0xFFFFFFFF)


def seen(stack: Stack, *names: bytes) -> tuple[int, int, int]:
    """User, group and mode."""
    found = stack.do("Tgetattr", fid=stack.fid(*names))
    return found["uid"], found["gid"], found["mode"]


def names_of(stack: Stack, *names: bytes) -> list[bytes]:
    """The attributes that a list tells."""
    newfid = stack.new()
    size = stack.do("Txattrwalk", fid=stack.fid(*names), newfid=newfid, name=b"")["size"]
    told = stack.read(newfid)
    assert len(told) == size
    return told.split(b"\0")[:-1]


@pytest.mark.parametrize("name", OWN, ids=repr)
def test_h067_attributes_of_the_model_are_not_there(start: Start, place: Place, name: bytes) -> None:
    stack = begin(start, place, "mapped-xattr")
    for path in (b"file", b"folder"):
        chown(stack, stack.fid(path), 7, 0o751)
        before = seen(stack, path), list_xattr_of(place, path)
        assert {b"user.virtfs.uid", b"user.virtfs.mode"} <= set(before[1])
        assert stack.errno("Txattrwalk", fid=stack.fid(path), newfid=stack.new(), name=name) == errno.ENODATA
        for flags in (0, c.XATTR_CREATE, c.XATTR_REPLACE):
            for value in (b"\0\0\0\0", b"", b"\xff" * 8):
                fid = stack.fid(path)
                stack.do("Txattrcreate", fid=fid, name=name, attr_size=len(value), flags=flags)
                if value:
                    stack.do("Twrite", fid=fid, data=value)
                assert stack.errno("Tclunk", fid=fid) == errno.EACCES
        assert names_of(stack, path) == []
        assert (seen(stack, path), list_xattr_of(place, path)) == before


def list_xattr_of(place: Place, name: bytes) -> dict[bytes, bytes]:
    """All attributes on the host."""
    path = os.fsencode(place.export) + b"/" + name
    return {each: os.getxattr(path, each) for each in map(os.fsencode, os.listxattr(path))}


def test_h067_acls_lead_to_acls_only(start: Start, place: Place) -> None:
    stack = begin(start, place, "mapped-xattr")
    chown(stack, stack.fid(b"folder"), 7, 0o751)
    before = seen(stack, b"folder")
    acls = (b"system.posix_acl_access", b"system.posix_acl_default")
    for name in acls:
        fid = stack.fid(b"folder")
        stack.do("Txattrcreate", fid=fid, name=name, attr_size=len(ACL))
        stack.do("Twrite", fid=fid, data=ACL)
        stack.clunk(fid)
        assert list_xattr_of(place, b"folder")[b"user.virtfs." + name] == ACL
    assert sorted(names_of(stack, b"folder")) == sorted(acls)
    for name in (b"system.posix_acl_access\0", b"user.virtfs.uid\0", b"user.x\0y", b"user.virtfs\0.uid"):
        assert stack.errno("Txattrwalk", fid=stack.fid(b"folder"), newfid=stack.new(), name=name) == errno.EINVAL
        assert stack.errno("Txattrcreate", fid=stack.fid(b"folder"), name=name) == errno.EINVAL
    for name in (
        b"system.posix_acl_", b"system.posix_acl_access.", b"system.virtfs.uid", b"security.virtfs.mode", b"user",
        b"system.posix_acl_default/../../virtfs.uid", b"trusted.virtfs.uid",
    ):  # fmt: skip
        assert stack.errno("Txattrwalk", fid=stack.fid(b"folder"), newfid=stack.new(), name=name) == errno.EOPNOTSUPP
        fid = stack.fid(b"folder")
        stack.do("Txattrcreate", fid=fid, name=name, attr_size=1)
        stack.do("Twrite", fid=fid, data=b"x")
        assert stack.errno("Tclunk", fid=fid) == errno.EOPNOTSUPP
    for name in acls:
        fid = stack.fid(b"folder")
        stack.do("Txattrcreate", fid=fid, name=name, attr_size=0, flags=c.XATTR_REPLACE)
        stack.clunk(fid)
    assert names_of(stack, b"folder") == []
    assert seen(stack, b"folder") == before


def test_h067_they_mean_nothing_in_mapped_file(start: Start, place: Place) -> None:
    """Metadata is in files there: such attributes are like any others."""
    stack = begin(start, place, "mapped-file")
    chown(stack, stack.fid(b"file"), 7, 0o751)
    before = seen(stack, b"file")
    for name, value in ((b"user.virtfs.uid", b"\0\0\0\0"), (b"user.virtfs.mode", struct.pack("<I", 0o106777))):
        fid = stack.fid(b"file")
        stack.do("Txattrcreate", fid=fid, name=name, attr_size=4)
        stack.do("Twrite", fid=fid, data=value)
        stack.errno("Tclunk", fid=fid)
    stack.remount()
    assert seen(stack, b"file") == before


# --- on the host (H152, H165) ---

NODES = {
    "file": stat.S_IFREG, "fifo": stat.S_IFIFO, "socket": stat.S_IFSOCK, "char": stat.S_IFCHR, "block": stat.S_IFBLK,
}  # fmt: skip


def make_node(kind: str, stack: Stack, root: int, name: bytes) -> None:
    """Any kind of node but a folder."""
    stack.do("Tmknod", dfid=root, name=name, mode=NODES[kind] | 0o6666, major=1, minor=3, gid=1234)


MAKE: dict[str, Callable[[Stack, int, bytes], object]] = {
    "Tlcreate": lambda stack, root, name: stack.do(
        "Tlcreate", fid=stack.fid(base=root), name=name, mode=0o6777, gid=1234
    ),
    "Tmkdir": lambda stack, root, name: stack.do("Tmkdir", dfid=root, name=name, mode=0o7777, gid=1234),
    "Tsymlink": lambda stack, root, name: stack.do("Tsymlink", dfid=root, name=name, symtgt=b"/etc/shadow", gid=1234),
    **{f"Tmknod {kind}": partial(make_node, kind) for kind in NODES},
}


def is_the_servers(place: Place, fmode: int = 0o600, dmode: int = 0o700) -> None:
    """Everything that the guest has made belongs to the server on the host, and is a plain file or a folder there."""
    for folder, folders, files in os.walk(place.export):
        for name in (*folders, *files):
            path = os.path.join(folder, name)
            status = os.lstat(path)
            assert (status.st_uid, status.st_gid) == (UID, GID), path
            if os.path.relpath(path, place.export) in {"file", "folder", "folder/below", "link"}:
                continue
            of_model = ".virtfs_metadata" in path
            plain = {stat.S_IFREG | (0o600 if of_model else fmode), stat.S_IFDIR | (0o700 if of_model else dmode)}
            assert status.st_mode in plain, (path, oct(status.st_mode))


@pytest.mark.parametrize("options", ["", ",fmode=0640,dmode=0750", ",fmode=06777,dmode=07777"])
@pytest.mark.parametrize("message", MAKE)
def test_h165_what_the_guest_makes_is_the_servers(
    start: Start, place: Place, model: str, message: str, options: str
) -> None:
    """Whoever in the guest makes it, root or not, whatever becomes of it then."""
    stack = begin(start, place, model, options)
    modes = {"": (0o600, 0o700), ",fmode=0640,dmode=0750": (0o640, 0o750)}.get(options, (0o777, 0o777))
    for uid in (0, 1000, 65534, 4_000_000_000):
        root = stack.new()
        stack.do("Tattach", fid=root, n_uname=uid)
        name = b"new%d" % uid
        MAKE[message](stack, root, name)
        is_the_servers(place, *modes)
        assert seen(stack, name)[:2] == (uid, 1234)
        fid = stack.fid(name)
        chown(stack, fid, 0, 0o6777)
        stack.do("Tsetattr", fid=fid, valid=c.SETATTR_GID, gid=0)
        stack.do("Trenameat", oldname=name, newname=name + b"r")
        if message != "Tmkdir":
            stack.do("Tlink", dfid=ROOT, fid=fid, name=name)
        is_the_servers(place, *modes)
        assert seen(stack, name + b"r")[:2] == (0, 0)


@as_root
def test_h165_what_the_host_has_given_to_others_stays_theirs(start: Start, place: Place, model: str) -> None:
    """The guest changes what it sees; the host's owner and mode stay."""
    os.chown(place.export / "file", 1234, 1235)
    os.chmod(place.export / "file", 0o604)
    stack = begin(start, place, model)
    stack.do("Tsetattr", fid=stack.fid(b"file"), valid=c.SETATTR_GID, gid=99)
    chown(stack, stack.fid(b"file"), 0, 0o777)
    stack.do("Tsetattr", fid=stack.fid(b"file"), valid=c.SETATTR_MODE, mode=0o4777)
    assert seen(stack, b"file") == (0, 99, stat.S_IFREG | 0o4777)
    status = (place.export / "file").stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (1234, 1235, 0o604)


KINDS = {"char": stat.S_IFCHR, "block": stat.S_IFBLK}


@pytest.mark.parametrize("kind", KINDS)
def test_h152_a_device_of_the_guest_is_a_regular_file(start: Start, place: Place, model: str, kind: str) -> None:
    """On the host it is nothing; in the guest it is a device, which is not opened here."""
    stack = begin(start, place, model)
    for name, major, minor in ((b"new", 1, 3), (b"last", 0xFFF, 0xFFFFF)):
        stack.do("Tmknod", name=name, mode=KINDS[kind] | 0o666, major=major, minor=minor)
        status = (place.export / os.fsdecode(name)).lstat()
        assert (stat.S_IFMT(status.st_mode), status.st_rdev, status.st_size) == (stat.S_IFREG, 0, 0)
        found = stack.do("Tgetattr", fid=stack.fid(name))
        assert found["mode"] == KINDS[kind] | 0o666
        assert found["rdev"] == os.makedev(major, minor)
        before = open_descriptors()
        for flags in (0, c.DOTL_WRONLY, c.DOTL_RDWR | c.DOTL_TRUNC, c.DOTL_RDWR | c.DOTL_NONBLOCK):
            assert stack.errno("Tlopen", fid=stack.fid(name), flags=flags) == errno.ENXIO
            assert stack.errno("Tlcreate", fid=stack.fid(), name=name, flags=flags | c.DOTL_CREATE) == errno.ENXIO
        assert stack.errno("Tsetattr", fid=stack.fid(name), valid=c.SETATTR_SIZE, size=1) == errno.EINVAL
        assert len(open_descriptors()) <= len(before) + 1
    for major, minor in ((1 << 12, 0), (0, 1 << 20), (2**32 - 1, 2**32 - 1)):
        assert stack.errno("Tmknod", name=b"other", mode=KINDS[kind], major=major, minor=minor) == errno.EINVAL
    assert not (place.export / "other").exists()


@as_root
@pytest.mark.parametrize("kind", KINDS)
def test_h152_what_is_kept_does_not_open_a_device_of_the_host(
    start: Start, place: Place, model: str, kind: str
) -> None:
    """Metadata that calls a device of the host a regular file is wrong; and the device is not opened."""
    os.mknod(place.export / "null", KINDS[kind] | 0o666, os.makedev(1, 3) if kind == "char" else os.makedev(0x1FF, 0))
    if model == "mapped-file":
        (place.export / ".virtfs_metadata").mkdir(mode=0o700)
        (place.export / ".virtfs_metadata" / "null").write_text(f"virtfs.mode={stat.S_IFREG | 0o666}\n")
    stack = begin(start, place, model)
    assert stat.S_IFMT(seen(stack, b"null")[2]) == KINDS[kind]
    for flags in (0, c.DOTL_RDWR, c.DOTL_WRONLY | c.DOTL_TRUNC):
        assert stack.errno("Tlopen", fid=stack.fid(b"null"), flags=flags) == errno.ENXIO
    if model == "mapped-file":
        chown(stack, stack.fid(b"null"), 5, 0o600)
        assert stat.S_IFMT(seen(stack, b"null")[2]) == KINDS[kind]
