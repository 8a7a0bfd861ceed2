"""What the options and drivers of an export are to a Linux guest: each is a device of one guest."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.realguest.machine import GuestFiles, RealGuest
from tests.realguest.served import Served, mount

MIB = 1 << 20
LIMIT = 4 * MIB
RATE = 1 << 20  # bytes written per second
IS_ROOT = os.geteuid() == 0
NEEDS_ROOT = pytest.mark.skipif(not IS_ROOT, reason="gives files away, mounts file systems")
MODELS = {
    "plain": "none",
    "limited": f"none,space_hard_limit={LIMIT},space_soft_limit={LIMIT // 2}",
    "throttled": f"none,throttling.bps-write={RATE}",
    "readonly": "none,readonly=on",
    **(
        {
            "translated": "passthrough,uidmap=0:70000:1+1000:80000:100,gidmap=0:70001:1+1000:90000:100",
            "squashed": "passthrough,squash=1234:5678",
            "spanning": "none",
            "forbidden": "none,multidevs=forbid",
        }
        if IS_ROOT
        else {}
    ),
}
OTHERS = {"ram": "memory,size=2097152,nr_inodes=100", "synthetic": "synth"}


class Exports(NamedTuple):
    """A guest, and the folders behind its exports by mount tag; each is mounted at /mnt/TAG."""

    guest: RealGuest
    served: Served
    folders: dict[str, Path]

    def python(self, tag: str, source: str) -> str:
        """Run a Python program of the guest in an export."""
        before = f"import errno, os\nos.umask(0)\nos.chdir('/mnt/{tag}')\n"
        return self.guest.python(before + textwrap.dedent(source))


@contextlib.contextmanager
def tmpfs(at: Path) -> Iterator[None]:
    """A file system of its own at a folder."""
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", at], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", at], check=True)


@pytest.fixture(scope="module")
def exports(guest_files: GuestFiles, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exports]:
    top = tmp_path_factory.mktemp("exports")
    folders = {tag: top / tag for tag in MODELS}
    for folder in folders.values():
        folder.mkdir()
        folder.chmod(0o777)
    with contextlib.ExitStack() as stack:
        for tag in folders.keys() & {"spanning", "forbidden"}:
            for name in ("one", "two"):
                (folders[tag] / name).mkdir()
                stack.enter_context(tmpfs(folders[tag] / name))
                (folders[tag] / name / "file").write_text(name)
        (folders["readonly"] / "file").write_text("of the host")
        with Served(guest_files, folders, security_model=MODELS, others=OTHERS) as served:
            guest = served.boot()
            for tag in (*MODELS, *OTHERS):
                mount(guest, tag, f"/mnt/{tag}")
            yield Exports(guest, served, folders)
            for tag in (*MODELS, *OTHERS):
                guest.check(f"umount /mnt/{tag}")


def test_memory(exports: Exports) -> None:
    """Files, links, renames, removed files; no more than its size, and all of it again afterwards."""
    told = exports.python(
        "ram",
        """
        os.makedirs("a/b")
        with open("a/file", "wb") as file:
            file.write(b"x" * 100_000)
        os.link("a/file", "a/b/second")
        os.symlink("second", "a/b/link")
        os.mkfifo("a/fifo", 0o640)
        os.rename("a/b", "c")
        held = os.open("c/link", os.O_RDWR)
        os.unlink("a/file")
        os.unlink("c/second")
        os.chown("c", 7, 8)
        print(sorted(os.listdir("a")), sorted(os.listdir("c")), os.stat("c").st_uid, oct(os.stat("a/fifo").st_mode))
        print(os.fstat(held).st_nlink, os.pread(held, 10, 99_995))
        os.close(held)
        written = 0
        try:
            with open("full", "wb", buffering=0) as file:
                while True:
                    written += file.write(bytes(65536))
        except OSError as error:
            print(errno.errorcode[error.errno], 1_900_000 < written <= 2_097_152)
        os.unlink("full")
        figures = os.statvfs(".")
        print(figures.f_blocks * figures.f_frsize, (figures.f_blocks - figures.f_bfree) * figures.f_frsize < 65536)
        """,
    )
    assert told.splitlines() == [
        "['fifo'] ['link'] 7 0o10640",
        "0 b'xxxxx'",
        "ENOSPC True",
        "2097152 True",
    ]


def test_synth(exports: Exports) -> None:
    """QEMU's fixtures, as Linux sees them."""
    assert exports.guest.check("ls /mnt/synthetic/ReadDirDir | wc -l") == "100\n"
    deepest = "/".join(f"WALK{depth}" for depth in range(16))
    assert exports.guest.check(f"cd /mnt/synthetic/{deepest} && pwd") == f"/mnt/synthetic/{deepest}\n"
    assert exports.guest.check("echo data >/mnt/synthetic/WRITE; cat /mnt/synthetic/LOPEN") == ""


