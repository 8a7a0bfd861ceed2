"""What a guest makes in a folder, changes there, and sees of it; runs in the guest, whose Python has few modules.

`main` prints JSON. Names and targets are text with surrogates for bytes that are not UTF-8.
"""

import contextlib
import errno
import itertools
import json
import os
import stat
import struct
import zlib
from collections.abc import Callable

LONG = "n" * 255
ODD = "space and\nnewline \\ '\"%s \udcff\udc80"
ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", tag, permissions, id_)
    for tag, permissions, id_ in (
        (0x01, 7, 0xFFFFFFFF),  # the user
        (0x02, 5, 1000),  # a user
        (0x04, 5, 0xFFFFFFFF),  # the group
        (0x08, 6, 4294967294),  # a group
        (0x10, 7, 0xFFFFFFFF),  # the mask
        (0x20, 1, 0xFFFFFFFF),  # others
    )
)
IDS = (0, 1, 1000, 65534, 1 << 31, 4294967294)
MODES = (0, 0o444, 0o1640, 0o2755, 0o4701, 0o7777)
DEVICES = {
    "null": (stat.S_IFCHR, 1, 3),
    "disk": (stat.S_IFBLK, 8, 17),
    "zero": (stat.S_IFCHR, 0, 0),
    "minor": (stat.S_IFBLK, 259, 0xFFFFF),
    "most": (stat.S_IFCHR, 0xFFF, 0xFFFFE),
}

Results = dict[str, str]


class Actions:
    """System calls, and how each has ended."""

    def __init__(self) -> None:
        self.results: Results = {}

    def __call__(self, label: str, action: Callable[..., object], *arguments: object, **options: object) -> None:
        try:
            action(*arguments, **options)
            result = "done"
        except OSError as error:
            result = errno.errorcode[error.errno or 0]
        assert label not in self.results, label
        self.results[label] = result


def new(name: str, content: bytes = b"", mode: int = 0o644) -> None:
    """A file."""
    descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    os.write(descriptor, content)
    os.close(descriptor)


def make_files(do: Actions) -> None:
    """Files of many modes and owners, made so and changed to that."""
    for mode in MODES:
        do(f"file {mode:o}", new, f"file-{mode:o}", b"%o" % mode, mode)
        do(f"mkdir {mode:o}", os.mkdir, f"folder-{mode:o}", mode)
        do(f"chmod {mode:o}", os.chmod, f"folder-{mode:o}", mode ^ 0o7070)
    for id_, group in itertools.pairwise((*IDS, 77)):
        new(f"owned-{id_}", b"x" * 100, 0o6755)
        do(f"chown {id_}", os.chown, f"owned-{id_}", id_, group)
    os.mkdir("owned-folder")
    do("chown folder", os.chown, "owned-folder", 1000, 1001)
    do("set-group-id of a folder", os.chmod, "owned-folder", 0o2770)
    new("owned-folder/in it")
    os.mkdir("owned-folder/below")
    os.mkdir("everybody")
    os.chown("everybody", -1, 1001)
    os.chmod("everybody", 0o3777)
    new("everybody/root", b"root")
    os.umask(0o027)
    os.seteuid(1000)
    do("file of a user", new, "everybody/user", b"user", 0o4666)
    do("folder of a user", os.mkdir, "everybody/folder", 0o777)
    do("link of a user", os.symlink, "user", "everybody/link")
    do("fifo of a user", os.mkfifo, "everybody/fifo")
    do("link by a user", os.link, "everybody/user", "everybody/another")
    do("rename by a user", os.rename, "everybody/fifo", "everybody/folder/fifo")
    do("chown by a user", os.chown, "everybody/user", 0, 0)
    do("chmod by a user", os.chmod, "everybody/root", 0)
    do("unlink by a user", os.unlink, "everybody/root")
    os.seteuid(0)
    os.umask(0)
    for label, uid, gid in (("user", 5, -1), ("group", -1, 6), ("neither", -1, -1)):
        new(f"chown-{label}", b"", 0o4711)
        do(f"chown {label} only", os.chown, f"chown-{label}", uid, gid)
    for name in (LONG, ODD, "-rf", "\udcc0", " ", "virtfs.uid=7"):
        do(f"name {name!r}", new, name, name.encode(errors="surrogateescape"))
    do("a name too long", new, LONG + "n")
    new("truncated", b"0123456789" * 1000, 0o6777)
    do("truncate", os.truncate, "truncated", 4321)
    new("longer", b"0123456789")
    do("truncate to more", os.truncate, "longer", 70_000)
    with open("again", "wb") as file:
        file.write(b"first" * 100)
    with open("again", "wb") as file:
        file.write(b"second")
    with open("at", "wb") as file:
        os.fchmod(file.fileno(), 0o4600)
        os.fchown(file.fileno(), 12, 13)
        os.pwrite(file.fileno(), b"far", 100_000)


