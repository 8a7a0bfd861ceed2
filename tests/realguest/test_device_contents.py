"""What a Linux guest writes is what the host reads, and the reverse: in each cache mode, whole trees too."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import struct
import textwrap
from pathlib import Path

import pytest

from tests.realguest.machine import GuestFiles, RealGuest
from tests.realguest.served import Served, differences, mounted, python, sha256

FLOCK = struct.Struct("hhqqi4x")  # struct flock of x86-64
MIB = 1 << 20


QUICK_CONTENTS = [
    ("msize=8192,cache=none", 5 * MIB, 2 * MIB),
    ("msize=131072,cache=none", 5 * MIB, 2 * MIB),
    ("msize=512000,cache=none", 5 * MIB, 2 * MIB),
    ("msize=131072,cache=loose", 5 * MIB, 2 * MIB),
    ("msize=512000,cache=mmap", 5 * MIB, 2 * MIB),
]
SLOW_CONTENTS = [
    (f"msize={msize},cache={cache}", 256 * MIB, 64 * MIB)
    for cache, msizes in {"none": (8192, 131072, 512000), "loose": (131072, 512000), "mmap": (131072, 512000)}.items()
    for msize in msizes
]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("options", "host_nbytes", "guest_nbytes"),
    [
        *(pytest.param(*case, id=case[0]) for case in QUICK_CONTENTS),
        *(pytest.param(*case, id=f"{case[0]},large", marks=pytest.mark.slow) for case in SLOW_CONTENTS),
    ],
)
def test_contents_are_the_same_on_both_sides(
    options: str, host_nbytes: int, guest_nbytes: int, guest: RealGuest, folder: Path
) -> None:
    """The host's file is hashed and copied by the guest; the guest's own is hashed on its way to the mount."""
    block = random.randbytes(MIB)
    with open(folder / "from_host", "wb") as file:
        # No two blocks are the same.
        file.writelines(block[number:] + block[:number] for number in range(host_nbytes // MIB))
        file.write(b"an odd end")
    with mounted(guest, options):
        assert f",{options.partition(',')[0]}," in guest.check("grep ' 9p ' /proc/mounts")
        here = f"cd /mnt/{folder.name}"
        told = guest.check(f"{here}; sha256sum <from_host; cp from_host copy", timeout=300)
        assert told.split()[0] == sha256(folder / "from_host")
        told = guest.check(
            f"{here}; head -c {guest_nbytes + 12345} /dev/urandom | tee from_guest | sha256sum", timeout=300
        )
    assert (folder / "copy").stat().st_size == host_nbytes + 10
    assert sha256(folder / "copy") == sha256(folder / "from_host")
    assert (folder / "from_guest").stat().st_size == guest_nbytes + 12345
    assert sha256(folder / "from_guest") == told.split()[0]


CACHES = [
    "none",
    pytest.param("loose", marks=pytest.mark.slow),
    "mmap",
]


@pytest.mark.parametrize("cache", CACHES)
def test_random_access(cache: str, guest: RealGuest, folder: Path) -> None:
    """Writes, reads and truncations at odd places do to a file what they do to one in the guest's RAM."""
    with mounted(guest, f"msize=131072,cache={cache}"):
        told = python(
            guest,
            folder,
            """
            import hashlib, random
            chance = random.Random(9)
            names = ["file", "/tmp/model"]
            files = [os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC) for name in names]
            for _ in range(300):
                action, at, nbytes = chance.random(), chance.randrange(400_000), chance.randrange(1, 70_000)
                if action < 0.5:
                    data = chance.randbytes(nbytes)
                    assert [os.pwrite(fd, data, at) for fd in files] == [nbytes] * 2
                elif action < 0.55:
                    for fd in files:
                        os.ftruncate(fd, at)
                else:
                    one, other = (os.pread(fd, nbytes, at) for fd in files)
                    assert one == other, (at, nbytes, len(one), len(other))
            print(hashlib.sha256(open("/tmp/model", "rb").read()).hexdigest())
            """,
        )
    assert sha256(folder / "file") == told.strip()


