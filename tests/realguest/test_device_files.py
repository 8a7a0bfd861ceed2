"""What programs of a Linux guest do with files on a mount, and what the host sees of it; and the reverse."""

from __future__ import annotations

import fcntl
import hashlib
import os
import socket
import stat
import struct
import time
from pathlib import Path

import pytest

from tests.realguest.machine import RealGuest
from tests.realguest.served import interrupts, mounted, python

FLOCK = struct.Struct("hhqqi4x")  # struct flock of x86-64
MIB = 1 << 20


# Folders and names


@pytest.mark.parametrize("msize", [8192, 131072])
def test_a_folder_of_10_000_files(msize: int, guest: RealGuest, folder: Path) -> None:
    names = sorted(f"{number:05}-{'x' * (number % 60)}" for number in range(9_999))
    for name in names:
        os.close(os.open(folder / name, os.O_CREAT | os.O_WRONLY))
    (folder / "sub").mkdir()
    with mounted(guest, f"msize={msize}"):
        told = python(
            guest,
            folder,
            """
            import hashlib
            entries = [(entry.name, entry.is_file(follow_symlinks=False)) for entry in os.scandir(".")]
            names = sorted(name for name, is_file in entries if is_file)
            print(len(entries), len(names), len(set(names)), hashlib.sha256("\\n".join(names).encode()).hexdigest())
            print([name for name, is_file in entries if not is_file])
            """,
        )
    assert told == f"10000 9999 9999 {hashlib.sha256(chr(10).join(names).encode()).hexdigest()}\n['sub']\n"


def test_a_folder_that_the_guest_fills_and_empties(guest: RealGuest, folder: Path) -> None:
    with mounted(guest):
        python(guest, folder, "os.mkdir('many')\nfor i in range(500): open(f'many/{i}', 'w').close()")
        assert {path.name for path in (folder / "many").iterdir()} == {str(number) for number in range(500)}
        guest.check(f"rm -r /mnt/{folder.name}/many")  # it lists while it removes
        assert list(folder.iterdir()) == []


def test_names_that_are_not_utf_8(guest: RealGuest, folder: Path) -> None:
    here = os.fsencode(folder)
    os.close(os.open(here + b"/host-\xff\xfe-\n-name", os.O_CREAT | os.O_WRONLY))
    with mounted(guest):
        told = python(
            guest,
            folder,
            """
            print(os.listdir(b"."))
            with open(b"guest-\\xe4\\x80'\\"\\\\", "wb") as file:
                file.write(b"x")
            os.mkdir(b"\\xc0")
            os.symlink(b"\\xfd/\\xfc", b"\\xc0/link")
            os.rename(b"host-\\xff\\xfe-\\n-name", b"\\xc0/moved-\\x80")
            """,
        )
    assert told == f"{[b'host-' + bytes([255, 254]) + b'-' + bytes([10]) + b'-name']}\n"
    assert set(os.listdir(here)) == {b"guest-\xe4\x80'\"\\", b"\xc0"}
    assert set(os.listdir(here + b"/\xc0")) == {b"link", b"moved-\x80"}
    assert os.readlink(here + b"/\xc0/link") == b"\xfd/\xfc"


def test_errors_have_their_names(guest: RealGuest, folder: Path) -> None:
    with mounted(guest):
        told = python(
            guest,
            folder,
            """
            import errno
            os.makedirs("folder/sub")
            open("file", "w").close()
            for action in (
                lambda: open("none"),
                lambda: os.mkdir("folder"),
                lambda: os.rmdir("folder"),
                lambda: open("folder", "w"),
                lambda: open("file/below"),
                lambda: open("x" * 256, "w"),
                lambda: os.rename("folder", "folder/sub/below"),
                lambda: os.open("file", os.O_CREAT | os.O_EXCL),
                lambda: os.readlink("file"),
                lambda: os.link("none", "other"),
            ):
                try:
                    action()
                    print("nothing", end=" ")
                except OSError as error:
                    print(errno.errorcode[error.errno], end=" ")
            """,
        )
    expected = "ENOENT EEXIST ENOTEMPTY EISDIR ENOTDIR ENAMETOOLONG EINVAL EEXIST EINVAL ENOENT"
    assert told.split() == expected.split()


# Objects and attributes