def make_special(do: Actions) -> None:
    """Everything that is no regular file."""
    targets = (
        "target",
        "/absolute/../and dangling",
        "t" * 1000,
        ("1234567/" * 600)[:4000],
        "..",
        "\udcfe\udcff\n",
        "é",
    )
    for number, target in enumerate(targets):
        do(f"symlink {number}", os.symlink, target, f"link-{number}")
    new("target")
    do("chmod of a link", os.chmod, "link-0", 0o600)  # of its target
    do("chown of a link", os.lchown, "link-1", 1000, 2000)
    do("link of a link", os.link, "link-1", "link-1-again", follow_symlinks=False)
    do("symlink to nothing", os.symlink, "", "link-empty")
    do("symlink too long", os.symlink, "x" * 4095, "link-too-long")
    for name, (kind, major, minor) in DEVICES.items():
        do(f"device {name}", os.mknod, f"device-{name}", kind | 0o660, os.makedev(major, minor))
    do("chmod of a device", os.chmod, "device-disk", 0o4604)
    do("chown of a device", os.chown, "device-disk", 3, 6)
    do("fifo", os.mkfifo, "fifo", 0o620)
    do("fifo with a device", os.mknod, "fifo-device", stat.S_IFIFO | 0o644, os.makedev(3, 4))
    do("chmod of a fifo", os.chmod, "fifo", 0o7111)
    do("socket", os.mknod, "socket", stat.S_IFSOCK | 0o755)
    do("truncate a fifo", os.truncate, "fifo", 0)


