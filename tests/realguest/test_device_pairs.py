"""Several devices of one server in one guest, all busy at the same time."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.realguest.machine import GuestFiles, RealGuest
from tests.realguest.served import Served, interrupts, mount

TAGS = ("first", "second", "first_again")
NBYTES = 3 << 20
ROUNDS = 3


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    first, second = tmp_path_factory.mktemp("first"), tmp_path_factory.mktemp("second")
    return dict(zip(TAGS, (first, second, first), strict=True))


@pytest.fixture(scope="module")
def guest(guest_files: GuestFiles, folders: dict[str, Path]) -> Iterator[RealGuest]:
    """One guest with everything mounted."""
    with Served(guest_files, folders) as served:
        guest = served.boot(machine="q35", smp=2)
        for tag in TAGS:
            mount(guest, tag, f"/mnt/{tag}")
        yield guest
        guest.check("umount /mnt/*")


def test_each_mount_is_its_own_folder(guest: RealGuest, folders: dict[str, Path]) -> None:
    tags = guest.check(
        "cd /sys/bus/virtio/drivers/9pnet_virtio; for i in virtio*; do tr -d '\\0' <$i/mount_tag; echo; done"
    )
    assert tuple(tags.split()) == TAGS
    for tag in ("first", "second"):
        (folders[tag] / "who").write_text(f"{tag}\n")
    assert guest.check("cat /mnt/first/who /mnt/second/who /mnt/first_again/who") == "first\nsecond\nfirst\n"


def test_two_mounts_busy_at_the_same_time(guest: RealGuest, folders: dict[str, Path]) -> None:
    contents = {tag: os.urandom(NBYTES) for tag in ("first", "second")}
    for tag, content in contents.items():
        (folders[tag] / "source").write_bytes(content)
    before = [interrupts(guest, device)[f"{device}-requests"][0] for device in ("virtio0", "virtio1")]
    told = guest.check(
        f"""
        at() {{ read up idle </proc/uptime; echo "$up"; }}
        work() {{
            at
            for i in $(seq {ROUNDS}); do cp /mnt/$1/source /mnt/$1/copy$i || exit 1; done
            sha256sum /mnt/$1/copy* | cut -c -64 | uniq
            at
        }}
        work first >/tmp/first & one=$!
        work second >/tmp/second & two=$!
        wait $one && wait $two && cat /tmp/first /tmp/second
        """
    ).split()
    begun = [float(told[0]), float(told[3])]
    ended = [float(told[2]), float(told[5])]
    assert max(begun) < min(ended)  # both were at work then
    assert [told[1], told[4]] == [hashlib.sha256(content).hexdigest() for content in contents.values()]
    for tag, content in contents.items():
        for number in range(1, ROUNDS + 1):
            assert (folders[tag] / f"copy{number}").read_bytes() == content
    after = [interrupts(guest, device)[f"{device}-requests"][0] for device in ("virtio0", "virtio1")]
    expected = 2 * ROUNDS * NBYTES / 131072
    assert all(new - old >= expected for old, new in zip(before, after, strict=True))


def test_the_same_folder_twice(guest: RealGuest, folders: dict[str, Path]) -> None:
    """What one mount writes is read by the other, the objects are the same, and locks hold between them."""
    told = guest.python(
        """
        import errno, fcntl, os
        with open("/mnt/first/shared", "w") as file:
            file.write("from the first one\\n")
        print(open("/mnt/first_again/shared").read(), end="")
        one, two = (os.stat(f"/mnt/{tag}/shared") for tag in ("first", "first_again"))
        print(one.st_ino == two.st_ino, one.st_dev == two.st_dev)
        file = open("/mnt/first/shared", "r+")
        other = open("/mnt/first_again/shared", "r+")
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            fcntl.lockf(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            print(errno.errorcode[error.errno])
        fcntl.lockf(file, fcntl.LOCK_UN)
        fcntl.lockf(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.rename("/mnt/first_again/shared", "/mnt/first_again/renamed")
        print(file.read(), end="")
        file.close()  # Linux takes an open file's name for existing, without asking
        print(os.path.exists("/mnt/first/shared"))
        """
    )
    assert told == "from the first one\nTrue False\nEAGAIN\nfrom the first one\nFalse\n"
    assert (folders["first"] / "renamed").read_text() == "from the first one\n"
