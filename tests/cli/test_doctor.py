from __future__ import annotations

from pathlib import Path

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
    assert list(tmp_path.iterdir()) == []


def test_something_essential_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(probes, "kernel", lambda: [Finding("openat2", False, "Function not implemented", "why", True)])
    assert main(["doctor", str(tmp_path)]) == 1
    assert "Essential and missing: openat2" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "problem"), [("file", "is not a folder"), ("nothing", "no such folder")])
def test_path_must_be_a_folder(name: str, problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["doctor", str(tmp_path / name)]) == 2
    assert capsys.readouterr().err == f"pyvirtfs: PATH: '{tmp_path / name}' {problem}\n"