@pytest.mark.parametrize("cache", ["mmap", pytest.param("loose", marks=pytest.mark.slow)])
def test_a_mapping_that_is_written_to(cache: str, guest: RealGuest, folder: Path) -> None:
    content = random.randbytes(100_000)
    (folder / "mapped").write_bytes(content)
    with mounted(guest, f"msize=131072,cache={cache}"):
        python(
            guest,
            folder,
            """
            import mmap
            with open("mapped", "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
                before = mapped[4090:4110]
                mapped[4090:4110] = before[::-1]  # across two pages
                mapped[:5] = b"first"
                mapped[-4:] = b"last"
                mapped.flush()
            """,
        )
        expected = b"first" + content[5:4090] + content[4090:4110][::-1] + content[4110:-4] + b"last"
        assert (folder / "mapped").read_bytes() == expected  # msync(2) has sent it
    (folder / "mapped").write_bytes(content)
    with mounted(guest, f"msize=131072,cache={cache}"):
        told = python(
            guest,
            folder,
            """
            import hashlib, mmap
            with open("mapped", "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
                print(hashlib.sha256(mapped).hexdigest())
            """,
        )
    assert told.strip() == hashlib.sha256(content).hexdigest()


def test_mappings_without_a_cache(guest: RealGuest, folder: Path) -> None:
    """With cache=none Linux maps files for reading, and refuses mappings whose changes would have to be written."""
    content = random.randbytes(100_000)
    (folder / "mapped").write_bytes(content)
    with mounted(guest, "msize=131072,cache=none"):
        told = python(
            guest,
            folder,
            """
            import errno, hashlib, mmap
            with open("mapped", "r+b") as file:
                try:
                    mmap.mmap(file.fileno(), 0)
                except OSError as error:
                    print(errno.errorcode[error.errno])
                with mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE) as mapped:
                    print(hashlib.sha256(mapped).hexdigest())
                    mapped[:5] = b"first"
            """,
        )
    assert told.split() == ["EINVAL", hashlib.sha256(content).hexdigest()]
    assert (folder / "mapped").read_bytes() == content


@pytest.mark.parametrize("cache", CACHES)
def test_a_program_at_work(cache: str, guest: RealGuest, folder: Path) -> None:
    """It makes, appends, renames and removes; the host sees it at the latest after unmounting, and it a host's file."""
    with mounted(guest, f"msize=131072,cache={cache}"):
        told = guest.check(
            f"""
            cd /mnt/{folder.name}
            mkdir -p a/b/c
            echo one >a/b/c/file
            echo two >>a/b/c/file
            mv a/b/c/file a/moved
            rmdir a/b/c
            echo other >a/b/other
            mv a/b a/renamed
            cp a/moved a/copy
            rm a/copy
            cat a/moved a/renamed/other
            find . | sort
            """
        )
        assert told == "one\ntwo\nother\n.\n./a\n./a/moved\n./a/renamed\n./a/renamed/other\n"
    assert (folder / "a" / "moved").read_text() == "one\ntwo\n"
    assert sorted(path.name for path in folder.rglob("*")) == ["a", "moved", "other", "renamed"]
    (folder / "a" / "moved").write_text("from the host\n")
    with mounted(guest, f"msize=131072,cache={cache}"):
        assert guest.check(f"cat /mnt/{folder.name}/a/moved") == "from the host\n"


def test_many_programs_at_once(guest: RealGuest, folder: Path) -> None:
    """Requests that wait at the same time are not mixed up."""
    with mounted(guest):
        told = python(
            guest,
            folder,
            """
            import random, threading
            done = []
            def work(number):
                chance = random.Random(number)
                blocks = [chance.randbytes(chance.randrange(1, 100_000)) for _ in range(6)]
                fd = os.open(f"file{number}", os.O_RDWR | os.O_CREAT)
                for block in blocks:
                    assert os.write(fd, block) == len(block)
                    os.rename(f"file{number}", f"file{number}.new")
                    os.rename(f"file{number}.new", f"file{number}")
                content = b"".join(blocks)
                assert os.pread(fd, len(content), 0) == content
                assert os.stat(f"file{number}").st_size == len(content)
                done.append(number)
            threads = [threading.Thread(target=work, args=(number,)) for number in range(10)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            print(len(done))
            """,
        )
    assert told == "10\n"
    for number in range(10):
        chance = random.Random(number)
        blocks = [chance.randbytes(chance.randrange(1, 100_000)) for _ in range(6)]
        assert (folder / f"file{number}").read_bytes() == b"".join(blocks)


