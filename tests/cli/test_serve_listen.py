"""`pyvirtfs serve --listen` as a process of its own, with the clients of Debian's diod package."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., "subprocess.CompletedProcess[str]"]
DIOD = ("diodls", "diodcat", "diodload")
PATH = "/usr/sbin:/usr/bin:/bin"

needs_diod = pytest.mark.skipif(
    any(shutil.which(name, path=PATH) is None for name in DIOD), reason="diod's clients are not installed"
)


class Serving:
    """The command in a process of its own."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "pyvirtfs", "serve", *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1)

    def lines(self) -> list[str]:
        """What it prints until it is ready."""
        assert self.process.stdout is not None
        found: list[str] = []
        for line in self.process.stdout:
            if line == "READY\n":
                return found
            found.append(line.rstrip("\n"))
        raise AssertionError(self.process.communicate()[1])

    def end(self) -> str:
        """End it; what it wrote to the standard error."""
        self.process.send_signal(signal.SIGTERM)
        told = self.process.communicate(timeout=30)
        assert self.process.returncode == 0, told
        assert "Traceback" not in told[1]
        return told[1]


@pytest.fixture
def serving() -> Iterator[Callable[..., Serving]]:
    """Starts the command."""
    started: list[Serving] = []

    def serving(*arguments: str) -> Serving:
        started.append(Serving(*arguments))
        return started[-1]

    yield serving
    for one in started:
        one.process.kill()
        one.process.communicate()


def fsdev(export: Path, name: str = "data", more: str = "") -> list[str]:
    return ["-fsdev", f"local,id={name},path={export},security_model=none{more}"]


def version(client: socket.socket) -> bytes:
    """Greet the server; its answer."""
    client.settimeout(10)
    client.sendall(struct.pack("<IBHIH", 21, 100, 0xFFFF, 8192, 8) + b"9P2000.L")
    return client.recv(100)


