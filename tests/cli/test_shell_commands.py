from __future__ import annotations

import errno
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pyvirtfs.cli.shell_commands import COMMANDS
from pyvirtfs.guest import GuestFile

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ("cat x", "cat: x: No such file or directory"),
        ("cat folder", "cat: folder: Is a directory"),
        ("ls x", "ls: x: No such file or directory"),
        ("cd x", "cd: x: No such file or directory"),
        ("cd file", "cd: file: Not a directory"),
        ("mkdir folder", "mkdir: folder: File exists"),
        ("rmdir full", "rmdir: full: Directory not empty"),
        ("rmdir file", "rmdir: file: Not a directory"),
        ("rm folder", "rm: folder: Is a directory"),
        ("rm -r /", "rm: the root of the mount stays"),
        ("mv x y", "mv: /x: No such file or directory"),
        ("mv folder full/in", "mv: /folder: Not a directory"),
        ("ln file folder2/x", "ln: folder2/x: No such file or directory"),
        ("ln a b", "ln: a: No such file or directory"),
        ("cp file file", "cp: file and file are the same file"),
        ("cp folder y", "cp: /folder: Is a directory"),
        ("put nothing", "put: nothing: No such file or directory"),
        ("get file /no/such/place", "get: /no/such/place: No such file or directory"),
        ("chmod x file", "chmod: 'x' is not an octal mode, such as 644"),
        ("chmod 10000 file", "chmod: '10000' is not an octal mode from 0 to 7777"),
        ("xattr -p user.none file", "xattr: /file: No data available"),
        ("ls -z", "usage: ls [-l] [-a] [PATH...]"),
        ("cat", "usage: cat FILE..."),
        ("cp one", "usage: cp SOURCE TARGET"),
        ("cp one two three", "usage: cp SOURCE TARGET"),
        ("xattr -p file", "usage: xattr [-p|-w|-d] [NAME] [VALUE] PATH"),
        ("trace maybe", "usage: trace on|off"),
        ("help me", "help: there is no command 'me'"),
        ("reboot", "reboot: command not found"),
        ("cat 'x", "shell: No closing quotation"),
    ],
)
def test_errors_are_one_line_each(command: str, line: str, shell: Run, export: Path) -> None:
    (export / "file").write_text("content")
    (export / "folder").mkdir()
    (export / "full").mkdir()
    (export / "full" / "in").touch()
    answer = shell(command)
    assert (answer.stdout, answer.stderr, answer.returncode) == ("", f"{line}\n", 1)
    assert shell(command, "pwd").returncode == 0


def test_an_error_does_not_stop_the_others(shell: Run, export: Path) -> None:
    (export / "b").write_text("b\n")
    answer = shell("cat a b c")
    assert answer.stdout == "b\n"
    assert answer.stderr == "cat: a: No such file or directory\ncat: c: No such file or directory\n"


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


def test_names_that_are_no_text(shell: Run, export: Path) -> None:
    (export / os.fsdecode(b"bytes\xff\x1b[2J")).write_text("x")
    answer = shell("ls", "rm b*")
    assert (answer.stdout, answer.stderr) == ("bytes\\xff\\x1b[2J\n", "")
    assert list(export.iterdir()) == []


def test_patterns(shell: Run, export: Path) -> None:
    for name in ("a.c", "b.c", "c.h", ".d.c"):
        (export / name).touch()
    (export / "sub").mkdir()
    (export / "sub" / "e.c").touch()
    answer = shell("ls *.c", "ls sub/*", "ls /*.h", "rm *.c", "ls -a", "rm *.none")
    assert answer.stdout.split() == ["a.c", "b.c", "sub/e.c", "/c.h", ".d.c", "c.h", "sub"]
    assert answer.stderr == "rm: *.none: No such file or directory\n"


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


def test_hard_links(shell: Run, export: Path) -> None:
    (export / "file").touch()
    assert shell("ln file other").returncode == 0
    assert (export / "other").samefile(export / "file")


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
    told = "get: copy is not complete\n" if existed else ""
    assert (answer.stderr, answer.returncode) == (f"{told}get: Input/output error\n", 1)
    assert (tmp_path / "copy").exists() == existed


def test_get_into_what_is_no_file(shell: Run, export: Path) -> None:
    (export / "file").write_bytes(b"x" * 10)
    answer = shell("get file /dev/full", "get file /dev/null")
    assert (answer.stderr, answer.returncode) == ("get: No space left on device\n", 0)


def test_help(shell: Run) -> None:
    answer = shell("help", "help cat")
    assert "cat FILE..." in answer.stdout
    assert answer.stdout.splitlines()[-1] == "cat FILE...  show files"


def test_usage_tells_the_number_of_arguments() -> None:
    counts = {name: (known.fewest, known.most) for name, known in COMMANDS.items()}
    assert counts["ls"] == (0, None)
    assert counts["cat"] == (1, None)
    assert counts["chmod"] == (2, None)
    assert counts["put"] == (1, 2)
    assert counts["xattr"] == (1, 3)
    assert counts["pwd"] == (0, 0)
