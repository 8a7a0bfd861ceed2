"""QEMU's own device and this one on the same folders: what one keeps beside the objects of a guest, the other reads.

Both are in one guest. Each security model has a folder of the host, which both export. What is not equal is in
`test_what_differs`, and nowhere else.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import socket
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.realguest import tree
from tests.realguest.machine import GuestFiles, RealGuest
from tests.realguest.served import Served

IS_ROOT = os.geteuid() == 0
MAPPED = ("mapped-xattr", "mapped-file")
MODELS = (*MAPPED, *(["none", "passthrough"] if IS_ROOT else []))  # the latter need to give files away
SIDES = ("theirs", "ours")
GIVEN = ",fmode=0640,dmode=0750"
HOST_MODES = {"": {"0o100600", "0o40700"}, GIVEN: {"0o100640", "0o40750"}}
METADATA = b".virtfs_metadata"
MOUNT = "trans=virtio,version=9p2000.L,msize=131072,posixacl,access=client"


class Pair(NamedTuple):
    """A guest with QEMU's device and with this one, and the folders of the host that both export, by model."""

    guest: RealGuest
    folders: dict[str, Path]
    modes: dict[str, str]  # fmode and dmode that were given

    def run(self, *steps: tuple[str, str, str, str]) -> list[Any]:
        """Steps of `tree`, each with the model and the side, and the name of a folder below it."""
        calls = [(action, f"/mnt/{model}-{side}/{name}") for action, model, side, name in steps]
        program = f"{inspect.getsource(tree)}\nmain(*{calls!r})\n"
        results: list[Any] = json.loads(self.guest.python(program, timeout=240))
        return results

    def folder(self, model: str, name: str) -> Path:
        """A new folder of the host, with what the host says of it."""
        path = self.folders[model] / name
        path.mkdir()
        path.chmod(0o755)
        return path


@contextlib.contextmanager
def pair(files: GuestFiles, folder: Path, modes: dict[str, str]) -> Iterator[Pair]:
    """Both devices in a guest, for each of the models."""
    folders = {model: folder / model for model in modes}
    arguments: list[str] = []
    for number, (model, path) in enumerate(folders.items()):
        path.mkdir()
        try:
            os.setxattr(path, "user.probe", b"x")
        except OSError as error:
            pytest.skip(f"the temporary folder has no extended attributes: {error.strerror}")
        os.removexattr(path, "user.probe")
        # QEMU takes fmode and dmode of a -virtfs, too, and does nothing with them.
        where = str(path).replace(",", ",,")
        arguments += ["-fsdev", f"local,id=f{number},path={where},security_model={model}{modes[model]}"]
        arguments += ["-device", f"virtio-9p-pci,fsdev=f{number},mount_tag={model}-theirs"]
    exports = {f"{model}-ours": path for model, path in folders.items()}
    security = {f"{model}-ours": f"{model}{given}" for model, given in modes.items()}
    with Served(files, exports, security_model=security) as served:
        guest = served.boot(*arguments)
        tags = " ".join(f"{model}-{side}" for model in modes for side in SIDES)
        guest.check(f"for tag in {tags}; do mkdir -p /mnt/$tag && mount -t 9p -o {MOUNT} $tag /mnt/$tag || exit; done")
        yield Pair(guest, folders, modes)
        guest.check("umount /mnt/*")
        assert "damaged" not in served.stderr  # it says so of metadata that make no sense


