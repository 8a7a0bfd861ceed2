from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def test_attributes(shell: Run, export: Path) -> None:
    (export / "file").touch()
    try:
        os.setxattr(export / "file", "user.one", b"1")
    except OSError:
        pytest.skip("no xattrs here")
    answer = shell(
        "chmod 4711 file", "xattr file", "xattr -p user.one file", "xattr -w user.two 2 file", "xattr -d user.one file"
    )
    assert (answer.stdout, answer.stderr) == ("user.one\n1\n", "")
    assert (export / "file").stat().st_mode & 0o7777 == 0o4711
    assert os.listxattr(export / "file") == ["user.two"]
    assert os.getxattr(export / "file", "user.two") == b"2"


def test_binary_values(shell: Run, export: Path) -> None:
    (export / "file").touch()
    try:
        os.setxattr(export / "file", "user.one", b"")
    except OSError:
        pytest.skip("no xattrs here")
    answer = shell("xattr -w user.one 0x00fF41 file", "xattr -p user.one file")
    assert (answer.stdout, answer.stderr) == ("\\x00\\xffA\n", "")
    assert os.getxattr(export / "file", "user.one") == b"\0\xffA"


def test_symbolic_modes(shell: Run, export: Path) -> None:
    (export / "file").touch(0o644)
    (export / "folder").mkdir()
    (export / "file").chmod(0o600)
    answer = shell("chmod go=u,a+X file folder", "umask 002", "chmod -w folder", "chmod u+x file none")
    assert answer.stderr == "chmod: none: No such file or directory\n"
    assert (export / "file").stat().st_mode & 0o7777 == 0o766
    assert (export / "folder").stat().st_mode & 0o7777 == 0o557


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_owners(shell: Run, export: Path) -> None:
    for name in ("both", "user", "group", "target"):
        (export / name).touch()
    (export / "link").symlink_to("target")
    (export / "other").symlink_to("target")
    answer = shell("chown 7:8 both", "chown 7 user link", "chown :8 group", "chown -h 9:9 other")
    assert (answer.stderr, answer.returncode) == ("", 0)
    owners = {path.name: (path.lstat().st_uid, path.lstat().st_gid) for path in export.iterdir()}
    own = os.getegid()
    assert owners == {
        "both": (7, 8), "user": (7, own), "group": (0, 8), "target": (7, own), "link": (0, own), "other": (9, 9),
    }  # fmt: skip


def test_owners_that_need_no_privilege(run: Run, export: Path) -> None:
    device = f"local,path={export},mount_tag=tag,security_model=mapped-file"
    answer = run("shell", "-virtfs", device, "-c", "touch file; chown 7:8 file; ls -l file")
    assert answer.stderr == ""
    assert answer.stdout.startswith("-rw-r--r-- 1 7 8 0 ")


@pytest.mark.parametrize(
    ("size", "after"),
    [
        ("0", 0),
        ("4K", 4096),
        ("1KB", 1000),
        ("+1M", (1 << 20) + 10),
        ("-3", 7),
        ("-11", 0),
        ("+0", 10),
        ("2T", 2 << 40),
    ],
)
def test_sizes(size: str, after: int, shell: Run, export: Path) -> None:
    (export / "file").write_bytes(b"0123456789")
    answer = shell(f"truncate -s {size} file new")
    assert (answer.stderr, answer.returncode) == ("", 0)
    assert (export / "file").stat().st_size == after
    assert (export / "file").read_bytes()[:8] == b"0123456789"[: min(after, 8)] if after < 1 << 20 else True
    assert (export / "new").stat().st_size == (0 if size[0] == "-" else after - 10 * (size[0] == "+"))


def test_times(shell: Run, export: Path) -> None:
    (export / "file").touch()
    assert shell("touch -d @77 file new").stderr == ""
    assert [(export / name).stat().st_mtime_ns for name in ("file", "new")] == [77 * 10**9, 77 * 10**9]
    assert shell("touch -d 2001-01-01T12:00+00:00 file").stderr == ""
    assert (export / "file").stat().st_atime == 978350400
    assert shell("touch file").stderr == ""
    assert (export / "file").stat().st_mtime > 1600000000
