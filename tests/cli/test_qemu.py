from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyvirtfs.testing.descriptors import check_descriptors

Run = Callable[..., "subprocess.CompletedProcess[str]"]

# Answers the questions about its version and its devices; else it notes its arguments, and does what DO says.
FAKE = """#!/bin/sh
if [ "$1" = --version ]; then echo "QEMU emulator version ${VERSION:-11.1.3} (made for tests)"; exit; fi
if [ "$2" = vfio-user-pci,help ]; then
    [ "$NO_DEVICE" ] && exit 1
    echo "  socket=<SocketAddress>"
    exit
fi
umask > "$0.umask"
ulimit -n > "$0.nofile"
for argument; do printf '%s\\0' "$argument"; done > "$0.tmp"
ls -la $(dirname "$(grep -z -o '/[^"]*/9p0.sock' "$0.tmp" | tr -d '\\0')") > "$0.sockets" 2>&1
mv "$0.tmp" "$0.arguments"
eval "$DO"
"""


class Fake:
    """A program that passes for QEMU."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "qemu-system-x86_64"
        self.path.write_text(FAKE)
        self.path.chmod(0o755)

    def noted(self, what: str) -> str:
        return self.path.with_name(f"{self.path.name}.{what}").read_text()

    @property
    def arguments(self) -> list[str]:
        return self.noted("arguments").split("\0")[:-1]

    @property
    def ran(self) -> bool:
        return self.path.with_name(f"{self.path.name}.arguments").exists()

    def wait(self) -> None:
        deadline = time.monotonic() + 30
        while not self.ran:
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where sockets are: a folder with a short name that nobody else uses."""
    with tempfile.TemporaryDirectory(prefix="qemu-", dir="/tmp") as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        yield Path(folder)


@pytest.fixture
def fake(tmp_path: Path, runtime: Path) -> Fake:
    del runtime
    (tmp_path / "bin").mkdir()
    return Fake(tmp_path / "bin")


@pytest.fixture
def virtfs(export: Path) -> list[str]:
    return ["-virtfs", f"local,path={export},mount_tag=tag,security_model=none"]


def sockets_of(arguments: list[str]) -> list[str]:
    return [json.loads(word)["socket"]["path"] for word in arguments if "vfio-user-pci" in word]


def test_devices_are_served_while_qemu_runs(fake: Fake, run: Run, virtfs: list[str], export: Path) -> None:
    pair = f"-fsdev local,id=f,path={export},security_model=none -device virtio-9p-pci,fsdev=f,mount_tag=b,addr=5,id=x"
    with check_descriptors():
        answer = run("qemu", "--", str(fake.path), "-m", "1G", *virtfs, "-append", "-virtfs", *shlex.split(pair), "-S")
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "", "")
    first, second = sockets_of(fake.arguments)
    folder = Path(first).parent
    assert fake.arguments == [
        "-object", "memory-backend-memfd,id=pyvirtfs-ram,size=1024M,share=on",
        "-machine", "memory-backend=pyvirtfs-ram",
        "-m", "1G",
        "-device", f'{{"driver":"vfio-user-pci","socket":{{"type":"unix","path":"{folder}/9p0.sock"}}}}',
        "-append", "-virtfs",
        "-device",
        f'{{"driver":"vfio-user-pci","socket":{{"type":"unix","path":"{folder}/9p1.sock"}},"addr":"5","id":"x"}}',
        "-S",
    ]  # fmt: skip
    there = {line.split()[-1]: line.split()[0] for line in fake.noted("sockets").splitlines()[1:]}
    assert there["."] == "drwx------"
    assert there["9p0.sock"] == there["9p1.sock"] == "srw-------"
    assert not folder.exists()
    assert second == f"{folder}/9p1.sock"


