from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from pyvirtfs.errors import ConfigError
from pyvirtfs.fsdev import registry
from pyvirtfs.fsdev.driver import ExportDriver
from pyvirtfs.fsdev.local import LocalDriver
from pyvirtfs.fsdev.options import Option, OptionTable, OptionValue, parse_fsdev

seen: list[Mapping[str, OptionValue]] = []


def factory(values: Mapping[str, OptionValue]) -> ExportDriver[Any, Any]:
    seen.append(values)
    return LocalDriver("/tmp", "none", readonly=True)


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    known = dict(registry._registered)
    yield
    registry._registered.clear()
    registry._registered.update(known)
    seen.clear()


def test_local_is_built_in(tmp_path: Path) -> None:
    assert "local" in registry.names()
    driver = registry.create(f"local,path={tmp_path},security_model=none,readonly")
    assert isinstance(driver, LocalDriver)
    assert driver.readonly
    driver.close()
    registry.create(parse_fsdev(f"local,path={tmp_path},security_model=none")).close()


def test_registered_driver_gets_its_values() -> None:
    options = OptionTable("x", (Option(name="size", type="number", default=7),))
    registry.register("mine", factory, options=options, summary="Mine")
    assert "mine" in registry.names()
    assert registry.lookup("mine").summary == "Mine"
    registry.create("mine,id=a,size=0x10").close()
    registry.create("mine").close()
    assert seen == [{"size": 16}, {"size": 7}]
    with pytest.raises(ConfigError, match="colour"):
        registry.create("mine,colour=red")


def test_a_check_comes_before_the_driver_is_made() -> None:
    options = OptionTable("x", (Option(name="size", type="size", default=7),))
    looked: list[Mapping[str, OptionValue]] = []

    def check(values: Mapping[str, OptionValue]) -> None:
        looked.append(values)
        if values["size"] == 1024:
            raise ConfigError("size", "1024 is odd")

    registry._registered["mine"] = registry.DriverType("mine", factory, options, check=check)
    registry.check("mine,size=2k")
    registry.check(parse_fsdev("mine"))
    assert (looked, seen) == ([{"size": 2048}, {"size": 7}], [])
    for do in (registry.check, registry.create):
        with pytest.raises(ConfigError, match="odd"):
            do("mine,size=1k")
    assert seen == []
    registry.create("mine").close()
    assert seen == [{"size": 7}]


def test_check_finds_wrong_names_and_values() -> None:
    registry.register("mine", factory, options=OptionTable("x", (Option(name="size", type="size"),)))
    registry.check("mine,size=1G")
    for wrong, words in (("yours", "no driver 'yours'"), ("mine,sice=1", "did you mean size"), ("mine,size=x", "'x'")):
        with pytest.raises(ConfigError, match=words):
            registry.check(wrong)
    assert seen == []


def test_names_are_unique_unless_replaced() -> None:
    with pytest.raises(ConfigError, match="'local'"):
        registry.register("local", factory)
    registry.register("local", factory, replace=True)
    registry.create("local").close()
    assert seen == [{}]
    registry.unregister("local")
    with pytest.raises(ConfigError, match="path"):
        registry.create("local")


def test_unknown_driver_lists_the_known() -> None:
    with pytest.raises(ConfigError, match=r"'proxy'.*local"):
        registry.create("proxy,path=/x")


def test_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [
        EntryPoint("good", "pyvirtfs.fsdev.local:DRIVER", registry.ENTRY_POINT_GROUP),
        EntryPoint("gone", "pyvirtfs.no_such_module:DRIVER", registry.ENTRY_POINT_GROUP),
        EntryPoint("wrong", "os:sep", registry.ENTRY_POINT_GROUP),
    ]

    def installed(*, group: str) -> list[EntryPoint]:
        assert group == "pyvirtfs.fsdev"
        return points

    monkeypatch.setattr(importlib.metadata, "entry_points", installed)
    assert registry.names() == sorted({"gone", "good", "wrong", *registry._BUILT_IN})
    assert registry.lookup("good").name == "local"
    for name in ("gone", "wrong"):  # what raises something else is in test_a_distribution
        with pytest.raises(ConfigError, match=f"'{name}' cannot be loaded"):
            registry.lookup(name)


DRIVER = """
from pyvirtfs.fsdev.local import LocalDriver
from pyvirtfs.fsdev.options import Option, OptionTable
from pyvirtfs.fsdev.registry import DriverType

def factory(values):
    return LocalDriver(values["where"], "none", readonly=True)

DRIVER = DriverType("mydrv", factory, OptionTable("mydrv", (Option(name="where", required=True),)), "Mine")
"""
GUEST = """
import sys
from pyvirtfs.errors import ConfigError
from pyvirtfs.fsdev import registry
from pyvirtfs.testing import pair

with pair(f"mydrv,id=x,where={sys.argv[1]}") as both:
    print((both.mount.root / "file").read_text())
    try:
        (both.mount.root / "file").write_text("x")
    except OSError as error:
        print(error.strerror)
print(registry.names())
for name in ("bad", "worse"):
    try:
        registry.create(name)
    except ConfigError as error:
        print(error)
"""


def test_a_distribution(tmp_path: Path) -> None:
    """Another package as pip installs it: files, and metadata with entry points."""
    site = tmp_path / "site"
    information = site / "mydrv-1.dist-info"
    information.mkdir(parents=True)
    (site / "mydrv.py").write_text(DRIVER)
    (site / "bad.py").write_text("raise RuntimeError('no licence\\nbuy one')")
    (site / "worse.py").write_text("import mydrv\nmydrv.DRIVER.name = 1\n")
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: mydrv\nVersion: 1\n")
    (information / "entry_points.txt").write_text(
        "[pyvirtfs.fsdev]\nmydrv = mydrv:DRIVER\nbad = bad:DRIVER\nworse = worse:DRIVER\n"
    )
    export = tmp_path / "export"
    export.mkdir()
    (export / "file").write_text("Hi Guest")
    path = os.pathsep.join([str(site), str(Path(registry.__file__).parents[2])])
    done = subprocess.run(
        [sys.executable, "-c", GUEST, export],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([path, os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    content, refused, names, bad, worse = done.stdout.splitlines()
    assert (content, refused) == ("Hi Guest", "Read-only file system")
    assert names == str(sorted({"bad", "mydrv", "worse", *registry._BUILT_IN}))
    assert bad == "fsdriver: the driver 'bad' cannot be loaded: RuntimeError: no licence buy one"
    assert worse.startswith("fsdriver: the driver 'worse' cannot be loaded: FrozenInstanceError: cannot assign")
