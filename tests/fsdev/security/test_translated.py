"""Other ids on the host than in the guest, through the driver; most needs root."""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyvirtfs.errors import ConfigError
from pyvirtfs.fsdev import create
from pyvirtfs.fsdev.driver import NONUNAME, SetAttributes
from pyvirtfs.fsdev.ids import OVERFLOW_ID
from pyvirtfs.fsdev.local import LocalDriver
from pyvirtfs.memory.buffers import ViewBuffers
from pyvirtfs.testing import pair

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to other users: needs root")
MAP = "0:1000:1+1:100000:65534"
GROUPS = "0:2000:1+1:200000:65534"
ACL = b"system.posix_acl_access"


@pytest.fixture
def translated(root: Path, no_leak: None) -> Any:
    drivers: list[LocalDriver] = []

    def make(model: str = "passthrough", **options: Any) -> tuple[LocalDriver, Any]:
        driver = LocalDriver(root, model, **({"uidmap": MAP, "gidmap": GROUPS} | options))
        drivers.append(driver)
        return driver, driver.attach(b"", 0)[0]

    yield make
    for driver in drivers:
        driver.close()


def owner(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_uid, found.st_gid


def seen(driver: LocalDriver, top: Any, name: bytes) -> tuple[int, int, int]:
    node = driver.walk(top, [name]).node
    assert node is not None
    _, attributes = driver.getattr(node)
    driver.release(node)
    return attributes.uid, attributes.gid, stat.S_IMODE(attributes.mode)


@needs_root
@pytest.mark.parametrize("model", ["passthrough", "none"])
def test_everything_that_is_made_has_the_hosts_ids(translated: Callable[..., Any], root: Path, model: str) -> None:
    driver, top = translated(model)
    node, file, _ = driver.create(top, b"file", os.O_RDWR, 0o6751, 0, 5)
    driver.close_file(file)
    driver.release(node)
    driver.mkdir(top, b"folder", 0o2755, 33, 0)
    driver.symlink(top, b"link", b"nowhere", 1, 1)
    driver.mknod(top, b"fifo", stat.S_IFIFO | 0o640, 0, 0, 65534, 65534)
    expected = {b"file": (0, 5, 0o6751), b"folder": (33, 0, 0o2755), b"fifo": (65534, 65534, 0o640)}
    assert {name: seen(driver, top, name) for name in expected} == expected
    assert seen(driver, top, b"link")[:2] == (1, 1)
    assert owner(root / "file") == (1000, 200004)
    assert owner(root / "folder") == (100032, 2000)
    assert owner(root / "link") == (100000, 200000)
    assert owner(root / "fifo") == (165533, 265533)


@needs_root
def test_chown(translated: Callable[..., Any], root: Path) -> None:
    driver, top = translated()
    (root / "file").touch()
    assert seen(driver, top, b"file")[:2] == (OVERFLOW_ID, OVERFLOW_ID)  # root's: in no range
    node = driver.walk(top, [b"file"]).node
    driver.setattr(node, SetAttributes(uid=7), 0)
    assert owner(root / "file") == (100006, 0)
    driver.setattr(node, SetAttributes(gid=0), 0)
    assert owner(root / "file") == (100006, 2000)
    for changes in (SetAttributes(uid=70000), SetAttributes(uid=1, gid=70000)):
        with pytest.raises(OSError, match="no range") as caught:
            driver.setattr(node, changes, 0)
        assert caught.value.errno == errno.EINVAL
    assert owner(root / "file") == (100006, 2000)
    driver.release(node)


@needs_root
@pytest.mark.parametrize("model", ["passthrough", "none"])
def test_a_user_in_no_range(translated: Callable[..., Any], root: Path, model: str) -> None:
    """It cannot own, so not create, anything: not even under none, or it would be the server's."""
    driver, top = translated(model)
    calls: tuple[Callable[[], object], ...] = (
        lambda: driver.mkdir(top, b"x", 0o755, 70000, 0),
        lambda: driver.create(top, b"x", os.O_RDWR, 0o644, 0, 70000),
        lambda: driver.create(top, b"x", os.O_RDWR, 0o644, 70000, 0),
        lambda: driver.mkdir(top, b"x", 0o755, 0, 70000),
        lambda: driver.symlink(top, b"x", b"y", 70000, 0),
        lambda: driver.mknod(top, b"x", stat.S_IFREG | 0o644, 0, 0, 70000, 0),
    )
    for call in calls:
        with pytest.raises(OSError, match="no range") as caught:
            call()
        assert caught.value.errno == errno.EINVAL
        assert os.listdir(root) == []


@needs_root
@pytest.mark.parametrize("model", ["passthrough", "none"])
def test_nothing_is_given_to_a_user_in_no_range(translated: Callable[..., Any], root: Path, model: str) -> None:
    driver, top = translated(model)
    driver.mkdir(top, b"folder", 0o755, 5, 5)
    node = driver.walk(top, [b"folder"]).node
    for changes in (SetAttributes(uid=70000), SetAttributes(uid=1, gid=70000), SetAttributes(gid=OVERFLOW_ID + 1)):
        with pytest.raises(OSError, match="no range"):
            driver.setattr(node, changes, 0)
    driver.release(node)
    assert owner(root / "folder") == (100004, 200004)


FEW = {"uidmap": "0:100000:1000", "gidmap": "0:200000:1000"}
"""The guest's nobody is in no range."""


@needs_root
@pytest.mark.parametrize("model", ["passthrough", "none"])
def test_the_group_of_a_folder_of_the_host(translated: Callable[..., Any], root: Path, model: str) -> None:
    """A client asks for it where it has no choice; it sees it as 65534, which is in no range."""
    os.chown(root, 0, 77)
    driver, top = translated(model, **FEW)
    node, file, _ = driver.create(top, b"file", os.O_RDWR, 0o6755, 5, OVERFLOW_ID)
    driver.close_file(file)
    driver.release(node)
    driver.mkdir(top, b"folder", 0o755, 6, OVERFLOW_ID)
    driver.symlink(top, b"link", b"nowhere", 7, OVERFLOW_ID)
    driver.mknod(top, b"fifo", stat.S_IFIFO | 0o640, 0, 0, 8, OVERFLOW_ID)
    owners = [owner(root / name) for name in ("file", "folder", "link", "fifo")]
    assert owners == [(100005 + index, 77) for index in range(4)]
    assert seen(driver, top, b"file") == (5, OVERFLOW_ID, 0o4755)  # nothing runs as a group of the host
    os.chown(root, 0, 200003)
    for uid, gid in ((5, OVERFLOW_ID), (OVERFLOW_ID, 3), (NONUNAME, NONUNAME)):  # which is no group of this folder
        with pytest.raises(OSError, match="no range"):
            driver.mkdir(top, b"other", 0o755, uid, gid)


@needs_root
def test_a_fid_without_a_user(translated: Callable[..., Any], root: Path) -> None:
    driver, top = translated()
    driver.mkdir(top, b"folder", 0o751, NONUNAME, NONUNAME)
    assert owner(root / "folder") == (100000 + OVERFLOW_ID - 1, 200000 + OVERFLOW_ID - 1)
    assert seen(driver, top, b"folder")[2] == 0o751


@needs_root
def test_the_guests_65534_is_not_taken_for_nobody(translated: Callable[..., Any], root: Path) -> None:
    """What a fresh object of the server's user looks like in the guest must not pass for the owner that was asked."""
    driver, top = translated()
    driver.mkdir(top, b"folder", 0o755, OVERFLOW_ID, OVERFLOW_ID)
    assert owner(root / "folder") == (165533, 265533)


@needs_root
def test_access_control_lists(translated: Callable[..., Any], root: Path) -> None:
    driver, top = translated()
    (root / "file").touch()
    node = driver.walk(top, [b"file"]).node

    def acl(user: int, group: int) -> bytes:
        entries = [(1, 6, -1), (2, 4, user), (4, 4, -1), (8, 6, group), (16, 6, -1), (32, 0, -1)]
        return b"\2\0\0\0" + b"".join(struct.pack("<HHi", *entry) for entry in entries)

    try:
        driver.setxattr(node, ACL, acl(7, 8), 0, 0)
    except OSError as error:
        driver.release(node)
        if error.errno != errno.EOPNOTSUPP:
            raise
        pytest.skip("no POSIX ACLs on this file system")
    assert os.getxattr(root / "file", ACL) == acl(100006, 200007)
    assert driver.getxattr(node, ACL) == acl(7, 8)
    with pytest.raises(OSError, match="no range"):
        driver.setxattr(node, ACL, acl(70000, 8), 0, 0)
    driver.setxattr(node, b"user.x", acl(7, 8), 0, 0)
    assert os.getxattr(root / "file", b"user.x") == driver.getxattr(node, b"user.x") == acl(7, 8)
    driver.release(node)


@needs_root
def test_squash(translated: Callable[..., Any], root: Path) -> None:
    driver, top = translated(uidmap=None, gidmap=None, squash="1234:56")
    driver.mkdir(top, b"folder", 0o750, 0, 0)
    driver.mkdir(top, b"other", 0o755, 1000, 1000)
    assert owner(root / "folder") == owner(root / "other") == (1234, 56)
    assert seen(driver, top, b"folder") == (1234, 56, 0o750)
    node = driver.walk(top, [b"folder"]).node
    driver.setattr(node, SetAttributes(uid=0, gid=7), 0)  # as tar does it: taken, and nothing changes
    driver.release(node)
    assert owner(root / "folder") == (1234, 56)


@needs_root
def test_set_ids_go_with_the_guests_user(translated: Callable[..., Any], root: Path) -> None:
    """Root of the guest keeps them, whoever that is on the host; another one does not."""
    driver, top = translated()
    for uid, mode in ((0, 0o6755), (5, 0o755)):
        name = b"file%d" % uid
        node, file, _ = driver.create(top, name, os.O_RDWR, 0o6755, uid, uid)
        driver.setattr(node, SetAttributes(size=1), uid)
        assert seen(driver, top, name)[2] == mode
        driver.close_file(file)
        driver.release(node)


def test_own_ids_need_no_privilege(root: Path, no_leak: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyvirtfs.fsdev.capabilities.effective_capabilities", lambda: 0)
    me, group = os.geteuid(), os.getegid()
    options = f"local,path={root},security_model=none,uidmap=0:{me}:1,gidmap=0:{group}:1"
    driver = create(options)
    top, _ = driver.attach(b"", 0)  # type: ignore[misc]
    driver.mkdir(top, b"folder", 0o751, 0, 0)
    assert isinstance(driver, LocalDriver)
    assert seen(driver, top, b"folder") == (0, 0, 0o751)
    driver.close()
    create(f"{options},readonly=on".replace(":1,", ":2,")).close()
    create(f"local,path={root},security_model=none,squash={me}:{group}").close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("uidmap=0:{other}:1", "uidmap: giving files to others needs CAP_CHOWN, which this process lacks"),
        ("gidmap=0:{other}:1", "gidmap: giving files to others needs CAP_CHOWN"),
        ("squash={other}", "squash: giving files to others needs CAP_CHOWN"),
    ],
)
def test_a_missing_privilege_is_told_at_the_start(
    root: Path, no_leak: None, monkeypatch: pytest.MonkeyPatch, options: str, message: str
) -> None:
    monkeypatch.setattr("pyvirtfs.fsdev.capabilities.effective_capabilities", lambda: 0)
    with pytest.raises(ConfigError, match=message) as caught:
        create(f"local,path={root},security_model=none,{options.format(other=987654)}")
    assert "its own" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("security_model=mapped,uidmap=0:0:1", "uidmap: '0:0:1' contradicts security_model=mapped,"),
        (
            "security_model=mapped-file,squash=1",
            "squash: '1' contradicts security_model=mapped-file, .* none",
        ),
        ("security_model=none,uidmap=0:0:1,squash=1", "squash: '1' contradicts uidmap=0:0:1"),
        ("security_model=none,uidmap=0:0:10+5:50:1", "uidmap: 0:0:10 and 5:50:1 overlap"),
        ("security_model=none,gidmap=x", "gidmap: 'x' is no range of ids"),
        ("security_model=none,squash=nobody", "squash: 'nobody' is no id"),
    ],
)
def test_wrong_options(root: Path, no_leak: None, options: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        create(f"local,path={root},{options}")


@needs_root
def test_a_guest_sees_its_own_ids(root: Path) -> None:
    with pair(f"local,path={root},security_model=passthrough,uidmap={MAP},gidmap={GROUPS}") as guest:
        path = guest.mount.root / "file"
        path.write_text("Hi Host\n")
        assert owner(root / "file") == (100000 + OVERFLOW_ID - 1, 2000)  # this guest's mount names no user
        os.chown(root / "file", 100032, 200099)
        found = path.stat()
        assert (found.st_uid, found.st_gid) == (33, 100)


@needs_root
@pytest.mark.parametrize("model", ["passthrough", "none"])
@pytest.mark.parametrize("uid", [NONUNAME, 99999])
def test_nobody_in_particular_makes_nothing_of_the_servers(
    translated: Callable[..., Any], root: Path, model: str, uid: int
) -> None:
    driver, top = translated(model)
    if uid == 99999:
        with pytest.raises(OSError, match="no range"):
            driver.create(top, b"shell", os.O_RDWR, 0o6755, uid, uid)
        assert not list(root.iterdir())
        return
    node, file, _ = driver.create(top, b"shell", os.O_RDWR, 0o6755, uid, uid)
    driver.close_file(file)
    assert owner(root / "shell") == (100000 + OVERFLOW_ID - 1, 200000 + OVERFLOW_ID - 1)
    assert stat.S_IMODE((root / "shell").stat().st_mode) == 0o6755
    driver.release(node)


@needs_root
def test_squash_holds_for_nobody_in_particular(translated: Callable[..., Any], root: Path) -> None:
    driver, top = translated(uidmap=None, gidmap=None, squash="1000:2000")
    driver.mkdir(top, b"folder", 0o755, NONUNAME, NONUNAME)
    driver.symlink(top, b"link", b"target", NONUNAME, 0)
    assert owner(root / "folder") == owner(root / "link") == (1000, 2000)


@needs_root
@pytest.mark.parametrize("options", [{}, {"uidmap": None, "gidmap": None, "squash": "1000:2000"}])
def test_no_set_id_bit_for_what_belongs_to_the_host(
    translated: Callable[..., Any], root: Path, options: dict[str, Any]
) -> None:
    (root / "program").write_bytes(b"")
    (root / "program").chmod(0o755)
    driver, top = translated(**options)
    node = driver.walk(top, [b"program"]).node
    for mode in (0o4755, 0o2755):
        with pytest.raises(OSError, match="not permitted"):
            driver.setattr(node, SetAttributes(mode=mode), 0)
        assert stat.S_IMODE((root / "program").stat().st_mode) == 0o755
    driver.setattr(node, SetAttributes(mode=0o700), 0)
    driver.setattr(node, SetAttributes(uid=0, gid=0), 0)
    driver.setattr(node, SetAttributes(mode=0o6755), 0)
    assert stat.S_IMODE((root / "program").stat().st_mode) == 0o6755
    driver.release(node)


@needs_root
@pytest.mark.parametrize("how", ["write", "truncate", "open", "chown"])
def test_a_program_of_the_host_loses_its_set_id_bits(translated: Callable[..., Any], root: Path, how: str) -> None:
    """Its owner is in no range: not even the guest's root may put something else into it and keep them."""
    driver, top = translated("none")
    (root / "program").write_bytes(b"good")
    os.chown(root / "program", 0, 2000)
    (root / "program").chmod(0o4755)
    node = driver.walk(top, [b"program"]).node
    if how == "truncate":
        driver.setattr(node, SetAttributes(size=1), 0)
    elif how == "chown":
        driver.setattr(node, SetAttributes(gid=5), 0)
    else:
        file, _ = driver.open(node, os.O_WRONLY | (os.O_TRUNC if how == "open" else 0), 0)
        if how == "write":
            driver.write(file, 0, ViewBuffers.of(bytearray(b"evil")))
        driver.close_file(file)
    driver.release(node)
    assert stat.S_IMODE((root / "program").stat().st_mode) == 0o755


@needs_root
def test_devices_are_not_made_by_default(translated: Callable[..., Any], root: Path) -> None:
    for options, refused in (({}, True), ({"device_nodes": True}, False)):
        driver, top = translated("passthrough", **options)
        try:
            driver.mknod(top, b"null", stat.S_IFCHR | 0o666, 1, 3, 0, 0)
        except PermissionError:
            assert refused
        else:
            assert not refused
    assert stat.S_ISCHR((root / "null").stat().st_mode)
