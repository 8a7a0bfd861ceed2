from __future__ import annotations

import json
import os
import shlex
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

from pyvirtfs.cli.devices import DeviceSettings, devices_from
from pyvirtfs.cli.serve import RAM, socket_paths
from pyvirtfs.errors import ConfigError

Run = Callable[..., "subprocess.CompletedProcess[str]"]


class Serving:
    """The command in a process of its own."""

    def __init__(self, *arguments: str, **options: Any) -> None:
        command = [sys.executable, "-m", "pyvirtfs", "serve", *arguments]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1, **options
        )

    def lines(self) -> list[str]:
        """What it prints until it is ready."""
        assert self.process.stdout is not None
        found: list[str] = []
        for line in self.process.stdout:
            if line == "READY\n":
                return found
            found.append(line.rstrip("\n"))
        raise AssertionError(self.process.communicate()[1])

    def end(self, number: int = signal.SIGTERM) -> str:
        """End it; what it wrote to the standard error."""
        self.process.send_signal(number)
        self.told: tuple[str, str] = self.process.communicate(timeout=30)
        assert self.process.returncode == 0, self.told
        return self.told[1]


@pytest.fixture
def serving() -> Iterator[Callable[..., Serving]]:
    """Starts the command."""
    started: list[Serving] = []

    def serving(*arguments: str, **options: Any) -> Serving:
        started.append(Serving(*arguments, **options))
        return started[-1]

    yield serving
    for one in started:
        one.process.kill()
        one.process.communicate()


def virtfs(export: Path, tag: str = "tag") -> list[str]:
    return ["-virtfs", f"local,path={export},mount_tag={tag},security_model=none"]


def greet(path: Path) -> None:
    """Connect as a client does, agree on a version, leave."""
    body = struct.pack("=HH", 0, 0) + b"{}\0"
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(path))
        client.sendall(struct.pack("=HHIII", 1, 1, 16 + len(body), 0, 0) + body)
        assert client.recv(1000)


def test_one_device(serving: Callable[..., Serving], export: Path, tmp_path: Path) -> None:
    path, pidfile = tmp_path / "s", tmp_path / "pid"
    one = serving(*virtfs(export), "--socket", str(path), "--pidfile", str(pidfile))
    ram, device = one.lines()
    assert ram == RAM
    option, value = shlex.split(device)
    assert option == "-device"
    assert json.loads(value) == {"driver": "vfio-user-pci", "socket": {"type": "unix", "path": str(path)}}
    assert pidfile.read_text() == f"{one.process.pid}\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    greet(path)
    greet(path)
    told = one.end()
    assert told.count("pyvirtfs: tag: 0 requests, 0 errors, 0 bytes read, 0 bytes written\n") == 2
    assert "Traceback" not in told
    assert not path.exists()
    assert not pidfile.exists()


