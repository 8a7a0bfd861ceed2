from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvirtfs.errors import ConfigError
from pyvirtfs.vmm.qemu_arguments import WITH_VALUE, parse, words
from pyvirtfs.vmm.qemu_memory import parse_size, ram_nbytes, share


def shared(line: str, *, strict: bool = False) -> tuple[str, list[str]]:
    arguments, warnings = share(parse(shlex.split(line)), strict=strict)
    return " ".join(words(arguments)), warnings


MIB = 1 << 20


@pytest.mark.parametrize(
    ("options", "nbytes"),
    [
        ("", 128 * MIB),
        ("-m 512", 512 * MIB),
        ("--m 512", 512 * MIB),
        ("-m 512M", 512 * MIB),
        ("-m 64m", 64 * MIB),
        ("-m 1G", 1024 * MIB),
        ("-m 1.5G", 1536 * MIB),
        ("-m .5g", 512 * MIB),
        ("-m 1T", 1 << 40),
        ("-m 01000", 1000 * MIB),
        ("-m +64", 64 * MIB),
        ("-m ' 64'", 64 * MIB),
        ("-m 65536k", 64 * MIB),
        ("-m 67108864B", 64 * MIB),
        ("-m 512001k", 524296192),
        ("-m size=1G", 1024 * MIB),
        ("-m size=1G,slots=2,maxmem=4G", 1024 * MIB),
        ("-m slots=2,maxmem=4G,size=256", 256 * MIB),
        ("-m 1G,slots=2,maxmem=4G", 1024 * MIB),
        ("-m slots=2,maxmem=4G", 128 * MIB),
        ("-m 512 -m slots=2,maxmem=4G", 512 * MIB),
        ("-m 512 -m 1G", 1024 * MIB),
        ("-m 0", 128 * MIB),
        ("-m ''", 128 * MIB),
        ("-machine q35,memory.size=256M", 256 * MIB),
        ("-M q35,memory.size=268435456", 256 * MIB),
        ("-m 64 -machine q35,memory.size=256M", 64 * MIB),
        ("-m 0 -machine q35,memory.size=256M", 256 * MIB),
        ("-m 1G -m 0", 128 * MIB),
    ],
)
def test_the_size_of_ram(options: str, nbytes: int) -> None:
    assert ram_nbytes(parse(shlex.split(options))) == nbytes


@pytest.mark.parametrize("text", ["", "x", "64MB", "0x40", "-1", "1e3", "1.5", "1.5B", "16E", "64 ", "G", "."])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^-m: .* is not a size"):
        parse_size("-m", text)


@pytest.mark.parametrize(
    ("option", "line"),
    [("-m 1x", "-m: '1x' is not a size"), ("-M q35,memory.size=x", "-machine memory.size: 'x' is not a size")],
)
def test_a_bad_size_is_named(option: str, line: str) -> None:
    with pytest.raises(ConfigError, match=f"^{line}"):
        shared(option)


@given(st.integers(0, 1 << 33), st.sampled_from(["", "K", "m", "G"]))
def test_sizes_are_whole_and_enough(number: int, unit: str) -> None:
    nbytes = parse_size("-m", f"{number}{unit}")
    assert nbytes == number * {"": 1, "K": 1024, "m": MIB, "G": 1024 * MIB}[unit]


