"""Patterns find below a mount what they find in the same folder of the host."""

from __future__ import annotations

from typing import Any

import pytest

from pyvirtfs.guest import GuestPath
from pyvirtfs.guest.globbing import parse_pattern
from pyvirtfs.p9 import constants as c

PATTERNS = [
    "*",
    "*/",
    "*.txt",
    "**/*",
    "**/*.txt",
    "**/",
    "**",
    "**/**/*.gz",
    "full/*",
    "full/**/c",
    "full/**/deep/*",
    "full/up/",
    "*/*",
    "to_*",
    "to_*/*",
    "to_folder/*",
    "full/around/*.txt",
    "full/../file.txt",
    "*/../*.txt",
    "./*/./a.txt",
    ".*",
    ".*/*",
    "[!f]*",
    "[fh]*",
    "????",
    "file.txt",
    "file.txt/*",
    "file.txt/",
    "none",
    "none/*",
    "loop/*",
    "\udcff",
    "not\udcff*/*",
    "not?utf/?.txt",
    "*\u00ef/*",
    "FILE.TXT",
    "/full",
    "/*",
    "full[",
]


@pytest.mark.parametrize("pattern", [*PATTERNS, ""])
@pytest.mark.parametrize("where", ["", "full", "to_folder", "file.txt", "none"])
def test_as_pathlib(still_twins: Any, pattern: str, where: str) -> None:
    still_twins.ask(lambda top: (top / where).glob(pattern))
    still_twins.ask(lambda top: (top / where).rglob(pattern))


def test_something_is_found(still_twins: Any) -> None:
    """The comparison above would hold of two empty lists."""
    assert (
        still_twins.ask(lambda top: top.glob("**/*.txt"))
        == [
            b"/full/a.txt",
            b"/file.txt",
            b"/full/a.txt",
            b"/not\xffutf/\xfe.txt",
            b"/\xc3\x9cn\xc3\xaf/\xc3\xa9.txt",
        ][1:]
    )


def test_folders_that_cannot_be_read_count_as_empty(still_twins: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = GuestPath.scandir

    def refuse(path: GuestPath) -> Any:
        if path.name in {"deep", "empty"}:
            raise PermissionError if path.name == "deep" else FileNotFoundError
        return scandir(path)

    monkeypatch.setattr(GuestPath, "scandir", refuse)
    found = {path.name for path in still_twins.guest.rglob("*")}
    assert {"deep", "empty", "a.txt"} <= found
    assert "deeper" not in found


def test_servers_that_tell_no_types(still_twins: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = set(still_twins.guest.rglob("*")), list(still_twins.guest.glob("to_*/*"))
    scandir = GuestPath.scandir
    monkeypatch.setattr(
        GuestPath, "scandir", lambda path: (entry._replace(type=c.DT_UNKNOWN) for entry in scandir(path))
    )
    assert (set(still_twins.guest.rglob("*")), list(still_twins.guest.glob("to_*/*"))) == expected


def test_parts_of_patterns() -> None:
    assert parse_pattern("a//./*/") == ("a", "*", "")
    with pytest.raises(ValueError, match="entire"):
        parse_pattern("a**")
