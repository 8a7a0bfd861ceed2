from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pyvirtfs.cli.devices import DeviceSettings
from pyvirtfs.cli.session import guest_with
from pyvirtfs.cli.shell_commands import Commands
from pyvirtfs.fsdev.local import LocalDriver
from pyvirtfs.fsdev.options import FsdevOptions

Run = Callable[..., "subprocess.CompletedProcess[str]"]
LOCKER = """
import fcntl, sys
file = open(sys.argv[1], "r+b")
fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 5)
print("locked", flush=True)
sys.stdin.read()
"""


def test_a_lock_of_the_host_is_in_the_way(shell: Run, export: Path) -> None:
    (export / "file").write_text("0123456789abcdefghij")
    with subprocess.Popen(
        [sys.executable, "-c", LOCKER, str(export / "file")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as locker:
        assert locker.stdout is not None
        assert locker.stdout.readline() == b"locked\n"
        answer = shell("lock -n file", "lock -n -s file 14 1", "lock -t file", "lock -n file 0 5", "lock -u file")
        locker.communicate(b"")
    assert answer.stderr.splitlines() == 2 * ["lock: file: Resource temporarily unavailable"]
    assert answer.stdout.startswith("exclusive lock of bytes 5 to 14, process ")


def test_locks_hold_until_they_are_given_up(export: Path) -> None:
    (export / "file").touch()
    said: list[str] = []
    fsdev = FsdevOptions("local", None, {"path": str(export), "security_model": "none"})

    def is_free() -> bool:
        locking = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'r+b'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
        return not subprocess.run(
            [sys.executable, "-c", locking, str(export / "file")], check=False, stderr=subprocess.DEVNULL
        ).returncode

    with guest_with(DeviceSettings(fsdev=fsdev, mount_tag="tag", slot=6)) as guest:
        channel = guest.bring_up()
        mounted = guest.mount(channel)
        commands = Commands(
            mounted, "", echo=said.append, complain=said.append, binary=io.BytesIO(), set_trace=lambda _: None
        )
        idle = mounted.session.client.fids
        for line in ("lock file", "lock -t file", "su 5"):  # nobody is in one's own way
            assert commands.run(line.split()), said
        assert not is_free()
        assert commands.run(["lock", "-u", "file", "0", "10"])
        assert not is_free()
        assert commands.run(["lock", "-u", "file"])
        assert is_free()
        assert len(mounted.session.client.fids) == len(idle) + 1
        assert commands.run(["lock", "file"])
        commands.remounted(guest.remount(channel))
        assert is_free()
        assert (commands.mount.uid, commands.mount.gid) == (5, 5)
        assert commands.run(["lock", "-s", "file"])
        assert not is_free()
        commands.close()
        assert is_free()
    assert said == ["free"]


def test_sync(shell: Run, export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (export / "file").touch()
    (export / "folder").mkdir()
    answer = shell("trace on", "sync file folder", "sync -d file")
    assert answer.returncode == 0
    assert answer.stderr.count("Tfsync") == 3

    def fsync(*_: object, datasync: bool) -> None:
        raise OSError(5, "")

    monkeypatch.setattr(LocalDriver, "fsync", fsync)
    assert shell("sync file").stderr == "sync: file: Input/output error\n"
