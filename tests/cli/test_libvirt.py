from __future__ import annotations

import json
import os
import pwd
import re
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyvirtfs.cli.libvirt import _base, _made, _path
from pyvirtfs.errors import ConfigError
from pyvirtfs.guest import DirectMachine, VfioUserClient, mount
from pyvirtfs.memory import GuestMemory
from pyvirtfs.syscalls import memfd_create
from pyvirtfs.vmm.libvirt_changes import NAMESPACE
from pyvirtfs.vmm.libvirt_xml import parse

Run = Callable[..., "subprocess.CompletedProcess[str]"]

RAM_NBYTES = 16 << 20
SLOT = "<address type='pci' domain='0x0000' bus='0x00' slot='0x06' function='0x0'/>"


def filesystem(export: Path, target: str = "test_mount", attributes: str = "", inside: str = SLOT) -> str:
    return (
        f"<filesystem type='mount' accessmode='squash' {attributes}>"
        f"<source dir='{export}'/><target dir='{target}'/>{inside}</filesystem>"
    )


def domain(*devices: str, name: str = "vm") -> str:
    inside = "\n    ".join(devices)
    return f"<domain type='kvm'>\n  <name>{name}</name>\n  <devices>\n    {inside}\n  </devices>\n</domain>\n"


@pytest.fixture
def runtime() -> Iterator[Path]:
    """A folder with a short name, for sockets."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts the command in a process of its own, and waits until it is ready."""
    started: list[subprocess.Popen[str]] = []

    def serving(document: str, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        path = tmp_path / "vm.xml"
        path.write_text(document)
        command = [sys.executable, "-m", "pyvirtfs", "libvirt", *arguments, str(path)]
        one = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
        started.append(one)
        return one

    yield serving
    for one in started:
        one.kill()
        one.communicate()


def told(process: subprocess.Popen[str]) -> str:
    """What it prints until it is ready."""
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        if line == "READY\n":
            return "".join(lines)
        lines.append(line)
    raise AssertionError(process.communicate()[1])


def end(process: subprocess.Popen[str]) -> str:
    """End it; what it wrote to the standard error."""
    process.send_signal(signal.SIGTERM)
    errors = process.communicate(timeout=30)[1]
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    return errors


def read_file(path: str, name: str) -> str:
    """What a guest reads that attaches to a socket."""
    fd = memfd_create("guest", RAM_NBYTES)
    try:
        memory = GuestMemory.from_fd(fd, RAM_NBYTES)
        machine = DirectMachine(memory)
        with VfioUserClient(path, memory, machine.pin, memory_fd=fd) as client:
            mounted = mount(machine.open_channel(machine.attach(client, client.progress)))
            assert mounted.tag == "test_mount"
            return (mounted.root / name).read_text()
    finally:
        os.close(fd)


def arguments_of(text: str) -> list[str | None]:
    """The arguments for QEMU in what was printed."""
    found = re.search(r"<qemu:commandline.*</qemu:commandline>", text, re.DOTALL)
    assert found is not None
    return [one.attributes.get("value") for one in parse(found[0].encode(), "printed").all(f"{{{NAMESPACE}}}arg")]


def test_a_guest_reads_a_file(
    serving: Callable[..., subprocess.Popen[str]], export: Path, tmp_path: Path, runtime: Path
) -> None:
    (export / "file").write_text("Hi Guest")
    sockets, pidfile = runtime, tmp_path / "pid"
    other = filesystem(export, "/import/from/host", inside="")
    process = serving(domain(filesystem(export), other), "--socket", str(sockets), "--pidfile", str(pidfile))
    printed = told(process)
    assert "line 4, target test_mount" in printed
    assert "<access mode='shared'/>" in printed
    option, first, _, second = arguments_of(printed)
    path = str(sockets / "test_mount.sock")
    assert option == "-device"
    assert json.loads(str(first)) == {
        "driver": "vfio-user-pci",
        "socket": {"type": "unix", "path": path},
        "bus": "pci.0",
        "addr": "0x6",
    }
    assert json.loads(str(second))["socket"]["path"] == str(sockets / "%2Fimport%2Ffrom%2Fhost.sock")
    assert pidfile.read_text() == f"{process.pid}\n"
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert read_file(path, "file") == "Hi Guest"
    errors = end(process)
    assert "pyvirtfs: warning: filesystem '/import/from/host' (line 5): it has no PCI address" in errors
    assert "pyvirtfs: test_mount: " in errors
    assert list(sockets.iterdir()) == []


def test_where_sockets_are_by_default(
    serving: Callable[..., subprocess.Popen[str]], export: Path, runtime: Path
) -> None:
    name = f"pyvirtfs test {os.getpid()}"
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(runtime)}
    top = Path("/run") if os.geteuid() == 0 else runtime
    user = pwd.getpwnam("nobody") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
    folder = top / "pyvirtfs" / name.replace(" ", "%20")
    document = domain(filesystem(export), name=name)
    process = serving(document, "--owner", user.pw_name, env=environment, umask=0o077)
    told(process)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o711
    found = (folder / "test_mount.sock").stat()
    assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o600, user.pw_uid, user.pw_gid)
    end(process)
    assert not folder.exists()


