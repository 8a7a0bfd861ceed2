"""What somebody puts in the place of an object that was just made is never given away."""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyvirtfs.fsdev.entries import Node
from pyvirtfs.fsdev.local import LocalDriver

At = Callable[[bytes], Node]
pytestmark = [
    pytest.mark.usefixtures("tidy"),
    pytest.mark.parametrize("security_model", ["unmapped", "mapped-xattr", "mapped-file"], indirect=True),
]
UID = 1000 if os.geteuid() == 0 else os.geteuid()
GID = 1000 if os.geteuid() == 0 else os.getegid()

MAKE: dict[str, Callable[[LocalDriver, Node, bytes], Any]] = {
    "file": lambda driver, top, name: driver.mknod(top, name, 0o666, 0, 0, UID, GID),
    "fifo": lambda driver, top, name: driver.mknod(top, name, stat.S_IFIFO | 0o666, 0, 0, UID, GID),
    "socket": lambda driver, top, name: driver.mknod(top, name, stat.S_IFSOCK | 0o666, 0, 0, UID, GID),
    "folder": lambda driver, top, name: driver.mkdir(top, name, 0o777, UID, GID),
    "symlink": lambda driver, top, name: driver.symlink(top, name, b"x", UID, GID),
}


def make_secret(kind: str, path: Path) -> None:
    if kind == "file":
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
    elif kind == "folder":
        path.mkdir(0o700)
    elif kind == "symlink":
        path.symlink_to("secret")
    else:
        os.mknod(path, 0o600 | {"fifo": stat.S_IFIFO, "socket": stat.S_IFSOCK}[kind])


def looks(path: Path) -> tuple[int, int, int]:
    status = path.lstat()
    return status.st_mode, status.st_uid, status.st_gid


@pytest.mark.parametrize("kind", list(MAKE))
def test_an_object_of_the_same_kind_put_in_its_place_keeps_owner_and_mode(
    driver: LocalDriver, at: At, root: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    stored = "file" if driver._model.mapped and kind != "folder" else kind
    make_secret(stored, root / "secret")
    before = looks(root / "secret")
    call = {"file": "open", "folder": "mkdir", "symlink": "symlink"}.get(stored, "mknod")
    real = getattr(os, call)

    def swapped(*args: Any, **keywords: Any) -> Any:
        made = real(*args, **keywords)
        if b"new" in args and (call != "open" or args[1] & os.O_CREAT):
            monkeypatch.undo()
            os.rename(root / "secret", root / "new")
        return made

    monkeypatch.setattr(os, call, swapped)
    with pytest.raises(OSError, match="Stale"):
        MAKE[kind](driver, at(b""), b"new")
    assert looks(root / "new") == before


@pytest.mark.parametrize("trace", ["mode", "names", "age", "content"])
def test_what_a_fresh_folder_could_not_have(
    driver: LocalDriver, at: At, root: Path, monkeypatch: pytest.MonkeyPatch, trace: str
) -> None:
    secret = root / "secret"
    secret.mkdir(0o700)
    if trace == "names":
        (secret / "sub").mkdir()
        if secret.stat().st_nlink == 1:
            pytest.skip("the file system does not count the folders in a folder")
    if trace == "content":
        time.sleep(1.1)
        (secret / "file").touch()
    if trace == "age":
        time.sleep(1.1)
    if trace != "mode":
        secret.chmod(0)
    before = looks(secret)
    finish = LocalDriver._finish

    def swap(self: LocalDriver, *args: Any) -> Any:
        os.rename(secret, root / "new")
        return finish(self, *args)

    monkeypatch.setattr(LocalDriver, "_finish", swap)
    with pytest.raises(OSError, match="Stale"):
        driver.mkdir(at(b""), b"new", 0o777, UID, GID)
    assert looks(root / "new") == before


THIEF = """
import contextlib, os, sys, time
kind, root, end = sys.argv[1], sys.argv[2], time.monotonic() + 0.8
os.chdir(root)
secrets = []
print("ready", flush=True)
while time.monotonic() < end and len(secrets) < 200:
    name = f"secret{len(secrets)}"
    if kind == "folder":
        os.mkdir(name, 0o700)
    else:
        os.close(os.open(name, os.O_CREAT | os.O_WRONLY, 0o600))
    secrets.append(os.open(name, os.O_RDONLY))
    while time.monotonic() < end:
        if os.path.lexists("new"):
            with contextlib.suppress(OSError):
                os.rename(name, "new")
                break
time.sleep(0.1)
for fd in secrets:
    status = os.fstat(fd)
    if status.st_uid != os.geteuid() or status.st_mode & 0o077:
        sys.exit(f"given away: {status}")
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("place", ["tmpfs"], indirect=True)
def test_a_second_process_that_races_gets_nothing_given_away(
    driver: LocalDriver, at: At, root: Path, kind: str
) -> None:
    top = at(b"")
    arguments = [sys.executable, "-c", THIEF, kind, os.fspath(root)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as thief:
        assert thief.stdout is not None
        assert thief.stderr is not None
        thief.stdout.readline()
        while thief.poll() is None:
            with contextlib.suppress(OSError):
                MAKE[kind](driver, top, b"new")
            with contextlib.suppress(OSError):
                (os.rmdir if kind == "folder" else os.unlink)(root / "new")
        assert thief.returncode == 0, thief.stderr.read()
