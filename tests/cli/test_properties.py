from __future__ import annotations

import pytest

from pyvirtfs.cli.properties import PROPERTIES, Property
from pyvirtfs.errors import ConfigError

BY_NAME = {known.name: known for known in PROPERTIES}


def test_names_are_sorted_and_unique() -> None:
    names = [known.name for known in PROPERTIES]
    assert names == sorted(set(names))


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("vectors", "  vectors=<uint32>       - MSI-X vectors, 0: no MSI-X (default: 2)"),
        ("event_idx", "  event_idx=<bool>       - on/off (default: true)"),
        ("disable-legacy", '  disable-legacy=<OnOffAuto> - on/off/auto (default: "auto")'),
        ("acpi-index", "  acpi-index=<uint32>    -  (default: 0)"),
        ("addr", "  addr=<int32>           - Slot and optional function number, example: 06.0 or 06 (default: -1)"),
        ("failover_pair_id", "  failover_pair_id=<str>"),
    ],
)
def test_help_line_is_laid_out_as_qemu_does(name: str, line: str) -> None:
    assert BY_NAME[name].help() == line


@pytest.mark.parametrize(("text", "value"), [("on", True), ("yes", True), ("off", False), ("false", False)])
def test_booleans_have_the_words_of_qemu(text: str, value: bool) -> None:
    assert BY_NAME["packed"].parse(text) is value


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("packed", "maybe", "packed: 'maybe' is not a switch position (choose from on, off)"),
        ("disable-legacy", "2", "disable-legacy: '2' is not a switch position (choose from on, off)"),
        ("vectors", "many", "vectors: 'many' is not a number (decimal, 0x hexadecimal, 0 octal)"),
        ("vectors", "999999", "vectors: '999999' is not in the range 0 to 2048"),
        ("vectors", "-1", "vectors: '-1' is not in the range 0 to 2048"),
        ("romsize", "0x100000000", "romsize: '0x100000000' is not in the range 0 to 4294967295"),
    ],
)
def test_bad_values_name_the_choices(name: str, text: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        BY_NAME[name].parse(text)
    assert str(caught.value) == told


def test_numbers_may_be_hexadecimal() -> None:
    assert BY_NAME["vectors"].parse("0x10") == 16


@pytest.mark.parametrize(
    "known", [known for known in PROPERTIES if known.accepted is not None], ids=lambda known: known.name
)
def test_what_is_not_honoured_is_refused_unless_it_is_what_the_device_does(known: Property) -> None:
    assert known.accepted is not None
    for value in (known.default, *known.accepted):
        if value is not None:
            known.check(value)
    other: str | int | bool = not known.default if known.type == "bool" else "off" if known.type == "OnOffAuto" else 7
    if other in known.accepted:
        return
    with pytest.raises(ConfigError, match=rf"^{known.name}: .* not available here yet"):
        known.check(other)


@pytest.mark.parametrize("name", ["romfile", "failover_pair_id"])
def test_no_choices_are_shown_where_there_are_none(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        BY_NAME[name].check("x")
    assert str(caught.value) == f"{name}: 'x' is known to QEMU but not available here yet"


def test_what_is_honoured_takes_any_value() -> None:
    BY_NAME["vectors"].check(33)
