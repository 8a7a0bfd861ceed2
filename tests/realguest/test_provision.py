"""What `provision` does where it has nothing to fetch, or cannot."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import lzma
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.realguest.debian_root import load_provision
from tests.realguest.machine import GuestFiles

PROVISION = Path(__file__).parent / "provision"


@pytest.fixture(scope="module")
def module() -> ModuleType:
    """The script as a module."""
    return load_provision()


def provision(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run it, with fewer variables: those of this process name a cache, and perhaps a QEMU."""
    kept: Mapping[str, str] = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return subprocess.run(
        [sys.executable, PROVISION, *arguments],
        env={**kept, **environment}, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    """Why it has failed: the last line, after those that tell how far it has come."""
    assert (done.returncode, done.stdout) == (1, ""), done
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


def fake_qemu(path: Path, version: str) -> str:
    path.write_text(f"#!/bin/sh\necho 'QEMU emulator version {version} (Debian)'\n")
    path.chmod(0o755)
    return str(path)


def test_help() -> None:
    done = provision("--help")
    assert done.returncode == 0
    assert "PYVIRTFS_REALGUEST_CACHE" in done.stdout
    assert os.access(PROVISION, os.X_OK)


def test_the_second_time_is_fast_and_takes_no_network(guest_files: GuestFiles) -> None:
    started = time.monotonic()
    done = subprocess.run([sys.executable, PROVISION], capture_output=True, text=True, check=True)
    assert time.monotonic() - started < 2
    assert done.stderr == ""  # no line about anything that is asked, fetched or made
    assert GuestFiles.from_json(done.stdout) == guest_files
    assert re.fullmatch(r"\d+(\.\d+)+", guest_files.qemu_version)
    assert "cloud" not in guest_files.kernel_version
    assert os.path.isdir(os.path.join(guest_files.modules, "kernel"))


def on_a_terminal(command: Sequence[str | Path]) -> str:
    """What it prints there."""
    ours, theirs = os.openpty()
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=theirs) as process:
        os.close(theirs)
        printed = b""
        with contextlib.suppress(OSError):  # EIO: it has ended
            while data := os.read(ours, 65536):
                printed += data
    os.close(ours)
    assert process.returncode == 0
    return printed.decode().replace("\r\n", "\n")


def test_a_person_gets_a_few_lines(guest_files: GuestFiles) -> None:
    """And JSON, if that is wanted."""
    told = on_a_terminal([sys.executable, PROVISION])
    folder, qemu, kernel, *_ = lines = told.splitlines()
    assert len(lines) == 5
    home = os.path.dirname(guest_files.kernel)
    size = re.fullmatch(rf"folder     {re.escape(home)} \((\d+) MB\)", folder)
    assert size is not None
    du = int(subprocess.run(["du", "-sk", home], capture_output=True, text=True, check=True).stdout.split()[0])
    assert abs(int(size[1]) - du * 1024 / 1e6) <= 2
    assert qemu == f"QEMU       {guest_files.qemu_version}: {guest_files.qemu}"
    assert kernel == f"kernel     {guest_files.kernel_version}: vmlinuz"
    assert GuestFiles.from_json(on_a_terminal([sys.executable, PROVISION, "--json"])) == guest_files


