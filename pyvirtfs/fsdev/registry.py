"""The export drivers by name: our own, those of other packages, and those that a program registers.

Another package adds a driver by an entry point in the group ``pyvirtfs.fsdev``: its name is the driver's, and it loads
a `DriverType`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from pyvirtfs.errors import ConfigError
from pyvirtfs.fsdev.driver import ExportDriver
from pyvirtfs.fsdev.options import FsdevOptions, OptionTable, OptionValue, parse_fsdev

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

DriverFactory: TypeAlias = Callable[[Mapping[str, OptionValue]], ExportDriver[Any, Any]]
"""Makes an export from the values of its options, which the table has checked. Raises ConfigError."""

OptionCheck: TypeAlias = Callable[[Mapping[str, OptionValue]], None]
"""Looks at the values of a driver's options as a whole. Raises ConfigError."""

ENTRY_POINT_GROUP: Final = "pyvirtfs.fsdev"


@dataclass(frozen=True, slots=True)
class DriverType:
    """A kind of export."""

    name: str
    factory: DriverFactory
    options: OptionTable
    summary: str = ""
    """One line for help."""
    check: OptionCheck | None = None
    """Finds what is wrong, or warns of what is odd, with the options alone; opens nothing."""


# Loaded when first asked for: importing the registry costs nothing of the drivers.
_BUILT_IN: Final = {"local": "pyvirtfs.fsdev.local", "memory": "pyvirtfs.fsdev.ram", "synth": "pyvirtfs.fsdev.synth"}
_registered: dict[str, DriverType] = {}


def register(
    name: str, factory: DriverFactory, *, options: OptionTable | None = None, summary: str = "", replace: bool = False
) -> DriverType:
    """Make a driver known in this process.

    Args:
        name: What stands first in the option string.
        factory: Makes the export.
        options: What may stand in the option string; None: nothing but ``id``.
        summary: One line for help.
        replace: Whether a driver of that name may be replaced.

    Raises:
        ConfigError: There is a driver of that name already.
    """
    if not replace and name in names():
        raise ConfigError("fsdriver", f"there is a driver {name!r} already")
    driver = DriverType(name, factory, options or OptionTable(f"fsdev driver {name!r}", ()), summary)
    _registered[name] = driver
    return driver


def unregister(name: str) -> None:
    """Forget what `register` made known; KeyError if it is not registered."""
    del _registered[name]


def entry_points() -> Iterable[EntryPoint]:
    """The drivers of other packages."""
    from importlib import metadata  # noqa: PLC0415  # a fifth of the time that `import pyvirtfs` takes, rarely needed

    return metadata.entry_points(group=ENTRY_POINT_GROUP)


def names() -> list[str]:
    """The names of all drivers, sorted."""
    return sorted({*_BUILT_IN, *_registered, *(point.name for point in entry_points())})


def lookup(name: str) -> DriverType:
    """The driver of that name: a registered one, one of ours, or one of another package, in this order.

    Raises:
        ConfigError: There is none, or the other package's cannot be loaded.
    """
    driver = _registered.get(name)
    if driver is not None:
        return driver
    module = _BUILT_IN.get(name)
    if module is not None:
        found = importlib.import_module(module).DRIVER
    else:
        point = next((point for point in entry_points() if point.name == name), None)
        if point is None:
            raise ConfigError("fsdriver", f"there is no driver {name!r}", names())
        try:
            found = point.load()
        except Exception as error:  # importing runs other people's code, which may raise anything
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise ConfigError("fsdriver", f"the driver {name!r} cannot be loaded: {reason}") from error
    if not isinstance(found, DriverType):
        raise ConfigError("fsdriver", f"the driver {name!r} cannot be loaded: its entry point is no DriverType")
    return found


def check(options: str | FsdevOptions) -> None:
    """See what can be seen of an export's options without making it: neither files nor rights are looked at.

    Raises:
        ConfigError: No such driver, or an option is wrong.
    """
    _checked(options)


def create(options: str | FsdevOptions) -> ExportDriver[Any, Any]:
    """Make an export.

    Args:
        options: As behind ``-fsdev``: ``local,path=/srv,security_model=none``; or that, parsed.

    Raises:
        ConfigError: No such driver, or an option is wrong.
    """
    driver, values = _checked(options)
    return driver.factory(values)


def _checked(options: str | FsdevOptions) -> tuple[DriverType, Mapping[str, OptionValue]]:
    """The driver, and the values of its options."""
    if isinstance(options, str):
        options = parse_fsdev(options)
    driver = lookup(options.driver)
    values = driver.options.parse(options.values)
    if driver.check is not None:
        driver.check(values)
    return driver, values
