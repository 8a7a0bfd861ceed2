from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvirtfs.fsdev.mounts import MountTable, parse_mountinfo


def test_parse() -> None:
    text = (
        b"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw\n"
        b"37 36 0:5 / /mnt2/with\\040space rw - tmpfs none rw\n"
        b"38 36 0:6 / /mnt2/back\\134slash/x rw - tmpfs none rw\n"
        b"39 36 0:7 / /mnt2/carriage\rreturn rw - tmpfs none rw\n"
        b"1 1 0:1 / / rw - rootfs rootfs rw\n"
        b"garbage\n\n"
    )
    assert parse_mountinfo(text) == {
        b"/": frozenset({b"mnt2"}),
        b"/mnt2": frozenset({b"with space", b"carriage\rreturn"}),
        b"/mnt2/back\\slash": frozenset({b"x"}),
    }


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "here").mkdir()
    yield tmp_path
    subprocess.run(["umount", tmp_path / "here"], check=False, capture_output=True)


def test_a_new_mount_is_noticed(folder: Path, no_leak: None) -> None:
    table = MountTable()
    fd = os.open(folder, os.O_PATH)
    path = b"/proc/self/fd/%d" % fd
    try:
        assert table.below(path) == frozenset()
        if (
            shutil.which("mount") is None
            or subprocess.run(
                ["mount", "-t", "tmpfs", "none", folder / "here"], check=False, capture_output=True
            ).returncode
        ):
            pytest.skip("may not mount")
        assert table.below(path) == {b"here"}
        subprocess.run(["umount", folder / "here"], check=True)
        assert table.below(path) == frozenset()
        assert table.below(b"/proc/self/fd/999999") == frozenset()
    finally:
        os.close(fd)
        table.close()
        table.close()
