from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest

from pyvirtfs.cli.main import main

Answer: TypeAlias = "subprocess.CompletedProcess[str]"
Run: TypeAlias = Callable[..., Answer]


@pytest.fixture
def run_process() -> Run:
    """Run `pyvirtfs` as a person does: a process of its own."""

    def run(*arguments: str, stdin: str = "") -> Answer:
        command = [sys.executable, "-m", "pyvirtfs", *arguments]
        return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60, check=False)

    return run


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `pyvirtfs` in this process, which is twenty times as fast."""

    def run(*arguments: str, stdin: str = "", cwd: Path | None = None) -> Answer:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        if cwd is not None:
            monkeypatch.chdir(cwd)
        capsys.readouterr()
        status = main(arguments)
        told = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, status, told.out, told.err)

    return run


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """A folder to export."""
    folder = tmp_path / "export"
    folder.mkdir()
    return folder


@pytest.fixture
def shell(run: Run, export: Path) -> Run:
    """Run commands in a shell on `export`."""

    def shell(*commands: str, cwd: Path | None = None) -> Answer:
        device = f"local,path={export},mount_tag=tag,security_model=none"
        return run("shell", "-virtfs", device, stdin="\n".join(commands), cwd=cwd)

    return shell
