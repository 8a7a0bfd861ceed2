from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from pyvirtfs.cli.listening import given_away, listen_addresses, mount_command, open_listener
from pyvirtfs.errors import ConfigError
from pyvirtfs.fsdev.options import FsdevOptions
from pyvirtfs.stream.listener import Tcp, Unix


def exports(*names: str, **values: str) -> list[FsdevOptions]:
    return [FsdevOptions("local", name, {"path": f"/srv/{name}", **values}) for name in names]


def test_addresses_in_the_order_of_the_exports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = listen_addresses(["unix:s", "unix:/x", "tcp:5640"], exports("a", "b", "c"), allow_tcp=True)
    assert found == [Unix(f"{tmp_path}/s"), Unix("/x"), Tcp("127.0.0.1", 5640)]
    assert listen_addresses([], [], allow_tcp=False) == []


def test_one_folder_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = listen_addresses(["unix:run/"], exports("a", "b"), allow_tcp=False)
    assert found == [Unix(f"{tmp_path}/run/a.sock"), Unix(f"{tmp_path}/run/b.sock")]


@pytest.mark.parametrize(
    ("texts", "names", "line"),
    [
        (["unix:a"], [], "--listen: there is no export for it: each is a device's"),
        (["unix:a"], ["a", "b"], "--listen: give each of 2 exports without a device one"),
        (["unix:a", "unix:d/"], ["a"], "--listen: give each of 1 exports without a device one, or unix:FOLDER/"),
        (["unix:d/"], [], "--listen: there is no export for it"),
        (["unix:d/"], ["a/b"], "--listen: 'a/b' makes no name of a socket: give each export a --listen"),
        (["unix:d/"], ["a", "a"], "--listen: 'a' makes no name of a socket"),
        (["x"], ["a"], "--listen: 'x' is no address (choose from unix:PATH, tcp:PORT, tcp:HOST:PORT)"),
        (
            ["tcp:5640"],
            ["a"],
            (
                "--listen: tcp:127.0.0.1:5640: TCP authenticates nobody: every user and program of this machine (by "
                "port 5640 of 127.0.0.1) can read and write everything below /srv/a as this process; if that is meant, "
                "say --allow-unauthenticated-tcp, and otherwise use unix:PATH"
            ),
        ),
    ],
)
def test_addresses_that_cannot_be(texts: list[str], names: list[str], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        listen_addresses(texts, exports(*names), allow_tcp=False)
    assert str(caught.value).startswith(line)


@pytest.mark.parametrize(
    ("host", "values", "sentence"),
    [
        ("0.0.0.0", {}, "everybody who reaches port 9 of any address of this machine can read and write everything"),
        ("::", {}, "everybody who reaches port 9 of any address of this machine can read and write everything"),
        ("192.0.2.1", {"readonly": "on"}, "everybody who reaches port 9 of 192.0.2.1 can read everything below /srv/a"),
        ("::1", {"readonly": "off"}, "every user and program of this machine (by port 9 of ::1) can read and write"),
    ],
)
def test_what_is_given_away(host: str, values: dict[str, str], sentence: str) -> None:
    assert given_away(host, 9, exports("a", **values)[0]).startswith(sentence)


def test_an_export_without_a_path_is_given_away_by_name() -> None:
    told = given_away("192.0.2.1", 9, FsdevOptions("memory", None, {}))
    assert told == "everybody who reaches port 9 of 192.0.2.1 can read and write all of memory as this process"


def test_how_linux_mounts_it(tmp_path: Path) -> None:
    path = tmp_path / "a socket"
    with contextlib.closing(open_listener(Unix(str(path)))) as listener:
        assert mount_command(listener) == f"mount -t 9p -o trans=unix,version=9p2000.L '{path}' /mnt"
    with contextlib.closing(open_listener(Tcp("127.0.0.1", 0))) as listener:
        port = listener.name.rpartition(":")[2]
        assert port != "0"
        assert mount_command(listener) == f"mount -t 9p -o trans=tcp,port={port},version=9p2000.L 127.0.0.1 /mnt"
    with contextlib.closing(open_listener(Tcp("0.0.0.0", 0))) as listener:
        port = listener.name.rpartition(":")[2]
        assert mount_command(listener) == f"mount -t 9p -o trans=tcp,port={port},version=9p2000.L ADDRESS /mnt"
