from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import click
import pytest

from pyvirtfs.cli import main as module
from pyvirtfs.cli.main import COMMANDS, cli, main
from pyvirtfs.errors import ConfigError, DeviceError

EXPORT = "local,path=.,mount_tag=here,security_model=none,readonly=on"
Run = Callable[..., "subprocess.CompletedProcess[str]"]


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("pyvirtfs 0.")
    assert main(["--help"]) == 0
    told = capsys.readouterr().out
    assert all(name in told for name in COMMANDS)
    assert main([]) == 0
    assert capsys.readouterr().out == told


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help_with_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    told = capsys.readouterr().out
    assert f"pyvirtfs {name}" in told.partition("Examples:")[2]


def test_help_loads_no_command() -> None:
    program = (
        "import sys; from pyvirtfs.cli.main import COMMANDS, main; main(['--help']);"
        "sys.exit(', '.join({'rich', *(f'pyvirtfs.cli.{name}' for name in COMMANDS)} & set(sys.modules)) or 0)"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (answer.stderr, answer.returncode) == ("", 0)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--wrong"], "--wrong: there is no such option (choose from"),
        (["mount"], "mount: there is no such command (choose from demo, shell, qemu, serve, libvirt, lspci, doctor)"),
        (["doctor", "--wrong"], "--wrong: there is no such option (choose from"),
        (["shell", "-wrong", "x"], "-wrong: there is no such option (choose from"),
        (["doctor", "/", "/"], "Got unexpected extra argument (/)"),
        (["doctor", "/no/such"], "path: '/no/such' does not exist"),
        (["shell", "--msize", "abc"], "--msize: 'abc' is not a number from 4096 to 512000"),
        (["shell", "--msize", "4095"], "--msize: '4095' is not a number from 4096 to 512000"),
        (["shell"], "-virtfs: say which folder is to be mounted, for example -virtfs local,path="),
        (["lspci", "--import", "no_such_module"], "--import: 'no_such_module' cannot be imported: No module"),
    ],
)
def test_bad_usage_is_one_line_and_status_2(arguments: list[str], line: str, run: Run) -> None:
    answer = run(*arguments)
    assert answer.returncode == 2
    assert answer.stdout == ""
    assert answer.stderr.startswith(f"pyvirtfs: {line}")
    assert answer.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (ConfigError("path", "'/x' is missing"), 2, "pyvirtfs: path: '/x' is missing\n"),
        (FileNotFoundError(2, "No such file or directory", "/x"), 1, "pyvirtfs: /x: No such file or directory\n"),
        (OSError(5, "Input/output error"), 1, "pyvirtfs: Input/output error\n"),
        (DeviceError("the device needs a reset"), 1, "pyvirtfs: the device needs a reset\n"),
        (KeyboardInterrupt(), 130, ""),
        (click.Abort(), 130, ""),
    ],
)
def test_each_family_of_errors_has_its_status(
    error: BaseException, status: int, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(cli, "main", fail)
    assert module.main(["demo"]) == status
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("arguments", [["doctor"], ["demo"], ["--help"]])
def test_a_reader_that_goes_away_is_no_error(arguments: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "pyvirtfs", *arguments]
    answer = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, timeout=60, check=False)
    os.close(write)
    assert (answer.stderr, answer.returncode) == (b"", 1)


def run_with(redirection: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `pyvirtfs` in a shell, with its streams as a person would redirect them."""
    command = ["sh", "-c", f'"$@" {redirection}', "sh", sys.executable, "-m", "pyvirtfs", *arguments]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)


@pytest.mark.parametrize("arguments", [["demo"], ["lspci"], ["--help"], ["shell", "-c", "ls", "-virtfs", EXPORT]])
def test_an_output_that_takes_nothing_is_one_line_and_status_1(arguments: list[str]) -> None:
    answer = run_with(">/dev/full", *arguments)
    assert (answer.stderr, answer.returncode) == ("pyvirtfs: standard output: No space left on device\n", 1)


def test_closed_streams() -> None:
    answer = run_with(">&-", "lspci")
    assert (answer.stdout, answer.stderr, answer.returncode) == ("", "pyvirtfs: the standard output is closed\n", 1)
    answer = run_with("2>&-", "mount")
    assert (answer.stdout, answer.stderr, answer.returncode) == ("", "", 2)
    answer = run_with("2>/dev/full", "mount")
    assert (answer.stdout, answer.returncode) == ("", 2)
    answer = run_with("<&-", "shell", "-virtfs", EXPORT)
    assert (answer.stdout, answer.stderr, answer.returncode) == ("", "", 0)
    answer = run_with("<&-", "shell", "-virtfs", EXPORT, "-c", "pwd")
    assert (answer.stdout, answer.stderr, answer.returncode) == ("/\n", "", 0)
