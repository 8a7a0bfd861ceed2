"""The example of a driver as a distribution of its own: built and installed by pip, found by name, checked."""

from __future__ import annotations

import importlib.util
import os
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import pyvirtfs
from pyvirtfs.errors import ConfigError
from pyvirtfs.testing import check_driver, pair

EXAMPLE = Path(__file__).parents[2] / "examples" / "pyvirtfs_example_driver"

GUEST = """
import sys
from pyvirtfs.fsdev import create, names
from pyvirtfs.testing import check_driver, pair

assert "zip" in names()
with pair(f"zip,id=z,file={sys.argv[1]}") as both:
    print(sorted(path.name for path in both.mount.root.iterdir()))
    print((both.mount.root / "folder" / "file").read_text())
report = check_driver(lambda: create(f"zip,file={sys.argv[1]}"))
print(len(report.passed), len(report.failed))
"""


@pytest.fixture
def module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pyvirtfs_zip", EXAMPLE / "pyvirtfs_zip.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules["pyvirtfs_zip"] = loaded  # its dataclass looks itself up there
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "archive.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("README", "Hi Guest")
        out.writestr("empty/", "")
        out.writestr("folder/file", "in a folder")
        out.writestr("folder/large", os.urandom(300_000))
        out.writestr("/absolute/../../outside", "x")
        out.writestr("README/below a file", "x")
        out.writestr("n" * 300, "x")
        out.writestr("umläut ☃", "x")
    return path


def test_conformance(module: ModuleType, archive: Path) -> None:
    report = check_driver(lambda: module.DRIVER.factory({"file": str(archive)}))
    assert len(report.passed) == 25
    assert set(report.skipped.values()) == {"the export is read-only"}


def test_what_a_guest_sees(module: ModuleType, archive: Path) -> None:
    with pair(module.ZipDriver({"file": archive})) as both:
        path = both.mount.path
        names = sorted(found.name for found in path(".").iterdir())
        assert names == ["README", "absolute", "empty", "folder", "n" * 255, "umläut ☃"]
        assert path("folder/file").read_text() == "in a folder"
        assert path("folder/large").stat().st_size == 300_000
        assert path("absolute/outside").read_text() == "x"
        assert list(path("empty").iterdir()) == []
        with pytest.raises(OSError, match="Read-only"):
            path("folder/file").write_text("y")


def test_dates_that_are_none(module: ModuleType, archive: Path) -> None:
    data = bytearray(archive.read_bytes())
    dates = {"README": 0, "folder/file": 0xFFFFFFFF, "folder/large": 0x5A21_0001}  # the last: 2025-01-01 00:00:02
    at = 0
    while (at := data.find(b"PK\x01\x02", at)) >= 0:  # the entries of the directory: time, date at byte 12
        name = data[at + 46 : at + 46 + struct.unpack_from("<H", data, at + 28)[0]].decode()
        if name in dates:
            struct.pack_into("<I", data, at + 12, dates[name])
        at += 46
    archive.write_bytes(data)
    with pair(module.ZipDriver({"file": archive})) as both:
        found = {name: both.mount.path(name).stat().st_mtime for name in dates}
    assert found == {"README": 0, "folder/file": 0, "folder/large": 1735689602}
    assert check_driver(lambda: module.ZipDriver({"file": archive})).passed


def test_a_damaged_file_is_an_io_error(module: ModuleType, archive: Path) -> None:
    data = bytearray(archive.read_bytes())
    with zipfile.ZipFile(archive) as opened:
        info = opened.getinfo("folder/file")
    start = info.header_offset + 30 + sum(struct.unpack_from("<HH", data, info.header_offset + 26))
    data[start : start + 4] = b"\xff\xff\xff\xff"
    archive.write_bytes(data)
    with pair(module.ZipDriver({"file": archive})) as both:
        with pytest.raises(OSError, match="Input/output"):
            both.mount.path("folder/file").read_bytes()
        assert len(both.mount.path("folder/large").read_bytes()) == 300_000


@pytest.mark.parametrize("content", [None, b"", b"no archive"])
def test_what_is_no_zip_file(module: ModuleType, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "file"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"^file: .*cannot be read"):
        module.ZipDriver({"file": path})


def run(command: list[Any], **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, **options)


def test_as_a_distribution(tmp_path: Path, archive: Path) -> None:
    if importlib.util.find_spec("pip") is None:
        pytest.skip("there is no pip in this environment")
    if importlib.util.find_spec("setuptools") is None:
        pytest.skip("there is no setuptools in this environment")
    source, site = tmp_path / "source", tmp_path / "site"
    shutil.copytree(EXAMPLE, source, ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    done = run(
        [
            sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "--quiet",
            "--disable-pip-version-check", "--root-user-action=ignore", "--target", site, source,
        ]
    )  # fmt: skip
    if "bdist_wheel" in done.stderr:
        pytest.skip("this setuptools makes no wheels without the package wheel")
    assert done.returncode == 0, done.stderr
    places = [str(site), str(Path(pyvirtfs.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    seen = run([sys.executable, "-c", GUEST, archive], env={**os.environ, "PYTHONPATH": os.pathsep.join(places)})
    assert seen.stderr == ""
    names, text, report = seen.stdout.splitlines()
    assert names.startswith("['README', 'absolute', 'empty', 'folder', ")
    assert (text, report) == ("in a folder", "25 0")
