"""The socket file: private, stale or live, and what cannot be one."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from pyvirtfs.errors import ConfigError
from pyvirtfs.testing import check_descriptors
from pyvirtfs.unix_socket import UnixListener

LISTEN_AS_NOBODY = """
import os, socket, sys
from pyvirtfs.errors import ConfigError
from pyvirtfs.unix_socket import UnixListener
if os.geteuid() == 0:
    os.setgroups([]), os.setgid(65534), os.setuid(65534)
path = sys.argv[1]
with socket.socket(socket.AF_UNIX) as stale:
    stale.bind(path)
listener = UnixListener(path)
try:
    UnixListener(path)
except ConfigError as error:
    print(error)
with socket.socket(socket.AF_UNIX) as client:
    client.connect(path)
listener.close()
print(os.path.lexists(path))
"""


def test_only_this_user_may_connect(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    umask = os.umask(0)
    try:
        with contextlib.closing(UnixListener(str(path))):
            status = path.lstat()
            assert stat.S_ISSOCK(status.st_mode)
            assert stat.S_IMODE(status.st_mode) == 0o600
    finally:
        os.umask(umask)


def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(path)
    assert Path(path).is_socket()
    with contextlib.closing(UnixListener(path)), socket.socket(socket.AF_UNIX) as client:
        client.connect(path)


def test_a_live_socket_is_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with contextlib.closing(UnixListener(path)), check_descriptors():
        with pytest.raises(ConfigError, match="somebody listens"):
            UnixListener(path)
        clients = [socket.socket(socket.AF_UNIX) for _ in range(40)]
        for client in clients:  # more than wait in line
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                client.connect(path)
        with pytest.raises(ConfigError, match="somebody listens"):
            UnixListener(path)
        for client in clients:
            client.close()
        assert Path(path).is_socket()
    assert not Path(path).exists()


@pytest.mark.parametrize("kind", ["file", "folder", "link", "fifo"])
def test_what_is_no_socket_is_refused_and_stays(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "socket"
    if kind == "file":
        path.write_text("precious")
    elif kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to("nowhere")
    else:
        os.mkfifo(path)
    with check_descriptors(), pytest.raises(ConfigError, match="is not a socket"):
        UnixListener(str(path))
    path.lstat()
    assert kind != "file" or path.read_text() == "precious"


def test_paths_that_are_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with check_descriptors():
        UnixListener("x" * 107).close()
        with pytest.raises(ConfigError, match="107 bytes"):
            UnixListener("x" * 108)
        with pytest.raises(ConfigError, match="107 bytes"):
            UnixListener("ü" * 54)


def test_a_folder_that_is_to_be_made_first(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        UnixListener(f"{tmp_path}/no/such/s", option="--listen")
    told = f"--listen: '{tmp_path}/no/such/s' cannot be made: there is no folder '{tmp_path}/no/such', make it first"
    assert str(caught.value) == told
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be made: Not a directory"):
        UnixListener(f"{tmp_path}/file/s")


def test_a_folder_that_may_be_written_to_and_not_be_read(tmp_path: Path) -> None:
    tmp = Path(tempfile.gettempdir())
    for each in (tmp_path, *tmp_path.parents):
        if tmp in each.parents:  # those that pytest has made
            each.chmod(0o755)
    folder = tmp_path / "folder"
    folder.mkdir()
    folder.chmod(0o333)
    command = [sys.executable, "-c", LISTEN_AS_NOBODY, str(folder / "s")]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    folder.chmod(0o755)
    assert answer.stderr == ""
    assert answer.stdout == f"--socket: somebody listens at '{folder}/s' already\nFalse\n"
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("path", ["no/such/folder/socket", "", "."])
def test_paths_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.chdir(tmp_path)
    with check_descriptors(), pytest.raises(ConfigError, match=r"cannot be made|not a socket"):
        UnixListener(path)


def test_a_datagram_socket_is_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as other:
        other.bind(path)
        with pytest.raises(ConfigError, match="cannot be made"):
            UnixListener(path)


def test_the_option_is_named_as_the_person_knows_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--listen: '.*' exists, and is not a socket"):
        UnixListener(str(tmp_path), option="--listen")


def test_close_removes_the_file_unless_it_is_another_ones(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    first = UnixListener(str(path))
    path.rename(tmp_path / "old")
    path.write_text("another one's")
    first.close()
    first.close()
    assert path.read_text() == "another one's"
    path.unlink()
    again = UnixListener(str(path))
    with pytest.raises(BlockingIOError):
        again.accept()
    again.close()
    assert not path.exists()