def test_qemu_has_the_limits_that_it_would_have(fake: Fake, virtfs: list[str]) -> None:
    command = 'ulimit -S -n 300; umask 027; exec "$@"'
    words = [sys.executable, "-m", "pyvirtfs", "qemu", str(fake.path), *virtfs]
    subprocess.run(["sh", "-c", command, "sh", *words], timeout=60, check=True)
    assert (fake.noted("nofile"), fake.noted("umask")) == ("300\n", "0027\n")


@pytest.mark.parametrize(("todo", "status"), [("exit 0", 0), ("exit 7", 7), ("kill -KILL $$", 137), ("kill $$", 143)])
def test_its_exit_status_is_ours(
    todo: str, status: int, fake: Fake, run: Run, virtfs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DO", todo)
    answer = run("qemu", "--", str(fake.path), *virtfs)
    assert (answer.returncode, answer.stderr) == (status, "")
    assert not Path(sockets_of(fake.arguments)[0]).parent.exists()


def test_its_streams_are_ours(fake: Fake, virtfs: list[str]) -> None:
    command = [sys.executable, "-m", "pyvirtfs", "qemu", "--", str(fake.path), *virtfs]
    answer = subprocess.run(
        command,
        input="Hi\n",
        env={**os.environ, "DO": "cat; echo told >&2"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert (answer.stdout, answer.stderr) == ("Hi\n", "told\n")


@pytest.mark.parametrize("name", ["TERM", "INT", "HUP"])
def test_signals_go_to_qemu(name: str, fake: Fake, virtfs: list[str]) -> None:
    todo = f"trap 'echo {name}; exit 9' {name}; touch $0.ready; while :; do sleep 0.02; done"
    command = [sys.executable, "-m", "pyvirtfs", "qemu", "--log-level=info", "--", str(fake.path), *virtfs]
    with subprocess.Popen(
        command, env={**os.environ, "DO": todo}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            fake.wait()
            while not fake.path.with_name("qemu-system-x86_64.ready").exists():
                time.sleep(0.01)
            process.send_signal(getattr(signal, f"SIG{name}"))
            assert process.communicate(timeout=30) == (f"{name}\n", "")
        finally:
            process.kill()
    assert process.returncode == 9
    assert not Path(sockets_of(fake.arguments)[0]).parent.exists()


def test_a_dry_run_starts_nothing(fake: Fake, run: Run, virtfs: list[str], runtime: Path) -> None:
    before = sorted(runtime.iterdir())
    answer = run("qemu", "--dry-run", "--", str(fake.path), "-append", "a b", *virtfs)
    assert (answer.returncode, answer.stderr) == (0, "")
    program, *words = shlex.split(answer.stdout)
    assert program == str(fake.path)
    assert words[4:7] == ["-append", "a b", "-device"]
    assert sockets_of(words) == [f"{runtime}/pyvirtfs-XXXXXXXX/9p0.sock"]
    assert not fake.ran
    assert sorted(runtime.iterdir()) == before
    answer = run("qemu", "--dry-run", "no-such-program", *virtfs)
    assert answer.stdout.startswith("no-such-program -object memory-backend-memfd,")


def test_a_command_line_without_a_9p_device(fake: Fake, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DO", "exit 3")
    monkeypatch.setenv("VERSION", "8.2.2")  # which may well be
    answer = run("qemu", "--", str(fake.path), "-m", "1G", "disk.img")
    line = "pyvirtfs: warning: there is no virtio-9p-pci device on QEMU's command line, which is run as it is\n"
    assert (answer.returncode, answer.stdout, answer.stderr) == (3, "", line)
    assert fake.arguments == ["-m", "1G", "disk.img"]
    answer = run("qemu", "--dry-run", "--", "qemu", "-m", "1G", "a b")
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "qemu -m 1G 'a b'\n", line)


def test_warnings(fake: Fake, run: Run, export: Path) -> None:
    words = [
        "-fsdev", f"local,id=f,path={export},security_model=none",
        "-device", "virtio-9p-pci-transitional,fsdev=f,mount_tag=t,addr=5",
        "-object", "memory-backend-memfd,id=m,size=128M,share=off", "-machine", "q35,memory-backend=m",
    ]  # fmt: skip
    answer = run("qemu", "--", str(fake.path), *words)
    assert answer.returncode == 0
    first, second = answer.stderr.splitlines()
    assert first.startswith("pyvirtfs: warning: -device virtio-9p-pci-transitional: the device has no legacy interface")
    assert second.startswith("pyvirtfs: warning: -object memory-backend-memfd,id=m: share=off has become share=on")
    answer = run("qemu", "--log-level=error", "--", str(fake.path), *words)
    assert (answer.returncode, answer.stderr) == (0, "")


@pytest.mark.parametrize(
    ("environment", "line"),
    [
        (
            {"VERSION": "10.0.6"},
            "is QEMU 10.0.6, which has no vfio-user-pci device; install QEMU 10.1 or newer (Debian",
        ),
        ({"NO_DEVICE": "1"}, "is QEMU 11.1.3, made without its vfio-user-pci device; install QEMU 10.1 or newer"),
        ({"VERSION": "x"}, "is not QEMU: to --version it says 'QEMU emulator version x"),
    ],
)
def test_a_qemu_that_will_not_do(
    environment: dict[str, str], line: str, fake: Fake, run: Run, virtfs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    answer = run("qemu", "--", str(fake.path), *virtfs)
    assert answer.returncode == 2
    assert answer.stderr.startswith(f"pyvirtfs: {fake.path}: {line}")
    assert answer.stderr.count("\n") == 1
    assert not fake.ran


LOCAL = "local,id=f,path={export},security_model=none"


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ("-virtfs local,path=/no/such,mount_tag=t,security_model=none", "path: '/no/such' does not exist"),
        ("-virtfs local,path=/,mount_tag=t,security_model=none,fmode=0600", "fmode: belongs to the mapped models"),
        ("-virtfs local,path=/,mount_tag=t,security_model=squash", "security_model: 'squash' is not a known value"),
        ("-virtfs local,path=/,mount_tag=t", "security_model: fsdev driver 'local' needs it"),
        ("-virtfs local,path=/,security_model=none", "mount_tag: the name under which"),
        ("-virtfs proxy,mount_tag=t", "-virtfs: there is no driver 'proxy'"),
        ("-device virtio-9p-pci,fsdev=f,mount_tag=t", "fsdev: there is no -fsdev with the id 'f'"),
        (f"-fsdev {LOCAL} -device virtio-9p-pci,fsdev=f", "mount_tag: virtio-9p-pci needs it"),
        (
            f"-fsdev {LOCAL} -device virtio-9p-pci,fsdev=f,mount_tag=t,packed=on",
            "packed: 'on' is known to QEMU but not",
        ),
        (
            f"-fsdev {LOCAL} -device virtio-9p-pci,fsdev=f,mount_tag=t,disable-modern=on",
            "disable-modern: 'on' is known",
        ),
        (f"-virtfs {LOCAL},mount_tag=t -daemonize", "-daemonize: the devices end with this command"),
        (f"-virtfs {LOCAL},mount_tag=t -m 1x", "-m: '1x' is not a size"),
        (f"-virtfs {LOCAL},mount_tag=t -M q35,memory-encryption=s", "-machine: memory-encryption=s: nothing outside"),
    ],
)
def test_mistakes_are_one_line(options: str, line: str, fake: Fake, run: Run, export: Path, runtime: Path) -> None:
    before = sorted(runtime.iterdir())
    answer = run("qemu", "--", str(fake.path), *options.format(export=export).split())
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr.startswith(f"pyvirtfs: {line}")
    assert answer.stderr.count("\n") == 1
    assert not fake.ran
    assert sorted(runtime.iterdir()) == before


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ("security_model=squash", "security_model: 'squash' is not a known value"),
        ("security_model=none,fmode=0600", "fmode: belongs to the mapped models"),
        ("security_model=none,readoly=on", "readoly: fsdev driver 'local' has no such option; did you mean readonly?"),
        ("security_model=none,space_hard_limit=1.5G", "space_hard_limit: '1.5G' is not a size"),
        ("security_model=none,mount_tag=" + "t" * 32, "mount_tag: "),
    ],
)
def test_a_dry_run_finds_mistakes_that_need_no_look_at_the_machine(options: str, line: str, run: Run) -> None:
    answer = run("qemu", "--dry-run", "--", "no-such-qemu", "-virtfs", f"local,path=/nowhere,mount_tag=t,{options}")
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr.startswith(f"pyvirtfs: {line}")
    assert answer.stderr.count("\n") == 1


def test_a_dry_run_looks_at_no_folder_and_warns_as_the_start_would(run: Run) -> None:
    options = "local,path=/nowhere,mount_tag=t,security_model=none,readonly=on,device_nodes=on"
    answer = run("qemu", "--dry-run", "--", "no-such-qemu", "-virtfs", options)
    assert answer.returncode == 0
    assert answer.stdout.startswith("no-such-qemu ")
    assert answer.stderr == "pyvirtfs: warning: device_nodes: has no effect with readonly=on: no guest makes any\n"


def test_strict_memory(fake: Fake, run: Run, virtfs: list[str]) -> None:
    answer = run("qemu", "--strict-memory", "--", str(fake.path), *virtfs, "-mem-path", "/dev/shm")
    assert answer.returncode == 2
    assert answer.stderr.startswith("pyvirtfs: -mem-path: '/dev/shm': such RAM can shrink")
    assert run("qemu", "--strict-memory", "--", str(fake.path), *virtfs).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "QEMU: say what to run, for example: pyvirtfs qemu -- qemu-system-x86_64 -m 1G ..."),
        (["--"], "QEMU: say what to run"),
        (["--wrong"], "--wrong: there is no such option"),
        (["--log-format=xml", "qemu"], "Invalid value for '--log-format': 'xml' is not one of"),
        (["--import", "no_such_module", "qemu"], "--import: 'no_such_module' cannot be imported"),
        (["no-such-qemu", "-S"], "no-such-qemu: cannot be run: No such file or directory"),
        (["no-such-qemu", "-virtfs", "local,path=/,mount_tag=t,security_model=none"], "no-such-qemu: there is no such"),
    ],
)
def test_bad_usage(arguments: list[str], line: str, run: Run) -> None:
    answer = run("qemu", "--log-level=error", *arguments)
    assert answer.returncode == 2
    assert answer.stderr.startswith(f"pyvirtfs: {line}")
    assert answer.stderr.count("\n") == 1


