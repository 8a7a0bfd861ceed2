from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pyvirtfs.fsdev.local import LocalDriver
from pyvirtfs.guest import GuestFile

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.mark.parametrize("existed", [False, True])
def test_what_get_could_not_complete(
    existed: bool, shell: Run, export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (export / "file").write_bytes(b"x" * 10)
    if existed:
        (tmp_path / "copy").write_bytes(b"old")

    def fail(self: GuestFile, nbytes: int = -1) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(GuestFile, "read", fail)
    answer = shell("get file copy", cwd=tmp_path)
    rest = "; 'copy' is not complete" if existed else ""
    assert answer.stderr == f"get: error reading 'file' for 'copy': Input/output error{rest}\n"
    assert answer.returncode == 1
    assert (tmp_path / "copy").exists() == existed


def test_get_into_what_is_no_file(shell: Run, export: Path) -> None:
    (export / "file").write_bytes(b"x" * 10)
    answer = shell("get file /dev/full", "get file /dev/null")
    assert (answer.stderr, answer.returncode) == (
        "get: error writing '/dev/full' from 'file': No space left on device\n",
        0,
    )


@pytest.mark.parametrize("command", ["put", "get"])
def test_a_file_that_is_on_both_sides(command: str, shell: Run, export: Path) -> None:
    """Where the shell runs in the folder that it exports, source and target are one file."""
    (export / "notes").write_text("precious")
    answer = shell(f"{command} notes", cwd=export)
    assert (answer.stderr, answer.returncode) == ("", 0)
    assert (export / "notes").read_text() == "precious"


def test_cp_finds_the_same_file_behind_links(shell: Run, export: Path) -> None:
    (export / "file").write_text("precious")
    (export / "hard").hardlink_to(export / "file")
    (export / "soft").symlink_to("file")
    answer = shell("cp file hard", "cp file soft", "cp soft file")
    assert answer.stderr.splitlines() == [
        "cp: file and hard are the same file",
        "cp: file and soft are the same file",
        "cp: soft and file are the same file",
    ]  # fmt: skip
    assert (export / "file").read_text() == "precious"


@pytest.mark.parametrize("command", ["put", "get", "cp"])
def test_what_was_longer_is_cut(command: str, shell: Run, export: Path, tmp_path: Path) -> None:
    for folder in (export, tmp_path):
        (folder / "long").write_text("0123456789")
        (folder / "short").write_text("abc")
        (folder / "long").chmod(0o604)
    assert shell(f"{command} short long", cwd=tmp_path).stderr == ""
    changed, other = (tmp_path, export) if command == "get" else (export, tmp_path)
    assert (changed / "long").read_text() == "abc"
    assert (changed / "long").stat().st_mode & 0o777 == 0o604
    assert (other / "long").read_text() == "0123456789"


@pytest.mark.parametrize("command", ["put", "cp"])
def test_a_full_disk_leaves_a_part_and_says_of_what(
    command: str, shell: Run, export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in (export, tmp_path):
        (folder / "big").write_bytes(b"x" * 3_000_000)

    real = GuestFile.write

    def write(self: GuestFile, data: bytes) -> int:
        if self.tell() >= 1 << 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(self, data)

    monkeypatch.setattr(GuestFile, "write", write)
    answer = shell(f"{command} big part", cwd=tmp_path)
    assert (answer.stderr, answer.returncode) == (
        f"{command}: error writing 'part' from 'big': No space left on device; 'part' is not complete\n", 1,
    )  # fmt: skip
    assert (export / "part").stat().st_size == 1 << 20


def test_a_limit_of_the_export(run: Run, export: Path, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(b"x" * 3_000_000)
    device = f"local,path={export},mount_tag=tag,security_model=none,space_hard_limit=1000000"
    answer = run("shell", "-virtfs", device, "-c", f"put {tmp_path}/big part; ls", cwd=tmp_path)
    assert answer.stderr == (
        f"put: error writing 'part' from '{tmp_path}/big': No space left on device; 'part' is not complete\n"
    )


def test_a_disk_that_fails_when_the_file_is_closed(
    shell: Run, export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()

    def close(self: GuestFile) -> None:
        real(self)
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    real = GuestFile.close
    monkeypatch.setattr(GuestFile, "close", close)
    answer = shell("put file", cwd=tmp_path)
    assert answer.stderr == "put: error writing 'file' from 'file': Disk quota exceeded; 'file' is not complete\n"


def test_a_disk_that_cannot_be_read(shell: Run, export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (export / "file").write_text("content")

    def read(*_: object) -> int:
        raise OSError(errno.EIO, "")

    monkeypatch.setattr(LocalDriver, "read", read)
    monkeypatch.setattr(LocalDriver, "read_into", read, raising=False)
    answer = shell("cp file copy")
    assert answer.stderr == "cp: error reading 'file' for 'copy': Input/output error; 'copy' is not complete\n"


def test_folders_are_not_copied(shell: Run, export: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (export / "folder").mkdir()
    answer = shell("put folder", "get folder", "cp folder x", "get folder/none /no/such/place", cwd=tmp_path)
    assert answer.stderr.splitlines() == [
        "put: folder: Is a directory", "get: folder: Is a directory", "cp: folder: Is a directory",
        "get: folder/none: No such file or directory",
    ]  # fmt: skip
