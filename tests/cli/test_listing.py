from __future__ import annotations

import os
import stat
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvirtfs.cli.listing import Row, Unknown, df_lines, human, long_lines, printable, quoted, stat_lines, total_line


def status(**fields: int) -> os.stat_result:
    """A stat result; times in seconds."""
    values = {"mode": stat.S_IFREG | 0o644, "ino": 7, "nlink": 1, "uid": 0, "gid": 0, "size": 0, "mtime": 0, **fields}
    first = (values["mode"], values["ino"], 0, values["nlink"], values["uid"], values["gid"], values["size"])
    return os.stat_result(
        (*first, 0, values["mtime"], 0),
        {
            "st_mtime": float(values["mtime"]),
            "st_blocks": values.get("blocks", 0),
            "st_blksize": 4096,
            "st_rdev": values.get("rdev", 0),
            "st_atime_ns": 1,
            "st_mtime_ns": values["mtime"] * 10**9 + 5,
            "st_ctime_ns": 0,
        },
    )


NOW = datetime(2024, 6, 15, 12, 0, 0)


def at(*moment: int) -> int:
    year, month, day, hour = moment
    return int(datetime(year, month, day, hour).timestamp())


def test_columns_line_up() -> None:
    rows = [
        Row("small", status(size=5, mtime=at(2024, 6, 1, 9))),
        Row("large", status(size=123456, nlink=12, uid=1000, mtime=at(2020, 6, 1, 9))),
        Row("soon", status(mtime=at(2025, 6, 1, 9), mode=stat.S_IFDIR | 0o1777)),
        Row("null", status(mode=stat.S_IFCHR | 0o666, rdev=os.makedev(1, 3), mtime=at(2024, 6, 1, 9))),
        Row("link", status(mode=stat.S_IFLNK | 0o777, mtime=at(2024, 6, 1, 9)), "target"),
    ]
    assert long_lines(rows, now=NOW) == [
        "-rw-r--r--  1 0    0      5 Jun  1 09:00 small",
        "-rw-r--r-- 12 1000 0 123456 Jun  1  2020 large",
        "drwxrwxrwt  1 0    0      0 Jun  1  2025 soon",
        "crw-rw-rw-  1 0    0   1, 3 Jun  1 09:00 null",
        "lrwxrwxrwx  1 0    0      0 Jun  1 09:00 link -> target",
    ]


def test_what_is_not_known() -> None:
    rows: list[Row | Unknown] = [Row("a", status(size=5, mtime=at(2024, 6, 1, 9), blocks=8))]
    rows += [Unknown("b", stat.S_IFDIR), Unknown("c\n")]
    assert long_lines(rows, now=NOW) == [
        "-rw-r--r-- 1 0 0 5 Jun  1 09:00 a",
        "d????????? ? ? ? ?            ? b",
        "?????????? ? ? ? ?            ? c\\x0a",
    ]
    assert total_line(rows) == "total 4"
    assert quoted("c\n") == "'c\\x0a'"


def test_times_beyond_the_calendar() -> None:
    (line,) = long_lines([Row("far", status(mtime=1 << 60))], now=NOW)
    assert line.endswith(f"{1 << 60} far")
    assert any(f"{1 << 60}.000000005" in line for line in stat_lines(Row("far", status(mtime=1 << 60))))


def test_total_is_in_kilobytes() -> None:
    assert total_line([Row("a", status(blocks=8)), Row("b", status(blocks=16))]) == "total 12"


def test_the_same_facts_as_coreutils(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(5000))
    file.chmod(0o604)
    lines = stat_lines(Row(str(file), file.stat()))
    assert lines[0] == f"  File: {file}"
    assert lines[1].split() == [
        "Size:",
        "5000",
        "Blocks:",
        str(file.stat().st_blocks),
        "IO",
        "Block:",
        "4096",
        "regular",
        "file",
    ]
    assert lines[3].startswith("Access: (0604/-rw----r--)")


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0"),
        (1023, "1023"),
        (1024, "1.0K"),
        (1536, "1.5K"),
        (10 << 10, "10K"),
        (20 << 30, "20G"),
        (1 << 60, "1024P"),
    ],
)
def test_human_sizes(nbytes: int, text: str) -> None:
    assert human(nbytes) == text


def test_df() -> None:
    lines = df_lines("tag", "/", 4096, 1000, 400, 300)
    assert lines[0].split() == ["Filesystem", "Size", "Used", "Avail", "Use%", "Mounted", "on"]
    assert lines[1].split() == ["tag", "3.9M", "2.3M", "1.2M", "67%", "/"]
    assert df_lines("tag", "/", 4096, 0, 0, 0)[1].split()[4] == "-"


@given(st.binary(max_size=20))
def test_printable_shows_no_control_character(name: bytes) -> None:
    shown = printable(os.fsdecode(name))
    assert shown.isprintable()
    assert len(shown.encode()) >= len(name)