def test_a_hard_limit(exports: Exports) -> None:
    """The guest gets ENOSPC long before the disk of the host is full, and goes on when it has removed something."""
    told = exports.python(
        "limited",
        """
        written = 0
        try:
            with open("full", "wb", buffering=0) as file:
                while True:
                    written += file.write(bytes(65536))
        except OSError as error:
            print(errno.errorcode[error.errno])
        print(written)
        os.unlink("full")
        with open("again", "wb") as file:
            file.write(bytes(1 << 20))
        os.unlink("again")
        """,
    )
    name, written = told.split()
    assert name == "ENOSPC"
    assert LIMIT - MIB < int(written) <= LIMIT
    assert "more than space_soft_limit" in exports.served.stderr


def test_throttled_writes(exports: Exports) -> None:
    """As many seconds as the rate says, while other requests are answered at once."""
    began = time.monotonic()
    exports.guest.check(f"head -c {3 * RATE} /dev/zero >/mnt/throttled/file & ls /mnt/throttled >/dev/null; wait")
    assert time.monotonic() - began >= 2.5  # not the first tenth of a second
    assert (exports.folders["throttled"] / "file").stat().st_size == 3 * RATE


def test_readonly(exports: Exports) -> None:
    told = exports.python(
        "readonly",
        """
        with open("file") as file:
            print(file.read())
        def attempt(call, *arguments):
            try:
                call(*arguments)
            except OSError as error:
                print(errno.errorcode[error.errno])
        attempt(open, "file", "r+")
        attempt(open, "new", "w")
        attempt(os.mkdir, "folder")
        attempt(os.symlink, "file", "link")
        attempt(os.link, "file", "second")
        attempt(os.rename, "file", "other")
        attempt(os.unlink, "file")
        attempt(os.chmod, "file", 0o777)
        attempt(os.truncate, "file", 0)
        attempt(os.utime, "file")
        attempt(os.setxattr, "file", "user.name", b"value")
        """,
    )
    assert told.splitlines() == ["of the host", *["EROFS"] * 11]
    assert [path.name for path in exports.folders["readonly"].iterdir()] == ["file"]


@NEEDS_ROOT
def test_id_maps(exports: Exports) -> None:
    folder = exports.folders["translated"]
    (folder / "of_host").touch()  # by a user who is in no range
    told = exports.python(
        "translated",
        """
        def show(name):
            found = os.stat(name)
            print(name, found.st_uid, found.st_gid)
        show("of_host")
        os.mkdir("folder")
        os.chown("folder", 1000, 1099)
        show("folder")
        for owner in (500, 1100, 70000):
            try:
                os.chown("folder", owner, -1)
            except OSError as error:
                print(errno.errorcode[error.errno])
        if not os.fork():
            os.setgid(1001)
            os.setuid(1002)
            os.mkdir("made")
            os._exit(0)
        os.wait()
        show("made")
        os.open("file", os.O_CREAT)
        show("file")
        """,
    )
    assert told.splitlines() == [
        "of_host 65534 65534",
        "folder 1000 1099",
        *["EINVAL"] * 3,
        "made 1002 1001",
        "file 0 0",
    ]
    owners = {path.name: (path.stat().st_uid, path.stat().st_gid) for path in folder.iterdir()}
    assert owners == {
        "of_host": (0, 0),
        "folder": (80000, 90099),
        "made": (80002, 90001),
        "file": (70000, 70001),
    }


@NEEDS_ROOT
def test_squash(exports: Exports) -> None:
    exports.guest.check("cd /mnt/squashed; mkdir folder; echo x >folder/file; ln -s file folder/link; chown 7:8 folder")
    folder = exports.folders["squashed"] / "folder"
    for path in (folder, folder / "file", folder / "link"):
        assert (path.lstat().st_uid, path.lstat().st_gid) == (1234, 5678)


@NEEDS_ROOT
def test_file_systems_below_the_export(exports: Exports) -> None:
    """Files of two tmpfs have equal inode numbers on the host, and are two files to the guest."""
    one, two = (exports.folders["spanning"] / name / "file" for name in ("one", "two"))
    assert one.stat().st_ino == two.stat().st_ino
    look = "cd /mnt/spanning; stat -c %i one/file two/file; cat one/file two/file"
    first, second, text = exports.guest.check(look).split()
    assert first != second
    assert text == "onetwo"
    assert exports.guest.check(look).split()[:2] == [first, second]
    told = exports.python(
        "spanning",
        """
        try:
            os.rename("one/file", "two/other")
        except OSError as error:
            print(errno.errorcode[error.errno])
        """,
    )
    assert told.strip() == errno.errorcode[errno.EXDEV]


@NEEDS_ROOT
def test_forbidden_file_systems(exports: Exports) -> None:
    found = exports.guest.run("cd /mnt/forbidden; echo *; ls one")
    assert found.text.splitlines() == ["one two", "ls: one: No such device"]
    assert found.status


