from __future__ import annotations

import errno
import inspect
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyvirtfs.fsdev.local import LocalDriver

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def test_hard_links(shell: Run, export: Path) -> None:
    (export / "file").touch()
    assert shell("ln file other").returncode == 0
    assert (export / "other").samefile(export / "file")


def test_pipes(shell: Run, export: Path) -> None:
    assert shell("umask 027", "mknod pipe p").stderr == ""
    assert (export / "pipe").stat().st_mode == stat.S_IFIFO | 0o640


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes device nodes")
def test_device_nodes(shell: Run, export: Path) -> None:
    answer = shell("mknod null c 1 3", "mknod loop b 7 1000000", "mknod null c 1 3")
    if "not permitted" in answer.stderr:
        pytest.skip("no device nodes here")
    assert (answer.stderr, answer.returncode) == ("mknod: null: File exists\n", 1)
    null, loop = (export / "null").stat(), (export / "loop").stat()
    assert (null.st_mode, null.st_rdev) == (stat.S_IFCHR | 0o644, os.makedev(1, 3))
    assert (loop.st_mode, loop.st_rdev) == (stat.S_IFBLK | 0o644, os.makedev(7, 1000000))


def test_device_nodes_under_a_mapped_model(run: Run, export: Path) -> None:
    device = f"local,path={export},mount_tag=tag,security_model=mapped-file"
    answer = run("shell", "-virtfs", device, "-c", "mknod null c 1 3; ls -l null")
    assert answer.stderr == ""
    assert answer.stdout.startswith("crw-r--r-- 1 0 0 1, 3 ")


def test_what_cannot_be_removed_keeps_only_what_is_above(
    shell: Run, export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (export / "top" / "a" / "b").mkdir(parents=True)
    (export / "top" / "c").mkdir()
    for name in ("top/a/b/stays", "top/a/b/goes", "top/c/goes", "top/goes"):
        (export / name).touch()
    (export / "top" / "link").symlink_to("c")
    real = LocalDriver.unlinkat

    def unlinkat(self: LocalDriver, directory: Any, name: bytes, *, folder: bool) -> None:
        if name == b"stays":
            raise PermissionError(errno.EPERM, "")
        real(self, directory, name, folder=folder)

    monkeypatch.setattr(LocalDriver, "unlinkat", unlinkat)
    answer = shell("rm -r top/ missing")
    assert answer.stderr == ("rm: top/a/b/stays: Operation not permitted\nrm: missing: No such file or directory\n")
    assert sorted(str(path.relative_to(export)) for path in export.rglob("*")) == [
        "top", "top/a", "top/a/b", "top/a/b/stays",
    ]  # fmt: skip


def test_folders_deeper_than_python_calls(shell: Run, export: Path) -> None:
    before = sys.getrecursionlimit()
    depth = len(inspect.stack(0))
    sys.setrecursionlimit(depth + 150)
    try:
        answer = shell("mkdir -p " + "d/" * 160, "rm -r d", "ls")
    finally:
        sys.setrecursionlimit(before)
    assert (answer.stdout, answer.stderr, answer.returncode) == ("", "", 0)