def make_names(do: Actions) -> None:
    """Links, renames, removals."""
    os.makedirs("deep/er")
    new("deep/er/file", b"deep", 0o604)
    os.chown("deep/er", 9, 99)
    new("one", b"one", 0o640)
    do("link", os.link, "one", "two")
    do("link in another folder", os.link, "two", "deep/er/three")
    do("chmod of a linked file", os.chmod, "two", 0o4750)
    do("chown of a linked file", os.chown, "deep/er/three", 23, 24)
    new("first", b"first", 0o611)
    os.link("first", "second")
    do("unlink the first name", os.unlink, "first")
    do("chmod by the second name", os.chmod, "second", 0o622)
    new("old", b"old", 0o601)
    do("rename", os.rename, "old", "new")
    new("here", b"here", 0o602)
    do("rename to another folder", os.rename, "here", "deep/there")
    new("over", b"over", 0o603)
    new("under", b"under", 0o666)
    do("rename over another", os.rename, "over", "under")
    new("plain", b"plain")
    os.symlink("plain", "over-link")
    do("rename over a link", os.rename, "plain", "over-link")
    os.mkdir("moved", 0o711)
    new("moved/file", b"in it", 0o631)
    do("rename a folder", os.rename, "moved", "deep/moved")
    do("rename within the renamed", os.rename, "deep/moved/file", "deep/moved/renamed")
    os.mkdir("empty", 0o1770)
    os.mkdir("onto", 0o700)
    do("rename onto an empty folder", os.rename, "onto", "empty")
    os.mkdir("removed")
    new("removed/file", b"", 0o4711)
    os.mkdir("removed/folder", 0o7777)
    do("rmdir what is not empty", os.rmdir, "removed")
    do("rename onto what is not empty", os.rename, "deep/moved", "removed")
    do("rename a file onto a folder", os.rename, "new", "removed")
    os.unlink("removed/file")
    os.rmdir("removed/folder")
    do("rmdir", os.rmdir, "removed")
    new("reborn", b"before", 0o7777)
    os.chown("reborn", 41, 42)
    do("unlink", os.unlink, "reborn")
    do("the same name again", new, "reborn", b"after", 0o600)
    do("link over a name", os.link, "one", "reborn")
    for name in (".virtfs_metadata", ".virtfs_metadata_root"):  # only mapped-file has them
        new(f"for {name}")
        do(f"stat {name}", os.lstat, name)
        do(f"rmdir {name}", os.rmdir, name)
        do(f"unlink {name}", os.unlink, name)
        for label, call in (
            ("file", new),
            ("mkdir", os.mkdir),
            ("symlink", lambda name: os.symlink("x", name)),
            ("mknod", lambda name: os.mknod(name, stat.S_IFIFO | 0o600)),
            ("link", lambda name: os.link(f"for {name}", name)),
            ("rename", lambda name: os.rename(f"for {name}", name)),
        ):
            do(f"{label} {name}", call, name)
            with contextlib.suppress(OSError):
                os.unlink(name)
            with contextlib.suppress(OSError):
                os.rmdir(name)


def make_attributes(do: Actions) -> None:
    """Extended attributes and access control lists."""
    new("xattrs")
    os.mkdir("xattrs-folder")
    for name in ("xattrs", "xattrs-folder"):
        do(f"user. {name}", os.setxattr, name, "user.guest", b"\0\xff" * 50)
        do(f"user.gone {name}", os.setxattr, name, "user.gone", b"1")
        do(f"replace {name}", os.setxattr, name, "user.guest", b"2", os.XATTR_REPLACE)
        do(f"create again {name}", os.setxattr, name, "user.guest", b"3", os.XATTR_CREATE)
        do(f"remove {name}", os.removexattr, name, "user.gone")
        do(f"remove again {name}", os.removexattr, name, "user.gone")
        do(f"get none {name}", os.getxattr, name, "user.gone")
        do(f"trusted. {name}", os.setxattr, name, "trusted.guest", b"1")
        do(f"security. {name}", os.setxattr, name, "security.guest", b"1")
        for attribute in ("user.virtfs.uid", "user.virtfs.other", "user.virtfs.system.posix_acl_access"):
            do(f"set {attribute} {name}", os.setxattr, name, attribute, b"1234")
            do(f"get {attribute} {name}", os.getxattr, name, attribute)
            do(f"remove {attribute} {name}", os.removexattr, name, attribute)
        do(f"acl {name}", os.setxattr, name, "system.posix_acl_access", ACL)
        do(f"default acl {name}", os.setxattr, name, "system.posix_acl_default", ACL)
    do("inherited by a file", new, "xattrs-folder/file", b"", 0o666)
    do("inherited by a folder", os.mkdir, "xattrs-folder/folder", 0o777)
    new("acl-gone")
    os.setxattr("acl-gone", "system.posix_acl_access", ACL)
    do("remove the acl", os.removexattr, "acl-gone", "system.posix_acl_access")
    do("remove no acl", os.removexattr, "acl-gone", "system.posix_acl_access")
    new("acl-chmod")
    os.setxattr("acl-chmod", "system.posix_acl_access", ACL)
    do("chmod with an acl", os.chmod, "acl-chmod", 0o2604)


