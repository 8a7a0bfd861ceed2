from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import Any

import pytest

from pyvirtfs.cli import probes
from pyvirtfs.cli.main import main
from pyvirtfs.cli.probes import Finding


def test_what_it_tells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    for word in (
        "openat2",
        "statx",
        "OFD locks",
        "open files",
        "CAP_DAC_READ_SEARCH",
        "user.* xattrs",
        "C compiler",
        "QEMU",
    ):
        assert word in told
    assert "Nothing essential is missing." in told
    assert told.splitlines()[0].split() == ["what", "state", "found", "why", "it", "matters"]
    assert list(tmp_path.iterdir()) == []


def test_something_essential_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(probes, "kernel", lambda: [Finding("openat2", False, "Function not implemented", "why", True)])
    assert main(["doctor", str(tmp_path)]) == 1
    assert "Essential and missing: openat2" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "problem"), [("file", "is not a folder"), ("nothing", "does not exist")])
def test_path_must_be_a_folder(name: str, problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["doctor", str(tmp_path / name)]) == 2
    assert capsys.readouterr().err == f"pyvirtfs: path: '{tmp_path / name}' {problem}\n"


@pytest.mark.parametrize(("given", "status"), [(True, 1), (False, 0)])
def test_a_folder_that_cannot_be_read(
    given: bool, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if path in {os.curdir, str(tmp_path)}:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return scandir(path)

    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "scandir", refuse)  # root may read everything
    assert main(["doctor", *([str(tmp_path)] if given else [])]) == status
    told = capsys.readouterr().out
    assert re.search(r"^ readable +missing +no: Permission denied", told, re.MULTILINE)
    assert ("Essential and missing: readable" in told) == given


@pytest.mark.parametrize(("columns", "width"), [("100", 100), ("", 140), ("wide", 140)])
def test_how_wide_it_is_where_nobody_looks(
    columns: str, width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert main(["doctor", str(tmp_path)]) == 0
    assert width - 5 <= max(map(len, capsys.readouterr().out.splitlines())) <= width
