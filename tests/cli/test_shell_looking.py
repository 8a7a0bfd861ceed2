from __future__ import annotations

import errno
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyvirtfs.fsdev.local import LocalDriver

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def test_long_listing(shell: Run, export: Path) -> None:
    (export / "file").write_text("12345")
    (export / "file").chmod(0o640)
    (export / "folder").mkdir(0o755)
    (export / "link").symlink_to("file")
    (export / ".hidden").touch()
    os.utime(export / "file", (0, 978350400))  # 2001-01-01 12:00 UTC
    lines = shell("ls -l").stdout.splitlines()
    assert re.fullmatch(r"total \d+", lines[0])
    assert re.fullmatch(r"-rw-r----- 1 \d+ +\d+ +5 Jan  1  2001 file", lines[1])
    assert re.fullmatch(r"drwxr-xr-x 2 \d+ +\d+ +\d+ .* folder", lines[2])
    assert re.fullmatch(r"lrwxrwxrwx 1 .* link -> file", lines[3])
    assert shell("ls -a").stdout.splitlines() == [".hidden", "file", "folder", "link"]
    assert shell("ls folder file").stdout.splitlines() == ["file", "folder:"]


def test_what_cannot_be_looked_at_spoils_no_listing(shell: Run, export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with another file system below and multidevs=forbid, or a file that vanishes in between."""
    for name in ("a", "b"):
        (export / name).touch()
    (export / "folder").mkdir()
    (export / "folder" / "c").touch()
    real = LocalDriver.walk

    def walk(self: LocalDriver, node: Any, names: Any) -> Any:
        failures = {b"a": errno.ENODEV, b"folder": errno.EIO}
        if set(names) & failures.keys():
            raise OSError(failures[names[0]], "")
        return real(self, node, names)

    monkeypatch.setattr(LocalDriver, "walk", walk)
    answer = shell("ls -l")
    lines = answer.stdout.splitlines()
    assert lines[0].startswith("total ")
    assert re.fullmatch(r"-\?{9} \? +\? +\? +\? +\? a", lines[1])
    assert re.fullmatch(r"-rw-r--r-- 1 .* b", lines[2])
    assert re.fullmatch(r"d\?{9} .* folder", lines[3])
    assert answer.stderr == ("ls: cannot access 'a': No such device\nls: cannot access 'folder': Input/output error\n")
    assert answer.returncode == 1
    assert shell("ls").stdout.split() == ["a", "b", "folder"]  # for which no file is asked for, as with ls
    answer = shell("ls -l a b")
    assert answer.stderr == "ls: cannot access 'a': No such device\n"
    assert answer.stdout.splitlines()[0].endswith(" b")


@pytest.mark.skipif(os.geteuid() != 0, reason="root may mount")
def test_another_file_system_that_is_forbidden(run: Run, export: Path) -> None:
    (export / "below").mkdir()
    (export / "file").touch()
    if subprocess.run(["mount", "-t", "tmpfs", "none", export / "below"], check=False, capture_output=True).returncode:
        pytest.skip("no mounts here")
    try:
        device = f"local,path={export},mount_tag=tag,security_model=none,multidevs=forbid"
        answer = run("shell", "-virtfs", device, "-c", "ls -l")
        assert answer.stdout.splitlines()[1].endswith(" below")
        assert answer.stdout.splitlines()[2].endswith(" file")
        *warnings, last = answer.stderr.splitlines()
        assert (last, answer.returncode) == ("ls: cannot access 'below': No such device", 1)
        assert len(warnings) == 1
        assert warnings[0].startswith("pyvirtfs: warning: ")
        assert warnings[0].endswith("/below' lies on another file system, and is refused by multidevs=forbid")
        warned = run("shell", "-virtfs", device.replace("forbid", "warn"), "-c", "ls -l")
        assert warned.stderr.startswith("pyvirtfs: warning: the export spans several devices")
        assert warned.returncode == 0
    finally:
        subprocess.run(["umount", export / "below"], check=True)


def test_a_link_that_cannot_be_read_is_listed(shell: Run, export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (export / "link").symlink_to("target")

    def readlink(*_: object) -> bytes:
        raise OSError(errno.EIO, "")

    monkeypatch.setattr(LocalDriver, "readlink", readlink)
    answer = shell("ls -l")
    assert answer.stderr == "ls: cannot read symbolic link 'link': Input/output error\n"
    assert answer.stdout.splitlines()[1].endswith(" link")


def test_links(shell: Run, export: Path) -> None:
    (export / "file").write_bytes(bytes(77))
    (export / "link").symlink_to("file")
    assert shell("readlink link").stdout == "file\n"
    assert "link -> file" in shell("stat link").stdout
    assert re.search(r"Size: 77 .* regular file", shell("stat -L link").stdout)


def test_folders_as_files(shell: Run, export: Path) -> None:
    (export / "folder").mkdir()
    (export / "folder" / "in").touch()
    assert shell("ls -d folder").stdout == "folder\n"
    assert re.fullmatch(r"d.* folder\n", shell("ls -ld folder").stdout)