TAKEN = "-object rng-random,id=pyvirtfs-ram"
ON_FILE = (
    "-object memory-backend-file,id=pyvirtfs-ram,size={},mem-path={},share=on -machine memory-backend=pyvirtfs-ram"
)
ADDED = "-object memory-backend-memfd,id=pyvirtfs-ram,size={},share=on"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("", f"{ADDED.format('128M')} -machine memory-backend=pyvirtfs-ram"),
        ("-m 1G -S", f"{ADDED.format('1024M')} -machine memory-backend=pyvirtfs-ram -m 1G -S"),
        ("-m 100k", f"{ADDED.format('106496')} -machine memory-backend=pyvirtfs-ram -m 100k"),
        ("-M q35 -S", f"{ADDED.format('128M')} -M q35,memory-backend=pyvirtfs-ram -S"),
        ("--machine q35,accel=kvm", f"{ADDED.format('128M')} --machine q35,accel=kvm,memory-backend=pyvirtfs-ram"),
        ("-M q35 -machine smm=off,", f"-M q35 {ADDED.format('128M')} -machine smm=off,memory-backend=pyvirtfs-ram"),
        (
            "-M q35 -numa node,nodeid=0",
            f"{ADDED.format('128M')} -M q35,memory-backend=pyvirtfs-ram -numa node,nodeid=0",
        ),
        (
            TAKEN,
            f"{ADDED.format('128M').replace('ram,', 'ram1,')} -machine memory-backend=pyvirtfs-ram1 {TAKEN}",
        ),
        (
            "-m 64 -mem-path /dev/huge -mem-path /a,b -mem-prealloc",
            f"{ON_FILE.format('64M', '/a,,b')} -m 64 -mem-prealloc",
        ),
    ],
)
def test_ram_of_our_own(line: str, told: str) -> None:
    assert shared(line) == (told, [])


MACHINE = "-machine q35,memory-backend=m"


@pytest.mark.parametrize("kind", ["memfd", "shm", "file", "ram"])
@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("", ",share=on"),
        (",", "share=on"),
        (",share=on", ""),
        (",share=true", ""),
        (",prealloc=on,merge=off", ",share=on"),
    ],
)
def test_a_backend_that_is_named_is_shared(kind: str, options: str, told: str) -> None:
    backend = f"-object memory-backend-{kind},id=m,size=1G{options}"
    assert shared(f"{backend} {MACHINE}") == (f"{backend}{told} {MACHINE}", [])


@pytest.mark.parametrize(
    "users",
    [
        "-M memory-backend=m -machine q35",
        "-numa node,memdev=m",
        "-M memory-backend=m -numa cpu,node-id=0",
        "-M memory-backend=x -device pc-dimm,memdev=m",
        """-M memory-backend=x -device '{"driver":"virtio-mem-pci","memdev":"m"}'""",
    ],
)
def test_whoever_names_a_backend(users: str) -> None:
    told, warnings = shared(f"-object memory-backend-ram,id=m,size=1G {users}")
    assert told.startswith("-object memory-backend-ram,id=m,size=1G,share=on -")
    assert "pyvirtfs" not in told
    assert not warnings


def test_a_dimm_besides_ram_of_our_own() -> None:
    dimm = "-m 1G,slots=1,maxmem=2G -device pc-dimm,memdev=d -object memory-backend-ram,id=d,size=1G"
    told, _ = shared(f"-mem-path /h {dimm}")
    assert told == f"{ON_FILE.format('1024M', '/h')} {dimm},share=on"


@pytest.mark.parametrize("said", [{}, {"share": False}, {"share": True}])
def test_a_backend_in_json(said: dict[str, bool]) -> None:
    backend = {"qom-type": "memory-backend-memfd", "id": "m", "size": 1 << 30, **said}
    arguments, warnings = share(parse(["-object", json.dumps(backend), "-machine", "q35,memory-backend=m"]))
    assert json.loads(words(arguments)[1]) == {**backend, "share": True}
    assert len(warnings) == (said == {"share": False})


@pytest.mark.parametrize("off", ["off", "no", "false", "n"])
@pytest.mark.parametrize("kind", ["memfd", "ram"])
def test_a_backend_that_is_not_to_be_shared(kind: str, off: str) -> None:
    told, (warning,) = shared(f"-object memory-backend-{kind},id=m,size=1G,share={off} {MACHINE}")
    assert told == f"-object memory-backend-{kind},id=m,size=1G,share={off},share=on {MACHINE}"
    assert warning.startswith(f"-object memory-backend-{kind},id=m: share={off} has become share=on: else the device")


