from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pyvirtfs.cli.main import main

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def test_the_transcript_in_a_folder(export: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", str(export)]) == 0
    told = capsys.readouterr().out
    for fact in (
        "00:06.0 Unclassified device: virtio 9P transport [1af4:1049] (rev 01)",
        "BAR 4: memory at ",
        "MSI-X: 2 vectors in BAR 1",
        "virtio device: BAR 4 offset 0x2000",
        "9P_MOUNT_TAG INDIRECT_DESC EVENT_IDX VERSION_1",
        "mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000 test_mount /mnt",
        "test_mount on /mnt type 9p (rw,relatime,access=client,msize=512000,trans=virtio)",
        "# cat /mnt/virtfs_file\n  Hi Guest\n",
        f"$ cat {export}/from_guest\n  Hi Host\n",
    ):
        assert fact in told
    assert re.search(r"-rw-r--r-- 1 \d+ +\d+ +9 \w{3} +\d+ \d\d:\d\d virtfs_file\n", told)
    counts = re.search(r"(\d+) requests, (\d+) kicks, (\d+) interrupts", told)
    assert counts is not None
    requests, kicks, interrupts = map(int, counts.groups())
    assert requests >= kicks >= interrupts >= 10
    assert (export / "virtfs_file").read_text() == "Hi Guest\n"
    assert (export / "from_guest").read_text() == "Hi Host\n"


def test_what_is_there_stays(export: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (export / "virtfs_file").write_text("mine\n")
    (export / "from_guest").write_text("mine too\n")
    (export / "link").symlink_to("virtfs_file")
    assert main(["demo", str(export)]) == 0
    told = capsys.readouterr().out
    assert "# cat /mnt/virtfs_file\n  mine\n" in told
    assert "link -> virtfs_file" in told
    assert (export / "from_guest").read_text() == "mine too\n"
    assert (export / "from_guest.1").read_text() == "Hi Host\n"


def test_a_large_folder_is_cut_short(export: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(30):
        (export / f"{number:02d}").touch()
    assert main(["demo", str(export)]) == 0
    assert "  ... and 11 more\n" in capsys.readouterr().out


def test_its_own_folder_is_removed(run_process: Run) -> None:
    answer = run_process("demo")
    assert (answer.stderr, answer.returncode) == ("", 0)
    folder = re.search(r"Host: (/\S+) is exported as test_mount", answer.stdout)
    assert folder is not None
    assert not Path(folder[1]).exists()
    assert "The folder is removed now." in answer.stdout


def test_trace_shows_messages(export: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--trace", str(export)]) == 0
    told = capsys.readouterr().out
    assert "Tversion" in told
    assert "Rwalk" in told


@pytest.mark.parametrize("name", ["nothing", "file"])
def test_the_folder_must_be_one(name: str, export: Path, run: Run) -> None:
    (export / "file").touch()
    answer = run("demo", str(export / name))
    assert (answer.stdout, answer.returncode) == ("", 2)
    assert answer.stderr.startswith(f"pyvirtfs: path: '{export / name}' ")
    assert answer.stderr.count("\n") == 1