def test_unlinked_and_renamed_while_open(guest: RealGuest, folder: Path) -> None:
    with mounted(guest):
        told = python(
            guest,
            folder,
            """
            gone = open("gone", "w+b", buffering=0)
            gone.write(b"before")
            os.unlink("gone")
            print(os.path.exists("gone"), os.fstat(gone.fileno()).st_nlink)
            gone.write(b" and after")
            gone.seek(0)
            print(gone.read().decode(), os.fstat(gone.fileno()).st_size)
            gone.truncate(3)
            os.fchmod(gone.fileno(), 0o640)
            print(os.pread(gone.fileno(), 100, 0).decode(), oct(os.fstat(gone.fileno()).st_mode))
            with open("gone", "w") as other:  # the same name, another file
                other.write("new")
            print(os.pread(gone.fileno(), 100, 0).decode())

            os.mkdir("old")
            moved = open("old/file", "w+b", buffering=0)
            moved.write(b"1")
            os.rename("old/file", "old/renamed")
            moved.write(b"2")
            os.rename("old", "new")
            moved.write(b"3")
            open("replaced", "w").close()
            os.rename("replaced", "new/renamed")
            moved.write(b"4")
            moved.seek(0)
            print(moved.read().decode(), os.path.getsize("new/renamed"), os.fstat(moved.fileno()).st_nlink)
            """,
        )
    assert told == "False 0\nbefore and after 16\nbef 0o100640\nbef\n1234 0 0\n"
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) == ["gone", "new", "new/renamed"]
    assert (folder / "gone").read_text() == "new"


def test_removed_and_renamed_by_the_host_while_open(guest: RealGuest, folder: Path) -> None:
    (folder / "file").write_text("content")
    with mounted(guest):
        guest.check(
            f"""
            cat >/tmp/program.py <<'END'
import os, time
os.chdir("/mnt/{folder.name}")
file = open("file", "r+b", buffering=0)
open("opened", "w").close()
while not os.path.exists("changed"):
    time.sleep(0.05)
print(file.read(), file.write(b"more"), os.path.exists("file"), sorted(os.listdir()))
END
            timeout 30 python3 -I -S /tmp/program.py >/tmp/output 2>&1 &
            """
        )
        wait_for(folder / "opened")
        (folder / "file").rename(folder / "renamed")
        (folder / "changed").touch()
        told = guest.check("wait; while ! [ -s /tmp/output ]; do sleep 0.1; done; cat /tmp/output", timeout=30)
        assert told.endswith("['changed', 'opened', 'renamed']\n"), told
        assert told.startswith("b'content' 4 "), told
    assert (folder / "renamed").read_text() == "contentmore"


def wait_for(path: Path, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path.name} does not come"
        time.sleep(0.02)


def test_extended_attributes(guest: RealGuest, folder: Path) -> None:
    file = folder / "file"
    file.touch()
    try:
        os.setxattr(file, "user.host", b"from the host")
    except OSError as error:
        pytest.skip(f"the temporary folder has no extended attributes: {error.strerror}")
    with mounted(guest):
        told = python(
            guest,
            folder,
            """
            import errno
            def refused(call, *arguments):
                try:
                    call(*arguments)
                    return "nothing"
                except OSError as error:
                    return errno.errorcode[error.errno]
            print(os.listxattr("file"), os.getxattr("file", "user.host"))
            os.setxattr("file", "user.guest", bytes(range(256)))
            os.setxattr("file", "user.empty", b"")
            os.setxattr("file", "user.large", b"x" * 2000)
            os.setxattr("file", "user.gone", b"x")
            os.setxattr("file", "user.host", b"changed", os.XATTR_REPLACE)
            os.removexattr("file", "user.gone")
            print(sorted(os.listxattr("file")))
            print(os.getxattr("file", "user.empty"), len(os.getxattr("file", "user.large")))
            print(refused(os.getxattr, "file", "user.gone"), refused(os.removexattr, "file", "user.gone"))
            print(refused(os.setxattr, "file", "user.host", b"", os.XATTR_CREATE))
            print(refused(os.setxattr, "file", "user.gone", b"", os.XATTR_REPLACE))
            os.mkdir("folder")
            os.setxattr("folder", "user.of.folder", b"1")
            """,
        )
    assert told.splitlines() == [
        "['user.host'] b'from the host'",
        "['user.empty', 'user.guest', 'user.host', 'user.large']",
        "b'' 2000",
        "ENODATA ENODATA",
        "EEXIST",
        "ENODATA",
    ]
    assert {name: os.getxattr(file, name) for name in os.listxattr(file)} == {
        "user.host": b"changed",
        "user.guest": bytes(range(256)),
        "user.empty": b"",
        "user.large": b"x" * 2000,
    }
    assert os.getxattr(folder / "folder", "user.of.folder") == b"1"


