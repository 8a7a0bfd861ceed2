"""The mapped security models, from a mount in the guest: it sees what it has asked for, the host sees plain files."""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvirtfs.errors import ConfigError
from pyvirtfs.guest import GuestPath
from pyvirtfs.testing import Pair, check_descriptors, pair

OWNER = os.geteuid(), os.getegid()
ACL = struct.pack("<I" + "HHI" * 4, 2, 1, 6, 0xFFFFFFFF, 2, 7, 1000, 0x10, 7, 0xFFFFFFFF, 0x20, 0, 0xFFFFFFFF)


@pytest.fixture
def export(tmp_path: Path) -> Path:
    folder = tmp_path / "export"
    folder.mkdir(mode=0o755)
    return folder


@pytest.fixture(params=["mapped", "mapped-xattr", "mapped-file"])
def model(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def stack(export: Path, model: str) -> Iterator[Pair]:
    options = f"local,path={export},security_model={model},fmode=0640,dmode=0750"
    try:
        with check_descriptors(), pair(options) as both:
            yield both
    except ConfigError as error:  # no extended attributes here
        pytest.skip(str(error))
    for folder, folders, files in os.walk(export):  # H165
        for name in (*folders, *files):
            status = os.lstat(os.path.join(folder, name))
            assert (status.st_uid, status.st_gid) == OWNER
            if ".virtfs_metadata" not in folder and not name.startswith(".virtfs_metadata"):
                assert status.st_mode in {stat.S_IFDIR | 0o750, stat.S_IFREG | 0o640}


@pytest.fixture
def root(stack: Pair) -> GuestPath:
    return stack.mount.root


def test_links(root: GuestPath, export: Path) -> None:
    (root / "folder").mkdir()
    (root / "folder" / "file").write_text("x")
    (root / "hard").hardlink_to(root / "folder" / "file")
    (root / "soft").symlink_to("folder/file")
    (root / "to_folder").symlink_to("folder")
    (root / "outside").symlink_to("/etc/passwd")
    assert (export / "soft").read_bytes() == b"folder/file"
    for name in ("hard", "soft", "to_folder/file"):
        assert (root / name).read_text() == "x", name
    assert (root / "soft").is_symlink()
    assert (root / "soft").lstat().st_size == len("folder/file")
    assert stat.S_IMODE((root / "soft").lstat().st_mode) == 0o777
    assert not (root / "outside").exists()
    (root / "soft").rename(root / "folder" / "moved")
    assert (root / "folder" / "moved").is_symlink()
    assert (root / "hard").stat().st_nlink == 2
    assert sorted(path.name for path in root.iterdir()) == ["folder", "hard", "outside", "to_folder"]
    seen = {str(folder): (sorted(folders), sorted(files)) for folder, folders, files in root.walk()}
    assert seen["/folder"] == ([], ["file", "moved"])
    for name in ("hard", "outside", "to_folder", "folder/file", "folder/moved"):
        (root / name).unlink()
    (root / "folder").rmdir()
    assert set(os.listdir(export)) <= {".virtfs_metadata"}


def test_special_files(root: GuestPath, export: Path) -> None:
    for name, kind, device in (
        ("null", stat.S_IFCHR, os.makedev(1, 3)),
        ("odd", stat.S_IFBLK, os.makedev(259, 70000)),
        ("pipe", stat.S_IFIFO, 0),
        ("socket", stat.S_IFSOCK, 0),
    ):
        (root / name).mknod(kind | 0o640, device)
        seen = (root / name).stat()
        assert (seen.st_mode, seen.st_rdev) == (kind | 0o640, device)
        assert (export / name).read_bytes() == b""
        with pytest.raises(OSError, match="No such device"):
            (root / name).open("rb")


def test_owners_and_modes(stack: Pair, root: GuestPath) -> None:
    root.chmod(0o777)
    user = stack.mount.as_user(1234, gid=5678)
    (user.root / "mine").write_text("x")
    assert ((root / "mine").stat().st_uid, (root / "mine").stat().st_gid) == (1234, 5678)
    (root / "mine").chown(99, 98)
    (root / "mine").chmod(0o4751)
    seen = (root / "mine").stat()
    assert (seen.st_uid, seen.st_gid, seen.st_mode) == (99, 98, stat.S_IFREG | 0o4751)
    (root / "shared").mkdir()
    (root / "shared").chown(0, 4321)
    (root / "shared").chmod(0o2777)
    (user.root / "shared" / "below").mkdir()
    below = (root / "shared" / "below").stat()
    assert (below.st_uid, below.st_gid, bool(below.st_mode & stat.S_ISGID)) == (1234, 4321, True)
    user.umount()


def test_set_id_bits_go_when_an_ordinary_user_writes(stack: Pair, root: GuestPath) -> None:  # H160
    root.chmod(0o777)
    user = stack.mount.as_user(1234)
    (root / "program").write_text("binary")
    (root / "program").chown(1234, 1234)
    for act in (
        lambda: (user.root / "program").write_text("x"),
        lambda: (user.root / "program").truncate(1),
        lambda: (user.root / "program").chown(gid=5),
    ):
        (root / "program").chmod(0o6777)
        act()
        assert (root / "program").stat().st_mode == stat.S_IFREG | 0o777
    (root / "program").chmod(0o6777)
    superuser = stack.mount.as_user(0)
    (superuser.root / "program").write_text("by root")
    assert (root / "program").stat().st_mode == stat.S_IFREG | 0o6777
    superuser.umount()
    user.umount()


def test_extended_attributes_and_acls(root: GuestPath, export: Path, model: str) -> None:  # H067
    (root / "folder").mkdir()
    path = root / "folder"
    path.setxattr("user.colour", b"green")
    assert path.listxattr() == ["user.colour"]
    if model == "mapped-file":  # ACLs are those of the host, and change the mode there
        return
    path.setxattr("system.posix_acl_default", ACL)
    assert path.getxattr("system.posix_acl_default") == ACL
    assert os.getxattr(export / "folder", "user.virtfs.system.posix_acl_default") == ACL
    assert sorted(path.listxattr()) == ["system.posix_acl_default", "user.colour"]
    path.removexattr("system.posix_acl_default")
    assert path.listxattr() == ["user.colour"]
    with pytest.raises(OSError, match="No data"):
        path.getxattr("user.virtfs.mode")
    with pytest.raises(PermissionError):
        path.setxattr("user.virtfs.mode", b"\0\0\0\0")


def test_what_one_export_writes_the_next_one_reads(export: Path, model: str) -> None:
    options = f"local,path={export},security_model={model}"
    try:
        with pair(options) as both:
            root = both.mount.root
            root.chown(7, 8)
            (root / "link").symlink_to("nowhere")
            (root / "disk").mknod(stat.S_IFBLK | 0o660, os.makedev(8, 0))
            (root / "folder").mkdir(0o700)
            (root / "folder").chown(1, 2)
    except ConfigError as error:
        pytest.skip(str(error))
    with pair(f"{options},readonly=on") as both:
        root = both.mount.root
        assert (root.stat().st_uid, root.stat().st_gid) == (7, 8)
        assert str((root / "link").readlink()) == "nowhere"
        assert (root / "disk").stat().st_rdev == os.makedev(8, 0)
        assert (root / "folder").stat().st_uid == 1
        with pytest.raises(OSError, match="Read-only"):
            (root / "folder").chmod(0o777)
