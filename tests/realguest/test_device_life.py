"""Guests that end and begin while the mount is in use, and a server that does."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path

import pytest

from tests.realguest.machine import GuestFiles, RealGuest, RealGuestError
from tests.realguest.served import Served, demonstrate, interrupts

RECORD = 64 << 10

# Writes records of known content, and tells on the console which of them are on stable storage for sure.
WRITER = f"""
import os
with open("/dev/console", "wb", buffering=0) as console:
    fd = os.open("/mnt/records", os.O_WRONLY | os.O_CREAT)
    for number in range(100_000):
        assert os.write(fd, b"%07d\\n" % number * {RECORD // 8}) == {RECORD}
        if number % 4 == 3:
            os.fsync(fd)
            console.write(b"synced %d\\n" % number)
"""


def keep_busy(guest: RealGuest) -> None:
    """Let the guest write, read and ask for attributes from now on, all at the same time."""
    guest.check(
        """
        (while :; do dd if=/dev/zero of=/mnt/busy bs=64k count=64; done) >/dev/null 2>&1 &
        (while :; do cat /mnt/virtfs_file; stat /mnt/busy; ls /mnt; done) >/dev/null 2>&1 &
        while ! [ -s /mnt/busy ]; do sleep 0.05; done
        """
    )


def wait_for_synced(guest: RealGuest, number: int) -> None:
    deadline = time.monotonic() + 30
    while last_synced(guest) < number:
        assert time.monotonic() < deadline, guest.console[-1000:]
        time.sleep(0.02)


def last_synced(guest: RealGuest) -> int:
    return max(map(int, re.findall(r"^synced (\d+)$", guest.console, re.MULTILINE)), default=-1)


def check_records(path: Path, synced: int) -> None:
    """They are a prefix of what was written, and all that was told to be safe is there."""
    content = path.read_bytes()
    assert len(content) >= (synced + 1) * RECORD
    for number in range(len(content) // RECORD + 1):
        record = content[number * RECORD : (number + 1) * RECORD]
        assert record == (b"%07d\n" % number * (RECORD // 8))[: len(record)], number


def test_reset_and_reboot_with_the_mount_in_use(guest_files: GuestFiles, tmp_path: Path) -> None:
    with Served(guest_files, {"test_mount": tmp_path}) as served:
        guest = served.boot(machine="q35", smp=2, reboots=True)
        demonstrate(guest, tmp_path)
        for again in (guest.reset, guest.reboot):
            guest.check("echo precious >/mnt/safe; sync /mnt/safe")
            keep_busy(guest)
            again()
            assert (tmp_path / "safe").read_text() == "precious\n"
            demonstrate(guest, tmp_path)  # which mounts it again
            assert interrupts(guest)["virtio0-requests"][0] > 0
            assert guest.check("cat /mnt/safe; rm /mnt/safe") == "precious\n"
            assert not (tmp_path / "safe").exists()
        assert served.stderr.count("a client has connected") == 1


def test_qemu_killed_while_it_writes_and_another_one_attached(guest_files: GuestFiles, tmp_path: Path) -> None:
    with Served(guest_files, {"test_mount": tmp_path}) as served:
        guest = served.boot(smp=2)
        demonstrate(guest, tmp_path)
        keep_busy(guest)
        guest.check(f"cat >/tmp/writer.py <<'END'\n{WRITER}\nEND\npython3 -I -S /tmp/writer.py >/dev/console 2>&1 &")
        wait_for_synced(guest, 11)
        assert len(served.guest_ram()) > 0
        guest.kill()
        assert guest.wait() == -signal.SIGKILL
        synced = last_synced(guest)
        guest.close()

        served.check_nothing_left()
        assert served.running
        check_records(tmp_path / "records", synced)
        size = (tmp_path / "records").stat().st_size
        assert (tmp_path / "from_guest").read_text() == "Hi Host\n"

        second = served.boot(machine="q35")
        assert second.check("ls /mnt") == ""
        demonstrate(second, tmp_path)
        assert int(second.check("stat -c %s /mnt/records")) == size
        second.check("echo more >>/mnt/records")
        assert (tmp_path / "records").read_bytes().endswith(b"more\n")
        assert "a client has connected" in served.stderr


def test_a_second_guest_waits_for_the_first_one_to_leave(guest_files: GuestFiles, tmp_path: Path) -> None:
    """One device is one guest's; QEMU gives up after 5 s, and the first one notices nothing."""
    with Served(guest_files, {"test_mount": tmp_path}) as served:
        guest = served.boot()
        demonstrate(guest, tmp_path)
        with pytest.raises(RealGuestError, match=r"(?s)QEMU has ended with status 1.*[Tt]imed? ?out"):
            served.boot()
        assert guest.check("cat /mnt/virtfs_file") == "Hi Guest\n"


def blocked(guest: RealGuest, command: str) -> bool:
    """Whether a command that uses the mount is still waiting for it after some seconds, even if it is killed then."""
    told = guest.check(
        f"({command}) >/dev/null 2>&1 & pid=$!; sleep 2; kill -KILL $pid 2>/dev/null; sleep 1; "
        "sed -n 's/^State:\\t//p' /proc/$pid/status 2>/dev/null || true",
        timeout=30,
    )
    return told.startswith("D")


@pytest.mark.parametrize("smp", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_server_ends_by_sigterm_with_the_mount_in_use(smp: int, guest_files: GuestFiles, tmp_path: Path) -> None:
    """The guest lives on; what uses the mount waits, and cannot be killed (README)."""
    with Served(guest_files, {"test_mount": tmp_path}) as served:
        guest = served.boot(smp=smp)
        demonstrate(guest, tmp_path)
        keep_busy(guest)
        served.stop()
        for _ in range(4):
            assert guest.check("echo alive; ls /proc >/dev/null; echo x >/tmp/x; cat /tmp/x") == "alive\nx\n"
            time.sleep(0.5)
        assert guest.running
        assert guest.qmp("query-status")["status"] == "running"
        assert "Assertion" not in guest.stderr
        assert blocked(guest, "exec cat /mnt/virtfs_file")
        assert guest.run("umount /mnt").status != 0
        assert guest.check("umount -l /mnt; grep -c ' 9p ' /proc/mounts || true") == "0\n"
        assert (tmp_path / "from_guest").read_text() == "Hi Host\n"


def test_the_server_is_killed_while_the_mount_is_idle(guest_files: GuestFiles, tmp_path: Path) -> None:
    """The same; when it is killed at work QEMU may abort (README). A new server takes the place of the dead one."""
    with Served(guest_files, {"test_mount": tmp_path}) as served:
        guest = served.boot()
        demonstrate(guest, tmp_path)
        time.sleep(0.5)
        served.kill()
        assert guest.check("sleep 2; echo alive") == "alive\n"
        assert blocked(guest, "exec cat /mnt/virtfs_file")
        assert guest.check("echo alive") == "alive\n"
        guest.kill()
        assert all(path.exists() for path in served.sockets)  # nobody was left to remove them