def ofd_lock(file: int, kind: int, start: int, nbytes: int) -> bool:
    """Whether a program of the host gets a lock."""
    try:
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, FLOCK.pack(kind, os.SEEK_SET, start, nbytes, 0))
    except BlockingIOError:
        return False
    return True


def test_locks_between_the_guest_and_a_program_of_the_host(guest: RealGuest, folder: Path) -> None:
    (folder / "file").write_bytes(bytes(100))
    held = os.open(folder / "file", os.O_RDWR)
    try:
        assert ofd_lock(held, fcntl.F_WRLCK, 10, 10)
        with mounted(guest):
            told = python(
                guest,
                folder,
                """
                import errno, fcntl
                file = open("file", "r+b")
                def lock(kind, start, nbytes):
                    try:
                        fcntl.lockf(file, kind | fcntl.LOCK_NB, nbytes, start)
                        return "granted"
                    except OSError as error:
                        return errno.errorcode[error.errno]
                print(lock(fcntl.LOCK_EX, 15, 1), lock(fcntl.LOCK_SH, 19, 10), lock(fcntl.LOCK_EX, 20, 10))
                print(lock(fcntl.LOCK_EX, 0, 10), lock(fcntl.LOCK_EX, 0, 100))
                """,
            )
            assert told == "EAGAIN EAGAIN granted\ngranted EAGAIN\n"
            guest.check(
                f"""
                cat >/tmp/program.py <<'END'
import fcntl, os, time
os.chdir("/mnt/{folder.name}")
file = open("file", "r+b")
fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 40)
fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB, 10, 60)
open("locked", "w").close()
while not os.path.exists("enough"):
    time.sleep(0.05)
END
                timeout 30 python3 -I -S /tmp/program.py >/tmp/output 2>&1 &
                """
            )
            wait_for(folder / "locked")
            assert not ofd_lock(held, fcntl.F_WRLCK, 45, 1)
            assert not ofd_lock(held, fcntl.F_RDLCK, 49, 10)
            assert ofd_lock(held, fcntl.F_RDLCK, 60, 10)
            assert not ofd_lock(held, fcntl.F_WRLCK, 60, 10)
            assert ofd_lock(held, fcntl.F_WRLCK, 30, 10)
            (folder / "enough").touch()
            assert guest.check("while pidof python3 >/dev/null; do sleep 0.1; done; cat /tmp/output", timeout=30) == ""
            assert ofd_lock(held, fcntl.F_WRLCK, 0, 100)  # they went with the program that had them
    finally:
        os.close(held)


def test_a_sparse_file(guest: RealGuest, folder: Path) -> None:
    with mounted(guest):
        told = python(
            guest,
            folder,
            """
            fd = os.open("sparse", os.O_RDWR | os.O_CREAT)
            os.pwrite(fd, b"far out", 5 << 30)
            os.ftruncate(fd, 6 << 30)
            status = os.fstat(fd)
            print(status.st_size, status.st_blocks, os.pread(fd, 100_000, 1 << 30) == bytes(100_000))
            print(os.pread(fd, 9, (5 << 30) - 1))
            """,
        ).split(maxsplit=3)
    status = (folder / "sparse").stat()
    assert status.st_size == 6 << 30
    assert status.st_blocks * 512 < MIB
    assert told == [str(6 << 30), str(status.st_blocks), "True", "b'\\x00far out\\x00'\n"]


