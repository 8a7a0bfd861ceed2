from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from pyvirtfs.errors import ConfigError
from pyvirtfs.vmm.libvirt import Domain, read
from pyvirtfs.vmm.libvirt_changes import NAMESPACE, changed, parts, shares_memory
from pyvirtfs.vmm.libvirt_xml import Element, parse
from tests.vmm.virsh import Virsh, emulator, missing

FILESYSTEM = """<filesystem type='mount'>
      <source dir='/s'/>
      <target dir='t'/>
      <address type='pci' bus='0x00' slot='0x06' function='0x0'/>
    </filesystem>"""
ATTACHMENT = """{"driver":"vfio-user-pci","socket":{"type":"unix","path":"/it's <&>ä.sock"},"addr":"0x6"}"""

QUOTED = (
    """{"driver":"vfio-user-pci","socket":{"type":"unix","path":"/it&apos;s &lt;&amp;&gt;&#228;.sock"},"addr":"0x6"}"""
)


def text(before: str = "", after: str = "", root: str = "") -> str:
    return f"""<?xml version='1.0' encoding='utf-8'?>
<!-- ä: made by hand -->
<domain type='kvm'{root}>
  <name>vm</name>{before}
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator> <!-- kept -->
    {FILESYSTEM}
    <memballoon model='none'/>
  </devices>{after}
</domain>
"""


def domain_of(document: str) -> Domain:
    return read(document.encode(), "file")


def values(root: Element) -> list[str | None]:
    """The arguments that libvirt would add to QEMU's."""
    commandline = root.first(f"{{{NAMESPACE}}}commandline")
    assert commandline is not None
    return [one.attributes.get("value") for one in commandline.all(f"{{{NAMESPACE}}}arg")]


def test_the_whole_domain() -> None:
    before = text()
    after = changed(domain_of(before), [ATTACHMENT]).decode()
    assert after == before.replace(f"    {FILESYSTEM}\n", "").replace(
        "  <devices>",
        """  <memoryBacking>
    <source type='memfd'/>
    <access mode='shared'/>
  </memoryBacking>
  <devices>""",
    ).replace(
        "</domain>",
        f"""  <qemu:commandline xmlns:qemu='{NAMESPACE}'>
    <qemu:arg value='-device'/>
    <qemu:arg value='{QUOTED}'/>
  </qemu:commandline>
</domain>""",
    )
    assert values(parse(after.encode(), "file")) == ["-device", ATTACHMENT]


@pytest.mark.parametrize(
    ("backing", "expected"),
    [
        ("<memoryBacking/>", "<memoryBacking>SOURCE ACCESS</memoryBacking>"),
        ("<memoryBacking ></memoryBacking>", "<memoryBacking >SOURCE ACCESS</memoryBacking>"),
        ("<memoryBacking><locked/></memoryBacking>", "<memoryBacking>SOURCE ACCESS<locked/></memoryBacking>"),
        (
            "<memoryBacking><source type='anonymous'/></memoryBacking>",
            "<memoryBacking>ACCESS<source type='memfd'/></memoryBacking>",
        ),
        (
            "<memoryBacking><source type='file'/></memoryBacking>",
            "<memoryBacking>ACCESS<source type='file'/></memoryBacking>",
        ),
        (
            "<memoryBacking><access mode='private'/></memoryBacking>",
            "<memoryBacking>SOURCE<access mode='shared'/></memoryBacking>",
        ),
        ("<memoryBacking><access mode='shared'/></memoryBacking>", None),
        ("<cpu><numa><cell memAccess='shared'/><cell memAccess='shared'/></numa></cpu>", None),
        (
            "<cpu><numa><cell memAccess='shared'/><cell/></numa></cpu>",
            "<cpu><numa><cell memAccess='shared'/><cell/></numa></cpu><memoryBacking>SOURCE ACCESS</memoryBacking>",
        ),
    ],
)
def test_memory(backing: str, expected: str | None) -> None:
    found = domain_of(text(f"\n  {backing}"))
    assert shares_memory(found) is (expected is None)
    assert ("memoryBacking" in parts(found, [])) is (expected is not None)
    after = changed(found, [ATTACHMENT])
    again = re.sub(rb"\s*\n\s*", b"", after).decode()
    wanted = backing if expected is None else expected
    wanted = wanted.replace("SOURCE ", "SOURCE").replace("SOURCE", "<source type='memfd'/>")
    assert f"</name>{wanted.replace('ACCESS', '''<access mode='shared'/>''')}<devices>" in again


@pytest.mark.parametrize("write", [parts, changed])
def test_memory_that_is_private(write: Any) -> None:
    found = domain_of(text("<cpu><numa><cell memAccess='private'/></numa></cpu>"))
    with pytest.raises(ConfigError, match="memAccess: a NUMA cell is 'private', and has to be 'shared'"):
        write(found, [ATTACHMENT])


DIMM = "<memory model='dimm'><target><size unit='KiB'>262144</size><node>0</node></target></memory>"
SHARED = "<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>"


