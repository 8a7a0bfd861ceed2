from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pyvirtfs.cli.shell_commands import COMMANDS

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ("cat x", "cat: x: No such file or directory"),
        ("cat folder", "cat: folder: Is a directory"),
        ("ls x", "ls: cannot access 'x': No such file or directory"),
        ("cd x", "cd: x: No such file or directory"),
        ("cd file", "cd: file: Not a directory"),
        ("mkdir folder", "mkdir: folder: File exists"),
        ("rmdir full", "rmdir: full: Directory not empty"),
        ("rmdir file", "rmdir: file: Not a directory"),
        ("rm folder", "rm: folder: Is a directory"),
        ("rm -r /", "rm: the root of the mount stays"),
        ("mv x y", "mv: x to y: No such file or directory"),
        ("mv folder full/in", "mv: folder to full/in: Not a directory"),
        ("ln file folder2/x", "ln: folder2/x: No such file or directory"),
        ("ln a b", "ln: a: No such file or directory"),
        ("cp file file", "cp: file and file are the same file"),
        ("cp folder y", "cp: folder: Is a directory"),
        ("put nothing", "put: nothing: No such file or directory"),
        ("get file /no/such/place", "get: /no/such/place: No such file or directory"),
        ("chmod x file", "chmod: 'x' is not a mode, such as 644 or u=rw,go-w"),
        ("chmod 10000 file", "chmod: '10000' is not an octal mode from 0 to 7777"),
        ("xattr -p user.none file", "xattr: file: No data available"),
        ("ls -z", "usage: ls [-l] [-a] [-d] [PATH...]"),
        ("cat", "usage: cat FILE..."),
        ("cp one", "usage: cp SOURCE TARGET"),
        ("cp one two three", "usage: cp SOURCE TARGET"),
        ("xattr -p file", "usage: xattr [-h] [-p|-w|-d] [NAME] [VALUE] PATH"),
        ("xattr -w user.x 0x1 file", "xattr: '0x1' are no hexadecimal digits, two for each byte"),
        ("xattr -pd user.x file", "usage: xattr [-h] [-p|-w|-d] [NAME] [VALUE] PATH"),
        ("chmod -z file", "chmod: '-z' is not a mode, such as 644 or u=rw,go-w"),
        ("chown x file", "chown: 'x' is not a number from 0 to 4294967294"),
        ("chown 1:4294967295 file", "chown: '4294967295' is not a number from 0 to 4294967294"),
        ("chown 1: file", "usage: chown [-h] UID[:GID] PATH..."),
        ("chown : file", "usage: chown [-h] UID[:GID] PATH..."),
        ("chown 1 x", "chown: x: No such file or directory"),
        ("mknod x p 1 2", "usage: mknod NAME TYPE [MAJOR MINOR]"),
        ("mknod x c 1", "usage: mknod NAME TYPE [MAJOR MINOR]"),
        ("mknod x y 1 2", "usage: mknod NAME TYPE [MAJOR MINOR]"),
        ("mknod x c 4096 0", "mknod: '4096' is not a number from 0 to 4095"),
        ("mknod x b 0 -1", "usage: mknod NAME TYPE [MAJOR MINOR]"),
        ("mknod file p", "mknod: file: File exists"),
        ("readlink file", "readlink: file: Invalid argument"),
        ("truncate file", "usage: truncate -s SIZE FILE..."),
        ("truncate -s", "usage: truncate -s SIZE FILE..."),
        ("truncate -s 1.5K file", "truncate: '1.5K' is not a size, such as 10, 4K, +1M or -5"),
        ("truncate -s 8E file", "truncate: file: File too large"),
        ("truncate -s 1 folder", "truncate: folder: Is a directory"),
        ("touch -d soon file", "touch: 'soon' is not a time from 1970 on, such as @0 or 2001-01-01T12:00"),
        ("touch -d @x file", "touch: '@x' is not a time from 1970 on, such as @0 or 2001-01-01T12:00"),
        ("touch -d @-1 file", "touch: '@-1' is not a time from 1970 on, such as @0 or 2001-01-01T12:00"),
        (
            f"touch -d @{1 << 64} file",
            f"touch: '@{1 << 64}' is not a time from 1970 on, such as @0 or 2001-01-01T12:00",
        ),
        ("su x", "su: 'x' is not a number from 0 to 4294967294"),
        ("su 1:", "su: '' is not a number from 0 to 4294967294"),
        ("id x", "usage: id"),
        ("umask 1000", "umask: '1000' is not an octal mode from 0 to 777"),
        ("umask u=rwx", "umask: 'u=rwx' is not an octal mode from 0 to 777"),
        ("lock x", "lock: x: No such file or directory"),
        ("lock folder", "lock: folder: Is a directory"),
        ("lock -u file", "lock: file: there are no locks on it"),
        ("lock -ut file", "usage: lock [-s] [-n] [-u|-t] FILE [START [LENGTH]]"),
        ("lock file end", "lock: 'end' is not a number from 0 to 9223372036854775807"),
        ("sync x", "sync: x: No such file or directory"),
        ("cat ''", "cat: : No such file or directory"),
        ("cat a\0b", "cat: an argument holds a NUL"),
        ("mkdir " + 256 * "x", f"mkdir: {256 * 'x'}: File name too long"),
        ("mkdir " + 65536 * "x", f"mkdir: {65536 * 'x'}: File name too long"),
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


def test_names_that_are_no_text(shell: Run, export: Path) -> None:
    (export / os.fsdecode(b"bytes\xff\x1b[2J")).write_text("x")
    answer = shell("ls", "rm b*")
    assert (answer.stdout, answer.stderr) == ("bytes\\xff\\x1b[2J\n", "")
    assert list(export.iterdir()) == []


def test_help(shell: Run) -> None:
    answer = shell("help", "help cat")
    assert "cat FILE..." in answer.stdout
    assert answer.stdout.splitlines()[-1] == "cat FILE...  show files"


def test_help_knows_every_command(shell: Run) -> None:
    lines = shell("help").stdout.splitlines()
    assert len(lines) == len(COMMANDS)
    assert lines[0].startswith("ls ")
    assert lines[-1].startswith("exit ")


ODD = [
    "", "missing", "folder", "file", "'a b'", "bytes\udcff", "-- -dash", "--", "''", "/", "..", 300 * "x", "-?",
    "missing new", "file folder", "folder file", "file missing/x", "file /", "/ file", "a b c d e f", "'[' file",
    "99999999999999999999 file", "-1 file", "fifo", "loop", "socket", "file/", "file/x", "0 missing", "644 folder",
    "-s 1 folder", "-r missing", "-p '' file", "'' ''", "'new\nline'",
]  # fmt: skip


@pytest.mark.parametrize("name", sorted(COMMANDS.keys() - {"exit"}))
def test_odd_arguments_are_lines_and_a_status_at_worst(name: str, run: Run, export: Path, tmp_path: Path) -> None:
    device = f"local,path={export},mount_tag=tag,security_model=none"
    os.mkfifo(export / "fifo")
    (export / "loop").symlink_to("loop")
    os.mknod(export / "socket", 0o140644)
    (tmp_path / "file").touch()
    for argument in ODD:
        (export / "folder").mkdir(exist_ok=True)
        (export / "file").write_text("content")
        answer = run("shell", "-virtfs", device, "-c", f"{name} {argument}", cwd=tmp_path)
        assert answer.returncode == (1 if answer.stderr else 0), argument
        for line in answer.stderr.splitlines():
            assert re.match(rf"({name}|usage): .", line), (argument, line)
