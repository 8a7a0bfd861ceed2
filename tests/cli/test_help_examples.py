"""The examples in the help of the commands that serve: each one does what it shows, at other places of the machine."""

from __future__ import annotations

import getpass
import re
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from pyvirtfs.cli.main import cli

PROGRAM = [sys.executable, "-m", "pyvirtfs"]
DOMAIN = """<domain type='kvm'><name>vm</name><devices><filesystem accessmode='squash'>
<source dir='{}'/><target dir='srv'/><address type='pci' slot='6'/></filesystem></devices></domain>
"""


def examples(name: str) -> list[list[str]]:
    """The command lines in a command's help."""
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    told = (command.epilog or "").partition("Examples:\n")[2].partition("\n\n")[0]
    return [shlex.split(line) for line in told.replace("\\\n", " ").splitlines()]


@pytest.fixture
def place() -> Iterator[Path]:
    """Where the examples are at work; it has a short name, for sockets."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("srv", "a", "b", "run"):
            Path(folder, name).mkdir()
        Path(folder, "vm.xml").write_text(DOMAIN.format(f"{folder}/srv"))
        yield Path(folder)


def moved(words: list[str], place: Path) -> list[str]:
    """An example for another place, any free port, and this user."""
    moved = [re.sub(r"(?<![\w.])/(?=(srv|a|b|run)\b)", f"{place}/", word) for word in words]
    return [getpass.getuser() if word == "libvirt-qemu" else word.replace("tcp:5640", "tcp:0") for word in moved]


def serve(words: list[str], place: Path) -> str:
    """Start one, and end it when it is ready; what it printed."""
    with subprocess.Popen(
        [*PROGRAM, *words], cwd=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        printed = []
        for line in process.stdout:
            printed.append(line)
            if line == "READY\n":
                process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert printed[-1] == "READY\n"
    return "".join(printed)


def test_serve(place: Path) -> None:
    served = 0
    for words in examples("serve"):
        words = moved(words, place)  # noqa: PLW2901
        if words[0] == "pyvirtfs":
            printed = serve(words[1:], place)
            served += printed.count("vfio-user-pci") + printed.count("mount -t 9p")
        else:
            subprocess.run(words, check=True)
    assert served == 5


def test_qemu(place: Path) -> None:
    """What QEMU would be started with: it is not there everywhere, and has no disk to start from."""
    found = examples("qemu")
    assert len(found) == 2
    for words in found:
        options = [word for word in moved(words, place)[2:] if word != "--dry-run"]
        done = subprocess.run([*PROGRAM, "qemu", "--dry-run", *options], check=True, capture_output=True, text=True)
        assert done.stderr == ""
        assert "vfio-user-pci" in done.stdout
        assert "-virtfs" not in done.stdout
        assert "-fsdev" not in done.stdout


def test_libvirt(place: Path) -> None:
    ours = [moved(words, place)[1:] for words in examples("libvirt") if words[0] == "pyvirtfs"]
    writing, serving = ours
    subprocess.run([*PROGRAM, *writing, "--socket", "run"], cwd=place, check=True, capture_output=True)
    assert "vfio-user-pci" in (place / "vm-new.xml").read_text()
    assert "vfio-user-pci" in serve([*serving, "--socket", "run"], place)
