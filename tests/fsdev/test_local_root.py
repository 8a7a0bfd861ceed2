"""The export's folder vanishes and comes back; what may be made in it."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvirtfs.errors import ConfigError
from pyvirtfs.fsdev import create
from pyvirtfs.fsdev.driver import ExportDriver
from pyvirtfs.fsdev.local import LimitedLocalDriver, LocalDriver
from pyvirtfs.testing import pair

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture(params=["none", "mapped-xattr", "mapped-file"])
def export(request: pytest.FixtureRequest, root: Path, no_leak: None) -> Iterator[LocalDriver]:
    driver = LocalDriver(root, request.param)
    yield driver
    driver.close()


def names(driver: LocalDriver) -> set[bytes]:
    top, _ = driver.attach(b"", 0)
    file, _ = driver.open(top, os.O_RDONLY, 0)
    found = {entry[-1] for entry in driver.readdir(file, 0)} - {b".", b".."}
    driver.close_file(file)
    driver.release(top)
    return found


def test_removed_and_made_again(export: LocalDriver, root: Path) -> None:
    (root / "old").touch()
    assert names(export) == {b"old"}
    shutil.rmtree(root)
    with pytest.raises(FileNotFoundError):
        export.attach(b"", 0)
    root.mkdir()
    (root / "new").touch()
    assert names(export) == {b"new"}
    top, qid = export.attach(b"", 0)
    assert qid.path == root.stat().st_ino
    export.mkdir(top, b"folder", 0o755, 0, 0)
    assert (root / "folder").is_dir()
    up = export.walk(top, [b"folder", b"..", b".."]).node
    assert up is top
    assert up is not None
    export.release(up)
    export.release(top)


def test_a_guest_stays_where_it_is(export: LocalDriver, root: Path, place: Path) -> None:
    """As long as it has a fid there: also for those that attach later."""
    (root / "old").touch()
    top, before = export.attach(b"", 0)
    root.rename(place / "moved")
    root.mkdir()
    (root / "new").touch()
    again, qid = export.attach(b"", 0)
    assert qid.path == before.path
    export.mkdir(again, b"folder", 0o755, 0, 0)
    assert (place / "moved" / "folder").is_dir()
    export.release(again)
    export.release(top)
    assert names(export) == {b"new"}


def test_something_else_is_there(export: LocalDriver, root: Path, caplog: pytest.LogCaptureFixture) -> None:
    root.rmdir()
    root.touch()
    with caplog.at_level(logging.WARNING), pytest.raises(OSError, match="not a folder") as caught:
        export.attach(b"", 0)
    assert caught.value.errno == errno.EINVAL
    assert "is not a folder" in caplog.text
    root.unlink()
    root.mkdir()
    assert names(export) == set()


def test_a_program_that_goes_to_another_folder(
    root: Path, place: Path, no_leak: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    driver = LocalDriver("export")
    monkeypatch.chdir("/")
    (root / "file").touch()
    assert names(driver) == {b"file"}
    driver.close()


@needs_root
def test_a_file_system_that_is_mounted_later(root: Path, no_leak: None) -> None:
    driver = create(f"local,path={root},security_model=none,multidevs=forbid,space_hard_limit={1 << 20}")
    assert isinstance(driver, LimitedLocalDriver)
    done = subprocess.run(["mount", "-t", "tmpfs", "none", root], capture_output=True, check=False)
    if done.returncode:
        driver.close()
        pytest.skip("nothing can be mounted here")
    try:
        (root / "file").write_bytes(b"x" * 100_000)
        assert names(driver) == {b"file"}
        assert driver._limits.used >= 100_000
    finally:
        subprocess.run(["umount", "-l", root], check=True)  # the driver holds its root
    assert names(driver) == set()
    assert driver._limits.used < 100_000
    driver.close()


def test_a_guest_mounts_again(root: Path) -> None:
    with pair(f"local,path={root},security_model=none") as guest:
        (guest.mount.root / "old").write_text("old")
        shutil.rmtree(root)
        assert list(guest.mount.root.iterdir()) == []
        root.mkdir()
        (root / "new").write_text("new")
        guest.remount()
        assert (guest.mount.root / "new").read_text() == "new"


# --- what may be made ---


def refused(driver: ExportDriver[object, object], mode: int) -> bool:
    top, _ = driver.attach(b"", 0)  # type: ignore[misc]
    try:
        driver.mknod(top, b"node", mode, 1, 3, 0, 0)
    except PermissionError:
        return True
    finally:
        driver.release(top)
    return False


@pytest.mark.parametrize("model", ["none", "mapped-xattr", "mapped-file"])
def test_devices_can_be_refused(root: Path, no_leak: None, model: str) -> None:
    driver = create(f"local,path={root},security_model={model},device_nodes=off")
    assert refused(driver, stat.S_IFCHR | 0o600)
    assert refused(driver, stat.S_IFBLK | 0o600)
    assert os.listdir(root) == []
    assert not refused(driver, stat.S_IFIFO | 0o600)
    driver.close()
    if model != "none":
        driver = create(f"local,path={root},security_model={model}")
        (root / "node").unlink()
        assert not refused(driver, stat.S_IFCHR | 0o600)
        driver.close()
    with pytest.raises(ConfigError, match="device_nodes: 'never' is not a switch position"):
        create(f"local,path={root},security_model={model},device_nodes=never")


@needs_root
@pytest.mark.parametrize("model", ["passthrough", "none", "mapped-xattr", "mapped-file"])
@pytest.mark.parametrize(
    ("uid", "mode", "expected"),
    [(1000, 0o2755, 0o755), (1000, 0o6755, 0o4755), (1000, 0o2745, 0o2745), (0, 0o2755, 0o2755)],
)
def test_a_group_does_not_give_its_rights_away(
    root: Path, no_leak: None, model: str, uid: int, mode: int, expected: int
) -> None:
    """A file made in a set-group-ID folder by somebody who may not belong to its group; but for root."""
    driver = LocalDriver(root, model)
    top, _ = driver.attach(b"", uid)
    driver.mkdir(top, b"plain", 0o777, 0, 2000)
    driver.mkdir(top, b"shared", 0o2777, 0, 2000)
    for folder, seen in ((b"plain", mode), (b"shared", expected)):
        at = driver.walk(top, [folder]).node
        assert at is not None
        node, file, _ = driver.create(at, b"file", os.O_RDWR, mode, uid, 2000)
        driver.mknod(at, b"node", stat.S_IFREG | mode, 0, 0, uid, 2000)
        other = driver.walk(at, [b"node"]).node
        assert other is not None
        assert stat.S_IMODE(driver.getattr(node)[1].mode) == seen
        assert stat.S_IMODE(driver.getattr(other)[1].mode) == seen
        driver.close_file(file)
        for each in (node, other, at):
            driver.release(each)
    driver.release(top)
    driver.close()