def test_folders_that_are_made(tmp_path: Path) -> None:
    folder = tmp_path / "pyvirtfs" / "vm"
    with _made(str(folder)):
        with _made(str(folder)):  # another one's, which goes first
            assert folder.is_dir()
        (folder.parent / "another").mkdir()
    assert [path.name for path in folder.parent.iterdir()] == ["another"]
    with _made(None):
        pass


def test_names_of_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert _base("a/b ä") == "/run/pyvirtfs/a%2Fb%20%C3%A4"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    assert _base("vm") == "/run/user/1000/pyvirtfs/vm"
    for name in ("", ".", ".."):
        with pytest.raises(ConfigError, match="--socket: say where the sockets are to be"):
            _base(name)
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    with pytest.raises(ConfigError, match="--socket: say where the sockets are to be"):
        _base("vm")
    assert _path("/s", "..") == "/s/...sock"


def test_print_starts_nothing(run: Run, export: Path, tmp_path: Path) -> None:
    path = tmp_path / "vm.xml"
    path.write_text(domain(filesystem(export)))
    answer = run("libvirt", "--print", "--socket", "/no/such", "vm.xml", cwd=tmp_path)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert "READY" not in answer.stdout
    assert json.loads(str(arguments_of(answer.stdout)[1]))["socket"]["path"] == "/no/such/test_mount.sock"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["export", "vm.xml"]


def test_print_finds_mistakes_that_need_no_look_at_the_machine(run: Run, tmp_path: Path) -> None:
    limits = "<space_hard_limit>1</space_hard_limit><space_soft_limit>2</space_soft_limit>"
    (tmp_path / "vm.xml").write_text(domain(filesystem(Path("/nowhere"), inside=SLOT + limits)))
    answer = run("libvirt", "--print", "--socket", "s", "vm.xml", cwd=tmp_path)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr == (f"pyvirtfs: {LABEL}: space_soft_limit: 2 is above space_hard_limit, which is 1\n")
    (tmp_path / "vm.xml").write_text(domain(filesystem(Path("/nowhere"))))
    assert run("libvirt", "--print", "--socket", "s", "vm.xml", cwd=tmp_path).returncode == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_domain_that_may_not_be_read(run: Run, tmp_path: Path) -> None:
    (tmp_path / "vm.xml").touch(mode=0)
    answer = run("libvirt", "--print", "--socket", "s", "vm.xml", cwd=tmp_path)
    assert (answer.returncode, answer.stderr) == (2, "pyvirtfs: vm.xml: cannot be read: Permission denied\n")


def test_a_standard_input_that_has_no_domain() -> None:
    for redirection, problem in (
        ("<&-", "the standard input is closed"),
        ("0>/dev/null", "cannot be read: Bad file descriptor"),
    ):
        command = f"{sys.executable} -m pyvirtfs libvirt --print --socket s - {redirection}"
        answer = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60, check=False)
        assert (answer.returncode, answer.stdout, answer.stderr) == (2, "", f"pyvirtfs: -: {problem}\n")


def test_the_whole_domain(run: Run, run_process: Run, export: Path, tmp_path: Path) -> None:
    path, new = tmp_path / "vm.xml", tmp_path / "new.xml"
    path.write_text(domain("<!-- kept -->", filesystem(export)))
    arguments = ("libvirt", "--print", "--socket", "s")
    answer = run(*arguments, "--output", "new.xml", "vm.xml", cwd=tmp_path)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert answer.stdout == "new.xml: the changed domain, for virsh define (QEMU 10.1 or newer)\n"
    text = new.read_text()
    assert "<!-- kept -->" in text
    assert "<filesystem" not in text
    assert json.loads(str(arguments_of(text)[1]))["socket"]["path"] == f"{tmp_path}/s/test_mount.sock"
    assert run(*arguments, "--output", "-", str(path)).stdout == text
    from_stdin = run_process(*arguments, "--socket", f"{tmp_path}/s", "--output", "-", "-", stdin=path.read_text())
    assert (from_stdin.stdout, from_stdin.stderr) == (text, "")
    again = run(*arguments, "--output", str(path), "vm.xml", cwd=tmp_path)
    assert (again.returncode, again.stdout) == (2, "")
    assert again.stderr.endswith("is the file that this command reads, and will have to read again\n")
    assert path.read_text() != text


def test_the_whole_domain_alone_is_printed_while_it_is_served(
    run: Run, serving: Callable[..., subprocess.Popen[str]], export: Path, tmp_path: Path
) -> None:
    arguments = ("--socket", str(tmp_path), "--output", "-")
    process = serving(domain(filesystem(export)), *arguments)
    assert process.stderr is not None
    assert "READY\n" in iter(process.stderr.readline, "")
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert printed == run("libvirt", "--print", *arguments, str(tmp_path / "vm.xml")).stdout
    read, write = os.pipe()
    with os.fdopen(read) as told_there:
        process = serving(domain(filesystem(export)), *arguments, "--ready-fd", str(write), pass_fds=[write])
        os.close(write)
        assert told_there.read() == "READY\n"
    assert "READY" not in end(process)