def test_several_devices(serving: Callable[..., Serving], export: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sockets"
    folder.mkdir()
    one = serving(
        *virtfs(export),
        "-fsdev",
        f"local,id=f,path={export},security_model=none",
        "-device",
        "virtio-9p-pci,fsdev=f,mount_tag=other,addr=9.0,id=x,bus=pci.1,multifunction=on",
        "--socket",
        f"{folder}/",
    )
    _, first, second = one.lines()
    assert json.loads(shlex.split(first)[1])["socket"]["path"] == f"{folder}/tag.sock"
    assert json.loads(shlex.split(second)[1]) == {
        "driver": "vfio-user-pci",
        "socket": {"type": "unix", "path": f"{folder}/other.sock"},
        "addr": "9.0",
        "id": "x",
        "bus": "pci.1",
        "multifunction": True,
    }
    greet(folder / "tag.sock")
    greet(folder / "other.sock")
    told = one.end(signal.SIGINT)
    assert "pyvirtfs: tag: 0 requests" in told
    assert "pyvirtfs: other: 0 requests" in told
    assert not list(folder.iterdir())


def test_ready_on_a_descriptor_and_logs_in_json(serving: Callable[..., Serving], export: Path, tmp_path: Path) -> None:
    read, write = os.pipe()
    options = ["--socket", str(tmp_path / "s"), "--ready-fd", str(write), "--log-format", "json", "--trace", "--trace"]
    one = serving(*virtfs(export), *options, pass_fds=[write])
    os.close(write)
    with open(read, encoding="ascii") as ready:
        assert ready.read() == "READY\n"  # and the end of the file: it is closed
    greet(tmp_path / "s")
    entries = [json.loads(line) for line in one.end(signal.SIGHUP).splitlines()]
    assert {"time", "level", "logger", "message"} <= set(entries[0])
    assert "pyvirtfs.trace.vfio-user" in {entry["logger"] for entry in entries}
    assert {entry.get("event") for entry in entries} >= {"ready", "disconnected"}
    assert "READY" not in one.told[0]


def test_nobody_waits_for_ready(serving: Callable[..., Serving], export: Path, tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    pidfile = tmp_path / "pid"
    one = serving(
        *virtfs(export), "--socket", str(tmp_path / "s"), "--ready-fd", str(write), "--pidfile", str(pidfile),
        pass_fds=[write],
    )  # fmt: skip
    os.close(write)
    assert one.process.stderr is not None
    assert one.process.stderr.readline() == "pyvirtfs: warning: --ready-fd: nobody was told: Broken pipe\n"
    greet(tmp_path / "s")
    pidfile.unlink()
    pidfile.write_text("1\n")  # another one's now
    one.end()
    assert pidfile.exists()


def test_the_pidfile_of_a_server_that_runs(
    serving: Callable[..., Serving], run: Run, export: Path, tmp_path: Path
) -> None:
    pidfile = tmp_path / "pid"
    one = serving(*virtfs(export), "--socket", str(tmp_path / "s"), "--pidfile", str(pidfile))
    one.lines()
    answer = run("serve", *virtfs(export), "--socket", str(tmp_path / "t"), "--pidfile", str(pidfile))
    assert (answer.returncode, answer.stdout) == (2, "")
    assert "belongs to a process that runs" in answer.stderr
    assert pidfile.read_text() == f"{one.process.pid}\n"
    one.end()
    assert not pidfile.exists()
    pidfile.write_text("1\n")  # left by one that was killed
    again = serving(*virtfs(export), "--socket", str(tmp_path / "s"), "--pidfile", str(pidfile))
    again.lines()
    assert pidfile.read_text() == f"{again.process.pid}\n"
    again.end()


def test_it_goes_on_when_ignored_signals_come(serving: Callable[..., Serving], export: Path, tmp_path: Path) -> None:
    one = serving(
        *virtfs(export),
        "--socket",
        str(tmp_path / "s"),
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    one.lines()
    one.process.send_signal(signal.SIGHUP)
    greet(tmp_path / "s")
    one.end()


def test_a_stale_socket_is_replaced_and_a_live_one_is_refused(
    serving: Callable[..., Serving], run: Run, export: Path, tmp_path: Path
) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    one = serving(*virtfs(export), "--socket", str(path))
    one.lines()
    answer = run("serve", *virtfs(export), "--socket", str(path))
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr == f"pyvirtfs: --socket: somebody listens at '{path}' already\n"
    greet(path)
    one.end()


def settings_of(*tags: str) -> list[DeviceSettings]:
    texts = [f"local,path=/,security_model=none,mount_tag={tag},id=f{number}" for number, tag in enumerate(tags)]
    return devices_from(texts, [], [])


def test_where_sockets_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert socket_paths(["s"], settings_of("a")) == [f"{tmp_path}/s"]
    assert socket_paths(["/x/s", "t"], settings_of("a", "b")) == ["/x/s", f"{tmp_path}/t"]
    assert socket_paths(["x/"], settings_of("a", "b")) == [f"{tmp_path}/x/a.sock", f"{tmp_path}/x/b.sock"]
    assert socket_paths(["/"], settings_of("a")) == ["/a.sock"]
    assert socket_paths([], []) == []


def test_nothing_to_serve(run: Run) -> None:
    answer = run("serve", "--socket", "s")
    assert answer.returncode == 2
    assert answer.stderr.startswith("pyvirtfs: -virtfs: say which folder is to be served, for example -virtfs local,")


@pytest.mark.parametrize(
    ("sockets", "tags", "line"),
    [
        (["s"], [], "--socket: there is no device for it; an export without one has --listen"),
        ([], ["a"], "--socket: say where clients are to attach, for example"),
        (["s"], ["a", "b"], "--socket: there are 2 devices and 1 sockets: give each device one, or a folder"),
        (["s", "t/"], ["a"], "--socket: there are 1 devices and 2 sockets"),
        (["s/"], ["a/b"], "--socket: mount_tag=a/b makes no name of a socket"),
        (["s/"], ["a", "a"], "--socket: mount_tag=a makes no name of a socket"),
    ],
)
def test_sockets_that_cannot_be(sockets: list[str], tags: list[str], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        socket_paths(sockets, settings_of(*tags))
    assert str(caught.value).startswith(line)


@pytest.mark.parametrize(
    ("arguments", "status", "line"),
    [
        (
            ["--socket", "no/such/"],
            2,
            "--socket: '{cwd}/no/such/tag.sock' cannot be made: there is no folder '{cwd}/no/such', make it first\n",
        ),
        (["--socket", "export/x/s"], 2, "--socket: '{cwd}/export/x/s' cannot be made: there is no folder"),
        (["--socket", "export"], 2, "--socket: '{cwd}/export' exists, and is not a socket"),
        (["--socket", "x" * 120], 2, "--socket: '{cwd}/xxx"),
        (
            ["--socket", "s", "--ready-fd", "2"],
            2,
            "--ready-fd: '2' is no descriptor from 3 on that is open for writing",
        ),
        (["--socket", "s", "--ready-fd", "999"], 2, "--ready-fd: '999' is no descriptor"),
        (["--socket", "s", "--ready-fd", "x"], 2, "--ready-fd: 'x' is no descriptor"),
        (["--socket", "s", "--ready-fd", "9" * 30], 2, "--ready-fd: '999"),
        (
            ["--socket", "s", "--pidfile", "no/such"],
            2,
            "--pidfile: 'no/such' cannot be made: No such file or directory",
        ),
        (["--socket", "s", "--log-level", "x"], 2, "Invalid value for '--log-level': 'x' is not one of"),
        (
            ["--socket", "s", "-device", "virtio-9p-pci-transitional,fsdev=f"],
            2,
            "-device: 'virtio-9p-pci-transitional'",
        ),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], status: int, line: str, run: Run, export: Path, tmp_path: Path
) -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    answer = run("serve", *virtfs(export), *arguments, cwd=tmp_path)
    assert answer.returncode == status
    assert answer.stderr.startswith(f"pyvirtfs: {line.format(cwd=tmp_path)}")
    assert answer.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["export"]
    assert {number: signal.getsignal(number) for number in before} == before