def diod(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env={"PATH": PATH}, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_several_exports(serving: Callable[..., Serving], export: Path, tmp_path: Path) -> None:
    path, pidfile = tmp_path / "s", tmp_path / "pid"
    one = serving(
        *fsdev(export, "a"), *fsdev(export, "b", ",readonly=on"), "--listen", f"unix:{path}", "--listen", "tcp:0",
        "--allow-unauthenticated-tcp", "--pidfile", str(pidfile), "--log-format", "json", "--trace",
    )  # fmt: skip
    first, second = one.lines()
    assert first == f"mount -t 9p -o trans=unix,version=9p2000.L {path} /mnt"
    found = re.fullmatch(r"mount -t 9p -o trans=tcp,port=([0-9]+),version=9p2000\.L 127\.0\.0\.1 /mnt", second)
    assert found is not None
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert pidfile.read_text() == f"{one.process.pid}\n"
    with socket.socket(socket.AF_UNIX) as client, socket.socket(socket.AF_UNIX) as other:
        for each in (client, other):
            each.connect(str(path))
        for each in (client, other):  # both at the same time
            assert version(each)[4] == 101
    with socket.create_connection(("127.0.0.1", int(found[1])), 10) as client:
        assert version(client)[4] == 101
        client.sendall(b"\0\0\0\0")
        assert client.recv(1) == b""
    entries = [json.loads(line) for line in one.end().splitlines()]
    assert not path.exists()
    assert not pidfile.exists()
    ended = [entry for entry in entries if entry.get("event") == "disconnected"]
    assert sorted((entry["tag"], entry["requests"], entry["reason"]) for entry in ended) == [
        ("a", 1, ""),
        ("a", 1, ""),
        ("b", 1, "malformed: a message whose size says 0, and msize is 8192"),
    ]
    assert "pyvirtfs.trace.9p" in {entry["logger"] for entry in entries}
    warnings = [entry["message"] for entry in entries if entry["level"] == "warning"]
    assert warnings[0] == (
        f"every user and program of this machine (by port {found[1]} of 127.0.0.1) can read everything below {export}"
        " as this process"
    )


def test_devices_and_exports_in_one_process(serving: Callable[..., Serving], export: Path, tmp_path: Path) -> None:
    one = serving(
        *fsdev(export, "a"), *fsdev(export, "b"), "-device", "virtio-9p-pci,fsdev=a,mount_tag=x",
        "-virtfs", f"local,path={export},mount_tag=y,security_model=none",
        "--socket", f"{tmp_path}/", "--listen", f"unix:{tmp_path}/",
    )  # fmt: skip
    lines = one.lines()
    assert [line.partition(" ")[0] for line in lines] == ["mount", "-object", "-device", "-device"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.sock", "export", "x.sock", "y.sock"]
    one.end()
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_without_a_socket_virtfs_is_an_export(serving: Callable[..., Serving], export: Path, tmp_path: Path) -> None:
    one = serving(
        *fsdev(export, "b"), "-virtfs", f"local,path={export},mount_tag=y,security_model=none",
        "--listen", f"unix:{tmp_path}/1", "--listen", f"unix:{tmp_path}/2",
    )  # fmt: skip
    assert len(one.lines()) == 2
    for name in "12":
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(f"{tmp_path}/{name}")
            assert version(client)
    told = one.end()
    assert told.index("pyvirtfs: y: 1 requests") < told.index("pyvirtfs: b: 1 requests")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--listen", "tcp:0"], "--listen: tcp:127.0.0.1:0: TCP authenticates nobody: every user and program"),
        (["--listen", "unix:no/such/"], "--listen: '{cwd}/no/such/data.sock' cannot be made: there is no folder"),
        (["--listen", "unix:export"], "--listen: '{cwd}/export' exists, and is not a socket"),
        (["--listen", "unix:a", "--listen", "unix:b"], "--listen: give each of 1 exports without a device one"),
        (["--listen", "unix:a", "--socket", "b"], "--socket: there is no device for it"),
        (["--listen", "unix:a", "-device", "virtio-9p,fsdev=data,mount_tag=x"], "--listen: there is no export for it"),
        (["--listen", "a"], "--listen: 'a' is no address (choose from unix:PATH, tcp:PORT, tcp:HOST:PORT)"),
        (["--listen", "tcp:192.0.2.1:0", "--allow-unauthenticated-tcp"], "--listen: nobody can listen at 192.0.2.1:0"),
        (["--socket", "s"], "-fsdev: no -device has fsdev=data: it needs one, or a --listen"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(arguments: list[str], line: str, run: Run, export: Path, tmp_path: Path) -> None:
    answer = run("serve", *fsdev(export), *arguments, cwd=tmp_path)
    assert answer.returncode == 2
    assert answer.stderr.startswith(f"pyvirtfs: {line.format(cwd=tmp_path)}")
    assert answer.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


@needs_diod
@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_clients_of_diod(serving: Callable[..., Serving], export: Path, tmp_path: Path, kind: str) -> None:
    (export / "dir").mkdir()
    (export / "dir" / "big").write_bytes(bytes(range(256)) * 5000)
    (export / "text").write_text("Hi diod\n")
    for number in range(500):
        (export / "dir" / f"{number:03}").touch()
    address = f"unix:{tmp_path}/s" if kind == "unix" else "tcp:0"
    one = serving(*fsdev(export), "--listen", address, "--allow-unauthenticated-tcp")
    (line,) = one.lines()
    port = re.search(r"port=([0-9]+)", line)
    server = ["-a", "/", "-s", f"{tmp_path}/s" if port is None else f"127.0.0.1:{port[1]}"]
    assert {"dir", "text"} <= set(diod("diodls", *server).split())
    listed = diod("diodls", *server, "-l", "dir").splitlines()
    assert len(listed) == 503
    (big,) = [each for each in listed if each.endswith(" big")]
    assert big.split()[4] == "1280000"
    assert diod("diodcat", *server, "text") == "Hi diod\n"
    command = ["diodcat", *server, "-m", "8192", "dir/big", "text"]
    done = subprocess.run(command, capture_output=True, timeout=60, env={"PATH": PATH}, check=True)
    assert done.stdout == (export / "dir" / "big").read_bytes() + b"Hi diod\n"
    missing = subprocess.run(
        ["diodcat", *server, "nothing"], capture_output=True, timeout=60, env={"PATH": PATH}, check=False, text=True
    )
    assert "No such file or directory" in missing.stderr
    assert one.end().count("pyvirtfs: data: ") >= 5  # a line for each


@needs_diod
@pytest.mark.parametrize("options", [["-g"], ["-m", "4120"]])
def test_load_of_diod(serving: Callable[..., Serving], export: Path, tmp_path: Path, options: list[str]) -> None:
    """Many threads with a connection each: attributes, and copying a file of zeros to another one."""
    (export / "null").touch()
    with open(export / "zero", "wb") as zero:
        zero.truncate(1 << 40)
    one = serving(*fsdev(export), "--listen", f"unix:{tmp_path}/s")
    one.lines()
    done = subprocess.run(
        ["diodload", "-s", f"{tmp_path}/s", "-r", "1", "-n", "8", *options],
        capture_output=True, text=True, timeout=60, env={"PATH": PATH}, check=False,
    )  # fmt: skip
    told = one.end()
    assert done.returncode == 0, done.stderr
    assert "error" not in done.stderr.lower()
    assert sum(map(int, re.findall(r"pyvirtfs: data: ([0-9]+) requests, 1 errors", told))) > 100  # Tauth


def test_help_names_it(run: Run) -> None:
    told: Any = run("serve", "--help").stdout
    assert "--listen unix:/run/srv.9p" in told
    assert "--allow-unauthenticated-tcp" in told
