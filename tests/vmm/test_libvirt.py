from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pyvirtfs.errors import ConfigError
from pyvirtfs.fsdev.options import parse_pairs
from pyvirtfs.vmm.libvirt import Domain, Filesystem, read, scaled
from tests.vmm.virsh import ANSWERS, CASES, Virsh, domain, emulator, missing

FOLDERS = "<source dir='/s'/><target dir='t'/>"
SLOT = "<address type='pci' domain='0x0000' bus='0x00' slot='0x06' function='0x0'/>"
CAPTURED: dict[str, Any] = json.loads(ANSWERS.read_text())

# libvirt takes these for LXC and virtiofs only, and says nothing of them here.
BEYOND = {"uidmap", "gidmap", "space_hard_limit", "space_soft_limit"}


def read_devices(devices: str, machine: str = "pc", **options: Any) -> Domain:
    return read(domain(machine, devices).encode(), "file", **options)


def filesystem(attributes: str = "", inside: str = "", address: str = SLOT) -> Filesystem:
    """The one of a domain about which there is nothing to say."""
    found = read_devices(f"<filesystem {attributes}>{FOLDERS}{inside}{address}</filesystem>")
    assert found.warnings == []
    (one,) = found.filesystems
    return one


def refused(devices: str, machine: str = "pc", **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        read_devices(devices, machine, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_demonstration() -> None:
    """The first domain that had VirtFS."""
    found = read(
        b"""<domain type='kvm'>
  <name>demo</name>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <devices>
    <filesystem type='mount' accessmode='passthrough'>
      <source dir='/misc/shared'/>
      <target dir='test_mount'/>
      <address type='pci' domain='0x0000' bus='0x00' slot='0x06' function='0x0'/>
    </filesystem>
  </devices>
</domain>""",
        "file",
    )
    assert (found.name, found.warnings) == ("demo", [])
    (one,) = found.filesystems
    assert (one.target, one.label, one.express) == ("test_mount", "filesystem 'test_mount' (line 5)", False)
    assert one.fsdev == "local,id=fsdev-fs0,path=/misc/shared,security_model=passthrough"
    assert one.device == "virtio-9p-pci,fsdev=fsdev-fs0,mount_tag=test_mount,bus=pci.0,addr=0x6"


def test_everything_at_once() -> None:
    one = filesystem(
        "accessmode='mapped' fmode='664' dmode='0775' multidevs='remap' model='virtio-non-transitional'",
        "<driver type='path' wrpolicy='immediate' iommu='on' ats='off' packed='on' page_per_vq='off'/><readonly/>"
        "<alias name='ua-x'/><acpi index='7'/><space_hard_limit unit='KiB'>10</space_hard_limit>"
        "<space_soft_limit> 9 </space_soft_limit><idmap><uid start='0' target='100000' count='65536'/>"
        "<uid start='65536' target='7' count='1'/><gid start='0' target='200000' count='65536'/></idmap>",
        "<address type='pci' slot='0x1f' function='0x7' multifunction='on'/>",
    )
    assert one.fsdev == (
        "local,id=fsdev-ua-x,path=/s,security_model=mapped,fmode=0664,dmode=0775,multidevs=remap,readonly=on,"
        "writeout=immediate,uidmap=0:100000:65536+65536:7:1,gidmap=0:200000:65536,space_hard_limit=10240,"
        "space_soft_limit=9"
    )
    assert one.device == (
        "virtio-9p-pci-non-transitional,id=ua-x,fsdev=fsdev-ua-x,mount_tag=t,iommu_platform=on,ats=off,packed=on,"
        "page-per-vq=off,acpi-index=7,bus=pci.0,addr=0x1f.0x7,multifunction=on"
    )


def test_a_limit_of_nothing_is_none() -> None:
    assert "space" not in filesystem("", "<space_hard_limit>0</space_hard_limit>").fsdev


def test_only_some() -> None:
    devices = (
        "<filesystem><driver type='virtiofs'/><source dir='/v'/><target dir='v'/></filesystem>"
        f"<filesystem>{FOLDERS}{SLOT}</filesystem><filesystem type='ram'><source usage='1'/></filesystem>"
    )
    assert [one.target for one in read_devices(devices, only=["t"]).filesystems] == ["t"]
    assert (
        refused(devices, only=["t", "x"]) == "--only: there is no <filesystem> with the target 'x' (choose from v, t)"
    )


@pytest.mark.parametrize(
    ("machine", "controller", "bus", "express"),
    [
        ("pc", "", "pci.0", False),
        ("pc-i440fx-9.2", "", "pci.0", False),
        ("q35", "", "pcie.0", False),
        ("pc-q35-9.2", "", "pcie.0", False),
        ("virt-9.2", "", "pcie.0", False),
        ("pseries", "", "pci.0", False),
        ("other", "<controller type='pci' index='0' model='pcie-root'/>", "pcie.0", False),
        ("q35", "<controller type='pci' index='6' model='pcie-root-port'/>", "pci.6", True),
        ("q35", "<controller type='pci' index='6' model='pcie-switch-downstream-port'/>", "pci.6", True),
        ("q35", "<controller type='pci' index='6' model='pcie-to-pci-bridge'/>", "pci.6", False),
        (
            "pc",
            "<controller type='pci' index='6' model='pci-bridge'><alias name='pci.6'/></controller>",
            "pci.6",
            False,
        ),
        ("pc", "<controller type='pci' index='6' model='pci-bridge'><alias name='ua-b'/></controller>", "ua-b", False),
    ],
)
def test_buses(machine: str, controller: str, bus: str, express: bool) -> None:
    number = 6 if "index='6'" in controller else 0
    address = f"<address type='pci' bus='{number:#04x}' slot='0x06' function='0x0'/>"
    (one,) = read_devices(f"{controller}<filesystem>{FOLDERS}{address}</filesystem>", machine).filesystems
    assert (one.properties["bus"], one.express) == (bus, express)


@pytest.mark.parametrize("address", ["", "<address type='pci'/>", "<address type='pci' function='1'/>"])
def test_without_an_address(address: str) -> None:
    found = read_devices(f"<filesystem>{FOLDERS}{address}</filesystem>")
    assert "addr" not in found.filesystems[0].properties
    assert [line.partition(", so")[0] for line in found.warnings] == ["filesystem 't' (line 1): it has no PCI address"]


@pytest.mark.parametrize(
    ("attributes", "inside", "names"),
    [
        ("frob='1'", "", ["<filesystem frob=>"]),
        ("", "<frob><readonly/></frob><frob/>", ["<frob>", "<frob>"]),
        ("", "<driver name='qemu' frob='1'/>", ["<driver name=>", "<driver frob=>"]),
        ("", "<acpi nodeset='1'/>", ["<acpi nodeset=>"]),
        ("", "<readonly really='no'/>", ["<readonly really=>"]),
        ("", "<idmap><frob/></idmap>", ["<frob>"]),
        ("", "<uid start='0' target='0' count='1'/>", ["<uid>"]),
        ("", "<filesystem/>", ["<filesystem>"]),
    ],
)
def test_what_is_not_known_is_told(attributes: str, inside: str, names: list[str]) -> None:
    found = read_devices(f"<filesystem {attributes}>{FOLDERS}{inside}{SLOT}</filesystem>")
    assert found.warnings == [f"filesystem 't' (line 1): {name} is not known, and has no effect" for name in names]
    assert len(found.filesystems) == 1


LABEL = "filesystem 't' (line 1): "


@pytest.mark.parametrize(
    ("attributes", "inside", "line"),
    [
        ("type='template'", "", "type: 'template' is for OpenVZ (choose from mount)"),
        ("type='file'", "", "type: 'file' is an image for LXC (choose from mount)"),
        ("type='block'", "", "type: 'block' is a block device for LXC (choose from mount)"),
        ("type='ram'", "", "type: 'ram' is a RAM file system for LXC (choose from mount)"),
        ("type='bind'", "", "type: 'bind' is for LXC (choose from mount)"),
        ("type='volume'", "", "type: 'volume' is a volume of a storage pool, for bhyve and LXC (choose from mount)"),
        ("type='x'", "", "type: 'x' is not a known value (choose from mount)"),
        (
            "",
            "<driver type='virtiofs' queue='1024'/>",
            "driver type: 'virtiofs' is virtiofsd's, which is another device",
        ),
        ("", "<driver type='handle'/>", "driver type: 'handle' is gone from QEMU since 2018: take 'path'"),
        ("", "<driver type='loop' format='raw'/>", "driver type: 'loop' is LXC's (choose from path)"),
        ("", "<driver type='nbd'/>", "driver type: 'nbd' is LXC's (choose from path)"),
        ("", "<driver type='ploop'/>", "driver type: 'ploop' is Virtuozzo's (choose from path)"),
        ("", "<driver type='mtp'/>", "driver type: 'mtp' is QEMU's usb-mtp, which is another device"),
        ("", "<driver type='x'/>", "driver type: 'x' is not a known value (choose from path)"),
        ("", "<driver queue='5'/>", "<driver queue=>: is virtiofsd's"),
        ("", "<driver format='raw'/>", "<driver format=>: is LXC's"),
        ("", "<binary path='/usr/libexec/virtiofsd'/>", "<binary>: is virtiofsd's"),
        ("", "<boot order='1'/>", "<boot>: no firmware boots from a 9p device"),
        ("", "<driver wrpolicy='never'/>", "wrpolicy: 'never' is not a known value (choose from default, immediate)"),
        ("", "<driver packed='yes'/>", "packed: 'yes' is not a known value (choose from on, off)"),
        ("accessmode='none'", "", "accessmode: 'none' is not a known value (choose from passthrough, mapped, squash)"),
        ("fmode='664'", "", "fmode: has no meaning with accessmode='passthrough', only with 'mapped'"),
        ("accessmode='squash' dmode='775'", "", "dmode: has no meaning with accessmode='squash'"),
        ("accessmode='mapped' fmode='4755'", "", "fmode: '4755' is not a mode (octal, 0 to 777)"),
        ("accessmode='mapped' fmode='0x1ff'", "", "fmode: '0x1ff' is not a mode"),
        ("accessmode='mapped' fmode='668'", "", "fmode: '668' is not a mode"),
        ("accessmode='mapped' dmode=''", "", "dmode: '' is not a mode"),
        ("multidevs='x'", "", "multidevs: 'x' is not a known value (choose from default, remap, forbid, warn)"),
        ("model='9p'", "", "model: '9p' is not a known value (choose from virtio, virtio-transitional, virtio-non-"),
        ("", "<readonly/><readonly/>", "<readonly>: stands there twice, again in line 1"),
        ("", "<source dir='/other'/>", "<source>: stands there twice, again in line 1"),
        ("", "<readOnly/>", "<readOnly>: is nothing that libvirt has there, and looks as if somebody counted on it"),
        ("readonly='yes'", "", "<filesystem readonly=>: is nothing that libvirt has there"),
        ("accessMode='mapped'", "", "<filesystem accessMode=>: is nothing that libvirt has there"),
        ("", "<read-only/>", "<read-only>: is nothing that libvirt has there"),
        ("", "<idMap/>", "<idMap>: is nothing that libvirt has there"),
        ("", "<seclabel/>", "<seclabel>: is nothing that libvirt has there"),
        ("", "<space-hard-limit/>", "<space-hard-limit>: is nothing that libvirt has there"),
        ("", "<driver readonly='on'/>", "<driver readonly=>: is nothing that libvirt has there"),
        ("", "<alias name='ua-x,y'/>", "alias: 'ua-x,y' is not an identifier"),
        ("", "<acpi index='x'/>", "acpi: 'x' is not a number"),
        ("", "<acpi index='0x100000000'/>", "acpi: index '0x100000000' is more than 0xffffffff"),
        ("", "<idmap><uid start='0' target='1'/></idmap>", "idmap uid: its attribute count is missing"),
        ("", "<idmap><gid start='0' count='1'/></idmap>", "idmap gid: its attribute target is missing"),
        ("", "<idmap><uid start='0' target='1' count='0'/></idmap>", "idmap uid: count '0' maps nobody"),
        ("", "<idmap><uid start='-1' target='1' count='1'/></idmap>", "idmap uid: '-1' is not a number"),
        ("", "<idmap><uid start='4294967296' target='1' count='1'/></idmap>", "idmap uid: start '4294967296' is more"),
        ("", "<space_hard_limit>much</space_hard_limit>", "space_hard_limit: 'much' is not a number of bytes"),
        (
            "",
            "<space_soft_limit unit='x'>1</space_soft_limit>",
            "space_soft_limit: 'x' is not a unit (choose from bytes,",
        ),
    ],
)
def test_what_is_refused(attributes: str, inside: str, line: str) -> None:
    told = refused(f"<filesystem {attributes}>{FOLDERS}{inside}{SLOT}</filesystem>")
    assert told.startswith(LABEL + line)


@pytest.mark.parametrize("name", ["name", "file", "dev", "pool", "volume", "usage", "units", "socket"])
def test_sources_of_others(name: str) -> None:
    told = refused(f"<filesystem><source {name}='x'/><target dir='t'/>{SLOT}</filesystem>")
    reason = "is virtiofsd's" if name == "socket" else "belongs to another type than 'mount'"
    assert told == f"{LABEL}<source {name}=>: {reason}"


@pytest.mark.parametrize(
    ("inside", "line"),
    [
        ("<target dir='t'/>", f"{LABEL}source: its attribute dir is missing"),
        ("<source/><target dir='t'/>", f"{LABEL}source: its attribute dir is missing"),
        ("<source dir='a/b'/><target dir='t'/>", f"{LABEL}source: 'a/b' is not an absolute path"),
        ("<source dir='/s'/>", "filesystem in line 1: target: its attribute dir, which names what the guest mounts"),
        ("<source dir='/s'/><target/>", "filesystem in line 1: target: its attribute dir"),
    ],
)
def test_folders_that_are_missing(inside: str, line: str) -> None:
    assert refused(f"<filesystem>{inside}{SLOT}</filesystem>").startswith(line)


@pytest.mark.parametrize(
    ("attributes", "line"),
    [
        ("type='ccw'", "address: type 'ccw' is no place for a PCI device (choose from pci)"),
        ("type='virtio-mmio'", "address: type 'virtio-mmio' is no place for a PCI device"),
        ("slot='5'", "address: type None is no place for a PCI device"),
        ("type='pci' domain='0x0001' slot='5'", "address: domain '0x0001' is not 0"),
        ("type='pci' bus='0x100' slot='5'", "address: bus '0x100' is more than 0xff"),
        ("type='pci' slot='32'", "address: slot '32' is more than 0x1f"),
        ("type='pci' slot='5' function='8'", "address: function '8' is more than 0x7"),
        ("type='pci' slot='five'", "address: 'five' is not a number"),
        ("type='pci' slot='5' multifunction='2'", "multifunction: '2' is not a switch position (choose from on, off)"),
        ("type='pci' bus='2'", "address: bus 0x2 has no <controller type='pci' index='2'>, which libvirt adds for"),
    ],
)
def test_addresses_that_are_none(attributes: str, line: str) -> None:
    assert refused(f"<filesystem>{FOLDERS}<address {attributes}/></filesystem>").startswith(LABEL + line)


@pytest.mark.parametrize(
    ("other", "line"),
    [
        (
            f"<source dir='/s'/><target dir='t'/>{SLOT.replace('6', '7')}",
            "its target is that of filesystem 't' (line 1)",
        ),
        (f"<source dir='/s'/><target dir='u'/>{SLOT}", "its address is that of filesystem 't' (line 1)"),
        (
            f"<source dir='/s'/><target dir='u'/>{SLOT.replace('6', '7')}<alias name='ua-x'/>",
            "its alias is that of filesystem 't' (line 1)",
        ),
    ],
)
def test_two_that_are_alike(other: str, line: str) -> None:
    devices = f"<filesystem>{FOLDERS}{SLOT}<alias name='ua-x'/></filesystem>\n<filesystem>{other}</filesystem>"
    assert refused(devices).endswith(f" (line 2): {line}")


@pytest.mark.parametrize(
    ("document", "line"),
    [
        (b"<network/>", "file: is no domain of libvirt: its root element is <network>"),
        (b"<domain/>", "file: domain type None has no vfio-user devices (choose from kvm, qemu)"),
        (b"<domain type='lxc'/>", "file: domain type 'lxc' has no vfio-user devices"),
        (b"<domain type='kvm'/>", "file: there is no <filesystem> in it"),
        (b"<domain type='kvm'><devices/></domain>", "file: there is no <filesystem> in it"),
        (
            b"<domain type='kvm'>\n<devices/>\n<x/><devices><filesystem/></devices></domain>",
            "file: has more than one <devices>, in lines 2 and 3: put all devices into one",
        ),
        (b"<domain type='kvm'>", "file: line 1, column 20: no well-formed XML"),
    ],
)
def test_documents_that_are_no_domain(document: bytes, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(document, "file")
    assert str(caught.value).startswith(line)


# --- units ---

POWERS = {"k": 1, "m": 2, "g": 3, "t": 4, "p": 5, "e": 6}


@given(st.integers(0, 1 << 70), st.sampled_from(sorted(POWERS)), st.sampled_from(["", "ib", "b"]), st.randoms())
@example(15, "e", "", None)
@example(16, "e", "ib", None)
def test_units(number: int, letter: str, rest: str, random: Any) -> None:
    unit = letter + rest
    if random is not None:
        unit = "".join(random.choice([char, char.upper()]) for char in unit)
    expected = number * (1000 if rest == "b" else 1024) ** POWERS[letter]
    if expected < 1 << 64:
        assert scaled("x", f"{number}", unit) == expected
    else:
        with pytest.raises(ConfigError, match=r"x: .* are more than 64 bits can say"):
            scaled("x", f"{number}", unit)


@given(st.text(max_size=6))
@example("kB")
@example("Bytes")
@example("\N{KELVIN SIGN}")
def test_a_unit_is_known_or_refused(unit: str) -> None:
    known = {"", "b", "byte", "bytes", *(letter + rest for letter in POWERS for rest in ("", "b", "ib"))}
    if unit.isascii() and unit.lower() in known:
        assert scaled("x", "1", unit) >= 1
    else:
        with pytest.raises(ConfigError, match="is not a unit"):
            scaled("x", "1", unit)


@given(st.text(max_size=8))
def test_a_number_is_known_or_refused(text: str) -> None:
    try:
        assert scaled("x", text, None) == int(text)
    except ConfigError:
        digits = text.strip().removeprefix("+")
        assert not (digits.isascii() and digits.isdecimal())


def test_bytes_are_the_default() -> None:
    assert [scaled("x", " 7\n", unit) for unit in (None, "", "b", "BYTE", "bytes")] == [7] * 5
    with pytest.raises(ConfigError, match="more than 64 bits"):
        scaled("x", "9" * 5000, None)


# --- libvirt's own reading ---


def compare(name: str, answer: Any) -> None:
    """Our reading of a case is libvirt's."""
    machine, devices = CASES[name]
    if "refused" in answer:
        refused(devices, machine)
        return
    found = read_devices(devices, machine)
    assert len(found.filesystems) == len(answer["fsdev"]) == len(answer["device"]) > 0
    for one, fsdev, device in zip(found.filesystems, answer["fsdev"], answer["device"], strict=True):
        ours = parse_pairs(one.fsdev, "fsdriver")
        assert parse_pairs(fsdev, "fsdriver") == {key: value for key, value in ours.items() if key not in BEYOND}
        theirs = {key: {True: "on", False: "off"}.get(value, str(value)) for key, value in device.items()}
        if one.properties.get("id") is None:
            assert theirs.pop("id").startswith("fs")  # a name that libvirt has made
        if found.warnings:
            del theirs["bus"], theirs["addr"]  # a place that it has chosen
        assert theirs == parse_pairs(one.device, "driver")


def test_all_cases_are_captured() -> None:
    assert CAPTURED.keys() == CASES.keys()
    assert {name for name, answer in CAPTURED.items() if "refused" in answer} == {
        name for name in CASES if name.startswith("refused: ")
    }


@pytest.mark.parametrize("name", CASES)
def test_as_libvirt_has_answered(name: str) -> None:
    compare(name, CAPTURED[name])


@pytest.mark.timeout(600)
def test_as_libvirt_answers_here(tmp_path: Path) -> None:
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    answers = Virsh(tmp_path).answers(emulator())
    assert answers.keys() == CASES.keys()
    for name, answer in answers.items():
        compare(name, answer)
