from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pyvirtfs.cli.lspci import virtio_capability
from pyvirtfs.pci.hexdump import parse_hex_dump

Run = Callable[..., "subprocess.CompletedProcess[str]"]

needs_pciutils = pytest.mark.skipif(not shutil.which("lspci"), reason="pciutils are not installed")


def test_one_line(run: Run) -> None:
    answer = run("lspci")
    assert answer.stdout == (
        "00:06.0 Unclassified device [0002]: Red Hat, Inc. Virtio 1.0 filesystem [1af4:1049] (rev 01)\n"
    )


def test_the_whole_function(run: Run) -> None:
    told = run("lspci", "-vv", "-nn").stdout
    for fact in (
        "\tSubsystem: Red Hat, Inc. Device [1af4:1100]\n",
        "\tControl: I/O- Mem+ BusMaster+ ",
        "\tRegion 4: Memory at 8000000000 (64-bit, prefetchable) [size=16K]\n",
        "\tCapabilities: [98] MSI-X: Enable- Count=2 Masked-\n",
        "Vendor Specific Information: VirtIO: CommonCfg\n\t\tBAR=4 offset=00000000 size=00001000\n",
        "Vendor Specific Information: VirtIO: Notify\n\t\tBAR=4 offset=00003000 size=00001000 multiplier=00000004\n",
    ):
        assert fact in told


def test_before_the_probe(run: Run) -> None:
    told = run("lspci", "-v", "--unplaced").stdout
    assert "Control: I/O- Mem- BusMaster-" in told
    assert "Region 4: Memory at <unassigned> (64-bit, prefetchable) [disabled] [size=16K]" in told


def test_behind_a_port(run: Run) -> None:
    told = run("lspci", "-v", "--express").stdout
    assert "Capabilities: [40] Express (v2) Endpoint" in told
    assert "Capabilities: [dc] MSI-X" in told


def test_properties_of_the_device_show(run: Run, export: Path) -> None:
    fsdev = f"local,id=a,path={export},security_model=none"
    device = "virtio-9p-pci,fsdev=a,mount_tag"
    answer = run(
        "lspci", "-v", "-fsdev", fsdev, "-device", f"{device}=x,vectors=7", "-device", f"{device}=y,addr=3,vectors=0"
    )
    assert [line.split()[0] for line in answer.stdout.splitlines() if line[:1] not in {"\t", ""}] == [
        "00:03.0",
        "00:06.0",
    ]
    assert "Count=7" in answer.stdout
    assert answer.stdout.count("MSI-X") == 1


@pytest.mark.parametrize(("option", "nbytes"), [("-x", 64), ("-xxx", 256), ("-xxxx", 256)])
def test_dump(option: str, nbytes: int, run: Run) -> None:
    functions = parse_hex_dump(run("lspci", option).stdout)
    assert list(functions) == ["00:06.0"]
    assert len(functions["00:06.0"]) == nbytes
    assert functions["00:06.0"][:4] == bytes.fromhex("f41a4910")


def test_dump_of_express(run: Run) -> None:
    assert len(parse_hex_dump(run("lspci", "-xxxx", "--express").stdout)["00:06.0"]) == 4096


def test_both(run: Run) -> None:
    told = run("lspci", "-vxxx").stdout
    assert "\tCapabilities: [40]" in told
    assert "\n30: 00 00 00 00 98" in told


@needs_pciutils
@pytest.mark.parametrize("options", [[], ["--unplaced"], ["--express"]])
def test_pciutils_read_the_same(options: list[str], run: Run, tmp_path: Path) -> None:
    dump = tmp_path / "dump"
    dump.write_text(run("lspci", "-xxx", *options).stdout)
    theirs = subprocess.run(
        ["lspci", "-F", dump, "-vv", "-nn"], capture_output=True, text=True, timeout=60, check=True
    ).stdout
    assert normal(run("lspci", "-vv", *options).stdout) == normal(theirs)


def normal(text: str) -> list[str]:
    """Without what the two may tell differently: names, which are those of a database, sizes, which no dump holds."""
    # Of a dump, pciutils take the upper half of a BAR above 4 GiB for another BAR, and see none in a register of 0.
    lines = [line for line in text.strip().splitlines() if not re.match(r"\tRegion (5: |1: Memory at <unass)", line)]
    lines = [re.sub(r" \[size=\d+[KMG]?\]", "", line) for line in lines]
    return [re.sub(r"(: |\t)[^\t:]*\[(?=1af4:)", r"\1[", line) for line in lines]


def test_devices_help(run: Run) -> None:
    answer = run("lspci", "-device", "help")
    assert answer.stdout.startswith("Storage devices:\nname ")
    assert run("lspci", "-device", "virtio-9p-pci,help").stdout.startswith(
        "virtio-9p-pci options:\n  acpi-index=<uint32> "
    )


def test_a_capability_that_is_too_short() -> None:
    assert virtio_capability(bytes([9, 0, 8, 1]) + bytes(16)) is None


@pytest.mark.parametrize(
    ("device", "line"),
    [
        ("virtio-9p-pci,fsdev=a,mount_tag=t,packed=on", "packed: 'on' is known to QEMU but not available here yet"),
        ("virtio-9p-pci,fsdev=b,mount_tag=t", "fsdev: there is no -fsdev with the id 'b' (choose from a)"),
        ("virtio-9p-pci,fsdev=a,mount_tag=t,vectors=4097", "vectors: "),
    ],
)
def test_bad_options(device: str, line: str, run: Run, export: Path) -> None:
    answer = run("lspci", "-fsdev", f"local,id=a,path={export},security_model=none", "-device", device)
    assert (answer.stdout, answer.returncode) == ("", 2)
    assert answer.stderr.startswith(f"pyvirtfs: {line}")
    assert answer.stderr.count("\n") == 1
