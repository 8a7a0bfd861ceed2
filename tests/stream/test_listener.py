"""Addresses, and who may connect."""

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
from pyvirtfs.stream.listener import RefusedError, Tcp, TcpListener, Unix, UnixListener, parse_address
from pyvirtfs.testing import check_descriptors

CONNECT = """
import os, socket, sys
os.setgid(65534), os.setuid(int(sys.argv[2]))
client = socket.socket(socket.AF_UNIX)
client.settimeout(10)
client.connect(sys.argv[1])
print("connected", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("text", "address", "written"),
    [
        ("unix:/run/x.sock", Unix("/run/x.sock"), "unix:/run/x.sock"),
        ("unix:a:b", Unix("a:b"), "unix:a:b"),
        ("unix:x/", Unix("x/"), "unix:x/"),
        ("tcp:5640", Tcp("127.0.0.1", 5640), "tcp:127.0.0.1:5640"),
        ("tcp::5640", Tcp("127.0.0.1", 5640), "tcp:127.0.0.1:5640"),
        ("tcp:0", Tcp("127.0.0.1", 0), "tcp:127.0.0.1:0"),
        ("tcp:0.0.0.0:5640", Tcp("0.0.0.0", 5640), "tcp:0.0.0.0:5640"),
        ("tcp:[::1]:564", Tcp("::1", 564), "tcp:[::1]:564"),
        ("tcp:localhost:65535", Tcp("localhost", 65535), "tcp:localhost:65535"),
    ],
)
def test_addresses(text: str, address: Unix | Tcp, written: str) -> None:
    assert parse_address(text) == address
    assert str(address) == written


@pytest.mark.parametrize(
    "text",
    ["", "unix", "unix:", "unix:a\0b", "tcp", "tcp:", "tcp:x", "tcp:1:2:3", "tcp:::1:564", "tcp:[::1]", "tcp:[]:1",
     "tcp:70000", "tcp:65536", "tcp:-1", "tcp:h:", "tcp:1\n", "tcp:٣", "udp:1", "/run/x", "fd:3", "TCP:1"],
)  # fmt: skip
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_address(text)
    assert str(caught.value) == f"--listen: {text!r} is no address (choose from unix:PATH, tcp:PORT, tcp:HOST:PORT)"


def test_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with check_descriptors(), contextlib.closing(UnixListener(str(path))) as listener:
        assert listener.name == f"unix:{path}"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with pytest.raises(BlockingIOError):
            listener.accept()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            accepted, who = listener.accept()
            accepted.close()
        assert who == f"process {os.getpid()} of user {os.geteuid()}"
    assert not path.exists()
    path.mkdir()
    with pytest.raises(ConfigError, match=r"^--listen: .* is not a socket"):
        UnixListener(str(path))


def test_a_user_who_may_not_connect(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with (
        check_descriptors(),
        contextlib.closing(UnixListener(path, uids={os.geteuid() + 1})) as listener,
        socket.socket(socket.AF_UNIX) as client,
    ):
        client.connect(path)
        with pytest.raises(RefusedError, match=rf"process {os.getpid()} is user {os.geteuid()}'s, who may not connect"):
            listener.accept()
        assert client.recv(1) == b""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
def test_another_user_is_refused_even_if_the_mode_lets_him_in(tmp_path: Path) -> None:
    """Each really connects, as a process of that user."""
    tmp = Path(tempfile.gettempdir())
    for folder in (tmp_path, *tmp_path.parents):
        if tmp in folder.parents:  # those that pytest has made
            folder.chmod(0o755)
    path = str(tmp_path / "socket")
    with contextlib.closing(UnixListener(path)) as listener:
        os.chmod(path, 0o666)
        for uid, welcome in ((0, True), (65534, False)):
            command = [sys.executable, "-S", "-c", CONNECT, path, str(uid)]
            with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/") as child:
                assert child.stdout is not None
                assert child.stdout.readline() == "connected\n"
                if welcome:
                    accepted, who = listener.accept()
                    accepted.close()
                    assert who == f"process {child.pid} of user {uid}"
                else:
                    with pytest.raises(RefusedError, match=f"process {child.pid} is user {uid}'s"):
                        listener.accept()
                child.communicate()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_a_tcp_port(host: str) -> None:
    with check_descriptors():
        try:
            listener = TcpListener(host)
        except ConfigError as error:
            if host == "::1":
                pytest.skip(f"no IPv6 here: {error}")
            raise
        with contextlib.closing(listener), socket.create_connection((listener.host, listener.port), 10) as client:
            assert listener.port
            accepted, who = listener.accept()
            with accepted:
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert who.endswith(f":{client.getsockname()[1]}")
            assert who.startswith("[::1]" if ":" in listener.host else "127.0.0.1")
            assert listener.name == f"tcp:{'[::1]' if ':' in listener.host else '127.0.0.1'}:{listener.port}"


def test_a_link_local_address() -> None:
    """It says nothing without its interface."""
    try:
        found = [line.split() for line in Path("/proc/net/if_inet6").read_text().splitlines()]
    except FileNotFoundError:
        found = []
    local = [(bytes.fromhex(words[0]), words[5]) for words in found if words[3] == "20"]
    if not local:
        pytest.skip("no interface has a link-local address")
    host = f"{socket.inet_ntop(socket.AF_INET6, local[0][0])}%{local[0][1]}"
    address = parse_address(f"tcp:[{host}]:0")
    assert address == Tcp(host, 0)
    with check_descriptors(), contextlib.closing(TcpListener(*address)) as listener:
        assert (listener.host, listener.name) == (host, f"tcp:[{host}]:{listener.port}")
        with socket.create_connection((host, listener.port), 10) as client:
            accepted, who = listener.accept()
            accepted.close()
            assert who == f"[{host}]:{client.getsockname()[1]}"


def test_a_client_that_is_gone_before_it_is_accepted() -> None:
    with check_descriptors(), contextlib.closing(TcpListener()) as listener:
        client = socket.create_connection((listener.host, listener.port), 10)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()  # with a RST
        with contextlib.suppress(OSError):
            listener.accept()[0].close()


def test_ports_that_cannot_be() -> None:
    with check_descriptors(), contextlib.closing(TcpListener()) as listener:
        with pytest.raises(
            ConfigError, match=rf"^--listen: nobody can listen at 127.0.0.1:{listener.port}: Address alr"
        ):
            TcpListener(port=listener.port)
        with pytest.raises(ConfigError, match=r"nobody can listen at 192.0.2.1:0: "):
            TcpListener("192.0.2.1")
        with pytest.raises(ConfigError, match=r"nobody can listen at x\.\.y:0: "):
            TcpListener("x..y")
