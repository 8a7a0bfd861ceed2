"""QEMU's own strings on our command lines: `-virtfs`, `-fsdev` and `-device`, and what ``help`` in them lists."""

from __future__ import annotations

import contextlib
import importlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pyvirtfs.cli.properties import COMMON, PROPERTIES, Value
from pyvirtfs.errors import ConfigError
from pyvirtfs.fsdev.options import FsdevOptions, parse_device, parse_fsdev, parse_pairs, parse_virtfs, unknown

if TYPE_CHECKING:
    from pyvirtfs.memory import GuestMemory
    from pyvirtfs.virtio9p import Virtio9pPci

DEVICES: dict[str, str] = {
    "virtio-9p-pci": 'bus PCI, alias "virtio-9p"',
    "virtio-9p-pci-non-transitional": "bus PCI",
}
"""The devices that there are, and how the list of devices describes them."""

ALIASES = {"virtio-9p": "virtio-9p-pci"}

KNOWN_ELSEWHERE = ("virtio-9p-pci-transitional", "virtio-9p-device", "virtio-9p-ccw")
"""Devices of QEMU that are not available here."""

_ARGUMENTS = ("event_idx", "indirect_desc", "queue_reset", "vectors")

EXAMPLE = "-virtfs local,path=.,mount_tag=here,security_model=none"

FIRST_SLOT = 6
LAST_SLOT = 31

