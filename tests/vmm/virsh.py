"""What libvirt itself makes of file systems: `virsh domxml-to-native`, asked without a daemon.

`virsh_answers.json` holds its answers to `CASES` (libvirt 9.0, QEMU 11.1), because few machines have it. It is in
Debian's libvirt-clients, libvirt-daemon and libvirt-daemon-driver-qemu (4 MB); `python tests/vmm/virsh.py` asks again,
and writes the answers anew.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ANSWERS = Path(__file__).with_name("virsh_answers.json")
PROVISION = Path(__file__).parents[1] / "realguest" / "provision"
PACKAGES = "libvirt-clients, libvirt-daemon, libvirt-daemon-driver-qemu"

_FOLDERS = "<source dir='/misc/shared'/><target dir='test_mount'/>"
_SLOT = "<address type='pci' domain='0x0000' bus='0x00' slot='0x06' function='0x0'/>"
_PORT = "<address type='pci' domain='0x0000' bus='0x01' slot='0x00' function='0x0'/>"
_Q35 = "<controller type='pci' index='0' model='pcie-root'/><controller type='pci' index='1' model='pcie-root-port'"
_IDS = "start='0' target='100000' count='65536'"


def _filesystem(attributes: str = "", inside: str = "", address: str = _SLOT) -> str:
    return f"<filesystem {attributes}>{_FOLDERS}{inside}{address}</filesystem>"


CASES = {
    "demonstration": ("pc", _filesystem("type='mount' accessmode='passthrough'")),
    "defaults": ("pc", _filesystem()),
    "mapped": ("pc", _filesystem("accessmode='mapped'")),
    "modes": ("pc", _filesystem("accessmode='mapped' fmode='664' dmode='0775'")),
    "fmode alone": ("pc", _filesystem("accessmode='mapped' fmode='4'")),
    "squash": ("pc", _filesystem("accessmode='squash'")),
    "remap": ("pc", _filesystem("multidevs='remap'")),
    "forbid": ("pc", _filesystem("multidevs='forbid'")),
    "warn": ("pc", _filesystem("multidevs='warn'")),
    "multidevs default": ("pc", _filesystem("multidevs='default'")),
    "read-only, written out": ("pc", _filesystem("", "<driver type='path' wrpolicy='immediate'/><readonly/>")),
    "wrpolicy default": ("pc", _filesystem("", "<driver type='path' wrpolicy='default'/>")),
    "virtio": ("pc", _filesystem("model='virtio'")),
    "transitional": ("pc", _filesystem("model='virtio-transitional'")),
    "non-transitional": ("pc", _filesystem("model='virtio-non-transitional'")),
    "all on": ("pc", _filesystem("", "<driver iommu='on' ats='on' packed='on' page_per_vq='on'/>")),
    "all off": ("pc", _filesystem("", "<driver iommu='off' ats='off' packed='off' page_per_vq='off'/>")),
    "acpi index": ("pc", _filesystem("", "<acpi index='5'/>")),
    "alias": ("pc", _filesystem("", "<alias name='ua-mine'/>")),
    "alias of libvirt": ("pc", _filesystem("", "<alias name='fs7'/>")),
    "commas": ("pc", f"<filesystem><source dir='/a,b'/><target dir='c,d'/>{_SLOT}</filesystem>"),
    "function": (
        "pc",
        _filesystem("", "", "<address type='pci' bus='0' slot='6' function='0' multifunction='on'/>")
        + "<filesystem><source dir='/s'/><target dir='t'/>"
        "<address type='pci' bus='0x00' slot='0x06' function='0x2'/></filesystem>",
    ),
    "bridge": (
        "pc",
        "<controller type='pci' index='0' model='pci-root'/><controller type='pci' index='1' model='pci-bridge'/>"
        + _filesystem("", "", "<address type='pci' bus='0x01' slot='0x03' function='0x0'/>"),
    ),
    "q35": ("q35", _filesystem()),
    "port": ("q35", f"{_Q35}/>{_filesystem('', '', _PORT)}"),
    "port with an alias": ("q35", f"{_Q35}><alias name='ua-port'/></controller>{_filesystem('', '', _PORT)}"),
    "no address": ("pc", _filesystem("", "", "")),
    "empty address": ("pc", _filesystem("", "", "<address type='pci'/>")),
    "zero address": ("pc", _filesystem("", "", "<address type='pci' bus='0' slot='0' function='0'/>")),
    "slot 0": ("pc", _filesystem("", "", "<address type='pci' bus='0' slot='0' function='1'/>")),
    "limits": (
        "pc",
        _filesystem("", "<space_hard_limit unit='G'>2</space_hard_limit><space_soft_limit>5</space_soft_limit>"),
    ),
    "idmap": ("pc", _filesystem("", f"<idmap><uid {_IDS}/><gid {_IDS}/></idmap>")),
    "refused: modes": ("pc", _filesystem("accessmode='squash' fmode='664'")),
    "refused: set-id": ("pc", _filesystem("accessmode='mapped' fmode='4755'")),
    "refused: no mode": ("pc", _filesystem("accessmode='mapped' dmode='rwx'")),
    "refused: accessmode": ("pc", _filesystem("accessmode='none'")),
    "refused: multidevs": ("pc", _filesystem("multidevs='on'")),
    "refused: model": ("pc", _filesystem("model='9p'")),
    "refused: wrpolicy": ("pc", _filesystem("", "<driver wrpolicy='later'/>")),
    "refused: switch": ("pc", _filesystem("", "<driver packed='maybe'/>")),
    "refused: boot": ("pc", _filesystem("", "<boot order='1'/>")),
    "refused: unit": ("pc", _filesystem("", "<space_hard_limit unit='kilo'>2</space_hard_limit>")),
    "refused: negative": ("pc", _filesystem("", "<space_soft_limit>-2</space_soft_limit>")),
    "refused: 2**64": ("pc", _filesystem("", "<space_soft_limit unit='E'>16</space_soft_limit>")),
    "refused: type": ("pc", "<filesystem type='ram'><source usage='5'/><target dir='t'/></filesystem>"),
    "refused: slot 32": ("pc", _filesystem("", "", "<address type='pci' bus='0' slot='32' function='0'/>")),
    "refused: twice": (
        "pc",
        _filesystem() + "<filesystem><source dir='/s'/><target dir='t'/>" + _SLOT + "</filesystem>",
    ),
}
"""The machine, and what is inside of <devices>."""


def domain(machine: str, devices: str, emulator: str = "/usr/bin/qemu-system-x86_64") -> str:
    """A domain that has nothing else in it."""
    return (
        "<domain type='qemu'><name>vm</name><uuid>8f7d7e2c-0000-4000-8000-000000000001</uuid>"
        f"<memory unit='MiB'>512</memory><vcpu>1</vcpu><os><type arch='x86_64' machine='{machine}'>hvm</type></os>"
        f"<devices><emulator>{emulator}</emulator>{devices}</devices></domain>"
    )


def emulator() -> str:
    """A QEMU for virsh, which asks it what it can do."""
    made = subprocess.run([sys.executable, str(PROVISION)], capture_output=True, text=True, timeout=540, check=True)
    return str(json.loads(made.stdout)["qemu"])


class Virsh:
    """libvirt's QEMU driver inside of virsh, with everything of its own in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # For root it would want to become libvirt-qemu, a user that only Debian's libvirt-daemon-system makes.
        self._other_user = ["unshare", "--user", "--map-user=1000", "--map-group=1000"] if os.geteuid() == 0 else []

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The answer of `virsh`."""
        environment = {**os.environ, "LC_ALL": "C", "HOME": str(self.folder), "XDG_RUNTIME_DIR": str(self.folder)}
        command = [*self._other_user, "virsh", "-q", "-c", f"qemu:///embed?root={self.folder}", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)

    def arguments(self, document: bytes) -> list[str]:
        """QEMU's command line for a domain. CalledProcessError if libvirt refuses it."""
        path = self.folder / "domain.xml"
        path.write_bytes(document)
        answer = self.run("domxml-to-native", "qemu-argv", "--xml", str(path))
        answer.check_returncode()
        words = shlex.split(answer.stdout)
        return words[next(index for index, word in enumerate(words) if "=" not in word) :]

    def answers(self, qemu: str) -> dict[str, Any]:
        """What it makes of each case: -fsdev and -device of each file system, or why it refuses them."""
        found: dict[str, Any] = {}
        for name, (machine, devices) in CASES.items():
            try:
                words = self.arguments(domain(machine, devices, qemu).encode())
            except subprocess.CalledProcessError as error:
                found[name] = {"refused": re.sub(r"\s+", " ", error.stderr.strip())}
                continue
            pairs = list(itertools.pairwise(words))
            found[name] = {
                "fsdev": [value for option, value in pairs if option == "-fsdev"],
                "device": [json.loads(value) for option, value in pairs if option == "-device" and "-9p-" in value],
            }
        return found


def missing() -> str | None:
    """Why virsh cannot be asked here."""
    if shutil.which("virsh") is None:
        return f"virsh is not installed (Debian: {PACKAGES})"
    with tempfile.TemporaryDirectory() as folder:
        answer = Virsh(Path(folder)).run("uri")
    return None if answer.returncode == 0 else f"virsh: {answer.stderr.strip().splitlines()[-1]}"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as root:
        ANSWERS.write_text(json.dumps(Virsh(Path(root)).answers(emulator()), indent=1) + "\n")
