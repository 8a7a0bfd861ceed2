from __future__ import annotations

import io
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pyvirtfs.cli.main import main
from pyvirtfs.cli.shell import completions, split
from pyvirtfs.cli.shell_commands import COMMANDS, Commands
from pyvirtfs.testing import pair

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.mark.parametrize(
    ("line", "commands"),
    [
        ("ls -l", [["ls", "-l"]]),
        ("ls; cat 'a b';df", [["ls"], ["cat", "a b"], ["df"]]),
        (";;", []),
        ("", []),
        ("cat x # the rest", [["cat", "x"]]),
        (r"cat a\ b a\;b", [["cat", "a b", "a;b"]]),
        ("ls *.[ch] a=b,c:d@e", [["ls", "*.[ch]", "a=b,c:d@e"]]),
    ],
)
def test_split(line: str, commands: list[list[str]]) -> None:
    assert split(line) == commands


def test_split_wants_closed_quotes() -> None:
    with pytest.raises(ValueError, match="No closing quotation"):
        split("cat 'x")


def test_a_session(shell: Run, export: Path, tmp_path: Path) -> None:
    (export / "hello").write_text("Hi Guest\n")
    (tmp_path / "from_host").write_bytes(bytes(range(256)) * 5000)
    answer = shell(
        "pwd",
        "cat hello",
        "mkdir -p a/b",
        "cd a/b",
        "pwd",
        "put from_host",
        "cp from_host copy",
        "get copy fetched",
        "ln -s ../../hello link",
        "cat link",
        "mv copy ../moved",
        "ls",
        "cd",
        "rm -r a/b",
        "ls a",
        "exit",
        "cat never",
        cwd=tmp_path,
    )
    assert (answer.stderr, answer.returncode) == ("", 0)
    assert answer.stdout.splitlines() == [
        "/", "Hi Guest", "/a/b", "Hi Guest", "from_host", "link", "moved",
    ]  # fmt: skip
    assert (tmp_path / "fetched").read_bytes() == (tmp_path / "from_host").read_bytes()
    assert (export / "a" / "moved").read_bytes() == (tmp_path / "from_host").read_bytes()
    assert not (export / "a" / "b").exists()


def test_a_session_in_a_process_of_its_own(run_process: Run, export: Path) -> None:
    device = f"local,path={export},mount_tag=tag,security_model=none"
    answer = run_process("shell", "-virtfs", device, stdin="mkdir x\ncat y\nls\n")
    assert (answer.stdout, answer.stderr, answer.returncode) == ("x\n", "cat: y: No such file or directory\n", 0)
    answer = run_process("shell", "-virtfs", "local,path=/no/such,mount_tag=tag,security_model=none")
    assert (answer.stdout, answer.returncode, answer.stderr.count("\n")) == ("", 2, 1)


def test_commands_of_an_option(run: Run, export: Path) -> None:
    device = f"local,path={export},mount_tag=tag,security_model=none"
    answer = run("shell", "-virtfs", device, "-c", "touch a b; ls; mount; stat a; df")
    assert (answer.stderr, answer.returncode) == ("", 0)
    lines = answer.stdout.splitlines()
    assert lines[:3] == ["a", "b", "tag on / type 9p (rw,relatime,access=client,msize=512000,trans=virtio)"]
    assert re.match(r"Access: \(0644/-rw-r--r--\)  Uid: \d+   Gid: \d+", lines[6])
    assert re.match(r"tag +[\d.]+[KMGT]? +[\d.]+[KMGT]? +[\d.]+[KMGT]? +\d+% /$", lines[-1])


def test_trace(shell: Run, run: Run, export: Path) -> None:
    answer = shell("trace on", "touch a", "trace off", "touch b")
    assert "Tlcreate" in answer.stderr
    assert "a" in answer.stderr
    assert answer.stderr.count("Tlcreate") == 1
    device = f"local,path={export},mount_tag=tag,security_model=none"
    assert "Tversion" in run("shell", "--trace", "-virtfs", device, "-c", "pwd").stderr


def test_a_read_only_export(run: Run, export: Path) -> None:
    device = f"local,path={export},mount_tag=tag,security_model=none,readonly=on"
    answer = run("shell", "-virtfs", device, "-c", "mount; touch x")
    assert answer.stdout.startswith("tag on / type 9p (ro,")
    assert answer.stderr == "touch: x: Read-only file system\n"
    assert answer.returncode == 1