def test_another_one_is_waited_for(guest_files: GuestFiles, tmp_path: Path, module: ModuleType) -> None:
    with open(tmp_path / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with subprocess.Popen(
            [sys.executable, PROVISION, "--cache", tmp_path], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stderr is not None
            assert process.stderr.readline() == "provision: another one is at work; waiting for it\n"
            stamp = module.stamp_of(tmp_path, module.own_qemu())
            stamp.write_text(json.dumps(dataclasses.asdict(guest_files)))
            fcntl.flock(lock, fcntl.LOCK_UN)
            made, told = process.communicate(timeout=60)
    assert (told, process.returncode) == ("", 0)
    assert GuestFiles.from_json(made) == guest_files


def test_without_apt(tmp_path: Path) -> None:
    done = provision("--cache", str(tmp_path), PATH="/nowhere")
    assert re.fullmatch(r"provision: there is no apt\S+ on this machine", one_line(done))
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_without_network(tmp_path: Path) -> None:
    with socket.socket() as unused:  # bound and not listening: refuses at once
        unused.bind(("127.0.0.1", 0))
        proxy = f"http://127.0.0.1:{unused.getsockname()[1]}"
        done = provision("--cache", str(tmp_path), http_proxy=proxy, https_proxy=proxy)
    assert re.match(r"provision: apt-get failed: .*(Could not connect|Failed to fetch)", one_line(done))
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_a_cache_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = provision(PYVIRTFS_REALGUEST_CACHE=str(tmp_path / "file"))
    assert one_line(done) == f"provision: {tmp_path}/file: File exists"
    assert "a colon or space" in one_line(provision(XDG_CACHE_HOME=str(tmp_path / "a:b")))


def test_a_qemu_that_is_named(tmp_path: Path) -> None:
    """One that is named is never replaced silently."""
    cache = {"PYVIRTFS_REALGUEST_CACHE": str(tmp_path)}
    old = fake_qemu(tmp_path / "old", "10.0.9")
    wrong = f"provision: PYVIRTFS_QEMU names {old}, which is version 10.0.9, and 10.1 is needed"
    assert one_line(provision(**cache, PYVIRTFS_QEMU=old)) == wrong
    wrong = "provision: PYVIRTFS_QEMU names /nowhere, which is no program"
    assert one_line(provision(**cache, PYVIRTFS_QEMU="/nowhere")) == wrong
    assert "/true --version says 'true " in one_line(provision(**cache, PYVIRTFS_QEMU="/bin/true"))


@pytest.mark.parametrize(
    ("version", "taken"), [("8.2.1", False), ("10.0.9", False), ("10.1.0", True), ("11.1.3", True)]
)
def test_a_qemu_of_the_path(
    version: str, taken: bool, tmp_path: Path, module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = fake_qemu(tmp_path / "qemu-system-x86_64", version)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("PYVIRTFS_QEMU", raising=False)
    assert module.own_qemu() == ((path, version) if taken else None)


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    """An unpacked package of a kernel with a few modules."""
    for folder in ("boot", "lib/modules/6.1-x/kernel/net"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "boot/vmlinuz-6.1-x").touch()
    modules = tmp_path / "lib/modules/6.1-x"
    (modules / "modules.builtin").write_text("kernel/drivers/virtio/virtio.ko\n")
    depends = {"a": "b,c-d", "b": "c_d", "c-d": "virtio", "lost": "nobody"}
    for name, others in depends.items():
        content = f"ELF\0name={name}\0depends={others}\0intree=Y\0".encode()
        if name == "b":
            (modules / "kernel" / "b.ko").write_bytes(content)
        else:
            (modules / "kernel/net" / f"{name}.ko.xz").write_bytes(lzma.compress(content))
    return tmp_path


def test_the_order_of_modules(kernel: Path, module: ModuleType) -> None:
    unpacked = module.Kernel(kernel)
    assert unpacked.version == "6.1-x"
    assert list(unpacked.load_order(("virtio", "a"))) == ["c_d", "b", "a"]
    assert unpacked.load_order(("b",))["b"].startswith(b"ELF\0name=b\0")
    with pytest.raises(module.ProvisionError, match=r"kernel 6.1-x has no module nobody"):
        unpacked.load_order(("lost",))


def test_the_archive(guest_files: GuestFiles, tmp_path: Path, module: ModuleType) -> None:
    archive = module.Archive()
    archive.file("usr/bin/program", b"123", 0o755)
    archive.file("usr/bin/program", b"not this one")
    archive.link("bin", "usr/bin")
    archive.file("usr/empty", "")
    archive.write(tmp_path / "archive")

    def cpio(*options: str) -> str:
        command: list[Any] = [guest_files.busybox, "cpio", *options, "-F", tmp_path / "archive"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    listed = re.findall(r"^(\S+) (\S+) +\d+ 1970\S+ \S+ (.*)$", cpio("-tv"), re.MULTILINE)
    assert sorted(listed) == [
        ("-rw-r--r--", "0/0", "usr/empty"),
        ("-rwxr-xr-x", "0/0", "usr/bin/program"),
        ("drwxr-xr-x", "0/0", "usr"),
        ("drwxr-xr-x", "0/0", "usr/bin"),
        ("lrwxrwxrwx", "0/0", "bin -> usr/bin"),
    ]
    cpio("-id")
    assert (tmp_path / "bin/program").read_bytes() == b"123"


def test_what_is_left_over_goes(tmp_path: Path, module: ModuleType) -> None:
    def folder(name: str, days: float) -> str:
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (0, time.time() - days * module.DAY))
        return name

    def stamp(name: str, of: str, days: float) -> str:
        made = dict.fromkeys(("qemu", "modules", "initramfs", "busybox"), str(tmp_path))
        kernel = tmp_path / of / "vmlinuz"
        kernel.touch()
        os.utime(kernel.parent, (0, time.time() - 100 * module.DAY))
        (tmp_path / name).write_text(json.dumps({**made, "kernel": str(kernel)}))
        os.utime(tmp_path / name, (0, time.time() - days * module.DAY))
        return name

    used, unused, old, new = (f"{n:016x}-{n:012x}" for n in range(4))
    kept = {folder(used, 100), stamp("used.json", used, 3), folder(new, 0.5), folder("a person's", 100)}
    folder(unused, 100)
    stamp("unused.json", unused, 30)
    folder(old, 100)
    folder("tmp.1234", 0)
    (tmp_path / "tmp.5678").touch()
    module.tidy(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == kept


def test_ci_takes_no_excuse(tmp_path: Path) -> None:
    """Where nothing can be provisioned, tests are skipped with the reason, but not in CI."""
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", f"--basetemp={tmp_path}/base"]
    test = f"{Path(__file__).parent}/test_machine_life.py::test_wrong_arguments"
    for ci, expected in (("true", "1 error"), ("", "1 skipped")):
        environment = {**os.environ, "CI": ci, "PYVIRTFS_QEMU": "/nowhere"}
        done = subprocess.run([*command, test], env=environment, capture_output=True, text=True, check=False)
        assert expected in done.stdout
        assert "provision: PYVIRTFS_QEMU names /nowhere, which is no program" in done.stdout
