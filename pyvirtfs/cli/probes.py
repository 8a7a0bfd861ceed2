"""What `pyvirtfs doctor` finds out: every kernel feature is tried for real, nothing is concluded from a version number.

Each function returns findings; none of them raises for something that is merely absent, and none leaves a trace.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import NamedTuple

from pyvirtfs.errors import ConfigError

_NOT_YET = "not used yet"
"""The reason of what no part of pyvirtfs works with so far; missing it costs nothing."""


class Finding(NamedTuple):
    """One thing that this machine has, or has not."""

    subject: str
    present: bool
    detail: str
    """What was found, or why it is missing."""
    reason: str
    """Why it matters."""
    essential: bool = False
    """Without it nothing works."""


def attempt(subject: str, reason: str, call: Callable[[], str], *, essential: bool = False) -> Finding:
    """Run `call`: its answer is the detail, its OSError the reason why the thing is missing."""
    try:
        return Finding(subject, True, call(), reason, essential)
    except OSError as error:
        return Finding(subject, False, error.strerror or str(error), reason, essential)
    except ImportError as error:
        return Finding(subject, False, str(error), reason, essential)


# --- the kernel ---


def kernel() -> list[Finding]:
    """The system calls that Python's `os` lacks and the `local` driver needs."""
    release = platform.release()
    return [
        Finding(
            "Linux", sys.platform == "linux", f"{release} {platform.machine()}", "the host side is Linux only", True
        ),
        attempt("openat2", "names are resolved below the export's root, never outside", _openat2, essential=True),
        attempt("statx", "attributes of the guest's files, with birth time", _statx, essential=True),
        attempt("O_PATH + AT_EMPTY_PATH", "a fid owns a descriptor, not a path", _empty_path, essential=True),
        attempt("/proc/self/fd", "reopens O_PATH descriptors; xattrs of any object", _proc, essential=True),
        attempt("getdents64", "folders are listed with stable cookies", _getdents, essential=True),
        attempt("OFD locks", "guest's byte-range locks hold against programs of the host", _ofd_locks),
        attempt("file handles", "objects are opened again whose descriptor made room for another", _file_handles),
        attempt("memfd with seals", "guest RAM shared with another process", _memfd),
    ]


def _openat2() -> str:
    from pyvirtfs import syscalls

    resolve = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS
    with _opened("/", os.O_PATH) as root:  # the current folder may be one that nobody may search
        os.close(syscalls.openat2(root, b".", os.O_PATH | os.O_DIRECTORY, resolve=resolve))
    return "RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS"


def _statx() -> str:
    from pyvirtfs import syscalls

    valid = syscalls.statx(syscalls.AT_FDCWD, b"/", flags=0).mask
    return "with birth time" if valid & syscalls.STATX_BTIME else "without birth time"


def _empty_path() -> str:
    from pyvirtfs import syscalls

    with tempfile.TemporaryDirectory() as folder, _opened(folder, os.O_PATH) as fd:
        syscalls.fchownat(fd, b"", syscalls.KEEP_ID, os.getegid())
        syscalls.utimens_descriptor(fd, syscalls.NOW, None)
    return "with fchmodat2" if syscalls.have_fchmodat2() else "chmod through /proc/self/fd"


def _proc() -> str:
    with _opened(os.curdir, os.O_PATH) as fd, _opened(f"/proc/self/fd/{fd}", os.O_RDONLY):
        return "reopened"


def _getdents() -> str:
    from pyvirtfs import syscalls

    with _opened(os.sep, os.O_RDONLY | os.O_DIRECTORY) as fd:
        return f"{len(syscalls.read_directory(fd))} entries in /"


def _ofd_locks() -> str:
    from pyvirtfs import syscalls

    with tempfile.TemporaryFile() as file:
        syscalls.try_lock(file.fileno(), 0, 1, exclusive=True)
        syscalls.unlock(file.fileno(), 0, 1)
    return "locked and unlocked"


def _file_handles() -> str:
    from pyvirtfs import syscalls

    with tempfile.TemporaryDirectory() as folder, _opened(folder, os.O_RDONLY | os.O_DIRECTORY) as fd:
        handle, _ = syscalls.name_to_handle_at(fd)
        os.close(syscalls.open_by_handle_at(fd, handle, os.O_PATH))
        return f"{len(handle.data)} bytes in {tempfile.gettempdir()}"


def _memfd() -> str:
    from pyvirtfs import syscalls

    fd = syscalls.memfd_create("pyvirtfs-doctor", 4096)
    os.close(fd)
    return "sealed against resizing"