def test_objects_of_all_kinds_and_their_attributes(guest: RealGuest, folder: Path) -> None:
    with mounted(guest):
        told = python(
            guest,
            folder,
            """
            import stat
            os.umask(0)
            with open("file", "w") as file:
                file.write("x")
            os.chmod("file", 0o4751)
            os.link("file", "hard")
            os.symlink("../target that is not there", "link")
            os.mkfifo("fifo", 0o640)
            os.mknod("socket", stat.S_IFSOCK | 0o600)
            os.mkdir("folder", 0o1777)
            os.utime("file", ns=(1_234_567_890_123_456_789, 987_654_321_987_654_321))
            os.utime("link", ns=(1_000_000_001, 2_000_000_002), follow_symlinks=False)
            with open("touched", "w") as file:
                os.utime(file.fileno())
            before = os.stat("touched").st_mtime_ns
            os.utime("touched")
            print(os.stat("touched").st_mtime_ns > before)
            print(os.readlink("link"), os.stat("file").st_nlink, os.stat("hard").st_ino == os.stat("file").st_ino)
            for name in ("file", "fifo", "socket", "folder", "link"):
                print(stat.filemode(os.lstat(name).st_mode), os.lstat(name).st_mtime_ns)
            """,
        ).splitlines()
        assert guest.check(f"cd /mnt/{folder.name}; cat fifo & echo through >fifo; wait") == "through\n"
    assert told[:2] == ["True", "../target that is not there 2 True"]
    modes = {name: stat.filemode((folder / name).lstat().st_mode) for name in os.listdir(folder)}
    assert modes == {
        "file": "-rwsr-x--x",
        "hard": "-rwsr-x--x",
        "touched": "-rw-rw-rw-",
        "fifo": "prw-r-----",
        "socket": "srw-------",
        "folder": "drwxrwxrwt",
        "link": "lrwxrwxrwx",
    }
    seen = {
        name: line.split() for name, line in zip(("file", "fifo", "socket", "folder", "link"), told[2:], strict=True)
    }
    assert {name: mode for name, (mode, _) in seen.items()} == {name: modes[name] for name in seen}
    assert {name: int(mtime) for name, (_, mtime) in seen.items()} == {
        name: (folder / name).lstat().st_mtime_ns for name in seen
    }
    status = (folder / "file").stat()
    # Linux sends whole seconds where a time is given.
    assert (status.st_atime_ns, status.st_mtime_ns) == (1_234_567_890_000_000_000, 987_654_321_000_000_000)
    assert status.st_nlink == 2
    assert (folder / "link").lstat().st_mtime_ns == 2_000_000_000
    assert os.readlink(folder / "link") == "../target that is not there"


def test_attributes_that_the_host_has_set(guest: RealGuest, folder: Path) -> None:
    (folder / "file").write_bytes(b"x" * 5000)
    os.chmod(folder / "file", 0o2705)
    os.utime(folder / "file", ns=(1_234_567_890_123_456_789, 987_654_321_987_654_321))
    names = ["mode", "ino", "nlink", "uid", "gid", "size", "blocks", "atime_ns", "mtime_ns", "ctime_ns"]
    status = (folder / "file").stat()
    with mounted(guest):
        told = python(guest, folder, f"s = os.stat('file')\nprint(*(getattr(s, 'st_' + name) for name in {names}))")
    seen = dict(zip(names, map(int, told.split()), strict=True))
    assert seen == {
        name: getattr(status, f"st_{name}") + 2 * (name == "ino") for name in names
    }  # as Linux numbers them


def test_a_socket_of_the_host_is_seen(guest: RealGuest, folder: Path) -> None:
    before = os.getcwd()
    with socket.socket(socket.AF_UNIX) as listening, mounted(guest):
        os.chdir(folder)
        try:
            listening.bind("socket")
        finally:
            os.chdir(before)
        assert guest.check(f"stat -c %F /mnt/{folder.name}/socket") == "socket\n"


def test_statfs(guest: RealGuest, folder: Path) -> None:
    with mounted(guest):
        told = python(
            guest,
            folder,
            """
            s = os.statvfs(".")
            print(s.f_bsize, s.f_blocks, s.f_bfree, s.f_bavail, s.f_files, s.f_ffree, s.f_namemax)
            """,
        )
    bsize, blocks, bfree, bavail, files, ffree, namemax = map(int, told.split())
    host = os.statvfs(folder)
    assert (files, namemax) == (host.f_files, host.f_namemax)
    assert (bsize, blocks) == (host.f_bsize, host.f_blocks)
    for seen, now in ((bfree, host.f_bfree), (bavail, host.f_bavail)):
        assert abs(seen * bsize - now * host.f_bsize) < 1 << 30  # others are at work, too
    assert abs(ffree - host.f_ffree) < 100_000


# The driver


def test_the_driver_leaves_the_device_and_takes_it_again(guest: RealGuest, folder: Path) -> None:
    (folder / "file").write_text("still here\n")
    address = guest.check("basename $(readlink -f /sys/bus/virtio/drivers/9pnet_virtio/virtio0/..)").strip()
    with mounted(guest):
        pass
    guest.check(f"cd /sys/bus/pci/drivers/virtio-pci; echo {address} >unbind; echo {address} >bind")
    with mounted(guest):
        assert guest.check(f"cat /mnt/{folder.name}/file") == "still here\n"
    assert interrupts(guest)["virtio0-requests"][0] > 0