@pytest.mark.parametrize("write", [parts, changed])
@pytest.mark.parametrize("backing", ["", SHARED])
def test_memory_devices(write: Any, backing: str) -> None:
    before = text(backing)
    for dimm in (DIMM, DIMM.replace(">", " access='shared'>", 1)):
        found = domain_of(before.replace("<memballoon model='none'/>", dimm))
        assert shares_memory(found) is bool(backing)
        write(found, [ATTACHMENT])
    found = domain_of(before.replace("<memballoon model='none'/>", DIMM.replace(">", " access='private'>", 1)))
    with pytest.raises(ConfigError) as caught:
        write(found, [ATTACHMENT])
    told = "access: <memory model='dimm'> in line 12 is 'private', and has to be 'shared' (or to leave it out)"
    assert str(caught.value) == told


@pytest.mark.parametrize(
    ("root", "commandline", "kept"),
    [
        (f" xmlns:qemu='{NAMESPACE}'", "<qemu:commandline><qemu:arg value='-S'/></qemu:commandline>", ["-S"]),
        (f" xmlns:q='{NAMESPACE}'", "<q:commandline><q:env name='A' value='1'/></q:commandline>", []),
        ("", f"<commandline xmlns='{NAMESPACE}'/>", []),
        ("", f"<x:commandline xmlns:x='{NAMESPACE}' />", []),
        ("", f"<commandline xmlns='{NAMESPACE}'  ><arg value='-S'/></commandline>", ["-S"]),
    ],
)
def test_a_command_line_that_is_there(root: str, commandline: str, kept: list[str]) -> None:
    before = text(after=f"\n  {commandline}", root=root)
    after = parse(changed(domain_of(before), [ATTACHMENT, "{}"]), "file")
    assert values(after) == ["-device", ATTACHMENT, "-device", "{}", *kept]
    assert len(list(after.all(f"{{{NAMESPACE}}}commandline"))) == 1


def test_elements_in_one_line() -> None:
    one, other = re.sub(r"\s*\n\s*", "", FILESYSTEM), re.sub(r"\s*\n\s*", "", FILESYSTEM)
    other = other.replace("'t'", "'u'").replace("0x06", "0x07")
    document = f"<domain type='kvm'><devices>{one} {other}<memballoon/></devices></domain>"
    after = changed(domain_of(document), ["{}", "{}"]).decode()
    assert "<devices> <memballoon/></devices>" in after
    assert "filesystem" not in after


def test_others_stay() -> None:
    document = text().replace("<memballoon model='none'/>", "<filesystem type='ram'><target dir='/'/></filesystem>")
    found = read(document.encode(), "file", only=["t"])
    assert b"<filesystem type='ram'><target dir='/'/></filesystem>" in changed(found, ["{}"])


def test_the_parts() -> None:
    document = text().replace("'t'", "'a--b'").replace("<name>vm", "<name>vm---&gt;&#x9b;")
    assert (
        parts(domain_of(document), ["{}"])
        == f"""\
<!-- In the domain vm- - ->?, which needs QEMU 10.1 or newer, remove: -->
<!--   <filesystem> in line 7, target a- -b -->
<!-- add (memory that is not shared cannot be reached): -->
<memoryBacking>
  <source type='memfd'/>
  <access mode='shared'/>
</memoryBacking>
<!-- add before </domain>: -->
<qemu:commandline xmlns:qemu='{NAMESPACE}'>
  <qemu:arg value='-device'/>
  <qemu:arg value='{{}}'/>
</qemu:commandline>"""
    )


@pytest.mark.timeout(600)
def test_libvirt_takes_the_changed_domain(tmp_path: Path) -> None:
    """It makes no 9p device any more, but a vfio-user one, and shares the memory."""
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    rest = "\n  <memory unit='MiB'>64</memory><os><type arch='x86_64' machine='pc'>hvm</type></os>"
    document = text(rest).replace("type='kvm'", "type='qemu'").replace("/usr/bin/qemu-system-x86_64", emulator())
    virsh = Virsh(tmp_path)
    before = virsh.arguments(document.encode())
    assert any("virtio-9p-pci" in word for word in before)
    after = virsh.arguments(changed(domain_of(document), [ATTACHMENT]))
    assert after[after.index(ATTACHMENT) - 1] == "-device"
    assert not any("9p" in word or word == "-fsdev" for word in after)
    assert any('"memory-backend-memfd"' in word and '"share":true' in word for word in after)


@pytest.mark.timeout(600)
def test_libvirt_shares_memory_devices_that_do_not_say(tmp_path: Path) -> None:
    """They have the access of their NUMA cell, or else the domain's."""
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    virsh, qemu = Virsh(tmp_path), emulator()
    for cell, backing in ((" memAccess='shared'", ""), ("", SHARED)):
        rest = (
            f"<maxMemory slots='4' unit='MiB'>2048</maxMemory><memory unit='MiB'>768</memory>{backing}<vcpu>1</vcpu>"
            "<os><type arch='x86_64' machine='pc'>hvm</type></os>"
            f"<cpu><numa><cell id='0' cpus='0' memory='524288'{cell}/></numa></cpu>"
        )
        document = text(rest).replace("<memballoon model='none'/>", DIMM).replace("type='kvm'", "type='qemu'")
        words = virsh.arguments(changed(domain_of(document.replace("/usr/bin/qemu-system-x86_64", qemu)), [ATTACHMENT]))
        backends = [word for word in words if '"memory-backend-' in word]
        assert len(backends) == 2
        assert all('"share":true' in word for word in backends)