@contextlib.contextmanager
def _opened(path: str, flags: int) -> Iterator[int]:
    fd = os.open(path, flags | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


# --- limits ---


def limits() -> list[Finding]:
    """Limits of this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    processors = len(os.sched_getaffinity(0))
    iov_max = os.sysconf("SC_IOV_MAX")
    return [
        Finding(
            "open files",
            hard >= 1024,
            f"{soft} now, {hard} at most",
            "descriptors of what guests use; those not used for long are closed",
        ),
        Finding("IOV_MAX", iov_max >= 1024, str(iov_max), "buffers of one preadv or pwritev; more take turns"),
        Finding("processors", True, str(processors), "one is enough; requests run where the doorbell arrives"),
    ]


# --- who runs this ---

_CAPABILITIES = {
    0: ("CAP_CHOWN", "security_model=passthrough sets owners"),
    1: ("CAP_DAC_OVERRIDE", "passthrough reaches files of every owner"),
    2: ("CAP_DAC_READ_SEARCH", "file handles; without it, objects are opened again by name"),
    3: ("CAP_FOWNER", "passthrough changes modes of files of every owner"),
    4: ("CAP_FSETID", "passthrough keeps set-id bits"),
    21: ("CAP_SYS_ADMIN", f"{_NOT_YET}: trusted.* attributes"),
    27: ("CAP_MKNOD", "passthrough makes device nodes"),
}
"""Number of capability.h: name, what it is for."""


def process() -> list[Finding]:
    """User and capabilities, as the security models need them."""
    uid = os.geteuid()
    held = 0
    try:
        with open("/proc/self/status", "rb") as status:
            for line in status:
                if line.startswith(b"CapEff:"):
                    held = int(line.split()[1], 16)
    except OSError:
        held = -1 if uid == 0 else 0
    model = "passthrough needs the capabilities below, none does not"
    findings = [Finding("user", True, f"uid {uid}, gid {os.getegid()}", model)]
    for number, (name, reason) in _CAPABILITIES.items():
        present = bool(held >> number & 1)
        findings.append(Finding(name, present, "held" if present else "not held", reason))
    return findings


# --- the export ---

_NOBODY = 0xFFFFFFFF

_ACL = struct.pack("<I HHI HHI HHI HHI", 2, 1, 6, _NOBODY, 4, 4, _NOBODY, 16, 4, _NOBODY, 32, 4, _NOBODY)
"""An access ACL as xattr(7) stores it: version 2, then tag, permissions, id for user, group, mask and others."""


def export(path: str) -> list[Finding]:
    """What the file system below `path` can do. Raises ConfigError if that is not a folder."""
    if not os.path.isdir(path):
        problem = "is not a folder" if os.path.lexists(path) else "no such folder"
        raise ConfigError("PATH", f"{path!r} {problem}")
    findings = [
        Finding("file system", True, file_system(path), f"of {os.path.abspath(path)}"),
    ]
    try:
        with tempfile.TemporaryFile(dir=path) as trial:
            findings.append(Finding("writable", True, "yes", "guests may create and write"))
            findings += _attributes(f"/proc/self/fd/{trial.fileno()}")
    except OSError as error:
        detail = error.strerror or str(error)
        findings.append(Finding("writable", False, detail, "guests only read here: readonly=on"))
    return findings


def _attributes(file: str) -> list[Finding]:
    """Which extended attributes an object of the export can have."""

    def attribute(name: str, value: bytes) -> str:
        os.setxattr(file, name, value)
        os.removexattr(file, name)
        return "set and removed"

    acls = "passthrough: mount option posixacl in the guest"
    return [
        attempt("user.* xattrs", "the guest's own attributes", lambda: attribute("user.pyvirtfs.doctor", b"1")),
        attempt("POSIX ACLs", acls, lambda: attribute("system.posix_acl_access", _ACL)),
        attempt("trusted.* xattrs", f"{_NOT_YET}: no guest gets them", lambda: attribute("trusted.pyvirtfs", b"1")),
    ]


def file_system(path: str) -> str:
    """Type and mount point of the file system that `path` lies on, from /proc/self/mountinfo (proc(5))."""
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    best = "unknown"
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
            for line in mounts:
                fields = line.split()
                if fields[2] == wanted:
                    best = f"{fields[fields.index('-') + 1]} mounted at {fields[4]}"
    except OSError:
        return "unknown: /proc is not mounted"
    return best


# --- software ---


def software() -> list[Finding]:
    """Python, the packages, and the programs that pyvirtfs works with."""
    version = platform.python_version()
    return [
        Finding("Python", sys.version_info >= (3, 11), version, "3.11 or newer", True),
        *_packages(),
        _compiler(),
        _qemu(),
        _program("lspci", "--version", r"version ([\d.]+)", "pciutils: reads what `pyvirtfs lspci -xxx` prints"),
    ]


def _packages() -> Iterator[Finding]:
    for name, reason in (
        ("numpy", "guest RAM"),
        ("cffi", "system calls"),
        ("construct", "declarations of structures and messages"),
        ("click", "this command line"),
        ("rich", "this table"),
    ):
        try:
            yield Finding(name, True, importlib.metadata.version(name), reason, True)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(name, False, "not installed", reason, True)


_COMPILER = f"{_NOT_YET}: all of pyvirtfs is Python"


def _compiler() -> Finding:
    for name in filter(None, (os.environ.get("CC"), "cc", "gcc", "clang")):
        path = shutil.which(name)
        if path:
            return Finding("C compiler", True, path, _COMPILER)
    return Finding("C compiler", False, "no cc, gcc or clang in PATH", _COMPILER)


def _qemu() -> Finding:
    reason = "pyvirtfs qemu and pyvirtfs serve need 10.1 or newer (vfio-user)"
    names = (f"qemu-system-{platform.machine()}", "qemu-system-x86_64", "qemu-system-aarch64")
    for name in names:
        found = _program(name, "--version", r"version (\d+\.\d+(?:\.\d+)?)", reason)
        if found.present:
            new_enough = tuple(map(int, found.detail.split(".")[:2])) >= (10, 1)
            return found._replace(subject="QEMU", present=new_enough, detail=f"{name} {found.detail}")
    return Finding("QEMU", False, f"no {names[0]} in PATH", reason)


def _program(name: str, option: str, pattern: str, reason: str) -> Finding:
    path = shutil.which(name)
    if path is None:
        return Finding(name, False, "not in PATH", reason)
    try:
        answer = subprocess.run([path, option], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding(name, False, str(error), reason)
    version = re.search(pattern, answer.stdout + answer.stderr)
    return Finding(name, True, version[1] if version else path, reason)