def make_to_change(do: Actions) -> None:
    """What `change` finds."""
    for name in ("chmod", "chown", "write", "truncate", "rename", "move", "over", "under", "link", "unlink", "both"):
        new(name, name.encode() * 10, 0o6754)
    os.link("unlink", "unlink-other")
    os.chown("chmod", 51, 52)
    for name in ("folder", "emptied", "onto", "owned", "renamed"):
        os.mkdir(name, 0o2771)
    new("emptied/gone")
    os.unlink("emptied/gone")
    new("renamed/inside", b"inside", 0o4640)
    os.mkfifo("fifo", 0o600)
    os.mknod("disk", stat.S_IFBLK | 0o660, os.makedev(259, 0xFFFFF))
    for name in ("link-chown", "link-rename", "link-gone"):
        os.symlink(name, name)
    os.link("both", "both-other")
    os.setxattr("write", "user.guest", b"1")
    os.setxattr("chmod", "system.posix_acl_access", ACL)
    do("all was made", os.lstat, "both-other")


PARTS = {"f": make_files, "s": make_special, "n": make_names, "a": make_attributes, "c": make_to_change}


def change(folder: str) -> Results:
    """Change what `make_to_change` has made in a folder, with another device perhaps."""
    os.chdir(f"{folder}/c")
    os.umask(0)
    do = Actions()
    do("chmod", os.chmod, "chmod", 0o1234)
    do("chmod of a folder", os.chmod, "folder", 0o1700)
    do("chmod of a fifo", os.chmod, "fifo", 0o123)
    do("chmod of a device", os.chmod, "disk", 0o123)
    do("chmod by another name", os.chmod, "both-other", 0o4321)
    do("chown", os.chown, "chown", 4294967294, 1 << 31)
    do("chown of a folder", os.chown, "owned", 61, -1)
    do("chown of a link", os.lchown, "link-chown", -1, 62)
    with open("write", "r+b") as file:
        file.write(b"more")
        do("fchmod", os.fchmod, file.fileno(), 0o3210)
    do("truncate", os.truncate, "truncate", 5)
    do("rename", os.rename, "rename", "name")
    do("move", os.rename, "move", "folder/moved")
    do("rename over another", os.rename, "over", "under")
    do("rename a link", os.rename, "link-rename", "folder/link")
    do("rename a folder", os.rename, "renamed", "folder/again")
    do("chmod in a renamed folder", os.chmod, "folder/again/inside", 0o2604)
    do("link", os.link, "link", "folder/linked")
    do("chmod of what was linked", os.chmod, "folder/linked", 0o5555)
    do("unlink the first name", os.unlink, "unlink")
    do("chown by the other name", os.chown, "unlink-other", 71, 72)
    do("unlink a link", os.unlink, "link-gone")
    do("the name of a link again", new, "link-gone", b"new", 0o711)
    do("rmdir", os.rmdir, "emptied")
    do("the name of a folder again", new, "emptied", b"new", 0o177)
    do("rename a file onto a folder", os.rename, "name", "onto")
    do("rename a folder onto a folder", os.rename, "owned", "onto")
    do("file in a folder", new, "folder/file", b"", 0o4777)
    do("folder in a folder", os.mkdir, "folder/folder", 0o7777)
    do("extended attribute", os.setxattr, "write", "user.guest", b"2")
    do("another one", os.setxattr, "write", "user.other", b"3")
    os.chdir("/")
    return do.results


def make(folder: str) -> Results:
    """Make everything in a folder."""
    os.chdir(folder)
    os.umask(0)
    do = Actions()
    for name, step in (
        ("f", make_files),
        ("s", make_special),
        ("n", make_names),
        ("a", make_attributes),
        ("c", make_to_change),
    ):
        os.mkdir(name)
        os.chdir(name)
        step(do)
        os.chdir("..")
    os.chdir("/")
    return do.results


