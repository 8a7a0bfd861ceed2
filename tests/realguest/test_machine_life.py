"""How real guests start and end, and which root file system they have; with QEMU's own `-virtfs` device."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tests.realguest.conftest import Boot
from tests.realguest.machine import GuestFiles, RealGuest, RealGuestError


def virtfs(folder: Path, tag: str = "test_mount") -> list[str]:
    return ["-virtfs", f"local,path={folder},mount_tag={tag},security_model=none"]


def processes_below(folder: str) -> list[str]:
    """The command lines of processes that name a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if folder in text:
            found.append(text)
    return found


def wait_until_none_is_below(folder: str) -> None:
    """What has been killed and is nobody's child takes a moment."""
    deadline = time.monotonic() + 10
    while found := processes_below(folder):
        assert time.monotonic() < deadline, found
        time.sleep(0.02)


@pytest.mark.parametrize("end", ["kill", "terminate", "close", "panic"])
def test_the_end(end: str, boot: Boot) -> None:
    guest = boot(machine="q35")
    folder = str(guest._folder)
    assert guest.pid == guest.qemu_pid
    assert processes_below(folder)
    if end == "panic":
        with pytest.raises(
            RealGuestError, match=r"(?s)QEMU has ended with status 0.*Kernel panic - not syncing: sysrq"
        ):
            guest.run("echo c >/proc/sysrq-trigger; sleep 10")
    else:
        getattr(guest, end)()
    if end != "close":
        assert guest.wait() == {"kill": -signal.SIGKILL}.get(end, 0)
        with pytest.raises(RealGuestError):
            guest.run("true")
    guest.close()
    guest.close()
    wait_until_none_is_below(folder)
    assert not os.path.exists(folder)
    assert not guest.running


def test_wrong_arguments(guest_files: GuestFiles) -> None:
    with pytest.raises(
        RealGuestError, match=r"(?s)QEMU has ended with status 1\n--- QEMU:\n.*-no-such-option: invalid"
    ):
        RealGuest(guest_files, ["-no-such-option"]).start()


def test_a_guest_that_does_not_boot(guest_files: GuestFiles) -> None:
    started = time.monotonic()
    with (
        pytest.raises(RealGuestError, match="the guest is not ready within 1 s"),
        RealGuest(guest_files, boot_seconds=1),
    ):
        pytest.fail("not reached")
    assert time.monotonic() - started < 30


def test_a_prefix(boot: Boot, tmp_path: Path) -> None:
    """A front end which does not exec, and has QEMU in a session of its own; it is killed, and QEMU with it."""
    front = tmp_path / "front"
    front.write_text('#!/bin/sh\necho front end: "$OF" >&2\n[ "$1" = -- ] && shift\nsetsid "$@"\nexit $(($? + 40))\n')
    front.chmod(0o755)
    guest = boot(prefix=[str(front), "--"], environment={"OF": "a test"})
    folder = str(guest._folder)
    assert "front end: a test" in guest.stderr
    assert guest.pid != guest.qemu_pid
    assert guest.check("echo on") == "on\n"
    os.kill(guest.pid, signal.SIGKILL)
    assert guest.wait() == -signal.SIGKILL
    guest.close()
    wait_until_none_is_below(folder)


def test_the_guest_ends_with_the_process_that_has_started_it(guest_files: GuestFiles, tmp_path: Path) -> None:
    program = f"""
        import dataclasses, os, signal, sys
        from tests.realguest.machine import GuestFiles, RealGuest
        guest = RealGuest({guest_files!r}).start()
        print(guest._folder, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], cwd=root, stdout=subprocess.PIPE, text=True, check=False
    )
    folder = done.stdout.strip()
    assert folder
    wait_until_none_is_below(folder)
    shutil.rmtree(folder)


@pytest.fixture
def root(guest_files: GuestFiles, tmp_path: Path) -> Path:
    """A root file system of nothing but busybox."""
    folder = tmp_path / "root"
    for name in ("bin", "dev", "proc", "sys", "tmp", "etc"):
        (folder / name).mkdir(parents=True)
    shutil.copy(guest_files.busybox, folder / "bin" / "busybox")
    applets = subprocess.run([guest_files.busybox, "--list"], stdout=subprocess.PIPE, text=True, check=True)
    for applet in set(applets.stdout.split()) - {"busybox"}:
        (folder / "bin" / applet).symlink_to("busybox")
    (folder / "etc" / "motd").write_text("from the host\n")
    return folder


ROOT = "root=rootfs rootfstype=9p rootflags=trans=virtio,version=9p2000.L,msize=131072 rw"


def test_root_on_9p(root: Path, boot: Boot) -> None:
    guest = boot(virtfs(root, "rootfs"), append=ROOT)
    assert guest.check("cat /etc/motd") == "from the host\n"
    assert "rootfs / 9p rw," in guest.check("cat /proc/mounts")
    guest.check("echo written >/etc/new")
    assert (root / "etc" / "new").read_text() == "written\n"


def test_root_on_9p_with_a_shell_prompt(guest_files: GuestFiles, root: Path) -> None:
    with contextlib.closing(
        RealGuest(guest_files, virtfs(root, "rootfs"), append=f"{ROOT} init=/bin/sh").start()
    ) as guest:
        guest.expect(rb"/ # ")
        guest.send(b"cat /etc/motd; echo $((40 + 2))\n")
        assert guest.expect(rb"from the host\r\n(\d+)\r\n.*/ # ")[1] == b"42"