@contextlib.contextmanager
def other_version(exports: Exports, version: str) -> Iterator[Path]:
    """Inside of the block, /mnt/plain is mounted with another version of the protocol; a folder of its own in there."""
    folder = exports.folders["plain"] / version
    folder.mkdir(exist_ok=True)
    folder.chmod(0o777)
    exports.guest.check("umount /mnt/plain")  # a device has one client
    try:
        exports.guest.check(f"mount -t 9p -o trans=virtio,version={version},msize=65536 plain /mnt/plain")
        try:
            yield folder
        finally:
            exports.guest.check("umount /mnt/plain")
    finally:
        mount(exports.guest, "plain", "/mnt/plain")


@pytest.mark.parametrize("version", ["9p2000.u", "9p2000"])
def test_the_older_dialects(version: str, exports: Exports) -> None:
    """Linux's own client for them, on the virtio device."""
    with other_version(exports, version) as folder:
        told = exports.guest.check(
            f"""
            set -e
            cd /mnt/plain/{version}
            head -c 300000 /dev/urandom >/tmp/data
            cp /tmp/data file
            cmp /tmp/data file
            mkdir folder
            for number in $(seq 200); do echo $number >folder/$number; done
            mv file renamed
            echo more >>renamed
            truncate -s 100 folder/1
            chmod 751 folder
            touch -d '2001-02-03 04:05:06' renamed
            rm folder/2
            mkdir -p deep/er
            mv deep moved
            rmdir moved/er moved
            ls folder | wc -l
            stat -c '%s %a %Y' renamed folder/1 | cut -d' ' -f 1,2
            date -r renamed +%Y
            cat folder/200
            """
        )
    assert told.split() == ["199", "300005", "644", "100", "644", "2001", "200"]
    assert sorted(path.name for path in folder.iterdir()) == ["folder", "renamed"]
    assert (folder / "renamed").stat().st_size == 300_005
    assert (folder / "folder").stat().st_mode & 0o7777 == 0o751
    assert (folder / "folder" / "1").stat().st_size == 100
    assert len(list((folder / "folder").iterdir())) == 199


def test_what_only_9p2000_u_has(exports: Exports) -> None:
    with other_version(exports, "9p2000.u") as folder:
        told = exports.guest.check(
            """
            set -e
            cd /mnt/plain/9p2000.u
            echo text >file
            ln -s file link
            ln -s 'no such' dangling
            cat link
            readlink dangling
            ln file second
            echo more >>second
            cat file
            mkfifo -m 640 fifo
            mv second file
            echo new >other
            mv other file
            cat file
            chmod 4755 file
            stat -c '%F %a %h' link fifo file
            """
        )
    assert told.splitlines() == [
        "text",
        "no such",
        "text",
        "more",
        "new",
        "symbolic link 777 1",
        "fifo 640 1",
        "regular file 4755 1",
    ]
    assert os.readlink(folder / "link") == "file"
    assert (folder / "fifo").is_fifo()
    if IS_ROOT:
        with other_version(exports, "9p2000.u"):
            exports.guest.check("cd /mnt/plain/9p2000.u; chown 12:13 file; mknod device c 1 3; test -c device")
        assert ((folder / "file").stat().st_uid, (folder / "file").stat().st_gid) == (12, 13)
        assert (folder / "device").stat().st_rdev == os.makedev(1, 3)


def test_more_files_than_descriptors(guest_files: GuestFiles, tmp_path: Path) -> None:
    """A guest with a cache holds a fid for each of 3000 files, where the server may open 200."""
    for number in range(3000):
        (tmp_path / f"{number}").write_text(f"{number}\n")
    served = Served(guest_files, {"many": tmp_path}, prefix=["prlimit", "--nofile=200:200"]).start()
    try:
        before = len(served.descriptors())
        guest = served.boot()
        mount(guest, "many", "/mnt", "msize=131072,cache=loose")
        told = guest.python(
            """
            import os
            os.chdir("/mnt")
            held = []
            for number in range(3000):
                os.stat(str(number))
                if number % 30 == 0:
                    held.append(os.open(str(number), os.O_RDWR))
            wrong = 0
            for number in range(3000):
                with open(str(number), "r+") as file:
                    wrong += file.read() != f"{number}\\n"
                    file.write("again\\n")
            for fd in held:
                os.write(fd, b"held")
                os.close(fd)
            print(wrong)
            """,
            timeout=300,
        )
        assert told == "0\n"
        assert 100 < len(served.descriptors()) < 200
        guest.check("umount /mnt")
        guest.close()
        deadline = time.monotonic() + 10
        # What it opens file handles by stays open, and what wakes it.
        while len(served.descriptors()) > before + 2:
            assert time.monotonic() < deadline, served.descriptors()
            time.sleep(0.05)
        served.stop()
    finally:
        served.abandon()
    for number in range(3000):
        expected = f"{number}\nagain\n"
        assert (tmp_path / f"{number}").read_text() == ("held" + expected[4:] if number % 30 == 0 else expected)