def seen(name: str, path: str, numbers: dict[int, str]) -> dict[str, object]:
    """What can be seen of an object in the current folder, but times and numbers."""
    status = os.lstat(name)
    found: dict[str, object] = {
        "mode": stat.filemode(status.st_mode),
        "links": status.st_nlink,
        "owner": [status.st_uid, status.st_gid],
        "device": [os.major(status.st_rdev), os.minor(status.st_rdev)],
        "same as": numbers.setdefault(status.st_ino, path),
    }
    if not stat.S_ISDIR(status.st_mode):
        found["size"] = status.st_size
    if stat.S_ISLNK(status.st_mode):
        try:
            found["target"] = os.readlink(name)
        except OSError as error:
            found["target"] = errno.errorcode[error.errno or 0]
    if stat.S_ISREG(status.st_mode) and status.st_size:
        descriptor = os.open(name, os.O_RDONLY)
        found["content"] = zlib.crc32(os.read(descriptor, 1 << 20))
        os.close(descriptor)
    if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):
        found["attributes"] = {key: os.getxattr(name, key).hex() for key in sorted(os.listxattr(name))}
    return found


def show(folder: str) -> dict[str, object]:
    """What can be seen in a folder, and of itself."""
    numbers: dict[int, str] = {}
    found: dict[str, object] = {}

    def look(path: str) -> None:
        found[path] = seen(".", path, numbers)
        for name in sorted(os.listdir(".")):
            if stat.S_ISDIR(os.lstat(name).st_mode):
                os.chdir(name)
                look(f"{path}/{name}")
                os.chdir("..")
            else:
                found[f"{path}/{name}"] = seen(name, f"{path}/{name}", numbers)

    os.chdir(folder)
    look(".")
    os.chdir("/")
    return found


def write(name: str) -> None:
    """Change the content of a file."""
    with open(name, "r+b") as file:
        file.write(b"x")


def set_ids(folder: str) -> Results:
    """What becomes of set-id bits when root and another user, who owns the file, change it."""
    os.chdir(folder)
    found = {}
    for uid, mode in itertools.product((0, 1000), (0o6777, 0o2666)):
        for label, action in (
            ("write", write),
            ("truncate", lambda name: os.truncate(name, 1)),
            ("open to truncate", lambda name: os.close(os.open(name, os.O_WRONLY | os.O_TRUNC))),
            ("chown", lambda name: os.chown(name, -1, 1000)),
            ("chown to none", lambda name: os.chown(name, -1, -1)),
        ):
            name = f"{label} {mode:o} {uid}"
            new(name, b"content")
            os.chown(name, 1000, 1000)
            os.chmod(name, mode)
            os.setegid(uid)
            os.seteuid(uid)
            do = Actions()
            do(name, action, name)
            os.seteuid(0)
            os.setegid(0)
            found[name] = f"{do.results[name]} {stat.S_IMODE(os.lstat(name).st_mode):o}"
    os.chdir("/")
    return found


def differ(folder: str) -> Results:
    """What is known to have another end with QEMU's device."""
    os.chdir(folder)
    os.umask(0)
    do = Actions()
    os.makedirs("emptied/folder")
    os.rmdir("emptied/folder")
    os.mkdir("onto")
    do("rename onto an emptied folder", os.rename, "onto", "emptied")
    new("file")
    os.setxattr("file", "user.guest", b"1")
    do("an attribute without a value", os.setxattr, "file", "user.guest", b"")
    do("which is there", os.getxattr, "file", "user.guest")
    os.mknod("last", stat.S_IFCHR | 0o600, os.makedev(0xFFF, 0xFFFFF))
    do.results["the last device"] = str(os.lstat("last").st_rdev)
    os.mknod("mknod", stat.S_IFREG | 0o600)
    os.chdir("/")
    return do.results


def main(*steps: tuple[str, str]) -> None:
    """Do something with each folder, and print what comes of it."""
    print(json.dumps([globals()[action](folder) for action, folder in steps]))