CommandT = TypeVar("CommandT", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSettings:
    """One device as the command line describes it."""

    fsdev: FsdevOptions
    mount_tag: str
    slot: int
    function: int = 0
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Properties that `Virtio9pPci` takes as keyword arguments of the same name."""

    def check(self) -> None:
        """See what can be seen without making anything. Raises ConfigError."""
        from pyvirtfs.fsdev import registry
        from pyvirtfs.virtio9p import check_mount_tag

        check_mount_tag(self.mount_tag)
        registry.check(self.fsdev)

    @contextlib.contextmanager
    def open(self, memory: GuestMemory, **arguments: Any) -> Iterator[Virtio9pPci]:
        """Make the export and the device; both are closed behind the block.

        Raises:
            ConfigError: As `Virtio9pPci`.
        """
        from pyvirtfs.fsdev import registry
        from pyvirtfs.virtio9p import Virtio9pPci, check_mount_tag

        check_mount_tag(self.mount_tag)
        with (
            contextlib.closing(registry.create(self.fsdev)) as export,
            Virtio9pPci(export, mount_tag=self.mount_tag, memory=memory, **self.arguments, **arguments) as device,
        ):
            yield device


class DeviceCommand(click.Command):
    """A command with `-virtfs`, `-fsdev` and `-device`: a mistyped one is named as written, not by its first letter."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does, but long options may begin with one dash."""
        written = list(args)
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            # click has taken "-virtf" for the letters v, i, r, ... and complains about one of them.
            known = {name for parameter in self.get_params(ctx) for name in parameter.opts}
            for argument in written:
                name = argument.partition("=")[0]
                letters = not name.startswith("--") and error.option_name.strip("-") in name
                if name.startswith("-") and name not in known and (letters or name == error.option_name):
                    raise click.NoSuchOption(name, ctx=ctx) from None
            raise


def device_options(command: CommandT) -> CommandT:
    """Add the three options to a command; it gets `virtfs`, `fsdev` and `device`, tuples of strings.

    With two dashes they are the same, as QEMU has it. A fourth one, `--import`, does its work itself.
    """
    command = import_option(command)
    for name, metavar, text in (
        ("device", "DEVICE,fsdev=ID,mount_tag=TAG[,...]", "A device. 'help' and 'DEVICE,help' list."),
        ("fsdev", "DRIVER,id=ID[,...]", "An export for a -device. 'help' and 'DRIVER,help' list."),
        (
            "virtfs",
            "DRIVER,mount_tag=TAG[,...]",
            "An export and its device in one. A comma inside a value is written twice: path=/a,,b.",
        ),
    ):
        option = click.option(f"-{name}", f"--{name}", name, metavar=metavar, multiple=True, help=f"{text} As QEMU's.")
        command = option(command)
    return command


def import_option(command: CommandT) -> CommandT:
    """Add `--import`, which does its work itself."""
    return click.option(
        "--import",
        "modules",
        metavar="MODULE",
        multiple=True,
        expose_value=False,
        callback=_import_modules,
        help="Import a Python module first, which registers a driver of its own (pyvirtfs.fsdev.register).",
    )(command)


def _import_modules(_ctx: click.Context, _parameter: click.Parameter, names: tuple[str, ...]) -> None:
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ConfigError("--import", f"{name!r} cannot be imported: {error}") from None


def devices_from(
    virtfs: Sequence[str], fsdev: Sequence[str], device: Sequence[str], *, spare: list[FsdevOptions] | None = None
) -> list[DeviceSettings]:
    """The devices that the command line describes, in the order written, `-virtfs` first.

    Prints what ``help`` asks for, and ends the command then.

    Args:
        virtfs: As written.
        fsdev: As written.
        device: As written.
        spare: Gets the exports that no device has, which is a mistake otherwise.

    Raises:
        ConfigError: A string is wrong, or a `-device` and a `-fsdev` do not find each other.
    """
    answer = _help(virtfs, fsdev, device)
    if answer is not None:
        click.echo(answer)
        raise click.exceptions.Exit(0)
    exports: dict[str, FsdevOptions] = {}
    wanted: list[dict[str, Value]] = []
    for text in virtfs:
        both = parse_virtfs(text)
        _add(exports, both.fsdev, "-virtfs")
        wanted.append({"fsdev": both.fsdev.id or both.mount_tag, "mount_tag": both.mount_tag})
    for text in fsdev:
        _add(exports, parse_fsdev(text, id_required=True), "-fsdev")
    wanted.extend(_properties(text) for text in device)
    slots = set(range(FIRST_SLOT, LAST_SLOT + 1)) - {
        _address(properties)[0] for properties in wanted if "addr" in properties
    }
    found = [_settings(properties, exports, slots) for properties in wanted]
    for identifier, export in exports.items():
        if any(one.fsdev is export for one in found):
            continue
        if spare is None:
            raise ConfigError("-fsdev", f"no -device has fsdev={identifier}")
        spare.append(export)
    for one in found:
        if one.function and not any((other.slot, other.function) == (one.slot, 0) for other in found):
            # PCI 3.0, 6.1: nobody looks at the other functions of a slot without a function 0.
            raise ConfigError("addr", f"{one.slot:02x}.{one.function:x} would not be found: {one.slot:02x}.0 is empty")
    return found


def only_device(virtfs: Sequence[str], fsdev: Sequence[str], device: Sequence[str]) -> DeviceSettings:
    """The one device of a command that takes one.

    Raises:
        ConfigError: As `devices_from`, or there is none, or more than one.
    """
    settings = devices_from(virtfs, fsdev, device)
    if not settings:
        raise ConfigError("-virtfs", f"say which folder is to be mounted, for example {EXAMPLE}")
    if len(settings) > 1:
        written = " and ".join(name for name, texts in (("-virtfs", virtfs), ("-device", device)) if texts)
        raise ConfigError(written, f"there are {len(settings)} devices, and this command takes one: leave the rest out")
    return settings[0]


def device_list() -> str:
    """What ``-device help`` prints."""
    return "\n".join(["Storage devices:", *(f'name "{name}", {text}' for name, text in sorted(DEVICES.items()))])


def property_list(name: str) -> str:
    """What ``-device NAME,help`` prints."""
    return "\n".join([f"{name} options:", *(known.help() for known in PROPERTIES if _belongs(known.name, name))])


def driver_list() -> str:
    """What ``-fsdev help`` and ``-virtfs help`` print."""
    from pyvirtfs.fsdev import registry

    lines = ["Drivers:"]
    for name in registry.names():
        try:
            summary = registry.lookup(name).summary
        except ConfigError as error:  # another package's, and broken
            summary = error.problem
        lines.append(f"  {name:<10} {summary}".rstrip())
    return "\n".join(lines)


def option_list(name: str) -> str:
    """What ``-fsdev NAME,help`` and ``-virtfs NAME,help`` print. ConfigError if there is no such driver."""
    from pyvirtfs.fsdev import registry

    return "\n".join([f"{name} options:", *(f"  {line}" for line in registry.lookup(name).options.help())])


_HELP = {"help", "?"}


def _help(virtfs: Sequence[str], fsdev: Sequence[str], device: Sequence[str]) -> str | None:
    for option, texts in (("-virtfs", virtfs), ("-fsdev", fsdev)):
        for text in texts:
            pairs = parse_pairs(text, "fsdriver", option=option)
            if pairs.get("fsdriver") in _HELP:
                return driver_list()
            if not _HELP.isdisjoint(pairs) and "fsdriver" in pairs:
                with _blaming(option):
                    return option_list(pairs["fsdriver"])
    for text in device:
        if text in _HELP:
            return device_list()
        options = parse_device(text)
        if not _HELP.isdisjoint(options.properties):
            return property_list(_device_name(options.driver))
    return None


@contextlib.contextmanager
def _blaming(option: str) -> Iterator[None]:
    """A ConfigError from within names the option that the person has written."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(option, error.problem, error.choices) from None


def _device_name(name: str) -> str:
    name = ALIASES.get(name, name)
    if name not in DEVICES:
        problem = "is known to QEMU but not available here yet" if name in KNOWN_ELSEWHERE else "is not a device"
        raise ConfigError("-device", f"{name!r} {problem}", DEVICES)
    return name


def _belongs(key: str, device: str) -> bool:
    """Whether the device has the property: only the generic name can be told which interfaces to offer."""
    return device == "virtio-9p-pci" or key not in {"disable-legacy", "disable-modern"}


def _properties(text: str) -> dict[str, Value]:
    """The properties of one `-device`, checked."""
    options = parse_device(text)
    name = _device_name(options.driver)
    known = {entry.name: entry for entry in (*PROPERTIES, *COMMON) if _belongs(entry.name, name)}
    values: dict[str, Value] = {}
    for key, written in options.properties.items():
        if key not in known:
            raise unknown(key, f"{name} has no such property", known)
        values[key] = known[key].parse(written)
        known[key].check(values[key])
    for key in ("fsdev", "mount_tag"):
        if key not in values:
            raise ConfigError(key, f"{name} needs it")
    return values


def _add(exports: dict[str, FsdevOptions], export: FsdevOptions, option: str) -> None:
    from pyvirtfs.fsdev import registry

    with _blaming(option):
        registry.lookup(export.driver)
    identifier = export.id or ""
    if identifier in exports:
        raise ConfigError("id", f"two exports have the id {identifier!r}")
    exports[identifier] = export


def _settings(properties: dict[str, Value], exports: dict[str, FsdevOptions], slots: set[int]) -> DeviceSettings:
    identifier = str(properties["fsdev"])
    if identifier not in exports:
        raise ConfigError("fsdev", f"there is no -fsdev with the id {identifier!r}", sorted(exports))
    if "addr" in properties:
        slot, function = _address(properties)
    elif slots:
        slot, function = min(slots), 0
        slots.remove(slot)
    else:
        raise ConfigError("-device", "the bus is full")
    return DeviceSettings(
        fsdev=exports[identifier],
        mount_tag=str(properties["mount_tag"]),
        slot=slot,
        function=function,
        arguments={key: properties[key] for key in _ARGUMENTS if key in properties},
    )


def _address(properties: dict[str, Value]) -> tuple[int, int]:
    """Slot and function of the property `addr`, which are hexadecimal."""
    text = str(properties["addr"])
    match = re.fullmatch(r"(?:0x)?([0-9a-f]{1,2})(?:\.([0-7]))?", text, re.IGNORECASE)
    slot = int(match[1], 16) if match else LAST_SLOT + 1
    if match is None or slot > LAST_SLOT:
        raise ConfigError("addr", f"{text!r} is no slot[.function] (hexadecimal, 00.0 to {LAST_SLOT:02x}.7)")
    return slot, int(match[2] or "0")
