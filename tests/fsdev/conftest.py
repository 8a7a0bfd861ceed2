"""An export on a real file system and on tmpfs, and what must hold after every test on it."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyvirtfs.errors import ConfigError
from pyvirtfs.fsdev.entries import Node
from pyvirtfs.fsdev.local import LocalDriver
from tests.fsdev.small_budget import export_of

SHM = Path("/dev/shm")


def snapshot(top: Path) -> dict[str, object]:
    """Everything about a tree but access times."""
    found: dict[str, object] = {}
    for folder, folders, files in os.walk(top):
        for name in [".", *folders, *files]:
            path = os.path.join(folder, name)
            status = os.lstat(path)
            found[path] = (
                status.st_mode, status.st_uid, status.st_gid, status.st_size, status.st_mtime_ns, status.st_ctime_ns,
                status.st_nlink, os.listxattr(path, follow_symlinks=False),
            )  # fmt: skip
    return found


@pytest.fixture(params=["ext4", "tmpfs"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder with two others: `export`, and `outside`, which nothing may touch."""
    top = tmp_path
    if request.param == "tmpfs":
        if not SHM.is_dir():
            pytest.skip("no tmpfs at /dev/shm")
        top = Path(tempfile.mkdtemp(dir=SHM, prefix="pyvirtfs-"))
    try:
        (top / "export").mkdir()
        (top / "outside").mkdir()
        (top / "outside" / "secret").write_bytes(b"secret")
        (top / "outside" / "file").write_bytes(b"secret")
        (top / "outside" / "sub").mkdir()
        before = snapshot(top / "outside")
        yield top
        assert snapshot(top / "outside") == before
    finally:
        for folder, folders, _ in os.walk(top):  # what has no permission bits, only root could remove
            for name in folders:
                if not os.path.islink(path := os.path.join(folder, name)):
                    os.chmod(path, 0o700)
        if top is not tmp_path:
            shutil.rmtree(top)


@pytest.fixture
def root(place: Path) -> Path:
    """The folder that is exported."""
    return place / "export"


@pytest.fixture
def no_leak() -> Iterator[None]:
    """The descriptors of the process are the same before and after."""
    before = sorted(os.listdir("/proc/self/fd"))
    yield
    assert sorted(os.listdir("/proc/self/fd")) == before


UNMAPPED = "passthrough" if os.geteuid() == 0 else "none"


@pytest.fixture
def security_model(request: pytest.FixtureRequest) -> str:
    """The model of `driver`: the parameter, by default ``unmapped``: passthrough if the tests run as root."""
    name: str = getattr(request, "param", "unmapped")
    return UNMAPPED if name == "unmapped" else name


@pytest.fixture
def driver(root: Path, security_model: str, no_leak: None) -> Iterator[LocalDriver]:
    """A driver on the export."""
    try:
        export = LocalDriver(root, security_model)
    except ConfigError as error:  # tmpfs has extended attributes since Linux 6.6
        pytest.skip(str(error))
    yield export
    export.close()


@pytest.fixture
def at(driver: LocalDriver) -> Iterator[Callable[[bytes], Node]]:
    """A function that walks from the root: at(b"a/b")."""
    nodes: list[Node] = []

    def walk(path: bytes) -> Node:
        top, _ = driver.attach(b"", 0)
        found = driver.walk(top, [name for name in path.split(b"/") if name]).node
        driver.release(top)
        assert found is not None
        nodes.append(found)
        return found

    yield walk
    for node in nodes:
        driver.release(node)


@pytest.fixture
def tidy(driver: LocalDriver) -> Iterator[None]:
    """When all handles are back, only the root is in the table and no descriptor but its is open."""
    yield
    assert len(driver._table) == 1
    assert driver._table.root.refs == 1
    assert driver._table.root_node.refs == 1
    assert not driver._files
    assert not driver._pinned


@pytest.fixture
def longest_target(place: Path) -> bytes:
    """As long as the target of a symbolic link may be there: 4095 bytes, but 1023 on XFS."""
    for nbytes in (4095, 1023):
        try:
            os.symlink(b"t" * nbytes, place / "link")
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
        else:
            (place / "link").unlink()
            return b"t" * nbytes
    raise AssertionError("no file system has shorter ones")


@pytest.fixture(params=["handles", "names"])
def small(
    request: pytest.FixtureRequest, root: Path, no_leak: None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[LocalDriver]:
    """A driver with a small budget, and a folder with many files, each of which holds its own name."""
    export = export_of(root, request.param, monkeypatch)
    yield export
    export.close()
