from __future__ import annotations

import json
import os
import resource
import socket
import stat
import struct
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pyvirtfs.cli.devices import DeviceSettings
from pyvirtfs.cli.logs import logging_to_stderr
from pyvirtfs.cli.serving import OpenFiles, Service, _Summary, socket_base
from pyvirtfs.errors import ConfigError
from pyvirtfs.fsdev.options import FsdevOptions
from pyvirtfs.p9.counters import Counters
from pyvirtfs.testing.descriptors import check_descriptors


def settings_of(export: Path, tag: str = "tag") -> DeviceSettings:
    options = FsdevOptions("local", tag, {"path": str(export), "security_model": "none"})
    return DeviceSettings(fsdev=options, mount_tag=tag, slot=6)


def greet(path: str) -> None:
    """Connect as a client does, agree on a version, leave."""
    body = struct.pack("=HH", 0, 0) + b"{}\0"
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(path)
        client.sendall(struct.pack("=HHIII", 1, 1, 16 + len(body), 0, 0) + body)
        assert client.recv(1000)


class Running:
    """A service that runs in a thread."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.thread = threading.Thread(target=service.run)

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.service.stop()
        self.thread.join(10)
        assert not self.thread.is_alive()


def test_a_connection_is_summed_up(export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "s")
    with logging_to_stderr("json", "info", 0), Service(strict_memory=False, trace=0) as service:
        service.add(settings_of(export), path)
        with Running(service):
            greet(path)
            greet(path)  # served when the first one is gone
    entries = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    ended = [entry for entry in entries if entry.get("event") == "disconnected"]
    assert len(ended) == 2
    for entry in ended:
        assert entry["message"] == "tag: 0 requests, 0 errors, 0 bytes read, 0 bytes written"
        assert (entry["tag"], entry["messages"], entry["messages_refused"], entry["reason"]) == ("tag", 1, 0, "")


def test_each_summary_begins_where_the_last_one_ended(capsys: pytest.CaptureFixture[str]) -> None:
    counters = Counters()
    counters.errors = 9  # from before
    summary = _Summary("tag", counters)
    connection: Any = SimpleNamespace(received=1, refused=0)
    with logging_to_stderr("text", "info", 0):
        for nbytes in (5000, 1 << 20):
            counters.by_type[100] += 3
            counters.errors += 1
            counters.bytes_read += nbytes
            counters.bytes_written += 7
            summary.tell(connection, "")
    assert capsys.readouterr().err.splitlines() == [
        "pyvirtfs: tag: 3 requests, 1 errors, 4.9KiB read, 7 bytes written",
        "pyvirtfs: tag: 3 requests, 1 errors, 1.0MiB read, 7 bytes written",
    ]


def test_traces(export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for count, expected in ((1, False), (2, True)):
        path = str(tmp_path / "s")
        with logging_to_stderr("text", "error", count), Service(strict_memory=False, trace=count) as service:
            service.add(settings_of(export), path)
            with Running(service):
                greet(path)
        assert ("pyvirtfs: tag: VERSION" in capsys.readouterr().err) is expected


def test_several_devices_end_together(export: Path, tmp_path: Path) -> None:
    paths = [tmp_path / name for name in "abc"]
    with check_descriptors(), Service(strict_memory=True, trace=0) as service:
        for path in paths:
            service.add(settings_of(export, path.name), str(path))
        for path in paths:
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with Running(service):
            for path in paths:
                greet(str(path))
        service.close()
        service.close()
        service.stop()  # as a late signal
    assert not any(path.exists() for path in paths)


@pytest.mark.parametrize(("name", "folder", "told"), [("s", "", "somebody listens at"), ("t", "no", "does not exist")])
def test_nothing_is_left_of_one_that_cannot_begin(
    name: str, folder: str, told: str, export: Path, tmp_path: Path
) -> None:
    with check_descriptors():
        with Service(strict_memory=False, trace=0) as service:
            service.add(settings_of(export), str(tmp_path / "s"))
            with pytest.raises(ConfigError, match=told):
                service.add(settings_of(export / folder), str(tmp_path / name))
        assert sorted(path.name for path in tmp_path.iterdir()) == ["export"]


def test_it_may_be_stopped_before_it_runs(export: Path, tmp_path: Path) -> None:
    with Service(strict_memory=False, trace=0) as service:
        service.add(settings_of(export), str(tmp_path / "s"))
        service.stop()
        service.run()


def test_open_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
    try:
        with OpenFiles() as limit:
            assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
            with limit.shared_by(4):
                assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard // 4, hard)
            with limit.as_before():
                assert resource.getrlimit(resource.RLIMIT_NOFILE) == (200, hard)
            assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (200, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_where_sockets_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = Path("/tmp")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/var/tmp")
    assert socket_base() == "/var/tmp"
    for unusable in ("", "tmp", "/no/such/folder", f"/tmp/{'x' * 60}"):
        monkeypatch.setenv("XDG_RUNTIME_DIR", unusable)
        assert socket_base() == str(short)
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert socket_base() == str(short)
    assert os.access(short, os.W_OK)
