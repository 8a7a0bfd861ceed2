from __future__ import annotations

import os
from typing import Any

import pytest

from pyvirtfs.errors import ConfigError
from pyvirtfs.fsdev import registry
from pyvirtfs.fsdev.ram import MemoryDriver
from pyvirtfs.testing import DelayedDriver, check_driver, pair
from pyvirtfs.testing.conformance import Check, driver_checks
from pyvirtfs.testing.conformance.subject import Subject


@pytest.mark.parametrize("check", driver_checks(), ids=str)
def test_conformance(check: Check) -> None:
    check(MemoryDriver)


def test_conformance_of_an_empty_readonly_export() -> None:
    report = check_driver(lambda: MemoryDriver(readonly=True))
    assert "tree.readonly_exports_refuse_changes" in report.passed


def test_conformance_behind_delays() -> None:
    methods = {"attach", "walk", "create", "open", "write", "setattr", "unlinkat", "renameat"}
    names = {check.name for check in driver_checks() if check.name.startswith(("names.", "attributes.", "renaming."))}
    for check in driver_checks():
        if check.name in names:
            check(lambda: DelayedDriver(MemoryDriver(), methods, after=0.0))


def test_options() -> None:
    driver = registry.create("memory,id=m,size=2m,nr_inodes=1k,mode=750,uid=5,gid=0x10")
    assert isinstance(driver, MemoryDriver)
    export = Subject(driver)
    figures, attributes = export.statfs(export.root), export.attributes(export.root)
    assert (figures.blocks * figures.bsize, figures.files) == (2 << 20, 1024)
    assert (oct(attributes.mode), attributes.uid, attributes.gid) == ("0o40750", 5, 16)


@pytest.mark.parametrize(("text", "nbytes"), [("1t", 1 << 40), ("0x2000", 8192), ("3M", 3 << 20), ("12288b", 12288)])
def test_sizes(text: str, nbytes: int) -> None:
    export = Subject(registry.create(f"memory,size={text}"))
    figures = export.statfs(export.root)
    assert figures.blocks * figures.bsize == nbytes


@pytest.mark.parametrize("options", ["size=0", "size=0k", "size=0,nr_inodes=0"])
def test_without_limits(options: str) -> None:
    export = Subject(registry.create(f"memory,{options}"))
    figures = export.statfs(export.root)
    assert min(figures.blocks, figures.files) == 1 << 50


def test_defaults() -> None:
    export = Subject(registry.create("memory"))
    figures, attributes = export.statfs(export.root), export.attributes(export.root)
    assert (figures.blocks * figures.bsize, figures.files) == (1 << 30, 65536)
    assert (oct(attributes.mode), attributes.uid, attributes.gid) == ("0o41777", 0, 0)
    assert export.driver.readonly is False
    small = Subject(registry.create("memory,size=4096"))
    assert small.statfs(small.root).files == 1024


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ("size=", "size: '' is not a size"),
        ("size=-1", "size: '-1' is not a size"),
        ("size=50%", "size: '50%' is not a size"),
        ("size=999999999999999999g", "size: '999999999999999999g' is more than 9223372036854775807"),
        ("size=5e", "size: 5764607523034234880 is not within 0 and 4611686018427387904"),
        ("nr_inodes=many", "nr_inodes: 'many' is not a size"),
        ("mode=rwx", "mode: 'rwx' is not a mode"),
        ("mode=17777", "mode: '17777' is not a mode"),
        ("mode=", "mode: '' is not a mode"),
        ("uid=root", "uid: 'root' is not a number"),
        ("gid=4294967295", "gid: 4294967295 is not within"),
        ("path=/srv", "path: is known to QEMU, but a memory export has no folder on the host"),
        ("security_model=none", "security_model: is known to QEMU, but a memory export needs none"),
        ("huge=always", "huge: fsdev driver 'memory' has no such option"),
    ],
)
def test_mistakes(options: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        registry.create(f"memory,{options}")
    assert str(caught.value).startswith(problem)
    with pytest.raises(ConfigError) as checked:
        registry.check(f"memory,{options}")
    assert str(checked.value) == str(caught.value)


@pytest.mark.parametrize("options", [{"size": -1}, {"nr_inodes": -1}, {"mode": 0o10000}, {"uid": -1}, {"gid": 1 << 32}])
def test_mistakes_of_a_program(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="is not within"):
        MemoryDriver(**options)


def test_a_guest_mounts_it() -> None:
    with pair("memory,size=8m") as both:
        path = both.mount.path
        path("folder").mkdir()
        data = os.urandom(3 << 20)
        path("folder/file").write_bytes(data)
        assert path("folder/file").read_bytes() == data
        path("link").symlink_to("folder/file")
        assert path("link").read_bytes() == data
        with pytest.raises(OSError, match="No space left"):
            path("large").write_bytes(bytes(9 << 20))
        path("large").unlink()
        assert sorted(found.name for found in path(".").iterdir()) == ["folder", "link"]


def test_what_is_held_at_the_end_can_be_given_back() -> None:
    driver = MemoryDriver()
    export = Subject(driver)
    node = export.make_file(b"file", b"content")
    file, _ = export.open(node, os.O_RDWR, 0)
    driver.close()
    driver.close()
    export.close_file(file)
    export.release(node)
    assert driver._space.free == driver._space.pages