def test_a_file_that_is_not_to_be_changed() -> None:
    with pytest.raises(ConfigError, match=r"^-object memory-backend-file,id=m: share=off: it must be share=on, which"):
        shared(f"-object memory-backend-file,id=m,size=1G,mem-path=/x,share=off {MACHINE}")


@pytest.mark.parametrize(
    "line",
    [
        "-object memory-backend-ram,id=other,size=1G",  # nobody uses it
        "-object memory-backend-epc,id=m,size=1G",
        "-object memory-backend-file,id=m,size=1G,mem-path=/x,readonly=on",
        "-object help",
        "-object {",
    ],
)
def test_objects_that_stay_as_they_are(line: str) -> None:
    assert shared(f"{line} {MACHINE}") == (f"{line} {MACHINE}", [])


@pytest.mark.parametrize(("said", "warned"), [("", True), (",share=off", True), (",share=on", False)])
def test_a_device_that_keeps_a_file(said: str, warned: bool) -> None:
    backend = f"-object memory-backend-file,id=n,size=1G,mem-path=/x{said}"
    line = f"{backend} -object memory-backend-memfd,id=m,size=1G,share=on {MACHINE} -device nvdimm,memdev=n"
    told, warnings = shared(line)
    assert told == line
    assert ["-device nvdimm,memdev=n is not shared: the guest must not" in one for one in warnings] == [True] * warned


@pytest.mark.parametrize("option", ["confidential-guest-support", "memory-encryption"])
def test_a_confidential_guest_is_refused(option: str) -> None:
    with pytest.raises(ConfigError, match=f"^-machine: {option}=sev0: nothing outside of QEMU can use such RAM"):
        shared(f"-object sev-guest,id=sev0 -machine q35,{option}=sev0")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("", None),
        ("-mem-path /x", "-mem-path: '/x'"),
        (f"-object memory-backend-memfd,id=m,size=1G {MACHINE}", None),
        (f"-object memory-backend-memfd,id=m,size=1G,seal=off {MACHINE}", "-object memory-backend-memfd,id=m"),
        (f"-object memory-backend-memfd,id=m,size=1G,hugetlb=on {MACHINE}", "-object memory-backend-memfd,id=m"),
        (f"-object memory-backend-ram,id=m,size=1G {MACHINE}", "-object memory-backend-ram,id=m"),
        (f"-object memory-backend-file,id=m,size=1G,share=on {MACHINE}", "-object memory-backend-file,id=m"),
    ],
)
def test_strictly_only_what_cannot_shrink(line: str, told: str | None) -> None:
    if told is None:
        shared(line, strict=True)
    else:
        with pytest.raises(ConfigError, match=f"^{told}: such RAM can shrink, which --strict-memory refuses"):
            shared(line, strict=True)


UNRELATED = sorted(WITH_VALUE - {"m", "machine", "M", "numa", "object", "device", "mem-path"})


@given(st.lists(st.tuples(st.sampled_from(UNRELATED).map(lambda option: f"-{option}"), st.text())))
def test_everything_else_stays(parts: list[tuple[str, str]]) -> None:
    line = [word for part in parts for word in part]
    arguments, warnings = share(parse(line))
    assert words(arguments)[4:] == line
    assert warnings == []


def test_a_file_with_content_is_not_shared_by_surprise(tmp_path: Path) -> None:
    """QEMU alone would only read it: a template for guests, perhaps."""
    template = tmp_path / "template"
    template.write_bytes(b"RAM")
    backend = f"memory-backend-file,id=ram,size=1M,mem-path={template}"
    words = ["-machine", "pc,memory-backend=ram", "-object"]
    with pytest.raises(ConfigError, match=r"has content.*share=on"):
        share(parse([*words, backend]))
    for said in (f"{backend},share=on", backend.replace("template", "new")):
        share(parse([*words, said]))
    _, warnings = share(parse(["-mem-path", str(template)]))
    assert "the file has content" in warnings[0]