def test_fsdev_and_device(run: Run, export: Path) -> None:
    answer = run(
        "shell",
        "-fsdev", f"local,id=fs0,path={export},security_model=none",
        "-device", "virtio-9p-pci,fsdev=fs0,mount_tag=other,vectors=0,event_idx=off,indirect_desc=off",
        "-c", "mount",
    )  # fmt: skip
    assert answer.stdout.startswith("other on / ")


@pytest.mark.parametrize(
    ("device", "line"),
    [
        ("local,path={}/none,mount_tag=t,security_model=none", r"path: '\S+/none' .*"),
        ("local,path={}/file,mount_tag=t,security_model=none", r"path: '\S+/file' .*"),
        ("local,mount_tag=t,security_model=none", r"path: .*"),
        ("local,path={},mount_tag=t", r"security_model: .*\(choose from passthrough.*none.*\)"),
        (
            "local,path={},mount_tag=t,security_model=nine",
            r"security_model: 'nine' .*\(choose from passthrough.*none.*\)",
        ),
        ("local,path={},security_model=none", r"mount_tag: .*"),
        ("local,path={},mount_tag=" + 32 * "x" + ",security_model=none", r"mount_tag: 'x{32}' is 32 bytes long.* 31"),
        ("local,path={},mount_tag=,security_model=none", r"mount_tag: '' is 0 bytes long.* 1 to 31"),
        (
            "local,path={},security_model=none,mount_tag=t,fmode=0600",
            r"fmode: belongs to the mapped models \(.*\), and security_model is 'none'",
        ),
        ("local,path={},mount_tag=t,security_model=none,colour=red", r"colour: .*\(choose from .*readonly.*\)"),
        (
            "local,path={},mount_tag=t,security_model=none,readonly=maybe",
            r"readonly: 'maybe' .*\(.*on, off\)",
        ),
        ("nfs,path={},mount_tag=t", r"-virtfs: there is no driver 'nfs' \(choose from .*local.*\)"),
        ("local,path={},mount_tag=t,security_model=none,id=9", r"id: '9' is not an identifier.*"),
    ],
)
def test_bad_options_are_one_line_and_status_2(device: str, line: str, run: Run, export: Path) -> None:
    (export / "file").touch()
    answer = run("shell", "-virtfs", device.format(export), "-c", "ls")
    assert (answer.stdout, answer.returncode) == ("", 2)
    assert re.fullmatch(f"pyvirtfs: {line}\n", answer.stderr), answer.stderr


@pytest.mark.parametrize(
    ("words", "text", "found"),
    [
        ([], "trun", ["truncate "]),
        ([], "s", ["stat ", "su ", "sync "]),
        (["help"], "umas", ["umask "]),
        (["ls"], "", ["file ", "folder/", "f\u00fcr ", "to_file ", "to_folder/"]),
        (["ls"], "fo", ["folder/"]),
        (["ls"], "folder/", ["folder/in "]),
        (["ls"], "/to", ["/to_file ", "/to_folder/"]),
        (["chown", "-h", "1"], "../fi", ["../file "]),
        (["ls"], "nothing", []),
    ],
)
def test_completion(words: list[str], text: str, found: list[str], export: Path) -> None:
    for name in ("file", "f\u00fcr", "a b", "a'b", "a\nb", "a\udcffb", "a;b"):
        (export / name).touch()
    (export / "folder").mkdir()
    (export / "folder" / "in").touch()
    (export / "to_file").symlink_to("file")
    (export / "to_folder").symlink_to("folder")
    (export / "dangling;").symlink_to("nothing")
    with pair(f"local,path={export},security_model=none") as both:
        commands = Commands(both.mount, "", echo=print, complain=print, binary=io.BytesIO(), set_trace=lambda _: None)
        assert completions(commands, words, text) == found
        with pytest.raises(FileNotFoundError):
            completions(commands, ["ls"], "none/")
    assert "truncate" in COMMANDS


def test_names_that_are_no_text_on_the_input(
    export: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"touch \xff\xfe\nls\ncat \xfd\n"), "utf-8"))
    assert main(["shell", "-virtfs", f"local,path={export},mount_tag=tag,security_model=none"]) == 1
    told = capsys.readouterr()
    assert (told.out, told.err) == ("\\xff\\xfe\n", "cat: \\xfd: No such file or directory\n")
    assert [bytes(path) for path in export.iterdir()] == [bytes(export) + b"/\xff\xfe"]