LABEL = "filesystem 'test_mount' (line 4)"


@pytest.mark.parametrize(
    ("attributes", "inside", "line"),
    [
        ("", "<driver packed='on'/>", "packed: 'on' is known to QEMU but not available here yet"),
        ("", "<driver ats='on'/>", "ats: 'on' is known to QEMU but not available here yet"),
        ("", "<driver iommu='on'/>", "iommu_platform: 'on' is known to QEMU but not available here yet"),
        ("", "<driver page_per_vq='on'/>", "page-per-vq: 'on' is known to QEMU but not available here yet"),
        ("model='virtio-transitional'", "", "-device: 'virtio-9p-pci-transitional' is known to QEMU but not"),
        ("", "<readOnly/>", "<readOnly>: is nothing that libvirt has there"),
    ],
)
def test_what_our_device_cannot_do(
    attributes: str, inside: str, line: str, run: Run, export: Path, tmp_path: Path
) -> None:
    (tmp_path / "vm.xml").write_text(domain(filesystem(export, attributes=attributes, inside=f"{inside}{SLOT}")))
    answer = run("libvirt", "--print", "--socket", "s", "vm.xml", cwd=tmp_path)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr.startswith(f"pyvirtfs: {LABEL}: {line}")
    assert answer.stderr.count("\n") == 1


def test_what_is_off_is_taken(run: Run, export: Path, tmp_path: Path) -> None:
    inside = f"<driver iommu='off' ats='off' packed='off' page_per_vq='off'/><acpi index='5'/>{SLOT}"
    (tmp_path / "vm.xml").write_text(domain(filesystem(export, "t", "model='virtio-non-transitional'", inside)))
    answer = run("libvirt", "--print", "--socket", "s", "vm.xml", cwd=tmp_path)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert json.loads(str(arguments_of(answer.stdout)[1]))["acpi-index"] == 5


@pytest.mark.parametrize(
    ("arguments", "status", "line"),
    [
        (
            ["--socket", "no", "vm.xml"],
            2,
            f"{LABEL}: --socket: '{{cwd}}/no/test_mount.sock' cannot be made: there is no folder '{{cwd}}/no', make",
        ),
        (["--socket", ".", "--owner", "no such user", "vm.xml"], 2, "--owner: there is no user 'no such user'"),
        (["--socket", ".", "--owner", "9" * 30, "vm.xml"], 2, "--owner: there is no user '999"),
        (["--socket", ".", "--only", "x", "vm.xml"], 2, "--only: there is no <filesystem> with the target 'x'"),
        (["--socket", ".", "--ready-fd", "2", "vm.xml"], 2, "--ready-fd: '2' is no descriptor from 3 on"),
        (["--socket", ".", "--pidfile", "no/such", "vm.xml"], 2, "--pidfile: 'no/such' cannot be made"),
        (["--socket", ".", "--output", "no/such", "vm.xml"], 2, "--output: 'no/such' cannot be made: No such file or"),
        (["--socket", ".", "missing.xml"], 2, "missing.xml: cannot be read: No such file or directory"),
        (["--socket", ".", "."], 2, ".: cannot be read: Is a directory"),
        (["--socket", ".", "vm.xml/x"], 2, "vm.xml/x: cannot be read: Not a directory"),
        (["--socket", ".", "bad.xml"], 2, "bad.xml: line 2, column 1: no well-formed XML: no element found"),
        (["--socket", ".", "/dev/zero"], 2, "/dev/zero: is larger than 16 MiB, which no domain is"),
        (["--socket", ".", "gone.xml"], 2, "filesystem 'test_mount' (line 4): path: "),
        ([], 2, "Missing argument 'DOMAIN.xml'."),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], status: int, line: str, run: Run, export: Path, tmp_path: Path
) -> None:
    (tmp_path / "vm.xml").write_text(domain(filesystem(export)))
    (tmp_path / "gone.xml").write_text(domain(filesystem(export / "gone")))
    (tmp_path / "bad.xml").write_text("<domain>\n")
    before = sorted(tmp_path.iterdir())
    answer = run("libvirt", *arguments, cwd=tmp_path)
    assert answer.returncode == status
    assert answer.stderr.startswith(f"pyvirtfs: {line.format(cwd=tmp_path)}")
    assert answer.stderr.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root gives files to anybody")
def test_sockets_that_cannot_be_given(run: Run, export: Path, tmp_path: Path) -> None:
    (tmp_path / "vm.xml").write_text(domain(filesystem(export)))
    answer = run("libvirt", "--socket", ".", "--owner", "root", "vm.xml", cwd=tmp_path)
    assert answer.returncode == 2
    assert "cannot be given to root: " in answer.stderr
    assert not (tmp_path / "test_mount.sock").exists()
