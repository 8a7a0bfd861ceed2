"""A guest whose root file system is a Debian folder of the host."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.realguest import debian_root
from tests.realguest.machine import GuestFiles, RealGuest
from tests.realguest.served import Served

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

FLAGS = "trans=virtio,version=9p2000.L,msize=512000"
PROMPT = rb"root@guest:/\S*# "

PACKAGE = """
mkdir -p /tmp/package/DEBIAN /tmp/package/usr/share/test-package
cat >/tmp/package/DEBIAN/control <<END
Package: test-package
Version: 1.0
Architecture: all
Maintainer: nobody <nobody@example.invalid>
Description: a package
END
printf '#!/bin/sh\\necho configured >/etc/test-package\\n' >/tmp/package/DEBIAN/postinst
chmod 755 /tmp/package/DEBIAN/postinst
echo content >/tmp/package/usr/share/test-package/file
dpkg-deb --build /tmp/package /tmp/package.deb
dpkg --install /tmp/package.deb
"""


@pytest.fixture
def root(guest_files: GuestFiles, tmp_path: Path) -> Iterator[Path]:
    """A Debian root file system of this test's own."""
    folder = tmp_path / "root"
    debian_root.copy(guest_files.kernel, folder)
    yield folder
    debian_root.remove(folder)


def test_a_shell_prompt(guest_files: GuestFiles, root: Path) -> None:
    """The kernel's arguments are those that a person writes; bash is the first process."""
    with Served(guest_files, {"rootfs": root}, security_model="passthrough") as served:
        arguments = f"root=rootfs rw rootfstype=9p rootflags={FLAGS} init=/bin/bash"
        guest = RealGuest(
            guest_files,
            ["-object", "memory-backend-memfd,id=mem,size=512M,share=on", *served.arguments()],
            machine="q35,memory-backend=mem",
            append=arguments,
        )
        with contextlib.closing(guest.start()):
            guest.expect(PROMPT, 90)
            for command, expected in [
                (b"cat /proc/1/comm; readlink /proc/1/exe", rb"bash\r\n/usr/bin/bash\r\n"),
                (b"grep ' / ' /proc/mounts", rb"rootfs / 9p rw,\S*trans=virtio\S*"),
                (b". /etc/os-release; echo $PRETTY_NAME", rb"Debian GNU/Linux 13 \(trixie\)"),
                (b"id -un; echo from the guest >/root/made; sync", rb"root\r\n"),
            ]:
                guest.send(command + b"\n")
                guest.expect(expected, 60)
                guest.expect(PROMPT, 60)
    assert (root / "root" / "made").read_text() == "from the guest\n"


@pytest.mark.parametrize("cache", ["none", "loose"])
def test_a_debian_at_work(cache: str, guest_files: GuestFiles, root: Path) -> None:
    """What a system does to its own files: users, owners, packages; as the host sees it."""
    with Served(guest_files, {"rootfs": root}, security_model="passthrough") as served:
        guest = served.boot(
            machine="q35",
            append=f"root=rootfs rw rootfstype=9p rootflags={FLAGS},cache={cache}",
            boot_seconds=120,
        )
        line = guest.check("grep ' / ' /proc/mounts")
        assert line.startswith("rootfs / 9p rw,")
        assert ("cache=" in line) is (cache != "none")
        assert guest.check("dpkg --audit && perl -e 'print 6 * 7'", timeout=120) == "42"
        guest.check("useradd --create-home --shell /bin/bash somebody", timeout=120)
        made = "umask 027; echo mine >~/file; mkdir ~/folder; ln -s file ~/link; id -un; cat ~/file"
        assert guest.check(f"setpriv --reuid somebody --regid somebody --init-groups env HOME=/home/somebody "
                           f"sh -c '{made}'", timeout=60) == "somebody\nmine\n"  # fmt: skip
        assert guest.run("setpriv --reuid somebody --clear-groups --regid somebody cat /etc/shadow").status == 1
        assert "Setting up test-package (1.0)" in guest.check(PACKAGE, timeout=200)
        assert guest.check("dpkg-query -W -f '${Status}' test-package", timeout=60) == "install ok installed"
        assert guest.check("dpkg --verify test-package && dpkg --verify bash", timeout=60) == ""
        guest.check("chown 12345:54321 /home/somebody/folder; chmod 3775 /home/somebody/folder; sync")
    entry = next(line for line in (root / "etc/passwd").read_text().splitlines() if line.startswith("somebody:"))
    uid, gid = map(int, entry.split(":")[2:4])
    for name in ("file", "link"):
        status = os.lstat(root / "home/somebody" / name)
        assert (status.st_uid, status.st_gid) == (uid, gid)
    assert os.stat(root / "home/somebody/file").st_mode & 0o7777 == 0o640
    status = os.stat(root / "home/somebody/folder")
    assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (12345, 54321, 0o3775)
    assert (root / "etc/test-package").read_text() == "configured\n"
    assert (root / "usr/share/test-package/file").read_text() == "content\n"
    assert "Package: test-package\nStatus: install ok installed\n" in (root / "var/lib/dpkg/status").read_text()
