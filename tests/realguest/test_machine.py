"""Scripts in a guest with QEMU's own `-virtfs` device: what tests with a real guest stand on."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.realguest.machine import GuestFiles, RealGuest, RealGuestError

MOUNT = "mkdir -p /mnt; mount -t 9p -o trans=virtio,version=9p2000.L,msize=131072 test_mount /mnt"


def virtfs(folder: Path, tag: str = "test_mount") -> list[str]:
    return ["-virtfs", f"local,path={folder},mount_tag={tag},security_model=none"]


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    (folder / "virtfs_file").write_text("Hi Guest\n")
    return folder


@pytest.fixture(scope="module")
def guest(guest_files: GuestFiles, export: Path) -> Iterator[RealGuest]:
    """One guest for all tests that leave it as it was."""
    with RealGuest(guest_files, virtfs(export), reboots=True) as guest:
        guest.check(MOUNT)
        yield guest


def test_the_demonstration(guest: RealGuest, export: Path) -> None:
    assert guest.check("cat /mnt/virtfs_file") == "Hi Guest\n"
    assert re.fullmatch(r"test_mount on /mnt type 9p \(rw,.*trans=virtio.*\)\n", guest.check("mount | grep test_mount"))
    assert guest.check("cat /sys/bus/virtio/drivers/9pnet_virtio/virtio0/mount_tag").rstrip("\n\0") == "test_mount"
    guest.check("echo Hi Host >/mnt/from_guest")
    assert (export / "from_guest").read_text() == "Hi Host\n"
    assert guest.seconds_to_ready is not None
    assert guest.seconds_to_ready < guest.boot_seconds


def test_a_script_has_both_outputs_and_a_status(guest: RealGuest) -> None:
    assert guest.run("echo out; echo err >&2; exit 7").text == "out\nerr\n"
    assert guest.run("exit 7").status == 7
    assert guest.run("kill -9 $$").status == 128 + 9
    assert guest.run("") == guest.run("true")
    assert guest.run("cat").text == ""  # without stdin
    assert guest.check("hostname; pwd; tty || true") == "guest\n/\nnot a tty\n"
    assert guest.check("sleep 100 & echo $!").strip().isdigit()
    assert guest.check("false || echo next one") == "next one\n"


def test_output_is_exact(guest: RealGuest) -> None:
    nasty = bytes(range(256)) + b"PYVIRTFS-READY\n" + b"0123456789abcdef 0 0 5\n\r\n\n"
    octal = "".join(f"\\{byte:03o}" for byte in nasty)
    assert os.fsencode(guest.check(f"printf '{octal}'")) == nasty
    assert guest.check("printf 'no end of line'") == "no end of line"
    assert guest.check("head -c 300000 /dev/zero | tr '\\0' x") == "x" * 300000
    script = f"echo '{'ü' * 10000}'\n"
    assert guest.check(script) == "ü" * 10000 + "\n"
    with pytest.raises(ValueError, match="a script has at most 32768 bytes"):
        guest.run("#" * 33000)


def test_a_failing_script_is_shown(guest: RealGuest) -> None:
    with pytest.raises(
        RealGuestError, match=r"(?s)exit status 3 in the guest\n--- script:\necho why; exit 3\n.*output:\nwhy"
    ):
        guest.check("echo why; exit 3")
    assert guest.check("echo on") == "on\n"


def test_a_script_that_hangs_is_killed_and_explained(guest: RealGuest) -> None:
    with pytest.raises(RealGuestError, match=r"(?s)killed after 1 s.*output:\nbefore\n.*Show Blocked State"):
        guest.run("echo before; sleep 1000", timeout=1)
    assert guest.check("echo on") == "on\n"


def test_python(guest: RealGuest) -> None:
    program = """
        import ctypes, errno, fcntl, hashlib, json, mmap, os, pathlib, random, re, resource, shutil, signal, stat
        import struct, subprocess, sys, tempfile, termios, threading, time, traceback, typing, dataclasses, socket
        with open("/tmp/mapped", "wb+") as file:
            file.truncate(4096)
            with mmap.mmap(file.fileno(), 4096) as mapped:
                mapped[:2] = b"Hi"
        print(open("/tmp/mapped").read(2), "it's", "ü", hashlib.sha256(b"").hexdigest()[:8], sys.version_info[0])
        print(ctypes.CDLL(None).getpid() == os.getpid(), subprocess.check_output(["echo", "sub"]))
    """
    assert guest.python(program) == "Hi it's ü e3b0c442 3\nTrue b'sub\\n'\n"
    with pytest.raises(RealGuestError, match="ZeroDivisionError"):
        guest.python("1 / 0")


def test_lspci(guest: RealGuest) -> None:
    shown = guest.check("lspci -vvnn")
    assert "Unclassified device [0002]: Red Hat, Inc. Virtio filesystem [1af4:1009]" in shown
    assert "MSI-X: Enable+ Count=2" in shown
    assert "libkmod" not in shown


def test_monitor(guest: RealGuest) -> None:
    assert guest.qmp("query-status")["running"] is True
    assert guest.hmp("info version").startswith(guest.files.qemu_version)
    with pytest.raises(RealGuestError, match="no-such-command"):
        guest.qmp("no-such-command")


def test_reboots(guest: RealGuest) -> None:
    guest.check("touch /tmp/before")
    guest.reset()
    assert guest.run("[ -e /tmp/before ]").status == 1
    assert guest.check(f"{MOUNT}; cat /mnt/virtfs_file; touch /tmp/before") == "Hi Guest\n"
    guest.reboot()
    assert guest.run("[ -e /tmp/before ]").status == 1
    guest.check(MOUNT)
    with pytest.raises(RealGuestError, match="the guest has rebooted instead"):
        guest.run("reboot -f")
    with pytest.raises(RealGuestError, match="no script can run"):
        guest.run("true")