def test_a_driver_of_a_module(
    fake: Fake, run: Run, export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_driver_of_qemu.py").write_text(
        "from pyvirtfs.fsdev import registry\n"
        "registry.register('own', registry.lookup('local').factory, options=registry.lookup('local').options)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    from pyvirtfs.fsdev import registry

    try:
        device = f"own,path={export},mount_tag=t,security_model=none"
        answer = run("qemu", "--import", "own_driver_of_qemu", "--", str(fake.path), "-virtfs", device)
        assert (answer.returncode, answer.stderr) == (0, "")
    finally:
        registry.unregister("own")
        del sys.modules["own_driver_of_qemu"]


def test_one_socket_that_cannot_be_made(
    fake: Fake, run: Run, virtfs: list[str], monkeypatch: pytest.MonkeyPatch, runtime: Path
) -> None:
    from pyvirtfs.cli import qemu as module

    before = sorted(runtime.iterdir())
    monkeypatch.setattr(module, "_paths", lambda folder, count: [f"{folder}/no/such/{one}" for one in range(count)])
    answer = run("qemu", "--", str(fake.path), *virtfs)
    assert answer.returncode == 2
    assert "cannot be made: there is no folder" in answer.stderr
    assert not fake.ran
    assert sorted(runtime.iterdir()) == before