# A tree

HASH_OF_A_TREE = """
import hashlib, os
digest = hashlib.sha256()
for base, folders, files in os.walk({tree!r}):
    folders.sort()
    for name in sorted(files):
        path = os.path.join(base, name)
        digest.update(f"{{os.path.relpath(path, {tree!r})}} {{os.lstat(path).st_mode}}\\n".encode())
        digest.update(os.readlink(path).encode() if os.path.islink(path) else open(path, "rb").read())
print(digest.hexdigest())
"""


@pytest.mark.timeout(1500)
@pytest.mark.parametrize(
    "parts", [("net/ipv4", "net/sched", "crypto"), pytest.param((".",), marks=pytest.mark.slow)], ids=["part", "whole"]
)
def test_tar_of_a_kernel_module_tree(
    parts: tuple[str, ...], guest: RealGuest, guest_files: GuestFiles, folder: Path
) -> None:
    """Out: an archive is made on the mount, and unpacked there. In again: the result is put into the guest's RAM."""
    tree = folder / "tree"
    for part in parts:
        shutil.copytree(Path(guest_files.modules) / "kernel" / part, tree / part)
    count = sum(path.is_file() for path in tree.rglob("*"))
    assert count > 50
    with mounted(guest, "msize=512000"):
        here = f"cd /mnt/{folder.name}"
        guest.check(f"{here}; tar -C tree -cf out.tar .; mkdir out; tar -C out -xf out.tar", timeout=900)
        assert differences(tree, folder / "out") == []
        shutil.unpack_archive(folder / "out.tar", folder / "unpacked", filter="fully_trusted")
        assert differences(tree, folder / "unpacked") == []
        guest.check(f"{here}; rm -rf /tmp/in; mkdir /tmp/in; tar -C out -cf - . | tar -C /tmp/in -xf -", timeout=400)
        told = guest.python(HASH_OF_A_TREE.format(tree="/tmp/in"), timeout=200)
        guest.check("rm -r /tmp/in")
    digest = hashlib.sha256()
    for base, folders, files in os.walk(tree):
        folders.sort()
        for name in sorted(files):
            path = Path(base, name)
            digest.update(f"{path.relative_to(tree)} {path.lstat().st_mode}\n".encode())
            digest.update(path.read_bytes())
    assert told.strip() == digest.hexdigest()


@pytest.mark.parametrize("cache", ["none", "loose"])
def test_an_export_that_gets_full(cache: str, guest_files: GuestFiles, tmp_path: Path) -> None:
    """As a disk does it: df shows its size, a file ends with the last block, and gives it back."""
    export = tmp_path / "export"
    export.mkdir()
    space = MIB + 40960  # no multiple of what a message holds
    hard = os.stat(export).st_blocks * 512 + space
    full = f"""
        import os
        os.chdir("/mnt")
        s = os.statvfs(".")
        print(s.f_blocks * s.f_frsize - {hard}, s.f_bavail * s.f_frsize)
        f = os.open("file", os.O_CREAT | os.O_RDWR)
        os.write(f, b"a" * 4096)
        done = 4096
        try:
            while True:
                done += os.write(f, b"b" * 99_999)
                os.fsync(f)
        except OSError as error:
            print(error.errno == 28)
        os.pwrite(f, b"c" * 4096, 0)
        try:
            os.close(os.open("other", os.O_CREAT | os.O_RDWR))
        except OSError as error:
            print(error.errno == 28)
        os.close(f)
    """
    with Served(guest_files, {"test_mount": export}, security_model=f"none,space_hard_limit={hard}") as served:
        guest = served.boot()
        with mounted(guest, f"msize=131072,cache={cache}"):
            assert guest.python(textwrap.dedent(full)) == f"0 {space}\nTrue\nTrue\n"
            found = (export / "file").stat()
            # A file in more than four pieces takes ext4 one block to find them, as late as when it is written back.
            tree = found.st_blocks * 512 - found.st_size
            assert tree in {0, 4096}
            assert found.st_size in {space, space - tree}
            guest.check("rm /mnt/file && head -c 900000 /dev/zero >/mnt/other")
            assert (export / "other").stat().st_size == 900_000
