from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pyvirtfs.guest import Mount

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize("model", ["none", "passthrough"])
def test_files_belong_to_who_made_them(model: str, run: Run, export: Path) -> None:
    device = f"local,path={export},mount_tag=tag,security_model={model}"
    making = "touch file; mkdir folder; ln -s x link; mknod pipe p"
    line = f"id; su 1000:1001; id; {making}; su 7; touch seven; su; touch root; id"
    answer = run("shell", "-virtfs", device, "-c", line)
    assert (answer.stderr, answer.stdout) == ("", "uid=0 gid=0\nuid=1000 gid=1001\nuid=0 gid=0\n")
    owners = {path.name: (path.lstat().st_uid, path.lstat().st_gid) for path in export.iterdir()}
    user = (1000, 1001)
    assert owners == {"file": user, "folder": user, "link": user, "pipe": user, "seven": (7, 7), "root": (0, 0)}


@pytest.mark.parametrize("model", ["mapped-file", "mapped-xattr"])
def test_users_under_a_mapped_model(model: str, run: Run, export: Path) -> None:
    device = f"local,path={export},mount_tag=tag,security_model={model}"
    answer = run("shell", "-virtfs", device, "-c", "su 1000:1001; touch file; ls -l file")
    if "not supported" in answer.stderr:
        pytest.skip("no xattrs here")
    assert answer.stderr == ""
    assert answer.stdout.startswith("-rw-r--r-- 1 1000 1001 0 ")


def test_a_user_is_an_attach_and_the_one_before_is_left(shell: Run) -> None:
    answer = shell("trace on", "su 5", "su 6", "trace off")
    told = [line for line in answer.stderr.splitlines() if line.startswith(("Tattach", "Tclunk"))]
    assert [line.split()[0] for line in told] == ["Tattach", "Tattach", "Tclunk"]
    assert "n_uname=5" in told[0]


def test_a_user_whom_the_server_refuses(shell: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def as_user(*_: object, **__: object) -> Mount:
        raise PermissionError(13, "")

    monkeypatch.setattr(Mount, "as_user", as_user)
    answer = shell("su 5", "id")
    assert (answer.stdout, answer.stderr) == ("uid=0 gid=0\n", "su: 5: Permission denied\n")


def test_umask(shell: Run, export: Path) -> None:
    answer = shell("umask", "umask 77", "umask", "touch file", "su 0:0", "umask", "mkdir folder")
    assert (answer.stdout, answer.stderr) == ("0022\n0077\n0077\n", "")
    assert (export / "file").stat().st_mode & 0o777 == 0o600
    assert (export / "folder").stat().st_mode & 0o777 == 0o700