@pytest.fixture(scope="module")
def both(guest_files: GuestFiles, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    modes = {model: GIVEN if model == "mapped-file" else "" for model in MODELS}
    with pair(guest_files, tmp_path_factory.mktemp("formats"), modes) as made:
        yield made


def on_host(folder: Path) -> dict[bytes, dict[str, Any]]:
    """All that the host has of a folder, but times and numbers."""
    top = os.fsencode(folder)
    found = {}
    for where, folders, files in os.walk(top):
        for name in (b".", *folders, *files):
            path = os.path.join(where, name)
            status = os.lstat(path)
            fields: dict[str, Any] = {"mode": oct(status.st_mode), "owner": (status.st_uid, status.st_gid)}
            fields["links"] = status.st_nlink
            fields["attributes"] = {
                key: os.getxattr(path, key, follow_symlinks=False)
                for key in sorted(os.listxattr(path, follow_symlinks=False))
            }
            if stat.S_ISREG(status.st_mode):
                with open(path, "rb") as file:
                    fields["content"] = file.read()
            found[os.path.relpath(path, top)] = fields
    return found


def unequal(one: dict[Any, Any], other: dict[Any, Any]) -> dict[Any, Any]:
    """What is in only one of two, or has another value there."""
    missing = "missing"
    return {
        key: (one.get(key, missing), other.get(key, missing))
        for key in {**one, **other}
        if one.get(key, missing) != other.get(key, missing)
    }


def check_model(both: Pair, model: str) -> None:
    """Two folders, each made with one device and changed with the other, are the same for all who look at them."""
    theirs, ours = both.folder(model, "theirs"), both.folder(model, "ours")
    made = both.run(*(("make", model, side, side) for side in SIDES))
    assert unequal(*made) == {}
    assert len(made[0]) > 100
    assert sum(result == "done" for result in made[0].values()) > 80
    before = on_host(theirs)
    assert unequal(before, on_host(ours)) == {}
    # Below `a` there are ACLs of the host in mapped-file, which change modes.
    modes = {fields["mode"] for path, fields in before.items() if path[:2] in {b"f/", b"s/"} and METADATA not in path}
    assert modes == HOST_MODES[both.modes[model]]

    changed = both.run(("change", model, "ours", "theirs"), ("change", model, "theirs", "ours"))
    assert unequal(*changed) == {}
    assert {label for label, result in changed[0].items() if result != "done"} == {"rename a file onto a folder"}
    assert unequal(on_host(theirs), on_host(ours)) == {}

    views = both.run(*(("show", model, reader, writer) for writer in SIDES for reader in SIDES))
    for view in views[1:]:
        assert unequal(views[0], view) == {}
    assert len(views[0]) > 90
    check_view(views[0])


def check_view(view: dict[str, Any]) -> None:
    """Some of what was made and changed is as it should be: the two may not be wrong alike."""

    def is_so(path: str, mode: str, uid: int, gid: int, **more: Any) -> None:
        found = view[path]
        assert (found["mode"], found["owner"]) == (mode, [uid, gid]), path
        assert {key: found[key] for key in more} == more, path

    is_so("./f/file-7777", "-rwsrwsrwt", 0, 0, size=4)
    is_so("./f/owned-4294967294", "-rwxr-xr-x", 4294967294, 77)
    is_so("./f/owned-2147483648", "-rwxr-xr-x", 1 << 31, 4294967294)
    is_so("./f/truncated", "-rwsrwsrwx", 0, 0, size=4321)
    is_so(f"./f/{tree.LONG}", "-rw-r--r--", 0, 0, size=255)
    is_so(f"./f/{tree.ODD}", "-rw-r--r--", 0, 0)
    is_so("./f/owned-folder/below", "drwxrwsrwx", 0, 1001)
    is_so("./f/everybody/user", "-rw-r-----", 1000, 1001)
    is_so("./f/everybody/folder", "drwxr-s---", 1000, 1001)
    is_so("./f/everybody/link", "lrwxrwxrwx", 1000, 1001, target="user")
    is_so("./s/device-disk", "brw----r--", 3, 6, device=[8, 17])
    is_so("./s/device-minor", "brw-rw----", 0, 0, device=[259, 0xFFFFF])
    is_so("./s/device-most", "crw-rw----", 0, 0, device=[0xFFF, 0xFFFFE])
    is_so("./s/fifo", "p--s--s--t", 0, 0, device=[0, 0])
    is_so("./s/socket", "srwxr-xr-x", 0, 0)
    is_so("./s/link-1", "lrwxrwxrwx", 1000, 2000, target="/absolute/../and dangling", links=2)
    is_so("./s/link-5", "lrwxrwxrwx", 0, 0, target="\udcfe\udcff\n")
    is_so("./n/deep/er/three", "-rwxr-x---", 23, 24, links=3)
    is_so("./n/second", "-rw--w--w-", 0, 0, links=1)
    is_so("./n/reborn", "-rw-------", 0, 0, size=5)
    is_so("./c/chown", "-rwxr-xr--", 4294967294, 1 << 31)
    is_so("./c/disk", "b--x-w--wx", 0, 0, device=[259, 0xFFFFF])
    is_so("./c/folder/again/inside", "-rw---Sr--", 0, 0)
    is_so("./c/both", "--ws-w---x", 0, 0, links=2)
    is_so("./c/link-chown", "lrwxrwxrwx", 0, 62)
    is_so("./c/emptied", "---xrwxrwx", 0, 0, size=3)
    acl = tree.ACL.hex()
    assert view["./a/xattrs"]["attributes"] == {"system.posix_acl_access": acl, "user.guest": b"2".hex()}
    assert view["./a/xattrs-folder/folder"]["attributes"].keys() == {
        "system.posix_acl_access",
        "system.posix_acl_default",
    }
    assert {"user.guest": b"2".hex(), "user.other": b"3".hex()} == view["./c/write"]["attributes"]


@pytest.mark.parametrize("model", MAPPED)
def test_what_one_has_written_the_other_reads_and_changes(model: str, both: Pair) -> None:
    check_model(both, model)


@pytest.mark.slow
def test_the_same_with_other_modes_on_the_host(guest_files: GuestFiles, tmp_path: Path) -> None:
    modes = {"mapped-xattr": GIVEN, "mapped-file": ""}
    with pair(guest_files, tmp_path, modes) as other:
        for model in modes:
            check_model(other, model)


def kept_of_root(root: Path) -> dict[str, bytes]:
    """What is kept of the root of an export, which is removed."""
    found = {name: os.getxattr(root, name) for name in os.listxattr(root)}
    for name in found:
        os.removexattr(root, name)
    file = root / ".virtfs_metadata_root"
    if file.exists():
        found[file.name] = file.read_bytes()
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        file.unlink()
    return found


@pytest.mark.parametrize("model", MAPPED)
def test_the_root_of_an_export(model: str, both: Pair) -> None:
    root = both.folders[model]
    look = f"cd /mnt; stat -c '%a %u %g' {model}-theirs {model}-ours"
    kept = []
    for side in SIDES:
        assert len(set(both.guest.check(look).splitlines())) == 1
        assert both.guest.check(f"chown 1000:1001 /mnt/{model}-{side}; {look}") == (
            f"{stat.S_IMODE(root.stat().st_mode):o} 1000 1001\n" * 2
        )
        assert both.guest.check(f"chmod 3751 /mnt/{model}-{side}; {look}") == "3751 1000 1001\n" * 2
        kept.append(kept_of_root(root))
    assert kept[0] == kept[1]
    assert kept[0]


@pytest.mark.parametrize("model", MAPPED)
def test_a_plain_folder_of_the_host(model: str, both: Pair) -> None:
    folder = both.folder(model, "plain")
    for mode in (0o400, 0o4755, 0o2640, 0o1777):
        (folder / f"file-{mode:o}").write_text("x" * mode)
        (folder / f"file-{mode:o}").chmod(mode)
        (folder / f"folder-{mode:o}").mkdir()
        (folder / f"folder-{mode:o}").chmod(mode | 0o700)
    os.link(folder / "file-400", folder / "folder-1777" / "linked")
    (folder / "link").symlink_to("file-400")
    (folder / "dangling").symlink_to("/no/such/thing")
    os.mkfifo(folder / "fifo", 0o620)
    with socket.socket(socket.AF_UNIX) as listening, contextlib.chdir(folder):
        listening.bind("socket")
    os.setxattr(folder / "file-4755", "user.host", b"value")
    if IS_ROOT:
        os.chown(folder / "file-2640", 1 << 31, 4294967294)
        os.mknod(folder / "device", stat.S_IFCHR | 0o640, os.makedev(259, 0xFFFFF))
    (folder / "partly").touch(0o644)
    (folder / "partly-mode").touch(0o644)
    if model == "mapped-xattr":
        os.setxattr(folder / "partly", "user.virtfs.uid", struct.pack("<I", 7))
        os.setxattr(folder / "partly-mode", "user.virtfs.mode", struct.pack("<I", stat.S_IFIFO | 0o111))
    else:
        (folder / ".virtfs_metadata").mkdir()
        (folder / ".virtfs_metadata/partly").write_text("virtfs.uid=7\n")
        (folder / ".virtfs_metadata/partly-mode").write_text(f"virtfs.mode={stat.S_IFIFO | 0o111}\n")
    before = on_host(folder)
    theirs, ours = both.run(*(("show", model, side, "plain") for side in SIDES))
    assert unequal(theirs, ours) == {}
    assert (ours["./link"]["target"], ours["./dangling"]["target"]) == ("file-400", "/no/such/thing")
    assert ours["./partly"]["owner"] == [7, (folder / "partly").stat().st_gid]
    assert ours["./partly-mode"]["mode"] == "p--x--x--x"
    assert ours["./file-2640"]["mode"] == "-rw-r-S---"
    assert on_host(folder) == before  # looking changes nothing


@pytest.mark.parametrize("model", MAPPED)
def test_what_one_changes_while_the_other_has_it_open(model: str, both: Pair) -> None:
    both.folder(model, "open")
    told = both.guest.python(
        f"""
        import os
        os.umask(0)
        sides = [f"/mnt/{model}-{{side}}/open" for side in ("theirs", "ours")]
        rounds = [(maker, *pair) for maker in sides for pair in (sides, sides[::-1])]
        for number, (maker, one, other) in enumerate(rounds):
            os.close(os.open(f"{{maker}}/{{number}}", os.O_CREAT))
            held = os.open(f"{{one}}/{{number}}", os.O_RDONLY)
            for mode, uid, gid in ((0o640, 5, 6), (0o7701, 4294967294, 1 << 31)):
                os.chown(f"{{other}}/{{number}}", uid, gid)
                os.chmod(f"{{other}}/{{number}}", mode)
                seen = os.fstat(held)
                print(oct(seen.st_mode), seen.st_uid, seen.st_gid)
                os.fchmod(held, mode ^ 0o070)
                os.fchown(held, -1, 7)
                seen = os.stat(f"{{other}}/{{number}}")
                print(oct(seen.st_mode), seen.st_uid, seen.st_gid)
            os.close(held)
        """
    )
    changed = ["0o100640 5 6", "0o100630 5 7", "0o107701 4294967294 2147483648", "0o101771 4294967294 7"]
    assert told.splitlines() == changed * 4


@pytest.mark.parametrize("model", MODELS)
def test_set_id_bits(model: str, both: Pair) -> None:
    for side in SIDES:
        both.folder(model, f"set-ids-{side}").chmod(0o777)
    theirs, ours = both.run(*(("set_ids", model, side, f"set-ids-{side}") for side in SIDES))
    assert unequal(theirs, ours) == {}
    if IS_ROOT or model in MAPPED:  # else the file has another owner
        cleared = {
            f"{action} 6777 1000" for action in ("write", "truncate", "open to truncate", "chown", "chown to none")
        }
        cleared |= {"chown 6777 0", "chown to none 6777 0"}
        assert ours == {name: f"done {'777' if name in cleared else name.split()[-2]}" for name in ours}
        assert len(ours) == 20


@pytest.mark.parametrize("model", MAPPED)
def test_what_differs(model: str, both: Pair) -> None:
    folders = [both.folder(model, f"differ-{side}") for side in SIDES]
    theirs, ours = both.run(*(("differ", model, side, f"differ-{side}") for side in SIDES))
    assert set(ours.values()) - {str(os.makedev(0xFFF, 0xFFFFF))} == {"done"}
    expected = {
        # To set an empty value is what Linux sends to remove an attribute; QEMU does that without looking at the flags.
        "which is there": ("ENODATA", "done"),
    }
    if model == "mapped-file":
        # QEMU takes metadata that is left behind for something that the guest sees.
        expected["rename onto an emptied folder"] = "ENOTEMPTY", "done"
        # QEMU takes the number for none.
        expected["the last device"] = "0", str(os.makedev(0xFFF, 0xFFFFF))
    assert unequal(theirs, ours) == expected
    # QEMU keeps a device number of a regular file, too, if it was made by mknod; it means nothing.
    kept = [on_host(folder) for folder in folders]
    name = METADATA + b"/mknod"
    if model == "mapped-file":
        assert kept[0][name]["content"] == kept[1][name]["content"] + b"virtfs.rdev=0\n"
    else:
        assert kept[0][b"mknod"]["attributes"].pop("user.virtfs.rdev") == bytes(8)
        assert kept[0][b"mknod"] == kept[1][b"mknod"]
